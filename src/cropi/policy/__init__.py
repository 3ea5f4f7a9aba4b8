"""Policies: loading, checkpoints and saved optimizer state."""
