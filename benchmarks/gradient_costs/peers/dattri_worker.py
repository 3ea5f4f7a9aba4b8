"""dattri's cached projected gradients of a request's documents, in an environment with dattri.

Its nearest equivalent of our task is `LoGraAttributor.cache` without a Hessian, gradients kept on
the CPU: forward, backward, and for each linear layer the p x p projection of each document's
gradient, made from activations and output gradients. The loss is the same as for bergson: the
cross-entropy of a response's tokens, mean over them, times the advantage. Embeddings, norms and the
head are left out, as bergson leaves them out; all but the embeddings are frozen, in its favour.

dattri compiles its compressors; set TORCHDYNAMO_DISABLE=1 to time it without.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from dattri.algorithm.logra import LoGraAttributor
from dattri.task import AttributionTask
from protocol import fastest, serve
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

Example = dict[str, Tensor]


class LanguageModel(nn.Module):
    """A model that takes a whole batch and gives logits: dattri calls it with every column."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, **columns: Tensor) -> Tensor:
        """Logits [N, L, V]."""
        return self.model(input_ids=input_ids, use_cache=False).logits


def loss(model: nn.Module, batch: Example, device: str) -> Tensor:
    """Mean over the documents of mean cross-entropy times advantage."""
    logits = model(batch["input_ids"].to(device))[:, :-1]
    labels = batch["labels"][:, 1:].to(device)
    losses = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    means = losses.view_as(labels).sum(1) / (labels != -100).sum(1)
    return (means * batch["advantage"].to(device)).mean()


def collate(documents: list[dict[str, Any]]) -> Example:
    """Pad documents on the right."""
    ids = [torch.tensor(d["input_ids"]) for d in documents]
    labels = [torch.tensor(d["labels"]) for d in documents]
    return {
        "input_ids": nn.utils.rnn.pad_sequence(ids, batch_first=True),
        "labels": nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100),
        "advantage": torch.tensor([d["advantage"] for d in documents]),
    }


class Build:
    """Cached gradients of all documents, again and again."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.documents, self.dim = request["documents"], request["dim"]
        self.seed = request["seed"]
        model = AutoModelForCausalLM.from_pretrained(
            request["model"], dtype=getattr(torch, request["dtype"])
        )
        self.model = LanguageModel(model).eval().requires_grad_(False)
        model.get_input_embeddings().requires_grad_(True)
        body = model.base_model
        self.layers = [
            f"model.{model.base_model_prefix}.{name}"
            for name, module in body.named_modules()
            if isinstance(module, nn.Linear)
        ]
        self.side = max(1, math.isqrt(self.dim // len(self.layers)))
        self.attributors: dict[int, LoGraAttributor] = {}
        self.batch = fastest(request["batches"], self.run)

    def run(self, batch: int | None = None) -> Tensor:
        """Cache the gradients and return them [documents, dimensions]."""
        attributor = self._attributor(batch or self.batch)
        loader = DataLoader(self.documents, batch_size=batch or self.batch, collate_fn=collate)
        attributor.cache(loader)
        stored = attributor.offload_manager.cached_gradients
        return torch.cat([stored[n] for n in sorted(stored)])

    def _attributor(self, batch: int) -> LoGraAttributor:
        """One attributor a batch size: its projections are kept from build to build."""
        if batch not in self.attributors:
            task = AttributionTask(loss, self.model, self.model.state_dict())
            attributor = LoGraAttributor(
                task, self.layers, hessian="Identity", proj_dim=self.side**2, offload="cpu"
            )
            attributor.sparsifier_kwargs["proj_seed"] = self.seed
            self.attributors[batch] = attributor
        return self.attributors[batch]


def open_worker(request: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], Any]]:
    """Load the model, choose the batch size, and return what is built and the build."""
    torch.set_num_threads(request["threads"])
    build = Build(request)
    about = {
        "version": version("dattri"),
        "torch": torch.__version__,
        "layers": len(build.layers),
        "dim": len(build.layers) * build.side**2,
        "batch": build.batch,
        "computes": "one row a document: linear layers of the body, p x p Gaussian a layer",
    }
    return about, build.run


if __name__ == "__main__":
    serve(open_worker)
