"""SDXL with Feynman-Kac steering, as blocks of Modular Diffusers."""

from diffusers.modular_pipelines import SequentialPipelineBlocks, StableDiffusionXLAutoBlocks

from fk_steer.modular import with_steering


_BLOCKS = with_steering(StableDiffusionXLAutoBlocks()).sub_blocks


class FKStableDiffusionXLBlocks(SequentialPipelineBlocks):
    """SDXL's blocks, which denoise and decode several particles for each image, steered towards a high reward."""

    block_classes = list(_BLOCKS.values())
    block_names = list(_BLOCKS)

    @property
    def description(self):
        return "SDXL with Feynman-Kac steering towards a high reward."
