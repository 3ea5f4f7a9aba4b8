"""`python -m cropi.cli` is `cropi`."""

from cropi.cli import main

main()
