"""NeMo Gym: JSONL whose rows hold the request that its agents send."""

from __future__ import annotations

from typing import Any, ClassVar

from cropi.exchange.exports.trainer_format import (
    Place,
    Row,
    Start,
    as_messages,
    columns,
    final_answer_of,
    nested_object,
)
from cropi.plugins import plugin
from cropi.schema import Prompt


@plugin("export", "nemo-gym")
class NemoGym:
    """JSONL files for NeMo Gym's `math_with_judge` and other resources servers."""

    suffix = ".jsonl"
    read_in = "NeMo Gym at 07d6b0d (August 2026)"
    chats = True
    files: ClassVar[dict[str, str]] = {}

    def row(self, prompt: Prompt, place: Place) -> Row:
        """`responses_create_params` of the row itself where it has them, else from the prompt.

        A resources server's own fields stay as they are in the row.
        """
        request: dict[str, Any] = {"input": as_messages(prompt)}
        if prompt.tools:
            request["tools"] = [dict(tool) for tool in prompt.tools]
        given = nested_object(prompt, "responses_create_params")
        return columns(
            prompt,
            place,
            responses_create_params={**request, **given},
            question=prompt.extra.get("question", question_of(prompt)),
            expected_answer=prompt.extra.get("expected_answer", final_answer_of(prompt)),
        )

    def command(self, start: Start) -> str:
        """Rollouts of the selection with their rewards, by servers that `gym env start` started."""
        return (
            "gym eval run --no-serve --agent math_with_judge_simple_agent "
            f"--input {start.path('selection.jsonl')} --output rollouts.jsonl"
        )


def question_of(prompt: Prompt) -> str:
    """The last thing that the user says."""
    turns = [m["content"] for m in as_messages(prompt) if m["role"] == "user"]
    return str(turns[-1]) if turns else prompt.content
