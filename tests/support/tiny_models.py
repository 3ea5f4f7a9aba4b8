"""Tiny random models of many architectures, random rollout groups, and a consumer that stores all.

Norms and biases are random too: at their initial ones and zeros a wrong rule could look right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from cropi.config import ClipConfig, ObjectiveConfig
from cropi.gradients.contributions import matrix_shape
from cropi.gradients.extractor import GradientExtractor
from cropi.schema import Response, RolloutGroup, Sampling
from support.oracle import Method

VOCABULARY = 64
WINDOW = 8

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "initializer_range": 0.2,
}
_HEAD = {"head_dim": 8}
_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 24,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
_OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.2, "dropout": 0.3}
_MIXTRAL = {"num_local_experts": 3, "num_experts_per_tok": 2, "experts_implementation": "eager"}

FAST: dict[str, tuple[str, dict]] = {
    "qwen2-tied": ("Qwen2", {**_SIZES, "tie_word_embeddings": True, "attention_dropout": 0.4}),
    "qwen3": ("Qwen3", {**_SIZES, **_HEAD}),
    "llama-untied": ("Llama", {**_SIZES, "tie_word_embeddings": False, "attention_bias": True}),
    "gemma": ("Gemma", {**_SIZES, **_HEAD}),
    "gemma2": ("Gemma2", {**_SIZES, **_HEAD, "query_pre_attn_scalar": 8, "sliding_window": WINDOW}),
    "gemma3": ("Gemma3", {**_SIZES, **_HEAD, "query_pre_attn_scalar": 8, "sliding_window": WINDOW}),
    "mistral-window": ("Mistral", {**_SIZES, **_HEAD, "sliding_window": WINDOW}),
    "gpt2": ("GPT2", {**_GPT2, "resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3}),
    "gpt-neox": ("GPTNeoX", _SIZES),
}
SLOW: dict[str, tuple[str, dict]] = {
    "opt": ("OPT", {**_SIZES, **_OPT}),
    "mixtral": ("Mixtral", {**_SIZES, **_MIXTRAL}),
    "bloom": ("Bloom", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
}

OPTIONS = {
    "default": {},
    "sequence-ratio": {"ratio": "sequence"},
    "reinforce": {"ratio": "none"},
    "clipped": {"clip": ClipConfig(low=0.2, high=0.28)},
    "clipped-sequence": {"ratio": "sequence", "clip": ClipConfig(low=0.1, high=0.1)},
    "token-mean": {"normalisation": "token"},
    "constant-length": {"normalisation": "constant", "constant_length": 9},
    "centred-only": {"scale_by_std": False},
    "self-normalised": {"self_normalised": True},
    "self-normalised-centred": {"self_normalised": True, "scale_by_std": False},
    "gspo-token-self": {
        "ratio": "sequence",
        "normalisation": "token",
        "self_normalised": True,
        "clip": ClipConfig(low=0.3, high=0.4),
    },
}


def method_of(settings: dict) -> Method:
    """The oracle's options for the objective's settings."""
    clip = settings.get("clip")
    return Method(**{**settings, "clip": (clip.low, clip.high) if clip else None})


def tiny_model(name: str, seed: int = 0) -> nn.Module:
    """A random fp32 model in eval mode, every vector parameter random as well."""
    kind, settings = {**FAST, **SLOW}[name]
    config_name = "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config"
    torch.manual_seed(seed)
    config = getattr(transformers, config_name)(**settings)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.float().eval()


def random_response(rng: np.random.Generator, length: int, reward: float) -> Response:
    """A response of random tokens, its behaviour log-probs around those of a random model."""
    ids = rng.integers(0, VOCABULARY, length).astype(np.int32)
    logprobs = (-4.2 + rng.normal(0, 0.7, length)).astype(np.float32)
    return Response(ids, logprobs, reward=reward)


def random_group(
    rng: np.random.Generator,
    name: str = "p",
    responses: int = 4,
    prompt: int = 5,
    longest: int = 6,
    temperature: float = 1.0,
) -> RolloutGroup:
    """An informative group with graded rewards; pad and eos ids may appear anywhere."""
    rewards = rng.permutation(np.linspace(0.0, 1.0, responses)) ** 2
    sampled = [random_response(rng, int(rng.integers(1, longest + 1)), float(r)) for r in rewards]
    ids = rng.integers(0, VOCABULARY, prompt).astype(np.int32)
    return RolloutGroup(name, ids, sampled, Sampling(temperature=temperature))


def mixed_groups(count: int, seed: int = 0, longest: int = 6) -> list[RolloutGroup]:
    """Groups of 2 to 5 responses, 1 to 7 prompt tokens, temperatures 0.6 to 1.4."""
    rng = np.random.default_rng(seed)
    return [
        random_group(
            rng,
            f"p{n}",
            responses=2 + n % 4,
            prompt=int(rng.integers(1, 8)),
            longest=longest,
            temperature=(1.0, 0.6, 1.4)[n % 3],
        )
        for n in range(count)
    ]


class GradientStore:
    """A consumer that stores every gradient, and asserts that each row comes at most once."""

    def __init__(self, extractor: GradientExtractor, prompts: int) -> None:
        self.gradients = {
            name: torch.zeros(prompts, *shape) for name, shape in extractor.shapes.items()
        }
        self.seen: set[tuple[str, int, int]] = set()

    def begin(self, index_P: Tensor) -> None:
        self.index_P = index_P

    def consume(self, name: str, rows: slice | Tensor, gradient_PRI: Tensor) -> None:
        assert gradient_PRI.dtype == torch.float32
        places = rows.tolist() if isinstance(rows, Tensor) else range(rows.start, rows.stop)
        for p, index in enumerate(self.index_P.tolist()):
            arrived = {(name, index, place) for place in places}
            assert len(arrived) == gradient_PRI.shape[1]
            assert not arrived & self.seen, "a gradient came twice"
            self.seen |= arrived
            gradient = self.gradients[name][index]
            gradient.view(matrix_shape(gradient.shape))[rows] = gradient_PRI[p]

    def finish(self) -> None:
        del self.index_P


def gradients(
    model: nn.Module,
    groups: Sequence[RolloutGroup],
    objective: ObjectiveConfig | None = None,
    path: str | None = None,
    **settings: int | bool,
) -> list[dict[str, Tensor]]:
    """The gradient of each group by parameter name; `path` asserts the path taken."""
    extractor = GradientExtractor(model, objective or ObjectiveConfig(), **settings)
    store = GradientStore(extractor, len(groups))
    report = extractor.run(groups, [store])
    assert path is None or report.path == path, report.path
    return [{n: g[i] for n, g in store.gradients.items()} for i in range(len(groups))]


def assert_equal_gradients(
    actual: Sequence[dict[str, Tensor]],
    expected: Sequence[dict[str, Tensor]],
    tolerance: float = 1e-5,
) -> None:
    """Every parameter's gradient is within `tolerance` of the prompt's whole gradient's norm.

    Where the expected gradient is exactly zero (all of it clipped), so is the one actual.
    """
    for prompt, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert a.keys() == b.keys()
        whole = torch.cat([g.double().flatten() for g in b.values()]).norm()
        for name in a:
            error = float((a[name].double() - b[name].double()).norm())
            assert error <= tolerance * whole, f"prompt {prompt}, {name}: off by {error:.2e}"
    assert any(g.any() for b in expected for g in b.values()), "no gradient to compare"


def changed(group: RolloutGroup, change: Callable[[Response], Response]) -> RolloutGroup:
    """The group with every response replaced."""
    responses = [change(response) for response in group.responses]
    return RolloutGroup(group.prompt_id, group.prompt_ids, responses, group.sampling)
