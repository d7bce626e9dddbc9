"""What is installed from a wheel, away from the checkout."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fk_steer


REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the wheel, and what it was built from in 'source'."""
    folder = tmp_path_factory.mktemp("wheel")
    # A copy, since building leaves files behind that later wheels would take in.
    for name in ("fk_steer", "llava_reward_guide"):
        shutil.copytree(REPOSITORY / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder / "source")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", folder, folder / "source"]
    subprocess.run([str(part) for part in build], check=True, cwd=folder)
    return folder


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}


@pytest.fixture(scope="module")
def installed(built) -> Path:
    """A folder with the content of the wheel, and of nothing else of ours."""
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(built / "site")
    return built / "site"


def run(installed: Path, tmp_path: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
    code = "import sys, fk_steer; sys.argv[0] = 'fk-steer'; assert fk_steer.__file__.startswith({!r}); "
    command = [sys.executable, "-c", code.format(str(installed)) + "from fk_steer.cli import app; app()", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_nothing_else_is_installed(installed):
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} == {
        "fk_steer",
        "llava_reward_guide",
    }
    assert (installed / "fk_steer" / "py.typed").exists() and (installed / "llava_reward_guide" / "py.typed").exists()


@pytest.mark.slow
def test_the_source_distribution_builds_the_same_wheel(built, tmp_path):
    code = f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=built / "source", capture_output=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", tmp_path, sdist]
    subprocess.run([str(part) for part in build], check=True, cwd=tmp_path)
    (wheel,), (other,) = built.glob("*.whl"), tmp_path.glob("*.whl")
    assert contents(wheel) == contents(other)


@pytest.mark.slow
def test_the_wheel_is_small_and_says_what_it_is(built, installed):
    (wheel,) = built.glob("*.whl")
    # Of which 31.3 are weights.
    assert wheel.stat().st_size < 32.5e6
    (folder,) = installed.glob("*.dist-info")
    metadata = email.message_from_string((folder / "METADATA").read_text(encoding="utf-8"))
    assert metadata["Version"] == fk_steer.__version__ and f"-{fk_steer.__version__}-" in wheel.name
    assert metadata["Description-Content-Type"] == "text/markdown" and metadata.get_payload().startswith("# ")
    extras = set(metadata.get_all("Provides-Extra"))
    assert {"cli", "reports", "llava", "train", "chat", "server", "app", "all"} <= extras
    scripts = (folder / "entry_points.txt").read_text(encoding="utf-8")
    assert "fk-steer = fk_steer.__main__:main" in scripts
    assert "llava-reward = llava_reward_guide.__main__:main" in scripts


@pytest.mark.slow
@pytest.mark.parametrize("model", ["shapes", "shapes-xl"])
def test_commands_run_on_the_bundled_models(installed, tmp_path, model):
    assert "adaptive" in run(installed, tmp_path, "presets")
    assert "shapes-oracle" in run(installed, tmp_path, "rewards")
    prompt = "a photo of a red star"
    run(installed, tmp_path, "generate", prompt, "--model", model, "--steps", "4", "--out", "out")
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    image = tmp_path / "out" / "000" / "00.png"
    score = run(installed, tmp_path, "score", str(image), "--prompt", prompt, "--reward", "clip-score,llava-reward",
                "--reward-option", "path=shapes", "--json")  # fmt: skip
    assert '"llava-reward"' in score


@pytest.mark.slow
def test_a_type_checker_follows_the_checkout(tmp_path):
    """From outside, as after `pip install -e`."""
    (tmp_path / "use.py").write_text(
        "from fk_steer import FKSteering, steer\n"
        "from fk_steer.evaluation.generation import GenerationSettings\n"
        "from fk_steer.pipelines import FKStableDiffusionPipeline\n"
        "reveal_type(FKSteering().num_particles)\n"
        "reveal_type(GenerationSettings('shapes', 'shapes').limit)\n"
        "reveal_type(FKStableDiffusionPipeline)\n"
    )
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), "use.py"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    assert 'Revealed type is "int"' in result.stdout and 'Revealed type is "int | None"' in result.stdout
    assert "FKStableDiffusionPipeline" in result.stdout
