"""What a researcher writes: a sweep spec, from its text to the cells of a grid."""
