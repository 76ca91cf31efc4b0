"""What ``creditgrid new`` writes: real files, which pass ``creditgrid check``."""
