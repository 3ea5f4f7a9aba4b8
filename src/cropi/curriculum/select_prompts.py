"""Step 5, before every stage: choose the prompts to train on."""

from __future__ import annotations

from pathlib import Path

from cropi.curriculum.refresh_rollouts import StageRollouts
from cropi.curriculum.session import Session
from cropi.rollouts import rollout_statistics
from cropi.schema import InfluenceEstimate, Selection, fingerprint
from cropi.selection import (
    SelectionContext,
    find_strategy,
    require_not_empty,
    selection_size,
)
from cropi.selection.settings import StrategyChoice
from cropi.store.files import file_hash, is_current
from cropi.store.run_directory import Stage
from cropi.store.tables import read_scores, read_selection, write_selection


def select(
    session: Session,
    stage: Stage,
    choice: StrategyChoice,
    scores: InfluenceEstimate | None,
    rollouts: StageRollouts,
) -> Selection:
    """Return the stage's selection, from file where it is current."""
    strategy = find_strategy(choice)
    remembered = _earlier(stage, scores) if session.needs(choice).earlier else []
    inputs_fingerprint = fingerprint(
        rollouts.key,
        [file_hash(path) for path in remembered],
        [file_hash(path) for path in (stage.scores, stage.sibling(0).scores) if path.exists()],
        choice.model_dump(),
        session.config.selection.ratio,
        session.config.verifiers.threshold,
        stage.arm,
        stage.index,
        session.config.seed,
    )
    if not is_current(stage.selection, inputs_fingerprint):
        selection = strategy.select(_context(session, stage, scores, rollouts, remembered))
        require_not_empty(selection, stage.title)
        known = {p.prompt_id for p in session.sets.pool}
        assert known.issuperset(selection.prompt_ids), "a strategy selected unknown prompts"
        write_selection(
            stage.selection, selection, {"cropi.inputs_fingerprint": inputs_fingerprint}
        )
        for note in selection.notes:
            session.reporter.warn(f"{stage.arm}: {note}")
    return read_selection(stage.selection)


def _context(
    session: Session,
    stage: Stage,
    scores: InfluenceEstimate | None,
    rollouts: StageRollouts,
    remembered: list[Path],
) -> SelectionContext:
    config = session.config
    statistics = rollout_statistics(rollouts.pool, config.verifiers.threshold)
    source = {p.prompt_id: p.source for p in session.sets.pool}
    validation = session.sets.validation.values()
    return SelectionContext(
        statistics=statistics,
        count=selection_size(config.selection.ratio, len(statistics.prompt_ids)),
        stage=stage.index,
        seed=session.seed("selection", stage.arm, stage.index),
        estimate=scores,
        earlier=[read_scores(path) for path in remembered],
        sources=[source[prompt_id] for prompt_id in statistics.prompt_ids],
        target_sources=frozenset(p.source for found in validation for p in found),
    )


def _earlier(stage: Stage, scores: InfluenceEstimate | None) -> list[Path]:
    """Scores of the stages before this one; a strategy that scores once has none to average."""
    if scores is None or not stage.scores.exists():
        return []
    paths = [stage.sibling(index).scores for index in range(stage.index)]
    return [path for path in paths if path.exists()]
