"""Opening models: folders, repositories, official files and official objects become pipelines."""
