"""Pipelines and rewards that stay loaded."""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..loading import load_guide, load_pipeline
from ..rewards import Ensemble, ZScoreSum
from ..rewards.base import RewardFunction
from ..rewards.loading import default_device


class Models:
    """The pipeline that was used last, and the rewards.

    Whoever uses one holds `lock`: there is one of each, and a run puts its own methods into the pipeline.

    Args:
        device: None for CUDA if there is a device, else the CPU.
        rewards: kept at most; those not used for longest go first.
    """

    def __init__(self, device: str | None = None, rewards: int = 4) -> None:
        self.device = default_device(device)
        self.lock = threading.Lock()
        self.threads = torch.get_num_threads()
        self._pipelines = _Kept(1)
        self._rewards = _Kept(rewards)

    def here(self) -> None:
        """Compute in this thread as in the one that made this object: each begins with as many cores as there are."""
        torch.set_num_threads(self.threads)

    def pipeline(self, model: str, dtype: str = "auto") -> Any:
        """A pipeline, with the scheduler that it came with.

        Raises:
            OSError, ValueError: see `load_pipeline`.
        """

        def load() -> tuple[Any, Any]:
            pipe = load_pipeline(model, dtype=dtype, device=self.device)
            return pipe, pipe.scheduler

        pipe, scheduler = self._pipelines.get((model, dtype), load)
        pipe.scheduler = scheduler
        return pipe

    def reward(self, name: str, options: Mapping[str, Any]) -> RewardFunction:
        """A reward.

        Raises:
            OSError, ValueError, ImportError: see `load_reward`.
        """
        key = (name, repr(sorted(options.items())))
        return self._rewards.get(key, lambda: load_guide(name, self.device, **options))

    def guide(self, weights: Mapping[str, float], options: Mapping[str, Mapping[str, Any]]) -> RewardFunction:
        """A reward, or of several the mean of their z-scores over the particles of a prompt, weighted.

        Raises:
            OSError, ValueError, ImportError: see `load_reward`.
        """
        loaded = {name: self.reward(name, options.get(name, {})) for name in weights}
        if len(loaded) == 1:
            return next(iter(loaded.values()))
        if set(weights.values()) == {1.0}:
            return Ensemble(list(loaded.values()))
        total = sum(map(abs, weights.values()))
        return ZScoreSum({loaded[name]: weight / total for name, weight in weights.items()})


class _Kept:
    """The last few of something that is dear to make."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: OrderedDict[Any, Any] = OrderedDict()

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._held:
            while len(self._held) >= self._most:
                self._held.popitem(last=False)
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            self._held[key] = make()
        self._held.move_to_end(key)
        return self._held[key]
