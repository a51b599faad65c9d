"""Moving scenes: grammar, rendering and checker of short videos."""
