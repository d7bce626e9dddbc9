"""Flux with Feynman-Kac steering."""

from diffusers import FluxPipeline

from .mixin import SteeringMixin


class FKFluxPipeline(SteeringMixin, FluxPipeline):
    """`FluxPipeline` whose call takes `reward=` and `steering=`.

    ```py
    pipe = FKFluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev", dtype=torch.bfloat16)
    pipe.enable_model_cpu_offload()
    out = pipe("a red bowl below a clock", reward=load_reward("pickscore"), steering=FKSteering(num_particles=4))
    ```
    """
