"""A run reads its prompts from files of any kind, and asks a chat model as its template says."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from cropi.curriculum.loop import run
from cropi.prompts import encode, read_prompts
from cropi.rollouts import read_rollouts
from support.chat_model import chat_model
from support.tiny_runs import tiny_config


def lines(start: int, count: int) -> str:
    rows = [{"input": f"{i}+1?", "label": i + 1} for i in range(start, start + count)]
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_a_run_reads_shards_compressed_files_and_tables_alike(tmp_path: Path) -> None:
    from cropi.policy.loading import load_policy

    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "part-0.jsonl").write_text(lines(0, 6))
    (tmp_path / "pool" / "part-1.jsonl.gz").write_bytes(gzip.compress(lines(4, 8).encode()))
    (tmp_path / "val.csv").write_text("input,label\n21+1?,22\n22+1?,23\n23+1?,24\n")
    (tmp_path / "test.json").write_text('{"data": [{"input": "31+1?", "label": 32}]}')
    model = chat_model(tmp_path / "model")
    overrides = [
        "rollouts.responses=2",
        "rollouts.max_new_tokens=2",
        "selection.strategy=mopps",
        "curriculum={stages: 1, steps_per_stage: 1}",
        f"model.path={model}",
        "prompts.pool=[{path: pool}]",
        "prompts.validation={sums: [{path: val.csv}]}",
        "prompts.test={sums: [{path: test.json, chat: false}]}",
    ]
    directory = run(tiny_config(tmp_path, *overrides), tmp_path)
    pool = read_prompts(directory / "prompts" / "pool.parquet")
    assert [p.answer for p in pool] == [str(i + 1) for i in range(12)]
    assert pool[0].messages == ({"role": "user", "content": "0+1?"},)
    (test,) = read_prompts(directory / "prompts" / "test" / "sums.parquet")
    assert test.prompt == "31+1?"
    notes = json.loads((directory / "prompts" / "notes.json").read_text())["lines"]
    assert any("2 duplicates of the pool left out" in line for line in notes)
    assert any("text becomes a user message" in line for line in notes)
    tokenizer = load_policy(model).tokenizer
    groups = read_rollouts(directory / "rollouts" / "pool.parquet")
    assert [g.prompt_ids.tolist() for g in groups] == [encode(tokenizer, p) for p in pool]
