"""Rows: tables as users bring them, the tasks that they belong to, and tokenized data sets."""
