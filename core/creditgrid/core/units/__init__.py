"""Units of the science: methods, rules, networks, datasets and measurements, each declared in one file."""
