"""cropi run: a whole curriculum."""

from __future__ import annotations

from cropi.cli.options import Config, Settings, load
from cropi.cli.printing import make_reporter
from cropi.cli.report import print_run


def run(config: Config, settings: Settings = None) -> None:
    """Run a whole curriculum: rollouts, influence, selection, GRPO, evaluation, report.

    A run that was stopped continues when the same command is given again.

    Examples:

        cropi run pocket

        cropi run my.yaml selection.ratio=0.2 name=wider
    """
    loaded, base = load(config, settings)
    import cropi

    reporter = make_reporter()
    reporter.say(f"cropi {config}  ->  {loaded.url or loaded.directory}", style="bold")
    print_run(cropi.run(loaded, base, reporter))
