"""The conformance checks find what they are for, and nothing where there is nothing to find."""

from __future__ import annotations

import functools
import textwrap

import pytest
import torch
from diffusers import StableDiffusionPipeline

from benchmarks.pipelines.cases import Case, plain_case
from benchmarks.pipelines.catalogue import tests_of as catalogue_of
from benchmarks.pipelines.checks import check
from benchmarks.pipelines.run import outcome, page, summary
from fk_steer.testing.pipelines import SIZE, sd


def found(pipe, **more):
    arguments = {"prompt": "a red circle", "num_inference_steps": 4, "guidance_scale": 5.0, **SIZE, **more}
    case = plain_case(pipe, arguments)
    case.num_steps = 4
    return case, {name: vars(finding) for name, finding in check(case).items()}


def statuses(findings):
    return {name: finding["status"] for name, finding in findings.items()}


def test_nothing_is_found_in_stable_diffusion():
    case, findings = found(sd())
    assert outcome(findings) == "green"
    assert set(statuses(findings).values()) == {"ok"}
    assert len(findings) == 14
    assert findings["no-op"]["value"] == findings["restored"]["value"] == 0.0
    assert case.kind == "text to image"


def test_rows_that_depend_on_one_another_are_found():
    pipe = sd()
    forward = pipe.unet.forward

    @functools.wraps(forward)
    def mixed(*args, **kwargs):
        output = forward(*args, **kwargs)[0]
        return (output + output[:1],)

    pipe.unet.forward = mixed
    _, findings = found(pipe)
    assert outcome(findings) == "wrong"
    assert findings["chunks"]["status"] == "wrong"
    assert findings["chunks"]["value"] > 0.01


class Inverted(StableDiffusionPipeline):
    """Its images are inverted after decoding, of which nothing but its own call knows."""

    def __call__(self, *args, **kwargs):
        images, *others = super().__call__(*args, **kwargs)
        return (1 - images, *others)


def test_another_decoding_is_found():
    pipe = sd()
    call = plain_case(pipe, {}).parameters
    pipe.__class__ = Inverted
    case = Case(pipe, {"prompt": "a red circle", "num_inference_steps": 4, **SIZE}, 4, call)
    case.options = lambda: {"output_type": "pt", "return_dict": False}
    findings = {name: vars(finding) for name, finding in check(case).items()}
    assert findings["decode"]["status"] == "wrong"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"preset": "ok", "no-op": "ok"}, "green"),
        ({"preset": "ok", "neighbours": "refused"}, "green"),
        ({"preset": "refused", "x0": "wrong"}, "refused"),
        ({"preset": "ok", "x0": "wrong"}, "wrong"),
        ({"preset": "refused", "copies": "wrong"}, "wrong"),
        ({"preset": "late"}, "crash"),
        ({"preset": "ok", "chunks": "crash"}, "crash"),
        ({"preset": "ok", "chunks": "crash", "copies": "wrong"}, "wrong"),
    ],
)
def test_outcome(given, expected):
    assert outcome({name: {"status": status} for name, status in given.items()}) == expected


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "tests" / "pipelines"
    for path, text in {
        "flux/test_flux.py": """
            class FluxConfig:
                pipeline_class = FluxPipeline
                def get_dummy_components(self, layers=1): ...

            class TestFlux(FluxConfig): ...

            class FluxConfig(FluxConfig):
                def get_dummy_components(self): ...

            class Base:
                pipeline_class = FluxPipeline
                def get_dummy_components(self, kind): ...
        """,
        "shap_e/test_shap_e.py": """
            class ShapETests(Mixin):
                pipeline_class = ShapEPipeline
                def get_dummy_components(self): ...
        """,
    }.items():
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_text(textwrap.dedent(text))
    return tmp_path


def test_tests_of_a_checkout(checkout):
    tests = catalogue_of(checkout)
    assert [(test.id, test.pipeline, test.left_out) for test in tests] == [
        ("flux/test_flux.py::FluxConfig", "FluxPipeline", None),
        ("shap_e/test_shap_e.py::ShapETests", "ShapEPipeline", "3D"),
    ]
    assert tests[0].module == "tests.pipelines.flux.test_flux"


def test_no_checkout(tmp_path):
    with pytest.raises(ValueError, match="Expected a checkout of Diffusers with its tests"):
        catalogue_of(tmp_path)


def test_table_has_the_worst_of_a_class(checkout):
    finding = {"status": "wrong", "detail": "copies differ", "value": 0.25, "place": ""}
    rows = [
        {"test": "a", "pipeline": "FluxPipeline", "outcome": "wrong", "kind": "text to image"}
        | {"findings": {"preset": {**finding, "status": "ok", "detail": ""}, "copies": finding}},
        {"test": "b", "pipeline": "FluxPipeline", "outcome": "green", "kind": "text to image", "findings": {}},
        {"test": "c", "pipeline": "WanPipeline", "outcome": "green", "kind": "text to video", "findings": {}},
    ]
    text = page(rows, catalogue_of(checkout))
    assert "3 tests of 2 classes, 1 of which steer" in text
    assert "| FluxPipeline | text to image | no: copies: copies differ (0.25) |" in text
    assert "| WanPipeline | text to video | yes |" in text
    assert "| ShapEPipeline | 3D |" in text
    assert summary(rows).startswith("2 green, 1 wrong\n   1 wrong    copies: copies differ")
    assert torch.is_grad_enabled()
