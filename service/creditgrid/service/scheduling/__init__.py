"""From ready calls to finished ones: what runs next, what is in flight, retries, and commits of rows."""
