"""An embedded model and tasks, so that `cropi` trains something real on a bare CPU in minutes.

`tasks` generates twelve skills with disjoint splits, `model` finds the shipped weights of a tiny
character-level Qwen2, and `pretrain` is the script that made them. Importing this package loads
neither torch nor transformers.
"""

from cropi.pocket.model import model_dir
from cropi.pocket.tasks import SKILLS, TARGETS, Skill, rows

__all__ = ["SKILLS", "TARGETS", "Skill", "model_dir", "rows"]
