"""OmniGen, whose processor needs torchvision for images."""

from __future__ import annotations

from typing import Any
from unittest import mock

import diffusers
import torch
from diffusers.pipelines.omnigen import pipeline_omnigen, processor_omnigen

from ..pipelines import quiet
from . import texts
from .images import eightfold_vae


class TextProcessor(processor_omnigen.OmniGenMultiModalProcessor):
    """Of prompts without images."""

    def __init__(self, text_tokenizer: Any, max_image_size: int = 1024) -> None:
        self.text_tokenizer, self.max_image_size = text_tokenizer, max_image_size
        self.collator = processor_omnigen.OmniGenCollator()

    def __call__(self, *args: Any, **options: Any) -> Any:
        return super().__call__(*args, negative_prompt="text", **options)


def omnigen() -> diffusers.OmniGenPipeline:
    torch.manual_seed(0)
    components = {
        "transformer": diffusers.OmniGenTransformer2DModel(
            hidden_size=16,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=32,
            num_layers=1,
            in_channels=4,
            time_step_dim=8,
            pad_token_id=0,
            vocab_size=len(texts.tokenizer()),
            rope_scaling={"long_factor": [1, 2, 3, 4], "short_factor": [1, 2, 3, 4]},
        ),
        "vae": eightfold_vae(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1),
        "tokenizer": texts.tokenizer(),
    }
    with mock.patch.object(pipeline_omnigen, "OmniGenMultiModalProcessor", TextProcessor, create=True):
        return quiet(diffusers.OmniGenPipeline(**components))
