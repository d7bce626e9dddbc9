from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from fk_steer.evaluation.geneval.rules import evaluate
from fk_steer.rewards import load_reward
from fk_steer.shapes import oracle
from fk_steer.shapes.captions import (
    CONVERSE,
    HELD_OUT_COLOURS,
    HELD_OUT_COUNTS,
    HELD_OUT_PAIRS,
    NUMBERS,
    PAIRS,
    RELATIONS,
    TASKS,
    Mention,
    binding_is_held_out,
    caption,
    detections_of,
    evaluation_prompts,
    is_held_out,
    is_true,
    metadata,
    parse,
    relation_is_held_out,
    sample_pair,
    tuning_prompts,
)
from fk_steer.shapes.detector import components, detect
from fk_steer.shapes.oracle import judge, score
from fk_steer.shapes.tokenizer import MAX_LENGTH, make_tokenizer, words
from fk_steer.shapes.train_clip import edit
from fk_steer.shapes.world import COLOURS, GAP, MARGIN, RADII, SHAPES, SIZE, render, sample_scene


def scenes(n: int, seed: int = 1):
    rng = np.random.default_rng(seed)
    return [sample_pair(rng) for _ in range(n)]


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class TestRenderer:
    def test_deterministic(self):
        one, other = (render(sample_scene(np.random.default_rng(7), [("star", "red")])) for _ in range(2))
        assert one.tobytes() == other.tobytes()
        assert one.size == (SIZE, SIZE)
        assert one.mode == "RGB"

    def test_objects_keep_clear_of_each_other_and_the_border(self):
        for scene, _ in scenes(500):
            low, high = RADII[len(scene.objects)]
            for item in scene.objects:
                assert low <= item.radius <= high
                for centre in (item.x, item.y):
                    assert item.radius + MARGIN <= centre <= SIZE - item.radius - MARGIN
            for a, b in itertools.combinations(scene.objects, 2):
                assert np.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius + GAP

    def test_edges_are_antialiased(self):
        image = np.asarray(render(sample_scene(np.random.default_rng(0), [("circle", "black")]))).astype(int)
        grey = image.sum(2)
        assert ((grey > 150) & (grey < 500)).sum() > 20

    def test_variety(self):
        backgrounds = {scene.background for scene, _ in scenes(200)}
        shades = {item.shade for scene, _ in scenes(200) for item in scene.objects if item.colour == "red"}
        assert len(backgrounds) > 190
        assert len(shades) > 20


class TestDetector:
    def test_held_out_renders(self):
        """More than 99% of objects, shape and colour, on scenes that nothing was tuned on."""
        objects = right = 0
        for scene, _ in scenes(600, seed=2026):
            truth = Counter((item.name, item.colour) for item in scene.objects)
            found = Counter(
                (name, detection.colour) for name, some in detect(render(scene)).items() for detection in some
            )
            objects += truth.total()
            right += (truth & found).total()
        assert right / objects > 0.99

    @pytest.mark.parametrize(("shape", "colour"), [*itertools.product(SHAPES, COLOURS)])
    def test_every_kind_at_every_size(self, shape, colour):
        rng = np.random.default_rng(3)
        for count in (1, 2, 3, 4):
            found = detect(render(sample_scene(rng, [(shape, colour)] * count)))
            assert set(found) == {shape}
            assert [detection.colour for detection in found[shape]] == [colour] * count

    def test_boxes(self):
        for scene, _ in scenes(200):
            truth, found = detections_of(scene), detect(render(scene))
            for name in truth:
                for expected in truth[name]:
                    errors = [np.abs(np.subtract(expected.box, detection.box)).max() for detection in found[name]]
                    assert min(errors) < 2.0

    def test_what_is_no_shape_is_not_detected(self):
        rng = np.random.default_rng(0)
        assert detect(Image.new("RGB", (64, 64), (220, 220, 220))) == {}
        assert detect((220 + rng.normal(0, 4, (64, 64, 3))).clip(0, 255).astype(np.uint8)) == {}
        assert sum(map(len, detect(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)).values())) == 0

    def test_touching_objects_are_one_blob(self):
        image = Image.new("RGB", (64, 64), (230, 230, 230))
        image.paste((200, 30, 30), (10, 20, 30, 40))
        image.paste((40, 70, 210), (30, 20, 50, 40))
        (blob,) = components(np.asarray(image))
        assert blob.purity < 0.6

    def test_blurred_images(self):
        """x0 predictions are blurred; confidence falls before the shape is mistaken."""
        from PIL import ImageFilter

        image = render(sample_scene(np.random.default_rng(1), [("star", "blue")]))
        sharp, soft = (components(np.asarray(i))[0] for i in (image, image.filter(ImageFilter.GaussianBlur(1.5))))
        assert (sharp.shape, soft.shape) == ("star", "star")
        assert soft.score < sharp.score


class TestCaptions:
    def test_wording(self):
        a, b = Mention("star", "orange"), Mention("moon", "yellow")
        assert caption(Mention("circle")) == "a photo of a circle"
        assert caption(a) == "a photo of an orange star"
        assert caption(Mention("cross", count=3)) == "a photo of three crosses"
        assert caption(Mention("star"), Mention("moon"), "left of") == "a photo of a star left of a moon"
        assert caption(a, b) == "a photo of an orange star and a yellow moon"

    def test_metadata_is_genevals(self):
        assert metadata("position", Mention("star"), Mention("moon"), "left of") == {
            "tag": "position",
            "include": [{"class": "moon", "count": 1}, {"class": "star", "count": 1, "position": ["left of", 0]}],
            "prompt": "a photo of a star left of a moon",
        }
        assert metadata("counting", Mention("star", count=2)) == {
            "tag": "counting",
            "include": [{"class": "star", "count": 2}],
            "exclude": [{"class": "star", "count": 3}],
            "prompt": "a photo of two stars",
        }

    def test_captions_are_true_of_their_scenes(self):
        for scene, text in scenes(1000):
            assert is_true(parse(text), detections_of(scene)), (text, scene)
            assert judge(pixels(render(scene)), text).correct

    def test_edited_captions(self):
        """One thing changed, still a caption; nearly always false."""
        rng = np.random.default_rng(0)
        false = 0
        for scene, text in scenes(500):
            edited = edit(parse(text), rng)
            assert parse(edited["prompt"])["prompt"] == edited["prompt"] != text
            assert not is_held_out(edited)
            false += not is_true(edited, detections_of(scene))
        assert false > 400

    def test_evaluation_is_of_what_training_never_sees(self):
        assert all(is_held_out(line) for line in evaluation_prompts(200) if line["tag"] != "single_object")
        assert not any(is_held_out(parse(text)) for _, text in scenes(1000))
        rng = np.random.default_rng(0)
        seen = {
            line["tag"]
            for line in (parse(sample_pair(rng, everything=True)[1]) for _ in range(1000))
            if is_held_out(line)
        }
        assert seen == {"two_object", "counting", "colors", "position", "color_attr"}

    def test_parse_is_the_inverse(self):
        for line in evaluation_prompts(200):
            assert parse(line["prompt"]) == line
        assert parse("A red  star")["prompt"] == "a photo of a red star"

    @pytest.mark.parametrize("text", ["", "a photo of a dog", "a photo of two star", "a red star and three moons"])
    def test_other_texts_are_refused(self, text):
        with pytest.raises(ValueError, match="not a caption"):
            parse(text)

    def test_tokenizer(self):
        tokenizer = make_tokenizer()
        assert all(len(tokenizer(word).input_ids) == 3 for word in words())
        longest = max(len(tokenizer(line["prompt"]).input_ids) for line in evaluation_prompts(400))
        assert longest <= MAX_LENGTH
        assert {word for _, text in scenes(2000) for word in text.split()} <= set(words())
        assert tokenizer.decode(tokenizer("a zebra").input_ids, skip_special_tokens=True) == "a zebra"


class TestSplit:
    """What is held out never occurs in training data."""

    def test_sizes(self):
        assert len(HELD_OUT_COLOURS) == 16
        assert set(Counter(shape for shape, _ in HELD_OUT_COLOURS).values()) == {2}
        assert set(Counter(colour for _, colour in HELD_OUT_COLOURS).values()) == {2}
        assert len(HELD_OUT_PAIRS) == 8
        assert len(HELD_OUT_COUNTS) == 8

    def test_held_out_relations_come_with_their_converses(self):
        for a, b in PAIRS:
            assert sum(relation_is_held_out(a, relation, b) for relation in RELATIONS) == 1
            for relation in RELATIONS:
                assert relation_is_held_out(a, relation, b) == relation_is_held_out(b, CONVERSE[relation], a)

    def test_training_scenes_and_captions(self):
        held_out = {line["prompt"] for line in evaluation_prompts(400) if line["tag"] != "single_object"}
        for scene, text in scenes(4000):
            assert text not in held_out
            assert all((item.name, item.colour) not in HELD_OUT_COLOURS for item in scene.objects)
            names = sorted({item.name for item in scene.objects}, key=SHAPES.index)
            assert tuple(names) not in HELD_OUT_PAIRS
            if len(names) == 1 and len(scene.objects) > 1:
                assert (names[0], len(scene.objects)) not in HELD_OUT_COUNTS

    def test_prompts_for_tuning(self):
        lines = tuning_prompts()
        assert lines == tuning_prompts()
        assert Counter(line["tag"] for line in lines) == dict.fromkeys(TASKS, 40)
        assert not any(is_held_out(line) for line in lines)
        evaluated = {line["prompt"] for line in evaluation_prompts(400)}
        assert {line["tag"] for line in lines if line["prompt"] in evaluated} == {"single_object"}

    def test_evaluation_prompts(self):
        lines = evaluation_prompts()
        assert lines == evaluation_prompts()
        assert Counter(line["tag"] for line in lines) == dict.fromkeys(TASKS, 40)
        for line in lines:
            entries = line["include"]
            kinds = [(entry["class"], entry.get("color")) for entry in entries]
            if line["tag"] == "colors":
                assert kinds[0] in HELD_OUT_COLOURS
            elif line["tag"] == "two_object":
                assert tuple(sorted((name for name, _ in kinds), key=SHAPES.index)) in HELD_OUT_PAIRS
            elif line["tag"] == "counting":
                assert (entries[0]["class"], entries[0]["count"]) in HELD_OUT_COUNTS
                assert entries[0]["count"] in NUMBERS
            elif line["tag"] == "position":
                assert relation_is_held_out(entries[1]["class"], entries[1]["position"][0], entries[0]["class"])
            elif line["tag"] == "color_attr":
                assert binding_is_held_out(Mention(*kinds[0]), Mention(*kinds[1]))
                assert not HELD_OUT_COLOURS & set(kinds)


class TestOracle:
    def test_above_nine_tenths_if_and_only_if_correct(self, monkeypatch):
        texts = [text for _, text in scenes(60, seed=5)]
        for scene, own in scenes(30):
            image = pixels(render(scene))
            assert score(image, own) > 0.9
            # Once for all texts.
            found = detect(render(scene))
            monkeypatch.setattr(oracle, "detect", lambda _, found=found: found)
            for text in texts:
                assert (score(image, text) > 0.9) == judge(image, text).correct
            monkeypatch.undo()

    def test_is_graded(self):
        rng = np.random.default_rng(0)
        text = "a photo of a red star and a blue circle"
        images = [
            pixels(render(sample_scene(rng, kinds)))
            for kinds in (
                [("star", "red"), ("circle", "blue")],
                [("star", "red"), ("circle", "green")],
                [("star", "red"), ("heart", "black")],
                [("heart", "black")],
            )
        ]
        rewards = load_reward("shapes-oracle")(torch.stack(images) / 255, [text] * 4)
        assert (rewards.diff() < 0).all()
        assert rewards[-1] == 0

    def test_agrees_with_the_verdict_of_the_rules(self):
        scene, text = scenes(1)[0]
        assert judge(pixels(render(scene)), text) == evaluate(parse(text), detect(render(scene)))

    def test_other_prompts_are_refused(self):
        with pytest.raises(ValueError, match="not a caption of the bundled world"):
            load_reward("shapes-oracle")(torch.rand(1, 3, 64, 64), ["a dog"])
