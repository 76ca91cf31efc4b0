"""The HTTP API: authentication, request bodies, problems, metrics and routes."""
