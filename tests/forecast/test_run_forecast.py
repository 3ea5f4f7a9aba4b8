"""A forecast agrees with the costs that the run itself counts, and grows as work does."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from cropi.config import RunConfig
from cropi.curriculum.loop import run
from cropi.forecast import Forecast, forecast
from cropi.forecast.advice import largest_divisor
from cropi.forecast.hardware import GPUS
from cropi.forecast.model_shape import ModelShape, read_shape
from cropi.forecast.observation import (
    LinearCost,
    PhaseObservation,
    behaviour_of,
    linear_costs,
    observe,
)
from cropi.forecast.placement import IMPORT_S, SERVER_START_S
from cropi.forecast.prompt_counts import PromptCounts, SetCount, count_prompts
from cropi.forecast.workload import guessed_behaviour, summed_by_phase, workload
from cropi.store.metrics import METRICS, CostRow, read_rows
from cropi.study.costs import SHARED
from support.tiny_runs import tiny_config

H100 = GPUS["h100"]
BILLIONS = ModelShape(
    name="7B",
    parameters=7_600_000_000,
    trained=7_600_000_000,
    compared=7_600_000_000,
    layers=28,
    hidden=3584,
    intermediate=18944,
    vocabulary=152_064,
    cached=28_672,
    context=32_768,
    bytes=2,
    training_bytes=4,
)
COUNTS = PromptCounts(
    SetCount(10_000, 120.0, 400),
    {"math": SetCount(100, 120.0, 400), "code": SetCount(100, 200.0, 400)},
    {"math": SetCount(500, 120.0, 400)},
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path]:
    """A real run: one arm samples the pool, one needs all of it rolled out, one nothing."""
    folder = tmp_path_factory.mktemp("forecast")
    config = tiny_config(folder, "baselines=[full, learnalign]")
    return config, run(config)


def test_flops_are_those_that_the_run_counts(finished: tuple[RunConfig, Path]) -> None:
    config, root = finished
    shape, tokenizer = read_shape(config)
    counts = count_prompts(config, tokenizer)
    behaviour = behaviour_of(root, "run", guessed_behaviour(config, counts))
    spent: dict[tuple[str, str], float] = defaultdict(float)
    for row in read_rows(root / METRICS).of_kind(CostRow):
        spent[row.arm or SHARED, row.phase] += row.flops
    works = summed_by_phase(workload(config, counts, behaviour))
    seen = {(w.arm, w.phase): w.flops(shape.parameters) for w in works if w.tokens}
    assert seen.keys() == spent.keys()
    for key, flops in seen.items():
        # What training samples, and how the policy changes, is not known before.
        close = 0.02 if key[0] == SHARED or key[1] == "rollouts" else 0.05
        close = 0.25 if key[1] in ("training", "evaluation") else close
        assert flops == pytest.approx(spent[key], rel=close), key


def test_every_second_of_a_run_belongs_to_a_phase(finished: tuple[RunConfig, Path]) -> None:
    _, root = finished
    seen = observe(root)
    assert {"prompts", "rollouts", "scoring", "training", "training start"} <= seen.keys()
    assert all(phase.seconds >= 0 for phase in seen.values())
    assert all(phase.begins > 0 for phase in seen.values())
    assert seen["training"].flops > 0


def planned(
    *overrides: str, counts: PromptCounts = COUNTS, gpus: int | None = None, folder: Path
) -> Forecast:
    config = tiny_config(folder, "rollouts.max_new_tokens=1024", *overrides)
    behaviour = guessed_behaviour(config, counts)
    return forecast(config, BILLIONS, counts, behaviour, H100, gpus)


def seconds(result: Forecast, phase: str) -> float:
    return sum(each.seconds for each in result.phases if each.phase == phase)


def test_ten_times_the_pool_costs_ten_times_its_selection(tmp_path: Path) -> None:
    larger = replace(COUNTS, pool=replace(COUNTS.pool, prompts=100_000))
    few, many = (
        planned("selection.strategy=ranking", counts=each, folder=tmp_path)
        for each in (COUNTS, larger)
    )
    assert seconds(many, "rollouts") == pytest.approx(10 * seconds(few, "rollouts"), rel=0.15)
    assert seconds(many, "training") == seconds(few, "training")


@pytest.mark.parametrize(
    ("stages", "steps", "every"), [(4, 6, 4), (3, 5, 100), (2, 8, 1), (1, 7, 7)]
)
def test_evaluations_are_those_of_the_steps_that_are_due_and_of_each_stages_last(
    tmp_path: Path, stages: int, steps: int, every: int
) -> None:
    course = f"curriculum={{stages: {stages}, steps_per_stage: {steps}}}"
    result = planned(course, f"evaluation.every={every}", folder=tmp_path)
    evaluated = [p.prompts for p in result.phases if (p.arm, p.phase) == ("cropi", "evaluation")]
    due = [n for n in range(1, stages * steps + 1) if n % every == 0 or n % steps == 0]
    assert evaluated == [500 * len(due)]


def test_a_sample_of_the_pool_costs_the_same_whatever_its_size(tmp_path: Path) -> None:
    larger = replace(COUNTS, pool=replace(COUNTS.pool, prompts=100_000))
    few, many = (planned(counts=each, folder=tmp_path) for each in (COUNTS, larger))
    assert seconds(many, "rollouts") == seconds(few, "rollouts")
    assert any("enough of the pool" in line for line in few.assumptions)
    most = planned("selection.strategy={name: cropi, most: 300}", folder=tmp_path)
    assert sum(p.prompts for p in most.phases if (p.arm, p.phase) == ("cropi", "rollouts")) == 300


def test_more_devices_are_faster_and_never_cheaper(tmp_path: Path) -> None:
    long = ("curriculum.steps_per_stage=100", "evaluation.every=100")
    results = [planned(*long, gpus=n, folder=tmp_path) for n in (1, 8, 64)]
    assert [r.seconds for r in results] == sorted((r.seconds for r in results), reverse=True)
    assert [r.device_hours for r in results] == sorted(r.device_hours for r in results)


def test_a_run_scores_on_one_device_unless_workers_do(tmp_path: Path) -> None:
    launch, ray = "training.engine.launch.processes=8", "scale.ray={workers: 8, gpus: 1}"
    long = ("curriculum.steps_per_stage=100", "evaluation.every=100")
    one, launched, both = (
        planned(*long, *settings, folder=tmp_path) for settings in ((), (launch,), (launch, ray))
    )
    for phase in ("scoring", "rollouts", "evaluation"):
        assert seconds(launched, phase) == seconds(one, phase)
    assert [each.gpus for each in (one, launched, both)] == [1, 8, 8]
    assert seconds(launched, "training") < seconds(one, "training")
    assert seconds(both, "scoring") < seconds(one, "scoring")
    assert seconds(both, "evaluation") == seconds(one, "evaluation")
    assert [any("scale.ray" in line for line in each.advice) for each in (one, launched, both)] == [
        False,
        True,
        False,
    ]


def test_devices_that_are_asked_for_are_those_of_the_settings_that_are_named(
    tmp_path: Path,
) -> None:
    for engine in ("transformers", "{name: vllm, tensor_parallel: 2}"):
        asked = planned(f"rollouts.engine={engine}", gpus=8, folder=tmp_path)
        (line,) = [line for line in asked.advice if "8 devices" in line]
        settings = re.findall(r"[\w.]+=(?:\{.*?\}|\S+)", line)
        same = planned(f"rollouts.engine={engine}", *settings, folder=tmp_path)
        assert [each.seconds for each in same.phases] == [each.seconds for each in asked.phases]
        assert not any("8 devices" in line for line in same.advice)


def test_programs_that_train_or_serve_begin_again_for_every_evaluation(tmp_path: Path) -> None:
    steps = ("curriculum.steps_per_stage=8", "rollouts.engine=vllm")
    launch = "training.engine.launch.processes=2"
    rare, often = (
        planned(*steps, launch, f"evaluation.every={every}", folder=tmp_path) for every in (8, 1)
    )
    plain = planned(*steps, "evaluation.every=1", folder=tmp_path)
    stages = 2
    more = seconds(often, "evaluation") - seconds(rare, "evaluation")
    assert more >= 7 * stages * SERVER_START_S
    assert seconds(often, "training") >= seconds(rare, "training") + 7 * stages * IMPORT_S
    assert seconds(often, "start-up") == seconds(plain, "start-up") == IMPORT_S


@pytest.mark.parametrize("number", [1, 2, 12, 36, 97, 360])
@pytest.mark.parametrize("most", [0, 1, 5, 36, 1000])
def test_the_largest_divisor_up_to_a_bound_is_that_of_a_search(number: int, most: int) -> None:
    searched = [n for n in range(1, most + 1) if number % n == 0]
    assert largest_divisor(number, most) == max(searched, default=1)


def test_the_largest_divisor_of_a_huge_number_is_not_searched_for_one_by_one() -> None:
    assert largest_divisor(10**12, 10**11 + 1) == 10**11


def test_directions_lead_at_7b_and_the_advice_frees_their_memory(tmp_path: Path) -> None:
    two = "prompts.validation.other=[{pocket: [shift], split: validation, size: 4}]"
    narrow = "influence.gradient_checkpointing=true"
    result = planned(two, narrow, "selection.strategy=ranking", folder=tmp_path)
    scoring = next(part for part in result.memory if part.phase == "scoring")
    assert scoring.parts["directions"] == max(scoring.parts.values()) > H100.memory
    assert any("influence.target_memory" in line for line in result.advice)
    freed = planned(two, narrow, "influence.target_memory=offload", folder=tmp_path)
    assert not any(line.startswith("scoring") for line in freed.advice)


def test_selection_that_no_saving_can_pay_for_is_told(tmp_path: Path) -> None:
    result = planned("selection.strategy=ranking", folder=tmp_path)
    (arm,) = result.arms
    assert arm.break_even > arm.steps
    assert arm.acceleration is None
    assert any("no saving can pay" in line for line in result.advice)
    longer = planned("curriculum.steps_per_stage=5000", folder=tmp_path)  # the default strategy
    (arm,) = longer.arms
    assert arm.acceleration == pytest.approx(arm.steps / (arm.steps - arm.break_even))


def test_a_prompt_at_which_the_run_would_stop_is_told(tmp_path: Path) -> None:
    long = replace(COUNTS, pool=replace(COUNTS.pool, longest=4_000))
    settings = ["evaluation.max_new_tokens=30000"]
    advice = planned(*settings, counts=long, folder=tmp_path).advice[0]
    assert advice.startswith(
        "a prompt has 4,000 tokens, and the run stops at those of more than 2,768"
    )
    assert "or lower evaluation.max_new_tokens (now 30000, of a context of 32768)" in advice
    for harmless in ("prompts.overlong=drop", "prompts.max_tokens=4000"):
        result = planned(*settings, harmless, counts=long, folder=tmp_path)
        assert not any("the run stops" in line for line in result.advice)


def test_full_data_pays_for_no_selection(tmp_path: Path) -> None:
    result = planned("selection.strategy=full", folder=tmp_path)
    assert [(arm.selection, arm.break_even) for arm in result.arms] == [(0.0, 0.0)]
    assert not any(part.phase == "scoring" for part in result.memory)


def test_dynamic_sampling_samples_what_it_drops(tmp_path: Path) -> None:
    plain, dynamic = (
        planned(f"training.dynamic_sampling={each}", folder=tmp_path) for each in ("false", "true")
    )
    few, many = (
        next(each for each in result.phases if each.phase == "training")
        for result in (plain, dynamic)
    )
    assert many.prompts == pytest.approx(2 * few.prompts)
    assert few.tokens < many.tokens < 2 * few.tokens


def test_a_line_goes_through_both_runs() -> None:
    small = {"scoring": PhaseObservation(3.0, 10.0, 1), "prompts": PhaseObservation(2.0, 0.0, 1)}
    large = {"scoring": PhaseObservation(5.0, 30.0, 1), "prompts": PhaseObservation(4.0, 0.0, 2)}
    expected = {"scoring": LinearCost(2.0, 0.1), "prompts": LinearCost(2.0, 0.0)}
    assert linear_costs(small, large) == expected


@pytest.mark.parametrize("first", [9.0, 5.0])
def test_noise_never_makes_work_free_or_negative(first: float) -> None:
    small = {"scoring": PhaseObservation(first, 10.0, 1)}
    large = {"scoring": PhaseObservation(5.0, 30.0, 1)}
    line = linear_costs(small, large)["scoring"]
    assert line.fixed >= 0
    assert line.per_flop == pytest.approx(5.0 / 30.0)
