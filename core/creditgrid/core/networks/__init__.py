"""The networks that ship, each in one file."""
