"""Where a checkpoint is: a directory or GGUF file, or the URL of one, or a hub id.

None of it is loaded to know that.

Importing this module loads neither torch nor transformers, so that a config can be checked fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cropi.errors import InputError
from cropi.plugins import find_plugin, is_built_in
from cropi.store.policy_record import require_intact
from cropi.store.remote import local_place

WEIGHTS = ("*.safetensors", "*.bin")
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "*.tiktoken",
    "tekken.json",
)


@dataclass(frozen=True, slots=True)
class CheckpointSource:
    """Where a model's files are: a directory or hub id, and the GGUF file in it if there is one."""

    name: str
    location: str
    gguf: str | None = None
    hub: bool = False
    revision: str | None = None


def locate(path: str, revision: str | None, with_tokenizer: bool = True) -> CheckpointSource:
    """Return what kind of place `path` is; raises InputError unless it has the files needed."""
    if not path.strip():
        raise unreachable(path)
    if is_built_in("model", path):
        built_in: Path = find_plugin("model", path)()
        if built_in.is_dir():
            return CheckpointSource(path, str(built_in))
        return CheckpointSource(path, str(built_in.parent), gguf=built_in.name)
    place = local_place(Path(path).expanduser())
    if place.is_dir():
        require_intact(place)
        _require_model_files(path, place, with_tokenizer)
        return CheckpointSource(path, str(place))
    if place.is_file():
        if place.suffix != ".gguf":
            raise InputError(f"model {path} is a file but not a .gguf; give a model directory")
        return CheckpointSource(path, str(place.parent), gguf=place.name)
    # A hub id is `name` or `owner/name`; anything else could only have been a directory.
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise unreachable(path)
    return CheckpointSource(path, path, hub=True, revision=revision)


def _require_model_files(name: str, folder: Path, with_tokenizer: bool) -> None:
    """Raise InputError unless the folder holds a model (and its tokenizer), or an adapter."""
    if (folder / "adapter_config.json").is_file():
        return
    needed = {
        "config.json": ("config.json",),
        "weights (model.safetensors)": WEIGHTS,
    }
    if with_tokenizer:
        needed["a tokenizer (tokenizer.json)"] = TOKENIZERS
    missing = [part for part, patterns in needed.items() if not has_any(folder, patterns)]
    if missing:
        raise InputError(
            f"directory {name} is not a model: it lacks {' and '.join(missing)}; give a directory "
            "that save_pretrained wrote for both model and tokenizer"
        )


def has_any(folder: Path, patterns: tuple[str, ...]) -> bool:
    """Whether the folder has a file of one of the patterns."""
    return any(any(folder.glob(pattern)) for pattern in patterns)


def unreachable(name: str, error: Exception | None = None) -> InputError:
    """Return the error for a name that is not a directory, and that the hub does not have."""
    reason = f" ({first_sentence(error)})" if error else ""
    return InputError(
        f"model {name!r} is neither a directory nor reachable on the Hugging Face hub{reason}; "
        "check the spelling, the network and HF_TOKEN, or give a local model directory"
    )


def first_sentence(error: Exception) -> str:
    """Return the first sentence of an error that may run over many lines."""
    text = " ".join(str(error).split())
    if " " not in text:  # a KeyError's key or a pickle's opcode alone explains nothing
        text = f"{type(error).__name__} {text}".strip()
    return text.split(". ")[0].rstrip(".")[:200]
