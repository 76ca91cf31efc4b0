"""The command line, ``creditgrid``: one module for each group of commands."""
