"""The arguments of a call for a row per particle, and which components of a pipeline do what."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, WanTransformer3DModel
from PIL import Image

from benchmarks.pipelines.checks import Watching, generators, reward
from fk_steer import Noise, preset, steer
from fk_steer.diffusion.components import (
    autoencoder_of,
    call_names,
    denoisers_of,
    is_control,
    is_modular,
    makes_videos,
)
from fk_steer.diffusion.conditions import begins_with_image
from fk_steer.diffusion.inputs import Way, encoded_once, entries_of, number_name, ways_of
from fk_steer.testing import PROMPTS, quiet, redness, row_generators, sd
from fk_steer.testing.tiny import FAMILIES, photograph, wan


class Images:
    components: dict = {}

    def __call__(
        self, prompt, image=None, video=None, num_images_per_prompt=1, strength=0.8, mask_image=None, **kwargs
    ): ...


class Videos:
    components: dict = {}

    def __call__(self, prompt, image=None, num_frames=16, generator=None): ...


RED, BLUE = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
ROWS = [0, 0, 1, 1]


def given(way, arguments, num_prompts=2, rows=ROWS, pipe=None):
    return Way(way).arguments(pipe or Images(), arguments, num_prompts, rows)


class TestTexts:
    def test_are_repeated_for_each_row(self):
        asked = given("texts", {"prompt": ["a", "b"], "negative_prompt": "blurry", "prompt_2": ["c", "d"], "seed": 3})
        assert asked == {
            "prompt": ["a", "a", "b", "b"],
            "negative_prompt": ["blurry"] * 4,
            "prompt_2": ["c", "c", "d", "d"],
            "seed": 3,
        }

    def test_single_ones_become_lists(self):
        assert given("texts", {"prompt": "a"}, 1, [0, 0, 0]) == {"prompt": ["a"] * 3}

    def test_what_is_none_stays_so(self):
        asked = given("everything", {"prompt": "a", "negative_prompt": None, "image": None}, 1, [0, 0])
        assert asked == {"prompt": ["a", "a"], "negative_prompt": None, "image": None}

    @pytest.mark.parametrize(
        "name",
        [
            "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask", "image_embeds",
            "negative_prompt_attention_mask", "prompt_embeds_mask", "prompt_embeds_t5", "prompt_embeds_llama3", "hint",
        ],
    )  # fmt: skip
    def test_so_is_what_was_encoded_of_them(self, name):
        value = torch.tensor([[1.0], [2.0]])
        assert given("texts", {name: value})[name].flatten().tolist() == [1.0, 1.0, 2.0, 2.0]

    def test_embeddings_in_lists_and_arrays(self):
        first, second = torch.zeros(3, 1), torch.zeros(5, 1)
        rows = given("texts", {"prompt_embeds": [first, second]})["prompt_embeds"]
        assert [id(row) for row in rows] == [id(first), id(first), id(second), id(second)]
        rows = given("texts", {"prompt_embeds": np.array([[1.0], [2.0]])})["prompt_embeds"]
        assert rows.tolist() == [[1.0], [1.0], [2.0], [2.0]]

    def test_one_embedding_for_all_prompts(self):
        rows = given("texts", {"negative_prompt_embeds": torch.ones(1, 3, 2)})["negative_prompt_embeds"]
        assert rows.shape == (4, 3, 2)

    def test_those_of_adapters_are_left_to_the_pipeline(self):
        embeds = [torch.zeros(2, 1, 4)]
        assert given("everything", {"ip_adapter_image_embeds": embeds})["ip_adapter_image_embeds"] is embeds


class TestImages:
    def colors(self, images):
        return [image.getpixel((0, 0)) for image in images]

    def test_one_for_all_is_left_alone_unless_all_is_repeated(self):
        assert given("texts", {"image": RED})["image"] is RED
        assert given("everything", {"image": RED})["image"] == [RED] * 4

    @pytest.mark.parametrize("way", ["texts", "everything"])
    def test_one_for_each_prompt_goes_with_its_rows(self, way):
        assert given(way, {"image": [RED, BLUE]})["image"] == [RED, RED, BLUE, BLUE]
        tensors = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
        assert given(way, {"image": tensors})["image"].mean((1, 2, 3)).tolist() == [0.0, 0.0, 1.0, 1.0]

    def test_single_tensors_get_a_dimension_of_rows(self):
        assert given("everything", {"image": torch.zeros(3, 4, 4)})["image"].shape == (4, 3, 4, 4)
        assert given("everything", {"mask_image": torch.zeros(1, 1, 4, 4)})["mask_image"].shape == (4, 1, 4, 4)
        assert given("everything", {"image": np.zeros((1, 4, 4, 3))})["image"].shape == (4, 4, 4, 3)

    def test_frames_of_one_video_are_no_rows(self):
        frames = [RED, BLUE]
        assert given("everything", {"video": frames}, 1, [0, 0, 0])["video"] == [frames] * 3
        assert given("everything", {"video": torch.zeros(5, 3, 4, 4)}, 1, [0, 0])["video"].shape == (2, 5, 3, 4, 4)
        assert given("everything", {"video": [frames, frames[::-1]]})["video"] == [frames] * 2 + [frames[::-1]] * 2

    def test_images_of_several_control_networks_are_one_for_each_network(self):
        pipe = Images()
        pipe.controlnet = type("Multi", (), {"nets": [1, 2]})()
        assert given("everything", {"image": [RED, BLUE]}, pipe=pipe)["image"] == [RED, BLUE]


class TestWays:
    def test_pipelines_repeat_themselves_where_nothing_else_is_left(self):
        assert ways_of(Images(), {"prompt": "a"}, 1) == [Way("texts"), Way("nothing")]
        assert ways_of(Videos(), {"prompt": "a"}, 1) == [Way("texts")]
        arguments = {"prompt": ["a", "b"], "image": RED}
        assert given("nothing", arguments, 2, [0] * 3 + [1] * 3) == {**arguments, "num_images_per_prompt": 3}

    def test_images_are_repeated_first(self):
        assert ways_of(Videos(), {"prompt": "a", "image": RED}, 1) == [Way("everything"), Way("texts")]
        # One for each prompt is repeated by both.
        assert ways_of(Videos(), {"prompt": ["a", "b"], "image": [RED, BLUE]}, 2) == [Way("texts"), Way("everything")]

    def test_number_of_results(self):
        assert number_name(Images()) == "num_images_per_prompt"
        assert number_name(wan()) == "num_videos_per_prompt"
        assert number_name(Videos()) is None

    def test_entries_of_some_prompts(self):
        arguments = {
            "prompt": ["a", "b"],
            "negative_prompt": "blurry",
            "image": RED,
            "mask_image": [RED, BLUE],
            "prompt_embeds": torch.tensor([[1.0], [2.0]]),
            "sigmas": [1.0, 0.5],
        }
        found = entries_of(SimpleNamespace(), arguments, 2, [1, 1, 0])
        assert found.pop("prompt_embeds").flatten().tolist() == [2.0, 2.0, 1.0]
        assert found == {
            "prompt": ["b", "b", "a"],
            "negative_prompt": ["blurry"] * 3,
            "image": RED,
            "mask_image": [BLUE, BLUE, RED],
            "sigmas": [1.0, 0.5],
        }


class TestEncodedOnce:
    """Each combination of texts is encoded once, in the order of their first rows."""

    def run(self, encode, *args, **kwargs):
        return encoded_once(encode, list(inspect.signature(encode).parameters), args, kwargs)

    def encoder(self, calls, form=tuple):
        def encode(prompt, prompt_2=None, num_images_per_prompt=1, prompt_embeds=None, lora_scale=None):
            calls.append((prompt, prompt_2))
            encoded = torch.tensor([[float(len(text))] for text in prompt])
            return form([encoded, None]) if form is tuple else form(encoded)

        return encode

    def test_rows_with_equal_texts(self):
        calls = []
        encoded, none = self.run(self.encoder(calls), ["aa", "aa", "b", "aa"], ["x", "x", "y", "x"])
        assert calls == [(["aa", "b"], ["x", "y"])]
        assert encoded.flatten().tolist() == [2.0, 2.0, 1.0, 2.0]
        assert none is None

    def test_texts_that_differ_in_one_of_two(self):
        calls = []
        self.run(self.encoder(calls), ["aa", "aa", "aa"], prompt_2=["x", "y", "x"])
        assert calls == [(["aa", "aa"], ["x", "y"])]

    def test_lists_of_tensors(self):
        calls = []
        encoded = self.run(self.encoder(calls, lambda rows: list(rows.unbind())), ["aa", "b", "aa"])
        assert [float(row) for row in encoded] == [2.0, 1.0, 2.0]
        assert calls == [(["aa", "b"], None)]

    @pytest.mark.parametrize(
        "given",
        [
            {"prompt": ["a", "b"]},
            {"prompt": ["a", "a"], "num_images_per_prompt": 2},
            {"prompt": ["a", "a"], "prompt_embeds": torch.zeros(2, 1)},
            {"prompt": ["a", "a"], "prompt_2": ["x"]},
            {"prompt": ["a", "a"], "lora_scale": torch.zeros(2)},
        ],
        ids=["all differ", "repeated by the pipeline", "embeddings", "other numbers", "a tensor with rows"],
    )
    def test_what_cannot_be_shared_is_handed_on(self, given):
        calls = []
        self.run(self.encoder(calls), **given)
        assert calls == [(given["prompt"], given.get("prompt_2"))]

    def test_an_encoding_of_another_form_is_made_again(self):
        calls = []
        encoded = self.run(self.encoder(calls, lambda rows: SimpleNamespace(embeds=rows)), ["aa", "aa"])
        assert encoded.embeds.shape == (2, 1)
        assert calls == [(["aa"], None), (["aa", "aa"], None)]


MASKED = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
EMBEDDINGS = {
    "pixart": MASKED,
    "sana": MASKED,
    "wan": ("prompt_embeds", "negative_prompt_embeds"),
    "hunyuan-video": ("prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask"),
    "deepfloyd-if": ("prompt_embeds", "negative_prompt_embeds"),
    "z-image": ("prompt_embeds", "negative_prompt_embeds"),
}
"""Family -> what its `encode_prompt` returns."""


@pytest.mark.parametrize("family", EMBEDDINGS)
def test_embeddings_in_place_of_prompts(family):
    """With their masks, as tensors or in lists."""
    make, call = FAMILIES[family]
    pipe = make()
    reward.takes_videos = makes_videos(pipe)
    names = inspect.signature(pipe.encode_prompt).parameters
    options = {"do_classifier_free_guidance": True, **call}
    encoded = pipe.encode_prompt(list(PROMPTS), **{name: options[name] for name in options if name in names})
    # These stand in for texts.
    call = {name: value for name, value in call.items() if name != "prompt_template"}
    embeddings = {**dict(zip(EMBEDDINGS[family], encoded)), "prompt": None}
    if "negative_prompt" in call_names(pipe):
        embeddings["negative_prompt"] = None

    def run(**texts):
        rows = generators(0, 1, count=2)
        strategy = Watching(2, noise=Noise(0.0))
        return steer(pipe, reward, strategy)(**texts, generator=rows, num_inference_steps=2, output_type="pt")

    expected = run(prompt=list(PROMPTS), **FAMILIES[family][1]).particles
    found = run(**embeddings, reward_prompt=PROMPTS, **call).particles
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0.0)
    assert (expected[0] - expected[1]).abs().max() > 0.05


class TestComponents:
    def test_all_denoisers_are_found(self):
        pipe = wan()
        pipe.register_modules(transformer_2=WanTransformer3DModel.from_config(pipe.transformer.config))
        assert set(denoisers_of(pipe)) == {"transformer", "transformer_2"}
        pipe = sd()
        control = ControlNetModel.from_unet(pipe.unet)
        both = StableDiffusionControlNetPipeline(**pipe.components, controlnet=control, requires_safety_checker=False)
        found = denoisers_of(quiet(both))
        assert {name: is_control(module) for name, module in found.items()} == {"unet": False, "controlnet": True}

    @pytest.mark.parametrize(
        ("family", "autoencoder", "videos", "modular"),
        [
            ("sd", "vae", False, False),
            ("deepfloyd-if", None, False, False),
            ("animatediff", "vae", True, False),
            ("cogvideox", "vae", True, False),
            ("kandinsky5", "vae", False, False),
            ("modular-flux", "vae", False, True),
        ],
    )
    def test_kinds_of_pipelines(self, family, autoencoder, videos, modular):
        pipe = FAMILIES[family][0]()
        found = autoencoder_of(pipe)
        assert (None if found is None else found[0]) == autoencoder
        assert (makes_videos(pipe), is_modular(pipe)) == (videos, modular)

    def test_arguments_of_calls_that_hand_theirs_on(self):
        class Own(type(wan())):
            def __call__(self, *args, mood="calm", **kwargs):
                return super().__call__(*args, **kwargs)

        pipe = wan()
        pipe.__class__ = Own
        assert {"mood", "num_frames", "prompt"} <= call_names(pipe)
        assert number_name(pipe) == "num_videos_per_prompt"

    def test_where_particles_begin(self):
        assert begins_with_image(Images(), {"image": RED})
        assert not begins_with_image(Images(), {"image": RED, "mask_image": RED})
        assert not begins_with_image(Videos(), {"image": RED})


def test_an_image_that_a_list_would_make_several_references_of():
    """Flux 2 takes a list of images for what every row is conditioned on, so one image is given as it is."""
    make, call = FAMILIES["flux2"]
    pipe, image = make(), photograph(64)
    call = {**call, "prompt": "a cat", "image": image, "num_inference_steps": 2, "output_type": "pt"}
    alone = pipe(**call, generator=row_generators(0)[0]).images
    steered = steer(pipe, redness, preset("best-of-n", num_particles=3))(**call, generator=row_generators(0, 1, 2))
    distances = [(image - alone[0]).abs().max().item() for image in steered.particles[0]]
    assert min(distances) < 1e-5 and sorted(distances)[1] > 1e-3


def test_one_row_is_asked_for_as_the_stock_call_is():
    way, generators = Way("as given"), row_generators(0)
    assert way.arguments(SimpleNamespace(), {"prompt": "a cat"}, 1, [0]) == {"prompt": "a cat"}
    assert way.generators(generators) is generators[0]
    assert Way("texts").generators(generators) == generators
    assert Way("texts").arguments(SimpleNamespace(), {"prompt": "a cat"}, 1, [0]) == {"prompt": "a cat"}


def test_a_list_with_an_image_per_adapter_is_left_alone():
    pipe = SimpleNamespace(adapter=SimpleNamespace(adapters=[1, 2]))
    call = {"prompt": ["a", "b"], "image": ["first", "second"]}
    assert entries_of(pipe, call, 2, [1]) == {"prompt": ["b"], "image": ["first", "second"]}
    assert entries_of(SimpleNamespace(), call, 2, [1]) == {"prompt": ["b"], "image": ["second"]}
