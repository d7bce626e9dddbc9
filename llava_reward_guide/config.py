"""How a reward is read out of its backbone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


OBJECTIVES = ("bradley-terry", "general-preference", "classification")


@dataclass(frozen=True)
class RewardConfig:
    """The head of a LLaVA-Reward.

    Attributes:
        objective: 'bradley-terry' (one number, compared through its difference), 'general-preference' (an embedding,
            compared through a skew-symmetric form) or 'classification' (a logit; label 1 is safe).
        value_head_dim: 1, or the even dimension of the embedding.
        tau: temperature of preference probabilities. Rewards themselves are not divided by it.
        add_cross_attention: SkipCA.
        hidden_layer: index into the hidden states to read, 0 being the embeddings; None for the last, after its norm.
        visual_layer: take SkipCA's keys and values from the visual positions of this hidden state; None for the
            projected visual tokens.
        mean_pooling: average over all positions in place of the end of the text.
        as_coded: reproduce what the released code does with padding; see docs/llava-reward.md.

    Raises:
        ValueError: for an unknown objective, a dimension that does not suit it, or a temperature that is not positive.
    """

    objective: str = "bradley-terry"
    value_head_dim: int = 1
    tau: float = 0.1
    add_cross_attention: bool = True
    hidden_layer: int | None = None
    visual_layer: int | None = None
    mean_pooling: bool = False
    as_coded: bool = False

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"Unknown objective {self.objective!r}. Known: {', '.join(OBJECTIVES)}.")
        if self.objective == "general-preference":
            if self.value_head_dim < 2 or self.value_head_dim % 2:
                raise ValueError(
                    f"Expected an even `value_head_dim` for general preference, but got {self.value_head_dim}."
                )
        elif self.value_head_dim != 1:
            raise ValueError(f"Expected `value_head_dim` 1 for {self.objective}, but got {self.value_head_dim}.")
        if not self.tau > 0:
            raise ValueError(f"Expected a positive `tau`, but got {self.tau}.")

    def beyond_published(self) -> list[str]:
        """Names of the settings that the published layout has no place for; empty if it can hold this reward.

        It does not tell classification from Bradley-Terry either, but there the released checkpoints do the same, and
        who loads one says so.
        """
        found = [name for name in ("hidden_layer", "visual_layer") if getattr(self, name) is not None]
        return [*found, "mean_pooling"] if self.mean_pooling else found

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
