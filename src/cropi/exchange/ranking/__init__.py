"""A ranked list from a trainer's own rollouts."""
