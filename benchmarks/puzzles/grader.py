"""How a worked chain is graded, as a user would, in verl's signature."""

from __future__ import annotations


def after_equals(
    data_source: str, solution_str: str, ground_truth: str, extra_info: object = None
) -> float:
    """1.0 if what follows the last equals sign is the answer; 0.0 without an equals sign."""
    _, mark, last = solution_str.strip().rpartition("=")
    return float(mark == "=" and last == ground_truth)
