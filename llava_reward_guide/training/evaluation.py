"""Validation, spread over the processes of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from ..config import RewardConfig
from ..data.batches import RewardDataset
from ..losses import reward_loss
from ..preference import preference_probability
from ..report import Reliability, pair_reliability, reliability, reward_distribution
from ..scoring import labelled_metrics, pairwise_metrics


@dataclass(frozen=True)
class Validation:
    """What a reward says of held-out items.

    Attributes:
        summary: metric -> value.
        calibration: of preference or class probabilities.
        distribution: of rewards; None for embeddings.
        errors: messages of the items that could not be read and did not take part.
    """

    summary: dict[str, float]
    calibration: Reliability
    distribution: dict[str, Any] | None
    errors: list[str]


@torch.no_grad()
def validate(
    accelerator: Accelerator, model: nn.Module, config: RewardConfig, dataset: RewardDataset, micro_batch_size: int
) -> Validation:
    """Score all items of a dataset; the same result on every process.

    Raises:
        RuntimeError: if scoring failed, on all processes if it did on one, so that none waits for another.
        ValueError: if no item could be read.
    """
    size, processes = len(dataset), accelerator.num_processes
    # Every process runs as many batches, as sharded models need; what is repeated for that is dropped again.
    share = [index % size for index in range(accelerator.process_index, -(-size // processes) * processes, processes)]
    found: list[_Result] = []
    failures: list[str] = []
    was_training = model.training
    model.eval()
    try:
        found = _score(accelerator, model, dataset, share, micro_batch_size)
    except Exception as error:
        failures.append(" ".join(str(error).split()) or type(error).__name__)
    finally:
        model.train(was_training)
    if processes > 1:
        failures = gather_object(failures)
        found = gather_object(found)
    if failures:
        raise RuntimeError(failures[0])
    # Sorted, so that figures do not depend on the number of processes.
    results = sorted({index: (index, values, error) for index, values, error in found}.values())
    errors = [f"Item {index}: {error}" for index, _, error in results if error]
    good = [(index, values) for index, values, error in results if error is None]
    if not good:
        raise ValueError(f"Expected readable images in the validation data, but none is: {errors[0]}")
    rewards = torch.tensor([values for _, values in good])
    summary, calibration = _summarize(config, dataset, [index for index, _ in good], rewards)
    distribution = None
    if rewards.shape[-1] == 1:
        distribution = reward_distribution(
            [
                (prompt, dataset.items[index][side], value)
                for index, values in good
                for side, prompt, (value,) in zip(dataset.items.sides, dataset.items.prompts(index), values)
            ]
        )
        summary |= {f"reward_{name}": distribution[name] for name in ("mean", "std", "std_within_prompts")}
    return Validation({**summary, "items": len(good), "errors": len(errors)}, calibration, distribution, errors)


_Result = tuple[int, list[list[float]], str | None]
"""Index of an item, rewards of its images, and why it could not be read."""


def _score(
    accelerator: Accelerator, model: nn.Module, dataset: RewardDataset, share: list[int], micro_batch_size: int
) -> list[_Result]:
    """The items of one process."""
    found: list[_Result] = []
    for start in range(0, len(share), micro_batch_size):
        examples = [dataset[index] for index in share[start : start + micro_batch_size]]
        batch = dataset.collate(examples).to(accelerator.device)
        rewards = model(batch.inputs).float()
        per_item = rewards.view(len(examples[0].rows), len(examples), -1).transpose(0, 1).tolist()
        found += [(item.index, values, item.error) for item, values in zip(examples, per_item)]
    return found


def _summarize(
    config: RewardConfig, dataset: RewardDataset, indices: list[int], rewards: Tensor
) -> tuple[dict[str, float], Reliability]:
    """Of rewards (N, sides, dim)."""
    stacked = rewards.transpose(0, 1).flatten(0, 1)
    if dataset.items.labelled:
        labels = torch.tensor([float(dataset.items[index]["label"]) for index in indices])
        loss, _ = reward_loss(config, stacked, labels)
        calibration = reliability(rewards[:, 0, 0].sigmoid(), labels)
        metrics = labelled_metrics(rewards[:, 0, 0], labels)
    else:
        loss, _ = reward_loss(config, stacked, None)
        calibration = pair_reliability(preference_probability(rewards[:, 0], rewards[:, 1], config.tau))
        metrics = pairwise_metrics(rewards[:, 0], rewards[:, 1], config.tau)
    return {"loss": float(loss.mean()), **metrics, "ece": calibration.ece}, calibration
