"""Plain JSONL: a row per prompt, for trainers that have no format of their own here."""

from __future__ import annotations

from typing import ClassVar

from cropi.exchange.exports.trainer_format import Place, Row, Start, columns, text_or_messages
from cropi.plugins import plugin
from cropi.schema import Prompt


@plugin("export", "jsonl")
class Jsonl:
    """One JSON object per line."""

    suffix = ".jsonl"
    read_in = "cropi's own prompt files"
    chats = False
    files: ClassVar[dict[str, str]] = {}

    def row(self, prompt: Prompt, place: Place) -> Row:
        """`prompt` as text or messages, and every other column."""
        return columns(prompt, place, prompt=text_or_messages(prompt))

    def command(self, start: Start) -> str:
        """cropi reads these rows as prompts."""
        prompts = start.path("selection.jsonl")
        return f"cropi rollout --model {start.policy} --prompts {prompts} --out rollouts.parquet"
