"""Evaluation: how accurate a policy is on named sets of prompts."""
