#!/usr/bin/env bash
# Fill wheels/ for a GPU machine without a network: scripts/gpu_wheels.sh [--python 3.12] [--bare] [--study]
set -euo pipefail
cd "$(dirname "$0")/.."
python=$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)
PYTHONPATH=src exec "${PYTHON:-$python}" benchmarks/gpu_parts/wheels.py fetch "$@"
