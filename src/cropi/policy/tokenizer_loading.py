"""Loading the tokenizer that a folder holds, which is not always the one that transformers makes.

`AutoTokenizer` gives some model types a class of their own that takes the vocabulary from
`tokenizer.json` and brings its own rules for splitting text (transformers 5: every `qwen2`, `phi3`,
`nemotron`, ... folder). Where those rules are not the file's, spaces and ids are lost without a
word. So the two are compared on text, and the file has the last word.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name
from transformers.utils import cached_file

from cropi.errors import InputError
from cropi.schema import EMBEDDING_ROWS
from cropi.text import shown

VOCABULARY_PROBES = 256
"""Tokens of the vocabulary that are tried as text, alone and in a row."""
MOST_TEXTS = 200
"""Texts of a pool that are tried."""
LONGEST_PROBE = 2_000
TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"
"""Key of the transformers warning that a prompt exceeds the tokenizer's model_max_length."""
_OWN_FORMAT = "MistralCommonBackend"
"""Reads tekken.json beside tokenizer.json, and refuses the arguments of other tokenizers."""
PROBES = (
    "What is 12 plus 345? Answer: 357.",
    "  two  spaces,\ttabs\n\nand lines \n",
    "a b c A B C don't I'll WE'RE x_1 foo-bar user@example.com",
    "3.14159 1,000,000 1e-5 -7 +8 50% $20 #### 42 \\boxed{\\frac{1}{2}} x^2+y_3=z",
    "def f(x):\n    return x**2  # comment\n",
    "naïve café Ünïcode ﬁ ½ ² \uff21\uff11 e\u0301 \u00a0nbsp",
    "日本語の文章。中文字符\uff0c한국어 русский العربية हिन्दी ไทย",
    "🙂👩‍🔬 “quotes” \u2013 — … «x»",
    "<tag> [x] {y} (z) a/b\\c \"q\" 'q' `code`",
)


def load_tokenizer(location: str, where: Mapping[str, Any]) -> Any:
    """Load the tokenizer of a folder or hub id; `where` are arguments of from_pretrained.

    It is what `AutoTokenizer` makes, unless that reads text differently from `tokenizer.json`: then
    it is the class that the folder names, or the plain one around the file.

    Raises InputError if none of them reads text as the file does, and whatever from_pretrained
    raises.
    """
    tokenizer = AutoTokenizer.from_pretrained(location, **where)
    core = file_tokenizer(location, where)
    if core is None or type(tokenizer).__name__ == _OWN_FORMAT:
        return tokenizer
    probes = [*PROBES, *_vocabulary_texts(core)]
    difference = first_difference(tokenizer, core, probes)
    if difference is None:
        return tokenizer
    for kind in _other_classes(location, where, type(tokenizer)):
        candidate = kind.from_pretrained(location, **_without_config(where))
        if first_difference(candidate, core, probes) is None:
            return candidate
    raise InputError(disagreement(location, tokenizer, difference))


def file_tokenizer(location: str, where: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer in `tokenizer.json`, as it stands; None without that file.

    None too where the tokenizer is the repository's own code, or comes from a GGUF file.
    """
    if "gguf_file" in where:
        return None
    path = _file(location, "tokenizer.json", where)
    if path is None or (
        where.get("trust_remote_code") and "auto_map" in _settings(location, where)
    ):
        return None
    core = Tokenizer.from_file(str(path))
    core.no_truncation()
    core.no_padding()
    return core


def first_difference(tokenizer: Any, core: Tokenizer, texts: Iterable[str]) -> str | None:
    """The first text of which the two make other tokens, or which they decode to other text."""
    for text in texts:
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if ids != core.encode(text, add_special_tokens=False).ids:
            return text
        decoded = tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        if decoded != core.decode(ids, skip_special_tokens=True):
            return text
    return None


def require_same_tokens(
    location: str, where: Mapping[str, Any], tokenizer: Any, texts: Sequence[str]
) -> None:
    """Raise InputError if the tokenizer reads one of a pool's texts differently from its file.

    At most `MOST_TEXTS` are tried, spread over all.
    """
    core = file_tokenizer(location, where)
    if core is None or type(tokenizer).__name__ == _OWN_FORMAT:
        return
    step = max(1, len(texts) // MOST_TEXTS)
    difference = first_difference(tokenizer, core, (t[:LONGEST_PROBE] for t in texts[::step]))
    if difference is not None:
        raise InputError(disagreement(location, tokenizer, difference))


def disagreement(location: str, tokenizer: Any, text: str) -> str:
    """Say that a tokenizer is not what its folder's file says."""
    return (
        f"model {location}: transformers loads its tokenizer as {type(tokenizer).__name__}, which "
        f"reads text differently from the folder's tokenizer.json (e.g. {shown(text, 80)}), and "
        "no class reads it as the file does; save the tokenizer again with the transformers that "
        "trained the model, or name its class as tokenizer_class in tokenizer_config.json"
    )


def _vocabulary_texts(core: Tokenizer) -> Iterator[str]:
    """Tokens spread over the vocabulary, decoded: each alone, and all with and without spaces."""
    added = set(core.get_added_tokens_decoder())
    ids = sorted(set(core.get_vocab(with_added_tokens=False).values()) - added)
    step = max(1, len(ids) // VOCABULARY_PROBES)
    words = [core.decode([i]).strip() for i in ids[::step]]
    words = [word for word in words if word]
    yield from words
    for start in range(0, len(words), 8):
        yield " ".join(words[start : start + 8])
        yield "".join(words[start : start + 8])


def _other_classes(location: str, where: Mapping[str, Any], tried: type) -> Iterator[Any]:
    """The class that the folder names, if it is another one, and the plain one."""
    named = _settings(location, where).get("tokenizer_class")
    kind = tokenizer_class_from_name(named) if isinstance(named, str) else None
    if kind is not None and kind is not tried and kind is not PreTrainedTokenizerFast:
        yield kind
    if tried is not PreTrainedTokenizerFast:
        yield PreTrainedTokenizerFast


def _without_config(where: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for a class of tokenizers, which would store a model's config as its own."""
    return {key: value for key, value in where.items() if key != "config"}


def _settings(location: str, where: Mapping[str, Any]) -> dict[str, Any]:
    path = _file(location, "tokenizer_config.json", where)
    if path is None:
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _file(location: str, name: str, where: Mapping[str, Any]) -> Path | None:
    """A file of a folder or of the hub's cache, None if there is none."""
    path = cached_file(
        location,
        name,
        revision=where.get("revision"),
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else Path(path)


def prepare_tokenizer(tokenizer: Any, eos: tuple[int, ...], rows: int | None) -> None:
    """Set what generation needs: a pad token, an end, and left padding.

    `rows` is how many token ids the model has; tokens beyond are neither padding nor an end.
    """
    first = tokenizer.convert_ids_to_tokens(eos[0])
    if tokenizer.eos_token_id not in eos:
        tokenizer.eos_token = first
    if tokenizer.pad_token_id is None or beyond(tokenizer.pad_token_id, rows):
        tokenizer.pad_token = first
    tokenizer.padding_side = "left"
    # cropi itself reports prompts over the model's length, as errors or by count.
    tokenizer.deprecation_warnings[TOO_LONG] = True
    setattr(tokenizer, EMBEDDING_ROWS, rows)


def beyond(token_id: int, rows: int | None) -> bool:
    """Whether a model with `rows` token embeddings lacks that id; False where it is not known."""
    return rows is not None and token_id >= rows


def require_matching(tokenizer: Any, rows: int | None, name: str) -> None:
    """Raise InputError if text gets ids for which the model has no embedding.

    Tokens that were added beside the vocabulary are left to `prompts.encode`: no prompt may hold
    them.
    """
    added = set(tokenizer.get_added_vocab().values())
    ids = set(tokenizer.get_vocab().values()) - added
    ids |= set(tokenizer("a")["input_ids"])
    largest = max(ids, default=0)
    if beyond(largest, rows):
        raise InputError(
            f"model {name} has {rows} token embeddings but its tokenizer has ids up to "
            f"{largest} ({shown(tokenizer.convert_ids_to_tokens(largest), 40)}); give model and "
            "tokenizer of the same checkpoint"
        )
