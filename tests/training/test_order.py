"""The order of visits is ours: whole epochs, drawn from the seed, continued across stages."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cropi.training import stage_order


@given(st.integers(1, 20), st.integers(1, 60), st.integers(0, 50), st.integers(0, 9))
def test_no_prompt_is_visited_twice_before_all_are_once(
    count: int, visits: int, offset: int, seed: int
) -> None:
    ids = [str(i) for i in range(count)]
    whole = stage_order(ids, offset + visits, seed)
    assert whole[offset:] == stage_order(ids, visits, seed, offset)
    visits_of = Counter(whole)
    assert max(visits_of.values()) - min(visits_of[i] for i in ids) <= 1


def test_epochs_differ_in_order() -> None:
    ids = [str(i) for i in range(30)]
    visits = stage_order(ids, 60, 0)
    assert visits[:30] != visits[30:]
    assert sorted(visits[:30]) == sorted(visits[30:])
