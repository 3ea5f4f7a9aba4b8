"""The tables of docs/scaling.md: what runs of 1.5B and 7B models cost on 1 to 512 H100s.

    python scripts/scaling_tables.py          # prints them
    python scripts/scaling_tables.py --write  # puts them into the page

The figures are those of `cropi plan`, for prompts that exist as numbers only.
"""

from __future__ import annotations

import sys
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


def config(**influence: object) -> RunConfig:
    """400 steps of 128 prompts x 8 responses, two targets, vLLM for everything but training."""
    sets = {name: [{"path": f"{name}.jsonl"}] for name in ("gsm8k", "math")}
    return RunConfig.model_validate(
        {
            "model": {"path": "model"},
            "prompts": {"pool": [{"path": "pool.jsonl"}], "validation": sets, "test": sets},
            "rollouts": {"responses": 8, "max_new_tokens": 1024, "engine": "vllm"},
            "influence": {"gradient_checkpointing": True, **influence},
            "curriculum": {"stages": 4, "steps_per_stage": 100},
            "training": {
                "prompts_per_step": 128,
                "responses": 8,
                "engine": {"name": "trl", "grpo": {"per_device_train_batch_size": 2}},
            },
            "evaluation": {"every": 50},
            "baselines": ["full"],
        }
    )


def counts(pool: int) -> PromptCounts:
    """Prompts of 150 tokens: a pool, two validation sets of 200 and two test sets of 1,000."""
    few, many = SetCount(200, 150.0, 400), SetCount(1000, 150.0, 400)
    names = ("gsm8k", "math")
    return PromptCounts(
        SetCount(pool, 150.0, 400), dict.fromkeys(names, few), dict.fromkeys(names, many)
    )


def planned(model: str, pool: int, gpus: int = 1, **influence: object) -> Forecast:
    """The forecast for a model, a pool and so many H100s."""
    settings, prompts = config(**influence), counts(pool)
    behaviour = guessed_behaviour(settings, prompts)
    shape = shape_of(MODELS[model], settings, model)
    return forecast(settings, shape, prompts, behaviour, GPUS["h100"], gpus)


def hours(result: Forecast, arm: str, phase: str) -> float:
    """GPU hours of one phase."""
    rows = (each for each in result.phases if (each.arm, each.phase) == (arm, phase))
    return sum(each.seconds for each in rows) * result.gpus / 3600


def cost_table(model: str) -> list[str]:
    """By pool: tokens, GPU hours on 8 devices, selection's share, and when it pays."""
    lines = [
        f"| {model}: prompts | rollouts: tokens | FLOPs | GPU hours | scoring | training, an arm "
        "| selection | as steps | pays from |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for pool in POOLS:
        result = planned(model, pool, gpus=8, target_memory="offload")
        rollouts = next(each for each in result.phases if each.phase == "rollouts")
        arm = result.arms[0]
        pays = "never" if arm.acceleration is None else f"{arm.acceleration:.2f}x"
        cells = [
            f"{pool:,}",
            amount(rollouts.tokens),
            amount(rollouts.flops),
            f"{hours(result, 'shared', 'rollouts'):,.1f}",
            f"{hours(result, arm.arm, 'scoring'):,.1f}",
            f"{hours(result, arm.arm, 'training'):,.1f}",
            f"{arm.share:.0%}",
            f"{arm.break_even:,.0f} of {arm.steps}",
            pays,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def time_table(model: str) -> list[str]:
    """Time of the whole run without its baseline, by pool and devices."""
    head = " | ".join(f"{n} GPU{'s' if n > 1 else ''}" for n in DEVICES)
    lines = [f"| {model}: prompts | {head} |", "|---|" + "---|" * len(DEVICES)]
    for pool in POOLS:
        results = [planned(model, pool, n, target_memory="offload") for n in DEVICES]
        cells = [duration(own_seconds(each)) + mark(each) for each in results]
        lines.append(f"| {pool:,} | {' | '.join(cells)} |")
    return lines


def own_seconds(result: Forecast) -> float:
    """Seconds of everything but the baseline."""
    return sum(each.seconds for each in result.phases if each.arm != "full")


def mark(result: Forecast) -> str:
    """A star where some phase does not fit."""
    return " *" if any(each.total > result.hardware.memory for each in result.memory) else ""


def memory_table() -> list[str]:
    """GiB on one device, by model and by where directions are."""
    lines = [
        "| model | directions | scoring: directions | with the rest | training, 1 GPU | 8 GPUs | 64 GPUs |",
        "|---|---|---|---|---|---|---|",
    ]
    for model in MODELS:
        for memory in ("fp32", "bf16", "offload"):
            results = [planned(model, POOLS[0], n, target_memory=memory) for n in (1, 8, 64)]
            scoring = results[0].memory[0]
            training = [each.memory[-1].total for each in results]
            cells = [scoring.parts["directions"], scoring.total, *training]
            values = " | ".join(f"{cell / GIB:,.0f}" for cell in cells)
            lines.append(f"| {model} | {memory} | {values} |")
    return lines


def tables() -> str:
    """All tables, as they stand in the page."""
    parts = [cost_table("1.5B"), cost_table("7B"), time_table("1.5B"), time_table("7B")]
    return "\n\n".join("\n".join(part) for part in [*parts, memory_table()])


def with_tables(page: str) -> str:
    """The page with the tables between their marks."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(tables())
