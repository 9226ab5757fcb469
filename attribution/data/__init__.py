"""Rows: tables as users bring them, their tasks, and tokenized data sets."""
