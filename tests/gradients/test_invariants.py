"""Invariants 2 and 3: what must not change a prompt's gradient, and what must stay as it was."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Iterator

import accelerate
import numpy as np
import peft
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from cropi.config import ClipConfig, ObjectiveConfig
from cropi.errors import InputError
from cropi.gradients.collation import prepare
from cropi.gradients.extractor import GradientExtractor
from cropi.gradients.logprobs import LogprobReader
from cropi.schema import Response, RolloutGroup
from support.oracle import flatten, oracle_gradient
from support.tiny_models import (
    GradientStore,
    assert_equal_gradients,
    changed,
    gradients,
    mixed_groups,
    random_group,
    random_response,
    tiny_model,
)


def direction(gradient: dict[str, Tensor]) -> Tensor:
    flat = flatten(gradient)
    return flat / flat.norm()


def regrouped(group: RolloutGroup, responses: list[Response]) -> RolloutGroup:
    return RolloutGroup(group.prompt_id, group.prompt_ids, responses, group.sampling)


def test_batch_tokens_and_batch_mates_change_nothing(qwen: nn.Module) -> None:
    groups = mixed_groups(8)
    alone = [gradients(qwen, [group])[0] for group in groups]
    for batch_tokens in (1, 60, 10**6):
        assert_equal_gradients(gradients(qwen, groups, batch_tokens=batch_tokens), alone, 1e-6)


@pytest.mark.parametrize("name", ["qwen2-tied", "llama-untied", "gpt2"])
@pytest.mark.parametrize("share_prefix", [True, False])
def test_dense_gradients_in_small_tiles_change_nothing(
    name: str, share_prefix: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, groups = tiny_model(name), mixed_groups(7)
    whole = gradients(model, groups, share_prefix=share_prefix)
    for rows in (1, 3):
        monkeypatch.setattr("cropi.gradients.hooks.TILE_BYTES", {"cpu": 4 * 7 * 32 * rows})
        actual = gradients(model, groups, share_prefix=share_prefix)
        assert_equal_gradients(actual, whole, 1e-6)


@pytest.mark.parametrize("name", ["qwen2-tied", "gemma2", "gpt-neox"])
def test_gradient_checkpointing_changes_nothing_but_recomputes(name: str) -> None:
    model, groups = tiny_model(name), mixed_groups(5)
    calls = []
    layer = model.base_model.layers[0]
    down = getattr(layer.mlp, "down_proj", None) or layer.mlp.dense_4h_to_h
    down.register_forward_pre_hook(lambda *_: calls.append(1))
    plain = gradients(model, groups)
    once = len(calls)
    before = state_of(model)
    assert_equal_gradients(gradients(model, groups, gradient_checkpointing=True), plain, 1e-6)
    assert state_of(model) == before
    assert len(calls) - once > once


def test_checkpointing_an_unsupported_model_is_an_input_error() -> None:
    model = tiny_model("qwen2-tied")
    with pytest.raises(InputError, match="gradient_checkpointing"):
        gradients(WithoutLayers(model), mixed_groups(2), gradient_checkpointing=True)


def test_layers_below_the_lowest_wanted_one_cost_nothing(qwen: nn.Module) -> None:
    reached = []
    for below in (qwen.model.layers[0], qwen.model.layers[1].self_attn):
        below.register_full_backward_hook(lambda *_: reached.append(1))
    groups = mixed_groups(3)
    wanted = ["model.layers.1.mlp.down_proj.weight", "model.norm.*"]
    actual = gradients(qwen, groups, path="shared", patterns=wanted)
    assert sorted(actual[0]) == ["model.layers.1.mlp.down_proj.weight", "model.norm.weight"]
    expected = [oracle_gradient(qwen, group) for group in groups]
    assert_equal_gradients(actual, [{n: e[n] for n in actual[0]} for e in expected])
    extractor = GradientExtractor(qwen, patterns=wanted)
    extractor.path = "shared"
    reached.clear()
    extractor.run(groups, [GradientStore(extractor, len(groups))])
    assert not reached, "backward went below the lowest layer that was asked for"


def test_a_pattern_that_matches_nothing_is_an_input_error(qwen: nn.Module) -> None:
    with pytest.raises(InputError, match=r"model\.layer\.\*.*matches none of the"):
        GradientExtractor(qwen, patterns=["model.norm.*", "model.layer.*"])


def test_shared_prefixes_and_separate_rows_agree(qwen: nn.Module) -> None:
    groups = mixed_groups(6)
    shared = gradients(qwen, groups, path="shared", share_prefix=True)
    rows = gradients(qwen, groups, path="rows", share_prefix=False)
    assert_equal_gradients(shared, rows, 1e-6)


def test_the_order_of_prompts_changes_nothing(qwen: nn.Module) -> None:
    groups = mixed_groups(6)
    forward = gradients(qwen, groups, batch_tokens=80)
    backward = gradients(qwen, groups[::-1], batch_tokens=80)[::-1]
    assert_equal_gradients(backward, forward, 1e-6)


def test_permuting_responses_changes_nothing(qwen: nn.Module) -> None:
    groups = mixed_groups(5)
    permuted = [regrouped(g, g.responses[::-1]) for g in groups]
    assert_equal_gradients(gradients(qwen, permuted), gradients(qwen, groups), 1e-6)


@pytest.mark.parametrize("options", [{}, {"ratio": "none"}, {"self_normalised": True}])
def test_shifted_and_scaled_rewards_leave_the_direction_unchanged(
    qwen: nn.Module, options: dict
) -> None:
    groups = mixed_groups(5)
    affine = [
        changed(g, lambda r: dataclasses.replace(r, reward=3.0 * r.reward - 7.0)) for g in groups
    ]
    config = ObjectiveConfig(**options)
    pairs = zip(gradients(qwen, groups, config), gradients(qwen, affine, config), strict=True)
    for before, after in pairs:
        assert float(direction(before) @ direction(after)) > 1 - 1e-9


def test_merging_equal_responses_equals_not_merging_them(qwen: nn.Module) -> None:
    (group,) = mixed_groups(1, seed=2)
    twin = dataclasses.replace(group.responses[0], reward=0.7)
    # The same tokens under another behaviour log-prob: one row, two different weights.
    twin.logprobs = twin.logprobs - 0.5
    doubled = regrouped(group, [*group.responses, twin])
    prepared = prepare(0, doubled)
    assert len(prepared.unique_ids) == len(doubled.responses) - 1
    assert_equal_gradients(gradients(qwen, [doubled]), [oracle_gradient(qwen, doubled)])


def test_responses_with_errors_timeouts_or_no_tokens_leave_the_group(qwen: nn.Module) -> None:
    rng = np.random.default_rng(1)
    group = random_group(rng, responses=4)
    error, timeout, empty = (random_response(rng, n, 1.0) for n in (3, 5, 0))
    error.reward, error.reward_status = float("nan"), "error"
    timeout.reward, timeout.reward_status = 0.0, "timeout"
    first, *rest = group.responses
    full = regrouped(group, [error, first, timeout, *rest, empty])
    assert_equal_gradients(gradients(qwen, [full]), gradients(qwen, [group]), 1e-7)
    assert_equal_gradients(gradients(qwen, [full]), [oracle_gradient(qwen, full)])


@pytest.mark.parametrize("name", ["qwen2-tied", "llama-untied", "gemma3"])
def test_pad_and_eos_ids_within_prompts_and_responses_are_ordinary_tokens(name: str) -> None:
    model = tiny_model(name)
    group = random_group(np.random.default_rng(3), prompt=6, responses=3)
    group.prompt_ids[:] = [0, 0, 5, 1, 0, 7]
    for response in group.responses:
        response.ids[0] = 0
    assert_equal_gradients(gradients(model, [group]), [oracle_gradient(model, group)])


def test_one_token_prompts_and_one_token_responses_work(qwen: nn.Module) -> None:
    groups = [
        random_group(np.random.default_rng(n), responses=3, prompt=1, longest=1) for n in range(3)
    ]
    assert_equal_gradients(gradients(qwen, groups), [oracle_gradient(qwen, g) for g in groups])


def test_dropout_in_the_config_has_no_effect(qwen: nn.Module) -> None:
    dropping = tiny_model("gpt2").train()
    assert any(isinstance(m, nn.Dropout) and m.p > 0 for m in dropping.modules())
    groups = mixed_groups(3)
    expected = [oracle_gradient(dropping, group) for group in groups]
    assert_equal_gradients(gradients(dropping, groups), expected)


def test_only_trainable_parameters_have_gradients(qwen: nn.Module) -> None:
    for name, parameter in qwen.named_parameters():
        parameter.requires_grad_("layers.1" in name and "norm" not in name)
    groups = mixed_groups(4)
    actual = gradients(qwen, groups, path="shared")
    trainable = [n for n, p in qwen.named_parameters() if p.requires_grad]
    assert list(actual[0]) == trainable
    assert 0 < len(trainable) < len(list(qwen.named_parameters()))
    assert_equal_gradients(actual, [oracle_gradient(qwen, group) for group in groups])


def test_a_bias_or_a_weight_alone_may_be_trainable(qwen: nn.Module) -> None:
    for name, parameter in qwen.named_parameters():
        parameter.requires_grad_(name.endswith(("q_proj.bias", "k_proj.weight")))
    groups = mixed_groups(3)
    actual = gradients(qwen, groups, path="shared")
    assert_equal_gradients(actual, [oracle_gradient(qwen, group) for group in groups])


def adapted(settings: dict) -> nn.Module:
    model = peft.get_peft_model(tiny_model("qwen2-tied"), peft.LoraConfig(r=3, **settings))
    torch.manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    return model


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_lora_gradients_are_the_adapters_and_equal_the_oracle(dropout: float) -> None:
    model = adapted({"target_modules": "all-linear", "lora_dropout": dropout})
    groups = mixed_groups(4)
    actual = gradients(model, groups, path="shared")
    assert actual[0]
    assert all("lora_" in name for name in actual[0])
    assert_equal_gradients(actual, [oracle_gradient(model, group) for group in groups])


def test_lora_on_the_embeddings_falls_back_and_equals_the_oracle() -> None:
    model = adapted({"target_modules": ["q_proj", "embed_tokens"]})
    groups = mixed_groups(2)
    with pytest.warns(UserWarning, match="slow"):
        actual = gradients(model, groups, path="autograd")
    assert_equal_gradients(actual, [oracle_gradient(model, group) for group in groups])


def test_bf16_gradients_point_where_fp32_ones_do(qwen: nn.Module) -> None:
    coarse = copy.deepcopy(qwen).bfloat16()
    groups = mixed_groups(6)
    # The weights are the same numbers; only the computation is coarser.
    fine = gradients(copy.deepcopy(coarse).float(), groups)
    for path, actual in (
        ("shared", gradients(coarse, groups, path="shared")),
        ("rows", gradients(coarse, groups, path="rows", share_prefix=False)),
    ):
        for a, b in zip(actual, fine, strict=True):
            assert float(direction(a) @ direction(b)) > 0.995, path


class OverriddenLinear(nn.Linear):
    """A layer that overrides `forward`, so that no rule covers it."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


class WithoutLayers(nn.Module):
    """A model whose layers offer no checkpointing."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.config = model.config
        self.get_input_embeddings = model.get_input_embeddings


class HiddenUse(nn.Module):
    """Wraps attention's output projection and adds a use of its weight that no hook sees."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 0.5 * nn.functional.linear(x.tanh(), self.inner.weight)


@pytest.fixture
def accelerators_own_state() -> Iterator[None]:
    """Let a test choose the precision of its process, whatever other tests have chosen."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.usefixtures("accelerators_own_state")
@pytest.mark.parametrize("name", ["qwen2-tied", "gpt2"])
def test_a_model_under_accelerates_mixed_precision_takes_the_fast_path(name: str) -> None:
    model, groups = tiny_model(name), mixed_groups(4)
    expected = gradients(model, groups)
    accelerate.Accelerator(cpu=True, mixed_precision="bf16").prepare(model)
    mixed = model.forward
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        actual = gradients(model, groups)
        list(LogprobReader(model).batches(groups))
    assert model.forward is mixed
    for fine, rounded in zip(expected, actual, strict=True):
        assert float(direction(fine) @ direction(rounded)) > 0.99


def test_checking_a_bf16_model_changes_no_bit_of_it(qwen: nn.Module) -> None:
    coarse = qwen.bfloat16()
    before = {name: tensor.clone() for name, tensor in coarse.state_dict().items()}
    gradients(coarse, mixed_groups(2), path="shared")
    for name, tensor in coarse.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("name", ["qwen2-tied", "llama-untied", "gpt-neox"])
def test_a_missed_use_is_detected_despite_bf16_rounding(name: str) -> None:
    model = tiny_model(name).bfloat16()
    module = next(n for n, _ in model.named_modules() if n.endswith(("o_proj", "attention.dense")))
    model.set_submodule(module, HiddenUse(model.get_submodule(module)))
    with pytest.warns(UserWarning, match="disagrees"):
        gradients(model, mixed_groups(3), path="autograd")


@pytest.mark.parametrize("kind", [HiddenUse, OverriddenLinear])
def test_a_model_whose_fast_gradient_would_be_wrong_takes_the_slow_path(
    qwen: nn.Module, kind: type
) -> None:
    attention = qwen.model.layers[0].self_attn
    if kind is HiddenUse:
        attention.o_proj = HiddenUse(attention.o_proj)
    else:
        attention.o_proj.__class__ = OverriddenLinear
    groups = mixed_groups(3)
    with pytest.warns(UserWarning, match="slow"):
        actual = gradients(qwen, groups, path="autograd")
    assert_equal_gradients(actual, [oracle_gradient(qwen, group) for group in groups])


def uninformative_reference(kind: str) -> RolloutGroup:
    """The shortest group, on which every path agrees, so that it cannot show a difference."""
    rng = np.random.default_rng(5)
    group = random_group(rng, "vacuous", responses=2, prompt=1, longest=1)
    if kind == "gradient zero":
        group.responses[1] = dataclasses.replace(group.responses[0], reward=5.0)
    return group


class IgnoresMask(nn.Module):
    """Attention that drops the mask it is given, as flash attention does with a block mask."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args, attention_mask=None, **kwargs):
        return self.inner(*args, attention_mask=None, **kwargs)


@pytest.mark.parametrize("kind", ["gradient zero", "one token"])
def test_a_prompt_that_cannot_exercise_the_check_verifies_nothing(
    qwen: nn.Module, kind: str
) -> None:
    attention = qwen.model.layers[0].self_attn
    attention.o_proj = HiddenUse(attention.o_proj)
    groups = [uninformative_reference(kind), *mixed_groups(3)]
    with pytest.warns(UserWarning, match="slow"):
        gradients(qwen, groups, path="autograd")


@pytest.mark.parametrize("kind", ["gradient zero", "one token"])
def test_a_model_that_ignores_block_masks_takes_one_row_per_response(
    qwen: nn.Module, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cropi.gradients.batching.supports_prefix_attention", lambda model: False)
    for layer in qwen.model.layers:
        layer.self_attn = IgnoresMask(layer.self_attn)
    groups = [uninformative_reference(kind), *mixed_groups(4)]
    actual = gradients(qwen, groups, path="rows")
    assert_equal_gradients(actual[1:], [oracle_gradient(qwen, group) for group in groups[1:]])


@pytest.mark.parametrize("name", ["qwen2-tied", "gemma", "gpt2"])
def test_prefix_attention_equals_block_masks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, groups = tiny_model(name), mixed_groups(6)
    extractor = GradientExtractor(model)
    store = GradientStore(extractor, len(groups))
    extractor.run(groups, [store])
    assert extractor.planner.best_mode.prefix_attention
    ours = [{n: g[i] for n, g in store.gradients.items()} for i in range(len(groups))]
    monkeypatch.setattr("cropi.gradients.attention.EXPLICIT_SCORES", 0)
    assert_equal_gradients(gradients(model, groups), ours, 1e-6)
    monkeypatch.setattr("cropi.gradients.batching.supports_prefix_attention", lambda model: False)
    assert_equal_gradients(gradients(model, groups, path="shared"), ours, 1e-6)


def test_nan_in_a_fast_gradient_is_a_disagreement(
    qwen: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(*args: object) -> Tensor:
        return real(*args) * float("nan")

    from cropi.gradients import extractor

    real = extractor.logits_gradient
    monkeypatch.setattr(extractor, "logits_gradient", poisoned)
    with pytest.warns(UserWarning, match="disagrees"):
        gradients(qwen, mixed_groups(2), path="autograd")


@pytest.mark.parametrize(
    ("batch_tokens", "remedy"), [(80, r"lower batch_tokens \(now 80\)"), (1, "use LoRA")]
)
def test_a_batch_that_does_not_fit_in_memory_is_an_input_error(
    qwen: nn.Module, monkeypatch: pytest.MonkeyPatch, batch_tokens: int, remedy: str
) -> None:
    extractor, groups = GradientExtractor(qwen, batch_tokens=batch_tokens), mixed_groups(3)
    extractor.run(groups, [])

    def out_of_memory(*args: object) -> Tensor:
        raise torch.OutOfMemoryError("1 GiB")

    monkeypatch.setattr("cropi.gradients.extractor.forward_logits", out_of_memory)
    with pytest.raises(InputError, match=f"do not fit.*{remedy}.*gradient_checkpointing"):
        extractor.run(groups, [])


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.weight", "model.norm.weight"])
def test_nan_weights_are_an_input_error(qwen: nn.Module, name: str) -> None:
    with torch.no_grad():
        qwen.get_parameter(name)[0] = float("nan")
    with pytest.raises(InputError, match=r"not finite.*check the checkpoint"):
        gradients(qwen, mixed_groups(2))


def test_token_ids_of_another_models_vocabulary_are_an_input_error(qwen: nn.Module) -> None:
    groups = mixed_groups(2)
    groups[1].usable[-1].ids[0] = 64
    with pytest.raises(InputError, match="prompt p1 has token id 64, and the model has 64 token"):
        gradients(qwen, groups)


def test_a_model_that_is_not_on_one_device_is_an_input_error(qwen: nn.Module) -> None:
    offloaded = accelerate.cpu_offload(copy.deepcopy(qwen), torch.device("cpu"))
    spread = copy.deepcopy(qwen)
    spread.model.layers[1].to("meta")
    owners = {"on no device": offloaded, "on cpu and no device": spread}
    for place, model in owners.items():
        for made in (GradientExtractor, LogprobReader):
            with pytest.raises(InputError, match=rf"{place} \(offloaded\).*device_map"):
                made(model)


def test_a_model_without_trainable_parameters_is_an_input_error(qwen: nn.Module) -> None:
    qwen.requires_grad_(False)
    with pytest.raises(InputError, match="no trainable parameter"):
        GradientExtractor(qwen)


def state_of(model: nn.Module) -> tuple:
    flags = [p.requires_grad for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    hooks = [
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for m in model.modules()
    ]
    return flags, modes, hooks, [p.grad for p in model.parameters()]


class Failing:
    """A consumer that raises on its third gradient."""

    def __init__(self) -> None:
        self.left = 3

    def begin(self, index_P: Tensor) -> None:
        pass

    def consume(self, name: str, rows: slice | Tensor, gradient_PRI: Tensor) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyError("the consumer's failure")

    def finish(self) -> None:
        pass


@pytest.mark.parametrize("slow", [False, True])
def test_the_model_is_left_as_it_was_even_after_an_exception(qwen: nn.Module, slow: bool) -> None:
    qwen.train()
    qwen.model.layers[1].eval()
    qwen.model.norm.weight.requires_grad_(False)
    before = state_of(qwen)
    if slow:
        qwen.model.layers[0].self_attn.o_proj.__class__ = OverriddenLinear
    extractor = GradientExtractor(qwen)
    groups = mixed_groups(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(KeyError, match="consumer's failure"):
            extractor.run(groups, [Failing()])
        assert state_of(qwen) == before
        store = GradientStore(extractor, len(groups))
        extractor.run(groups, [store])
    assert state_of(qwen) == before
    actual = [{n: g[i] for n, g in store.gradients.items()} for i in range(3)]
    assert_equal_gradients(actual, [oracle_gradient(qwen, group) for group in groups])


def test_the_callers_groups_are_not_changed(qwen: nn.Module) -> None:
    groups = mixed_groups(3)
    before = copy.deepcopy(groups)
    gradients(qwen, groups)
    for a, b in zip(groups, before, strict=True):
        assert np.array_equal(a.prompt_ids, b.prompt_ids)
        for x, y in zip(a.responses, b.responses, strict=True):
            assert np.array_equal(x.ids, y.ids)
            assert np.array_equal(x.logprobs, y.logprobs)


def test_a_group_whose_every_token_is_clipped_has_gradient_zero(qwen: nn.Module) -> None:
    group = random_group(np.random.default_rng(8), responses=2)
    worse, better = sorted(group.responses, key=lambda r: r.reward)
    worse.logprobs[:], better.logprobs[:] = 0.0, -100.0
    config = ObjectiveConfig(clip=ClipConfig(low=0.01, high=0.01))
    (actual,) = gradients(qwen, [group], config)
    assert not flatten(actual).any()


def test_a_run_of_no_prompts_does_nothing(qwen: nn.Module) -> None:
    report = GradientExtractor(qwen).run([], [])
    assert (report.prompts, report.tokens) == (0, 0)


def test_progress_counts_every_prompt_once(qwen: nn.Module) -> None:
    extractor = GradientExtractor(qwen, batch_tokens=60)
    groups, steps = mixed_groups(7), []
    report = extractor.run(groups, [], steps.append)
    assert sum(steps) == report.prompts == len(groups)


def test_a_runaway_response_beside_short_ones_equals_the_oracle(qwen: nn.Module) -> None:
    rng = np.random.default_rng(3)
    group = random_group(rng, responses=5, longest=4)
    group.responses.append(random_response(rng, 70, 0.5))
    group.responses.append(random_response(rng, 30, 0.9))
    assert_equal_gradients(gradients(qwen, [group], path="shared"), [oracle_gradient(qwen, group)])


@pytest.mark.parametrize("slow", [False, True])
def test_equal_responses_that_were_judged_differently_cancel_exactly(
    qwen: nn.Module, slow: bool
) -> None:
    rng = np.random.default_rng(4)
    same = random_response(rng, 5, 1.0)
    wrong = Response(same.ids, same.logprobs, reward=0.0)
    group = random_group(rng)
    silent = RolloutGroup("q", group.prompt_ids, [same, wrong, wrong], group.sampling)
    if slow:
        qwen.model.layers[0].self_attn.o_proj.__class__ = OverriddenLinear
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        actual = gradients(qwen, [group, silent])
    assert not any(bool(g.any()) for g in actual[1].values())


def test_checkpointing_does_not_turn_dropout_on() -> None:
    model = tiny_model("opt")
    for layer in model.model.decoder.layers:
        layer.dropout = 0.5
    group = mixed_groups(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        actual = gradients(model, group, gradient_checkpointing=True)
    assert_equal_gradients(actual, [oracle_gradient(model, group[0])])


class InPlace(nn.Module):
    """A layer whose output is clamped in place, as OLMo's queries are."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, values: Tensor) -> Tensor:
        return self.inner(values).clamp_(-50, 50)


def test_a_layer_whose_output_changes_in_place_takes_the_slow_path(qwen: nn.Module) -> None:
    attention = qwen.model.layers[0].self_attn
    attention.q_proj = InPlace(attention.q_proj)
    groups = mixed_groups(2)
    with pytest.warns(UserWarning, match="slow"):
        actual = gradients(qwen, groups, path="autograd")
    assert_equal_gradients(actual, [oracle_gradient(qwen, group) for group in groups])
