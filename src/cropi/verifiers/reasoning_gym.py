"""`reasoning_gym`: the graded score that a reasoning-gym task gives a response."""

from __future__ import annotations

import json
from typing import Any

from cropi.plugins import plugin
from cropi.prompts.sources import open_task, restore_entry
from cropi.schema import Prompt
from cropi.verifiers.boxes import last_boxed
from cropi.verifiers.tags import DEFAULT_TAGS, Tags


@plugin("verifier", "reasoning_gym")
class ReasoningGymVerifier:
    """Scores by the task that made the prompt; whose entry is in `extra`."""

    def __init__(self, tags: Tags = DEFAULT_TAGS) -> None:
        # Imported here, so that the import does not count towards a response's deadline.
        import reasoning_gym  # noqa: F401

        self._tags = tags
        self._tasks: dict[str, Any] = {}

    def __call__(self, prompt: Prompt, completion: str) -> float:
        """Return the task's score in [0, 1] for the <answer>, the box, or the whole response.

        Raises ValueError if the prompt was not made by a reasoning-gym task.
        """
        stored = prompt.extra.get("reasoning_gym")
        if not isinstance(stored, dict):
            raise ValueError(
                f"prompt {prompt.prompt_id!r} has no reasoning-gym entry in its extra column"
            )
        text = self._tags.after_thoughts(completion) or ""
        stated = self._tags.tagged(text)
        stated = last_boxed(text) if stated is None else stated
        answer = text.strip() if stated is None else stated
        return float(self._task(stored).score_answer(answer, restore_entry(stored)))

    def _task(self, stored: dict[str, Any]) -> Any:
        """Return the task's scorer, created once per set of options."""
        key = json.dumps([stored["task"], stored["options"]], sort_keys=True)
        if key not in self._tasks:
            self._tasks[key] = open_task(stored["task"], 1, 0, stored["options"])
        return self._tasks[key]
