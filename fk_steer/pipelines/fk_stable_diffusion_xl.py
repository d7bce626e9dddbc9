"""Stable Diffusion XL with Feynman-Kac steering."""

from diffusers import StableDiffusionXLPipeline

from .mixin import SteeringMixin


class FKStableDiffusionXLPipeline(SteeringMixin, StableDiffusionXLPipeline):
    """`StableDiffusionXLPipeline` whose call takes `reward=` and `steering=`.

    ```py
    pipe = FKStableDiffusionXLPipeline.from_pretrained(
        "stabilityai/stable-diffusion-xl-base-1.0", dtype=torch.float16, variant="fp16"
    )
    out = pipe.to("cuda")("a photo of three bicycles", reward=load_reward("clip-score"), steering="adaptive")
    ```
    """
