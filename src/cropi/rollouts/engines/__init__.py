"""Rollout engines: what samples responses from a policy."""
