"""cropi rank: the prompts to train on next, from the rollouts of a run by any trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cropi.cli.options import (
    MODEL_HELP,
    PLUGIN_HELP,
    Device,
    Dtype,
    SectionSettings,
    Seed,
    named_files,
    policy_at,
    section,
    setting,
)
from cropi.cli.printing import make_reporter, print_table
from cropi.cli.prompt_options import PromptReading, reads_prompts
from cropi.cli.rollout import NewTokens
from cropi.errors import InputError
from cropi.influence.settings import InfluenceConfig
from cropi.rollouts.settings import RolloutsConfig
from cropi.selection.settings import SelectionConfig
from cropi.text import plural
from cropi.verifiers.settings import VerifiersConfig

if TYPE_CHECKING:
    from cropi.exchange.imports.pairing import Pairing
    from cropi.exchange.imports.rollout_folder import RolloutLog
    from cropi.exchange.ranking.logged_groups import LoggedGroups
    from cropi.exchange.ranking.ranking import LoggedPool, MeasuredPool, Ranking
    from cropi.policy.reference import PolicyRef
    from cropi.schema import RolloutGroup

BY_REWARDS = "learnability"
"""The strategy that ranks without a policy."""
Temperature = Annotated[
    float | None,
    setting(
        RolloutsConfig, "temperature", text="temperature of the rollouts, where the log has none"
    ),
]
JudgedBy = Annotated[
    str | None,
    setting(
        VerifiersConfig,
        "default",
        "--verifier",
        text="judges responses to --like, and a log without rewards: a built-in verifier such as "
        "exact, file.py:function or package.module:function",
    ),
]


@reads_prompts
def rank(
    rollouts: Annotated[
        Path, typer.Option(help="A trainer's rollouts: a folder, searched at any depth, or a file")
    ],
    out: Annotated[Path, typer.Option(help="The directory to write")],
    reading: PromptReading,
    prompts: Annotated[
        Path | None,
        typer.Option(help="The rows of your data, which the responses are joined with"),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option("--format", help="How the rollouts are written; default: as recognised"),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(help="The column (or key) of the reward; repeatable: their sum"),
    ] = None,
    pass_at: Annotated[
        float | None,
        typer.Option(help="The reward at which a response passes; default: rewards are shares"),
    ] = None,
    policy: Annotated[str | None, typer.Option("--policy", "--model", help=MODEL_HELP)] = None,
    like: Annotated[
        list[str] | None,
        typer.Option(
            help="A target to improve on, [NAME=]FILE: prompts, which the policy answers, or "
            "rollouts of them; repeatable"
        ),
    ] = None,
    gradients: Annotated[
        bool, typer.Option(help="With --policy: by influence; without: by rewards alone")
    ] = True,
    behaviour: Annotated[
        str | None,
        typer.Option(help="The checkpoint that sampled the log, which recomputes its log-probs"),
    ] = None,
    temperature: Temperature = None,
    verifier: JudgedBy = None,
    responses: Annotated[
        int | None, setting(RolloutsConfig, "responses", text="responses to each prompt of --like")
    ] = None,
    max_new_tokens: NewTokens = None,
    ratio: Annotated[float | None, setting(SelectionConfig, "ratio")] = None,
    strategy: Annotated[
        str | None,
        typer.Option(help=f"{PLUGIN_HELP}; default: cropi, and without a policy {BY_REWARDS}"),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(help="The trainer to export to; default: the one whose rollouts these are"),
    ] = None,
    seed: Seed = 0,
    dtype: Dtype = None,
    device: Device = None,
    settings: SectionSettings = None,
) -> None:
    """Rank the prompts of a run by its own rollouts, and select those to train on next.

    Without a policy, by pass rates. With one, by influence: how much a step on each prompt would
    help on the targets of --like. Settings are those of the config's `selection` section.

    Examples:

        cropi rank --rollouts runs/grpo/completions --prompts train.jsonl --out ranked

        cropi rank --rollouts dumps --prompts train.parquet --policy DIR --like aime.jsonl --out r
    """
    from cropi.exchange.ranking.ranked_folder import (
        TARGETS,
        export_ranking,
        require_apart,
        require_trainer,
        write_folder,
    )
    from cropi.report import write_rank_report
    from cropi.store.lock import exclusive_output
    from cropi.store.remote import with_urls

    require_apart(out, rollouts)
    require_trainer(to)
    sampled = {"responses": responses, "max-new-tokens": max_new_tokens, "temperature": temperature}
    _require_effective(policy, like, gradients, behaviour, pass_at, sampled)
    policy_ref = policy_at(policy, dtype, device) if policy is not None else None
    with_policy = gradients and policy_ref is not None
    config = section(
        SelectionConfig,
        settings,
        ratio=ratio,
        strategy=strategy or (None if with_policy else BY_REWARDS),
    )
    sampling = section(
        RolloutsConfig,
        responses=responses,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
    )
    source = LogSource(
        format_, reward or [], pass_at, reading, seed, policy_ref, with_policy, verifier
    )
    with exclusive_output(out):
        logged = source.pool(rollouts, prompts)
        measured = None
        if policy_ref is not None and with_policy:
            target = TargetRollouts(source, policy_ref, sampling, verifier, out / TARGETS)
            behaviour_ref = policy_at(behaviour, dtype, device) if behaviour is not None else None
            measured = target.measure(logged, _named(like or []), config, behaviour_ref)
        ranking = _ranked(logged, config, seed, measured)
        commands = export_ranking(out, ranking, to, seed, policy or "")
        write_folder(
            out, ranking, {"rollouts": with_urls(str(rollouts)), "policy": policy, "seed": seed}
        )
        page = write_rank_report(out, ranking, commands)
    print_ranking(ranking, commands, page)


def _require_effective(
    policy: str | None,
    like: list[str] | None,
    gradients: bool,
    behaviour: str | None,
    pass_at: float | None,
    sampled: Mapping[str, float | None],
) -> None:
    """Raise InputError for options that would have no effect, or lack another one."""
    if pass_at is not None and not math.isfinite(pass_at):
        raise InputError(f"--pass-at {pass_at} is not a reward; give a finite number")
    if not gradients or policy is None:
        others = {"like": like or None, "behaviour": behaviour, **sampled}
        inert = [f"--{name}" for name, given in others.items() if given is not None]
        if inert:
            why = "with --no-gradients" if not gradients else "without --policy"
            raise InputError(f"{' and '.join(inert)} has no effect {why}; change one of them")
    elif not like:
        raise InputError(
            "--policy measures influence on target prompts; name them with "
            "--like FILE, or rank by rewards alone with --no-gradients"
        )


def _ranked(
    logged: LoggedPool, config: SelectionConfig, seed: int, measured: MeasuredPool | None
) -> Ranking:
    """A pool ranked by influence where it was measured, else by rewards alone."""
    from cropi.exchange.ranking.ranking import rank as rank_pool

    with make_reporter().phase("ranking") as bar:
        ranking = rank_pool(logged, config, seed, measured)
        bar.note = f"{len(ranking.selection.prompt_ids):,} selected"
    return ranking


def _named(values: Sequence[str]) -> dict[str, Path]:
    """The values [NAME=]FILE of --like; a file alone gives its own name."""
    from cropi.prompts.row_files import base_name

    named = [
        v if "=" in v and not Path(v).exists() else f"{base_name(Path(v))}={v}" for v in values
    ]
    return named_files(named, "like")


@dataclass(frozen=True)
class LogSource:
    """The options by which a call reads logs."""

    format: str | None
    rewards: list[str]
    pass_at: float | None
    reading: PromptReading
    seed: int
    policy: PolicyRef | None
    tokens: bool
    verifier: str | None = None

    def pool(self, path: Path, prompts: Path | None) -> LoggedPool:
        """A log and the pool that its responses belong to."""
        from cropi.exchange.imports.pairing import pair_with_log, pair_with_prompts
        from cropi.exchange.imports.rollout_folder import read_rollout_log
        from cropi.exchange.ranking.ranking import logged_pool

        with make_reporter().phase("reading") as bar:
            unjudged = self.verifier is not None and not self.rewards
            log = read_rollout_log(path, self.format, self.rewards, self.tokens, unjudged)
            if prompts is None:
                pairing = pair_with_log(log)
            elif self.policy is None:
                pairing = pair_with_prompts(log, self.reading.prompts_alone(prompts, self.seed))
            else:
                rows = self.reading.prompts(prompts, self.seed, self.policy)
                pairing = pair_with_prompts(log, rows, self.policy.tokenizer.decode)
            self._judge(log, pairing)
            logged = logged_pool(log, pairing, self.pass_at)
            count = plural(len(log.responses), "response")
            bar.note = f"{count} to {plural(len(logged.prompts), 'prompt')}, format {log.format}"
        return logged

    def _judge(self, log: RolloutLog, pairing: Pairing) -> None:
        """Judge a log without rewards. Raises InputError if a verifier has nothing to do."""
        from cropi.exchange.ranking.ranking import judge_log
        from cropi.verifiers import open_judge

        if self.verifier is None:
            return
        with open_judge(self.verifier) as judge:
            judged = judge_log(log, pairing, judge)
            log.notes += [note] if (note := judge.unjudged()) else []
        if judged:
            log.notes.append(f"the log has no rewards: they are those of {self.verifier}")
        elif not self.tokens:
            raise InputError(
                f"{log.place} has rewards of its own, which are used, so that --verifier has no "
                "effect without --policy; leave it out"
            )


@dataclass(frozen=True)
class TargetRollouts:
    """Makes rollouts of the targets: read from a log, or sampled from the policy."""

    source: LogSource
    policy: PolicyRef
    sampling: RolloutsConfig
    verifier: str | None
    folder: Path

    def measure(
        self,
        logged: LoggedPool,
        files: Mapping[str, Path],
        selection: SelectionConfig,
        behaviour: PolicyRef | None,
    ) -> MeasuredPool:
        """The influence of a pool's prompts on all targets."""
        from cropi.exchange.ranking.policy_ranking import measure_pool

        pool = self._groups(logged)
        targets = {name: self._target(name, path) for name, path in files.items()}
        with make_reporter().phase("influence", len(pool.groups)) as bar:
            return measure_pool(
                logged,
                pool,
                targets,
                self.policy,
                selection,
                InfluenceConfig(),
                self.source.seed,
                behaviour,
                progress=lambda phase, done, total: bar.update(done, total, note=phase),
            )

    def _groups(self, logged: LoggedPool) -> LoggedGroups:
        from cropi.exchange.ranking.logged_groups import logged_groups

        kwargs = self.source.reading.template_kwargs
        return logged_groups(logged, self.policy, self.sampling.temperature, kwargs)

    def _target(self, name: str, path: Path) -> LoggedGroups:
        from cropi.exchange.imports.rollout_folder import is_rollout_log
        from cropi.exchange.ranking.logged_groups import LoggedGroups

        if is_rollout_log(path):
            return self._groups(self.source.pool(path, None))
        return LoggedGroups(self._sampled(name, path), with_logprobs=True)

    def _sampled(self, name: str, path: Path) -> list[RolloutGroup]:
        """The policy's own responses to the prompts of a target, judged and kept."""
        import cropi
        from cropi.verifiers import open_judge

        self.folder.mkdir(parents=True, exist_ok=True)
        with open_judge(self.verifier) as judge:
            rows = judge.readable(self.source.reading.prompts(path, self.source.seed, self.policy))
            with make_reporter().phase(f"rollouts of {name}", len(rows)) as bar:
                return cropi.rollout(
                    self.policy,
                    rows,
                    self.folder / f"{name}.parquet",
                    self.sampling,
                    verifier=judge,
                    template_kwargs=self.source.reading.template_kwargs,
                    seed=self.source.seed,
                    progress=bar.update,
                )


def print_ranking(ranking: Ranking, commands: Sequence[str], page: Path) -> None:
    """What was ranked, what became of it, warnings, and the commands that train on it."""
    from cropi.report import rank_headline

    reporter = make_reporter()
    reporter.info(rank_headline(ranking), style="bold yellow" if ranking.took_all else "bold")
    total = len(ranking.reasons)
    rows = [[reason, f"{n:,}", f"{n / total:.1%}"] for reason, n in ranking.counts.most_common()]
    print_table(["prompts", "", "share"], rows)
    for note in ranking.notes:
        reporter.warn(note)
    if suspected := sum(each is not None for each in ranking.logged.suspicions):
        reporter.info(f"  {plural(suspected, 'prompt')} whose answer or reward looks wrong")
    reporter.info(f"report: {page}")
    for command in commands:
        reporter.info(command)
