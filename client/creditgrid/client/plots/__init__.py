"""Charts of a sweep, drawn with Altair from rows that the client has."""
