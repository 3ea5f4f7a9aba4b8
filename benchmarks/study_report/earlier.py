"""Numbers that outlive the folders of their studies: what is not run again is not lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cropi.estimation.intervals import mean_interval
from cropi.study.output import interval_values
from study_report.gathering import METHOD, rounded

Values = dict[str, Any]
MEASURES = {"area": "area", "final": "final_targeted"}
"""Of what our method is ahead, and what a seed's row calls it."""


def keep_unmeasured(numbers: Values, before: Mapping[str, Values]) -> None:
    """Let regimes, and strategies of a regime, without a finished run have the numbers from before.

    A strategy is kept where the regime's settings are still the same. It stays compared with the
    baseline of its own runs; how far our method is ahead of it is computed from both's seeds.
    """
    for name, values in numbers["regimes"].items():
        earlier = before.get(name)
        if earlier and not values["strategies"]:
            numbers["regimes"][name] = earlier
        elif earlier and earlier.get("config_hash") == values["config_hash"]:
            gone = earlier["strategies"].keys() - values["strategies"].keys()
            for strategy in sorted(gone):
                _keep(values, strategy, earlier["strategies"][strategy])


def _keep(values: Values, strategy: str, numbers: Values) -> None:
    values["strategies"][strategy] = numbers
    method = values["strategies"].get(METHOD, {"per_seed": []})
    rows = {row["seed"]: row for row in method["per_seed"]}
    pairs = [(rows[row["seed"]], row) for row in numbers["per_seed"] if row["seed"] in rows]
    if strategy != METHOD and pairs:
        ahead = {
            measure: interval_values(mean_interval([a[column] - b[column] for a, b in pairs]))
            for measure, column in MEASURES.items()
        }
        values["method_minus"][strategy] = rounded(ahead)
