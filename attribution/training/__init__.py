"""Runs: recipe, training, members, queries, and the folder that training leaves."""
