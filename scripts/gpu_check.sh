#!/usr/bin/env bash
# Check and measure what only a GPU can: scripts/gpu_check.sh [SECONDS] [options of benchmarks/gpu_check.py]
# Packages that the machine lacks are taken from wheels/ (scripts/gpu_wheels.sh fills it).
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=480
if [[ "${1:-}" =~ ^[0-9]+$ ]]; then
  seconds=$1
  shift
fi
python=${PYTHON:-python3}
site=${CROPI_SITE:-${TMPDIR:-/tmp}/cropi-gpu-site}
begin=$SECONDS
"$python" benchmarks/gpu_parts/wheels.py install "$site"
export PYTHONPATH="src:benchmarks:$site${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" benchmarks/gpu_check.py --seconds $((seconds - (SECONDS - begin))) "$@"
