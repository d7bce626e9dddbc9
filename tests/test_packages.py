"""What is installed: nothing but the base is needed to steer, and what else is missing is said in one line."""

from __future__ import annotations

import configparser
import importlib.metadata
import json
import os
import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from test_layout import imports, modules

from llava_reward_guide.packages import PACKAGES, missing, require


SETTINGS = configparser.ConfigParser()
SETTINGS.read(REPOSITORY / "setup.cfg", encoding="utf-8")
EXTRAS = SETTINGS["options.extras_require"]
IMPORTED_AS = {
    "accelerate": "accelerate", "av": "av", "bitsandbytes": "bitsandbytes", "datasets": "datasets",
    "diffusers": "diffusers", "fastapi": "fastapi", "filelock": "filelock", "flash-attn": "flash_attn", "ftfy": "ftfy",
    "gradio": "gradio", "huggingface_hub": "huggingface_hub", "jinja2": "jinja2", "matplotlib": "matplotlib",
    "numpy": "numpy", "openai": "openai", "pandas": "pandas", "peft": "peft", "pillow": "PIL",
    "prometheus-client": "prometheus_client", "pyarrow": "pyarrow", "python-multipart": "python_multipart",
    "pyyaml": "yaml", "rapidfuzz": "rapidfuzz", "ray": "ray", "rich": "rich", "safetensors": "safetensors",
    "scipy": "scipy", "tensorboard": "tensorboard", "torch": "torch", "torchsde": "torchsde",
    "transformers": "transformers", "typer": "typer", "uvicorn": "uvicorn",
}  # fmt: skip
"""Distribution -> module."""

OF_COMMANDS = (
    "fk_steer.cli",
    "llava_reward_guide.cli",
    "llava_reward_guide.train",
    "llava_reward_guide.data.__main__",
)
"""Started by commands, which look for their packages first."""
SCRIPTS = tuple(f"fk_steer.shapes.{name}" for name in ("train", "package", "preferences", "evaluate", "blip", "llava"))
"""Make what is bundled; run from a checkout with everything."""

WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Others(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {missing!r} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Others
"""


def requirements(text: str) -> list[Requirement]:
    return [Requirement(line) for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def of_extra(extra: str) -> dict[str, Requirement]:
    """Distribution -> requirement, with those of extras that it takes in."""
    found: dict[str, Requirement] = {}
    for requirement in requirements(EXTRAS[extra]):
        if requirement.name == "fk-steer":
            for other in requirement.extras:
                found.update(of_extra(other))
        else:
            found[requirement.name] = requirement
    return found


def without(code: str, *missing: str, arguments: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run code where packages are not installed."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", WITHOUT.format(missing=set(missing)) + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=REPOSITORY)


STEER = """
import torch
import fk_steer
from fk_steer import FKSteering, Trace, load_reward, preset, steer
from fk_steer.shapes import load_pipeline

prompt = "a photo of a red star"
pipe = load_pipeline()
pipe.set_progress_bar_config(disable=True)
rewards = {
    "own": lambda images, prompts: images.mean((1, 2, 3)),
    "clip-score": load_reward("clip-score", path="shapes"),
    "image-reward": load_reward("image-reward", path="shapes"),
    "llava-reward": load_reward("llava-reward", path="shapes"),
}
for name, reward in rewards.items():
    settings = FKSteering(num_particles=2, lmbda=1.0, schedule=(1,), seed=0)
    output = steer(pipe, reward, settings)([prompt], num_inference_steps=3, output_type="pt")
    assert output.images.shape == (1, 3, 64, 64) and output.rewards[0].isfinite().all(), name
    assert Trace.from_dict(output.trace.to_dict()).events
output = steer(pipe, rewards["own"], preset("adaptive", num_particles=2))(prompt, num_inference_steps=3)
print("steered")
"""


OF_TERMINALS = (
    "fk_steer.evaluation",
    "fk_steer.generate",
    "fk_steer.prefer",
    "fk_steer.training",
    "fk_steer.console",
    "fk_steer.running",
    "llava_reward_guide.terminal",
    "llava_reward_guide.training",
)
"""Show their progress in one."""
OF_THE_APP = ("fk_steer.app.",)
"""Imported by `fk_steer.app.launch`, which looks for Gradio first; the extra brings the packages of commands too."""
OF_THE_SERVER = ("fk_steer.server.",)
"""Imported by `fk_steer.server.create_app`, which looks for what its extra brings first."""
PLAIN = [
    name
    for package in ("fk_steer", "llava_reward_guide")
    for name, _ in modules(package)
    if not name.startswith((*OF_COMMANDS, *SCRIPTS, *OF_TERMINALS, *OF_THE_APP, *OF_THE_SERVER))
]


def test_the_base_install_steers_and_has_every_module_but_those_of_commands():
    assert len(PLAIN) > 150
    code = f"{STEER}\nimport importlib\nfor name in {PLAIN!r}: importlib.import_module(name)\nprint('imported')"
    result = without(code, *PACKAGES, "torchsde")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-2:] == ["steered", "imported"]


@pytest.mark.parametrize("module", ["fk_steer", "llava_reward_guide"])
@pytest.mark.parametrize("missing_package", ["typer", "rich", "jinja2", "matplotlib", "scipy"])
def test_a_command_without_its_packages_is_one_line(module, missing_package):
    assert {IMPORTED_AS[name] for name in of_extra("cli")} == {"typer", "rich", "jinja2", "matplotlib", "scipy"}
    script = next(
        line.split("=")[1].strip()
        for line in SETTINGS["options.entry_points"]["console_scripts"].split("\n")
        if f"= {module}." in line
    )
    place, _, function = script.partition(":")
    result = without(f"from {place} import {function} as run\nrun()", missing_package, arguments=("score", "image.png"))
    expected = (
        f"Error: The command line needs {missing_package}, which is not installed: "
        'pip install -e ".[cli]" in the folder of fk-steer.\n'
    )
    assert (result.returncode, result.stdout, result.stderr) == (1, "", expected)


@pytest.mark.parametrize(
    "module", ["fk_steer", "llava_reward_guide", "llava_reward_guide.train", "llava_reward_guide.data"]
)
def test_so_is_a_module_that_is_started(module):
    result = without(f"import runpy\nrunpy.run_module({module!r}, run_name='__main__', alter_sys=True)", "typer")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1 and 'pip install -e ".[cli]"' in result.stderr


USES = {
    "pandas": "from fk_steer.report.table import to_dataframe; to_dataframe(None)",
    "jinja2": "from fk_steer.report.page import html_report; html_report([], {})",
    "matplotlib": "from fk_steer.report.lineages import plot_lineages\n"
    "import types; plot_lineages(types.SimpleNamespace(events=[1]))",
    "scipy": "import numpy; from fk_steer.shapes.detector import components; components(numpy.zeros((8, 8, 3)))",
    "openai": "from fk_steer import load_reward; load_reward('vqa-chat', model='judge')",
    "peft": "from llava_reward_guide.lora import attach; attach(None, '', None)",
    "rapidfuzz": "from llava_reward_guide.data.overlap import most_similar; most_similar(['a'], ['b'])",
    "datasets": "from llava_reward_guide.data.items import hub_rows; list(hub_rows('hf:owner/name'))",
    "pyarrow": "from pathlib import Path; from fk_steer.prefer.dataset import write; write(Path('.'), [], 'image')",
    "av": "from fk_steer.evaluation.judge.media import load_frames\n"
    "from pathlib import Path; load_frames(Path('film.mp4'), 8)",
    "flash_attn": "from llava_reward_guide.attention import check_attention; check_attention('flash_attention_2')",
    "bitsandbytes": "import torch; from llava_reward_guide.loading import quantization_config\n"
    "quantization_config('4bit', torch.float16)",
    "ray": "from fk_steer.evaluation.generation.ray import run_on_ray; run_on_ray(None, 1, None, None)",
    "fastapi": "from fk_steer.server import create_app; create_app({})",
    "rich": "import fk_steer.console",
    "typer": "import llava_reward_guide.terminal",
}


@pytest.fixture(scope="module")
def said() -> dict[str, list[str]]:
    """Package -> kind and message of the error where it is used and none is installed."""
    code = (
        f"import json\nsaid = {{}}\nfor package, use in {USES!r}.items():\n"
        "    try: exec(use)\n    except Exception as error: said[package] = [type(error).__name__, str(error)]\n"
        "print(json.dumps(said))"
    )
    return json.loads(without(code, *PACKAGES).stdout.splitlines()[-1])


@pytest.mark.parametrize("package", USES)
def test_what_needs_a_missing_package_says_so(said, package):
    kind, message = said[package]
    assert kind in ("ImportError", "RewardLoadError") and "\n" not in message
    assert f'needs {package}, which is not installed: pip install -e ".[{PACKAGES[package][0]}]"' in message


def test_require_is_silent_about_what_is_there(monkeypatch):
    require("typer")
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(
        ImportError, match=r'^Steering needs typer, .*pip install -e "\.\[all\]" in the folder'
    ) as caught:
        require("typer", "Steering", "all")
    assert caught.value.name == "typer" and "\n" not in str(caught.value)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_extra_that_is_named_brings_the_package(package):
    extra = PACKAGES[package][0]
    assert package in [IMPORTED_AS[name] for name in of_extra(extra)]
    assert f'pip install -e ".[{extra}]"' in str(missing(package))


@pytest.mark.parametrize("package", ["fk_steer", "llava_reward_guide"])
def test_optional_packages_are_looked_for_before_they_are_imported(package):
    base = {IMPORTED_AS[one.name] for one in requirements(SETTINGS["options"]["install_requires"])}
    # Transformers and huggingface_hub bring these.
    of_base = {"tqdm", "packaging", "regex", "tokenizers", "httpx2"}
    ours = {"fk_steer", "llava_reward_guide"}
    for name, path in modules(package):
        source = path.read_text(encoding="utf-8")
        for imported in {one.partition(".")[0] for one in imports(name, path)} - sys.stdlib_module_names:
            elsewhere = (*OF_COMMANDS, *SCRIPTS, *OF_THE_APP, *OF_THE_SERVER)
            if imported in base | of_base | ours or name.startswith(elsewhere):
                continue
            assert imported in PACKAGES, f"{name} imports {imported}, which neither the base nor an extra brings"
            looked_for = re.search(rf'(require|missing)\("{imported}"', source)
            assert looked_for or imported in ("rich", "matplotlib", "pandas"), (
                f"{name} imports {imported} without `require`"
            )


def test_the_base_is_small():
    base = [one.name for one in requirements(SETTINGS["options"]["install_requires"])]
    assert set(base) == {
        "accelerate", "diffusers", "filelock", "ftfy", "huggingface_hub", "numpy", "pillow", "pyyaml", "safetensors",
        "torch", "transformers",
    }  # fmt: skip


def test_all_is_everything_that_can_be_had_without_a_compiler():
    everything = {name for extra in EXTRAS for name in of_extra(extra)}
    of_tests = {
        "hypothesis", "ipykernel", "mypy", "nbclient", "nbformat", "pytest", "pytest-randomly",
        "pytest-xdist", "ruff", "schemathesis", "torchsde",
    }  # fmt: skip
    assert everything - of_tests - set(of_extra("all")) <= {"flash-attn"} | set(
        of_extra("docs") if "docs" in EXTRAS else ()
    )


def test_bounds_from_above_say_why():
    lines = (REPOSITORY / "setup.cfg").read_text(encoding="utf-8").splitlines()
    for before, line in zip(lines, lines[1:]):
        if line.startswith("    ") and re.search(r"(?<!>)<|==|~=", line.partition("#")[0]):
            assert before.lstrip().startswith("#"), line


class TestPins:
    """constraints.txt, with which `make` installs."""

    PINS = {
        re.sub(r"[-_.]+", "-", one.name).lower(): one
        for one in requirements((REPOSITORY / "constraints.txt").read_text(encoding="utf-8"))
    }

    @pytest.mark.parametrize("extra", [None, *EXTRAS])
    def test_what_is_required_is_pinned_within_its_bounds(self, extra):
        if extra is None:
            wanted = {one.name: one for one in requirements(SETTINGS["options"]["install_requires"])}
        else:
            wanted = of_extra(extra)
        for name, requirement in wanted.items():
            if name == "flash-attn":  # built for the machine it is on
                continue
            pin = self.PINS[re.sub(r"[-_.]+", "-", name).lower()]
            (one,) = pin.specifier
            assert one.operator == "==" and one.version in requirement.specifier, name

    def test_pins_fit_every_python_that_is_claimed(self):
        """Of the packages that are installed here; no pin may need a newer Python without a marker that says so."""
        claimed = SpecifierSet(SETTINGS["options"]["python_requires"])
        oldest = min(Version(one.rpartition(" ")[2]) for one in pythons())
        assert oldest in claimed and Version("3.10") not in claimed
        for name, pin in self.PINS.items():
            try:
                metadata = importlib.metadata.metadata(name)
            except importlib.metadata.PackageNotFoundError:
                continue
            needs = metadata["Requires-Python"]
            if pin.marker is None and metadata["Version"] in pin.specifier and needs:
                assert f"{oldest}.9" in SpecifierSet(needs), f"{name} needs {needs}"


def pythons() -> list[str]:
    return re.findall(r"Python :: 3\.\d+$", SETTINGS["metadata"]["classifiers"], re.M)


def test_every_python_that_is_claimed_is_tested():
    versions = [one.rpartition(" ")[2] for one in pythons()]
    assert versions == ["3.11", "3.12", "3.13"]
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    assert f'python_version = "{versions[0]}"' in text
    assert f'target-version = "py{versions[0].replace(".", "")}"' in text
