"""Finding and reading a checkpoint: a directory, a hub id, a GGUF file or a PEFT adapter.

Whatever is wrong with it ends here as one sentence: files that are missing or truncated, weights
that do not cover the architecture, an architecture that transformers does not know.
"""

from __future__ import annotations

import importlib.util
import struct
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from cropi.errors import InputError
from cropi.plugins import find_plugin, is_built_in
from cropi.schema import fingerprint
from cropi.store.files import file_hash, folder_hash

_WEIGHTS = ("*.safetensors", "*.bin")
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "*.tiktoken",
    "tekken.json",
)
# What from_pretrained raises on a file that is missing, truncated or of an unknown kind.
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
)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model's files are: a directory or hub id, and the GGUF file in it if there is one."""

    name: str
    location: str
    gguf: str | None = None
    hub: bool = False
    revision: str | None = None


def locate(path: str, revision: str | None, with_tokenizer: bool = True) -> Source:
    """Find out what kind of place `path` is, and that it holds what is needed."""
    if not path.strip():
        raise _unreachable(path)
    if is_built_in("model", path):
        built_in: Path = find_plugin("model", path)()
        if built_in.is_dir():
            return Source(path, str(built_in))
        return Source(path, str(built_in.parent), gguf=built_in.name)
    place = Path(path).expanduser()
    if place.is_dir():
        _require_model_files(path, place, with_tokenizer)
        return Source(path, str(place))
    if place.is_file():
        if place.suffix != ".gguf":
            raise InputError(f"model {path} is a file but no .gguf; give a model directory")
        return Source(path, str(place.parent), gguf=place.name)
    # A hub id is `name` or `owner/name`; anything else could only have been a directory.
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise _unreachable(path)
    return Source(path, path, hub=True, revision=revision)


def _require_model_files(name: str, folder: Path, with_tokenizer: bool) -> None:
    """Raise InputError unless the folder holds a model (and its tokenizer), or an adapter."""
    if (folder / "adapter_config.json").is_file():
        return
    needed = {
        "config.json": ("config.json",),
        "weights (model.safetensors)": _WEIGHTS,
    }
    if with_tokenizer:
        needed["a tokenizer (tokenizer.json)"] = _TOKENIZERS
    missing = [what for what, patterns in needed.items() if not _holds(folder, patterns)]
    if missing:
        raise InputError(
            f"directory {name} is no model: it lacks {' and '.join(missing)}; give a directory "
            "that save_pretrained wrote for both model and tokenizer"
        )


def _holds(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(any(folder.glob(pattern)) for pattern in patterns)


def load_parts(
    source: Source, options: dict[str, Any], with_tokenizer: bool = True
) -> tuple[Any, Any]:
    """Load model and tokenizer (or None) of a source, adapters around their base."""
    if not source.hub and not source.gguf and _adapter_config(source).is_file():
        return _load_adapter(source, options, with_tokenizer)
    where: dict[str, Any] = {"trust_remote_code": options["trust_remote_code"]}
    if source.revision is not None:
        where["revision"] = source.revision
    if source.gguf is not None:
        where["gguf_file"] = source.gguf
        _require_gguf(source)
    # Handed on, because reading a GGUF header takes seconds.
    where["config"] = _load_config(source, where)
    model = _load_model(source, {**options, **where})
    return model, _load_tokenizer(source, where) if with_tokenizer else None


def _load_adapter(source: Source, options: dict[str, Any], with_tokenizer: bool) -> tuple[Any, Any]:
    """Load a PEFT adapter around its base, and the adapter's tokenizer if it brought one."""
    if importlib.util.find_spec("peft") is None:
        raise InputError(f"adapter {source.name} needs peft; run `pip install 'cropi[lora]'`")
    from peft import PeftConfig, PeftModel

    folder = Path(source.location)
    try:
        base = PeftConfig.from_pretrained(folder).base_model_name_or_path
        own = with_tokenizer and _holds(folder, _TOKENIZERS)
        from_base = with_tokenizer and not own
        found = locate(base or "", None, from_base)
        model, tokenizer = load_parts(found, options, from_base)
        # is_trainable marks the adapter's weights, so that gradients are over them alone.
        model = PeftModel.from_pretrained(model, folder, is_trainable=True)
    except InputError as error:
        raise InputError(f"base of adapter {source.name}: {error}") from error
    except _LOAD_ERRORS as error:
        raise _unusable(source, "the adapter", error) from error
    if own:
        tokenizer = _load_tokenizer(source, {"trust_remote_code": options["trust_remote_code"]})
    return model, tokenizer


def _adapter_config(source: Source) -> Path:
    return Path(source.location) / "adapter_config.json"


def _require_gguf(source: Source) -> None:
    """Raise InputError unless the file is GGUF and the package that reads it is installed."""
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"model {source.name} needs gguf; run `pip install 'cropi[smollm2]'`")
    with (Path(source.location) / str(source.gguf)).open("rb") as handle:
        if handle.read(4) != b"GGUF":
            raise InputError(f"model {source.name} is not a GGUF file; fetch it again")


def _load_config(source: Source, where: dict[str, Any]) -> Any:
    """Read the config; raises InputError if it is unreadable or of an unknown architecture."""
    try:
        return AutoConfig.from_pretrained(source.location, **where)
    except _LOAD_ERRORS as error:
        if source.hub and isinstance(error, OSError):
            raise _unreachable(source.name, error) from error
        raise _unusable(source, "the config", error) from error


def _load_model(source: Source, options: dict[str, Any]) -> Any:
    """Load the weights; raises InputError if they are corrupt or do not cover the architecture."""
    if source.gguf is not None and hasattr(transformers, "GgufConfig"):
        # Without it, recent versions keep the blocks packed, and packed weights do not train.
        options = {**options, "quantization_config": transformers.GgufConfig(dequantize=True)}
    try:
        # Mismatches are let through here, because transformers' own error names no tensor.
        model, info = AutoModelForCausalLM.from_pretrained(
            source.location, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except _LOAD_ERRORS as error:
        raise _unusable(source, "the weights", error) from error
    _require_all_weights(source.name, info)
    if source.gguf is not None:
        model.name_or_path = source.name  # an adapter trained on it must find it again
    return model


def _require_all_weights(name: str, info: Any) -> None:
    """Raise InputError if weights are missing or misshapen: transformers would make them up."""
    missing = sorted(info["missing_keys"])
    if missing:
        raise InputError(
            f"model {name} lacks {len(missing)} of its weights, first {missing[0]}; give a "
            "complete checkpoint of a causal language model"
        )
    for tensor, found, wanted in sorted(info["mismatched_keys"]):
        raise InputError(
            f"model {name}: weight {tensor} has shape {tuple(found)} where config.json asks for "
            f"{tuple(wanted)}; give config and weights of the same model"
        )


def _load_tokenizer(source: Source, where: dict[str, Any]) -> Any:
    try:
        return AutoTokenizer.from_pretrained(source.location, **where)
    except _LOAD_ERRORS as error:
        raise _unusable(source, "the tokenizer", error) from error


def revision_of(source: Source, model: Any) -> str:
    """Return what tells these weights from others: a commit, or a hash of config and weights."""
    folder = Path(source.location)
    if source.hub:
        return str(getattr(model.config, "_commit_hash", None) or source.revision or "")
    if source.gguf is not None:
        return file_hash(folder / source.gguf)
    own = folder_hash(folder, ("config.json", "adapter_config.json", *_WEIGHTS))
    if _adapter_config(source).is_file():
        base = locate(str(model.peft_config["default"].base_model_name_or_path), None)
        return fingerprint(own, revision_of(base, model.get_base_model()))
    return own


def _unreachable(name: str, error: Exception | None = None) -> InputError:
    reason = f" ({_reason(error)})" if error else ""
    return InputError(
        f"model {name!r} is neither a directory nor reachable on the Hugging Face hub{reason}; "
        "check the spelling, the network and HF_TOKEN, or give a local model directory"
    )


def _unusable(source: Source, part: str, error: Exception) -> InputError:
    mend = (
        "give a complete checkpoint of a causal language model that this version of transformers "
        "knows"
    )
    if isinstance(error, ImportError):
        mend = "install the package that it names, or choose another model.attention"
    elif "custom code" in str(error):
        mend = "set model.trust_remote_code=true if you trust that code"
    return InputError(f"model {source.name}: {part} cannot be loaded ({_reason(error)}); {mend}")


def _reason(error: Exception) -> str:
    """Return the first sentence of an error that may run over many lines."""
    text = " ".join(str(error).split())
    if " " not in text:  # a KeyError's key, a pickle's opcode: not a reason yet
        text = f"{type(error).__name__} {text}".strip()
    return text.split(". ")[0].rstrip(".")[:200]
