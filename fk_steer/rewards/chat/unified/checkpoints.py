"""The published checkpoints of UnifiedReward, and which task each of them knows.

Source: the README and the scripts of github.com/CodeGoat24/UnifiedReward at `COMMIT` of `prompts`.
"""

from __future__ import annotations

from dataclasses import dataclass


OWNER = "CodeGoat24"

ANSWERS = ("answer", "answer-pair", "video-answer", "video-answer-pair")
CLASSIC = ("point", "pair", "video", "video-pair", *ANSWERS)
SECOND = (*CLASSIC, "axes", "pair-scores", "video-axes", "video-pair-scores")
THINK = ("think", "video-think", "answer-think", "video-answer-think")
FLEX = ("flex", "video-flex")
EDIT = ("edit", "edit-quality", "edit-pair", "edit-pair-scores")


@dataclass(frozen=True)
class Family:
    """Checkpoints that were trained alike.

    Attributes:
        name: of the family, the sizes of its checkpoints left out.
        sizes: of its checkpoints, as their names end.
        base: what they are made of: 'LLaVA-OneVision', 'Qwen2.5-VL', 'Qwen3-VL' or 'Qwen3.5'.
        tasks: variants of `unified-reward` that they know.
        prompts: styles of prompts, see `prompts.PUBLISHED`; the first that has the task is theirs.
    """

    name: str
    sizes: tuple[str, ...]
    base: str
    tasks: tuple[str, ...]
    prompts: tuple[str, ...]

    @property
    def title(self) -> str:
        """Name and sizes, for example 'UnifiedReward-qwen-{3b,7b,32b}'."""
        return self.name.replace("*", self.sizes[0] if len(self.sizes) == 1 else f"{{{','.join(self.sizes)}}}")

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Their ids on the hub."""
        return tuple(f"{OWNER}/{self.name.replace('*', size)}" for size in self.sizes)


_QWEN, _QWEN3 = ("3b", "7b", "32b", "72b"), ("2b", "4b", "8b", "32b")
FAMILIES = (
    Family("UnifiedReward-*", ("0.5b", "7b"), "LLaVA-OneVision", CLASSIC, ("llava",)),
    Family("UnifiedReward-*", ("7b-v1.5",), "LLaVA-OneVision", (*CLASSIC, "axes"), ("llava",)),
    Family("UnifiedReward-qwen-*", ("3b", "7b", "32b"), "Qwen2.5-VL", (*CLASSIC, "axes"), ("qwen",)),
    Family("UnifiedReward-2.0-qwen-*", _QWEN, "Qwen2.5-VL", SECOND, ("2.0", "qwen")),
    Family("UnifiedReward-2.0-qwen3vl-*", _QWEN3, "Qwen3-VL", SECOND, ("2.0", "qwen")),
    Family("UnifiedReward-2.0-qwen35-*", ("9b",), "Qwen3.5", SECOND, ("2.0", "qwen")),
    Family("UnifiedReward-Think-*", ("7b",), "LLaVA-OneVision", THINK, ("think-llava",)),
    Family("UnifiedReward-Think-qwen-*", ("7b",), "Qwen2.5-VL", THINK, ("think-qwen",)),
    Family("UnifiedReward-Think-qwen3vl-*", _QWEN3, "Qwen3-VL", THINK, ("think-qwen3",)),
    Family("UnifiedReward-Think-qwen35-*", ("9b",), "Qwen3.5", THINK, ("think-qwen3",)),
    Family("UnifiedReward-Flex-qwen3vl-*", ("8b",), "Qwen3-VL", FLEX, ("flex",)),
    Family("UnifiedReward-Flex-qwen35-*", ("9b",), "Qwen3.5", FLEX, ("flex",)),
    # Trained on 2.0 with images and edited images; what they know of images, they are asked as 2.0 is.
    *(
        Family(
            f"UnifiedReward-Edit-{base}-*",
            sizes,
            of,
            (*EDIT, "point", "axes", "pair", "pair-scores"),
            ("edit", "2.0", "qwen"),
        )
        for base, sizes, of in (
            ("qwen", _QWEN, "Qwen2.5-VL"),
            ("qwen3vl", _QWEN3, "Qwen3-VL"),
            ("qwen35", ("9b",), "Qwen3.5"),
        )
    ),
)
CHECKPOINTS = {checkpoint: family for family in FAMILIES for checkpoint in family.checkpoints}
"""Id on the hub -> family."""


def family_of(checkpoint: str | None) -> Family | None:
    """The family of a checkpoint by its id, with or without the owner and in any case; None for any other name."""
    if checkpoint is None:
        return None
    name = checkpoint.rstrip("/").rpartition("/")[2].lower()
    return next((family for known, family in CHECKPOINTS.items() if known.rpartition("/")[2].lower() == name), None)


def check_task(checkpoint: str | None, task: str) -> Family | None:
    """The family of a checkpoint, None for one that is not known.

    Raises:
        ValueError: if it does not know the task.
    """
    family = family_of(checkpoint)
    if family is not None and task not in family.tasks:
        others = ", ".join(one.title for one in FAMILIES if task in one.tasks)
        raise ValueError(
            f"{checkpoint} does not know the variant {task!r} of unified-reward. It knows: {', '.join(family.tasks)}. "
            f"The variant is known to: {others}."
        )
    return family
