"""Evaluation: how accurate a policy is on named sets of prompts (`pass_at_k`)."""
