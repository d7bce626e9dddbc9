"""A synthetic world of coloured shapes with small trained models: everything can be checked, nothing has to be
downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import torch

    from ..pipelines import FKStableDiffusionPipeline, FKStableDiffusionXLPipeline

WEIGHTS = Path(__file__).parent / "weights"

BUNDLED = {"shapes": "sd", "shapes-xl": "sdxl"}
"""Name of a bundled pipeline, usable wherever a hub id is -> its folder in `WEIGHTS`."""

SHARED = {
    "shapes-xl": {"vae": "vae", "text_encoder": "text_encoder", "tokenizer": "tokenizer", "tokenizer_2": "tokenizer"}
}
"""Name of a bundled pipeline -> component -> the folder of the same component of 'shapes', which is stored once."""

BUNDLED_CLIPS = {"shapes": "guide", "shapes-xl": "guide", "shapes-held-out": "judge"}
"""Name of a bundled CLIP -> its folder in `WEIGHTS`. One guides either pipeline; the other, smaller and trained from
another seed, judges what the first has guided."""

BUNDLED_PREVIEWS = dict.fromkeys(BUNDLED, "preview")
"""Name of a bundled pipeline -> the folder of its preview decoder. Both have the same latents."""

BUNDLED_LLAVA_REWARD = WEIGHTS / "llava-reward"
"""The bundled LLaVA-Reward: a folder per perspective (alignment, fidelity, overall; '-gpm' for general preference), and
`backbone`, which they share. For either pipeline."""

BUNDLED_IMAGE_REWARDS = dict.fromkeys(BUNDLED, "image-reward")
"""Name of a bundled pipeline -> the folder of its ImageReward, trained on preferences about what 'shapes' draws."""

BUNDLED_REWARDS = ("clip-score", "image-reward", "llava-reward")
"""Rewards that have weights for the bundled pipelines: their `path` takes the names of these."""

NUM_INFERENCE_STEPS = 25
GUIDANCE_SCALE = 3.0


def resolve(name: str, bundled: Mapping[str, str] = BUNDLED) -> str:
    """The folder of a bundled model; anything else, a hub id or a path, as it is."""
    return str(WEIGHTS / bundled[name]) if name in bundled else name


def shared_components(name: str, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Components of a bundled pipeline that are stored with 'shapes'; for `from_pretrained`, where anything other than
    `load_pipeline` loads it:

    ```py
    pipe = DiffusionPipeline.from_pretrained(resolve("shapes-xl"), **shared_components("shapes-xl"))
    ```

    Args:
        name: of a bundled pipeline; anything else has none.
        dtype: of the modules; None for float32.
    """
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTokenizer

    source = WEIGHTS / BUNDLED["shapes"]
    kinds = {"vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    return {
        component: CLIPTokenizer.from_pretrained(source / folder)
        if folder == "tokenizer"
        else kinds[folder].from_pretrained(source / folder, dtype=dtype)
        for component, folder in SHARED.get(name, {}).items()
    }


def load_pipeline(name: str = "shapes", **options: Any) -> FKStableDiffusionPipeline | FKStableDiffusionXLPipeline:
    """The world's Stable Diffusion ('shapes') or its SDXL twin ('shapes-xl'), in float32 unless `dtype` says otherwise.

    ```py
    pipe = load_pipeline()
    out = pipe("a photo of a red star and a blue circle", num_inference_steps=25, guidance_scale=3.0)
    ```

    Args:
        name: 'shapes' or 'shapes-xl'.
        **options: of `from_pretrained`.

    Raises:
        ValueError: for another name.
    """
    from ..pipelines import FKStableDiffusionPipeline, FKStableDiffusionXLPipeline

    if name not in BUNDLED:
        raise ValueError(f"Unknown bundled model {name!r}. Known: {', '.join(BUNDLED)}.")
    kind = FKStableDiffusionXLPipeline if name == "shapes-xl" else FKStableDiffusionPipeline
    return kind.from_pretrained(resolve(name), **{**shared_components(name, options.get("dtype")), **options})
