"""Everything that only a GPU can check or measure, in order of worth, within a time limit.

    scripts/gpu_check.sh 480                            # with the packages in wheels/
    python benchmarks/gpu_check.py --seconds 480        # where all packages are installed
    python benchmarks/gpu_check.py --only qwen,sketches
    python benchmarks/gpu_check.py --device cpu --tiny  # tries the code of every part

Each part has a process and a limit of its own; figures are written to benchmarks/results/gpu.json
as they come, and each call adds a run to that file. What did not run says why.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "src"))

from gpu_parts.record import Record  # noqa: E402
from gpu_parts.running import Where, run_parts  # noqa: E402
from gpu_parts.schedule import PARTS, chosen  # noqa: E402


def main() -> None:
    """Run the parts and print what is asked; a part that failed makes the exit status 1."""
    options = parse_arguments()
    if options.device == "cuda" and not has_gpu():
        sys.exit("error: torch sees no GPU here; --device cpu --tiny tries the code without one")
    about = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": options.device,
        "tiny": options.tiny,
        "seconds": options.seconds,
    }
    try:
        parts, record = chosen(options.only), Record(options.out, about)
    except ValueError as error:
        sys.exit(f"error: {error}")
    folder = options.work or options.out.with_suffix(".work")
    where = Where(options.device, options.tiny, folder, time.time() + options.seconds)
    run_parts(parts, record, where, say)
    for name, asked in record.run["asked"].items():
        verdict = {True: "yes", False: "NO", None: "not measured"}[asked["met"]]
        say(f"{name:<45} {asked['asked']:>10}  {asked['value']}  {verdict}")
    say(f"written to {options.out}")
    if any(part["status"] == "failed" for part in record.run["parts"].values()):
        sys.exit("error: a part failed; see above")


def has_gpu() -> bool:
    """Whether there is anything to check."""
    import torch

    return torch.cuda.is_available()


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=480, help="of the whole run")
    names = ", ".join(part.name for part in PARTS)
    parser.add_argument("--only", default="", help=f"parts, with commas: {names}; default: all")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="models of no size: a trial")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu.json")
    parser.add_argument("--work", type=Path, help="folder of runs; default: OUT with .work")
    return parser.parse_args()


def say(line: str) -> None:
    """Print at once: whoever ends this process should find it."""
    print(line, flush=True)


if __name__ == "__main__":
    main()
