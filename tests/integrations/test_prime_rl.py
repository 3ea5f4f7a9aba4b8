"""The sampler for prime-rl trains on what is selected, in order, and keeps what it observes."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cropi.errors import InputError
from cropi.exchange.exports import export_selection
from cropi.exchange.imports.rollout_folder import read_rollout_log
from cropi.integrations.prime_rl import FollowedSelection, RankedSampler
from cropi.schema import Prompt, Selection
from cropi.verifiers.settings import VerifiersConfig
from support.trainer_logs import Sample, episode, samples

POOL = [Prompt(f"p{n}", str(n), "sums", prompt=f"What is {n} + 0?") for n in range(9)]


@dataclass
class Data:
    id: str | None


@dataclass
class Task:
    """What a sampler sees of verifiers' tasks."""

    key: str | None
    data: Data


@dataclass
class Agent:
    trainable: bool = True


@dataclass
class Trace:
    reward: float
    has_error: bool = False
    agent: Agent = field(default_factory=Agent)


@dataclass
class Episode:
    """What a sampler sees of verifiers' episodes, whose records are those of real ones."""

    sample: Sample

    @property
    def traces(self) -> list[Trace]:
        return [Trace(self.sample.reward)]

    def to_record(self, float_decimals: int | None = 4) -> dict[str, Any]:
        record = episode(self.sample)
        if float_decimals is None:
            record["traces"][0]["nodes"][1]["logprobs"] = self.sample.logprobs
        return record


def tasks(count: int = 9) -> list[Task]:
    return [Task(f"key-{n}", Data(f"p{n}")) for n in range(count)]


def export(out: Path, *ids: str) -> Path:
    selection = Selection(list(ids), np.linspace(1, 0, len(ids)))
    export_selection(
        selection, POOL, "prime-rl", out, verifiers=VerifiersConfig(default="exact", workers=1)
    )
    return out


def sampler(ranking: Path, count: int = 9) -> RankedSampler:
    return RankedSampler(tasks(count), ranking, ranking.parent / "store")


def drawn(source: RankedSampler, count: int) -> list[str]:
    return [task.data.id for task in itertools.islice(source, count)]


def test_tasks_come_in_the_order_of_the_selection_again_and_again(tmp_path: Path) -> None:
    source = sampler(export(tmp_path / "out", "p5", "p2", "p7"))
    assert drawn(source, 7) == ["p5", "p2", "p7", "p5", "p2", "p7", "p5"]
    assert source.metrics()["passes"] == pytest.approx(7 / 3)


def test_a_new_selection_is_followed_from_its_first_prompt(tmp_path: Path) -> None:
    source = sampler(export(tmp_path / "out", "p5", "p2", "p7"))
    assert drawn(source, 2) == ["p5", "p2"]
    export(tmp_path / "out", "p1", "p8")
    assert drawn(source, 3) == ["p1", "p8", "p1"]
    assert source.metrics()["new_selections"] == 1


def test_between_two_renames_the_selection_that_was_read_stays(tmp_path: Path) -> None:
    source = FollowedSelection(export(tmp_path / "out", "p5", "p2"))
    (tmp_path / "out").rename(tmp_path / "out.old")
    assert [row["prompt_id"] for row in itertools.islice(source, 3)] == ["p5", "p2", "p5"]


def test_a_sampler_that_is_restored_goes_on_where_it_was(tmp_path: Path) -> None:
    ranking = export(tmp_path / "out", "p5", "p2", "p7")
    first = sampler(ranking)
    drawn(first, 4)
    state = json.loads(json.dumps(first.state_dict()))
    again = sampler(ranking)
    again.load_state_dict(state)
    assert again.metrics() == first.metrics()
    assert drawn(again, 4) == drawn(first, 4)
    export(tmp_path / "out", "p0", "p1")
    another = sampler(ranking)
    another.load_state_dict(state)
    assert drawn(another, 2) == ["p0", "p1"]


def test_prompts_without_a_task_are_passed_over_and_counted(tmp_path: Path) -> None:
    source = sampler(export(tmp_path / "out", "p5", "p2", "p7"), count=6)
    assert drawn(source, 3) == ["p5", "p2", "p5"]
    assert source.metrics()["without_task"] == 1
    with pytest.raises(InputError, match="no task has one of the 2 selected ids"):
        sampler(export(tmp_path / "other", "p6", "p7"), count=6)


def test_a_task_is_known_by_its_key_where_it_has_no_id(tmp_path: Path) -> None:
    tasks = [Task(f"p{n}", Data(None)) for n in range(9)]
    source = RankedSampler(tasks, export(tmp_path / "out", "p5", "p2"), tmp_path / "store")
    assert [task.key for task in itertools.islice(source, 2)] == ["p5", "p2"]
    twice = [Task("a", Data("p5")), Task("b", Data("p5"))]
    with pytest.raises(InputError, match="two tasks are called 'p5'"):
        RankedSampler(twice, tmp_path / "out", tmp_path / "store")


def test_what_is_observed_is_a_log_that_can_be_ranked(tmp_path: Path) -> None:
    """All digits of log-probs are there, after a kill in the middle of a line too."""
    source = sampler(export(tmp_path / "out", "p5"))
    rows = samples()
    for _, group in itertools.groupby(rows, key=lambda row: (row.step, row.group)):
        source.observe([Episode(row) for row in group])
        path = next((tmp_path / "store").rglob("traces.jsonl"))
    with path.open("a") as file:
        file.write('{"torn": ')
    again = sampler(tmp_path / "out")
    again.load_state_dict(source.state_dict())
    again.observe([Episode(row) for row in rows if (row.step, row.group) == (1, 0)])
    log = read_rollout_log(tmp_path / "store")
    assert log.format == "prime-rl"
    assert len(log.responses) == len(rows)
    assert any("logged twice" in note for note in log.notes)
    logged = log.responses[0].tokens
    assert logged is not None
    assert logged.logprobs is not None
    np.testing.assert_array_equal(logged.logprobs, np.float32(rows[0].logprobs))
    assert {r.prompt_id for r in log.responses} == {f"key-{r.group}" for r in rows}
    assert again.metrics()["dead_groups"] == pytest.approx(5 / 9)


def test_a_folder_without_a_selection_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no selection\.jsonl"):
        sampler(tmp_path)
