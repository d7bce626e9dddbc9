"""Denoiser rows that prompts have saved by reaching the reward asked for, spent on those that have not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arguments import entries, names_per_prompt
from .generators import fresh_generators
from .run import Result, Run


def roll_over(run: Run, result: Result, prepare: Callable[[dict[str, Any], list[str]], Run]) -> Result:
    """Run populations that have not reached `target_reward` again, from other noise, while the rows saved pay for it;
    those nearest to it come first. A population's images are replaced if the best of the new ones is better.

    Args:
        run: the run that has been made. Its trace takes in what is done here.
        result: of that run.
        prepare: makes a run from the pipeline's arguments and the prompts that the reward reads.
    """
    trace, target = run.trace, run.steering.target_reward
    assert target is not None
    cost = (trace.nfe + trace.nfe_saved) // len(run.prompts)
    arguments = {name: value for name, value in run.arguments.items() if name != "latents"}
    while cost:  # none was spent if the call was interrupted before the first step
        missing = [p for p in result.rewards[:, 0].argsort(descending=True).tolist() if result.rewards[p, 0] < target]
        chosen = sorted(missing[: trace.nfe_saved // cost])
        if not chosen:
            break
        retry = prepare(
            {
                **entries(
                    arguments,
                    names_per_prompt(run.pipe),
                    len(run.prompts) // run.per_prompt,
                    [p // run.per_prompt for p in chosen],
                ),
                "generator": fresh_generators([run.resampling[p] for p in chosen]),
                "output_type": run.output_type,
                "eta": run.eta,
            },
            [run.prompts[p] for p in chosen],
        )
        result = _better_of(result, retry(), chosen)
        trace.nfe_saved -= retry.trace.nfe
        trace.retries.append((chosen, retry.trace))
    return result


def _better_of(result: Result, retry: Result, chosen: list[int]) -> Result:
    """`result` with the populations `chosen` taken from `retry` where its best reward is higher."""
    P, size = result.rewards.shape
    rows = torch.arange(P * size).view(P, size)
    retried = P * size + torch.arange(len(chosen) * size).view(-1, size)
    better = retry.rewards[:, 0] > result.rewards[chosen, 0]
    rows[torch.tensor(chosen)[better]] = retried[better]
    order = rows.flatten()

    def merge(first: Any, second: Any) -> Any:
        if isinstance(first, Tensor):
            return torch.cat([first, second])[order.to(first.device)]
        if isinstance(first, np.ndarray):
            return np.concatenate([first, second])[order.numpy()]
        return [[*first, *second][row] for row in order.tolist()] if isinstance(first, list) else first

    return Result(
        merge(result.images, retry.images),
        [merge(first, second) for first, second in zip(result.others, retry.others)],
        merge(result.rewards.flatten(), retry.rewards.flatten()).view(P, size),
        merge(result.log_weights.flatten(), retry.log_weights.flatten()).view(P, size),
    )
