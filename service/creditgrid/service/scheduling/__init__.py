"""From ready calls to finished ones: dispatch, calls in flight, completion, retries, and commits of rows."""
