"""A whole run on vLLM: rollouts, refreshed ones and evaluations, killed on the way and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from cropi.curriculum.loop import run
from cropi.policy.loading import load_policy
from cropi.rollouts import read_rollouts
from cropi.rollouts.staleness import staleness_under
from cropi.store.files import file_hash, read_jsonl
from real_engines.conftest import OPTIONS
from support.tiny_runs import tiny_config

SETTINGS = (
    f"rollouts.engine={{name: vllm, options: {OPTIONS}}}".replace("True", "true"),
    "curriculum={stages: 2, steps_per_stage: 1, refresh: all}",
    "evaluation.every=5",
)
RUN = """
import sys
from pathlib import Path
from cropi.curriculum.loop import run
from real_engines.test_real_vllm_run import SETTINGS
from support.tiny_runs import tiny_config
run(tiny_config(Path(sys.argv[1]), *SETTINGS))
"""


def test_a_run_ends_after_a_kill_with_what_it_had(tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path}
    process = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path)], env=environment)
    directory = tmp_path / "runs" / "tiny"
    stages = directory / "arms" / "cropi" / "stages"
    pool = stages / "0" / "rollouts" / "pool.parquet"
    until = time.monotonic() + 900
    while time.monotonic() < until and not pool.exists():
        time.sleep(0.1)
        assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = file_hash(pool)

    run(tiny_config(tmp_path, *SETTINGS))
    assert file_hash(pool) == before, "nothing is sampled twice"
    log = (directory / "logs" / "vllm.log").read_text(errors="replace")
    assert log.count("Application startup complete") >= 4
    rows = read_jsonl(directory / "metrics.jsonl")
    assert {row["step"] for row in rows if row["kind"] == "evaluation"} == {0, 1, 2}
    start = read_rollouts(pool)
    assert {group.logprob_mode for group in start} == {"processed"}
    fresh = read_rollouts(stages / "1" / "rollouts" / "pool.parquet")
    assert [g.prompt_id for g in fresh] == [g.prompt_id for g in start]
    policy = load_policy(stages / "0" / "policy", device="cpu")
    assert staleness_under(policy.model, fresh).ess > 0.999, "they are the stage's own policy's"
