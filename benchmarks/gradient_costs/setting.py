"""The model that everything is measured on, and what a forward+backward of it costs on paper.

Shape legend: N rows, L positions a row, S positions that predict a response token.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from cropi.policy.loading import load_model

LARGE_MATMUL = {"cpu": 2048, "cuda": 8192}
"""Side of the square bf16 matmul that says what the machine can do."""


@dataclass
class Setting:
    """A loaded model in eval mode, and where it is."""

    name: str
    model: Any

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(self.model.device)

    @property
    def dtype(self) -> str:
        """The parameters' dtype, as in `bfloat16`."""
        return str(next(iter(self.model.parameters())).dtype).removeprefix("torch.")

    @cached_property
    def bytes(self) -> int:
        """Bytes of all parameters, tied ones once."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())

    @cached_property
    def coordinates(self) -> int:
        """Length of a gradient."""
        return sum(p.numel() for p in self.model.parameters())

    @cached_property
    def largest(self) -> int:
        """Bytes of one prompt's fp32 gradient of the largest parameter."""
        return 4 * max(int(p.numel()) for p in self.model.parameters())

    def flops(self, lengths: list[int], predicting: int) -> float:
        """FLOPs of forward and backward of rows of these lengths, with all weight gradients.

        2 a weight and position forward, 2 for the activations' gradients, 2 for the weights'; the
        head at predicting positions alone; attention's two products over the causal half.
        """
        linear = [m for m in self.model.base_model.modules() if isinstance(m, nn.Linear)]
        body = sum(m.weight.numel() for m in linear)
        head = self.model.get_output_embeddings().weight.numel()
        config = self.model.config.get_text_config()
        width = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        pairs = sum(n * (n + 1) / 2 for n in lengths)
        attention = 4 * pairs * config.num_attention_heads * width * config.num_hidden_layers
        return float(6 * (body * sum(lengths) + head * predicting) + 3 * attention)


def load_setting(name: str | None, pocket: bool, device: str) -> Setting:
    """Load a model: by default SmolLM2-135M on a CPU, a random Qwen2.5-1.5B on a GPU."""
    if pocket:
        return Setting("pocket", load_model("pocket", device=device))
    if name is not None:
        return Setting(name, load_model(name, dtype="bfloat16", device=device))
    if device == "cuda":
        return Setting("Qwen2.5-1.5B, randomly initialised", random_qwen(device))
    return Setting("smollm2", load_model("smollm2", dtype="bfloat16", device=device))


def random_qwen(device: str) -> Any:
    """Qwen2.5-1.5B's shapes with random weights in bf16."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=151936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        rope_theta=1e6,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    return _random(Qwen2ForCausalLM, config, device)


def random_smollm2(device: str) -> Any:
    """SmolLM2-135M's shapes with random weights in bf16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rope_theta=1e5,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    return _random(LlamaForCausalLM, config, device)


def _random(architecture: type[Any], config: Any, device: str) -> Any:
    torch.manual_seed(0)
    with torch.device(device):
        return architecture(config).to(torch.bfloat16).eval()


class Matmul:
    """A large bf16 matmul, the yardstick of the floor's own efficiency."""

    def __init__(self, device: torch.device) -> None:
        side = LARGE_MATMUL[device.type]
        self.left = torch.randn(side, side, device=device).to(torch.bfloat16)
        self.right = torch.randn(side, side, device=device).to(torch.bfloat16)
        self.times = 4
        self.flops = 2.0 * side**3 * self.times

    def run(self) -> None:
        """Multiply a few times."""
        for _ in range(self.times):
            self.left @ self.right
