"""The published runs, and the report that compares our figures with the published ones."""
