"""How the weights of a model are split over processes while it is loaded, by transformers.

`fsdp` splits each layer's weights, gathers them where they are used, and leaves the work of a
prompt whole. `tensor` splits the work of a layer: each process has some heads and columns, and
keeps them. What transformers has no plan for gets one here (FSDP2), or is refused (tensor).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from cropi.errors import InputError
from cropi.gradients.ranks import model_class_name
from cropi.policy.settings import SplitKind

KEYS = ("k_proj", "qkv_proj", "query_key_value")
"""Projections whose output holds the attention's keys, alone or with others."""


@dataclass(frozen=True)
class Split:
    """Weights over `size` processes, which all load the model at the same time."""

    size: int
    kind: SplitKind = "fsdp"

    def arguments(self, config: Any, trust_remote_code: bool, name: str) -> dict[str, Any]:
        """Arguments of from_pretrained for model `name` of a config.

        Raises InputError where the model cannot be split so, the same on every process.
        """
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        if self.kind == "tensor":
            self._require_tensor_plan(model, name)
            return self._distributed(tp_size=self.size)
        return self._distributed(fsdp_size=self.size, fsdp_plan=_missing_layers(model))

    def _distributed(self, **sizes: Any) -> dict[str, Any]:
        try:
            from transformers.distributed import DistributedConfig

            return {"distributed_config": DistributedConfig(**sizes)}
        except (ImportError, TypeError) as error:
            raise InputError(
                f"transformers {transformers.__version__} cannot shard weights over {self.size} "
                "processes; run `pip install -U transformers`, or start one process"
            ) from error

    def _require_tensor_plan(self, model: Any, name: str) -> None:
        plan = getattr(model, "tp_plan", None)
        if not plan:
            raise InputError(
                f"model {name}: transformers has no tensor parallel plan for "
                f"{model_class_name(model)}; split it with fsdp"
            )
        text = model.config.get_text_config()
        split_heads = any(
            style == "colwise" and key.rpartition(".")[2] in KEYS for key, style in plan.items()
        )
        for kind in ("num_attention_heads", "num_key_value_heads") if split_heads else ():
            heads = getattr(text, kind, None) or self.size
            if heads % self.size:
                raise InputError(
                    f"model {name} has {kind} {heads}, which {self.size} processes cannot divide "
                    f"evenly; start a number that divides {heads}, or split it with fsdp"
                )

    def require(self, model: Any, name: str) -> None:
        """Raise InputError unless a loaded model is split as it should be."""
        if self.kind == "tensor":
            split = any(isinstance(parameter, DTensor) for parameter in model.parameters())
        else:
            layers = [each for each in model.modules() if _is_layer(each)]
            split = all(isinstance(layer, FSDPModule) for layer in layers)
        if not split:
            base = model.get_base_model() if hasattr(model, "get_base_model") else model
            raise InputError(
                f"model {name}: transformers has not split the layers of {model_class_name(base)}, "
                "so that every process would need the memory of all weights; start one process"
            )


def _is_layer(module: torch.nn.Module) -> bool:
    return isinstance(module, GradientCheckpointingLayer)


def _missing_layers(model: Any) -> dict[str, str] | None:
    """The rules that FSDP2 needs beside those of transformers, which knows some layers' names only.

    With them go the embeddings and the head, which transformers wraps once where they are tied.
    """
    names = {module: name for name, module in model.named_modules()}
    layers = {_wildcard(name) for module, name in names.items() if _is_layer(module)}
    covered = getattr(model, "fsdp_plan", None) or {}
    if layers <= covered.keys():
        return None
    head = names.get(model.get_output_embeddings())
    embeddings = names.get(model.get_input_embeddings())
    rules = dict.fromkeys(sorted(layers), "free_full_weight")
    rules |= {embeddings: "free_full_weight"} if embeddings else {}
    return rules | ({head: "keep_full_weight"} if head else {})


def _wildcard(name: str) -> str:
    """A module's name as plans write it: with a star for the number of a layer."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)
