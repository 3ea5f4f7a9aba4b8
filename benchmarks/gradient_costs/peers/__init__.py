"""Peers in environments of their own: started as workers that take turns with us.

A worker knows nothing of cropi (see `protocol`). Where its environment is not named, or it fails,
its figures are null and the reason is kept.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils.logging import disable_progress_bar

from cropi.schema import RolloutGroup

ENVIRONMENTS = {"bergson": "CROPI_BERGSON_PYTHON", "dattri": "CROPI_DATTRI_PYTHON"}
ADVANTAGE_EPSILON = 1e-4


@dataclass
class Peer:
    """A running worker; `about` says what it computes, `missing` why there is none."""

    name: str
    about: dict[str, Any] = field(default_factory=dict)
    missing: str = ""
    process: subprocess.Popen[str] | None = None

    def build(self) -> float:
        """Seconds of one build, as the worker measured them."""
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise OSError(f"{self.name}'s worker ended with code {self.process.wait()}")
        return dict(json.loads(line))

    def close(self) -> None:
        """Let the worker end."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            self.process.wait(timeout=60)


def open_peer(name: str, request: dict[str, Any], folder: Path, compiled: bool) -> Peer:
    """Start the worker of a peer and wait until its model is loaded and warm."""
    python = os.environ.get(ENVIRONMENTS[name])
    if not python:
        return Peer(name, missing=f"${ENVIRONMENTS[name]} is not set")
    file = folder / f"{name}.json"
    file.write_text(json.dumps(request), encoding="utf-8")
    log = (folder / f"{name}.log").open("w", encoding="utf-8")
    # The environments share nothing: what leads Python to our packages would mislead theirs.
    surroundings = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if not compiled:
        surroundings["TORCHDYNAMO_DISABLE"] = "1"
    worker = Path(__file__).resolve().parent / f"{name}_worker.py"
    try:
        process = subprocess.Popen(
            [str(Path(python).absolute()), str(worker), str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=surroundings,
            cwd=folder,  # dattri leaves a file where it is started
        )
        peer = Peer(name, process=process)
        peer.about = peer._answer()
    except OSError as error:
        return Peer(name, missing=f"{error}; {last_line(folder / f'{name}.log')}")
    finally:
        log.close()
    return peer


def save(model: Any, folder: Path) -> None:
    """Write the weights where workers read them, if there are any workers."""
    disable_progress_bar()
    if any(os.environ.get(variable) for variable in ENVIRONMENTS.values()):
        model.save_pretrained(folder)


def last_line(log: Path) -> str:
    """The last thing a worker said."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it said nothing")


def documents(groups: Sequence[RolloutGroup]) -> list[dict[str, Any]]:
    """Prompt+response documents: labels on the response alone, the advantage over K beside it."""
    rows = []
    for group in groups:
        rewards = np.array([r.reward for r in group.responses])
        advantages = (rewards - rewards.mean()) / (rewards.std(ddof=1) + ADVANTAGE_EPSILON)
        prompt = group.prompt_ids.tolist()
        for response, advantage in zip(group.responses, advantages, strict=True):
            ids = response.ids.tolist()
            rows.append(
                {
                    "input_ids": prompt + ids,
                    "labels": [-100] * len(prompt) + ids,
                    "advantage": float(advantage) / len(rewards),
                }
            )
    return rows


def request(
    model: Path, dtype: str, groups: Sequence[RolloutGroup], dim: int, threads: int
) -> dict[str, Any]:
    """What a worker is asked to build.

    `batches` are the documents a batch it may choose from, by trying them.
    """
    return {
        "model": str(model),
        "dtype": dtype,
        "documents": documents(groups),
        "dim": dim,
        "threads": threads,
        "seed": 0,
        "batches": [8, 16] if len(groups) > 1 else [8],
    }
