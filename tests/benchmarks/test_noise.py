"""Wrong answers and wrong verdicts: as many and where they should be, and always the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import noise
import pytest
from hypothesis import given
from hypothesis import strategies as st
from noise import (
    FLIP_SHARE,
    commonest_wrong,
    even_shares,
    flipped,
    main,
    pool_of,
    with_wrong_answers,
)

from cropi.config import VerifiersConfig, load_config
from cropi.errors import InputError
from cropi.pocket.tasks import SKILLS, rows
from cropi.schema import Prompt
from cropi.verifiers import Judge
from cropi.verifiers.exact import ExactVerifier

NOISE = Path(noise.__file__)
SLIPS = ("", "0", "999", "a", "x y")


def pairs(split: str) -> list[tuple[Prompt, str]]:
    """Prompts of every skill with their answer and with responses that are (mostly) wrong."""
    prompts = [
        Prompt(row["prompt_id"], row["answer"], row["source"], row["prompt"], extra=row["extra"])
        for row in rows(split, per_skill=60)
    ]
    return [(p, response) for p in prompts for response in (p.answer, *SLIPS)]


def small_pool(limit: int) -> list[Prompt]:
    return pool_of(load_config("pocket", [f"prompts.limit={limit}"]), seed=0)


def verdicts(function: str, items: list[tuple[Prompt, str]]) -> list[float]:
    with Judge(VerifiersConfig(default=function)) as judge:
        judge.check([prompt for prompt, _ in items])
        judged_items = judge.judge(items)
    assert {verdict.status for verdict in judged_items} == {"ok"}
    return [verdict.reward for verdict in judged_items]


@pytest.fixture(scope="module")
def judged() -> dict[str, list[float]]:
    return {
        f"{split} {name}": verdicts(function, pairs(split))
        for split in ("pool", "validation", "test")
        for name, function in (("exact", "exact"), ("flipped", f"{NOISE}:flipped"))
    }


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_three_in_ten_verdicts_on_pool_prompts_are_flipped(
    judged: dict[str, list[float]], reward: float
) -> None:
    both = list(zip(judged["pool exact"], judged["pool flipped"], strict=True))
    seen = [after for before, after in both if before == reward]
    # Three standard deviations of 720 draws are 0.05.
    assert len(seen) >= 700
    assert sum(after != reward for after in seen) / len(seen) == pytest.approx(FLIP_SHARE, abs=0.05)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_other_splits_are_judged_as_exact_judges(
    judged: dict[str, list[float]], split: str
) -> None:
    assert judged[f"{split} flipped"] == judged[f"{split} exact"]


def test_a_pair_has_one_verdict_in_every_order_and_process(
    judged: dict[str, list[float]],
) -> None:
    items = pairs("pool")[::-1]
    columns = zip(*((p.content, text, p.answer) for p, text in items), strict=True)
    here = flipped(*(list(column) for column in columns))
    assert here == judged["pool flipped"][::-1]
    alone = [flipped([p.content], [text], [p.answer])[0] for p, text in items]
    assert alone == here


def test_outer_whitespace_changes_no_verdict() -> None:
    for prompt, text in pairs("pool")[:60]:
        plain, padded = (
            flipped([prompt.content], [response], [prompt.answer])
            for response in (text, f" {text}\n")
        )
        assert plain == padded


def test_where_nothing_is_flipped_verdicts_are_the_exact_verifiers() -> None:
    for prompt, text in pairs("test"):
        assert flipped([prompt.content], [text], [prompt.answer]) == [ExactVerifier()(prompt, text)]


def test_a_verifier_process_needs_no_torch() -> None:
    code = f"import runpy, sys; runpy.run_path({str(NOISE)!r}); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_commonest_wrong_response_is_taken() -> None:
    answers = {"a": "1", "b": "1", "c": "1", "d": "1"}
    sampled = {
        "a": ["1", "1", "1", "2", "3", "3"],
        "b": ["1", " 1 ", ""],
        "c": ["9", "8", "1"],
        "d": ["", "", "5 "],
    }
    assert commonest_wrong(answers, sampled) == {"a": "3", "c": "8", "d": "5"}


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.data())
def test_shares_are_as_even_as_capacities_allow(sizes: list[int], data: st.DataObject) -> None:
    capacities = {str(place): size for place, size in enumerate(sizes)}
    total = data.draw(st.integers(0, sum(sizes)))
    shares = even_shares(total, capacities)
    assert list(shares) == list(capacities)
    assert sum(shares.values()) == total
    assert all(0 <= shares[name] <= size for name, size in capacities.items())
    open_shares = [shares[name] for name, size in capacities.items() if shares[name] < size]
    assert all(max(shares.values()) - share <= 1 for share in open_shares)


def test_a_skill_short_of_wrong_responses_leaves_its_share_to_the_others() -> None:
    pool = small_pool(600)
    by_skill = Counter(p.extra["skill"] for p in pool)
    few = [p.prompt_id for p in pool if p.extra["skill"] == "max"][:3]
    wrong = {p.prompt_id: "?" for p in pool if p.extra["skill"] != "max" or p.prompt_id in few}
    table = with_wrong_answers(pool, wrong, 0.3, seed=0)
    wrong_counts = Counter(row["extra"]["skill"] for row in table if row["extra"]["wrong"])
    assert wrong_counts.total() == 180
    assert wrong_counts["max"] == 3
    assert {wrong_counts[skill] for skill in by_skill if skill != "max"} <= {16, 17}
    assert all((row["answer"] == "?") == row["extra"]["wrong"] for row in table)


def test_the_seed_chooses_the_prompts() -> None:
    pool = small_pool(200)
    wrong = {p.prompt_id: "?" for p in pool}
    first, again, other = (with_wrong_answers(pool, wrong, 0.3, seed) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize(("share", "asked"), [(0.5, "10 wrong answers"), (-0.5, "-10 wrong")])
def test_a_share_that_cannot_be_had_is_named(share: float, asked: str) -> None:
    pool = small_pool(20)
    wrong = {p.prompt_id: "?" for p in pool[:9]}
    with pytest.raises(InputError, match=f"share {share} asks for {asked}.* 9 of 20 prompts"):
        with_wrong_answers(pool, wrong, share, seed=0)


def test_the_script_writes_a_pool_with_the_models_own_mistakes(tmp_path: Path) -> None:
    files = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for file in files:
        main(["--out", str(file), "--responses", "4", "prompts.limit=60"])
    assert files[0].read_bytes() == files[1].read_bytes()
    table = [json.loads(line) for line in files[0].read_text().splitlines()]
    pool = small_pool(60)
    assert [(row["prompt_id"], row["prompt"]) for row in table] == [
        (p.prompt_id, p.content) for p in pool
    ]
    wrong_rows = [row for row in table if row["extra"]["wrong"]]
    assert len(wrong_rows) == 18
    right = {row["prompt"]: SKILLS[row["extra"]["skill"]].answer(row["prompt"]) for row in table}
    assert all((row["answer"] != right[row["prompt"]]) == row["extra"]["wrong"] for row in table)
