"""What a run trains on, and what it validates on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..data import Items, read_items
from ..data.blend import hold_out, join, select
from .config import TrainingConfig


@dataclass(frozen=True)
class TrainingData:
    """Of a run.

    Attributes:
        items: to train on.
        sources: for each item the number of the data set that it is from.
        names: of the data sets.
        probabilities: how often they are drawn from; None for as often as they have items.
        validation: held-out items; None without.
    """

    items: Items
    sources: list[int]
    names: list[str]
    probabilities: list[float] | None
    validation: Items | None

    def check_readable(self, indices: Sequence[int]) -> None:
        """Make sure that there is something of each data set.

        Raises:
            ValueError: naming one without.
        """
        found = {self.sources[index] for index in indices}
        if missing := [name for number, name in enumerate(self.names) if number not in found]:
            raise ValueError(
                f"Expected items to train on in '{missing[0]}', but none is left after what cannot be read and what is "
                f"held out. Leave it out of `train_data`, or look at skipped.jsonl."
            )

    def summary(self) -> list[str]:
        """Lines that say how data sets are blended and what is held out."""
        lines = []
        if len(self.names) > 1:
            counts = [self.sources.count(number) for number in range(len(self.names))]
            weights = counts if self.probabilities is None else self.probabilities
            lines = [
                f"{weight / sum(weights):.1%} of the items from '{name}' ({count:,})"
                for name, count, weight in zip(self.names, counts, weights)
            ]
        if self.validation is not None:
            lines.append(f"{len(self.validation):,} items to validate on")
        return lines


def training_data(config: TrainingConfig) -> TrainingData:
    """Read it, as the settings say.

    Raises:
        ImportError: for a Hugging Face dataset without the package `datasets`.
        ValueError: for data that are missing, hold something else, or do not fit the objective.
    """
    names = config.sources()
    if not names:
        raise ValueError("Expected `train_data`, a file of pairs or labelled images, but got none.")
    parts = [read_items(name, config.image_folder) for name in names]
    wanted = config.objective == "classification"
    for name, part in zip(names, parts):
        if part.labelled != wanted:
            raise ValueError(
                f"Expected {'labelled images' if wanted else 'pairs'} for the objective {config.objective!r}, but "
                f"'{name}' holds {'labelled images' if part.labelled else 'pairs'}."
            )
    items, sources = join(parts)
    validation = None
    if config.validation_fraction:
        kept, held_out = hold_out(items, config.validation_fraction, config.seed)
        items, validation = select(items, kept), select(items, held_out)
        sources = [sources[index] for index in kept]
    elif config.validation_data:
        validation = read_items(config.validation_data, config.image_folder)
        if validation.labelled and config.objective == "general-preference":
            raise ValueError("Expected pairs to validate a general preference model, but got labelled images.")
    return TrainingData(items, sources, names, config.train_probabilities, validation)
