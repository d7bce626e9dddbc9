"""Which of a Diffusers checkout's pipeline tests are of interest, read from their source."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Test:
    """A test class of Diffusers.

    Attributes:
        path: of its file, in tests/pipelines.
        name: of the class.
        pipeline: name of the pipeline's class.
    """

    path: str
    name: str
    pipeline: str

    @property
    def id(self) -> str:
        return f"{self.path}::{self.name}"

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
