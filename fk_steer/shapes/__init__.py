"""A synthetic world of coloured shapes with small trained models: everything can be checked, nothing has to be
downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ..pipelines import FKStableDiffusionPipeline, FKStableDiffusionXLPipeline

WEIGHTS = Path(__file__).parent / "weights"

BUNDLED = {"shapes": {"pipeline": "sd", "clip": "clip"}, "shapes-xl": {"pipeline": "sdxl", "clip": "clip"}}
"""Name of a bundled model, usable wherever a hub id is -> its folders in `WEIGHTS`."""

NUM_INFERENCE_STEPS = 25
GUIDANCE_SCALE = 3.0


def bundled_path(name: str, of: str = "pipeline") -> str:
    """Folder of a bundled model.

    Args:
        name: 'shapes' or 'shapes-xl'.
        of: 'pipeline', or 'clip' for the world's CLIP.
    """
    return str(WEIGHTS / BUNDLED[name][of])


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
    return kind.from_pretrained(bundled_path(name), **options)
