"""Losses and their gradients against those of the released code."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from llava_reward_guide.losses import classification_loss, preference_loss


SHIPPED = Path(__file__).parents[1] / "golden"
ROOT = Path(os.environ.get("FK_STEER_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
FOLDERS = sorted(ROOT.glob("losses_*")) or sorted(SHIPPED.glob("losses_*"))

# Focal, regression, learnable-temperature and R-less losses are not the paper's; the low-dimensional class reads only
# two of several dimensions.
PREFERENCE = re.compile(r"(PairWiseLoss|(HighDim)?GeneralPreferenceLoss)_tau(?P<tau>[\d.]+)_(?!.*only)")


def cases(pattern: re.Pattern) -> list:
    found = [
        pytest.param(folder, case, id=f"{folder.name}-{case['case']}")
        for folder in FOLDERS
        for case in json.loads((folder / "expected.json").read_text())["cases"]
        if pattern.match(case["case"])
    ]
    return found or [pytest.param(None, None, marks=pytest.mark.skip(reason=f"no losses_* in {ROOT} or {SHIPPED}"))]


def close(found: torch.Tensor, expected: np.ndarray, rtol: float) -> None:
    torch.testing.assert_close(found, torch.from_numpy(np.asarray(expected)).float(), rtol=rtol, atol=1e-6)


@pytest.mark.parametrize(("folder", "case"), cases(PREFERENCE))
def test_preference_loss(folder, case):
    arrays = np.load(folder / "expected.npz")
    name, tau = case["case"], float(PREFERENCE.match(case["case"])["tau"])
    sides = [torch.from_numpy(arrays[f"{name}/in{side}"]) for side in (0, 1)]
    inputs = [side.clone().requires_grad_() for side in sides]
    chosen, rejected = (side[:, None] if side.ndim == 1 else side for side in inputs)
    margin = torch.from_numpy(arrays[f"{name}/margin"]) if case["margin"] else 0.0
    loss = preference_loss(chosen, rejected, tau, margin).mean()
    loss.backward()
    assert loss.item() == pytest.approx(case["loss_float64"], rel=1e-5)
    for side, value in enumerate(inputs):
        close(value.grad, arrays[f"{name}/grad{side}"], rtol=1e-4)


@pytest.mark.parametrize(("folder", "case"), cases(re.compile("Binary_Cls_loss")))
def test_classification_loss(folder, case):
    arrays, name = np.load(folder / "expected.npz"), case["case"]
    labels = arrays["binary_cls_soft_labels" if "soft" in name else "binary_cls_labels"]
    logits = torch.from_numpy(arrays[f"{name}/in0"]).requires_grad_()
    loss = classification_loss(logits, torch.from_numpy(labels)).mean()
    loss.backward()
    assert loss.item() == pytest.approx(case["loss_exact_bce_float64"], rel=1e-5)
    close(logits.grad, arrays[f"{name}/grad0_exact_float64"], rtol=1e-4)
    # The released loss comes back in bfloat16.
    assert loss.item() == pytest.approx(case["loss"], rel=1e-2)
