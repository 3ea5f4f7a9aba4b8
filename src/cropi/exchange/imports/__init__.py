"""Rollouts of other trainers: one reader per format, and how responses find their prompts."""
