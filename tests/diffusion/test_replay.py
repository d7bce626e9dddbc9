"""A pipeline's call run again: what it makes of x0, where it has the rows, and what it leaves as it was."""

from __future__ import annotations

import copy
import io
import logging
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FluxControlNetModel,
    FluxControlNetPipeline,
    StableDiffusionInpaintPipeline,
    logging as diffusers_logging,
)
from diffusers.modular_pipelines import FluxAutoBlocks
from PIL import Image

from benchmarks.pipelines.cases import modular_case, plain_case, recorded_steps
from benchmarks.pipelines.checks import Copying, Watching, generators, in_slots, reward
from fk_steer import Execution, Noise
from fk_steer.diffusion.call import Call
from fk_steer.diffusion.components import is_modular, loops_of, makes_videos
from fk_steer.diffusion.layout import Block, Entries
from fk_steer.diffusion.ranks import Ranks
from fk_steer.diffusion.replay import Replay, step_output
from fk_steer.diffusion.run import Run
from fk_steer.rewards.base import as_reward
from fk_steer.testing import PROMPTS, SIZE, flux, quiet, row_generators, sd, sd3
from fk_steer.testing.tiny import FAMILIES, modular_of, picture, wan
from fk_steer.testing.tiny.videos import wan_vae


class TestReward:
    """Scores images or videos, whichever the pipeline makes."""
