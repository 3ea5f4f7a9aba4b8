"""A reference says of a policy what loading it says, and loads weights only when asked."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from cropi.errors import InputError
from cropi.pocket.model import build_tokenizer
from cropi.policy import checkpoints
from cropi.policy.loading import load_policy
from cropi.policy.reference import PolicyRef
from cropi.schema import Prompt
from cropi.store import files
from support.tiny_gguf import write_package


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 48}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, **heads, eos_token_id=1, bos_token_id=None))
    model.generation_config = GenerationConfig(eos_token_id=[5, 6])
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    base = load_policy(tiny)
    get_peft_model(base.model, LoraConfig(r=2, target_modules="all-linear")).save_pretrained(folder)
    return folder


def without_generation_config(tiny: Path, folder: Path) -> Path:
    shutil.copytree(tiny, folder)
    (folder / "generation_config.json").unlink()
    return folder


@pytest.mark.parametrize("kind", ["tiny", "adapter", "no generation config", "pocket", "smollm2"])
def test_a_reference_agrees_with_the_loaded_policy(
    tiny: Path,
    adapter: Path,
    tmp_path: Path,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kind == "smollm2":
        pytest.importorskip("gguf", reason="the extra smollm2 is not installed")
        write_package(tmp_path / "packages")
        monkeypatch.syspath_prepend(tmp_path / "packages")
    bare = without_generation_config(tiny, tmp_path / "bare")
    paths = {"tiny": tiny, "adapter": adapter, "no generation config": bare}
    path = paths.get(kind, kind)
    policy = load_policy(path)
    monkeypatch.setattr(checkpoints.AutoModelForCausalLM, "from_pretrained", forbidden)
    reference = PolicyRef(path)
    assert reference.identity == policy.identity
    assert reference.eos_token_ids == policy.eos_token_ids
    assert reference.context == policy.context
    from_reference, from_policy = reference.tokenizer, policy.tokenizer
    assert from_reference.get_vocab() == from_policy.get_vocab()
    assert (from_reference.pad_token_id, from_reference.padding_side) == (
        from_policy.pad_token_id,
        from_policy.padding_side,
    )
    assert from_reference.chat_template == from_policy.chat_template


def forbidden(*_: Any, **__: Any) -> None:
    raise AssertionError("weights were loaded")


def test_weights_are_loaded_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = PolicyRef(tiny, dtype="bfloat16")
    policy = reference.load()
    assert policy.model.dtype == torch.bfloat16
    monkeypatch.setattr(checkpoints.AutoModelForCausalLM, "from_pretrained", forbidden)
    assert reference.load() is policy
    assert PolicyRef.of(policy).load() is policy
    assert PolicyRef.of(reference) is reference


def test_a_policy_in_memory_has_no_path(tiny: Path) -> None:
    policy = load_policy(tiny)
    reference = PolicyRef.of(policy)
    assert reference.path is None
    assert reference.identity == policy.identity
    assert reference.tokenizer is policy.tokenizer
    assert PolicyRef.of(tiny).path == str(tiny)


def test_a_pickled_reference_leaves_its_weights_where_they_can_be_loaded(tiny: Path) -> None:
    reference = PolicyRef(tiny)
    policy = reference.load()
    assert len(pickle.dumps(reference)) < 2_000
    sent = pickle.loads(pickle.dumps(reference))
    pairs = zip(policy.model.parameters(), sent.load().model.parameters(), strict=True)
    assert all(torch.equal(here, there) for here, there in pairs)
    in_memory = pickle.loads(pickle.dumps(PolicyRef.of(policy)))
    pairs = zip(policy.model.parameters(), in_memory.load().model.parameters(), strict=True)
    assert all(torch.equal(here, there) for here, there in pairs)


def test_a_missing_checkpoint_is_an_input_error_when_it_is_read() -> None:
    reference = PolicyRef("/nowhere/at/all")
    for read in (lambda: reference.identity, lambda: reference.tokenizer, reference.load):
        with pytest.raises(InputError, match="neither a directory nor reachable"):
            read()


def test_a_file_is_hashed_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    digest = files.xxhash.xxh3_128

    def counted() -> Any:
        reads.append("read")
        return digest()

    monkeypatch.setattr(files.xxhash, "xxh3_128", counted)
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    first = files.content_hash(file)
    assert files.content_hash(file) == first
    assert len(reads) == 1
    os.utime(file, ns=(1, 1))
    assert files.content_hash(file) == first
    state = file.stat()
    (tmp_path / "other").write_bytes(b"WEIGHTS")
    os.utime(tmp_path / "other", ns=(state.st_atime_ns, state.st_mtime_ns))
    os.replace(tmp_path / "other", file)
    assert files.content_hash(file) != first, "same name, size and time, another file"
    assert len(reads) == 3


def test_the_tokenizer_of_a_reference_encodes_prompts(tiny: Path) -> None:
    from cropi.prompts import encode

    prompt = Prompt("p", "3", "s", prompt="1+2=")
    assert encode(PolicyRef(tiny).tokenizer, prompt) == encode(load_policy(tiny).tokenizer, prompt)
