"""A run where people look: its metrics in TensorBoard, Weights & Biases, MLflow or trackio.

Each arm is one run there, over all its stages, with TRL's names for what TRL logs and ours beside
them. Rows are sent while a stage trains. `tracking.json` in the run's directory remembers how far
that got, so that a run which continues after a kill sends nothing twice, and one that is finished
can still be sent. A service that fails is left alone from then on: training does not depend on it.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cropi.errors import InputError
from cropi.progress import ProgressReporter
from cropi.schema import InfluenceEstimate, Selection, fingerprint
from cropi.store.cached import read_record
from cropi.store.files import write_json
from cropi.store.metrics import AnyRow, EvaluationRow, TrainRow
from cropi.text import shortened

PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
}
"""The packages of each service, of which one has to be installed."""
TRL_NAMES = {
    "completion_length": "completions/mean_length",
    "zero_std_share": "frac_reward_zero_std",
}
"""TRL's names for what we call otherwise."""
SENT_FILE = "tracking.json"
_OTHER = re.compile(r"[^\w .:/-]", re.ASCII)
"""Characters that MLflow does not allow in a name."""


def require_trackers(names: Iterable[str]) -> None:
    """Raise InputError for a service whose package is not installed."""
    for name in names:
        if not any(importlib.util.find_spec(package) for package in PACKAGES[name]):
            raise InputError(
                f"report_to: {name} needs the package {PACKAGES[name][0]}, which is not installed; "
                f"install it (pip install {PACKAGES[name][0]}), or leave it out"
            )


def values_of(row: AnyRow) -> tuple[str, int, dict[str, float]] | None:
    """What is sent of a row: its kind, its step, and values by name; None for other rows."""
    if isinstance(row, TrainRow):
        values = {f"train/{TRL_NAMES.get(k, k)}": v for k, v in row.values.items()}
        return row.kind, row.step, _numbers(values)
    if isinstance(row, EvaluationRow):
        # A kind for each set: they come one after the other, with equal steps.
        values = {f"eval/{row.set}/pass_at_{k}": v for k, v in row.pass_at.items()}
        return f"{row.kind}/{row.set}", row.step, _numbers(values)
    return None


def selection_values(selection: Selection, estimate: InfluenceEstimate | None) -> dict[str, float]:
    """A selection in numbers: how many prompts, and their mean influence beside the pool's."""
    values = {"cropi/selected": float(len(selection.prompt_ids))}
    values["cropi/negative"] = float(selection.negative)
    if estimate is None:
        return values
    ids = set(selection.prompt_ids)
    chosen_P = np.array([name in ids for name in estimate.prompt_ids]) & estimate.is_scored
    values["cropi/scored"] = float(estimate.is_scored.sum())
    for name, mean_P in estimate.mean.items():
        values[f"cropi/influence/{name}"] = _mean(mean_P[estimate.is_scored])
        values[f"cropi/influence_selected/{name}"] = _mean(mean_P[chosen_P])
    return _numbers(values)


def _log(service: Any, values: dict[str, float], step: int) -> bool:
    service.log(values, step=step)
    return True


def _mean(values: Any) -> float:
    return float(values.mean()) if len(values) else math.nan


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The values that a curve can show, under names that every service takes."""
    return {
        _OTHER.sub("_", name): float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


@dataclass
class Trackers:
    """Sends an arm's rows to the services of `names`; without any, nothing happens.

    `root` is the run's directory, `project` its name. Services are opened by the first row.
    """

    names: tuple[str, ...] = ()
    root: Path = Path()
    project: str = ""
    reporter: ProgressReporter = field(default_factory=ProgressReporter)
    arm: str = field(default="", init=False)
    _open: dict[str, Any] | None = field(default=None, init=False)

    @contextmanager
    def for_arm(self, arm: str) -> Iterator[None]:
        """Send rows of one arm meanwhile; its runs are closed afterwards."""
        self.arm = arm
        try:
            yield
        finally:
            for name, service in (self._open or {}).items():
                self._guarded(name, service.finish)
            self._open = None

    def send(self, rows: Iterable[AnyRow]) -> None:
        """Send rows that have not been sent yet."""
        for row in rows if self.names else ():
            if (sent := values_of(row)) is not None:
                self.send_values(*sent)

    def send_values(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Send values of a kind at a step to the services that have not got as far yet."""
        behind = [name for name in self.names if self._sent.get(self._key(name, kind), -1) < step]
        if not behind or not values:
            return
        for name, service in list(self._services().items()):
            if name in behind and self._guarded(name, _log, service, dict(values), step):
                self._sent[self._key(name, kind)] = step
        write_json(self.root / SENT_FILE, self._sent)

    def _key(self, name: str, kind: str) -> str:
        return f"{self.arm}/{name}/{kind}"

    @cached_property
    def _sent(self) -> dict[str, Any]:
        """The last step sent, by arm, service and kind, and the ids that services gave to runs."""
        return dict(read_record(self.root / SENT_FILE))

    def _services(self) -> dict[str, Any]:
        if self._open is None:
            self._open = {}
            for name in self.names:
                service = self._guarded(name, self._start, name)
                if service is not None:
                    self._open[name] = service
        return self._open

    def _start(self, name: str) -> Any:
        """Open the arm's run at a service, or continue it."""
        from accelerate.state import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()
        kind, options = LOGGER_TYPE_TO_CLASS[name], self._options(name)
        service = kind(self.arm if name == "tensorboard" else self.project, **options)
        if hasattr(service, "start"):  # accelerate before 1.8 starts in the constructor
            service.start()
        if name == "mlflow":
            self._sent[self._key(name, "run")] = service.tracker.info.run_id
        return service

    def _options(self, name: str) -> dict[str, Any]:
        if name == "tensorboard":
            return {"logging_dir": str(self.root / "tensorboard")}
        if name == "mlflow":
            run = self._sent.get(self._key(name, "run"))
            return {"run_id": run, "run_name": self.arm}
        if name == "trackio":
            return {"name": self.arm, "resume": "allow"}
        run_id = fingerprint(str(self.root.absolute()), self.arm)
        return {"name": self.arm, "id": run_id, "resume": "allow", "dir": str(self.root)}

    def _guarded(self, name: str, work: Any, *arguments: Any, **named: Any) -> Any:
        """Call a service; one that fails is reported once, and left out from then on."""
        try:
            return work(*arguments, **named)
        except Exception as error:  # noqa: BLE001  whatever a service raises: training continues
            reason = shortened(" ".join(f"{type(error).__name__}: {error}".split()), 300)
            self.reporter.warn(
                f"report_to: {name} failed ({reason}); no more of this arm is sent to it"
            )
            failed = (self._open or {}).pop(name, None)
            if failed is not None:
                with suppress(Exception):  # its run would stay open in this process
                    failed.finish()
            return None
