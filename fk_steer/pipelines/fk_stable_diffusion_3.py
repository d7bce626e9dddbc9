"""Stable Diffusion 3 and 3.5 with Feynman-Kac steering."""

from diffusers import StableDiffusion3Pipeline

from .mixin import SteeringMixin


class FKStableDiffusion3Pipeline(SteeringMixin, StableDiffusion3Pipeline):
    """`StableDiffusion3Pipeline` whose call takes `reward=` and `steering=`.

    ```py
    pipe = FKStableDiffusion3Pipeline.from_pretrained(
        "stabilityai/stable-diffusion-3.5-medium", dtype=torch.bfloat16, text_encoder_3=None, tokenizer_3=None
    )
    out = pipe.to("cuda")("a photo of three bicycles", reward=load_reward("clip-score"), steering="adaptive")
    ```
    """

    # Stock pipelines without T5, which is the larger part of the memory, can be saved but not loaded from there.
    _optional_components = [*StableDiffusion3Pipeline._optional_components, "text_encoder_3", "tokenizer_3"]
