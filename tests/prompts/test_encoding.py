"""A prompt has one encoding: the template once for chats, never for text, as TRL does it."""

from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from cropi.errors import InputError
from cropi.prompts import PromptSets, Room, drop_overlong, encode, encode_all
from cropi.schema import Prompt

TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}:{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}>{{ mark|default('') }}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A character tokenizer that, like Llama's, puts a BOS token before plain text."""
    characters = [chr(c) for c in range(32, 127)]
    vocabulary = {t: i for i, t in enumerate(["<unk>", "<s>", *characters])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    made = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", unk_token="<unk>")
    made.chat_template = TEMPLATE
    return made


def text(content: str, name: str = "t") -> Prompt:
    return Prompt(name, "1", "s", prompt=content)


def chat(content: str, name: str = "c") -> Prompt:
    return Prompt(name, "1", "s", messages=({"role": "user", "content": content},))


def test_chats_get_the_template_with_generation_prompt_exactly_once(tokenizer: Any) -> None:
    ids = encode(tokenizer, chat("hi"))
    assert tokenizer.decode(ids).replace(" ", "") == "<s>user:hi>"
    assert ids.count(tokenizer.bos_token_id) == 1
    assert all(type(i) is int for i in ids)


def test_text_is_never_templated(tokenizer: Any) -> None:
    assert encode(tokenizer, text("hi")) == tokenizer("hi")["input_ids"]
    assert len(encode(tokenizer, text("hi"))) == 3


def test_template_arguments_reach_the_template(tokenizer: Any) -> None:
    plain, marked = encode(tokenizer, chat("hi")), encode(tokenizer, chat("hi"), {"mark": "!"})
    assert marked == [*plain, tokenizer.convert_tokens_to_ids("!")]


@pytest.mark.parametrize("make", [text, chat])
def test_the_encoding_is_that_of_trls_trainer(tokenizer: Any, make: Any) -> None:
    grpo = pytest.importorskip("trl.trainer.grpo_trainer")
    trainer = SimpleNamespace(
        _is_vlm=False,
        environment_factories=None,
        processing_class=tokenizer,
        tools=None,
        chat_template=None,
        chat_template_kwargs={"mark": "?"},
    )
    prompts = [make("2+2="), make("a much longer question")]
    rows = [p.prompt or [dict(m) for m in p.messages or ()] for p in prompts]
    expected = grpo.GRPOTrainer._tokenize_prompts(trainer, rows)[0]
    assert encode_all(tokenizer, prompts, {"mark": "?"}) == expected


def test_a_chat_without_a_template_is_the_users_error(tokenizer: Any) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(InputError, match=r"'c' is a chat.*no chat template.*as text"):
        encode(bare, chat("hi"))


def sets() -> PromptSets:
    pool = [text("short", "a"), text("a long question", "b"), chat("a long question", "c")]
    return PromptSets(pool, {"v": [text("short", "d")]}, {"t": [text("short", "e")]})


def test_overlong_prompts_stop_the_run_or_are_dropped_and_counted(tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"2 of 3 .* set pool .* 10 tokens.*'b' with 16"):
        drop_overlong(tokenizer, sets(), Room(10))
    fitting = drop_overlong(tokenizer, sets(), Room(10), "drop")
    assert [p.prompt_id for p in fitting.pool] == ["a"]
    assert fitting.notes.overlong == {"pool": 2}
    assert fitting.notes.sizes["pool"] == 1
    assert fitting.notes.lines() == ["2 prompts of the pool too long for the model: dropped"]
    assert drop_overlong(tokenizer, sets(), Room(100)).notes.overlong == {}


def test_a_response_leaves_room_for_a_prompt_or_its_setting_is_named(tokenizer: Any) -> None:
    longest = ("evaluation.max_new_tokens", 54)
    assert Room.of(None, 64, longest).tokens == 10
    with pytest.raises(InputError, match=r"or lower evaluation\.max_new_tokens \(now 54, of a "):
        drop_overlong(tokenizer, sets(), Room.of(None, 64, longest))
    with pytest.raises(InputError, match=r"'b' with 16\); set .*=drop, or raise prompts.max_tok"):
        drop_overlong(tokenizer, sets(), Room.of(10, 64, longest))
    for limit in (None, 10):
        with pytest.raises(InputError, match=r"^rollouts\.max_new_tokens=64 leaves no room for a"):
            Room.of(limit, 64, ("rollouts.max_new_tokens", 64))


def test_dropping_never_empties_a_set(tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"3 of 3 .* set pool"):
        drop_overlong(tokenizer, sets(), Room(3), "drop")
