"""Steering as a block of Modular Diffusers, with the reward as a component of the pipeline."""

from .blocks import FKFluxBlocks, FKSteeringStep, FKStableDiffusionXLBlocks, with_steering
from .reward import RewardModel


__all__ = ["FKFluxBlocks", "FKStableDiffusionXLBlocks", "FKSteeringStep", "RewardModel", "with_steering"]
