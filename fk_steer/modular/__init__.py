"""Steering as a block of Modular Diffusers, with the reward as a component of the pipeline."""

from .blocks import FKSteeringStep, with_steering
from .reward import RewardModel


__all__ = ["FKSteeringStep", "RewardModel", "with_steering"]
