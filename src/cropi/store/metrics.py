"""What things cost, counted everywhere the same way: tokens, and FLOPs from parameters x tokens.

A token costs 2 FLOPs a parameter forward, 2 backward through the activations and 2 for the
weights' gradient. Attention's own products are left out, as is usual; they are small at these
lengths.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FORWARD, FORWARD_BACKWARD = 2, 6


def cost_row(
    phase: str,
    parameters: int,
    where: Mapping[str, Any],
    *,
    generated: int = 0,
    forward: int = 0,
    backward: int = 0,
) -> dict[str, Any]:
    """A metrics row of kind "cost"; `where` names arm and stage, or neither if all arms share it.

    `generated` tokens were sampled, `forward` went through the model once more (prompts included),
    and `backward` of those also came back with gradients.
    """
    flops = parameters * (FORWARD * (generated + forward) + (FORWARD_BACKWARD - FORWARD) * backward)
    return {
        "kind": "cost",
        "arm": where.get("arm", ""),
        "stage": where.get("stage"),
        "phase": phase,
        "tokens_generated": generated,
        "tokens_forward": forward,
        "tokens_backward": backward,
        "flops": flops,
    }
