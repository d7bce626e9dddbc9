"""A synthetic world of coloured shapes with small trained models: everything can be checked, nothing has to be
downloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..bundled import BUNDLED, BUNDLED_LLAVA_REWARD, SHARED, WEIGHTS, resolve


if TYPE_CHECKING:
    import torch

    from ..pipelines import FKStableDiffusionPipeline, FKStableDiffusionXLPipeline

NUM_INFERENCE_STEPS = 25
GUIDANCE_SCALE = 3.0


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
        from ..smc import unknown

        raise unknown("bundled model", name, BUNDLED)
    kind = FKStableDiffusionXLPipeline if name == "shapes-xl" else FKStableDiffusionPipeline
    return kind.from_pretrained(resolve(name), **{**shared_components(name, options.get("dtype")), **options})


__all__ = [
    "BUNDLED",
    "BUNDLED_LLAVA_REWARD",
    "GUIDANCE_SCALE",
    "NUM_INFERENCE_STEPS",
    "WEIGHTS",
    "load_pipeline",
    "resolve",
    "shared_components",
]
