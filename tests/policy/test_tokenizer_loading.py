"""A model's tokenizer reads text as the folder's own file does, whatever class it is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

import cropi
from cropi.errors import InputError
from cropi.policy.loading import load_policy
from cropi.policy.reference import PolicyRef
from cropi.policy.tokenizer_loading import require_same_tokens
from cropi.prompts import encode
from cropi.rollouts.settings import RolloutsConfig
from cropi.schema import Prompt

CORPUS = [
    "What is two plus 12 ? The answer is 14 .",
    "She sells 345 shells, and he buys 7 of them: how many?",
    "don't  stop -- it's 1,000 miles\nto go",
]
SPECIAL = ["<unk>", "<eos>"]


def word_level() -> Tokenizer:
    core = Tokenizer(models.WordLevel(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=SPECIAL))
    return core


def word_piece() -> Tokenizer:
    core = Tokenizer(models.WordPiece(unk_token="<unk>"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.train_from_iterator(CORPUS, trainers.WordPieceTrainer(special_tokens=SPECIAL))
    return core


def unigram() -> Tokenizer:
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=80, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    return core


def byte_pairs(*, digits: bool, prefix: bool) -> Tokenizer:
    core = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    split = pre_tokenizers.Split(Regex(r"\d"), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level]) if digits else byte_level
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS * 3, trainer)
    return core


def characters() -> Tokenizer:
    letters = sorted(set("".join(CORPUS)))
    core = Tokenizer(
        models.WordLevel({t: i for i, t in enumerate([*SPECIAL, *letters])}, unk_token="<unk>")
    )
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    return core


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "word level": word_level,
    "word piece": word_piece,
    "unigram": unigram,
    "byte pairs, every digit alone": lambda: byte_pairs(digits=True, prefix=False),
    "byte pairs after a space": lambda: byte_pairs(digits=False, prefix=True),
    "characters": characters,
}


def folder_with(core: Tokenizer, folder: Path, rows: int | None = None, **settings: Any) -> Path:
    """A model of type qwen2 with that tokenizer, as somebody would save it."""
    made = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<eos>")
    made.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256}
    rows = rows or core.get_vocab_size()
    config = Qwen2Config(vocab_size=rows, eos_token_id=1, **sizes, **heads)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("named", ["PreTrainedTokenizerFast", "Qwen2Tokenizer"])
@pytest.mark.parametrize("kind", KINDS)
def test_text_becomes_the_tokens_of_the_folders_own_file(
    tmp_path: Path, kind: str, named: str
) -> None:
    core = KINDS[kind]()
    folder = folder_with(core, tmp_path, tokenizer_class=named)
    for tokenizer in (load_policy(folder).tokenizer, PolicyRef(folder).tokenizer):
        for text in [*CORPUS, "Two plus 345?", " a  b"]:
            ids = encode(tokenizer, Prompt("p", "1", "s", text))
            assert ids == core.encode(text).ids
            assert tokenizer.decode(ids, skip_special_tokens=True) == core.decode(ids)
        assert len(tokenizer) == core.get_vocab_size(), "no id was added"


def test_what_the_library_reads_rightly_stays_as_it_is(tmp_path: Path) -> None:
    core = byte_pairs(digits=False, prefix=False)
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    assert type(load_policy(folder_with(core, tmp_path)).tokenizer) is Qwen2Tokenizer


def test_a_saved_policy_keeps_its_tokenizer(tmp_path: Path) -> None:
    policy = load_policy(folder_with(word_level(), tmp_path / "a"))
    policy.tokenizer.save_pretrained(tmp_path / "b")
    policy.model.save_pretrained(tmp_path / "b")
    again = load_policy(tmp_path / "b").tokenizer
    assert again(CORPUS[0])["input_ids"] == policy.tokenizer(CORPUS[0])["input_ids"]


def test_a_bos_token_that_the_settings_ask_for_is_no_difference(tmp_path: Path) -> None:
    core = word_level()
    core.post_processor = processors.TemplateProcessing("<eos> $A", None, [("<eos>", 1)])
    tokenizer = load_policy(folder_with(core, tmp_path)).tokenizer
    assert tokenizer(CORPUS[0])["input_ids"] == core.encode(CORPUS[0]).ids


def test_a_text_of_the_pool_that_is_read_otherwise_is_shown(tmp_path: Path) -> None:
    folder = folder_with(word_level(), tmp_path)
    wrong = AutoTokenizer.from_pretrained(folder)
    with pytest.raises(
        InputError, match=r"as Qwen2Tokenizer, which reads text differently .*'is 14'"
    ):
        require_same_tokens(str(folder), {}, wrong, ["is 14"])
    require_same_tokens(str(folder), {}, load_policy(folder).tokenizer, CORPUS)


def test_a_token_that_the_model_lacks_is_refused_only_where_it_occurs(tmp_path: Path) -> None:
    core = word_level()
    core.add_special_tokens(["<beyond>"])
    folder = folder_with(core, tmp_path, rows=core.get_vocab_size() - 1, pad_token="<beyond>")
    tokenizer = load_policy(folder).tokenizer
    assert tokenizer.pad_token == "<eos>", "padding has an embedding"
    assert encode(tokenizer, Prompt("p", "1", "s", "What is")) == core.encode("What is").ids
    with pytest.raises(InputError, match=r"prompt 'p' holds the token '<beyond>' .* embeddings"):
        encode(tokenizer, Prompt("p", "1", "s", "What <beyond> is"))


def test_words_that_the_model_lacks_are_refused(tmp_path: Path) -> None:
    core = word_level()
    folder = folder_with(core, tmp_path, rows=core.get_vocab_size() - 3)
    with pytest.raises(InputError, match=r"token embeddings but its tokenizer has ids up to"):
        load_policy(folder)


def test_rollouts_have_the_files_tokens_and_tell_of_ids_that_it_lacks(tmp_path: Path) -> None:
    core = word_level()
    folder = folder_with(core, tmp_path, rows=core.get_vocab_size() * 2)
    settings = RolloutsConfig(responses=8, max_new_tokens=8)
    prompts = [Prompt("p", "14", "s", CORPUS[0])]
    size = core.get_vocab_size()
    with pytest.warns(UserWarning, match=rf"ids from {size} on, which the tokenizer does not have"):
        (group,) = cropi.rollout(
            folder, prompts, tmp_path / "r.parquet", settings, verifier="exact"
        )
    assert group.prompt_ids.tolist() == core.encode(CORPUS[0]).ids
    assert sum(response.ids.max() >= size for response in group.responses) > 0
