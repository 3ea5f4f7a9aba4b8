"""Peak memory and time of one prompt's gradient against the number of its responses.

    OMP_NUM_THREADS=1 python benchmarks/long_groups.py

A randomly initialised Llama on a CPU, in float32; a prompt of 64 tokens with 2 to 32 responses of
256. Whole groups go through in one pass, as with an unlimited batch; parts in batches of 576
tokens, which hold two responses. Memory is what the process grew by at its largest (Linux tells,
and can be made to forget), time is CPU seconds. Writes benchmarks/results/long_groups.json.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cropi.gradients.consumers import Directions, DotConsumer, NormConsumer
from cropi.gradients.extractor import GradientExtractor
from cropi.schema import Response, RolloutGroup, Sampling

RESULTS = Path(__file__).parent / "results" / "long_groups.json"
PROMPT, LENGTH, RESPONSES = 64, 256, (2, 8, 32)
BATCHES = {"parts": PROMPT + 2 * LENGTH, "whole": 10**9}
CONFIG = LlamaConfig(
    vocab_size=8192,
    hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=1024,
)


def main() -> None:
    """Measure every size both ways, print and write."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).eval()
    rows: list[dict[str, object]] = [{"responses": count} for count in RESPONSES]
    for name, batch_tokens in BATCHES.items():
        for row in rows:
            row[name] = measured(model, batch_tokens, int(str(row["responses"])))
    results = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "prompt": PROMPT,
        "response": LENGTH,
        "batch_tokens": BATCHES["parts"],
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(json.dumps(row))


def measured(model: LlamaForCausalLM, batch_tokens: int, count: int) -> dict[str, float]:
    """Peak growth in MB, CPU seconds, and the norm and the cosine with a random direction."""
    extractor = GradientExtractor(model, batch_tokens=batch_tokens)
    torch.manual_seed(0)
    directions = Directions(extractor.shapes, 1, extractor.device)
    for values in directions.values.values():
        values.normal_()
    extractor.run([group(2, 32)], [])
    norms, dots = NormConsumer(1, extractor.device), DotConsumer(directions, 1)
    forget_peak()
    before, start = resident_mb("VmRSS"), time.process_time()
    extractor.run([group(count, LENGTH)], [norms, dots])
    seconds, grown = time.process_time() - start, resident_mb("VmHWM") - before
    cosine = float(dots.dots[0, 0] / norms.norms[0] / directions.norms()[0])
    return {"mb": grown, "seconds": seconds, "norm": float(norms.norms[0]), "cosine": cosine}


def group(count: int, length: int) -> RolloutGroup:
    """One prompt with responses of random tokens, every second one right."""
    rng = np.random.default_rng(count)
    responses = [
        Response(
            rng.integers(0, CONFIG.vocab_size, length).astype(np.int32),
            np.full(length, -np.log(CONFIG.vocab_size), np.float32),
            reward=float(n % 2),
        )
        for n in range(count)
    ]
    prompt = rng.integers(0, CONFIG.vocab_size, PROMPT).astype(np.int32)
    return RolloutGroup("long", prompt, responses, Sampling())


def forget_peak() -> None:
    """Let the largest resident size begin again."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def resident_mb(what: str) -> float:
    """The resident size now (VmRSS), or at its largest (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) / 1024


if __name__ == "__main__":
    main()
