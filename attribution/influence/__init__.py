"""Scores of a run: settings, fingerprints, stored results."""
