"""Telling what rounding does from what a fault does: it is gone in double precision."""

from __future__ import annotations

from pathlib import Path

import torch

from .cases import case_of
from .catalogue import Test
from .checks import Finding, check


MAY_BE_ROUNDING = ("particles", "decode", "resampling", "copies", "pruning", "chunks", "neighbours")
"""Checks that compare sums in other orders."""
LARGEST = 0.1
"""In pixels of [0, 1], what rounding may come to in random networks, which amplify it."""
SMALLEST = 1e-4
"""What may be left of it in double precision."""


def in_double_precision(test: Test, checkout: Path, findings: dict[str, Finding]) -> dict[str, Finding]:
    """The findings, those that may be of rounding as they are in double precision, where a test runs in that."""
    doubtful = [
        name
        for name, finding in findings.items()
        if name in MAY_BE_ROUNDING and finding.status == "wrong" and (finding.value or 0.0) <= LARGEST
    ]
    if not doubtful:
        return findings
    torch.set_default_dtype(torch.float64)
    try:
        case = case_of(test, checkout)
        case.pipe.to(torch.float64)
        exact = check(case)
    except Exception:  # of what is written for float32
        return findings
    finally:
        torch.set_default_dtype(torch.float32)
    settled = {
        name: exact[name]
        for name in doubtful
        if name in exact and exact[name].status == "ok" and (exact[name].value or 0.0) <= SMALLEST
    }
    for name, finding in settled.items():
        finding.detail = f"in double precision; {findings[name].value:.2g} in single"
    return {**findings, **settled}
