"""`python -m cropi` is `cropi`."""

from cropi.cli import main

if __name__ == "__main__":
    main()
