"""The published runs, and the report that compares ours with the published figures."""
