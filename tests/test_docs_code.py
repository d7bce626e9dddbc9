"""Python in the documentation: every block that can run is run, the names of the others exist."""

from __future__ import annotations

import ast
import builtins
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import DOCS, PAGES, REPOSITORY, blocks, commands, runnable
from PIL import Image
from reward_server import RewardServer
from typer.testing import CliRunner

from fk_steer import load_reward
from fk_steer.cli import app
from fk_steer.rewards.registry import reward_factory
from fk_steer.testing import CALLS, flux, redness, sd
from fk_steer.testing.rewards import tiny_reward
from fk_steer.training import DPOConfig, train_dpo
from fk_steer.training.data import Preferences
from llava_reward_guide.images import to_pil


GIVEN = {
    "README.md": {"pipe", "reward", "stock_pipe"},
    "docs/chat-judges.md": {"pipe", "wan", "clip", "embed"},
    "docs/compute.md": {"pipe", "reward", "prompt"},
    "docs/index.md": {"reward"},
    "docs/llava-reward.md": {"images", "prompts", "others"},
    "docs/modular.md": {"pipe", "reward", "prompt", "call"},
    "docs/own-reward.md": {"pipe", "call", "images", "prompts"},
    "docs/parallel.md": {"world_size", "rank", "my_prompts", "reward"},
    "docs/presets.md": {"pipe", "reward", "prompt", "call"},
    "docs/rewards.md": {
        "images",
        "prompts",
        "clip",
        "aesthetic",
        "image_reward",
        "hps",
        "compare",
        "brightness",
        "pipe",
        "image",
    },
    "docs/saving.md": {"stock_pipe", "reward", "prompt", "call"},
    "docs/search.md": {"pipe", "reward", "prompt", "call"},
    "docs/serving.md": {"pipe", "prompt", "call", "images", "prompts"},
    "docs/training.md": {"images", "prompts"},
    "docs/unified-reward.md": {"image_to_image", "steer", "Image", "load_reward"},
    "docs/video.md": {"pipe", "of_images", "call"},
}
"""Names that the text of a page introduces, or that any reader has."""


def bound(tree: ast.AST) -> Iterator[str]:
    """Names that a block binds, in whatever scope."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name


def resolved(node: ast.expr, names: dict[str, Any]) -> Any:
    """The object that a dotted name stands for, if it begins with something imported; None for other expressions."""
    match node:
        case ast.Name(id=name):
            return names.get(name)
        case ast.Attribute(value=value, attr=name):
            of = resolved(value, names)
            return None if of is None else getattr(of, name)
    return None


def faults(block: str, names: dict[str, Any], known: set[str]) -> Iterator[str]:
    """What a block says that is not so. Its imports are added to `names` and what it binds to `known`."""
    tree = ast.parse(block)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(ast.unparse(node), names)
    known |= set(bound(tree))
    for name in known & names.keys():
        del names[name]  # it is another thing from here on
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                if name not in names and name not in known and not hasattr(builtins, name):
                    yield f"'{name}' is said nowhere."
            case ast.Attribute():
                resolved(node, names)
            case ast.Call(func=function, keywords=keywords, args=args):
                called = resolved(function, names)
                if getattr(called, "__name__", "") == "load_reward" and isinstance(args[0], ast.Constant):
                    called = reward_factory(args[0].value)
                if called is None or not callable(called):
                    continue
                try:
                    takes = inspect.signature(called).parameters
                except ValueError:
                    continue
                anything = any(one.kind is one.VAR_KEYWORD for one in takes.values())
                for keyword in keywords:
                    if keyword.arg and keyword.arg not in takes and not anything:
                        yield f"'{ast.unparse(function)}' takes no `{keyword.arg}`."


@pytest.mark.parametrize("page", PAGES)
def test_names_exist(page):
    names: dict[str, Any] = {}
    known = set(GIVEN.get(page, ()))
    assert [fault for block in blocks(page, "python", "py") for fault in faults(block, names, known)] == []


@pytest.mark.parametrize("page", DOCS)
def test_no_lambda_is_given_where_it_is_a_limit_alone(page):
    """With the tempering of 'adaptive' and 'finish', which find their own, a low one all but turns steering off."""
    for block in blocks(page, "python", "py"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Call):
                given = {keyword.arg for keyword in node.keywords}
                named = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
                finds_its_own = ast.unparse(node.func) in ("FKSteering", "Finish") or named in ("adaptive", "finish")
                assert not (finds_its_own and "lmbda" in given and "tempering" not in given), ast.unparse(node)


@pytest.mark.parametrize(
    "block",
    ["print(pipe)", "from fk_steer import steer, nothing", "from fk_steer import FKSteering\nFKSteering(lamda=1.0)",
     "import fk_steer\nfk_steer.stear", "from fk_steer import load_reward\nload_reward('hps', varient='v2')", "a b"],
)  # fmt: skip
def test_faults_are_told(block):
    with pytest.raises((AssertionError, ImportError, AttributeError, SyntaxError)):
        assert list(faults(block, {}, set())) == []


def tiny(steps: int = 4) -> dict[str, Any]:
    """What the pages take for given, tiny."""
    return {
        "pipe": sd(),
        "reward": redness,
        "prompt": "a red circle",
        "call": {**CALLS["sd"][1], "num_inference_steps": steps},
        "images": torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
        "prompts": ["a red circle", "a blue star"],
    }


def get_started(page: str) -> None:
    bundled, any_pipeline = runnable(page)
    names: dict[str, Any] = {}
    exec(bundled.replace("num_inference_steps=25", "num_inference_steps=4"), names)
    assert Path("best.png").exists()
    assert names["out"].rewards.shape == (1, 4)
    names = tiny()
    exec(any_pipeline.replace("num_inference_steps=30", "num_inference_steps=3, height=16, width=16"), names)
    assert [len(images) for images in names["out"].particles] == [8, 8]


def presets(page: str) -> None:
    change, lmbda, budget, look = runnable(page)
    names = tiny(steps=10)
    exec(change, names)
    assert names["out"].rewards.shape == (1, 8)
    assert names["more"].num_particles == 16
    exec(lmbda, names)
    assert names["out"].trace.steering["lmbda"] == 20.0
    open_call = {key: value for key, value in names["call"].items() if key != "num_inference_steps"}
    exec(budget, names | {"call": open_call})
    exec(look, names)
    trace = names["out"].trace
    assert [event.step for event in trace.events] == [3, 4, 5, 6, 7, 10]
    assert trace.nfe < 4 * 2 * 10


def own_reward(page: str) -> None:
    names = tiny()
    function, pictures, over_a_network, a_class, relative = runnable(page)
    exec(function, names)
    assert names["out"].rewards[0].diff().le(0).all()
    exec(pictures, names)
    scores = names.pop("scores")
    assert scores.shape == (2,)
    exec(over_a_network, names)
    assert torch.equal(names["scores"], scores)
    exec(a_class, names)
    exec(relative, names)
    assert names["out"].rewards.max() <= 0.75


def rewards(page: str) -> None:
    names = tiny() | {"reward": tiny_reward("clip-score", "clip")}
    names |= {name: tiny_reward("clip-score", name) for name in ("clip", "aesthetic", "image_reward", "hps")}
    names |= {"brightness": redness, "compare": lambda first, second, prompts: first.mean((1, 2, 3)).sigmoid()}
    for block in runnable(page):
        exec(block, names)
    assert names["images"].grad.abs().sum() > 0


def chat_judges(page: str) -> None:
    names = {
        "clip": lambda images, prompts: images.mean((1, 2, 3)),
        "embed": lambda images, prompts: images[:, :2, 0, 0],
    }
    for block in runnable(page):
        exec(block, names)
    images = tiny()["images"]
    assert torch.allclose(names["compare"](images, images, None), torch.tensor(0.5))


def saving(page: str) -> None:
    pipeline, settings = runnable(page)
    names = {"stock_pipe": flux()}
    exec(pipeline, names)
    assert type(names["pipe"]).__name__ == "FKFluxPipeline"
    assert "reward" in inspect.signature(names["image_to_image"].__call__).parameters
    names = tiny(steps=10)
    exec(settings, names)
    assert Path("lineages.png").stat().st_size > 1000


def generation(page: str) -> None:
    (block,) = runnable(page)
    exec(block, {"__name__": "__mp_main__"})  # what a process that has been started does with it
    assert not Path("out").exists()
    exec(block.replace("limit=12", "limit=6, steps=2").replace("processes=2", "processes=1"), {"__name__": "__main__"})
    assert len(list(Path("out").rglob("samples/*.png"))) == 6 * 4


def serving(page: str) -> None:
    asked, of_trainers, without_us, of_ones_own = runnable(page)
    clip = load_reward("clip-score", path="shapes")
    with RewardServer({"clip-score": clip}) as server:
        names = tiny()
        exec(asked.replace("http://127.0.0.1:8008", server.url), names)
        torch.testing.assert_close(names["scores"], clip(names["images"], names["prompts"]), atol=1e-6, rtol=0)
        assert names["out"].rewards.isfinite().all()
        exec(of_trainers, names)
        pictures = to_pil(names["images"])
        assert names["reward_function"](names["prompts"], pictures) == pytest.approx(names["scores"].tolist())
        exec(without_us, names)
        over_http = names["scores_over_http"](server.url, pictures, names["prompts"])
        assert over_http["clip-score"] == pytest.approx(names["scores"].tolist(), abs=1e-6)
    exec(of_ones_own, names)
    served = names["app"].state.service.served["red"]
    assert served.score([Image.new("RGB", (3, 3), (7, 0, 0))], ["a"]) == [7.0]


def training(page: str) -> None:
    (block,) = runnable(page)
    exec(block, {})
    rows = Path("shapes-size/ratings.csv").read_text().splitlines()
    assert len(rows) > 100
    assert Path("shapes-size/backbone").is_dir()


def prefer(page: str) -> None:
    pytest.importorskip("datasets")
    load, decide = runnable(page)
    words = next(words for words in commands(page) if "shapes" in words)
    result = CliRunner().invoke(app, [*words[1:], "--limit", "2", "--steps", "2"])
    assert result.exit_code == 0, result.output
    exec(load, names := {})
    assert len(names["pairs"]) == 2 and names["pairs"][0]["label_0"] == 1.0
    exec(decide, names)
    assert names["summary"]["prompts"] == 2


def dpo(page: str) -> None:
    image = Image.new("RGB", (64, 64), "white")
    row = {"caption": "a photo of a star", "jpg_0": image, "jpg_1": image, "label_0": 1}
    settings = DPOConfig(output="out/dpo", steps=1, batch_size=1, micro_batch_size=1)
    train_dpo(settings, pairs=Preferences([row]))
    (load,) = runnable(page)
    exec(load.replace("num_inference_steps=25", "num_inference_steps=2"), names := {})
    assert names["image"].size == (64, 64)
    assert any("lora" in name for name, _ in names["pipe"].unet.named_parameters())


RUNS: dict[str, Callable[[str], None]] = {
    "docs/chat-judges.md": chat_judges,
    "docs/dpo.md": dpo,
    "docs/generation.md": generation,
    "docs/index.md": get_started,
    "docs/own-reward.md": own_reward,
    "docs/prefer.md": prefer,
    "docs/presets.md": presets,
    "docs/rewards.md": rewards,
    "docs/saving.md": saving,
    "docs/serving.md": serving,
    "docs/training.md": training,
}

ELSEWHERE = {"docs/compute.md", "docs/family-tree.md", "docs/modular.md", "docs/search.md", "docs/video.md"}
"""Pages of tests/test_docs.py and tests/test_family_tree.py."""

SCRIPTS = {"docs/parallel.md"}
"""Pages with a script for several processes."""


@pytest.mark.parametrize("page", RUNS)
def test_pages_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RUNS[page](page)


def test_all_pages_are_run():
    assert {page for page in DOCS if runnable(page)} == RUNS.keys() | ELSEWHERE | SCRIPTS


def launched(words: list[str], folder: Path) -> str:
    """What a command prints, started from the environment's own programs."""
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    run = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.slow
def test_a_script_of_several_processes_is_several(tmp_path):
    (script,) = runnable("docs/parallel.md")
    (tmp_path / "generate.py").write_text(script)
    starts = next(block for block in blocks("docs/parallel.md", "bash") if "generate.py" in block)
    lines = [line.split("#")[0].split() for line in starts.splitlines()]
    assert [line[0] for line in lines] == ["torchrun", "accelerate"]
    said = {re.search(r"2 processes, best reward [\d.]+\n", launched(line, tmp_path))[0] for line in lines}
    assert len(said) == 1


@pytest.mark.slow
def test_a_run_from_python_starts_its_processes(tmp_path):
    (script,) = runnable("docs/generation.md")
    (tmp_path / "run.py").write_text(script.replace("limit=12", "limit=6, steps=2"))
    assert launched([sys.executable, "run.py"], tmp_path) == "24 True\n"
