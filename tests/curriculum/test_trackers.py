"""Services that show metrics get every row of an arm once, in order, as one run over all stages."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import accelerate.tracking
import pytest

from cropi.curriculum import trackers
from cropi.curriculum.loop import run
from cropi.errors import InputError
from cropi.store.metrics import EvaluationRow, TrainRow, read_rows
from support.tiny_runs import fake_config

Sent = tuple[str, int, dict[str, float]]


class Service(accelerate.tracking.GeneralTracker):
    """Keeps what accelerate's own trackers would send."""

    name = "wandb"
    requires_logging_directory = False
    opened: ClassVar[list[dict[str, Any]]] = []
    sent: ClassVar[list[Sent]] = []
    fails_at: ClassVar[int | None] = None

    def __init__(self, run_name: str, **options: Any) -> None:
        super().__init__()
        self.options = {"project": run_name, **options}

    def start(self) -> None:
        Service.opened.append(self.options)

    @property
    def tracker(self) -> Any:
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Nothing to store."""

    def log(self, values: dict[str, float], step: int | None = None, **more: Any) -> None:
        assert step is not None
        if step == Service.fails_at:
            raise ConnectionError("no route to host")
        Service.sent.append((self.options["name"], step, values))

    def finish(self) -> None:
        """Nothing to close."""


@pytest.fixture(autouse=True)
def service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "wandb", Service)
    monkeypatch.setitem(trackers.PACKAGES, "wandb", ("accelerate",))
    monkeypatch.setattr(Service, "opened", [])
    monkeypatch.setattr(Service, "sent", [])


def reported(folder: Path, *overrides: str) -> Path:
    return run(fake_config(folder, "baselines=[random]", "report_to=[wandb]", *overrides))


def values_by_step(arm: str, name: str) -> dict[int, float]:
    return {step: v[name] for sent_arm, step, v in Service.sent if sent_arm == arm and name in v}


def test_an_arm_is_one_run_with_every_row_of_all_stages_in_order(tmp_path: Path) -> None:
    finished = reported(tmp_path)
    assert [each["name"] for each in Service.opened] == ["cropi", "random"]
    assert {each["project"] for each in Service.opened} == {"tiny"}
    rows = read_rows(finished / "metrics.jsonl")
    for arm in ("cropi", "random"):
        steps = [step for sent_arm, step, _ in Service.sent if sent_arm == arm]
        assert steps == sorted(steps)
        trained = {r.step: r.values["reward"] for r in rows.of_kind(TrainRow) if r.arm == arm}
        assert values_by_step(arm, "train/reward") == trained
        evaluated = {r.step: r.pass_at[1] for r in rows.of_kind(EvaluationRow) if r.arm == arm}
        assert values_by_step(arm, "eval/sort/pass_at_1") == evaluated
        assert list(values_by_step(arm, "cropi/selected")) == [0, 3]
    assert values_by_step("cropi", "cropi/influence_selected/sort").keys() == {0}


def test_a_run_that_goes_on_sends_nothing_twice(tmp_path: Path) -> None:
    finished = reported(tmp_path)
    everything = list(Service.sent)
    reported(tmp_path)
    assert Service.sent == everything
    sent = json.loads((finished / "tracking.json").read_text())
    (finished / "tracking.json").write_text(json.dumps({**sent, "cropi/wandb/train": 4}))
    reported(tmp_path)
    again = Service.sent[len(everything) :]
    assert [(arm, step) for arm, step, _ in again] == [("cropi", 5), ("cropi", 6)]
    assert Service.opened[0] == Service.opened[-1], "the same run of the service goes on"


def test_a_finished_run_can_be_sent_later(tmp_path: Path) -> None:
    run(fake_config(tmp_path, "baselines=[random]"))
    assert Service.sent == []
    assert not list(tmp_path.rglob("tracking.json"))
    reported(tmp_path)
    assert Counter(arm for arm, _, _ in Service.sent)["cropi"] >= 6
    assert set(values_by_step("random", "train/reward")) == set(range(1, 7))


def test_a_service_that_fails_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Service, "fails_at", 2)
    finished = reported(tmp_path)
    assert max(row.step for row in read_rows(finished / "metrics.jsonl").of_kind(TrainRow)) == 6
    assert max(step for _, step, _ in Service.sent) == 1
    monkeypatch.setattr(Service, "fails_at", None)
    reported(tmp_path)
    assert set(values_by_step("cropi", "train/reward")) == set(range(1, 7)), "nothing is lost"


def test_names_of_sets_become_names_that_services_take() -> None:
    row = EvaluationRow(step=3, set="AIME 24 (é)", pass_at={1: 0.5, 8: float("nan")})
    assert trackers.values_of(row) == (
        "evaluation/AIME 24 (é)",
        3,
        {"eval/AIME 24 ___/pass_at_1": 0.5},
    )


def test_a_service_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trackers.PACKAGES, "wandb", ("no_such_package",))
    with pytest.raises(InputError, match="report_to: wandb needs the package no_such_package"):
        trackers.require_trackers(["wandb"])


def test_tensorboard_holds_the_curves(tmp_path: Path) -> None:
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    finished = run(fake_config(tmp_path, "report_to=[tensorboard]"))
    stored = events.EventAccumulator(str(finished / "tensorboard" / "cropi"))
    stored.Reload()
    assert [event.step for event in stored.Scalars("train/reward")] == list(range(1, 7))
    assert [event.step for event in stored.Scalars("cropi/selected")] == [0, 3]
