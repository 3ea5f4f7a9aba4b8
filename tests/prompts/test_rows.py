"""Chats, tools, begun answers and columns as people write them; what is a guess is told."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import cropi
from cropi.config import PromptSource
from cropi.errors import InputError
from cropi.prompts import deduplicate, encode, load_source, read_prompts, write_prompts
from cropi.prompts.formats import to_prompt
from cropi.prompts.row_columns import RowNotes
from cropi.schema import Prompt
from cropi.training.warmup import supervised_row
from support.chat_model import chat_model

USER = {"role": "user", "content": "2+2?"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
TOOL_CHAT = [
    USER,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "name": "add", "content": "4"},
]


def convert(row: dict[str, Any], notes: RowNotes | None = None, **settings: Any) -> Prompt:
    source = PromptSource(path="x.jsonl", **settings)
    return to_prompt(row, source, "x.jsonl row 1", "x", notes=notes)


def noted(row: dict[str, Any], **settings: Any) -> list[str]:
    notes = RowNotes("x.jsonl")
    convert(row, notes, **settings)
    return notes.lines()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cropi.load_policy(chat_model(tmp_path_factory.mktemp("chat"))).tokenizer


def decoded(tokenizer: Any, prompt: Prompt) -> str:
    return str(tokenizer.decode(encode(tokenizer, prompt)))


@pytest.mark.parametrize("answer", ["expected_answer", "final_answer", "label", "Expected Answer"])
@pytest.mark.parametrize("question", ["input", "query", "Problem", "QUESTION"])
def test_columns_of_the_usual_names_are_recognised(question: str, answer: str) -> None:
    prompt = convert({question: "2+2?", answer: 4})
    assert (prompt.prompt, prompt.answer) == ("2+2?", "4")


def test_a_setting_may_name_what_is_inside_a_column() -> None:
    row = {"meta": {"ask": {"text": "2+2?"}}, "extra_info": {"gold": "4"}, "answer": "no"}
    prompt = convert(row, prompt="meta.ask.text", answer="extra_info.gold")
    assert (prompt.prompt, prompt.answer) == ("2+2?", "4")
    with pytest.raises(InputError, match=r"no answer in column extra_info\.golden"):
        convert(row, prompt="meta.ask.text", answer="extra_info.golden")


@pytest.mark.parametrize(
    "row",
    [
        {"answer": "4", "final_answer": "5"},
        {"answer": "4", "solution": "2+2 gives 44"},
        {"answer": "4", "target": "4.5"},
        {"reward_model": {"ground_truth": "4"}, "answer": "14"},
    ],
)
def test_columns_with_different_answers_are_told(row: dict[str, Any]) -> None:
    (line,) = noted({"question": "2+2?", **row})
    assert "holds another answer than" in line
    assert ": 1 row (the first: x.jsonl row 1" in line
    assert "name the right one with `answer`" in line
    assert noted({"question": "2+2?", **row}, answer="answer") == []


@pytest.mark.parametrize(
    "row",
    [
        {"answer": "4", "solution": "2+2 is 4, so \\boxed{4}"},
        {"answer": 4, "label": 4.0},
        {"answer": "So it is\n#### 4", "final_answer": "4"},
        {"reward_model": {"ground_truth": "4"}, "ground_truth": " 4 "},
    ],
)
def test_columns_that_agree_are_not_told(row: dict[str, Any]) -> None:
    assert noted({"question": "2+2?", **row}) == []


def test_different_questions_and_answers_from_several_columns_are_told(tmp_path: Path) -> None:
    (line,) = noted({"prompt": "2+2?", "question": "3+3?", "answer": "4"})
    assert "column 'question' holds another question than 'prompt'" in line
    assert noted({"prompt": "Solve: 2+2?", "question": "2+2?", "answer": "4"}) == []
    rows = [{"question": "a?", "answer": "1"}, {"question": "b?", "solution": "2"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(UserWarning, match=r"several columns, answer \(1 row\), solution \(1 row\)"):
        cropi.load_prompts(tmp_path / "x.jsonl")


@pytest.mark.parametrize(
    ("solution", "warned"),
    [
        ("She has 2 and buys 2 more, so 4 in all.\nCheck: 2+3=5", True),
        ("Add both numbers to get 7. Indeed 7 minus 3 leaves 4 again.", True),
        ("Add both numbers to get 7. Check: 7-3=4. The answer is 7.", False),
        ("Add both numbers, which are three and four.\n#### 7\nCheck: 7-3=4", False),
        ("Hence \\boxed{7}. One may check that 7 - 3 = 4.", False),
        ("12 metres per second", False),
        ("\\begin{cases} x = 1 \\\\ y = 2 \\end{cases}", False),
    ],
)
def test_a_worked_solution_without_a_marked_result_is_told(solution: str, warned: bool) -> None:
    lines = noted({"problem": "q", "solution": solution})
    assert any("worked solution in column 'solution'" in line for line in lines) == warned
    assert noted({"problem": "q", "solution": solution}, answer_regex=r"(\d)") == []


def test_text_parts_are_joined_and_empty_cells_of_arrow_ignored() -> None:
    parts = [
        {"type": "text", "text": "What is ", "image_url": None},
        {"type": "input_text", "text": "2+2?"},
    ]
    prompt = convert(
        {"messages": [{"role": "user", "content": parts, "name": None}], "answer": "4"}
    )
    assert prompt.messages == ({"role": "user", "content": "What is 2+2?"},)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        {"prompt": [{"role": "user", "content": [{"type": "audio", "audio": "x.wav"}]}]},
        {"prompt": "what is on it?", "image": {"bytes": b"x", "path": None}},
        {"prompt": "what is on it?", "images": ["a.png"]},
        {"prompt": "what is on it?", "image_url": "http://example.org/a.png"},
        {"prompt": "what is on it?", "Image_1": "a.png"},
        {"prompt": "what is said?", "Audio": "a.wav"},
        {"prompt": "what is on it?", "figure": {"bytes": b"x"}},
    ],
)
def test_images_and_sounds_are_refused_in_one_sentence(row: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"x\.jsonl row 1.*(image|sound|audio)") as caught:
        convert({**row, "answer": "4"})
    assert "\n" not in str(caught.value)


def test_what_a_question_does_not_show_is_told() -> None:
    (line,) = noted({"prompt": "<image>\nHow many?", "answer": "4"})
    assert "the question has <image> where an image or a sound was" in line
    (line,) = noted({"question": "Which one?", "choices": ["red", "blue"], "answer": 1})
    assert "column 'choices' has choices that the question does not show" in line
    options = {"A": "red", "B": "blue"}
    assert noted({"question": "A: red or B: blue?", "options": options, "answer": "A"}) == []


def test_rows_with_empty_columns_for_images_are_text() -> None:
    assert convert({"prompt": "q", "answer": "4", "image": None, "images": []}).prompt == "q"


def test_tool_calls_their_results_and_tools_reach_the_chat_template(tokenizer: Any) -> None:
    prompt = convert({"messages": TOOL_CHAT, "answer": "4", "tools": json.dumps([TOOL])})
    assert decoded(tokenizer, prompt) == (
        "[tools:add ]<s>user:2+2?</s><s>assistant:(add 2)</s><s>tool:4</s><s>assistant:"
    )
    asked = convert({"question": "2+2?", "answer": "4", "tools": [{**TOOL, "strict": None}]})
    assert decoded(tokenizer, asked) == "[tools:add ]<s>user:2+2?</s><s>assistant:"
    assert asked.tools == (TOOL,)


def test_tools_that_a_template_does_not_show_are_told(tmp_path: Path) -> None:
    blind = cropi.load_policy(chat_model(tmp_path)).tokenizer
    blind.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.warns(UserWarning, match="does not show tools"):
        encode(blind, convert({"prompt": [USER], "answer": "4", "tools": [TOOL]}))


def test_the_same_chat_with_other_tools_is_another_prompt() -> None:
    other = {"type": "function", "function": {"name": "subtract"}}
    rows = [{"prompt": [USER], "answer": "4", "tools": tools} for tools in ([TOOL], [other], [])]
    prompts = [convert(row) for row in rows]
    assert len({p.prompt_id for p in prompts}) == 3
    assert deduplicate(prompts, "x")[1] == 0


def test_chats_with_tools_survive_being_stored(tmp_path: Path) -> None:
    rows = [
        {"messages": TOOL_CHAT, "answer": "4", "tools": [TOOL]},
        {"prompt": "2+2?", "answer": "4"},
        {"prompt": [USER], "answer": "4"},
    ]
    prompts = [convert(row) for row in rows]
    write_prompts(tmp_path / "p.parquet", prompts)
    assert read_prompts(tmp_path / "p.parquet") == prompts
    assert load_source(PromptSource(path=str(tmp_path / "p.parquet")), 0) == prompts


def test_an_answer_that_is_begun_is_continued(tokenizer: Any) -> None:
    begun = {"role": "assistant", "content": "Let me think:"}
    row = {"prompt": [USER, begun], "answer": "4"}
    prompt = convert(row)
    assert decoded(tokenizer, prompt) == "<s>user:2+2?</s><s>assistant:Let me think:"
    assert supervised_row(prompt, " {answer}") == {
        "prompt": [USER],
        "completion": [{"role": "assistant", "content": "Let me think: 4"}],
    }
    (line,) = noted(row)
    assert "the last message is the assistant's, and responses continue it: 1 row" in line
    assert convert(row, template="Q: {prompt}").messages == ({**USER, "content": "Q: 2+2?"}, begun)


@pytest.mark.parametrize(
    "begun", ["4", "It is 4.", "\\boxed{4} is it, I think", "so\n#### 4\nDone", "**4**"]
)
def test_a_begun_answer_that_gives_the_answer_away_is_refused(begun: str) -> None:
    row = {"messages": [USER, {"role": "assistant", "content": begun}], "answer": "4"}
    with pytest.raises(InputError, match=r"last message is the assistant's and gives the answer"):
        convert(row)


def test_a_template_that_cannot_show_a_chat_is_the_users_error(tokenizer: Any) -> None:
    strict = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InputError, match=r"cannot show prompt .* \(roles must alternate\)"):
        encode(strict, convert({"prompt": [USER, USER], "answer": "4"}))
    strict.chat_template = "{% for m in messages %}{{ m.role }}{% endfor %}"
    begun = {"role": "assistant", "content": "I think"}
    with pytest.raises(InputError, match=r"cannot show prompt"):
        encode(strict, convert({"prompt": [USER, begun], "answer": "4"}))


BAD_CHATS: list[tuple[dict[str, Any], str]] = [
    ({"messages": TOOL_CHAT[:2]}, r"calls tools, and their results are missing"),
    ({"messages": [USER], "tools": ["calculator"]}, r"column 'tools', holds \['calculator'\]"),
    ({"messages": [USER], "tools": "{broken"}, r"column 'tools', holds '\{broken'"),
    ({"messages": [{**USER, "weight": 1}]}, r"nothing but name, tool_call_id"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, r"content part of type"),
    ({"messages": [{"role": "system", "content": "Be brief."}]}, r"holds an empty prompt"),
    ({"messages": "[{'role': 'user', 'content': 'q'}]"}, r"chat as text that is not JSON"),
]


@pytest.mark.parametrize(("row", "message"), BAD_CHATS)
def test_a_chat_that_is_none_is_one_sentence(row: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        convert({**row, "answer": "4"})
    assert "\n" not in str(caught.value)


def test_text_becomes_a_user_message_of_a_model_with_a_template_and_keeps_its_id(
    tmp_path: Path, tokenizer: Any
) -> None:
    rows = [{"prompt": "2+2?", "answer": "4"}, {"prompt": "<|im_start|>user\n3+3?", "answer": "6"}]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = cropi.load_prompts(path)
    with pytest.warns(UserWarning, match="chat template") as caught:
        chats = cropi.load_prompts(path, tokenizer=tokenizer)
    notes = [str(warning.message) for warning in caught]
    assert any("text becomes a user message of the model's chat template" in line for line in notes)
    assert any("template's marks in it stays as it is" in line for line in notes)
    assert [p.prompt_id for p in chats] == [p.prompt_id for p in plain]
    assert chats[0].messages == (USER,)
    assert chats[1].prompt == rows[1]["prompt"]
    assert cropi.load_prompts(path, tokenizer=tokenizer, chat=False) == plain
    write_prompts(tmp_path / "stored.parquet", plain)
    assert cropi.load_prompts(tmp_path / "stored.parquet", tokenizer=tokenizer) == plain


def test_settings_that_cannot_be_are_named() -> None:
    with pytest.raises(InputError, match=r"prompts of x\.jsonl: .*lacks '\{prompt\}'"):
        cropi.load_prompts("x.jsonl", template="no place")
