"""Retraining, replayed in the tangent kernel of a checkpoint."""
