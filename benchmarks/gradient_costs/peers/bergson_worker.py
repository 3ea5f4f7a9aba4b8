"""bergson's index build, on the documents of a request, in an environment that has bergson.

It does what `bergson build` does: its own `setup_model_and_peft` loads the model (embeddings alone
require a gradient, as it wants), `allocate_batches` makes the batches, `collect_gradients` runs
forward, backward and the hooks and writes the index to disk. Its nearest equivalent of our task is
one row a document (prompt and one response; cross-entropy of the response's tokens, mean over the
tokens, times the advantage): the rows of a prompt's responses add up to the prompt's gradient.

bergson sees the linear layers of the body: no embeddings, no norms, no head. It keeps p x p numbers
a layer, so the total dimension is the largest layers x p^2 that fits in the one asked for.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bergson import GradientProcessor, IndexConfig, __version__, collect_gradients, load_gradients
from bergson.collector.collector import HookCollectorBase
from bergson.data import allocate_batches
from bergson.utils.worker_utils import setup_model_and_peft
from datasets import Dataset
from protocol import fastest, serve

PRECISIONS = {"bfloat16": "bf16", "float32": "fp32"}


class Build:
    """One index build, again and again."""

    def __init__(self, request: dict[str, Any], folder: Path) -> None:
        self.config = IndexConfig(
            run_path=str(folder / "index"),
            model=request["model"],
            precision=PRECISIONS[request["dtype"]],
            loss_reduction="mean",
        )
        self.model, _ = setup_model_and_peft(self.config)
        self.model.eval()
        self.data = Dataset.from_list(
            [{**d, "length": len(d["input_ids"])} for d in request["documents"]]
        )
        modules = HookCollectorBase.discover_targets(self.model.base_model)
        side = max(1, math.isqrt(request["dim"] // len(modules)))
        self.config.projection_dim = side
        self.layers, self.dim = len(modules), len(modules) * side * side
        # The projection matrices stay: a build of many documents makes them once.
        self.processor = GradientProcessor(projection_dim=side, projection_seed=request["seed"])
        longest = max(self.data["length"][:])
        documents = fastest(request["batches"], lambda n: self.run(n * longest))
        self.config.token_batch_size = documents * longest

    def run(self, token_batch: int | None = None) -> np.ndarray:
        """Build the index and return its rows [documents, dimensions]."""
        folder = self.config.partial_run_path
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        batches = allocate_batches(
            self.data["length"][:], token_batch or self.config.token_batch_size
        )
        collect_gradients(self.model, self.data, self.processor, self.config, batches=batches)
        return load_gradients(folder)


def open_worker(request: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], Any]]:
    """Load the model, choose the batch size, and return what is built and the build."""
    torch.set_num_threads(request["threads"])
    build = Build(request, Path(tempfile.mkdtemp()))
    about = {
        "version": __version__,
        "torch": torch.__version__,
        "layers": build.layers,
        "dim": build.dim,
        "token_batch": build.config.token_batch_size,
        "computes": "one row a document: linear layers of the body, p x p Rademacher a layer",
    }
    return about, build.run


if __name__ == "__main__":
    serve(open_worker)
