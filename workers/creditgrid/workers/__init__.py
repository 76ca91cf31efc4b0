"""Where tasks run: the artifact store, and the runners that compute calls in processes."""
