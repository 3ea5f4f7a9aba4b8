"""Sampling from a server: what it is asked, how often, and what its answers mean."""
