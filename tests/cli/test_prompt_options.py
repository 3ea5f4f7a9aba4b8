"""Step commands read prompts as a run does: columns, text around them, chat template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cropi.cli.prompt_options import NAMES
from cropi.config import PromptSource
from cropi.rollouts import read_rollouts
from support.chat_model import chat_model
from support.command_line import Command

ONLY_IN_RUNS = {"path", "hub", "subset", "reasoning_gym", "options", "pocket", "levels", "size"}
SHORT = ["--responses", "2", "--max-new-tokens", "2", "--verifier", "exact"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    rows = [{"question": f"{i}+1?", "gold": f"so #### {i + 1}", "id": i} for i in range(4)]
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def shown_to(model: Path, rollouts: Path) -> str:
    """What the model read of the first prompt."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    return str(tokenizer.decode(read_rollouts(rollouts)[0].prompt_ids.tolist()))


GOLD = ["--answer-column", "gold", "--answer-regex", "#### (.+)"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "<s>user:0+1?</s><s>assistant:"),
        (["--chat"], "<s>user:0+1?</s><s>assistant:"),
        (["--no-chat"], "0+1?"),
        (["--no-chat", "--template", "Q: {prompt} A:"], "Q: 0+1? A:"),
        (
            ["--system", "Hi", "--template", "({prompt})"],
            "<s>system:Hi</s><s>user:(0+1?)</s><s>ass",
        ),
        (["--chat-template-kwargs", "{mark: '!'}"], "<s>user:0+1?</s><s>assistant:!"),
        (["--prompt-column", "gold"], "<s>user:so #### 1</s><s>assistant:"),
    ],
)
def test_rollouts_of_a_file_are_of_what_the_options_say(
    cropi: Command, model: Path, pool: Path, tmp_path: Path, options: list[str], text: str
) -> None:
    out = tmp_path / "out.parquet"
    call = ["rollout", "--model", model, "--prompts", pool, "--out", out, *SHORT, *GOLD]
    outcome = cropi(*call, *options)
    outcome.done()
    assert shown_to(model, out).startswith(text)
    remark = "text becomes a user message of the model's chat template"
    by_default = not {"--chat", "--no-chat", "--system"} & set(options)
    assert (remark in outcome.err) == by_default


def test_a_model_without_a_chat_template_gets_the_text(
    cropi: Command, pool: Path, tmp_path: Path
) -> None:
    plain, out = chat_model(tmp_path / "plain", template=None), tmp_path / "out.parquet"
    call = ["rollout", "--model", plain, "--prompts", pool, "--out", out, *SHORT, *GOLD]
    cropi(*call).done()
    assert shown_to(plain, out) == "0+1?"
    cropi(*call, "--chat").refused("has no chat template")


def test_rollouts_training_and_evaluation_see_the_same_prompts(
    cropi: Command, model: Path, pool: Path, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    selection, out = tmp_path / "selection.parquet", tmp_path / "next"
    columns = {"prompt_id": ["0", "1"], "rank": [1, 2], "score": [1.0, 0.5]}
    pq.write_table(pa.table(columns), selection)
    call = ["train", "--model", model, "--prompts", pool, "--selection", selection, "--out", out]
    cropi(*call, *SHORT, *GOLD, "--steps", "1", "--template", "({prompt})").done()
    evaluated = ["evaluate", "--model", model, "--set", f"t={pool}", *SHORT[2:], *GOLD]
    outcome = cropi(*evaluated, "--limit", "2")
    outcome.done()
    assert "text becomes a user message" in outcome.err
    cropi(*evaluated, "--template", "no place").refused("template", "{prompt}")
    cropi(*evaluated, "--chat-template-kwargs", "3").refused("--chat-template-kwargs", "mapping")


def test_every_setting_of_a_file_of_prompts_has_an_option() -> None:
    assert set(NAMES) == set(PromptSource.model_fields) - ONLY_IN_RUNS
