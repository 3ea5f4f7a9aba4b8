"""The pocket model: a Qwen2 of 0.8 million parameters that reads and writes single characters.

It has the parts of its big relatives (rotary attention, biased q/k/v, RMSNorm, SwiGLU, tied
embeddings), so code that works with it works with them, but a training step takes a fraction of a
second on a CPU. Importing this module is cheap; torch and transformers load with the first model.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

EOS = "<eos>"
PAD = "<pad>"
MAX_POSITIONS = 64
CHARACTERS = string.digits + string.ascii_lowercase + "+-*%=?<>,:"
"""Every character that a prompt or an answer may contain."""


def model_dir() -> Path:
    """Folder of the shipped weights, config and tokenizer, for any `from_pretrained`.

    Raises:
        FileNotFoundError: the installation lacks the weights (run `pretrain` first).
    """
    folder = Path(str(files("cropi.pocket") / "model"))
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"no pocket weights in {folder}; make them with "
            f"`python -m cropi.pocket.pretrain --out {folder}`"
        )
    return folder


def vocabulary() -> dict[str, int]:
    """Token ids: padding 0, end of sequence 1, then one for each character."""
    return {token: index for index, token in enumerate((PAD, EOS, *CHARACTERS))}


def build_tokenizer(token_ids: Mapping[str, int] | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of single characters that adds nothing around them: no bos, no eos.

    Of `vocabulary()`, or of another vocabulary with `PAD` and `EOS`.

    It is a byte-level BPE without merges, because `AutoTokenizer` builds exactly that from the
    vocabulary of any `qwen2` folder; so every loader agrees. Qwen's class would also add an
    unknown token outside the vocabulary, so padding is named as the unknown token; characters
    outside the vocabulary are dropped, and no prompt or answer has any.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(dict(token_ids or vocabulary()), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=PAD,
        padding_side="left",
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def build_config() -> Qwen2Config:
    """Four layers of width 128: large enough to add numbers, small enough for a laptop."""
    from transformers import Qwen2Config

    ids = vocabulary()
    return Qwen2Config(
        vocab_size=len(ids),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        bos_token_id=None,
        eos_token_id=ids[EOS],
        pad_token_id=ids[PAD],
        dtype="float32",
    )


def build_model() -> Qwen2ForCausalLM:
    """A freshly initialised model in fp32; seed torch first where the weights matter."""
    from transformers import Qwen2ForCausalLM

    return Qwen2ForCausalLM(build_config())
