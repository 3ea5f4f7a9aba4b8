"""A task sampler for prime-rl that trains in the order of a ranking, and keeps what was sampled.

    sampler = RankedSampler(tasks, "ranked/prime-rl", "ranked-rollouts")

It has the interface of prime-rl's `TaskSampler` (commit 559b447, August 2026): `next`, `observe`,
`state_dict`, `load_state_dict`, `metrics`. The ranking is a folder of `cropi export` or `cropi
rank`; when another one takes its place, that one is followed from its first prompt on. What is
observed is stored as verifiers' episodes, which `cropi rank --rollouts` reads, with all digits of
their log-probs. Neither prime-rl nor verifiers is imported.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cropi.errors import InputError
from cropi.prompts.row_files import open_rows
from cropi.schema import fingerprint, rewards_differ
from cropi.store.files import strict_json
from cropi.text import plural, shown

NAMES = ("selection.jsonl", "selection.parquet")
TRACES = "traces.jsonl"


class FollowedSelection(Iterator[Mapping[str, Any]]):
    """The rows of a folder's selection, best first, again and again.

    The folder is looked at before every row. `rows` is "control" for an export's random control.
    Raises InputError if the folder has no such rows.
    """

    def __init__(self, folder: str | Path, rows: str = "selection") -> None:
        self._folder = Path(folder)
        self._names = [name.replace("selection", rows) for name in NAMES]
        self._seen: tuple[int, ...] | None = None
        self.place, self.passes, self.changes = 0, 0, -1
        self.rows: list[Mapping[str, Any]] = []
        self.ids: list[str] = []
        self.refresh()

    def __next__(self) -> Mapping[str, Any]:
        self.refresh()
        row = self.rows[self.place]
        self.place += 1
        if self.place == len(self.rows):
            self.place, self.passes = 0, self.passes + 1
        return row

    @property
    def identity(self) -> str:
        """The same for selections with the same prompts in the same order."""
        return fingerprint(self.ids)

    def refresh(self) -> None:
        """Read the selection again if another file has taken its place.

        A folder is replaced by two renames; between them, the rows that are known stay.
        """
        file = next((f for f in (self._folder / n for n in self._names) if f.is_file()), None)
        if file is None:
            if self.rows:
                return
            raise InputError(
                f"{self._folder} has no {' or '.join(self._names)}; give a folder that cropi "
                "export or cropi rank wrote"
            )
        about = file.stat()
        seen = (about.st_ino, about.st_mtime_ns, about.st_size)
        if seen != self._seen:
            self._read(file)
            self._seen = seen

    def _read(self, file: Path) -> None:
        rows = [row for _, row in open_rows(file)]
        if not rows or any("prompt_id" not in row for row in rows):
            raise InputError(f"{file} has no prompt_id in each row; export the selection again")
        ids = [str(row["prompt_id"]) for row in rows]
        if ids != self.ids:
            self.place, self.passes, self.changes = 0, 0, self.changes + 1
        self.rows, self.ids = rows, ids


class RankedSampler(Iterator[Any]):
    """Tasks of a finite taskset in the order of a selection.

    `tasks` have a `key` and `data.id`, as those of verifiers; either may be the selection's
    `prompt_id`. Prompts of the selection without a task are passed over and counted; tasks that
    it does not name are not trained on. `store` is a folder that groups are appended to.

    Raises InputError if no task is selected, or one name is that of several tasks.
    """

    def __init__(self, tasks: Sequence[Any], ranking: str | Path, store: str | Path) -> None:
        self._selection = FollowedSelection(ranking)
        self._tasks = _by_name(tasks)
        self._store = EpisodeStore(store)
        self._counts: Counter[str] = Counter()
        self._require_tasks()

    def __next__(self) -> Any:
        """The task of the next selected prompt."""
        for _ in range(len(self._selection.rows) + 1):
            task = self._tasks.get(str(next(self._selection)["prompt_id"]))
            if task is not None:
                return task
        self._require_tasks()
        return next(self)

    def _require_tasks(self) -> None:
        ids = self._selection.ids
        if not any(name in self._tasks for name in ids):
            raise InputError(
                f"no task has one of the {plural(len(ids), 'selected id')}, such as "
                f"{shown(ids[0], 60)} (tasks are called {shown(next(iter(self._tasks)), 60)}); "
                "rank rollouts of this taskset"
            )

    def observe(self, group: Sequence[Any]) -> None:
        """Store the episodes of a group that is finished."""
        self._store.append([episode.to_record(float_decimals=None) for episode in group])
        rewards = [
            float(trace.reward)
            for episode in group
            for trace in episode.traces
            if trace.agent.trainable and not trace.has_error
        ]
        self._counts["groups"] += 1
        self._counts["dead"] += not rewards or not rewards_differ(min(rewards), max(rewards))

    def state_dict(self) -> dict[str, Any]:
        """Where in which selection it is."""
        selection = self._selection
        return {
            "selection": selection.identity,
            "place": selection.place,
            "passes": selection.passes,
            "counts": dict(self._counts),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was; with another selection, from its first prompt."""
        self._counts = Counter(state_dict["counts"])
        if state_dict["selection"] == self._selection.identity:
            self._selection.place = int(state_dict["place"])
            self._selection.passes = int(state_dict["passes"])

    def metrics(self) -> dict[str, float]:
        """How far it is, and how much of what it chose taught nothing."""
        ids, groups = self._selection.ids, self._counts["groups"]
        without = sum(name not in self._tasks for name in ids)
        return {
            "selected": float(len(ids)),
            "without_task": float(without),
            "passes": self._selection.passes + self._selection.place / len(ids),
            "new_selections": float(self._selection.changes),
            **({"dead_groups": self._counts["dead"] / groups} if groups else {}),
        }


def _by_name(tasks: Sequence[Any]) -> dict[str, Any]:
    """Tasks by key and by id. Raises InputError where two have the same one."""
    by_name: dict[str, Any] = {}
    for task in tasks:
        for name in {str(n) for n in (task.key, task.data.id) if n is not None}:
            if name in by_name:
                raise InputError(f"two tasks are called {shown(name, 60)}; give each its own id")
            by_name[name] = task
    if not by_name:
        raise InputError("there is no task with a key or an id; give a finite taskset with some")
    return by_name


class EpisodeStore:
    """Episodes by step, `step_<N>/traces.jsonl`, appended as they are finished."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write episodes behind those of their step; a half-written last line is closed first."""
        by_step: dict[str, list[Mapping[str, Any]]] = {}
        for record in records:
            by_step.setdefault(_step_folder(record), []).append(record)
        for step, members in by_step.items():
            path = self._folder / step / TRACES
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab+") as file:
                torn = file.tell() > 0 and _last_byte(path) != b"\n"
                lines = "".join(json.dumps(strict_json(record)) + "\n" for record in members)
                file.write((b"\n" if torn else b"") + lines.encode())


def _step_folder(record: Mapping[str, Any]) -> str:
    work = (record.get("run") or {}).get("work") or {}
    step = work.get("step")
    return f"step_{step}" if isinstance(step, int) else ""


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1)
