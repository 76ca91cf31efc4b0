"""Charts of a sweep, drawn with Altair from its rows."""
