"""UnifiedReward: its checkpoints, the tasks that they know, the prompts they were trained with, and their replies."""

from ...wording import Template
from .checkpoints import CHECKPOINTS, FAMILIES, OWNER, Family, family_of
from .prompts import template_of
from .tasks import TASKS, UnifiedTask


__all__ = [
    "CHECKPOINTS",
    "FAMILIES",
    "OWNER",
    "TASKS",
    "Family",
    "Template",
    "UnifiedTask",
    "family_of",
    "template_of",
]
