"""The HTTP front end: authentication, request bodies, problems, metrics and routes."""
