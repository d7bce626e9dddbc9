"""Blocks that steer: the denoising and decoding blocks of a modular pipeline, run by `steer`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from diffusers.modular_pipelines import (
    ComponentSpec,
    InputParam,
    ModularPipelineBlocks,
    OutputParam,
    PipelineState,
    SequentialPipelineBlocks,
)
from diffusers.modular_pipelines.modular_pipeline_utils import ConfigSpec

from .. import __version__
from ..diffusion import Execution, ScoringEvent, steer
from ..diffusion.blocks import all_blocks
from ..report.trace import Trace
from ..search import DEFAULT_PRESET, Strategy, preset
from .reward import RewardModel


STEERED = ("denoise", "decode")
"""The blocks of Diffusers' pipelines of images that are steered."""


class FKSteeringStep(ModularPipelineBlocks):
    """Runs blocks that denoise and decode with several particles for each image, steered towards a high reward.

    It takes what these blocks take, and:

    - `steering`: the name of a preset, an `FKSteering` or another `Strategy`
    - `num_particles`, `lmbda`: in place of the preset's
    - `prompt`, or in its place `reward_prompt`: what the reward reads
    - `execution`, `on_event`: see `steer`

    It gives `images`, those alive at the end, prompt by prompt and the best first; `rewards` and `log_weights` (N, k)
    of the k images of each of the N populations; and the `trace`.

    Args:
        part: blocks that make images of encoded prompts.
    """

    _requirements = {"fk-steer": f">={__version__}"}

    def __init__(self, part: ModularPipelineBlocks) -> None:
        super().__init__()
        self.part = part

    @property
    def model_name(self) -> str | None:
        """The name of the model whose blocks are steered."""
        return self.part.model_name

    @property
    def description(self) -> str:
        """What the block does, in a sentence."""
        return (
            "Denoises and decodes several particles for each image, steered towards a high reward by Feynman-Kac "
            "sequential Monte Carlo (arXiv 2501.06848)."
        )

    @property
    def expected_components(self) -> list[ComponentSpec]:
        """The components of the blocks that are steered, and the reward."""
        return [
            *self.part.expected_components,
            ComponentSpec(
                "reward",
                RewardModel,
                description="Says how good images are for prompts.",
                pretrained_model_name_or_path="image-reward",
            ),
        ]

    @property
    def expected_configs(self) -> list[ConfigSpec]:
        """The configs of the blocks that are steered."""
        return list(self.part.expected_configs)

    @property
    def inputs(self) -> list[InputParam]:
        """The inputs of the blocks that are steered, and those that say how."""
        own = [
            InputParam("prompt", type_hint=str | list[str], description="What the reward reads."),
            InputParam(
                "reward_prompt", type_hint=str | list[str], description="What the reward reads in place of the prompt."
            ),
            InputParam(
                "steering",
                type_hint=str | Strategy,
                default=DEFAULT_PRESET,
                description="The name of a preset, or settings such as `FKSteering(...)`.",
            ),
            InputParam("num_particles", type_hint=int, description="Particles per image, in place of the preset's."),
            InputParam("lmbda", type_hint=float, description="How much the reward counts, in place of the preset's."),
            InputParam("eta", type_hint=float, description="Noise of the sampler, in place of the preset's."),
            InputParam("execution", type_hint=Execution, description="How much to do at a time."),
            InputParam(
                "on_event", type_hint=Callable[[ScoringEvent], Any], description="Called after every scoring event."
            ),
        ]
        names = {entry.name for entry in own}
        # Which of them are needed depends on others; the blocks say so when they run.
        theirs = [replace(entry, required=False) for entry in self.part.inputs if entry.name not in names]
        # What is not said the settings may say; else the blocks take their own.
        theirs = [replace(entry, default=None) if entry.name == "num_inference_steps" else entry for entry in theirs]
        return [*theirs, *own]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """The images with their rewards and weights, and the trace of the run."""
        return [
            OutputParam(
                "images", type_hint=list, description="All alive at the end, prompt by prompt, the best first."
            ),
            OutputParam(
                "rewards", type_hint=torch.Tensor, description="(N, k) those of the k images of each of N populations."
            ),
            OutputParam("log_weights", type_hint=torch.Tensor, description="(N, k) normalised in each population."),
            OutputParam("trace", type_hint=Trace, description="Every scoring event, and where the time went."),
        ]

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Set the progress bars of the blocks that are steered, as those of a loop of Diffusers are set."""
        for block in all_blocks(self.part):
            if hasattr(block, "progress_bar"):
                block.set_progress_bar_config(**kwargs)

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """Run the blocks.

        Raises:
            ValueError: if there is no reward, or for settings that do not fit together.
        """
        block_state = self.get_block_state(state)
        if components.reward is None:
            raise ValueError(
                "The pipeline has no `reward`. `pipe.update_components(reward=RewardModel(...))` gives it one, and "
                '`pipe.load_components("reward", pretrained_model_name_or_path="clip-score")` loads one by name.'
            )
        reward = getattr(components.reward, "reward", components.reward)
        pipe = copy.copy(components)  # with the same components
        pipe._blocks = self.part
        names = {entry.name for entry in self.part.inputs if entry.name}
        arguments = {name: block_state[name] for name in sorted(names) if block_state[name] is not None}
        texts = block_state.prompt if block_state.reward_prompt is None else block_state.reward_prompt
        output = steer(pipe, reward, _settings(block_state), block_state.execution)(
            **arguments, reward_prompt=texts, on_event=block_state.on_event
        )
        particles = output.particles
        block_state.images = (
            [image for population in particles for image in population]
            if isinstance(particles, list)
            else particles.reshape(-1, *particles.shape[2:])
        )
        block_state.rewards, block_state.log_weights = output.rewards, output.log_weights
        block_state.trace = output.trace
        self.set_block_state(state, block_state)
        return components, state


def _settings(block_state: Any) -> Strategy:
    given = {name: block_state[name] for name in ("num_particles", "lmbda") if block_state[name] is not None}
    settings = block_state.steering
    if isinstance(settings, str):
        return preset(settings, **given)
    if given:
        raise ValueError(
            f"`{next(iter(given))}` belongs to a preset, and `steering` is settings of its own. Put it in these."
        )
    return settings


def with_steering(blocks: ModularPipelineBlocks) -> ModularPipelineBlocks:
    """The blocks of a modular pipeline of Diffusers, which denoise and decode in an `FKSteeringStep`.

    Args:
        blocks: such as `StableDiffusionXLAutoBlocks()`; they are changed.

    Raises:
        ValueError: for blocks without those that denoise and decode.
    """
    if missing := [name for name in STEERED if name not in blocks.sub_blocks]:
        raise ValueError(
            f"{type(blocks).__name__} has no block `{missing[0]}`. It has: {', '.join(blocks.sub_blocks)}."
        )
    part = {name: blocks.sub_blocks.pop(name) for name in STEERED}
    # Not by the name of one of its inputs: Diffusers would not count its outputs.
    blocks.sub_blocks["fk_steering"] = FKSteeringStep(SequentialPipelineBlocks.from_blocks_dict(part))
    return blocks
