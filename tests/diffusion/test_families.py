"""What must hold of steering whatever the pipeline, on tiny pipelines of many families: `benchmarks/pipelines` checks
the same on all of Diffusers."""

from __future__ import annotations

import functools

import pytest

from benchmarks.pipelines.cases import modular_case, plain_case
from benchmarks.pipelines.checks import check
from fk_steer.diffusion.components import is_modular
from fk_steer.testing import PROMPTS
from fk_steer.testing.tiny import FAMILIES


CHECKS = (
    "no-op", "particles", "events", "reward", "x0", "decode", "resampling", "copies", "chunks", "neighbours", "prompts",
    "pruning", "preset", "restored",
)  # fmt: skip

OF_STOCK = {("kandinsky5", "neighbours"): "in a stock batch by"}
"""What does not hold of the stock call either, and what is said of it: shorter texts are padded without a mask."""


@functools.cache
def findings(family):
    make, call = FAMILIES[family]
    pipe = make()
    case_of = modular_case if is_modular(pipe) else plain_case
    return check(case_of(pipe, {"prompt": PROMPTS[0], "num_inference_steps": 3, **call}))


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_steering_holds_what_it_promises(family, name):
    finding = findings(family)[name]
    if (family, name) in OF_STOCK:
        assert finding.status == "n/a"
        assert OF_STOCK[family, name] in finding.detail
        return
    assert finding.status == "ok", f"{family}, {name}: {finding.detail} ({finding.value}) {finding.place}"


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_else_is_found(family):
    assert set(findings(family)) == set(CHECKS)
