"""A little of `benchmarks/faults.py`: files damaged one by one, then used, as a user would."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from support.damage import GOOD, Reference, Scene, Use, attempt, possible, warm_up
from support.damage_scenes import OUTPUT_USES, half_run, outputs

USES = ("features again", "score features", "select", "train", "train on", "score next")
reference = Reference()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scene]:
    warm_up()
    root = tmp_path_factory.mktemp("scenes")
    return {s.name: s for s in (half_run(root, twins=False), outputs(root, twins=False))}


@pytest.mark.parametrize("number", range(2))
def test_a_half_finished_run_with_a_damaged_file_ends_as_it_would_or_says_so(
    scenes: dict[str, Scene], tmp_path: Path, number: int
) -> None:
    scene = scenes["half run"]
    file, damage = random.Random(number).choice(possible(scene, scene.uses[0]))
    done = attempt(scene, scene.uses[0], file, damage, tmp_path, reference)
    assert done is None or done.ending in GOOD, done


@pytest.mark.parametrize(
    "use", [use for use in OUTPUT_USES if use.name in USES], ids=lambda u: u.name
)
def test_a_damaged_output_is_used_rightly_or_refused_by_name(
    scenes: dict[str, Scene], tmp_path: Path, use: Use
) -> None:
    scene = scenes["outputs"]
    file, damage = random.Random(use.name).choice(possible(scene, use))
    done = attempt(scene, use, file, damage, tmp_path, reference)
    assert done is None or done.ending in GOOD, done
