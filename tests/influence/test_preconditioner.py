"""Second moments are assigned to their parameters, and predict what an Adam step does."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from cropi.errors import InputError
from cropi.influence.preconditioner import Preconditioner, PreconditioningConsumer
from cropi.policy import optimizer_state
from cropi.policy.optimizer_state import SecondMoments, second_moments
from support.oracle import Method, oracle_gradient, oracle_objective
from support.tiny_models import VOCABULARY, mixed_groups, tiny_model

EPS = 1e-8
Saved = dict[str, Any]


def train(model: nn.Module, out: Path, **settings: Any) -> Trainer:
    """Three steps of transformers' Trainer on random tokens, saved in `out`/checkpoint-3."""
    tokens = torch.randint(0, VOCABULARY, (12, 20), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": ids, "labels": ids} for ids in tokens]
    arguments = TrainingArguments(
        str(out),
        max_steps=3,
        save_steps=3,
        per_device_train_batch_size=4,
        weight_decay=0.1,
        learning_rate=1e-3,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        **settings,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    return trainer


def live_moments(trainer: Trainer, model: nn.Module) -> dict[str, Tensor]:
    """The running optimizer's moments, looked up by the parameters themselves."""
    state = getattr(trainer.optimizer, "optimizer", trainer.optimizer).state
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return {n: state[p]["exp_avg_sq"] for n, p in trained.items()}


def adapted(model: nn.Module) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "v_proj", "down_proj"]
    return get_peft_model(model, LoraConfig(r=3, target_modules=targets, task_type="CAUSAL_LM"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path, dict[str, Tensor]]:
    """A tiny Qwen2 after three steps, its checkpoint and the moments in memory."""
    model, out = tiny_model("qwen2-tied"), tmp_path_factory.mktemp("trained")
    # A padding token in a prompt would move the objective but have no gradient.
    model.get_input_embeddings().padding_idx = None
    trainer = train(model, out)
    return model.eval(), out / "checkpoint-3", live_moments(trainer, model)


@pytest.fixture
def rewritten(
    trained: tuple[nn.Module, Path, dict[str, Tensor]], tmp_path: Path
) -> Callable[[Callable[[Saved], object]], Path]:
    """A copy of the checkpoint's optimizer with something changed."""

    def rewrite(change: Callable[[Saved], object]) -> Path:
        saved = torch.load(trained[1] / "optimizer.pt", weights_only=True)
        change(saved)
        torch.save(saved, tmp_path / "optimizer.pt")
        return tmp_path

    return rewrite


def assert_same_moments(moments: SecondMoments, expected: dict[str, Tensor]) -> None:
    assert set(moments) == set(expected)
    for name, moment in expected.items():
        assert moments[name].dtype == torch.float32
        assert torch.equal(moments[name], moment.float()), name
        assert torch.allclose(moments.corrected(name), moment.float() / (1 - 0.999**3), rtol=1e-5)
    assert any(moment.any() for moment in expected.values())


def made_of(**tensors: Tensor) -> SecondMoments:
    """Moments after very many steps, when nothing is left to correct."""
    return SecondMoments(tensors, dict.fromkeys(tensors, 10**6), 0.999, EPS, "made up")


@pytest.mark.parametrize("kind", ["qwen2-tied", "qwen3", "gemma", "gpt2", "opt"])
def test_every_moment_is_that_of_the_live_optimizer(kind: str, tmp_path: Path) -> None:
    model = tiny_model(kind)
    trainer = train(model, tmp_path)
    groups = [len(g["params"]) for g in trainer.optimizer.param_groups]
    assert len(groups) == 2
    assert all(groups), "both groups, with and without decay, are distinguished"
    moments = second_moments(tmp_path / "checkpoint-3", tiny_model(kind, seed=1))
    assert_same_moments(moments, live_moments(trainer, model))
    assert (moments.step, moments.beta2, moments.eps) == (3, 0.999, 1e-8)


def test_adapters_find_their_moments_under_the_names_of_the_peft_model(tmp_path: Path) -> None:
    from peft import PeftModel

    tiny_model("qwen2-tied").save_pretrained(tmp_path / "base")
    model = adapted(tiny_model("qwen2-tied"))
    trainer = train(model, tmp_path)
    folder = tmp_path / "checkpoint-3"
    again = PeftModel.from_pretrained(tiny_model("qwen2-tied"), folder, is_trainable=True)
    expected = live_moments(trainer, model)
    assert_same_moments(second_moments(folder, again), expected)
    assert len(expected) == 12
    assert all(".lora_" in name for name in expected)


@pytest.mark.parametrize("foreach", [True, False])
def test_a_single_group_of_a_plain_optimizer_is_read(foreach: bool, tmp_path: Path) -> None:
    model = tiny_model("qwen2-tied")
    expected = plain_adam(model, list(model.parameters()), tmp_path, foreach=foreach)
    assert_same_moments(second_moments(tmp_path, model), expected)


def test_names_that_the_optimizer_saved_are_used(tmp_path: Path) -> None:
    model = tiny_model("qwen2-tied")
    shuffled = sorted(model.named_parameters(), key=lambda item: item[0][::-1])
    expected = plain_adam(model, shuffled, tmp_path)
    assert_same_moments(second_moments(tmp_path, model), expected)


def plain_adam(model: nn.Module, given: Any, out: Path, **settings: Any) -> dict[str, Tensor]:
    """Three steps of torch's AdamW, saved in `out`; returns its moments by name."""
    optimizer = torch.optim.AdamW(given, **settings)
    for seed in range(3):
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    torch.save(optimizer.state_dict(), out / "optimizer.pt")
    return {n: optimizer.state[p]["exp_avg_sq"] for n, p in model.named_parameters()}


def test_groups_of_older_versions_of_transformers_are_recognised(tmp_path: Path) -> None:
    """They gave RMS norms weight decay: the same numbers, other parameters."""
    model = tiny_model("qwen2-tied")
    biases = [p for n, p in model.named_parameters() if "bias" in n]
    others = [p for n, p in model.named_parameters() if "bias" not in n]
    expected = plain_adam(model, [{"params": others}, {"params": biases}], tmp_path)
    assert_same_moments(second_moments(tmp_path, model), expected)


def test_a_model_frozen_after_training_keeps_the_moments_of_what_it_trains(
    trained: tuple[nn.Module, Path, dict[str, Tensor]],
) -> None:
    model, folder, expected = copy.deepcopy(trained[0]), trained[1], trained[2]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1" in name)
    assert_same_moments(second_moments(folder, model), expected)


def test_a_parameter_that_never_had_a_gradient_is_zero(
    trained: tuple[nn.Module, Path, dict[str, Tensor]],
    rewritten: Callable[[Callable[[Saved], object]], Path],
) -> None:
    model, _, expected = trained
    folder = rewritten(lambda saved: saved["state"].pop(2))
    moments = second_moments(folder, model)
    lost = [name for name in moments if moments.steps[name] == 0]
    assert len(lost) == 1
    assert moments[lost[0]].shape == expected[lost[0]].shape
    assert not moments[lost[0]].any()
    scale = Preconditioner(moments).scale(lost[0])
    assert scale.shape == expected[lost[0]].shape
    assert 1 < float(scale.max()) < 1 / EPS / 10


def test_shuffled_moments_are_refused_by_parameter_and_shapes(
    trained: tuple[nn.Module, Path, dict[str, Tensor]],
    rewritten: Callable[[Callable[[Saved], object]], Path],
) -> None:
    def shuffle(saved: Saved) -> None:
        state = saved["state"]
        numbers = sorted(state)
        saved["state"] = dict(zip(numbers, [state[n] for n in reversed(numbers)], strict=True))

    with pytest.raises(
        InputError, match=r"embed_tokens.weight has shape \(64, 32\).*\(\d+,\); give"
    ):
        second_moments(rewritten(shuffle), trained[0])


@pytest.mark.parametrize("other", ["qwen3", "llama-untied", "gpt2"])
def test_moments_of_another_model_are_refused(
    trained: tuple[nn.Module, Path, dict[str, Tensor]], other: str
) -> None:
    with pytest.raises(InputError, match=r"not of this model.*give the model of that"):
        second_moments(trained[1], tiny_model(other))


def test_an_adapter_is_refused_the_moments_of_the_whole_model(
    trained: tuple[nn.Module, Path, dict[str, Tensor]],
) -> None:
    with pytest.raises(InputError, match="not of this model"):
        second_moments(trained[1], adapted(tiny_model("qwen2-tied")))


def test_two_assignments_that_fit_are_refused_as_ambiguous(
    trained: tuple[nn.Module, Path, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    groupings = list(optimizer_state.parameter_groupings(trained[0]))
    exchanged = [list(group) for group in groupings[0]]
    one, other = (f"model.layers.{n}.mlp.up_proj.weight" for n in (0, 1))
    first, second = exchanged[0].index(one), exchanged[0].index(other)
    exchanged[0][first], exchanged[0][second] = other, one
    monkeypatch.setattr(
        optimizer_state, "parameter_groupings", lambda model: [*groupings, exchanged]
    )
    with pytest.raises(InputError, match=rf"2 ways.*{one} \(48, 32\)"):
        second_moments(trained[1], trained[0])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"step": 3, "state1": torch.zeros(2), "qmap1": torch.zeros(2)}, "state1.*qmap1"),
        ({"step": 3, "exp_avg_sq_row": torch.zeros(2)}, r"exp_avg_sq_row \(torch.float32\)"),
        ({"step": 3, "exp_avg_sq": torch.zeros(2, dtype=torch.uint8)}, "torch.uint8"),
        ({"momentum_buffer": torch.zeros(2)}, "momentum_buffer"),
    ],
)
def test_another_optimizer_is_refused_by_the_state_it_keeps(
    trained: tuple[nn.Module, Path, dict[str, Tensor]],
    rewritten: Callable[[Callable[[Saved], object]], Path],
    row: Saved,
    message: str,
) -> None:
    folder = rewritten(lambda saved: saved["state"].update({4: row}))
    with pytest.raises(InputError, match=f"{message}.*adamw_torch"):
        second_moments(folder, trained[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: saved["state"].clear(), "no moments"),
        (lambda saved: saved.pop("param_groups"), "holds state, not"),
        (lambda saved: saved["param_groups"][0].update(eps=1e-6), "different"),
        (lambda saved: saved["state"].update({"model.norm": {}}), "FSDP"),
    ],
)
def test_a_state_that_cannot_be_used_says_why(
    trained: tuple[nn.Module, Path, dict[str, Tensor]],
    rewritten: Callable[[Callable[[Saved], object]], Path],
    change: Callable[[Saved], object],
    message: str,
) -> None:
    with pytest.raises(InputError, match=message):
        second_moments(rewritten(change), trained[0])


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("global_step3", "DeepSpeed"),
        ("optimizer_0", "FSDP"),
        ("optimizer.bin", "FSDP"),
        ("rank0-of-2-optimizer.pt", "sharded"),
        ("model.safetensors", "no optimizer.pt"),
    ],
)
def test_other_formats_are_named(tmp_path: Path, file: str, message: str) -> None:
    (tmp_path / file).touch()
    with pytest.raises(InputError, match=message):
        second_moments(tmp_path, nn.Linear(2, 2))


def test_a_damaged_file_is_an_error_of_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "optimizer.pt").write_bytes(b"no archive")
    with pytest.raises(InputError, match="cannot be read"):
        second_moments(tmp_path, nn.Linear(2, 2))


def test_without_a_floor_the_scale_is_that_of_adam() -> None:
    moments = SecondMoments({"w": torch.tensor([[4.0, 0.0, 1e-6]])}, {"w": 2}, 0.9, EPS)
    roots = torch.tensor([[4.0, 0.0, 1e-6]]).div(1 - 0.9**2).sqrt()
    assert torch.allclose(Preconditioner(moments, floor=0.0).scale("w"), 1 / (roots + EPS))


@pytest.mark.parametrize(("steps", "weight"), [(1, 1 / 1.9), (2, 0.1 / 0.271), (10**6, 0.1)])
def test_the_floor_is_what_the_next_gradient_of_usual_size_would_leave(
    steps: int, weight: float
) -> None:
    """One more step of Adam with gradient g takes v to at least weight * g^2."""
    usual, correction = 0.5, 1 - 0.9**steps
    values = torch.tensor([1.0, 1.0, 0.0, 1e-12]) * correction
    moments = SecondMoments({"w": values}, {"w": steps}, 0.9, EPS)
    smallest = math.sqrt(weight * usual)
    expected = torch.tensor([1.0, 1.0, 1 / smallest, 1 / smallest])
    assert torch.allclose(Preconditioner(moments).scale("w"), expected, rtol=1e-5)


def test_a_floor_is_a_share_of_the_usual_size_of_the_tensor_or_of_all() -> None:
    moments = made_of(w=torch.tensor([4.0, 0.0]), dead=torch.zeros(3))
    preconditioner = Preconditioner(moments, floor=0.5)
    smallest = 0.5 * math.sqrt(2.0)
    assert torch.allclose(preconditioner.scale("w"), torch.tensor([0.5, 1 / smallest]), rtol=1e-5)
    assert torch.allclose(preconditioner.scale("dead"), torch.full((3,), 1 / smallest), rtol=1e-5)


def test_unusable_moments_are_refused() -> None:
    with pytest.raises(InputError, match="all zero"):
        Preconditioner(made_of(w=torch.zeros(3)))
    with pytest.raises(InputError, match="of w are not finite"):
        Preconditioner(made_of(w=torch.tensor([1.0, math.inf])))
    with pytest.raises(InputError, match=r"floor = -1"):
        Preconditioner(made_of(w=torch.ones(3)), floor=-1)
    with pytest.raises(InputError, match=r"did not train 1 of the parameters.*first b"):
        Preconditioner(made_of(a=torch.ones(3))).apply({"b": torch.ones(1, 1)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_directions_are_scaled_in_place(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    moments = made_of(w=torch.rand(2, 3) + 1, s=torch.tensor(4.0))
    given = torch.randn(3, *shape).to(dtype)
    directions = {"w": given.clone(), "s": torch.ones(3, 1, 1, dtype=dtype)}
    scaled_direction = directions["w"]
    Preconditioner(moments).apply(directions)
    expected = given.float() / moments["w"].sqrt().view(shape)
    assert torch.allclose(scaled_direction, expected.to(dtype), rtol=1e-2)
    assert torch.allclose(directions["s"].float(), torch.full((3, 1, 1), 0.5))


class Recorder:
    """A consumer that puts tiles back together, and records what it was given."""

    def __init__(self, shapes: dict[str, tuple[int, int]], prompts: int) -> None:
        self.whole = {name: torch.zeros(prompts, *shape) for name, shape in shapes.items()}
        self.calls: list[str] = []

    def begin(self, index_P: Tensor) -> None:
        self.calls.append("begin")
        self.index_P = index_P

    def consume(self, name: str, rows: slice | Tensor, gradient_PRI: Tensor) -> None:
        self.calls.append(name)
        for index, gradient_RI in zip(self.index_P.tolist(), gradient_PRI, strict=True):
            self.whole[name][index][rows] = gradient_RI

    def finish(self) -> None:
        self.calls.append("finish")


def test_a_wrapped_consumer_sees_scaled_tiles_and_the_others_the_plain_ones() -> None:
    shapes = {"w": (6, 5), "b": (1, 7), "s": (1, 1), "c": (4, 6)}
    given = {"w": (6, 5), "b": (7,), "s": (), "c": (4, 2, 3)}
    preconditioner = Preconditioner(made_of(**{n: torch.rand(s) + 0.1 for n, s in given.items()}))
    recorder = Recorder(shapes, 4)
    consumer = PreconditioningConsumer(recorder, preconditioner)
    gradients = {n: torch.randn(4, *s) for n, s in shapes.items()}
    plain = {n: g.clone() for n, g in gradients.items()}
    for index in ([2, 0, 3], [1]):
        consumer.begin(torch.tensor(index))
        for rows in (slice(0, 4), torch.tensor([5, 4])):
            consumer.consume("w", rows, gradients["w"][index][:, rows])
        for name in ("b", "s", "c"):
            consumer.consume(name, slice(None), gradients[name][index])
        consumer.finish()
    assert recorder.calls == ["begin", "w", "w", "b", "s", "c", "finish"] * 2
    for name, gradient in gradients.items():
        assert torch.equal(gradient, plain[name])
        scale = preconditioner.scale(name).view(shapes[name])
        assert torch.allclose(recorder.whole[name], gradient * scale)


def test_the_identity_distinguishes_moments_and_floors(
    trained: tuple[nn.Module, Path, dict[str, Tensor]],
    rewritten: Callable[[Callable[[Saved], object]], Path],
) -> None:
    model, folder, _ = trained
    other = rewritten(lambda saved: saved["state"][0]["exp_avg_sq"].mul_(2))
    preconditioners = [
        Preconditioner(second_moments(folder, model)),
        Preconditioner(second_moments(folder, model), floor=0.1),
        Preconditioner(second_moments(other, model)),
    ]
    identities = [tuple(sorted(p.identity.items())) for p in preconditioners]
    assert len(set(identities)) == 3
    assert Preconditioner(second_moments(folder, model)).identity == preconditioners[0].identity


def test_an_adam_step_on_a_prompt_gains_what_its_influence_predicts(
    trained: tuple[nn.Module, Path, dict[str, Tensor]],
) -> None:
    """J_V(theta + lr Gamma g(s)) - J_V(theta) = lr <Gamma gbar_V, g(s)>, prompt by prompt."""
    model, folder, _ = trained
    preconditioner = Preconditioner(second_moments(folder, model))
    prompts, targets = mixed_groups(6, seed=4), mixed_groups(3, seed=5)
    direction = mean_gradient(model, targets)
    flat = {name: g.flatten()[None].float() for name, g in direction.items()}
    preconditioner.apply(flat)
    for prompt in prompts:
        gradient = oracle_gradient(model, prompt)
        predicted = sum(float(flat[n][0].double() @ g.flatten()) for n, g in gradient.items())
        step = {n: preconditioner.scale(n) * g for n, g in gradient.items()}
        rate = 1e-2 / float(torch.cat([d.flatten() for d in step.values()]).norm())
        ahead, behind = (objective_of(moved(model, step, r), targets) for r in (rate, -rate))
        assert (ahead - behind) / (2 * rate) == pytest.approx(predicted, rel=1e-3)


def moved(model: nn.Module, step: dict[str, Tensor], rate: float) -> nn.Module:
    double = copy.deepcopy(model).double()
    with torch.no_grad():
        for name, parameter in double.named_parameters():
            parameter += rate * step[name]
    return double


def mean_gradient(model: nn.Module, groups: Any) -> dict[str, Tensor]:
    per_prompt = [oracle_gradient(model, group) for group in groups]
    return {name: torch.stack([g[name] for g in per_prompt]).mean(0) for name in per_prompt[0]}


def objective_of(model: nn.Module, groups: Any) -> float:
    double = copy.deepcopy(model).double()
    with torch.no_grad():
        values = [float(oracle_objective(double, group, Method())) for group in groups]
    return sum(values) / len(values)


def test_without_a_floor_gamma_is_what_a_vanishing_adam_step_adds(
    trained: tuple[nn.Module, Path, dict[str, Tensor]],
) -> None:
    """Steps from the saved optimizer with and without a prompt differ by Gamma g alone.

    Momentum and decay cancel, and so small a gradient does not change v.
    """
    model, folder, _ = trained
    preconditioner = Preconditioner(second_moments(folder, model), floor=0.0)
    gradient = oracle_gradient(model, mixed_groups(1, seed=6)[0])
    real = real_step(model, folder, gradient, 1e-6)
    assert torch.cosine_similarity(real, scaled(gradient, preconditioner), dim=0) > 0.999


def test_with_its_floor_gamma_is_closer_to_a_real_step_than_without_or_than_the_gradient(
    trained: tuple[nn.Module, Path, dict[str, Tensor]],
) -> None:
    """Of a gradient as large as those of training, which changes v."""
    model, folder, _ = trained
    moments = second_moments(folder, model)
    usual = math.sqrt(sum(float(moments.corrected(name).sum()) for name in moments))
    for group in mixed_groups(4, seed=6):
        gradient = oracle_gradient(model, group)
        plain = torch.cat([g.flatten() for g in gradient.values()])
        real = real_step(model, folder, gradient, usual / float(plain.norm()))
        directions = [scaled(gradient, Preconditioner(moments, floor)) for floor in (None, 0.0)]
        floored, bare, without = (
            float(torch.cosine_similarity(real, guess, dim=0)) for guess in (*directions, plain)
        )
        assert floored > bare + 0.02
        assert floored > without + 0.02


def scaled(gradient: dict[str, Tensor], preconditioner: Preconditioner) -> Tensor:
    return torch.cat([(preconditioner.scale(n) * g).flatten() for n, g in gradient.items()])


def real_step(model: nn.Module, folder: Path, gradient: dict[str, Tensor], share: float) -> Tensor:
    """What a share of a gradient changes about the next step of the saved AdamW, as ascent."""
    one, other = (stepped(model, folder, gradient, s) for s in (share, 0.0))
    return torch.cat([(other[name] - one[name]).flatten() for name in gradient])


def stepped(
    model: nn.Module, folder: Path, gradient: dict[str, Tensor], share: float
) -> dict[str, Tensor]:
    """Parameters after one step of the saved AdamW on a share of a gradient, in float64."""
    double = copy.deepcopy(model).double()
    parameters = dict(double.named_parameters())
    decayed = set(Trainer.get_decay_parameter_names(None, double))
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in parameters.items() if n in decayed]},
            {"params": [p for n, p in parameters.items() if n not in decayed]},
        ]
    )
    saved = torch.load(folder / "optimizer.pt", weights_only=True)
    optimizer.load_state_dict(saved)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3  # the schedule of the trainer had run out
    for name, parameter in parameters.items():
        parameter.grad = share * gradient[name].double()
    optimizer.step()
    return {name: p.detach() for name, p in parameters.items()}
