from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch


# Before anything makes the console, which asks once: tables are not cut.
os.environ["COLUMNS"] = "200"
REPOSITORY = Path(__file__).parent.parent


def shipped_golden() -> Path:
    """The small copies of outputs of reference implementations that ship with the tests."""
    return Path(__file__).parent / "golden"


def golden_root() -> Path:
    """Outputs of reference implementations: FK_STEER_GOLDEN if set, else the small copies that ship with the tests."""
    return Path(os.environ.get("FK_STEER_GOLDEN", shipped_golden()))


def golden_folders(prefix: str) -> list[Path]:
    """The folders of golden outputs whose name begins with `prefix`: the small copies that ship with the tests, and
    those in FK_STEER_GOLDEN or shared/golden beside the repository, if there are any."""
    roots = (
        REPOSITORY / "tests" / "golden",
        Path(os.environ.get("FK_STEER_GOLDEN", REPOSITORY.parent / "shared/golden")),
    )
    return sorted(folder for root in roots if root.is_dir() for folder in root.glob(f"{prefix}*") if folder.is_dir())


def pytest_configure():
    # Tiny models on busy machines: several OpenMP threads are slower than one by an order of magnitude.
    torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef):
    # What several tests share must not depend on which of them comes first.
    if fixturedef.scope != "function":
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _one_thread_and_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _prompts_of_our_own(monkeypatch):
    """Wherever tests run, published words are out of reach: no network, and no cache of whoever runs them."""

    def out_of_reach(*arguments, **options):
        raise OSError("Tests ask for nothing.")

    monkeypatch.setattr("fk_steer.rewards.wording.published_file", out_of_reach)


@pytest.fixture(autouse=True)
def _accelerate_as_new():
    """Accelerate keeps the settings of a process's first run, by which a later test's would be refused."""
    yield
    if "accelerate.state" in sys.modules:
        state = sys.modules["accelerate.state"]
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()
