"""Wan, text to video, with Feynman-Kac steering."""

from diffusers import WanPipeline

from .mixin import SteeringMixin


class FKWanPipeline(SteeringMixin, WanPipeline):
    """`WanPipeline` whose call takes `reward=` and `steering=`.

    The reward scores videos (B, F, 3, H, W) in [0, 1]; `FrameReward` makes one of a reward of images.

    ```py
    pipe = FKWanPipeline.from_pretrained("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", dtype=torch.bfloat16)
    out = pipe.to("cuda")(
        "a cat walks on the grass",
        reward=FrameReward(load_reward("clip-score"), frames=8),
        steering=FKSteering(num_particles=4),
        num_frames=33,
    )
    export_to_video(out.frames[0], "cat.mp4", fps=16)
    ```
    """
