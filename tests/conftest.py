"""Lets tests of upper floors use the gradient oracle and its tiny models."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "gradients"))
