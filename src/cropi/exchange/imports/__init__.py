"""Rollouts of other trainers: a reader a format, and how their responses find their prompts."""
