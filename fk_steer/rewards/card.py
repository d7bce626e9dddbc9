"""What there is to know about a reward before its weights are fetched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace


@dataclass(frozen=True)
class RewardCard:
    """Facts about a reward, printed by `fk-steer rewards show NAME`.

    Attributes:
        summary: what is scored, in one sentence.
        paper: where it was published, for example 'arXiv 2304.05977'; None for none.
        hub_id: repository of the weights; None if they ship with the package or there are none.
        files: those of `hub_id` that are read.
        revision: commit of `hub_id` that is read unless the caller asks for another; None for the newest, where the
            commit is not known.
        licence: of the weights.
        typical_range: the scores most images get, (low, high).
        default_lmbda: a lambda that suits that scale; None if there is none to recommend.
        dtype: what a model in this process runs in on CUDA devices unless told otherwise, as torch calls it; None if
            there is no such model.
        weights: of that model, in billions.
        variants: name -> card of the variant, the default one first; what a variant leaves out is as for the reward.
            Empty for a reward that has one form.
        checkpoints: further repositories of such weights -> variants that each is trained for. Empty where `hub_id` is
            all there is.
    """

    summary: str
    paper: str | None = None
    hub_id: str | None = None
    files: tuple[str, ...] = ()
    revision: str | None = None
    licence: str | None = None
    typical_range: tuple[float, float] | None = None
    default_lmbda: float | None = None
    dtype: str | None = None
    weights: float | None = None
    variants: Mapping[str, RewardCard] = field(default_factory=dict)
    checkpoints: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def memory(self) -> float | None:
        """What the weights take in that type, in GB."""
        return None if self.weights is None else self.weights * (4 if self.dtype == "float32" else 2)

    def variant(self, name: str) -> RewardCard:
        """The card of a variant, complete with what it shares with the others."""
        given = {entry.name: getattr(self.variants[name], entry.name) for entry in fields(self)}
        return replace(self, **{**{key: value for key, value in given.items() if value}, "variants": {}})
