"""Why a verdict is what it is: what answers are read as, what was taken out of a response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cropi.plugins import is_built_in
from cropi.schema import Prompt
from cropi.verifiers.runtime.response_judge import Judge
from cropi.verifiers.tags import Tags
from cropi.verifiers.user import find_verifier
from cropi.verifiers.verdict import Decision, Explainer, Verdict


@dataclass(frozen=True, slots=True)
class AnswerReading:
    """What the verifier of a prompt's source takes its answer for, or why it cannot read it."""

    prompt: Prompt
    verifier: str
    read_as: str
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class ExplainedVerdict:
    """A verdict on a response; the decision is None for functions that cannot explain theirs."""

    prompt: Prompt
    response_index: int
    response: str
    verifier: str
    verdict: Verdict
    decision: Decision | None


class Explanations:
    """Explains what a judge does; built-in verifiers explain themselves."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        settings = judge.settings
        self._tags = Tags(tuple(settings.think_tags), tuple(settings.answer_tags))
        self._explainers: dict[str, Explainer | None] = {}

    def answers(self, prompts: Sequence[Prompt]) -> list[AnswerReading]:
        """Return the reading of every answer, in order.

        Raises InputError if a verifier cannot be loaded.
        """
        unreadable = self._judge.unreadable(prompts)
        return [
            AnswerReading(
                prompt,
                self._names(prompt.source),
                "" if place in unreadable else self._read_as(prompt),
                unreadable.get(place, ""),
            )
            for place, prompt in enumerate(prompts)
        ]

    def responses(
        self,
        responses: Sequence[tuple[Prompt, int, str]],
        token_ids: Sequence[Sequence[int]] | None = None,
    ) -> list[ExplainedVerdict]:
        """Return the verdicts on (prompt, response index, response text), in order."""
        items = [(prompt, text) for prompt, _, text in responses]
        verdicts = self._judge.judge(items, token_ids)
        return [
            ExplainedVerdict(
                prompt,
                index,
                text,
                self._names(prompt.source),
                verdict,
                self._decision(prompt, text, verdict),
            )
            for (prompt, index, text), verdict in zip(responses, verdicts, strict=True)
        ]

    def _names(self, source: str) -> str:
        return " + ".join(name for name, _ in self._judge.rewards_of(source))

    def _read_as(self, prompt: Prompt) -> str:
        explainer = self._explainer(prompt.source)
        return "given to the function as it is" if explainer is None else explainer.read_as(prompt)

    def _decision(self, prompt: Prompt, text: str, verdict: Verdict) -> Decision | None:
        """Return the decision that led to a reward; what took too long is not tried here."""
        explainer = self._explainer(prompt.source)
        return explainer.decide(prompt, text) if explainer and verdict.status == "ok" else None

    def _explainer(self, source: str) -> Explainer | None:
        """Return the source's built-in verifier. The user's code runs in the workers alone."""
        names = [name for name, _ in self._judge.rewards_of(source)]
        if len(names) != 1 or not is_built_in("verifier", names[0]):
            return None
        if names[0] not in self._explainers:
            verifier = find_verifier(names[0], self._tags)
            self._explainers[names[0]] = verifier if isinstance(verifier, Explainer) else None
        return self._explainers[names[0]]
