"""Which of a Diffusers checkout's pipeline tests are of interest, read from their source."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, replace
from pathlib import Path


LEFT_OUT = {
    r"^(ace_step|audioldm2|stable_audio|stable_audio_3|longcat_audio_dit)/": "audio",
    r"^shap_e/": "3D",
    r"^marigold/": "depth, normals and intrinsics",
    r"^(ddim|ddpm|pndm|consistency_models|dit)/": "no text or image to start from",
    r"^ledits_pp/": "editing by inversion",
    r"^(llada2|diffusion_gemma)/": "text",
    r"_prior(_emb2emb)?\.py": "a prior, which makes embeddings and no image",
    r"ltx_latent_upsample": "an upsampler without a denoising loop",
    r"_onnx_": "ONNX",
    r"^test_": "tests of what all pipelines share",
}
"""Pattern of a test's name -> why it is left out."""


MODULAR = (
    ("FluxAutoBlocks", "flux/test_pipeline_flux.py::FluxPipelineTesterConfig"),
    ("FluxAutoBlocks", "flux/test_pipeline_flux_img2img.py::FluxImg2ImgPipelineFastTests"),
    ("FluxKontextAutoBlocks", "flux/test_pipeline_flux_kontext.py::FluxKontextPipelineFastTests"),
    ("Flux2AutoBlocks", "flux2/test_pipeline_flux2.py::Flux2PipelineTesterConfig"),
    ("Flux2KleinAutoBlocks", "flux2/test_pipeline_flux2_klein.py::Flux2KleinPipelineTesterConfig"),
    (
        "StableDiffusionXLAutoBlocks",
        "stable_diffusion_xl/test_stable_diffusion_xl.py::StableDiffusionXLPipelineFastTests",
    ),
    (
        "StableDiffusionXLAutoBlocks",
        "stable_diffusion_xl/test_stable_diffusion_xl_img2img.py::StableDiffusionXLImg2ImgPipelineFastTests",
    ),
    (
        "StableDiffusionXLAutoBlocks",
        "stable_diffusion_xl/test_stable_diffusion_xl_inpaint.py::StableDiffusionXLInpaintPipelineFastTests",
    ),
    (
        "StableDiffusion3AutoBlocks",
        "stable_diffusion_3/test_pipeline_stable_diffusion_3.py::StableDiffusion3PipelineFastTests",
    ),
    ("QwenImageAutoBlocks", "qwenimage/test_qwenimage.py::QwenImagePipelineTesterConfig"),
    ("QwenImageAutoBlocks", "qwenimage/test_qwenimage_img2img.py::QwenImageImg2ImgPipelineTesterConfig"),
    ("ZImageAutoBlocks", "z_image/test_z_image.py::ZImagePipelineFastTests"),
    ("WanBlocks", "wan/test_wan.py::WanPipelineTesterConfig"),
    ("Wan22Blocks", "wan/test_wan_22.py::Wan22PipelineTesterConfig"),
    ("LTXAutoBlocks", "ltx/test_ltx.py::LTXPipelineFastTests"),
    ("HeliosAutoBlocks", "helios/test_helios.py::HeliosPipelineFastTests"),
)
"""Blocks of modular pipelines, and the test of the plain pipeline whose components and arguments they are given: those
of their own tests lie on the Hub."""


@dataclass(frozen=True)
class Test:
    """A test class of Diffusers.

    Attributes:
        path: of its file, in tests/pipelines.
        name: of the class.
        pipeline: name of the pipeline's class.
        blocks: name of the modular blocks that its components are put into, in place of that class.
    """

    path: str
    name: str
    pipeline: str
    blocks: str | None = None

    @property
    def id(self) -> str:
        return f"{self.path}::{self.name}" + (f"[{self.blocks}]" if self.blocks else "")

    @property
    def module(self) -> str:
        return "tests.pipelines." + self.path.removesuffix(".py").replace("/", ".")

    @property
    def left_out(self) -> str | None:
        """Why, or None for one of interest."""
        return next((reason for pattern, reason in LEFT_OUT.items() if re.search(pattern, self.path)), None)


def tests_of(checkout: Path) -> list[Test]:
    """All test classes with components of their own and a pipeline to put them into, by path and name.

    Raises:
        ValueError: for a folder that is no checkout of Diffusers.
    """
    folder = checkout / "tests" / "pipelines"
    if not folder.is_dir():
        raise ValueError(f"Expected a checkout of Diffusers with its tests, but '{folder}' does not exist.")
    found = {}
    for file in sorted(folder.rglob("test_*.py")):
        path, pipelines = str(file.relative_to(folder)), dict[str, str]()
        for node in ast.parse(file.read_text()).body:
            # In order, for a class may have the name of its own base.
            if isinstance(node, ast.ClassDef) and (pipeline := _pipeline(node, pipelines)) is not None:
                pipelines[node.name] = pipeline
                if _has_components(node):
                    found[path, node.name] = Test(path, node.name, pipeline)
    tests = {test.id: test for test in found.values()}
    for blocks, test in MODULAR:
        if test in tests:
            found[test, blocks] = replace(tests[test], blocks=blocks, pipeline=f"modular, {blocks}")
    return list(found.values())


def _pipeline(node: ast.ClassDef, known: dict[str, str]) -> str | None:
    for statement in node.body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "pipeline_class":
            return ast.unparse(statement.value).split(".")[-1]
    return next((known[name] for base in node.bases if (name := ast.unparse(base)) in known), None)


def _has_components(node: ast.ClassDef) -> bool:
    """Whether the class itself says which components, without being told anything."""
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "get_dummy_components":
            return len(statement.args.args) - len(statement.args.defaults) == 1
    return False
