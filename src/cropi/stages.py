"""The steps of a run, each leaving a file that knows what it was made from.

`Workshop` holds what the steps share (prompts, judge, narrator) and is what `curriculum.py` calls.
A step whose file is current returns at once; that is all there is to resuming.
"""

from __future__ import annotations

import dataclasses
import gc
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from cropi.artifacts import (
    file_hash,
    fingerprint,
    folder_written_aside,
    is_current,
    read_lines,
    write_json,
    write_lines,
)
from cropi.config import RunConfig, WarmupConfig
from cropi.costs import cost_row
from cropi.evaluation import EvaluationSets
from cropi.influence import Influence
from cropi.models import Policy, load_policy
from cropi.progress import Narrator
from cropi.prompts import PromptSets, drop_overlong, load_prompt_sets, load_source, write_prompts
from cropi.rollouts import collect, load_engine, read_rollouts
from cropi.rollouts.statistics import rollout_statistics
from cropi.run_directory import Row, RunDirectory, Stage
from cropi.schema import Prompt, RolloutGroup, Sampling, ScoreTable, Selection, derive_seed
from cropi.scoring import make_scorer
from cropi.selection import SelectionContext, Strategy
from cropi.selection.base import selection_size
from cropi.tables import read_scores, read_selection, write_scores, write_selection
from cropi.training import StageOutcome, StagePlan, find_trainer, stage_order
from cropi.training.start import prepare_start
from cropi.verifiers import Judge


class Workshop:
    """Everything the steps of one run share; a context manager, for it owns worker processes."""

    def __init__(self, directory: RunDirectory, narrator: Narrator) -> None:
        self.directory = directory
        self.config: RunConfig = directory.config
        self.narrator = narrator
        self.sets = PromptSets(pool=[])
        self.judge = Judge(self.config.verifiers, directory.base)
        self._groups: dict[str, list[RolloutGroup]] = {}
        self._parameters = 0

    def __enter__(self) -> Workshop:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.judge.close()

    # ------------------------------------------------------------------ prompts and start policy

    def load_prompts(self) -> None:
        """Load every set, check lengths and verifiers, and write them down."""
        config = self.config
        with self.directory.timed("prompts"), self.narrator.phase("prompts") as bar:
            sets = load_prompt_sets(config.prompts, self.seed("prompts"), self.directory.base)
            policy = self._load(config.model.path)
            new_tokens = config.rollouts.max_new_tokens
            longest = config.prompts.max_tokens or policy.context - new_tokens
            self.sets = drop_overlong(
                policy.tokenizer,
                sets,
                longest,
                config.prompts.overlong,
                config.prompts.chat_template_kwargs,
            )
            self._check_verifiers()
            self._write_prompts()
            self._write_manifest(policy)
            counts = {n: len(p) for n, p in self.sets.named().items()}
            bar.update(1, 1, note=", ".join(f"{n} {count:,}" for n, count in counts.items()))
        for line in self.sets.notes.lines():
            self.narrator.warn(line)

    def prepare_start(self) -> str:
        """Return the policy to start from, warmed up and with adapters where the config says so."""
        config = self.config
        if not config.warmup.steps and config.training.lora is None:
            return config.model.path
        with self.directory.timed("warmup"), self.narrator.phase("start policy") as bar:
            made = prepare_start(
                config,
                self._warmup_prompts(config.warmup),
                self.directory.start,
                self.seed("warmup"),
                lambda done, total: bar.update(done, total),
            )
            bar.update(config.warmup.steps, note=made)
        return str(self.directory.start)

    def evaluate_start(self, start: str) -> None:
        """Measure the start policy once, for all arms."""
        if self.directory.start_evaluation.exists() or not self.sets.test:
            return
        with self.directory.timed("evaluation"), self.narrator.phase("start accuracy") as bar:
            rows = self._evaluate(self._load(start), step=0)
            write_lines(self.directory.start_evaluation, rows)
            bar.update(1, 1, note=accuracy_note(rows))

    # --------------------------------------------------------------------------------- rollouts

    def collect_rollouts(self, start: str) -> None:
        """Sample and judge responses for the pool and the validation sets, once."""
        wanted = [("pool", "", self.sets.pool, self.config.rollouts.responses)]
        responses = self.config.rollouts.validation_responses or self.config.rollouts.responses
        wanted += [("validation", n, p, responses) for n, p in self.sets.validation.items()]
        missing = [w for w in wanted if not self.directory.rollouts(w[0], w[1]).exists()]
        if missing:
            policy = self._load(start)
            engine = load_engine(
                self.config.rollouts.engine, policy, self.config.rollouts.batch_size
            )
            for kind, name, prompts, count in missing:
                self._collect(policy, engine, kind, name, prompts, count)
        self._report_rollouts()
        self._write_shared_costs(start)

    def _collect(
        self, policy: Policy, engine: Any, kind: str, name: str, prompts: list[Prompt], count: int
    ) -> None:
        title = f"rollouts {name or kind}"
        sampling = self.config.rollouts.sampling
        seed = self.seed("rollouts", kind, name)
        ids = [p.prompt_id for p in prompts]
        with self.directory.timed("rollouts"), self.narrator.phase(title, len(prompts)) as bar:
            collect(
                engine,
                policy.tokenizer,
                prompts,
                self.judge,
                sampling,
                count,
                seed,
                self.directory.rollouts(kind, name),
                policy.identity,
                fingerprint(policy.identity, dataclasses.asdict(sampling), count, seed, ids),
                template_kwargs=self.config.prompts.chat_template_kwargs,
                progress=lambda done, total: bar.update(done, total),
            )
            bar.note = f"{len(prompts):,} prompts x {count} responses"

    def _report_rollouts(self) -> None:
        """Say how informative the pool is, and whether judging had trouble."""
        groups = self.groups("pool")
        informative = np.mean([g.informative for g in groups])
        statuses = _status_counts(groups)
        self.narrator.say(f"  {informative:.0%} of the pool is informative", style="dim")
        for status, count in statuses.items():
            if status != "ok" and count:
                self.narrator.warn(f"{count:,} pool responses could not be judged ({status})")

    def groups(self, kind: str, name: str = "") -> list[RolloutGroup]:
        """Rollouts of the pool or a validation set, read once."""
        path = self.directory.rollouts(kind, name)
        key = str(path)
        if key not in self._groups:
            self._groups[key] = read_rollouts(path)
        return self._groups[key]

    # ---------------------------------------------------------------------- influence, selection

    def score(self, stage: Stage, strategy: Strategy, policy: str) -> ScoreTable | None:
        """Influence under the current policy, where the strategy asks for it."""
        if strategy.scoring == "never":
            return None
        if strategy.scoring == "once" and stage.index > 0:
            first = dataclasses.replace(stage, index=0, folder=stage.folder.parent / "0")
            return read_scores(first.scores)
        made_from = self._scores_made_from(policy)
        if not is_current(stage.scores, made_from):
            title = f"{stage.arm} {stage.index + 1} influence"
            with self.directory.timed("scoring", stage.arm, stage.index):
                influence = self._influence(title, policy)
            write_scores(stage.scores, influence.table, {"cropi.made_from": made_from})
            write_json(stage.folder / "influence.json", self._influence_facts(influence))
        return read_scores(stage.scores)

    def _influence(self, title: str, policy: str) -> Influence:
        targets = {name: self.groups("validation", name) for name in self.sets.validation}
        with self.narrator.phase(title) as bar:
            scorer = make_scorer(
                self._load(policy).model,
                self.config.influence,
                self.seed("sketch"),
                lambda phase, done, total: bar.update(done, total, note=phase),
                self.config.rollouts.max_new_tokens,
            )
            influence = scorer.score(self.groups("pool"), targets)
            bar.note = f"{len(influence.table.prompt_ids):,} prompts, {influence.tokens:,} tokens"
        for note in influence.notes:
            self.narrator.warn(note)
        return influence

    def _influence_facts(self, influence: Influence) -> dict[str, Any]:
        return {
            "tokens": influence.tokens,
            "targets": {n: dataclasses.asdict(t) for n, t in influence.trust.items()},
            "notes": influence.notes,
        }

    def _scores_made_from(self, policy: str) -> str:
        rollouts = [self.directory.rollouts("pool")]
        rollouts += [self.directory.rollouts("validation", n) for n in self.sets.validation]
        return fingerprint(
            self._policy_key(policy),
            [file_hash(f) for f in rollouts],
            self.config.influence.model_dump(),
            self.seed("sketch"),
        )

    def select(self, stage: Stage, strategy: Strategy, scores: ScoreTable | None) -> Selection:
        """Choose the stage's prompts."""
        config = self.config.selection
        made_from = fingerprint(
            file_hash(self.directory.rollouts("pool")),
            file_hash(stage.scores) if stage.scores.exists() else None,
            config.model_dump(),
            stage.arm,
            stage.index,
            self.config.seed,
        )
        if not is_current(stage.selection, made_from):
            selection = strategy.select(self._context(stage, scores))
            known = {p.prompt_id for p in self.sets.pool}
            assert known.issuperset(selection.prompt_ids), "a strategy selected unknown prompts"
            write_selection(stage.selection, selection, {"cropi.made_from": made_from})
        selection = read_selection(stage.selection)
        for note in selection.notes:
            self.narrator.warn(f"{stage.arm}: {note}")
        return selection

    def _context(self, stage: Stage, scores: ScoreTable | None) -> SelectionContext:
        config = self.config
        statistics = rollout_statistics(self.groups("pool"), config.verifiers.threshold)
        return SelectionContext(
            prompt_ids=statistics.prompt_ids,
            pass_rate=statistics.pass_rates,
            variance=statistics.variances,
            informative=statistics.informative,
            count=selection_size(config.selection.ratio, len(self.sets.pool)),
            stage=stage.index,
            seed=self.seed("selection", stage.arm, stage.index),
            scores=scores,
            fusion_constant=config.selection.fusion_constant,
        )

    # --------------------------------------------------------------------------------- training

    def train(self, stage: Stage, selection: Selection, policy: str) -> str:
        """Train a stage from `policy` on its selection; return the new policy's path."""
        plan = self._plan(stage, selection, policy)
        made_from = fingerprint(
            self._policy_key(policy),
            [p.prompt_id for p in plan.prompts],
            self.config.training.model_dump(),
            self.config.evaluation.model_dump(),
            plan.seed,
        )
        if _recorded(stage).get("made_from") == made_from:
            return str(stage.policy)
        self._release()
        outcome, rows = StageOutcome(), self._first_rows(stage)
        before = self._tokens_before(stage)
        title = f"{stage.arm} {stage.index + 1} GRPO"
        with (
            self.directory.timed("training", stage.arm, stage.index),
            self.narrator.phase(title, plan.steps) as bar,
            folder_written_aside(stage.policy) as part,
        ):
            note = ""

            def evaluate(trained: Policy, step: int) -> None:
                nonlocal note
                with self.directory.timed("evaluation", stage.arm, stage.index):
                    found = self._evaluate(trained, step)
                rows.extend(self._placed(found, stage, outcome, before))
                note = accuracy_note(found)

            def progress(done: int, row: Row) -> None:
                bar.update(done, note=f"reward {row.get('reward', float('nan')):.2f}  {note}")

            find_trainer(self.config.training.engine).train(
                plan, self.judge, part, evaluate if self.sets.test else None, progress, outcome
            )
            bar.note = note
            rows += self._stage_rows(stage, selection, outcome)
            write_json(part / stage.record.name, self._record(stage, outcome, before, made_from))
            write_lines(stage.metrics, rows)
        self._write_clock(stage, outcome)
        self.directory.gather_metrics()
        return str(stage.policy)

    def _plan(self, stage: Stage, selection: Selection, policy: str) -> StagePlan:
        config = self.config
        training = config.training
        visits = training.steps_per_stage * training.prompts_per_step
        order = stage_order(
            selection.prompt_ids, visits, self.seed("order"), self._visits_before(stage, selection)
        )
        by_id = {p.prompt_id: p for p in self.sets.pool}
        return StagePlan(
            start=policy,
            prompts=[by_id[i] for i in order],
            steps=training.steps_per_stage,
            first_step=stage.index * training.steps_per_stage,
            horizon=training.stages * training.steps_per_stage,
            seed=self.seed("training", stage.index),
            model=config.model,
            training=training,
            rollouts=config.rollouts,
            template_kwargs=config.prompts.chat_template_kwargs,
            evaluate_every=config.evaluation.every,
        )

    def _visits_before(self, stage: Stage, selection: Selection) -> int:
        """Visits that earlier stages in a row made to exactly these prompts."""
        wanted, visits = set(selection.prompt_ids), 0
        per_stage = self.config.training.steps_per_stage * self.config.training.prompts_per_step
        for index in range(stage.index - 1, -1, -1):
            earlier = stage.folder.parent / str(index) / stage.selection.name
            if set(read_selection(earlier).prompt_ids) != wanted:
                break
            visits += per_stage
        return visits

    def _first_rows(self, stage: Stage) -> list[Row]:
        """A curve begins with the start policy."""
        if stage.index > 0:
            return []
        start = read_lines(self.directory.start_evaluation)
        return [{**row, "arm": stage.arm, "stage": 0} for row in start]

    def _placed(
        self, rows: list[Row], stage: Stage, outcome: StageOutcome, before: Mapping[str, int]
    ) -> list[Row]:
        """Evaluation rows with their place on the arm's token axes."""
        tokens = {
            "generated_tokens": before["generated"] + outcome.generated_tokens,
            "trained_tokens": before["trained"] + outcome.trained_tokens,
        }
        return [{**row, "arm": stage.arm, "stage": stage.index, **tokens} for row in rows]

    def _stage_rows(self, stage: Stage, selection: Selection, outcome: StageOutcome) -> list[Row]:
        where: Row = {"arm": stage.arm, "stage": stage.index}
        facts_file = stage.folder / "influence.json"
        facts = json.loads(facts_file.read_text()) if facts_file.exists() else {}
        rows: list[Row] = [{"kind": "train", **where, **row} for row in outcome.log]
        rows.append(
            {
                "kind": "stage",
                **where,
                "steps": self.config.training.steps_per_stage,
                "selected": len(selection.prompt_ids),
                "notes": [*selection.notes, *facts.get("notes", [])],
                "targets": facts.get("targets", {}),
                "reward_statuses": outcome.statuses,
            }
        )
        generated, trained = outcome.generated_tokens, outcome.trained_tokens
        size = self._parameters
        if facts:
            tokens = facts["tokens"]
            rows.append(cost_row("scoring", size, where, forward=tokens, backward=tokens))
        rows.append(
            cost_row(
                "training", size, where, generated=generated, forward=trained, backward=trained
            )
        )
        return rows

    def _record(
        self, stage: Stage, outcome: StageOutcome, before: Mapping[str, int], made_from: str
    ) -> dict[str, Any]:
        return {
            "made_from": made_from,
            "arm": stage.arm,
            "stage": stage.index,
            "generated_tokens": before["generated"] + outcome.generated_tokens,
            "trained_tokens": before["trained"] + outcome.trained_tokens,
        }

    def _tokens_before(self, stage: Stage) -> dict[str, int]:
        if stage.index == 0:
            return {"generated": 0, "trained": 0}
        earlier = _recorded(self.directory.stage(stage.arm, stage.index - 1))
        return {
            "generated": int(earlier["generated_tokens"]),
            "trained": int(earlier["trained_tokens"]),
        }

    def _write_clock(self, stage: Stage, outcome: StageOutcome) -> None:
        """Training seconds since the arm began, a row a step."""
        timings = read_lines(self.directory.root / "timings.jsonl")
        before = [
            row["seconds"]
            for row in timings
            if row["phase"] == "clock" and row["arm"] == stage.arm and row["stage"] < stage.index
        ]
        start = max(before, default=0.0)
        for step, seconds in outcome.clock:
            self.directory.add_timing(
                phase="clock",
                arm=stage.arm,
                stage=stage.index,
                step=step,
                seconds=round(start + seconds, 3),
            )

    # ------------------------------------------------------------------------------- evaluation

    def _evaluate(self, policy: Policy, step: int) -> list[Row]:
        """Evaluation rows of every test set."""
        config, targeted = self.config.evaluation, set(self.config.targeted)
        sampling = Sampling(
            config.temperature,
            config.top_p,
            0,
            config.max_new_tokens or self.config.rollouts.max_new_tokens,
        )
        engine = load_engine(self.config.rollouts.engine, policy, self.config.rollouts.batch_size)
        results = self._evaluation_sets(policy).evaluate(
            engine,
            self.judge,
            sampling,
            config.samples,
            config.k,
            self.seed("evaluation"),
            self.config.verifiers.threshold,
        )
        return [
            {
                "kind": "evaluation",
                "step": step,
                "set": result.set,
                "targeted": result.set in targeted,
                "prompts": result.prompts,
                "pass_at": {str(k): v for k, v in result.pass_at.items()},
                "statuses": dict(result.statuses),
                "generated_tokens": 0,
                "trained_tokens": 0,
            }
            for result in results
        ]

    def _evaluation_sets(self, policy: Policy) -> EvaluationSets:
        if not hasattr(self, "_prepared_sets"):
            self._prepared_sets = EvaluationSets.prepare(
                policy.tokenizer, self.sets.test, self.config.prompts.chat_template_kwargs
            )
        return self._prepared_sets

    # ----------------------------------------------------------------------------------- report

    def write_report(self) -> None:
        """Gather all metrics and draw the page."""
        from cropi.report import report

        self.directory.gather_metrics()
        with self.narrator.phase("report") as bar:
            path = report(self.directory.root)
            bar.update(1, 1, note=str(path))

    # ----------------------------------------------------------------------------------- shared

    def seed(self, *component: str | int) -> int:
        """The seed of a component of this run."""
        return derive_seed(self.config.seed, *component)

    def _load(self, path: str) -> Policy:
        model = self.config.model
        policy = load_policy(
            path,
            revision=model.revision if path == model.path else None,
            dtype=model.dtype,
            device=model.device,
            attention=model.attention,
            trust_remote_code=model.trust_remote_code,
        )
        self._parameters = sum(p.numel() for p in policy.model.parameters())
        return policy

    def _release(self) -> None:
        """Give back what scoring held before training needs memory."""
        gc.collect()

    def _policy_key(self, policy: str) -> str:
        """What identifies a policy: its stage's record, or the start's own identity."""
        record = Path(policy) / "cropi_stage.json"
        if record.exists():
            return str(json.loads(record.read_text())["made_from"])
        return fingerprint(policy, self.config.model.model_dump(), self.config.warmup.model_dump())

    def _warmup_prompts(self, warmup: WarmupConfig) -> list[Prompt]:
        if not warmup.prompts:
            return self.sets.pool
        seed = self.seed("warmup", "prompts")
        return [p for s in warmup.prompts for p in load_source(s, seed, self.directory.base)]

    def _check_verifiers(self) -> None:
        self.judge.check([p for prompts in self.sets.named().values() for p in prompts])

    def _write_prompts(self) -> None:
        write_prompts(self.directory.prompts("pool"), self.sets.pool)
        for kind, sets in (("validation", self.sets.validation), ("test", self.sets.test)):
            for name, prompts in sets.items():
                write_prompts(self.directory.prompts(kind, name), prompts)
        notes = self.sets.notes
        write_json(
            self.directory.root / "prompts" / "notes.json",
            {**notes.as_dict(), "lines": notes.lines()},
        )

    def _write_manifest(self, policy: Policy) -> None:
        components = ["prompts", "warmup", "sketch", "order", "evaluation"]
        self.directory.write_manifest(
            model={**dataclasses.asdict(policy.identity), "parameters": self._parameters},
            seeds={"run": self.config.seed, **{c: self.seed(c) for c in components}},
            prompts={
                name: fingerprint([p.prompt_id for p in prompts])
                for name, prompts in self.sets.named().items()
            },
        )

    def _write_shared_costs(self, start: str) -> None:
        kinds = [("pool", ""), *(("validation", n) for n in self.sets.validation)]
        groups = [g for kind, name in kinds for g in self.groups(kind, name)]
        row = cost_row(
            "rollouts",
            self._parameters,
            {},
            generated=sum(g.tokens for g in groups),
            forward=sum(len(g.prompt_ids) for g in groups),
        )
        write_lines(self.directory.shared_costs(), [row])
        self.directory.gather_metrics()


def accuracy_note(rows: list[Row]) -> str:
    """Mean accuracy over targeted and untargeted sets, as text."""
    parts = []
    for label, wanted in (("targeted", True), ("untargeted", False)):
        values = [next(iter(r["pass_at"].values())) for r in rows if r["targeted"] is wanted]
        if values:
            parts.append(f"{label} {np.mean(values):.1%}")
    return "  ".join(parts)


def _recorded(stage: Stage) -> dict[str, Any]:
    """The record of a finished stage; empty if there is none."""
    if not stage.record.exists():
        return {}
    return dict(json.loads(stage.record.read_text()))


def _status_counts(groups: list[RolloutGroup]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for group in groups:
        for response in group.responses:
            counts[response.reward_status] = counts.get(response.reward_status, 0) + 1
    return counts
