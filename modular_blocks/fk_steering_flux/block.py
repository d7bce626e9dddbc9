"""Flux with Feynman-Kac steering, as blocks of Modular Diffusers."""

from diffusers.modular_pipelines import FluxAutoBlocks, SequentialPipelineBlocks

from fk_steer.modular import with_steering


_BLOCKS = with_steering(FluxAutoBlocks()).sub_blocks


class FKFluxBlocks(SequentialPipelineBlocks):
    """Flux's blocks, which denoise and decode several particles for each image, steered towards a high reward."""

    block_classes = list(_BLOCKS.values())
    block_names = list(_BLOCKS)

    @property
    def description(self):
        return "Flux with Feynman-Kac steering towards a high reward."
