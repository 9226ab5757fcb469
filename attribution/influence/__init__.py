"""Factors and scores: kronfluence, made faster and resumable."""
