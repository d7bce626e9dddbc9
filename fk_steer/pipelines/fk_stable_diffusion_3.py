"""Stable Diffusion 3 and 3.5 with Feynman-Kac steering."""

from diffusers import StableDiffusion3Pipeline

from .mixin import SteeringMixin


class FKStableDiffusion3Pipeline(SteeringMixin, StableDiffusion3Pipeline):
    """`StableDiffusion3Pipeline` whose call takes `reward=` and `steering=`.

    ```py
    pipe = FKStableDiffusion3Pipeline.from_pretrained(
        "stabilityai/stable-diffusion-3.5-medium", dtype=torch.bfloat16
    )
    out = pipe.to("cuda")("a photo of three bicycles", reward=load_reward("clip-score"), steering="adaptive")
    ```
    """
