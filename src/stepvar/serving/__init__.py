"""HTTP server of one model: OpenAI's image routes, batching of waiting requests, previews, metrics."""
