"""Evidence about scores: retrains, statistics, baselines, verdicts."""
