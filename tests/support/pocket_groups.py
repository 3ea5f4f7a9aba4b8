"""Random rollout groups of tokens that the embedded model has, which a path loads anywhere."""

from __future__ import annotations

from dataclasses import replace

from cropi.schema import Response, RolloutGroup
from support.tiny_models import changed, mixed_groups

POCKET_TOKENS = 48


def pocket_groups(count: int, seed: int) -> list[RolloutGroup]:
    """Groups of 2 to 5 responses; the second one is uninformative."""

    def with_pocket_tokens(response: Response) -> Response:
        return replace(response, ids=response.ids % POCKET_TOKENS)

    groups = [changed(group, with_pocket_tokens) for group in mixed_groups(count, seed)]
    for group in groups:
        group.prompt_ids = group.prompt_ids % POCKET_TOKENS
    for response in groups[1].responses:
        response.reward = 1.0
    return groups
