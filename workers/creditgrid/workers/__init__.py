"""Where tasks run: artifacts, datasets, and the runners that carry calls to processes."""
