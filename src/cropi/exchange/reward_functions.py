"""Reward functions in the signatures of other trainers, for the prompts of an exported folder.

`rewards.py` in such a folder is one line that calls this. Prompts are found by their ids in
`prompts.parquet`, so that whatever a trainer does to the columns of its rows, a response is judged
as in a run of cropi: by its source's verifier, in a process of its own, within a deadline.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from cropi.errors import InputError
from cropi.prompts import read_prompts
from cropi.schema import Prompt
from cropi.text import shown
from cropi.verifiers import Judge
from cropi.verifiers.settings import VerifiersConfig
from cropi.verifiers.verdict import Verdict

PROMPTS = "prompts.parquet"
VERIFIERS = "verifiers.json"


class FolderRewards:
    """The rewards of an exported folder's prompts, as methods in trainers' signatures.

    Methods may be called from several threads, and in processes that were forked.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._judge: tuple[int, Judge] | None = None

    @cached_property
    def prompts(self) -> Mapping[str, Prompt]:
        """The folder's prompts by id."""
        return {prompt.prompt_id: prompt for prompt in read_prompts(self.folder / PROMPTS)}

    def verdicts(
        self,
        prompt_ids: Sequence[str],
        texts: Sequence[str],
        token_ids: Sequence[Sequence[int]] | None = None,
    ) -> list[Verdict]:
        """Judge one response to each of the prompts.

        Raises InputError for an id that the folder does not have.
        """
        asked = [self._prompt(each) for each in prompt_ids]
        with self._lock:
            items = list(zip(asked, texts, strict=True))
            return self._open_judge().judge(items, token_ids)

    def _prompt(self, prompt_id: str) -> Prompt:
        prompt = self.prompts.get(prompt_id)
        if prompt is None:  # a newer export may have taken the folder's place
            vars(self).pop("prompts")
            prompt = self.prompts.get(prompt_id)
        if prompt is None:
            raise InputError(
                f"{self.folder / PROMPTS} has no prompt {shown(prompt_id, 60)}; train on the rows "
                "that were exported with it"
            )
        return prompt

    def _open_judge(self) -> Judge:
        """This process's judge; one that was open before a fork belongs to the parent."""
        if self._judge is None or self._judge[0] != os.getpid():
            settings = json.loads((self.folder / VERIFIERS).read_text(encoding="utf-8"))
            self._judge = os.getpid(), Judge(VerifiersConfig.model_validate(settings), self.folder)
        return self._judge[1]

    def trl(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        prompt_id: Sequence[str],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float]:
        """Return one reward per completion, as TRL's GRPOTrainer asks for them.

        A response that was not judged gets the mean of its neighbours to the same prompt, so that
        it has no advantage: TRL would read a missing reward as 0.
        """
        from cropi.training.rewards import completion_text, fill_unjudged_with_group_mean

        texts = [completion_text(each) for each in completions]
        verdicts = self.verdicts(prompt_id, texts, completion_ids)
        rewards: list[float] = []
        for _, group in groupby(zip(prompt_id, verdicts, strict=True), key=lambda pair: pair[0]):
            judged = [_reward(verdict) for _, verdict in group]
            rewards += fill_unjudged_with_group_mean(judged, len(judged))
        return rewards

    def verl(
        self,
        data_source: str,
        solution_str: str,
        ground_truth: Any,
        extra_info: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> dict[str, float]:
        """Return verl's `score` of one response, and `unjudged`, which verl adds to its metrics.

        verl cannot leave a response out of its group: one that was not judged scores 0.
        """
        (verdict,) = self.verdicts([str((extra_info or {}).get("prompt_id"))], [solution_str])
        judged = verdict.status == "ok"
        return {"score": verdict.reward if judged else 0.0, "unjudged": float(not judged)}

    def openrlhf(
        self, queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str], **more: Any
    ) -> dict[str, Any]:
        """Return OpenRLHF's rewards of responses whose labels are prompt ids.

        A query is the prompt's text and the response's. A response that was not judged scores 0,
        because OpenRLHF asks for the rewards of a group one by one.
        """
        import torch

        texts = [q.removeprefix(p) for q, p in zip(queries, prompts, strict=True)]
        verdicts = self.verdicts(labels, texts)
        judged = [verdict.status == "ok" for verdict in verdicts]
        scores = [v.reward if ok else 0.0 for v, ok in zip(verdicts, judged, strict=True)]
        rewards, unjudged = torch.tensor(scores), 1.0 - torch.tensor(judged, dtype=torch.float32)
        return {"rewards": rewards, "scores": rewards, "extra_logs": {"unjudged": unjudged}}


def _reward(verdict: Verdict) -> float:
    return verdict.reward if verdict.status == "ok" else float("nan")
