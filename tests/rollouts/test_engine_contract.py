"""What a run relies on in every engine; the real one and the fake one of other tests keep it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from cropi.policy.loading import Policy, load_policy
from cropi.rollouts import RolloutEngine, load_engine
from cropi.rollouts.engines.engine import Completion
from cropi.rollouts.settings import EngineChoice
from cropi.schema import Sampling
from support.fake_server import FakeServer, serving
from support.fakes import ENGINE

PROMPTS = ["s3211=", "k1:123=", "a12+34="]


@pytest.fixture(scope="module")
def pocket() -> Policy:
    return load_policy("pocket", device="cpu")


@pytest.fixture(params=["transformers", ENGINE, "server"], ids=["transformers", "fake", "server"])
def engine(request: pytest.FixtureRequest, pocket: Policy) -> Iterator[RolloutEngine]:
    with serving(FakeServer()) as server:
        url = {"url": server.url} if request.param == "server" else {}
        yield load_engine(EngineChoice.of(request.param, **url), pocket)


def sample(
    engine: RolloutEngine, pocket: Policy, seed: int = 3, tokens: int = 8
) -> list[list[Completion]]:
    rows = [pocket.tokenizer(text)["input_ids"] for text in PROMPTS]
    return engine.generate(rows, Sampling(max_new_tokens=tokens), 5, seed)


def test_every_prompt_gets_its_responses_in_order(engine: RolloutEngine, pocket: Policy) -> None:
    assert [len(group) for group in sample(engine, pocket)] == [5, 5, 5]
    assert engine.context == pocket.context


def test_ids_and_logprobs_go_together(engine: RolloutEngine, pocket: Policy) -> None:
    for completion in (c for group in sample(engine, pocket) for c in group):
        assert completion.ids.dtype == np.int32
        assert completion.logprobs.dtype == np.float32
        assert completion.ids.shape == completion.logprobs.shape
        assert np.all(completion.logprobs <= 0)


@pytest.mark.parametrize("tokens", [1, 2, 8])
def test_a_response_ends_with_eos_or_at_the_limit(
    engine: RolloutEngine, pocket: Policy, tokens: int
) -> None:
    for completion in (c for group in sample(engine, pocket, tokens=tokens) for c in group):
        stopped = int(completion.ids[-1]) in pocket.eos_token_ids
        assert completion.finish_reason == ("stop" if stopped else "length")
        assert 1 <= len(completion.ids) <= tokens
        assert stopped or len(completion.ids) == tokens


def test_equal_calls_give_equal_results_and_another_seed_does_not(
    engine: RolloutEngine, pocket: Policy
) -> None:
    def drawn(seed: int) -> list[tuple[list[int], list[float]]]:
        groups = sample(engine, pocket, seed)
        return [(c.ids.tolist(), c.logprobs.tolist()) for group in groups for c in group]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
