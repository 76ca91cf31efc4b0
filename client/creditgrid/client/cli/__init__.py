"""The command line, ``creditgrid``, one file for each group of commands."""
