"""The numbers in benchmarks/results, as the page, the figures and the bar ask for them.

Nothing here looks at a study's directory: what is committed is enough to draw everything again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cropi.estimation.intervals import Interval
from cropi.study.measures import MAIN_LEVEL, Acceleration, Axis

DEFAULT = "default"
"""The studies of the default strategy in every suite: a file of their own, and a table."""
BASELINES = "baselines"
"""The default beside baselines that need no gradient: a file of their own, and a table."""
APART = "smollm2"
"""The studies on a language model: a file of their own beside the regimes'."""
LANGUAGE_MODELS = (APART, f"{APART}_second")
"""Their names."""


class Regime:
    """One regime: its finished strategies by name, and what is missing of it, in words.

    `method` is the strategy that the bar is about.
    """

    def __init__(self, name: str, method: str, values: Mapping[str, Any]) -> None:
        self.name = name
        self.method = method
        self.values = values
        self.strategies: dict[str, Mapping[str, Any]] = values["strategies"]
        self.baseline: str = values["baseline"]
        self.missing: list[str] = values["missing"]
        self.notes: list[str] = values["notes"]

    @property
    def order(self) -> list[str]:
        """The strategies: the baseline, our method, then the others as they were planned."""
        first = (self.baseline, self.method)
        return sorted(self.strategies, key=lambda n: first.index(n) if n in first else len(first))

    def estimate(self, strategy: str, measure: str) -> Interval | None:
        """A strategy's final, area, untargeted or (untargeted) change; None if unmeasured."""
        return _interval(self.strategies.get(strategy, {}).get(measure))

    def gap(self, strategy: str, measure: str) -> Interval | None:
        """A strategy's final, area or untargeted, minus the baseline's."""
        return _interval(self._compared(strategy).get(measure))

    def ahead(self, other: str, measure: str) -> Interval | None:
        """Our method's area or final accuracy minus another strategy's."""
        return _interval(self.values.get("method_minus", {}).get(other, {}).get(measure))

    def acceleration(
        self, strategy: str, axis: Axis = "steps", share: float = MAIN_LEVEL
    ) -> Acceleration | None:
        """A strategy's acceleration; of the baseline, its own steps to the level."""
        levels = self._compared(strategy).get("accelerations", {}).get(axis, {})
        if strategy == self.baseline and axis == "steps":
            levels = self.values.get("levels", {})
        values = levels.get(f"{share:.2f}")
        return Acceleration(**values) if values else None

    def coarse_acceleration(self, strategy: str, axis: Axis = "steps") -> Acceleration | None:
        """A strategy's acceleration at the main level, read off every second evaluation alone."""
        values = self._compared(strategy).get("read_coarsely", {}).get(axis)
        return Acceleration(**values) if values else None

    def break_even(self, strategy: str, share: float = MAIN_LEVEL) -> Mapping[str, Any]:
        """What a strategy's compute comes to at other prices of selection; empty if unknown."""
        return dict(self._compared(strategy).get("break_even", {}).get(f"{share:.2f}", {}))

    def shared_seeds(self, strategy: str) -> list[int]:
        """The finished seeds of a strategy that the baseline has finished too."""
        return list(self._compared(strategy).get("seeds", ()))

    def seeds(self, strategy: str) -> list[int]:
        """A strategy's finished seeds: those that the baseline has finished too, if any."""
        return self.shared_seeds(strategy) or list(self.strategies[strategy]["seeds"])

    def seed_values(self, strategy: str, measure: str, seeds: Sequence[int]) -> list[float]:
        """What was measured of these of a strategy's seeds; seeds without it are left out."""
        rows = self.strategies.get(strategy, {}).get("per_seed", ())
        values = (row.get(measure) for row in rows if row["seed"] in seeds)
        return [value for value in values if value is not None]

    def oracle_share(self, strategy: str) -> Interval | None:
        """A strategy's share of the oracle's advantage in area."""
        return _interval(self._compared(strategy).get("oracle_share"))

    def phases(self, strategy: str) -> Mapping[str, Mapping[str, float]]:
        """What a strategy's runs cost by phase and measure; means over seeds."""
        return dict(self.strategies[strategy]["costs_by_phase"])

    def _compared(self, strategy: str) -> Mapping[str, Any]:
        return self.strategies.get(strategy, {}).get("compared") or {}


def _interval(values: Mapping[str, Any] | None) -> Interval | None:
    """A stored mean and its interval; how many seeds are behind it is stored elsewhere (0 here).

    None also for a ratio without a meaning, such as a share of no advantage.
    """
    if not values or values["value"] is None:
        return None
    return Interval(values["value"], values["low"], values["high"], 0)


class Results:
    """All regimes by name, and the rules they were measured by."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.method: str = values["method"]
        self.regimes = {n: Regime(n, self.method, v) for n, v in values["regimes"].items()}
