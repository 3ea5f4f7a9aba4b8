"""Files between a stage and verl: rows, the reward function, and what verl leaves of them.

Rows hold our prompt ids as ground truth, which verl writes beside every response: so it can be
seen afterwards what was trained on. Responses are judged in verl's processes, by the run's
verifiers, and every verdict is written down: verl itself does not report one that was not judged.
"""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cropi.errors import InputError
from cropi.prompts import write_prompts
from cropi.schema import Prompt
from cropi.store.files import write_json, write_table
from cropi.text import shown
from cropi.training.stage import StagePlan
from cropi.training.verl_config import RESPONSES, REWARDS, ROWS
from cropi.verifiers import Judge
from cropi.verifiers.settings import resolved
from cropi.verifiers.verdict import Verdict

VERDICTS = "verdicts"
"""Folder of the verdicts, a file for each process that judged."""
REWARD_FILE = '''\
"""The reward function of the prompts beside this file, for verl."""

from pathlib import Path

from cropi.exchange.reward_functions import FolderRewards
from cropi.training.verl_files import recorded

folder = Path(__file__).parent
compute_score = recorded(FolderRewards(folder).verdicts, folder)
'''
Judging = Callable[[Sequence[str], Sequence[str]], Sequence[Verdict]]
"""Returns the verdicts on one response to each of the prompts with these ids."""


def write_files(plan: StagePlan, judge: Judge, work: Path) -> None:
    """Write the stage's rows in their order, and what its responses are judged by."""
    import pyarrow as pa

    rows = [_row(number, prompt) for number, prompt in enumerate(plan.prompts)]
    write_table(work / ROWS, pa.Table.from_pylist(rows))
    write_prompts(work / "prompts.parquet", list({p.prompt_id: p for p in plan.prompts}.values()))
    # Each of verl's processes asks for one verdict at a time.
    settings = judge.settings.model_copy(update={"workers": 1})
    write_json(work / "verifiers.json", resolved(settings, judge.folders))
    (work / VERDICTS).mkdir()
    (work / REWARDS).write_text(REWARD_FILE, encoding="utf-8")


def _row(number: int, prompt: Prompt) -> dict[str, Any]:
    return {
        "data_source": prompt.source,
        "prompt": [dict(message) for message in prompt.messages or ()],
        "ability": prompt.source,
        "reward_model": {"style": "rule", "ground_truth": prompt.prompt_id},
        "extra_info": {"index": number, "prompt_id": prompt.prompt_id},
    }


def recorded(judging: Judging, work: Path) -> Callable[..., dict[str, float]]:
    """Return a reward function in verl's signature that writes down every verdict.

    verl cannot leave a response out of its group: one that was not judged scores 0.
    """

    def compute_score(
        data_source: str, solution_str: str, ground_truth: Any, extra_info: Any = None, **_: Any
    ) -> dict[str, float]:
        (verdict,) = judging([str(ground_truth)], [solution_str])
        judged = verdict.status == "ok"
        score = verdict.reward if judged else 0.0
        line = {"source": data_source, "reward": score, "status": verdict.status}
        file = work / VERDICTS / f"{platform.node()}-{os.getpid()}.jsonl"
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({**line, "detail": verdict.detail}) + "\n")
        return {"score": score, "unjudged": float(not judged)}

    return compute_score


def read_verdicts(plan: StagePlan, work: Path) -> Iterator[tuple[str, Verdict]]:
    """Yield (source, verdict) of every response of the plan, those that verl lost at the end.

    Raises InputError if it trained on other prompts than those of the plan, or in another order.
    """
    for file in sorted((work / VERDICTS).glob("*.jsonl")):
        for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            reward = float(line["reward"]) if line["status"] == "ok" else float("nan")
            yield line["source"], Verdict(reward, line["status"], line["detail"])
    lost = Verdict(float("nan"), "error", "verl sampled no response")
    sources = {prompt.prompt_id: prompt.source for prompt in plan.prompts}
    for prompt_id in _lost(plan, work).elements():
        yield sources[prompt_id], lost


def _lost(plan: StagePlan, work: Path) -> Counter[str]:
    """The prompts of planned responses that were not trained on: verl continues without them."""
    size, lost = plan.training.prompts_per_step, Counter[str]()
    for done in range(plan.steps):
        ids = [p.prompt_id for p in plan.prompts[done * size : (done + 1) * size]]
        planned = Counter(ids * plan.training.responses)
        step = plan.first_step + done + 1
        trained = _trained(work / RESPONSES / f"{step}.jsonl")
        if not trained or trained - planned:
            what = f"prompt {shown(min(trained - planned), 60)}" if trained else "no prompt"
            raise InputError(
                f"verl trained step {step} on {what}, and others were selected for it; see "
                f"{plan.log or 'its log'}, and leave out overrides that change its data"
            )
        lost += planned - trained
    return lost


def _trained(responses: Path) -> Counter[str]:
    """The prompts of a step's responses, as verl has written them."""
    text = responses.read_text(encoding="utf-8") if responses.is_file() else ""
    return Counter(str(json.loads(line)["gts"]) for line in text.splitlines())
