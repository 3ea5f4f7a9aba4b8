"""Rollout files keep everything, other tools' files are read, and bad rows are refused by name."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cropi.errors import InputError
from cropi.rollouts.rollout_file import (
    read_rollouts,
    read_side_columns,
    rollout_table,
    write_rollouts,
)
from cropi.schema import PolicyIdentity, Response, RolloutGroup, Sampling
from cropi.store.tables import read_scores

SAMPLING = Sampling(temperature=0.7, top_p=0.9, top_k=20, max_new_tokens=12)
FULL = {"temperature": [1.0] * 3, "top_p": [1.0] * 3, "top_k": [0] * 3}
MINIMAL: dict[str, Any] = {
    "prompt_id": ["a", "b", "a"],
    "prompt_ids": [[1, 2], [3], [1, 2]],
    "response_ids": [[4], [5, 6], [7]],
    "logprobs": [[-1.0], [-0.5, -0.25], [-2.0]],
    "reward": [1.0, 0.0, 0.0],
    **FULL,
}


def groups() -> list[RolloutGroup]:
    rng = np.random.default_rng(0)
    statuses = ["ok", "timeout", "error", "ok"]
    return [
        RolloutGroup(
            prompt_id=f"prompt {p}",
            prompt_ids=rng.integers(0, 50, 3 + p).astype(np.int32),
            responses=[
                Response(
                    ids=rng.integers(0, 50, r).astype(np.int32),
                    logprobs=-rng.random(r).astype(np.float32),
                    text=f"text é {r}",
                    finish_reason="length" if r else "stop",
                    reward=0.1 * r if status == "ok" else float("nan"),
                    reward_status=status,  # type: ignore[arg-type]
                )
                for r, status in enumerate(statuses)
            ],
            sampling=SAMPLING,
            policy=PolicyIdentity("model", "abc", 3),
            seed=11,
            exact=p != 1,
        )
        for p in range(3)
    ]


def same(first: RolloutGroup, second: RolloutGroup) -> bool:
    # By text, because a reward of NaN equals nothing.
    return repr(rollout_table([first]).to_pylist()) == repr(rollout_table([second]).to_pylist())


def save(path: Path, columns: dict[str, Any], **types: pa.DataType) -> Path:
    arrays = {name: pa.array(values, types.get(name)) for name, values in columns.items()}
    pq.write_table(pa.table(arrays), path)
    return path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    write_rollouts(path, groups(), {"cropi.inputs_fingerprint": "x"})
    back = read_rollouts(path)
    for written, read in zip(groups(), back, strict=True):
        assert repr(read.responses) == repr(written.responses)
        assert (read.sampling, read.policy, read.seed, read.exact) == (
            written.sampling,
            written.policy,
            written.seed,
            written.exact,
        )
        np.testing.assert_array_equal(read.prompt_ids, written.prompt_ids)
        assert read.responses[1].ids.flags.writeable


def test_equal_groups_give_equal_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "1.parquet", tmp_path / "2.parquet"
    write_rollouts(first, groups())
    write_rollouts(second, read_rollouts(first))
    assert first.read_bytes() == second.read_bytes()


def with_optional_fields() -> list[RolloutGroup]:
    first, second, third = groups()
    for response in first.responses[1:]:
        response.loss_mask = (np.arange(len(response.ids)) % 2 == 0).astype(np.uint8)
    second.responses[3].policy_versions = np.array([4, 4, 5], np.int32)
    third.logprob_mode = "before_top_p"
    return [first, second, third]


def test_optional_fields_are_read_back_and_survive_a_rewrite(tmp_path: Path) -> None:
    first, second = tmp_path / "1.parquet", tmp_path / "2.parquet"
    write_rollouts(first, with_optional_fields())
    back = read_rollouts(first)
    assert all(same(a, b) for a, b in zip(back, with_optional_fields(), strict=True))
    assert [r.loss_mask is None for r in back[0].responses] == [True, False, False, False]
    assert back[0].responses[3].loss_mask is not None
    assert back[0].responses[3].loss_mask.dtype == np.uint8
    assert back[0].responses[3].loss_mask.tolist() == [1, 0, 1]
    assert back[1].responses[3].policy_versions is not None
    assert back[1].responses[3].policy_versions.dtype == np.int32
    assert [group.logprob_mode for group in back] == ["processed", "processed", "before_top_p"]
    assert read_side_columns(first) is None
    write_rollouts(second, back)
    assert first.read_bytes() == second.read_bytes()


def test_only_unmasked_tokens_count() -> None:
    group = with_optional_fields()[0]
    assert [r.tokens for r in group.responses] == [0, 1, 1, 2]
    assert group.responses[3].sampled.tolist() == [True, False, True]
    assert group.tokens == 4
    assert len(group.usable) == 1
    group.responses[3].loss_mask = np.zeros(3, np.uint8)
    assert group.usable == []


@pytest.mark.parametrize("absent", [None, float("nan"), float("inf"), 7.0])
def test_masked_tokens_need_no_logprob_and_read_as_zero(
    tmp_path: Path, absent: float | None
) -> None:
    columns = {
        **MINIMAL,
        "logprobs": [[-1.0], [absent, -0.25], [-2.0]],
        "loss_mask": [[True], [False, True], None],
        "reward_status": ["ok"] * 3,
    }
    response = read_rollouts(save(tmp_path / "r.parquet", columns))[1].responses[0]
    assert response.logprobs.tolist() == [0.0, -0.25]
    assert response.sampled.tolist() == [False, True]


def test_row_order_is_the_response_index_and_groups_keep_their_first_appearance(
    tmp_path: Path,
) -> None:
    path = tmp_path / "r.parquet"
    write_rollouts(path, groups())
    table = pq.read_table(path)
    rows = np.random.default_rng(1).permutation(table.num_rows)
    pq.write_table(table.take(pa.array(rows)), path)
    seen = list(dict.fromkeys(table["prompt_id"].to_pylist()[r] for r in rows))
    back = read_rollouts(path)
    assert [group.prompt_id for group in back] == seen
    by_id = {group.prompt_id: group for group in groups()}
    assert all(same(group, by_id[group.prompt_id]) for group in back)


def test_wide_types_of_other_tools_are_cast(tmp_path: Path) -> None:
    path = save(
        tmp_path / "r.parquet",
        {**MINIMAL, "prompt_id": [7, 8, 7], "reward": [1, 0, 0]},
        prompt_ids=pa.large_list(pa.int64()),
        response_ids=pa.list_(pa.uint32()),
        logprobs=pa.large_list(pa.float64()),
        reward=pa.int8(),
        temperature=pa.float32(),
        top_k=pa.int64(),
    )
    first, second = read_rollouts(path)
    assert [first.prompt_id, second.prompt_id] == ["7", "8"]
    assert first.prompt_ids.dtype == np.int32
    assert first.responses[0].logprobs.dtype == np.float32
    assert first.rewards.tolist() == [1.0, 0.0]
    assert second.responses[0].ids.tolist() == [5, 6]


def test_several_row_groups_and_slices_read_as_one(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    pq.write_table(rollout_table(groups()).slice(4), path, row_group_size=3)
    assert all(same(a, b) for a, b in zip(read_rollouts(path), groups()[1:], strict=True))


def test_missing_sampling_columns_mean_the_models_own_distribution_with_one_warning(
    tmp_path: Path,
) -> None:
    bare = {name: values for name, values in MINIMAL.items() if name not in ("top_p", "top_k")}
    path = save(tmp_path / "r.parquet", bare)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        back = read_rollouts(path)
    assert len(caught) == 1
    assert "lacks top_p, top_k" in str(caught[0].message)
    assert back[0].sampling == Sampling()


def test_a_missing_status_is_ok_where_the_reward_is_finite(tmp_path: Path) -> None:
    path = save(tmp_path / "r.parquet", {**MINIMAL, "reward": [1.0, None, float("nan")]})
    first, second = read_rollouts(path)
    assert [r.reward_status for r in first.responses] == ["ok", "error"]
    assert second.responses[0].reward_status == "error"


def test_nan_logprobs_are_fine_where_the_response_does_not_count(tmp_path: Path) -> None:
    columns = {
        **MINIMAL,
        "logprobs": [[-1.0], [float("nan")] * 2, [-2.0]],
        "reward": [1.0, None, 0.0],
        "reward_status": ["ok", "timeout", "ok"],
    }
    assert read_rollouts(save(tmp_path / "r.parquet", columns))[1].usable == []


def test_unknown_columns_survive_a_rewrite(tmp_path: Path) -> None:
    path = save(
        tmp_path / "r.parquet",
        {**MINIMAL, "response_index": [5, 0, 2], "judge": ["x", "y", "z"], "notes": [[1], [], [2]]},
    )
    side = read_side_columns(path)
    assert side is not None
    out = tmp_path / "again.parquet"
    write_rollouts(out, list(reversed(read_rollouts(path))), side_columns=side)
    table = pq.read_table(out)
    assert table["prompt_id"].to_pylist() == ["b", "a", "a"]
    assert table["response_ids"].to_pylist() == [[5, 6], [7], [4]]
    assert table["judge"].to_pylist() == ["y", "z", "x"]
    assert table["notes"].to_pylist() == [[], [2], [1]]


def test_a_file_of_known_columns_has_no_side_table(tmp_path: Path) -> None:
    assert read_side_columns(save(tmp_path / "r.parquet", MINIMAL)) is None


NAN = float("nan")
OK = {"reward_status": ["ok"] * 3}
BAD = {
    "lengths": (
        {"logprobs": [[-1.0], [-1.0], [-2.0]]},
        "row 1, column logprobs: differs in length",
    ),
    "negative id": (
        {"response_ids": [[4], [5, -6], [7]]},
        "row 1, column response_ids: .*negative",
    ),
    "prompt differs": ({"prompt_ids": [[1, 2], [3], [1, 9]]}, "row 2, column prompt_ids: differs"),
    "empty prompt": ({"prompt_ids": [[1, 2], [], [1, 2]]}, "row 1, column prompt_ids: is empty"),
    "sampling differs": ({"temperature": [1.0, 1.0, 0.5]}, "row 2, column temperature"),
    "NaN logprob": (
        {"logprobs": [[NAN], [-1.0, -1.0], [-2.0]], **OK},
        "row 0, column logprobs: .*NaN",
    ),
    "null logprob": (
        {"logprobs": [[-1.0], [None, -1.0], [-2.0]], "loss_mask": [[1], [1, 0], [1]], **OK},
        "row 1, column logprobs: .*null",
    ),
    "null list": ({"response_ids": [[4], None, [7]]}, "row 1, column response_ids: is null"),
    "null in list": ({"response_ids": [[4], [5, None], [7]]}, "row 1, column response_ids: .*null"),
    "null id": ({"prompt_id": ["a", None, "a"]}, "row 1, column prompt_id: is null"),
    "null temperature": ({"temperature": [1.0, None, 1.0]}, "row 1, column temperature: is null"),
    "status": (
        {"reward_status": ["ok", "wrong", "ok"]},
        "row 1, column reward_status: wrong is not one of ok, timeout, error",
    ),
    "NaN reward": ({"reward": [1.0, NAN, 0.0], **OK}, "row 1, column reward: is NaN"),
    "null reward": ({"reward": [1.0, None, 0.0], **OK}, "row 1, column reward: is NaN"),
    "type": ({"response_ids": ["4", "5 6", "7"]}, "column response_ids: string cannot be read"),
    "fractions": (
        {"response_ids": [[4.5], [5.0, 6.0], [7.0]]},
        "column response_ids: .*cannot be read",
    ),
    "doubled": ({"response_index": [0, 0, 0]}, "row 2, column response_index: 0 appears twice"),
    "temperature": (
        {"temperature": [1.0, 0.0, 1.0]},
        "row 1, column temperature: 0.0 is not within 0.001 and 1000",
    ),
    "top_p": ({"top_p": [1.0, 1.5, 1.0]}, r"row 1, column top_p: 1.5 is not in \(0, 1\]"),
    "mask length": (
        {"loss_mask": [[1], [1], [0]]},
        "row 1, column loss_mask: differs in length from response_ids; give one value per token",
    ),
    "mask value": (
        {"loss_mask": [[1], [0, 2], None]},
        "row 1, column loss_mask: holds a value other than 0 and 1",
    ),
    "negative mask": ({"loss_mask": [[1], None, [-1]]}, "row 2, column loss_mask: holds a value"),
    "null in mask": ({"loss_mask": [[1], [0, None], [1]]}, "row 1, column loss_mask: .*null"),
    "version length": (
        {"policy_versions": [[3], None, []]},
        "row 2, column policy_versions: differs in length from response_ids; give one version",
    ),
    "mode": (
        {"logprob_mode": ["raw", "cooked", "raw"]},
        "row 1, column logprob_mode: cooked is not one of processed, raw, before_top_p, recomputed",
    ),
    "mode differs": (
        {"logprob_mode": ["processed", "raw", "recomputed"]},
        "row 2, column logprob_mode: differs from row 0 of the same prompt_id",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named_with_file_row_and_column(tmp_path: Path, name: str) -> None:
    change, message = BAD[name]
    path = save(tmp_path / "bad.parquet", {**MINIMAL, **change})
    with pytest.raises(InputError, match=message) as caught:
        read_rollouts(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "column", ["prompt_id", "prompt_ids", "response_ids", "logprobs", "reward"]
)
def test_a_missing_required_column_is_named(tmp_path: Path, column: str) -> None:
    path = save(tmp_path / "bad.parquet", {k: v for k, v in MINIMAL.items() if k != column})
    with pytest.raises(InputError, match=f"lacks the column {column}"):
        read_rollouts(path)


def test_an_empty_table_and_files_that_are_not_parquet_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.parquet"
    pq.write_table(rollout_table(groups()).slice(0, 0), empty)
    with pytest.raises(InputError, match="has no rows"):
        read_rollouts(empty)
    text = tmp_path / "text.parquet"
    text.write_text("no parquet")
    with pytest.raises(InputError, match="not a readable Parquet"):
        read_rollouts(text)
    with pytest.raises(InputError, match="does not exist"):
        read_rollouts(tmp_path / "nowhere.parquet")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.ndjson", "a.jsonl.zst"])
def test_rollouts_that_are_no_table_are_told_what_reads_them(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text('{"prompt": "q", "response": "a"}\n')
    with pytest.raises(InputError, match=r"is not a readable Parquet.*cropi rank"):
        read_rollouts(path)
    with pytest.raises(InputError, match=r"is not a readable Parquet") as caught:
        read_scores(path)
    assert "cropi rank" not in str(caught.value)


def test_reading_rollouts_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, cropi.rollouts; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_runs_missing_rollouts_of_the_pool_are_named_with_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    asked = tmp_path / "rollouts" / "pool.parquet"
    with pytest.raises(InputError, match=r"pool.parquet does not exist: .* `cropi run`"):
        read_rollouts(asked)
    sampled = tmp_path / "arms" / "cropi" / "stages" / "0" / "rollouts" / "pool.parquet"
    sampled.parent.mkdir(parents=True)
    sampled.touch()
    with pytest.raises(InputError, match=rf"only the part of its pool .*; give {sampled}"):
        read_rollouts(asked)
