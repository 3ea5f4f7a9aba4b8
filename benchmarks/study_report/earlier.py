"""Numbers that outlive the folders of their studies: what is not run again is not lost."""

from __future__ import annotations

from collections.abc import Mapping

from study_report.gathering import Values, ahead, rounded


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
            measured = values["strategies"]
            unmeasured = [each for each in earlier["strategies"] if each not in measured]
            measured |= {each: earlier["strategies"][each] for each in unmeasured}
            if unmeasured:
                who = " and ".join(unmeasured)
                values["notes"].append(
                    f"the rows of {who} are of earlier runs, compared with the baseline of those"
                )
            values["method_minus"] = rounded(ahead(measured)) | values["method_minus"]
