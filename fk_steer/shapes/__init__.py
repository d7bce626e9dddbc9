"""A synthetic world of coloured shapes with small trained models: everything can be checked, nothing has to be
downloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..bundled import BUNDLED, BUNDLED_LLAVA_REWARD, WEIGHTS, resolve


if TYPE_CHECKING:
    from ..pipelines import FKStableDiffusionPipeline, FKStableDiffusionXLPipeline

NUM_INFERENCE_STEPS = 25
GUIDANCE_SCALE = 3.0


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
    return kind.from_pretrained(resolve(name), **options)


__all__ = [
    "BUNDLED",
    "BUNDLED_LLAVA_REWARD",
    "GUIDANCE_SCALE",
    "NUM_INFERENCE_STEPS",
    "WEIGHTS",
    "load_pipeline",
    "resolve",
]
