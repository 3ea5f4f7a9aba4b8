"""A tiny model of type qwen2 with a character tokenizer and a chat template that knows tools."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

TEMPLATE = (
    "{% if tools %}[tools:{% for t in tools %}{{ t.function.name }} {% endfor %}]{% endif %}"
    "{% for m in messages %}<s>{{ m.role }}:{{ m.content }}"
    "{% for c in m.tool_calls or [] %}({{ c.function.name }} {{ c.function.arguments.a }})"
    "{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{{ mark|default('') }}{% endif %}"
)


def chat_model(folder: Path, template: str | None = TEMPLATE) -> Path:
    """Write model and tokenizer into a folder."""
    characters = [chr(c) for c in range(32, 127)] + ["\n"]
    vocabulary = {t: i for i, t in enumerate(["<unk>", "</s>", "<s>", *characters])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", eos_token="</s>", bos_token="<s>"
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512}
    config = Qwen2Config(vocab_size=len(vocabulary), eos_token_id=1, **sizes, **heads)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder
