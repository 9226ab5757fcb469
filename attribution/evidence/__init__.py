"""Is it true? Retraining, statistics, and baselines."""
