"""prime-rl: JSONL rows, and a taskset of the `verifiers` package that loads and judges them."""

from __future__ import annotations

from typing import ClassVar

from cropi.exchange.exports.trainer_format import Place, Row, Start, columns, text_or_messages
from cropi.plugins import plugin
from cropi.schema import Prompt

TASKSET = '''\
"""The prompts beside this file as a verifiers taskset, in the order of the selection.

Its id is `cropi-selection`; this folder has to be on PYTHONPATH.
"""

import asyncio
import json
from pathlib import Path

import verifiers.v1 as vf

from cropi.exchange.reward_functions import FolderRewards

HERE = Path(__file__).parent
FOLDER = FolderRewards(HERE)


class SelectedData(vf.TaskData):
    """A row: `id` is the prompt's."""

    answer: str = ""
    source: str = ""


class SelectedTask(vf.Task[SelectedData, vf.State, vf.TaskConfig]):
    """A prompt, judged by cropi's verifiers."""

    @property
    def key(self) -> str:
        return self.data.id

    @vf.reward
    async def verifier(self, trace: vf.Trace) -> float:
        """The reward; an error for a response that cannot be judged, which is not a wrong one."""
        ids, texts = [self.data.id], [trace.last_reply]
        (verdict,) = await asyncio.to_thread(FOLDER.verdicts, ids, texts)
        if verdict.status != "ok":
            raise vf.TaskError(f"not judged: {verdict.status}: {verdict.detail}")
        return verdict.reward


class SelectionConfig(vf.TasksetConfig):
    """Which file: `selection`, or `control`, the random one."""

    rows: str = "selection"


class SelectionTaskset(vf.Taskset[SelectedTask, SelectionConfig]):
    """The exported rows."""

    def load(self):
        with (HERE / f"{self.config.rows}.jsonl").open(encoding="utf-8") as lines:
            yield from map(self.task_of, map(json.loads, lines))

    def task_of(self, row):
        data = SelectedData(
            id=row["prompt_id"], prompt=row["prompt"], answer=row["answer"], source=row["source"]
        )
        return SelectedTask(data, self.config.task)


__all__ = ["SelectionTaskset"]
'''
LIVE = '''\
"""The selection beside this file without an end, as it is then: a new export is followed at once.

Its id is `cropi-live`. Each selection is gone through in order, again and again.
"""

from cropi_selection import HERE, SelectedTask, SelectionConfig, SelectionTaskset

import verifiers.v1 as vf

from cropi.integrations.prime_rl import FollowedSelection


class LiveTaskset(SelectionTaskset, vf.Taskset[SelectedTask, SelectionConfig]):
    """The exported rows, followed."""

    INFINITE = True

    def load(self):
        yield from map(self.task_of, FollowedSelection(HERE, self.config.rows))


__all__ = ["LiveTaskset"]
'''
CONFIG = """\
# Merge into the rl.toml of your run. prime-rl goes through the tasks in the order of the selection.
[[orchestrator.train.source]]
name = "cropi-selection"

[orchestrator.train.source.env.taskset]
id = "cropi-selection"  # "cropi-live" follows each new export over this folder
# rows = "control"  # the random control

[orchestrator.train.source.env.agent.harness]
id = "null"

[orchestrator.train.source.env.agent.runtime]
type = "subprocess"
"""


@plugin("export", "prime-rl")
class PrimeRl:
    """A taskset for prime-rl, or anything else that runs `verifiers` environments."""

    suffix = ".jsonl"
    read_in = "verifiers 0.4.0 and prime-rl at 559b447 (August 2026)"
    chats = True
    files: ClassVar[dict[str, str]] = {
        "cropi_selection.py": TASKSET,
        "cropi_live.py": LIVE,
        "source.toml": CONFIG,
    }

    def row(self, prompt: Prompt, place: Place) -> Row:
        """`prompt` as text (one user message to verifiers) or messages, and every other column."""
        return columns(prompt, place, prompt=text_or_messages(prompt))

    def command(self, start: Start) -> str:
        """prime-rl with your settings, the source of tasks, and the policy."""
        return (
            f"PYTHONPATH={start.quoted_folder} uv run rl @ rl.toml @ {start.path('source.toml')} "
            f"--model.name {start.policy}"
        )
