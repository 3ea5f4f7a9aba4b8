"""A third suite, which no default was chosen on: puzzles on strings, digits, logic and tables."""
