"""The steps of a run that is kept in a store, without models: as a function, and as a script."""

from __future__ import annotations

import sys
from pathlib import Path

from cropi.store.cached import FINGERPRINT, cached
from cropi.store.files import atomic_folder, write_json
from cropi.store.metrics import TimingRow
from cropi.store.mirror import exclusive_run, fetch_missing, working_directory
from cropi.store.policy_record import write_policy_record
from cropi.store.run_directory import RunDirectory

STAGES = 2


def take_steps(out: str, made: list[str] | None = None) -> Path:
    """Stages of a record and a policy; the names of what is made are added to `made`."""
    root = working_directory(out) / "run"
    with exclusive_run(root, f"{out}/run"):
        directory = RunDirectory(root)
        before = root / "start"
        for stage in directory.stages("arm", STAGES):
            scores = stage.folder / "scores.json"

            def score(inputs: str, file: Path = scores) -> None:
                write_json(file, {FINGERPRINT: inputs, "stage": str(file.parent.name)})
                _note(made, file, root)

            def train(inputs: str, policy: Path = stage.policy, start: Path = before) -> None:
                fetch_missing(start)
                weights = start / "model.safetensors"
                content = weights.read_bytes() if weights.exists() else b"start"
                with atomic_folder(policy) as part:
                    (part / "model.safetensors").write_bytes(content + b" trained")
                    (part / "config.json").write_text("{}")
                    write_policy_record(part, {FINGERPRINT: inputs})
                write_json(policy.parent / "extra.json", {"beside": True})
                _note(made, policy, root)

            cached(scores, ["scores", stage.index], score, directory.ledger)
            also = [stage.folder / "extra.json"]
            cached(stage.policy, ["policy", stage.index], train, directory.ledger, lambda a=also: a)
            directory.add_timing(
                TimingRow(phase="training", arm="arm", stage=stage.index, seconds=1)
            )
            before = stage.policy
    return root


def _note(made: list[str] | None, output: Path, root: Path) -> None:
    if made is not None:
        made.append(output.relative_to(root).as_posix())


if __name__ == "__main__":
    take_steps(sys.argv[1])
