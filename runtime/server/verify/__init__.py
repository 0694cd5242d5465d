"""One verification step on the model: rows in, outcomes out."""
