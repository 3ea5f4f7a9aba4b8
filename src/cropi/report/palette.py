"""Which colour stands for what, by the names the style sheet defines for light and dark mode.

Arms use Okabe and Ito's colours, sources Tol's muted set and its neighbours: both were made for
colour-blind readers. Where more sources meet than colours can tell apart, bars carry their names.
"""

from __future__ import annotations

SOURCE_COLOURS = 12


def arm_colour(index: int) -> str:
    """Return the colour of the run's arm number `index`, the same in every chart."""
    return f"var(--arm{min(index, 5)})"


def source_colour(index: int) -> str:
    """Return the colour of the source, set or phase number `index`."""
    return f"var(--s{index % SOURCE_COLOURS})"


def stage_colour(index: int, stages: int) -> str:
    """Return the colour of stage number `index` of `stages`, from the first's to the last's."""
    return f"ramp({index / max(1, stages - 1):.3f})"
