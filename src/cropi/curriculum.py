"""The method in one loop (DESIGN section 2, arXiv 2510.26491 algorithm 1).

Rollouts are collected once, from the start policy. Before every stage, influence is computed
under the *current* policy from those same rollouts; the best prompts are selected; GRPO trains on
them for a stage; and so on. Baselines go through the same loop with another strategy.

Every step below leaves a file and does nothing if that file is there and was made from the same
inputs, so a run that was killed anywhere goes on by being run again.
"""

from __future__ import annotations

from pathlib import Path

from cropi.config import RunConfig
from cropi.progress import Narrator
from cropi.run_directory import RunDirectory
from cropi.selection import find_strategy
from cropi.stages import Workshop


def run(config: RunConfig, base: Path | None = None, narrator: Narrator | None = None) -> Path:
    """Run the curriculum, its baselines and the report; return the run directory.

    `base` is where relative paths in the config start, beside the current directory. Raises
    InputError for anything in the config, the prompts or the model that cannot be used.
    """
    directory = RunDirectory.open(config, base)
    with Workshop(directory, narrator or Narrator()) as shop:
        shop.load_prompts()
        start = shop.prepare_start()
        shop.evaluate_start(start)
        shop.collect_rollouts(start)
        for strategy in [config.selection.strategy, *config.baselines]:
            train_curriculum(shop, strategy, start)
        shop.write_report()
    return directory.root


def train_curriculum(shop: Workshop, strategy_name: str, start: str) -> str:
    """Train one strategy through all stages; return the path of its last policy."""
    strategy = find_strategy(strategy_name)
    policy = start
    for index in range(shop.config.training.stages):
        stage = shop.directory.stage(strategy_name, index)
        scores = shop.score(stage, strategy, policy)
        selection = shop.select(stage, strategy, scores)
        policy = shop.train(stage, selection, policy)
    return policy
