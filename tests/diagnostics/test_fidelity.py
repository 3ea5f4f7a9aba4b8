"""What fidelity figures must say of sketches whose quality is known, and what is recommended."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cropi.diagnostics import diagnose_fidelity
from cropi.diagnostics.diagnosis_settings import FidelitySettings
from cropi.diagnostics.fidelity import (
    Budget,
    FidelityReport,
    SketchFidelity,
    SketchSpec,
    pareto,
    rank_correlation,
    recommend,
    relative_error,
    sketch_agreement,
    top_overlap,
)
from cropi.diagnostics.fidelity_experiment import FidelityExperiment
from cropi.errors import InputError
from cropi.estimation.intervals import Interval
from cropi.gradients.extractor import GradientExtractor
from cropi.influence.scorer import Scorer
from cropi.schema import RolloutGroup
from cropi.sketches import make_sketch
from support.tiny_models import mixed_groups, tiny_model

IDS = [f"p{n:02}" for n in range(20)]


def made(
    name: str, dim: int, precision: float, seconds: float, half: float = 0.0
) -> SketchFidelity:
    interval = Interval(precision, precision - half, precision + half, 5)
    spec = SketchSpec(name, dim)
    none = Interval(0, None, None, 1)
    return SketchFidelity(spec, interval, {}, interval, none, none, seconds, 2 * dim)


def test_a_sketch_that_changes_nothing_agrees_wholly() -> None:
    rng = np.random.default_rng(0)
    cosines = {n: rng.normal(size=20).astype(np.float32) for n in ("v", "w")}
    result = sketch_agreement(cosines, cosines, IDS, 0.1)
    assert result.precision == {"v": 1.0, "w": 1.0}
    assert result.spearman == pytest.approx({"v": 1.0, "w": 1.0})
    assert result.error == {"v": 0.0, "w": 0.0}
    assert result.fused == 1.0


def test_precision_counts_the_shared_top() -> None:
    exact = np.arange(20.0)
    assert top_overlap(exact, -exact, IDS, 4) == 0
    swapped = exact.copy()
    swapped[[16, 15]] = swapped[[15, 16]]
    assert top_overlap(exact, swapped, IDS, 4) == 0.75


def test_equal_cosines_are_ranked_as_selection_ranks_them() -> None:
    flat = np.zeros(20)
    exact = np.linspace(1, 0, 20)
    assert top_overlap(exact, flat, IDS, 4) == 1, "by id"
    assert math.isnan(rank_correlation(exact, flat))


def test_rank_correlation_sees_order_alone() -> None:
    values = np.random.default_rng(1).normal(size=50)
    assert rank_correlation(values, np.exp(values)) == pytest.approx(1)
    assert rank_correlation(values, -values) == pytest.approx(-1)


def test_relative_error_is_of_the_whole_column() -> None:
    assert relative_error(np.array([3.0, 4.0]), np.array([3.0, 5.0])) == pytest.approx(0.2)


def test_the_front_holds_what_nothing_beats() -> None:
    sketches = [
        made("a", 100, 0.5, 1),
        made("b", 100, 0.7, 3),
        made("c", 200, 0.6, 4),
        made("d", 400, 0.9, 2),
    ]
    assert [s.spec.name for s in pareto(sketches, "seconds")] == ["a", "d"]
    assert [s.spec.name for s in pareto(sketches, "bytes")] == ["b", "d"]


def test_the_most_precise_sketch_in_the_budget_is_recommended() -> None:
    sketches = [made("a", 100, 0.8, 1), made("b", 400, 0.9, 2), made("c", 800, 0.99, 9)]

    def chosen(**budget: float) -> str | None:
        best = recommend(sketches, Budget(**budget))
        return best and best.spec.name

    assert chosen() == "c"
    assert chosen(seconds=5) == "b"
    assert chosen(bytes=300) == "a"
    assert chosen(precision=0.85) == "b", "the smallest that is precise enough"
    assert chosen(precision=0.95, seconds=5) is None


def test_a_smaller_sketch_within_the_interval_is_as_good() -> None:
    sketches = [made("small", 100, 0.97, 1, 0.01), made("large", 400, 0.98, 2, 0.02)]
    best = recommend(sketches, Budget())
    assert best is not None
    assert best.spec.name == "small"


def test_a_budget_that_nothing_fits_names_what_comes_close() -> None:
    sketches = [made("a", 100, 0.8, 1), made("b", 400, 0.9, 2)]
    for budget, words in (
        (Budget(seconds=0.1), "fastest is a"),
        (Budget(precision=0.99), "b, 400"),
    ):
        report = FidelityReport(100, {"v": 5}, 10, 0.1, 5, 0.5, sketches, budget)
        assert report.recommended is None
        assert report.verdict.startswith("Nothing fits the budget")
        assert words in report.verdict


def groups(count: int, seed: int = 0) -> list[RolloutGroup]:
    return mixed_groups(count, seed)


def test_scores_of_many_sketches_at_once_are_those_of_each_alone() -> None:
    model, pool = tiny_model("qwen2-tied"), groups(24)
    targets = {"v": groups(5, 1), "w": groups(4, 2)}
    settings = FidelitySettings(
        sketches=("sparse", "kronecker"), dims=(64, 256), ratios=(1.0, 0.2), seeds=1
    )
    experiment = FidelityExperiment(model, pool, targets, settings, lambda *_: None)
    exact = Scorer(GradientExtractor(model)).score(pool, targets).estimate
    jobs = [(spec, 0) for spec in experiment.specs]
    together = experiment._compare(jobs, exact)
    alone = [experiment._compare([job], exact)[0] for job in jobs]
    for a, b in zip(together, alone, strict=True):
        assert a.precision == b.precision
        assert a.error == pytest.approx(b.error, abs=1e-5)


def test_a_sketch_of_all_coordinates_is_nearly_exact_and_a_tiny_one_is_not() -> None:
    model, pool = tiny_model("qwen2-tied"), groups(40)
    report = diagnose_fidelity(
        pool,
        {"v": groups(6, 1)},
        model,
        settings=FidelitySettings(
            sketches=("windowed",), dims=(16, 1 << 17), seeds=2, timed_prompts=4, repetitions=1
        ),
    )
    coarse, fine = report.sketches
    assert fine.precision.mean == 1
    assert fine.error.mean < 0.1 < coarse.error.mean
    assert fine.spearman.mean > 0.98 > coarse.spearman.mean
    assert report.exact_seconds > 0
    assert fine.seconds > 0
    assert fine.bytes == 2 << 17
    assert report.recommended is fine
    assert any("40 informative prompts" in note for note in report.notes)


def test_adaptive_sketches_are_fitted_before_they_are_compared() -> None:
    report = diagnose_fidelity(
        groups(30),
        {"v": groups(5, 1)},
        tiny_model("qwen2-tied"),
        settings=FidelitySettings(
            sketches=("adaptive", "windowed"), dims=(64,), seeds=2, timed_prompts=2, repetitions=1
        ),
    )
    adaptive, windowed = report.sketches
    assert adaptive.error.mean < windowed.error.mean


def test_a_fit_is_the_same_whatever_shares_the_pass() -> None:
    model, pool = tiny_model("qwen2-tied"), groups(12)
    settings = FidelitySettings(sketches=("adaptive",), dims=(32, 64), seeds=1)
    experiment = FidelityExperiment(model, pool, {"v": groups(3, 1)}, settings, lambda *_: None)
    shapes = experiment.extractor.shapes
    pair = [make_sketch("adaptive", shapes, 3, dim=dim) for dim in (32, 64)]
    single = make_sketch("adaptive", shapes, 3, dim=64)
    experiment._fit(pair)
    experiment._fit([single])
    assert pair[1].identity == single.identity


def test_factorised_with_all_coordinates_is_not_measured_twice() -> None:
    specs = FidelitySettings(sketches=("sparse", "factorised", "windowed"), dims=(8,)).specs()
    assert SketchSpec("sparse", 8, 1.0) in specs
    assert SketchSpec("factorised", 8, 1.0) not in specs
    assert SketchSpec("windowed", 8) in specs


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"sketches": ("nonsense",)}, "nonsense"),
        ({"ratios": (1.5,)}, "1.5"),
        ({"dims": ()}, "dims"),
    ],
)
def test_a_sketch_that_cannot_be_made_is_refused_before_any_work(wrong: dict, words: str) -> None:
    def no_forward(*_: object, **__: object) -> None:
        raise AssertionError("work was done")

    model = tiny_model("qwen2-tied")
    model.forward = no_forward
    with pytest.raises(InputError, match=words):
        diagnose_fidelity(groups(5), {"v": groups(3)}, model, settings=FidelitySettings(**wrong))


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model("qwen2-tied").train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    settings = FidelitySettings(
        sketches=("sparse",), dims=(8,), ratios=(1.0,), seeds=1, timed_prompts=2
    )
    diagnose_fidelity(groups(5), {"v": groups(3)}, model, settings=settings)
    assert model.training
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_rollouts_that_this_policy_cannot_have_sampled_are_named_with_the_sketches() -> None:
    pool = groups(12)
    for response in (response for group in pool for response in group.responses):
        response.logprobs = response.logprobs - 5
    few = FidelitySettings(
        sketches=("windowed",), dims=(16,), seeds=1, timed_prompts=2, repetitions=1
    )
    report = diagnose_fidelity(pool, {"v": groups(6, 1)}, tiny_model("qwen2-tied"), settings=few)
    assert any(note.startswith("the pool: ") for note in report.notes), report.notes
