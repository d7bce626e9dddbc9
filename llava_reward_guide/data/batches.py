"""Batches of pairs or labelled images, in an order that follows from the seed and the number of the step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ..backbones import Backbone, BackboneInputs
from ..backbones.base import Row
from ..images import ImageError
from .items import Items


@dataclass(frozen=True)
class Example:
    """One item, prepared: a row for each of its images, its label if it has one, and why it could not be read."""

    index: int
    rows: tuple[Row, ...]
    label: int | None
    error: str | None


@dataclass(frozen=True)
class Batch:
    """Examples in one padded batch.

    Attributes:
        inputs: rows of all first images (the chosen), then of all second ones (the rejected).
        labels: (B,) float; None for pairs.
        weights: (B,) float, 0 for an item that could not be read and that a blank image stands for.
        indices: of the items.
        errors: of those that could not be read.
    """

    inputs: BackboneInputs
    labels: Tensor | None
    weights: Tensor
    indices: list[int]
    errors: list[str]

    def to(self, device: torch.device | str) -> Batch:
        return replace(
            self,
            inputs=self.inputs.to(device),
            labels=None if self.labels is None else self.labels.to(device),
            weights=self.weights.to(device),
        )


class RewardDataset(Dataset):
    """Items ready for a backbone.

    An image that cannot be read, or that the backbone cannot take, does not end a run: its item enters with weight 0
    and says why.

    Args:
        cache: keep what was prepared. For small images and small backbones, whose preparation costs as much as a step.
    """

    def __init__(self, items: Items, backbone: Backbone, cache: bool = False) -> None:
        self.items = items
        self.backbone = backbone
        self.cache: dict[int, Example] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Example:
        if self.cache is not None and index in self.cache:
            return self.cache[index]
        error = None
        prompts = self.items.prompts(index)
        try:
            rows = tuple(self.backbone.prepare_row(*pair) for pair in zip(self.items.images(index), prompts))
        except ImageError as problem:
            error = str(problem)
            rows = tuple(self.backbone.prepare_row(Image.new("RGB", (32, 32)), prompt) for prompt in prompts)
        example = Example(index, rows, self.items[index].get("label"), error)
        if self.cache is not None:
            self.cache[index] = example
        return example

    def collate(self, examples: Sequence[Example]) -> Batch:
        sides = range(len(examples[0].rows))
        labelled = examples[0].label is not None
        return Batch(
            inputs=self.backbone.collate([example.rows[side] for side in sides for example in examples]),
            labels=torch.tensor([float(example.label or 0) for example in examples]) if labelled else None,
            weights=torch.tensor([float(example.error is None) for example in examples]),
            indices=[example.index for example in examples],
            errors=[f"Item {example.index}: {example.error}" for example in examples if example.error],
        )


class StepSampler(Sampler[list[int]]):
    """Micro-batches of one process: every epoch a permutation drawn from seed and epoch, cut into global batches.

    The order is a function of the step alone: a run goes on from any step, on any number of processes, over the same
    global batches. What is left over at the end of an epoch waits for another permutation.

    With `probabilities` every item of a batch is of a list drawn by them, and each list is gone through in permutations
    of its own: small ones more often than large ones, if so told.

    Args:
        indices: of the items to draw from.
        batch_size: items of an optimiser step, over all processes.
        micro_batch_size: items of a pass of one process.
        steps: optimiser steps; those before `start` are left out.
        sources: for each index the number of the list that it is from.
        probabilities: of the lists, whatever their sum; None to draw from all items alike.

    Raises:
        ValueError: if there are fewer items than a batch has, a list has none, or batches cannot be cut evenly.
    """

    def __init__(
        self,
        indices: Sequence[int],
        batch_size: int,
        micro_batch_size: int,
        steps: int,
        seed: int,
        start: int = 0,
        process: int = 0,
        num_processes: int = 1,
        sources: Sequence[int] | None = None,
        probabilities: Sequence[float] | None = None,
    ) -> None:
        if len(indices) < batch_size:
            raise ValueError(
                f"Expected at least `batch_size` ({batch_size}) readable items, but got {len(indices)}. Take a smaller "
                "one, --batch-size, or more data."
            )
        if batch_size % (micro_batch_size * num_processes):
            raise ValueError(
                f"Expected `batch_size` to be a multiple of `micro_batch_size` times the number of processes, but got "
                f"{batch_size}, {micro_batch_size} and {num_processes}."
            )
        self.indices = torch.as_tensor(indices)
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.steps, self.seed, self.start = steps, seed, start
        self.process, self.num_processes = process, num_processes
        self.probabilities: np.ndarray | None = None
        if probabilities is not None:
            self.probabilities = np.asarray(probabilities, dtype=float) / sum(probabilities)
            places = np.zeros(len(indices)) if sources is None else np.asarray(sources)
            self.lists = [np.asarray(indices)[places == number] for number in range(len(probabilities))]
            if empty := [str(number) for number, one in enumerate(self.lists) if not len(one)]:
                raise ValueError(f"Expected readable items in every list, but {', '.join(empty)} has none.")

    @property
    def accumulation(self) -> int:
        """Micro-batches of an optimiser step on each process."""
        return self.batch_size // (self.micro_batch_size * self.num_processes)

    def __len__(self) -> int:
        return (self.steps - self.start) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._permuted() if self.probabilities is None else self._blended(self.probabilities):
            mine = batch.view(-1, self.num_processes, self.micro_batch_size)[:, self.process]
            yield from mine.tolist()

    def _permuted(self) -> Iterator[Tensor]:
        per_epoch = len(self.indices) // self.batch_size
        order, drawn = self.indices, -1
        for step in range(self.start, self.steps):
            epoch, position = divmod(step, per_epoch)
            if epoch != drawn:
                generator = torch.Generator().manual_seed(self.seed + 1_000_003 * epoch)
                order, drawn = self.indices[torch.randperm(len(self.indices), generator=generator)], epoch
            yield order[position * self.batch_size : (position + 1) * self.batch_size]

    def _blended(self, probabilities: np.ndarray) -> Iterator[Tensor]:
        seed = self.seed % 2**64
        drawn = [0] * len(self.lists)
        orders: list[tuple[int, np.ndarray]] = [(-1, one) for one in self.lists]
        for step in range(self.steps):
            numbers = np.random.default_rng([seed, 0, step]).choice(len(self.lists), self.batch_size, p=probabilities)
            if step < self.start:
                # Where each list stands follows from the steps before.
                for number, count in enumerate(np.bincount(numbers, minlength=len(self.lists))):
                    drawn[number] += int(count)
                continue
            batch = []
            for number in numbers.tolist():
                one = self.lists[number]
                epoch, position = divmod(drawn[number], len(one))
                if orders[number][0] != epoch:
                    orders[number] = epoch, np.random.default_rng([seed, 1, number, epoch]).permutation(one)
                batch.append(int(orders[number][1][position]))
                drawn[number] += 1
            yield torch.tensor(batch)
