"""The world's multimodal LLM and the LLaVA-Reward that ships with it."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import kendalltau
from transformers import CLIPModel

from benchmarks.llava_reward import run as llava_world
from benchmarks.llava_reward.crops import agreement
from benchmarks.llava_reward.preferences import accuracies
from fk_steer import load_reward
from fk_steer.shapes import (
    BUNDLED_LLAVA_REWARD,
    GUIDANCE_SCALE,
    WEIGHTS,
    load_pipeline,
    train_llava,
)
from fk_steer.shapes.captions import detections_of, parse, sample_pair
from fk_steer.shapes.llava import make_backbone, make_text_tokenizer
from fk_steer.shapes.preference_images import Picture, grade, prompts
from fk_steer.shapes.tokenizer import words
from fk_steer.shapes.train_clip import pixels_of
from fk_steer.shapes.train_llava import CAPTIONS, PARTIAL, Reader, captions_of, label, patches_of
from fk_steer.shapes.train_llava_reward import recipe
from fk_steer.shapes.world import COLOURS, SHAPES, render, sample_scene
from llava_reward_guide import LlavaReward
from llava_reward_guide.images import normalize
from llava_reward_guide.training import train


SHIPPED = ("alignment", "alignment-gpm", "fidelity", "fidelity-gpm", "overall", "overall-gpm")

needs_weights = pytest.mark.skipif(
    not (BUNDLED_LLAVA_REWARD / "backbone").is_dir(), reason="no weights in fk_steer/shapes/weights/llava-reward"
)


@pytest.fixture(scope="module")
def reward():
    return load_reward("llava-reward", path="shapes", device="cpu")


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return make_backbone(CLIPModel.from_pretrained(WEIGHTS / "guide"))


def scenes_and_captions(number):
    rng = np.random.default_rng(1)
    pairs = [sample_pair(rng) for _ in range(number)]
    return pixels_of([render(scene) for scene, _ in pairs]), [text for _, text in pairs]


def test_every_word_is_a_token():
    tokenizer = make_text_tokenizer()
    for word in words():
        assert len(tokenizer.encode(f"a {word}")) == len(tokenizer.encode("a")) + 1
    assert tokenizer.encode("é") != tokenizer.encode("è")


def test_captions_of_one_pass_are_read_as_alone(backbone):
    """Packed together they neither see one another nor move each other's positions."""
    reader = Reader(backbone).eval()
    scene = sample_scene(np.random.default_rng(0), [("star", "red"), ("moon", "blue")])
    pixels = normalize(render(scene))[None].expand(2, -1, -1, -1)
    prompts = ["a photo of a star", "a photo of a red star and a blue moon"]
    with torch.no_grad():
        together = reader(pixels, [prompts, prompts[::-1]])
        alone = [reader(pixels[:1], [[prompt]]) for prompt in prompts]
        hidden = backbone(backbone.prepare([render(scene)], prompts[1:])).hidden_states
    for values, single in zip(together[:2], zip(*(parts[:2] for parts in alone))):
        torch.testing.assert_close(values[0], torch.cat(single)[:, 0])
        torch.testing.assert_close(values[1], torch.cat(single)[:, 0].flip(0))
    # The same as the backbone makes of a prepared row.
    torch.testing.assert_close(reader.readout(hidden[:, -1])[0, 0], together[0][0, 1])


def test_labels():
    scene = sample_scene(np.random.default_rng(0), [("star", "red"), ("moon", "blue")], direction=0.0)
    found = detections_of(scene)
    assert label(parse("a photo of a moon right of a star"), found) == 1
    assert label(parse("a photo of a moon left of a star"), found) == pytest.approx(PARTIAL * 2 / 3)
    assert label(parse("a photo of a red star and a red moon"), found) == pytest.approx(PARTIAL * 3 / 4)
    assert label(parse("a photo of a heart"), found) == 0
    lines = captions_of(np.random.default_rng(0), found)
    assert len(lines) == CAPTIONS
    assert all(line == parse(line["prompt"]) for line in lines)


def test_patch_labels():
    scene = sample_scene(np.random.default_rng(0), [("square", "green")])
    item = scene.objects[0]
    kinds = patches_of(scene).reshape(8, 8, 2)
    inside = kinds[int(item.y) // 8, int(item.x) // 8]
    assert inside.tolist() == [SHAPES.index("square") + 1, list(COLOURS).index("green") + 1]
    share = (kinds[..., 0] > 0).mean()
    covered = (1.6 * item.radius) ** 2 / 64**2
    assert 0.5 * covered < share < 2 * covered


@needs_weights
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_perspectives_load(name):
    perspective, _, kind = name.partition("-")
    objective = "general-preference" if kind else None
    reward = load_reward("llava-reward", path="shapes", perspective=perspective, objective=objective, device="cpu")
    pixels, prompts = scenes_and_captions(4)
    scores = torch.as_tensor(reward(pixels, prompts))
    assert scores.shape == (4,)
    assert scores.isfinite().all()
    stored = json.loads((BUNDLED_LLAVA_REWARD / name / "llava_reward.json").read_text())
    assert stored["config"]["add_cross_attention"]
    assert stored["backbone"]["name"] is None


@needs_weights
def test_unknown_perspective():
    with pytest.raises(ValueError, match="alignment, alignment-gpm, fidelity, fidelity-gpm, overall, overall-gpm"):
        load_reward("llava-reward", path="shapes", perspective="safety")


@needs_weights
def test_a_batch_is_as_its_images(reward):
    pixels, prompts = scenes_and_captions(6)
    together = reward(pixels, prompts)
    alone = torch.cat([reward(pixels[index : index + 1], prompts[index : index + 1]) for index in range(6)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    assert reward.default_lmbda == 20


@needs_weights
def test_judges_samples(reward):
    """Pairs of samples of prompts that training never saw, by the exact detector's grades. How much better than CLIP is
    for `benchmarks.preferences` to say, on more of them."""
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    lines = [line for task in ("counting", "position", "color_attr") for line in prompts("held-out")[task][::7][:16]]
    texts = [line["prompt"] for line in lines for _ in range(4)]
    generators = [torch.Generator().manual_seed(40_000_000 + number) for number in range(len(texts))]
    call = {"num_inference_steps": 10, "guidance_scale": GUIDANCE_SCALE, "eta": 1.0}
    images = pipe(texts, generator=generators, **call).images
    grades = torch.tensor([grade(image, text)["alignment"] for image, text in zip(images, texts)]).view(-1, 4)
    better = (grades[:, :, None] > grades[:, None]).flatten()
    scores = reward(pixels_of(images), texts).view(-1, 4)
    told = (scores[:, :, None] > scores[:, None]).flatten()[better].float()
    assert len(told) > 50
    assert told.mean() > 0.5 + 3 * 0.5 / len(told) ** 0.5


@needs_weights
def test_published_layout_keeps_the_scores(tmp_path):
    pixels, prompts = scenes_and_captions(8)
    options = {"backbone": str(BUNDLED_LLAVA_REWARD / "backbone"), "device": "cpu"}
    for name in SHIPPED:
        ours = LlavaReward.from_pretrained(BUNDLED_LLAVA_REWARD / name, merge=False, **options)
        ours.save_pretrained(tmp_path / name, layout="published")
        published = LlavaReward.from_pretrained(tmp_path / name, merge=False, **options)
        assert {path.name for path in (tmp_path / name).iterdir()} == {
            "reward_config.yaml",
            "pytorch_model.bin",
            "lora",
        }
        assert published.config == ours.config
        torch.testing.assert_close(published.embed(pixels, prompts), ours.embed(pixels, prompts), atol=0, rtol=0)


def test_training_lands_where_it_is_loaded(tmp_path):
    """Backbone and adapter, two steps each, load without conversion."""
    pictures = []
    for index in range(2):
        render(sample_scene(np.random.default_rng(index), [("star", "red")])).save(tmp_path / f"{index}.png")
        fields = (f"{index}.png", index, "a photo of a star", "single_object", "sample", 1.0, 0.9)
        pictures.append(asdict(Picture(*fields)))
    (tmp_path / "records" / "train").mkdir(parents=True)
    (tmp_path / "records" / "train" / "00000.json").write_text(json.dumps([pictures]))
    train_llava.main(tmp_path, tmp_path / "llava", steps=2, batch_size=4)
    rng = np.random.default_rng(0)
    items = []
    for index in range(4):
        for side in ("chosen", "reject"):
            render(sample_scene(rng, [("star", "red")])).save(tmp_path / f"{index}-{side}.png")
        paths = {f"{side}_path": f"{index}-{side}.png" for side in ("chosen", "reject")}
        items.append({"prompt": "a photo of a star", "tag": "single_object", "progress": 1.0, **paths})
    for suffix in ("", "-negatives", "-validation", "-heldout-clean"):
        (tmp_path / f"alignment{suffix}.json").write_text(json.dumps(items))
    config = recipe(
        tmp_path, tmp_path / "llava" / "backbone", tmp_path / "run", "alignment", max_steps=2, batch_size=4,
        micro_batch_size=4,
    )  # fmt: skip
    assert len(json.loads((tmp_path / "run" / "pairs.json").read_text())) == 8
    result = train(config)
    reward = LlavaReward.from_pretrained(result.checkpoint, device="cpu")
    held_out = llava_world.held_out(tmp_path)
    found = llava_world.accuracies(held_out, llava_world.differences(held_out, reward.embed))
    assert found["overall"] == found["single_object"] == found["samples"] == 100 * result.validation["accuracy"]


def test_table_of_variants():
    items = [{"tag": "position", "progress": 1}, {"tag": "position", "progress": 0.5}, {"tag": "colors", "progress": 1}]
    found = llava_world.accuracies(items, [0.3, 0.0, -1.0])
    assert found == {"overall": 50, "samples": 50, "x0 predictions": 50, "colors": 0, "position": 75}
    row = llava_world.over_seeds([{"overall": 50.0}, {"overall": 54.0}], [{"overall": 40.0}, {"overall": 42.0}])
    assert row == {"overall": (52.0, 2.0), "gain": (11.0, 1.0)}


@needs_weights
def test_agreement_of_fewer_crops(tmp_path):
    rng, items = np.random.default_rng(0), []
    for group, prompt in enumerate(("a photo of a red star", "a photo of a blue square")):
        for side in range(3):
            render(sample_scene(rng, [(prompt.split()[-1], prompt.split()[-2])])).save(tmp_path / f"{group}{side}.png")
        for chosen, rejected in ((0, 1), (2, 0)):
            paths = {"chosen_path": f"{group}{chosen}.png", "reject_path": f"{group}{rejected}.png"}
            facts = {"tag": "colors", "progress": 1.0, "artefact": "", "group": group}
            items.append({"prompt": prompt, **paths, **facts})
    (tmp_path / "pairs.json").write_text(json.dumps(items))
    backbone = str(BUNDLED_LLAVA_REWARD / "backbone")
    reward = LlavaReward.from_pretrained(BUNDLED_LLAVA_REWARD / "alignment", backbone=backbone, device="cpu")
    found = agreement(reward, tmp_path / "pairs.json", [1, 4])
    assert found[4]["kendall_tau"] == (1, 0) and found[4]["same_best"] == (100, 0)
    taus = []
    for prompt, group in (("a photo of a red star", 0), ("a photo of a blue square", 1)):
        images = [Image.open(tmp_path / f"{group}{side}.png") for side in range(3)]
        taus.append(kendalltau(*(reward.score(images, [prompt] * 3, crops) for crops in (1, 4))).statistic)
    assert found[1]["kendall_tau"][0] == pytest.approx(sum(taus) / 2)
    assert found[1]["told_right"] == accuracies(reward.score, tmp_path / "pairs.json")["all"]
    # The tower sees four crops and the whole, against the whole alone; the text costs the same.
    assert 3 < found[4]["tflop_per_image"] / found[1]["tflop_per_image"] < 5
