"""The nodes for ComfyUI, by its protocol and without its server."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from PIL import Image
from test_project import URL, text

import fk_steer
from fk_steer import Trace, load_reward, steer
from fk_steer.loading import load_pipeline, set_scheduler
from fk_steer.search import preset
from fk_steer.testing import SIZE
from fk_steer.testing.tiny import wan


FOLDER = REPOSITORY / "examples" / "comfyui"
WORKFLOW = json.loads((FOLDER / "workflow_api.json").read_text())
STEPS = 4


def load_pack() -> types.ModuleType:
    """As ComfyUI loads a folder of `custom_nodes`: under its path for a name, beside a module of its own, `nodes`."""
    name = str(FOLDER).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, FOLDER / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


PACK = load_pack()
MODELS = sys.modules[f"{PACK.__name__}.models"]


class SaveImage:
    """The inputs and outputs of ComfyUI's own node, as those below are. It shows the sizes of what it was given."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "ComfyUI"})}}

    RETURN_TYPES = ()
    FUNCTION = "show"
    OUTPUT_NODE = True

    def show(self, images: torch.Tensor, **_: Any) -> dict[str, Any]:
        # What ComfyUI does to save them.
        for image in images:
            Image.fromarray((255.0 * image.cpu().numpy()).clip(0, 255).astype("uint8"))
        return {"ui": {"images": [tuple(images.shape)]}}


class PreviewImage(SaveImage):
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": ("IMAGE",)}}


class PreviewAny:
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"source": ("*", {})}}

    RETURN_TYPES = ("STRING",)
    FUNCTION = "main"
    OUTPUT_NODE = True

    def main(self, source: Any = None) -> dict[str, Any]:
        return {"ui": {"text": (str(source),)}, "result": (str(source),)}


class Prompts:
    """A node that gives a list, of whose items those after it are executed one by one."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"text": ("STRING", {"multiline": True})}}

    RETURN_TYPES = ("STRING",)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "split"

    def split(self, text: str) -> tuple[list[str]]:
        return (text.splitlines(),)


NODES = {**PACK.NODE_CLASS_MAPPINGS, "SaveImage": SaveImage, "PreviewImage": PreviewImage, "PreviewAny": PreviewAny,
         "Prompts": Prompts}  # fmt: skip


def is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


class Executor:
    """What ComfyUI's executor does with a workflow: checks, then execution from the output nodes backwards."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Any] = {}
        self.outputs: dict[str, list[list[Any]]] = {}
        self.shown: dict[str, dict[str, list[Any]]] = {}
        self.known: dict[str, Any] = {}
        self.executed: list[str] = []

    def validate(self, workflow: dict[str, Any]) -> dict[str, str]:
        """Node -> what is wrong with its inputs."""
        errors = {}
        for key, node in workflow.items():
            kind = NODES[node["class_type"]]
            named = inspect.getfullargspec(kind.VALIDATE_INPUTS).args if hasattr(kind, "VALIDATE_INPUTS") else []
            types_of = kind.INPUT_TYPES()
            for name, declared in {**types_of["required"], **types_of.get("optional", {})}.items():
                if name not in node["inputs"]:
                    if name in types_of["required"]:
                        errors[key] = f"required input is missing: {name}"
                    continue
                value, wanted, info = node["inputs"][name], declared[0], dict(*declared[1:])
                if is_link(value):
                    given = NODES[workflow[value[0]]["class_type"]].RETURN_TYPES[value[1]]
                    if wanted not in ("*", given):
                        errors[key] = f"{name}, {given} != {wanted}"
                    continue
                convert = {"INT": int, "FLOAT": float, "STRING": str}.get(wanted) if isinstance(wanted, str) else None
                value = node["inputs"][name] = convert(value) if convert else value
                if name in named:
                    continue
                if ("min" in info and value < info["min"]) or ("max" in info and value > info["max"]):
                    errors[key] = f"{name}: {value} is out of range"
                if isinstance(wanted, list) and value not in wanted:
                    errors[key] = f"{name}: {value!r} not in list"
            if named and key not in errors:
                known = {name: values for name, values in self.inputs(workflow, key, False).items() if name in named}
                for result in self.map(kind, "VALIDATE_INPUTS", known):
                    if result is not True:
                        errors[key] = str(result)
        return errors

    def inputs(self, workflow: dict[str, Any], key: str, linked: bool = True) -> dict[str, Any]:
        """Lists of values by name; those that come by links are None where they are not `linked`."""
        node = workflow[key]
        declared = NODES[node["class_type"]].INPUT_TYPES()
        found: dict[str, Any] = {}
        for name, value in node["inputs"].items():
            if is_link(value):
                found[name] = self.outputs[value[0]][value[1]] if linked else (None,)
            elif name in declared["required"] or name in declared.get("optional", {}):
                found[name] = [value]
        return found

    def map(self, owner: Any, function: str, values: dict[str, Any]) -> list[Any]:
        longest = max(map(len, values.values()), default=1)
        return [
            getattr(owner, function)(**{name: some[min(index, len(some) - 1)] for name, some in values.items()})
            for index in range(longest)
        ]

    def run(self, workflow: dict[str, Any]) -> Executor:
        workflow = json.loads(json.dumps(workflow))
        assert self.validate(workflow) == {}
        self.executed = []
        with torch.inference_mode():
            for key, node in workflow.items():
                if getattr(NODES[node["class_type"]], "OUTPUT_NODE", False):
                    self._execute(workflow, key)
        return self

    def _execute(self, workflow: dict[str, Any], key: str) -> Any:
        """What the outputs of a node depend on."""
        node, kind = workflow[key], NODES[workflow[key]["class_type"]]
        before = [self._execute(workflow, value[0]) for value in node["inputs"].values() if is_link(value)]
        changed = None
        if hasattr(kind, "IS_CHANGED"):
            changed = self.map(kind, "IS_CHANGED", self.inputs(workflow, key, False))
        known = json.dumps([node, before, changed])
        if self.known.get(key) == known:
            return known
        thing = self.objects.setdefault((key, node["class_type"]), kind())
        results = self.map(thing, kind.FUNCTION, self.inputs(workflow, key))
        self.executed.append(key)
        shown = [one["ui"] for one in results if isinstance(one, dict)]
        self.shown[key] = {name: [item for ui in shown for item in ui[name]] for name in (shown[0] if shown else ())}
        tuples = [one.get("result", ()) if isinstance(one, dict) else one for one in results]
        lists = getattr(kind, "OUTPUT_IS_LIST", [False] * len(kind.RETURN_TYPES))
        self.outputs[key] = [
            [item for one in tuples for item in one[slot]] if is_list else [one[slot] for one in tuples]
            for slot, is_list in enumerate(lists)
        ]
        self.known[key] = known
        return known


def sample(**inputs: Any) -> dict[str, Any]:
    """A workflow of the first node, whose best image is saved."""
    usual = {"prompt": "a photo of a red star", "model": "shapes", "reward": "clip-score", "preset": "adaptive",
             "particles": 2, "steps": STEPS, "guidance": 3.0, "seed": 0}  # fmt: skip
    return {
        "1": {"class_type": "FKSteerSample", "inputs": {**usual, **inputs}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "fk-steer"}},
    }


def score(images: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, str, float, int]:
    usual = {"prompt": "a photo of a red star", "reward": "clip-score", "weights": "bundled"}
    with torch.inference_mode():
        return NODES["FKScoreImages"]().score(images=images.clone(), **{**usual, **inputs})


@pytest.fixture(autouse=True)
def _temporary(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


class Interrupted(Exception):
    """As `comfy.model_management.InterruptProcessingException`."""


@pytest.fixture
def comfy(monkeypatch, tmp_path) -> types.SimpleNamespace:
    """The modules of ComfyUI, as far as nodes use them."""
    seen = types.SimpleNamespace(updates=[], unloaded=0, interrupt_at=None, output=tmp_path / "output")

    class ProgressBar:
        def __init__(self, total: int, node_id: str | None = None) -> None:
            self.total = total

        def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
            self.total = self.total if total is None else total
            seen.updates.append((value, self.total, preview))

    def throw_exception_if_processing_interrupted() -> None:
        if seen.interrupt_at is not None and len(seen.updates) >= seen.interrupt_at:
            seen.interrupt_at = None
            raise Interrupted

    def unload_all_models() -> None:
        seen.unloaded += 1

    contents = {
        "comfy": {},
        "comfy.utils": {"ProgressBar": ProgressBar},
        "comfy.model_management": {
            "get_torch_device": lambda: torch.device("cpu"),
            "unload_all_models": unload_all_models,
            "soft_empty_cache": lambda force=False: None,
            "throw_exception_if_processing_interrupted": throw_exception_if_processing_interrupted,
        },
        "folder_paths": {
            "get_output_directory": lambda: str(seen.output),
            "get_folder_paths": lambda name: [str(tmp_path / "models" / name)],
        },
    }
    for name, content in contents.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return seen


class TestProtocol:
    @pytest.mark.parametrize("name", PACK.NODE_CLASS_MAPPINGS)
    def test_declarations(self, name):
        node = NODES[name]
        assert PACK.NODE_DISPLAY_NAME_MAPPINGS[name] and node.CATEGORY and node.DESCRIPTION.endswith(".")
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == len(node.OUTPUT_TOOLTIPS)
        assert set(node.RETURN_TYPES) <= {"IMAGE", "STRING", "INT", "FLOAT"}
        inputs = node.INPUT_TYPES()
        assert set(inputs) == {"required", "optional"}
        for declared in (*inputs["required"].values(), *inputs["optional"].values()):
            kind, info = declared[0], dict(*declared[1:])
            assert isinstance(declared, tuple)
            if isinstance(kind, list):
                assert info["default"] in kind
            elif kind in ("INT", "FLOAT"):
                assert info["min"] <= info["default"] <= info["max"]
            else:
                assert kind == "IMAGE" or (kind == "STRING" and isinstance(info["default"], str))
        assert json.loads(json.dumps(inputs))  # the browser is told of them

    @pytest.mark.parametrize("name", PACK.NODE_CLASS_MAPPINGS)
    def test_a_function_takes_the_inputs_and_has_the_defaults_of_what_is_optional(self, name):
        """ComfyUI gives an optional input only where it is there, and knows defaults in the browser alone."""
        node, inputs = NODES[name], NODES[name].INPUT_TYPES()
        parameters = dict(inspect.signature(getattr(node(), node.FUNCTION)).parameters)
        assert list(parameters) == [*inputs["required"], *inputs["optional"]]
        for name in inputs["required"]:
            assert parameters[name].default is inspect.Parameter.empty
        for name, declared in inputs["optional"].items():
            assert parameters[name].default == declared[1]["default"]

    def test_the_order_of_what_is_returned_is_that_of_the_names(self):
        out = Executor().run(sample()).outputs["1"]
        by_name = dict(zip(NODES["FKSteerSample"].RETURN_NAMES, (values[0] for values in out)))
        assert by_name["best"].shape == (1, 64, 64, 3) and by_name["particles"].shape == (2, 64, 64, 3)
        assert re.fullmatch(r"1: -?\d\.\d{4}\n2: -?\d\.\d{4}", by_name["rewards"])
        assert by_name["tree_path"].endswith(".html") and json.loads(by_name["trace"])["prompts"]


class TestWorkflow:
    @pytest.fixture(scope="class")
    @staticmethod
    def executor(tmp_path_factory) -> Executor:
        workflow = json.loads(json.dumps(WORKFLOW))
        workflow["1"]["inputs"]["steps"] = STEPS
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("comfyui")))
            return Executor().run(workflow)

    def test_the_one_in_the_folder_is_valid_as_it_stands(self):
        assert Executor().validate(json.loads(json.dumps(WORKFLOW))) == {}
        assert all(node["_meta"]["title"] for node in WORKFLOW.values())

    def test_it_runs(self, executor):
        assert executor.shown["3"]["images"] == [(1, 64, 64, 3)]
        assert executor.shown["4"]["images"] == [(4, 64, 64, 3)]
        assert executor.shown["5"]["text"][0].count("\n") == 3
        assert sorted(re.findall(r"image (\d)", executor.shown["6"]["text"][0])) == list("0123")

    def test_images_are_as_comfyui_has_them(self, executor):
        for images in (executor.outputs["1"][0][0], executor.outputs["1"][1][0], executor.outputs["2"][0][0]):
            assert images.dtype == torch.float32 and images.device.type == "cpu" and images.is_contiguous()
            assert images.min() >= 0.0 and images.max() <= 1.0 and images.std() > 0.01

    def test_the_best_image_is_the_first_particle(self, executor):
        best, particles, rewards, *_ = (values[0] for values in executor.outputs["1"])
        assert torch.equal(best[0], particles[0])
        values = [float(line.split()[1]) for line in rewards.splitlines()]
        assert values == sorted(values, reverse=True)

    def test_the_trace_and_the_page_are_of_the_run(self, executor):
        *_, trace = (values[0] for values in executor.outputs["1"])
        read = Trace.from_dict(json.loads(trace))
        assert read.prompts == [WORKFLOW["1"]["inputs"]["prompt"]] and read.num_steps == STEPS
        assert read.events[0].predictions


def test_it_draws_what_a_call_draws():
    (best,), (particles,), (rewards,), _, _ = Executor().run(sample(seed=3)).outputs["1"]
    pipe, settings = load_pipeline("shapes"), preset("adaptive", num_particles=2)
    set_scheduler(pipe, None, settings, STEPS)
    out = steer(pipe, load_reward("clip-score", path="shapes"), settings)(
        "a photo of a red star", num_inference_steps=STEPS, guidance_scale=3.0, output_type="pt",
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    assert torch.equal(best.movedim(-1, 1), out.images)
    assert torch.equal(particles.movedim(-1, 1), out.particles[0])
    assert rewards == "\n".join(f"{n}: {value:.4f}" for n, value in enumerate(out.rewards[0].tolist(), 1))


def test_every_optional_input_counts():
    plain = Executor().run(sample()).outputs["1"]
    for inputs in ({"negative_prompt": "blue"}, {"lmbda": 50.0, "preset": "fk"}, {"seed": 2**64 - 1}):
        assert not torch.equal(Executor().run(sample(**inputs)).outputs["1"][0][0], plain[0][0]), inputs
    for inputs in ({"batch_size": 1}, {"dtype": "float32"}, {"reward_options": '{"path": "shapes"}'}):
        assert torch.allclose(Executor().run(sample(**inputs)).outputs["1"][0][0], plain[0][0], atol=1e-4), inputs
    out = Executor().run(sample(width=48, height=32, reward="clip-score>clip-score")).outputs["1"]
    assert out[0][0].shape == (1, 32, 48, 3)


def test_a_budget_chooses_steps_and_particles():
    (trace,) = Executor().run(sample(particles=0, steps=0, budget=20)).outputs["1"][4]
    chosen = json.loads(trace)["chosen"]
    assert chosen["budget"] == 20 and chosen["calls"] <= 20 and chosen["num_particles"] * chosen["steps"] <= 20


def test_a_list_of_prompts_is_drawn_one_after_the_other():
    workflow = {"0": {"class_type": "Prompts", "inputs": {"text": "a photo of a red star\na photo of two moons"}},
                **sample(prompt=["0", 0])}  # fmt: skip
    executor = Executor().run(workflow)
    first, second = (json.loads(trace)["prompts"] for trace in executor.outputs["1"][4])
    assert (first, second) == (["a photo of a red star"], ["a photo of two moons"])
    assert executor.shown["3"]["images"] == [(1, 64, 64, 3)] * 2


class TestLoaded:
    def test_models_stay_loaded(self, monkeypatch):
        executor = Executor().run(sample())
        for name in ("load", "load_guide"):
            monkeypatch.setattr(MODELS, name, lambda *_, **__: pytest.fail("loaded again"))
        executor.run(sample(seed=1))
        assert executor.executed == ["1", "3"]
        Executor().run(sample(seed=2, preset="finish"))

    def test_nothing_is_done_again_for_the_same_inputs(self):
        executor = Executor().run(sample())
        assert executor.run(sample()).executed == []

    def test_a_run_leaves_no_trace_in_a_pipeline(self):
        """The sampler of a preset that needs noise is not the next one's."""
        inputs = {"preset": "best-of-n", "seed": 5}
        MODELS._pipeline.cache_clear()
        fresh = Executor().run(sample(**inputs)).outputs["1"][0][0]
        Executor().run(sample())
        assert torch.equal(Executor().run(sample(**inputs)).outputs["1"][0][0], fresh)

    def test_a_folder_that_has_changed_is_loaded_again(self, tmp_path, monkeypatch):
        folder, loaded = tmp_path / "model", []
        load_pipeline("shapes").save_pretrained(folder)
        load = MODELS.load
        monkeypatch.setattr(MODELS, "load", lambda *args, **options: loaded.append(args) or load(*args, **options))
        inputs = {"model": str(folder), "reward_options": '{"path": "shapes"}'}
        executor = Executor().run(sample(**inputs))
        assert executor.run(sample(**inputs)).executed == [] and len(loaded) == 1
        os.utime(folder / "model_index.json", (2e9, 2e9))
        assert executor.run(sample(**inputs)).executed == ["1", "3"] and len(loaded) == 2


class TestWithinComfyUI:
    def test_progress_and_previews(self, comfy):
        Executor().run(sample(preset="finish"))
        steps = [value for value, total, preview in comfy.updates if preview is None]
        assert steps == list(range(1, STEPS + 1))
        assert {total for _, total, _ in comfy.updates} == {STEPS}
        previews = [preview for _, _, preview in comfy.updates if preview]
        assert len(previews) >= 2
        for kind, picture, side in previews:
            assert kind == "JPEG" and isinstance(picture, Image.Image) and picture.mode == "RGB" and side == 512

    @pytest.mark.parametrize("updates", [0, 1, 3])
    def test_interruption(self, comfy, updates):
        whole = Executor().run(sample()).outputs["1"][0][0]
        comfy.updates.clear()
        comfy.interrupt_at = updates
        with pytest.raises(Interrupted):
            Executor().run(sample())
        assert len(comfy.updates) == updates
        assert torch.equal(Executor().run(sample()).outputs["1"][0][0], whole)

    def test_scoring_is_interrupted_between_batches(self, comfy):
        comfy.interrupt_at = 1
        with pytest.raises(Interrupted):
            score(torch.rand(4, 64, 64, 3), batch_size=2)
        assert [update[:2] for update in comfy.updates] == [(2, 4)]

    def test_the_page_is_in_the_output_folder(self, comfy):
        (path,) = Executor().run(sample()).outputs["1"][3]
        assert path.startswith(str(comfy.output / "fk-steer" / "tree_"))
        (again,) = Executor().run(sample()).outputs["1"][3]
        page = Path(path).read_text(encoding="utf-8")
        assert "a photo of a red star" in page and "<svg" in page and again.endswith(".html")

    def test_other_models_make_room_when_one_is_loaded(self, comfy):
        MODELS._pipeline.cache_clear()
        Executor().run(sample())
        unloaded = comfy.unloaded
        assert unloaded >= 1
        Executor().run(sample(seed=1))
        assert comfy.unloaded == unloaded

    def test_a_pipeline_in_models_diffusers_has_its_folder_for_a_name(self, comfy, tmp_path):
        load_pipeline("shapes").save_pretrained(tmp_path / "models" / "diffusers" / "mine")
        executor = Executor().run(sample(model="mine", reward_options='{"path": "shapes"}'))
        assert executor.shown["3"]["images"] == [(1, 64, 64, 3)]


def test_videos_are_batches_of_frames(tmp_path):
    wan().save_pretrained(tmp_path / "wan")
    inputs = {"model": str(tmp_path / "wan"), "reward_options": '{"path": "shapes"}', **SIZE, "frames": 5}
    out = Executor().run(sample(**inputs))
    best, particles = out.outputs["1"][0][0], out.outputs["1"][1][0]
    assert best.shape == (5, 16, 16, 3) and particles.shape == (10, 16, 16, 3)
    assert torch.equal(particles[:5], best)


class TestChecks:
    """Before anything is queued, in one sentence."""

    @pytest.mark.parametrize(
        "inputs, message",
        [
            ({"reward": "clip-scor"}, r"clip-scor.*clip-score"),
            ({"reward": "clip-score+"}, r"Cannot read the reward"),
            ({"reward_options": "{path"}, r"as JSON, such as"),
            ({"reward_options": '["path"]'}, r"in braces"),
            ({"reward_options": '{"pth": "shapes"}'}, r"no option 'pth'.*path"),
            ({"reward_options": '{"path": "shapes"}', "reward": "clip-score+hps"}, r"by reward, such as"),
            ({"model": "shape"}, r"shape"),
            ({"model": str(REPOSITORY)}, r"holds no model_index\.json"),
            ({"preset": "finnish"}, r"not in list"),
            ({"steps": -1}, r"out of range"),
            ({"particles": 10**6}, r"out of range"),
            ({"seed": 2**64}, r"out of range"),
        ],
    )  # fmt: skip
    def test_sampling(self, inputs, message):
        (error,) = Executor().validate(sample(**inputs)).values()
        assert re.search(message, error)

    def test_what_comes_by_a_link_is_checked_when_it_is_known(self):
        workflow = {"0": {"class_type": "Prompts", "inputs": {"text": "clip-scor"}}, **sample(reward=["0", 0])}
        assert Executor().validate(workflow) == {}
        with pytest.raises(ValueError, match="clip-scor"):
            Executor().run(workflow)

    def test_particles_beside_a_budget(self):
        with pytest.raises(ValueError, match="A budget of 20 denoiser calls chooses the particles"):
            Executor().run(sample(budget=20))

    @pytest.mark.parametrize(
        "inputs, message",
        [
            ({"reward": "hps"}, r"'hps' has no bundled weights; these have: clip-score.*'published'"),
            ({"weights": "others"}, r"'bundled' or 'published'"),
            ({"reward_options": "3"}, r"in braces"),
        ],
    )
    def test_scoring(self, inputs, message):
        node = {"images": ["1", 0], "prompt": "a", "reward": "clip-score", "weights": "bundled"}
        workflow = {**sample(), "2": {"class_type": "FKScoreImages", "inputs": {**node, **inputs}}}
        (error,) = Executor().validate(workflow).values()
        assert re.search(message, error)


class TestScoring:
    IMAGES = torch.rand(4, 64, 64, 3, generator=torch.Generator().manual_seed(0))

    def test_scores_are_those_of_the_reward(self):
        ordered, lines, highest, index = score(self.IMAGES)
        expected = load_reward("clip-score", path="shapes")(self.IMAGES.movedim(-1, 1), ["a photo of a red star"] * 4)
        order = expected.argsort(descending=True).tolist()
        assert lines == "\n".join(f"image {i}: {expected[i]:.4f}" for i in order)
        assert torch.equal(ordered, self.IMAGES[order])
        assert index == order[0] and highest == pytest.approx(expected.max().item())

    @pytest.mark.parametrize("reward", ["clip-score", "clip-score+image-reward", "2*clip-score+image-reward"])
    def test_how_many_at_a_time_changes_nothing(self, reward):
        all_at_once, one_at_a_time = (score(self.IMAGES, reward=reward, batch_size=size) for size in (0, 1))
        assert all_at_once[3] == one_at_a_time[3]
        assert all_at_once[2] == pytest.approx(one_at_a_time[2], abs=1e-5)

    def test_transparency_is_left_out_and_grey_is_a_colour(self):
        transparent = torch.cat([self.IMAGES, torch.rand(4, 64, 64, 1)], -1)
        assert score(transparent)[1:] == score(self.IMAGES)[1:]
        grey = self.IMAGES[..., :1]
        assert score(grey)[1:] == score(grey.expand(-1, -1, -1, 3))[1:]

    def test_images_are_given_on_as_they_came(self):
        images = torch.cat([self.IMAGES * 1.5 - 0.2, torch.rand(4, 64, 64, 1)], -1)
        ordered, *_, index = score(images)
        assert torch.equal(ordered[0], images[index])
        assert score(images)[1:] == score(images.clamp(0, 1))[1:]

    def test_one_image(self):
        assert score(self.IMAGES[:1])[3] == 0

    def test_a_missing_score_is_last(self, monkeypatch):
        found = iter([[0.5, None], [float("nan"), 0.7]])
        monkeypatch.setattr(sys.modules[f"{PACK.__name__}.nodes"], "scores_or_none", lambda *_: next(found))
        _, lines, highest, index = score(self.IMAGES, batch_size=2)
        assert lines.splitlines()[:2] == ["image 3: 0.7000", "image 0: 0.5000"] and (highest, index) == (0.7, 3)


class TestProject:
    SETTINGS = tomllib.loads((FOLDER / "pyproject.toml").read_text())

    def test_the_registry_is_told_what_the_package_is(self):
        project, registry = self.SETTINGS["project"], self.SETTINGS["tool"]["comfy"]
        assert project["version"] == fk_steer.__version__ and project["urls"]["Repository"] == URL
        # The registry's rules for names.
        assert re.fullmatch(r"[A-Za-z]([-_.]?[A-Za-z0-9])*", project["name"]) and "comfy" not in project["name"]
        assert registry["PublisherId"] and registry["DisplayName"]

    def test_requirements_are_the_dependencies(self):
        assert text("examples/comfyui/requirements.txt").split("\n")[:-1] == self.SETTINGS["project"]["dependencies"]

    def test_the_page_names_every_input_and_output(self):
        page = text("examples/comfyui/README.md")
        for node in PACK.NODE_CLASS_MAPPINGS.values():
            inputs = node.INPUT_TYPES()
            for name in (*inputs["required"], *inputs["optional"], *node.RETURN_NAMES):
                assert f"`{name}`" in page
