"""Scores made in shards are those of one process, wherever and however often shards are measured.

The policy is the embedded model: workers load it themselves.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from cropi.errors import InputError
from cropi.execution import Executor, Inline
from cropi.influence.cosines import Influence
from cropi.influence.settings import InfluenceConfig
from cropi.influence.setup import score
from cropi.influence.sharded import shard_files
from cropi.influence.sharded.shard_files import content_of, cut, is_made, read_arrays, write_arrays
from cropi.policy.loading import load_policy
from cropi.policy.reference import PolicyRef
from cropi.sketches.settings import SketchChoice
from support.pocket_groups import pocket_groups
from support.tiny_models import changed, mixed_groups

SETTINGS = {
    "exact": InfluenceConfig(),
    "unit-whitened": InfluenceConfig(target="unit_mean", metric="whitened"),
    "bf16": InfluenceConfig(target_memory="bf16"),
    "sparse": InfluenceConfig(sketch=SketchChoice.of("sparse", ratio=0.5, dim=256)),
    "fitted": InfluenceConfig(sketch=SketchChoice.of("adaptive", dim=64)),
}


POOL = [replace(group, policy=PolicyRef("pocket").identity) for group in pocket_groups(36, 1)]
"""Said to be what the policy itself sampled, which is told, as their log-probs are random."""
TARGETS = {"sums": pocket_groups(9, 2), "words": pocket_groups(4, 3)}


class Stopping(Inline):
    """Stops like a killed driver once so many units have run; notes the names of all that ran."""

    def __init__(self, after: int = 10**6) -> None:
        super().__init__()
        self.left, self.ran = after, list[str]()

    def completed(self) -> Iterator[Any]:
        for finished in super().completed():
            self.ran.append(finished.unit.name)
            yield finished
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt


def scored(
    settings: InfluenceConfig,
    folder: Path | None = None,
    executor: Executor | None = None,
    per_response: bool = False,
) -> Influence:
    return score(
        "pocket",
        POOL,
        TARGETS,
        settings,
        per_response=per_response,
        executor=executor,
        folder=folder,
    )


class Measured(NamedTuple):
    """Scores made in shards, where these are, and the units in order."""

    influence: Influence
    folder: Path
    ran: list[str]


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder, executor = tmp_path_factory.mktemp("exact"), Stopping()
    return Measured(scored(SETTINGS["exact"], folder, executor), folder, executor.ran)


def assert_close(one: Influence, other: Influence, tolerance: float = 1e-6) -> None:
    assert one.estimate.prompt_ids == other.estimate.prompt_ids
    assert one.estimate.status == other.estimate.status
    assert one.estimate.identity == other.estimate.identity
    assert (one.tokens, one.notes) == (other.tokens, other.notes)
    assert any("by policy_revision this policy sampled" in note for note in one.notes)
    for name in TARGETS:
        np.testing.assert_allclose(
            one.estimate.mean[name], other.estimate.mean[name], rtol=0, atol=tolerance
        )
        assert one.reliability[name].split_half == pytest.approx(
            other.reliability[name].split_half, abs=1e-5
        )
    np.testing.assert_allclose(one.estimate.norms, other.estimate.norms, rtol=1e-4)


@pytest.mark.parametrize("name", SETTINGS)
def test_shards_give_the_scores_of_one_process(name: str, exact: Measured, tmp_path: Path) -> None:
    # A bf16 direction is rounded from sums that differ in their last bits. Of random tokens some
    # gradients nearly cancel, which makes more of rounding in a sketch than in all coordinates.
    tolerance = {"bf16": 1e-4, "sparse": 1e-5, "fitted": 1e-5}.get(name, 1e-6)
    settings = SETTINGS[name]
    joined = exact.influence if name == "exact" else scored(settings, tmp_path, Inline())
    assert_close(joined, scored(settings), tolerance)


def test_shards_give_the_same_parts_of_responses(tmp_path: Path) -> None:
    whole = scored(InfluenceConfig(), per_response=True)
    joined = scored(InfluenceConfig(), tmp_path, Inline(), per_response=True)
    assert_close(joined, whole)
    assert joined.estimate.responses is not None
    assert whole.estimate.responses is not None
    for name in TARGETS:
        pairs = zip(joined.estimate.responses[name], whole.estimate.responses[name], strict=True)
        for one, other in pairs:
            np.testing.assert_allclose(one, other, atol=5e-6)


def test_a_call_that_was_killed_goes_on_and_ends_with_the_same_bits(
    exact: Measured, tmp_path: Path
) -> None:
    ran: list[str] = []
    for after in (2, 7, len(exact.ran) // 2):
        with pytest.raises(KeyboardInterrupt):
            scored(InfluenceConfig(), tmp_path, killed := Stopping(after))
        ran += killed.ran
    again = scored(InfluenceConfig(), tmp_path, rest := Stopping())
    for name, expected in exact.influence.estimate.mean.items():
        np.testing.assert_array_equal(again.estimate.mean[name], expected)
    assert again.tokens == exact.influence.tokens
    assert [*ran, *rest.ran] == exact.ran


def test_a_damaged_shard_is_measured_again(exact: Measured, tmp_path: Path) -> None:
    shutil.copytree(exact.folder, tmp_path, dirs_exist_ok=True)
    for file in tmp_path.glob("*.npz"):
        arrays = np.load(file)
        if "dots" not in arrays.files:
            continue  # of a target
        content = bytearray(file.read_bytes())
        content[-len(content) // 3] ^= 1
        file.write_bytes(content)
    again = scored(InfluenceConfig(), tmp_path, Inline())
    expected = exact.influence.estimate.mean["sums"]
    np.testing.assert_array_equal(again.estimate.mean["sums"], expected)


def test_weights_in_memory_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this one is in memory"):
        score(load_policy("pocket"), POOL, TARGETS, executor=Inline(), folder=tmp_path)
    with pytest.raises(InputError, match="give a folder"):
        scored(InfluenceConfig(), executor=Inline())


@pytest.mark.parametrize("count", [1, 2, 31, 200])
def test_shards_hold_every_prompt_once_and_about_as_many_tokens(count: int) -> None:
    groups = mixed_groups(count, seed=count)
    runs = cut(groups)
    assert [index for run in runs for index in run] == list(range(count))
    tokens = [sum(len(groups[n].prompt_ids) + groups[n].tokens for n in run) for run in runs]
    largest = max(len(group.prompt_ids) + group.tokens for group in groups)
    assert max(tokens) <= sum(tokens) / len(runs) + largest


@pytest.mark.parametrize(("tokens", "shards"), [(64, 1), (512, 4), (4096, 32), (8192, 32)])
def test_a_shard_is_worth_handing_out(
    tokens: int, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_files, "LEAST_TOKENS", 128)
    (group,) = mixed_groups(1)
    each = len(group.prompt_ids) + group.tokens
    assert len(cut([group] * -(-tokens // each))) == shards


def test_a_shard_is_known_by_all_that_gradients_depend_on() -> None:
    group = POOL[0]
    other_reward = changed(group, lambda r: replace(r, reward=r.reward + 1))
    other_logprobs = changed(group, lambda r: replace(r, logprobs=r.logprobs - 1))
    masked = changed(group, lambda r: replace(r, loss_mask=np.zeros(len(r.ids), np.uint8)))
    versions = [group, other_reward, other_logprobs, masked, POOL[2]]
    assert len({content_of([each]) for each in versions}) == len(versions)
    assert content_of([group]) == content_of([changed(group, lambda r: r)])


def test_arrays_are_read_only_if_they_are_whole_and_made_from_the_same(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    write_arrays(file, {"x": np.arange(1000)}, "made from this")
    arrays = read_arrays(file, "made from this")
    assert arrays is not None
    np.testing.assert_array_equal(arrays["x"], np.arange(1000))
    assert read_arrays(file, "made from that") is None
    assert not is_made(file, "made from that")
    content = bytearray(file.read_bytes())
    content[2000] ^= 1
    file.write_bytes(content)
    assert read_arrays(file, "made from this") is None
    assert list(tmp_path.iterdir()) == [file]
