"""Outlines of the scripts: what happens once the arguments are parsed."""
