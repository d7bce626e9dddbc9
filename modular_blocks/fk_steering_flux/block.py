"""Flux with Feynman-Kac steering, as a custom block of Modular Diffusers.

blocks = ModularPipelineBlocks.from_pretrained("modular_blocks/fk_steering_flux", trust_remote_code=True)
"""

from fk_steer.modular import FKFluxBlocks


__all__ = ["FKFluxBlocks"]
