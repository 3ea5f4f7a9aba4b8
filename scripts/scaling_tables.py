"""The tables of docs/scaling.md: what runs of 1.5B and 7B models cost on 1 to 512 H100s.

    python scripts/scaling_tables.py          # prints them
    python scripts/scaling_tables.py --write  # puts them into the page

The figures are those of `cropi plan`, for prompts that exist as numbers only.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

from transformers import Qwen2Config

from cropi.config import RunConfig
from cropi.forecast import Forecast, forecast
from cropi.forecast.hardware import GIB, GPUS
from cropi.forecast.model_shape import ModelShape, shape_of
from cropi.forecast.prompt_counts import PromptCounts, SetCount
from cropi.forecast.workload import guessed_behaviour
from cropi.report.kit.number_format import amount, duration

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
BEGIN, END = "<!-- made by scripts/scaling_tables.py -->", "<!-- end -->"
POOLS = (10_000, 100_000, 1_000_000, 10_000_000)
DEVICES = (1, 8, 64, 512)
MODELS = {
    "1.5B": Qwen2Config(
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        vocab_size=151_936,
        tie_word_embeddings=True,
        dtype="bfloat16",
    ),
    "7B": Qwen2Config(
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152_064,
        tie_word_embeddings=False,
        dtype="bfloat16",
    ),
}
"""The sizes of Qwen2.5."""
FITTING = {"1.5B": "fp32", "7B": "offload"}
"""Where target directions are held: what fits."""


def config(strategy: str, **influence: object) -> RunConfig:
    """400 steps of 128 prompts x 8 responses, two targets, vLLM for everything but training."""
    sets = {name: [{"path": f"{name}.jsonl"}] for name in ("gsm8k", "math")}
    return RunConfig.model_validate(
        {
            "model": {"path": "model"},
            "prompts": {"pool": [{"path": "pool.jsonl"}], "validation": sets, "test": sets},
            "rollouts": {"responses": 8, "max_new_tokens": 1024, "engine": "vllm"},
            "influence": {"gradient_checkpointing": True, **influence},
            "selection": {"strategy": strategy},
            "curriculum": {"stages": 4, "steps_per_stage": 100},
            "training": {
                "prompts_per_step": 128,
                "responses": 8,
                "engine": {"name": "trl", "grpo": {"per_device_train_batch_size": 2}},
            },
            "evaluation": {"every": 50},
        }
    )


def counts(pool: int) -> PromptCounts:
    """Prompts of 150 tokens: a pool, two validation sets of 200 and two test sets of 1,000."""
    few, many = SetCount(200, 150.0, 400), SetCount(1000, 150.0, 400)
    names = ("gsm8k", "math")
    return PromptCounts(
        SetCount(pool, 150.0, 400), dict.fromkeys(names, few), dict.fromkeys(names, many)
    )


@cache
def planned(model: str, pool: int, gpus: int, strategy: str, memory: str = "") -> Forecast:
    """The forecast for a model, a pool and so many H100s; `memory` is where directions are."""
    settings = config(strategy, target_memory=memory or FITTING[model])
    prompts = counts(pool)
    behaviour = guessed_behaviour(settings, prompts)
    return forecast(settings, _shape(model), prompts, behaviour, GPUS["h100"], gpus)


@cache
def _shape(model: str) -> ModelShape:
    return shape_of(MODELS[model], config("cropi"), model)


def hours(result: Forecast, phase: str) -> str:
    """GPU hours of one phase."""
    seconds = sum(each.seconds for each in result.phases if each.phase == phase)
    return f"{seconds * result.gpus / 3600:,.1f}"


def cost_table(model: str) -> list[str]:
    """GPU hours on 8 devices by pool: of scoring all of it in every stage, and of the default."""
    lines = [
        f"| {model}: prompts | `ranking`: FLOPs | rollouts | scoring | as steps | pays from "
        "| `cropi`: FLOPs | rollouts | scoring | as steps | pays from | training |",
        "|---" * 12 + "|",
    ]
    for pool in POOLS:
        both = [planned(model, pool, 8, strategy) for strategy in ("ranking", "cropi")]
        cells = [f"{pool:,}", *selection_cells(both[0]), *selection_cells(both[1])]
        lines.append(f"| {' | '.join([*cells, hours(both[1], 'training')])} |")
    return lines


def selection_cells(result: Forecast) -> list[str]:
    """What selecting costs."""
    (arm,) = result.arms
    pays = "never" if arm.acceleration is None else f"{arm.acceleration:.2f}x"
    phases = (hours(result, "rollouts"), hours(result, "scoring"))
    return [amount(arm.selection_flops), *phases, f"{arm.break_even:,.0f}", pays]


def time_table(model: str) -> list[str]:
    """Time of the whole run with the default strategy, by pool and devices."""
    head = " | ".join(f"{n} GPU{'s' if n > 1 else ''}" for n in DEVICES)
    lines = [f"| {model}: prompts | {head} |", "|---" * (1 + len(DEVICES)) + "|"]
    for pool in POOLS:
        results = [planned(model, pool, n, "cropi") for n in DEVICES]
        cells = [duration(each.seconds) + mark(each) for each in results]
        lines.append(f"| {pool:,} | {' | '.join(cells)} |")
    return lines


def mark(result: Forecast) -> str:
    """A star where some phase does not fit."""
    return " *" if any(each.total > result.hardware.memory for each in result.memory) else ""


def memory_table() -> list[str]:
    """GiB on one device, by model and by where directions are."""
    lines = [
        "| model | `target_memory` | directions | scoring altogether | training, 1 GPU | 8 GPUs "
        "| 64 GPUs |",
        "|---" * 7 + "|",
    ]
    for model in MODELS:
        for memory in ("fp32", "bf16", "offload"):
            results = [planned(model, POOLS[0], n, "cropi", memory) for n in (1, 8, 64)]
            scoring = results[0].memory[0]
            training = [each.memory[-1].total for each in results]
            cells = [scoring.parts["directions"], scoring.total, *training]
            values = " | ".join(f"{cell / GIB:,.0f}" for cell in cells)
            lines.append(f"| {model} | {memory} | {values} |")
    return lines


def host_table() -> list[str]:
    """GiB of main memory that grow with the pool, by model."""
    lines = ["| prompts | " + " | ".join(f"{model}: hidden states" for model in MODELS) + " |"]
    lines.append("|---" * (1 + len(MODELS)) + "|")
    for pool in POOLS:
        sizes = [planned(model, pool, 1, "cropi").host["hidden states"] / GIB for model in MODELS]
        lines.append(f"| {pool:,} | {' | '.join(f'{size:,.1f}' for size in sizes)} |")
    return lines


def tables() -> str:
    """All tables, as they stand in the page."""
    parts = [
        *(cost_table(model) for model in MODELS),
        *(time_table(model) for model in MODELS),
        memory_table(),
        host_table(),
    ]
    return "\n\n".join("\n".join(part) for part in parts)


def with_tables(page: str) -> str:
    """The page with the tables between their marks."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(tables())
