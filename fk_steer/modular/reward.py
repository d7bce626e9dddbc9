"""A reward as a component of a modular pipeline: a module, which is loaded, moved and offloaded like the others."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..rewards.base import Images, Reward, RewardFunction
from ..rewards.functions import as_reward
from ..rewards.local import LocalReward, PromptCache
from ..rewards.registry import load_reward, reward_factory


class RewardModel(nn.Module):
    """A reward with the modules that it is made of.

    ```py
    pipe.update_components(reward=RewardModel(load_reward("image-reward")))
    pipe.load_components("reward", pretrained_model_name_or_path="clip-score")
    ```

    Whatever a reward computes is computed by a call of this module, so that hooks that bring a module to a device
    before it is called (those of `ComponentsManager.enable_auto_cpu_offload`, for example) bring the reward's there.

    Args:
        reward: any `Reward`, a function of images and prompts, the name of a reward, or a mapping of these to weights.

    Attributes:
        reward: what steers.
        parts: the modules of the reward.
    """

    def __init__(self, reward: RewardFunction | str | Mapping[Any, float]) -> None:
        super().__init__()
        plain = as_reward(reward)
        found = {id(part): part for leaf in _leaves(plain) for part in _modules(leaf)}
        self.parts = nn.ModuleList(found.values())
        self.register_buffer("anchor", torch.zeros(()), persistent=False)
        self.reward: Reward = _Placed(plain, self, {})
        self._local = [leaf for leaf in _leaves(plain) if isinstance(leaf, LocalReward)]
        self.eval()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **options: Any
    ) -> RewardModel:
        """A reward by name, as `load_reward` makes it.

        Args:
            pretrained_model_name_or_path: the reward's name.
            subfolder: None; rewards are in none.
            **options: of the reward. What `load_components` says to all components alike (`variant="fp16"`,
                `use_safetensors`, `dtype` and so on) is passed over by a reward that does not have it.

        Raises:
            ValueError: for an unknown name or option.
            RewardLoadError: if the weights cannot be loaded.
        """
        name = pretrained_model_name_or_path
        if subfolder:
            raise ValueError(f"A reward is loaded by its name, and not from a subfolder, but got {subfolder!r}.")
        known = inspect.signature(reward_factory(name)).parameters
        given = {
            key: value
            for key, value in options.items()
            if value is not None and not (key in _OF_ALL and key not in known) and (key, value) not in _OF_FILES
        }
        return cls(load_reward(name, **given))

    @property
    def device(self) -> torch.device:
        """The device of the modules."""
        return self._first.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the modules."""
        return self._first.dtype

    @property
    def _first(self) -> Tensor:
        floats = (value for value in self.parameters() if value.is_floating_point())
        return next(floats, self.get_buffer("anchor"))

    def get_memory_footprint(self) -> int:
        """The size of the modules in bytes, by which `ComponentsManager` chooses what to offload."""
        return sum(value.nelement() * value.element_size() for value in [*self.parameters(), *self.buffers()])

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        """Compute something of the reward where its modules are now."""
        for leaf in self._local:
            if (leaf.device.type, leaf.dtype) != (self.device.type, self.dtype):
                leaf.device, leaf.dtype = self.device, self.dtype
                leaf.prompts = PromptCache(leaf.read)  # what it knows of prompts lies elsewhere
        return function(*args)


_OF_ALL = frozenset(
    {
        "cache_dir",
        "device",
        "device_map",
        "dtype",
        "force_download",
        "local_files_only",
        "low_cpu_mem_usage",
        "proxies",
        "quantization_config",
        "revision",
        "token",
        "trust_remote_code",
        "use_safetensors",
        "variant",
    }
)
"""Options of `from_pretrained` that a pipeline passes to all of its components."""

_OF_FILES = frozenset(("variant", name) for name in ("fp16", "bf16", "fp32", "non_ema"))
"""Which of a model's files to read; a reward's variants are other models."""


class _Placed(Reward):
    """A reward that is computed by calls of a module."""

    def __init__(self, reward: Reward, module: RewardModel, others: dict[Reward, _Placed]) -> None:
        self._reward, self._module, self._others = reward, module, others
        others[reward] = self
        self.name, self.default_lmbda = reward.name, reward.default_lmbda
        self.relative, self.standardize, self.takes_videos = reward.relative, reward.standardize, reward.takes_videos

    def encode(self, images: Images, prompts: Sequence[str]) -> Any:
        return self._module(self._reward.encode, images, prompts)

    def of_particles(
        self, encodings: Tensor | Sequence[Any], members: Sequence[Tensor], prompts: Sequence[str]
    ) -> list[Tensor]:
        if type(self._reward).of_particles is Reward.of_particles:
            return self._reward.of_particles(encodings, members, prompts)
        scores: list[Tensor] = self._module(self._reward.of_particles, encodings, members, prompts)
        return scores

    @property
    def leaves(self) -> tuple[Reward, ...]:
        return tuple(self._of(leaf) for leaf in self._reward.leaves)

    def combine(self, scores: Mapping[Reward, Tensor]) -> Tensor:
        return self._reward.combine({leaf: scores[self._of(leaf)] for leaf in self._reward.leaves})

    def missing(self, scores: Mapping[Reward, Tensor], among: Tensor) -> dict[Reward, Tensor]:
        known = {leaf: scores[self._of(leaf)] for leaf in self._reward.leaves if self._of(leaf) in scores}
        return {self._of(leaf): mask for leaf, mask in self._reward.missing(known, among).items()}

    def at(self, progress: float) -> Reward:
        return self._of(self._reward.at(progress))

    def _of(self, reward: Reward) -> _Placed:
        return self._others.get(reward) or _Placed(reward, self._module, self._others)


def _leaves(reward: Reward) -> tuple[Reward, ...]:
    """All that are ever scored."""
    return tuple(dict.fromkeys([*reward.leaves, *reward.at(0.0).leaves, *reward.at(1.0).leaves]))


def _modules(leaf: Reward) -> list[nn.Module]:
    """Those that a reward, or the function behind it, has."""
    function = getattr(leaf, "function", None)
    owners = [leaf, function, getattr(function, "__self__", None)]
    held = [value for owner in owners if hasattr(owner, "__dict__") for value in vars(owner).values()]
    return [value for value in [*owners, *held] if isinstance(value, nn.Module)]
