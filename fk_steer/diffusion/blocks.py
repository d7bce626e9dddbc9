"""The blocks of a modular pipeline: those that encode prompts, which a replay need not run again, and its loops."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.modular_pipelines.modular_pipeline import LoopSequentialPipelineBlocks, PipelineState

from .components import denoisers_of, is_modular


Encode = Callable[..., Mapping[str, Any]]
"""Called with what makes an encoding of a block's inputs, and the inputs by name; gives the encoding."""


class EncodingBlock:
    """Stands in for a block, whose results come by way of a function.

    Args:
        block: the block itself.
        encode: called with a function that runs it and the inputs by name; gives what it changes in the pipeline's
            state.
    """

    def __init__(self, block: Any, encode: Encode) -> None:
        self._block, self._encode = block, encode

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._block, memo)

    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        block = self._block

        def run(**inputs: Any) -> dict[str, Any]:
            values = {**state.values, **inputs}
            mapping = {kind: list(names) for kind, names in state.kwargs_mapping.items()}
            after = PipelineState(dict(values), mapping)
            block(components, after)
            return {
                name: value
                for name, value in after.values.items()
                if name in made or name not in values or value is not values[name]
            }

        made = {entry.name: entry.kwargs_type for entry in block.intermediate_outputs}
        inputs = {entry.name: state.get(entry.name) for entry in block.inputs if entry.name}
        for name, value in self._encode(run, **inputs).items():
            state.set(name, value, made.get(name))
        return components, state


@contextmanager
def encoding_by(pipe: Any, encode: Encode) -> Iterator[None]:
    """While the context lasts, what encodes prompts (and images, by encoders of their own) does so by `encode`.

    These are blocks outside of loops that draw nothing, with a module that is neither a denoiser nor an autoencoder.
    """
    parts = pipe.components
    others = {id(module) for module in denoisers_of(pipe).values()}

    def encodes(block: Any) -> bool:
        names = [spec.name for spec in block.expected_components]
        modules = [parts[name] for name in names if isinstance(parts.get(name), torch.nn.Module)]
        takes = {entry.name for entry in block.inputs}
        if "scheduler" in names or "generator" in takes or any(hasattr(module, "decode") for module in modules):
            return False
        return any(id(module) not in others for module in modules)

    found = [
        (owner, name, block)
        for owner, name, block in _leaves(pipe._blocks)
        if not isinstance(block, EncodingBlock) and encodes(block)
    ]
    for owner, name, block in found:
        owner.sub_blocks[name] = EncodingBlock(block, encode)
    try:
        yield
    finally:
        for owner, name, block in found:
            owner.sub_blocks[name] = block


@contextmanager
def quietly(pipe: Any) -> Iterator[None]:
    """While the context lasts, the blocks of a pipeline show no progress and log no errors."""
    loops = loops_of(pipe)
    settings = [vars(block).get("_progress_bar_config") for block in loops]
    logger = logging.getLogger("diffusers.modular_pipelines.modular_pipeline")
    disabled, logger.disabled = logger.disabled, True
    for block, setting in zip(loops, settings):
        block._progress_bar_config = {**(setting or {}), "disable": True}
    try:
        yield
    finally:
        logger.disabled = disabled
        for block, setting in zip(loops, settings):
            block._progress_bar_config = setting or {}


def loops_of(pipe: Any) -> list[Any]:
    """The blocks of a modular pipeline that show a progress bar of their own; none of another pipeline."""
    blocks = all_blocks(pipe._blocks) if is_modular(pipe) else ()
    return [block for block in blocks if hasattr(block, "progress_bar")]


def all_blocks(block: Any) -> Iterator[Any]:
    """A block and all that it is made of."""
    yield block
    for part in block.sub_blocks.values():
        yield from all_blocks(part)


def _leaves(owner: Any) -> Iterator[tuple[Any, str, Any]]:
    """Blocks without blocks of their own, outside of loops, and what they are in."""
    for name, block in owner.sub_blocks.items():
        if isinstance(block, LoopSequentialPipelineBlocks):
            continue
        if block.sub_blocks:
            yield from _leaves(block)
        else:
            yield owner, name, block
