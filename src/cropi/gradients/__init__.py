"""Per-prompt policy gradients of a language model (DESIGN section 2), for use on their own."""
