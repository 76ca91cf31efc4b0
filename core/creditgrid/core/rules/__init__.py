"""The update rules that ship, each in one file."""
