"""Preference data about the bundled world, and the reward that is trained on it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel

from fk_steer.rewards import load_reward
from fk_steer.rewards.blip import Score
from fk_steer.rewards.images import normalize
from fk_steer.shapes import WEIGHTS, blip, train_blip
from fk_steer.shapes.artefacts import ON_PIXELS, STRENGTHS, merge, spoil
from fk_steer.shapes.captions import TASKS, detections_of, evaluation_prompts, is_true, parse, sample_pair
from fk_steer.shapes.llava import make_backbone
from fk_steer.shapes.oracle import judge
from fk_steer.shapes.preference_images import SPLITS, Picture, grade, meaning, prompt_of, prompts, scene_of
from fk_steer.shapes.preferences import PERSPECTIVES, agreement, clean, describe, main, pairs, score
from fk_steer.shapes.train_clip import pixels_of
from fk_steer.shapes.world import render
from llava_reward_guide.data import read_items
from llava_reward_guide.untrained import save_backbone


def picture(group: int, index: int, **facts) -> Picture:
    text = facts.pop("prompt", "a photo of a star and a moon")
    return Picture(f"{group}-{index}.png", group, text, "two_object", **{"kind": "sample", "fidelity": 0.7, **facts})


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("preferences")
    main(folder, prompts=8, held_out=8, steps=5)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class TestPrompts:
    def test_none_is_evaluated(self):
        evaluated = {line["prompt"] for line in evaluation_prompts()}
        for split in SPLITS:
            for lines in prompts(split).values():
                assert lines
                assert not evaluated & {line["prompt"] for line in lines}

    def test_no_meaning_is_in_both_splits(self):
        train, held_out = ({meaning(line) for lines in prompts(split).values() for line in lines} for split in SPLITS)
        assert not train & held_out
        assert len(held_out) == pytest.approx(len(train) / 3, rel=0.01)

    def test_same_meaning(self):
        assert meaning(parse("a photo of a star left of a moon")) == meaning(parse("a photo of a moon right of a star"))
        assert meaning(parse("a photo of a star left of a moon")) != meaning(parse("a photo of a moon left of a star"))
        assert meaning(parse("a photo of a red star and a blue moon")) == meaning(
            parse("a photo of a blue moon and a red star")
        )

    def test_prompts_parse_as_their_task(self):
        for group in range(50):
            line = prompt_of(0, "train", group)
            assert parse(line["prompt"])["tag"] == line["tag"]

    def test_scenes_show_what_the_prompt_says(self):
        rng = np.random.default_rng(0)
        for task in TASKS:
            for line in prompts("train")[task][::23]:
                scene = scene_of(line, rng)
                assert is_true(line, detections_of(scene))
                assert grade(render(scene), line["prompt"])["alignment"] == 1


class TestArtefacts:
    @pytest.mark.parametrize("kind", ON_PIXELS)
    def test_stronger_is_further_from_the_original(self, kind):
        original = render(sample_pair(np.random.default_rng(3))[0])
        away = [
            np.abs(np.asarray(spoil(original, kind, strength, 5)).astype(float) - np.asarray(original)).mean()
            for strength in STRENGTHS
        ]
        assert away[0] > 0
        assert away == sorted(away)

    @pytest.mark.parametrize("kind", ON_PIXELS)
    def test_nothing_to_cut(self, kind):
        blank = Image.new("RGB", (64, 64), (200, 210, 220))
        assert spoil(blank, kind, 1.0, 0).size == (64, 64)

    def test_merged_objects_overlap(self):
        scene = scene_of(parse("a photo of a red star and a blue moon"), np.random.default_rng(0))
        for strength in STRENGTHS:
            first, second = merge(scene, strength).objects
            distance = math.hypot(first.x - second.x, first.y - second.y)
            assert distance == pytest.approx((1 - 0.85 * strength) * (first.radius + second.radius))


class TestPairs:
    def test_labels_are_as_noisy_as_the_formula_says(self):
        rng = np.random.default_rng(0)
        groups = [[picture(n, i, alignment=float(rng.integers(4)) / 3) for i in range(4)] for n in range(500)]
        items, ties = pairs(groups, "alignment", seed=0)
        assert len(items) + ties == 500 * 6
        chances = [agreement(item["c_rate"] - item["r_rate"]) for item in items]
        agree = [item["chosen_path"] == item["clean_chosen_path"] for item in items]
        standard_error = math.sqrt(sum(p * (1 - p) for p in chances)) / len(items)
        assert abs(np.mean(agree) - np.mean(chances)) < 4 * standard_error
        assert describe(items, ties)["agreement expected"] == pytest.approx(np.mean(chances))
        # Below two thirds for the smallest difference, above it for the largest: noisy everywhere.
        assert 0.6 < agreement(1 / 3) < 0.7 < agreement(1.0) < 0.95

    def test_clean_labels(self):
        groups = [[picture(n, i, alignment=i / 3) for i in range(4)] for n in range(50)]
        items, _ = pairs(groups, "alignment", seed=0)
        assert any(item["c_rate"] < item["r_rate"] for item in items)
        for item in clean(items):
            assert item["c_rate"] > item["r_rate"]
            assert item["chosen_path"] == item["clean_chosen_path"] != item["reject_path"]

    def test_what_is_compared(self):
        group = [picture(0, 0, alignment=1.0), picture(0, 1, alignment=0.5, kind="x0", progress=0.6)]
        group += [picture(0, 2, alignment=0.75), picture(0, 3, alignment=0.0, kind="x0", progress=0.6)]
        series = [("blur", 0.0), ("blur", 0.5), ("blur", 1.0)]
        group += [
            picture(
                0, 4 + i, alignment=1.0, fidelity=0.7 * (1 - strength), kind="artefact", artefact=a, strength=strength
            )
            for i, (a, strength) in enumerate(series)
        ]

        def compared(perspective):
            found = clean(pairs([group], perspective, seed=0)[0])
            return {(item["chosen_path"][2], item["reject_path"][2]) for item in found}

        assert compared("alignment") == {("0", "2"), ("1", "3")}
        assert compared("fidelity") == {("4", "5"), ("4", "6"), ("5", "6")}
        # The original of the series is sample 0; alignment goes first, artefacts decide where it is the same.
        assert compared("overall") == {
            ("0", "2"),
            ("1", "3"),
            ("0", "5"),
            ("0", "6"),
            ("5", "6"),
            ("5", "2"),
            ("6", "2"),
        }

    def test_alignment_goes_first(self):
        """Whatever the fidelity, if alignment differs by the most that fidelity can weigh."""
        better, worse = picture(0, 0, alignment=0.75, fidelity=0.2), picture(0, 1, alignment=0.25, fidelity=1.0)
        assert score(better, "overall") > score(worse, "overall")


class TestFolder:
    def test_files(self, data):
        for perspective in PERSPECTIVES:
            for suffix in ("", "-validation", "-heldout-clean"):
                items = read_items(data / f"{perspective}{suffix}.json")
                assert all(item["tag"] in TASKS for item in items)
                for index in range(0, len(items), 7):
                    assert {image.size for image in items.images(index)} == {(64, 64)}
        statistics = json.loads((data / "statistics.json").read_text())
        assert statistics["images"]["train"]["images"] == {"sample": 32, "x0": 16, "artefact": 24}

    def test_negatives_are_false(self, data):
        items = read_items(data / "alignment-negatives.json")
        for index in range(len(items)):
            right, wrong = items.prompts(index)
            chosen, rejected = (torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in items.images(index))
            assert judge(chosen, right).correct
            assert not judge(rejected, wrong).correct

    def test_goes_on_where_it_was(self, data):
        """A run that was stopped before the last batch was whole ends with the same files."""
        before = contents(data)
        (data / "records" / "train" / "00000.json").unlink()
        for path in sorted((data / "images" / "train").iterdir())[20:]:
            path.unlink()
        (data / "overall.json").unlink()
        main(data, prompts=8, held_out=8, steps=5)
        assert contents(data) == before

    def test_refuses_other_settings(self, data):
        with pytest.raises(ValueError, match="another `seed`"):
            main(data, prompts=8, held_out=8, steps=5, seed=1)


class TestTraining:
    def test_starts_from_the_guide(self):
        """What the vision model makes of renders is nearly what the guide's does, before any training."""
        clip = CLIPModel.from_pretrained(WEIGHTS / "guide")
        model = blip.make_model(blip.med_config(blip.make_tokenizer()), clip)
        rng = np.random.default_rng(1)
        pixels = normalize(pixels_of([render(sample_pair(rng)[0]) for _ in range(16)]))
        with torch.no_grad():
            found, wanted = (module(pixel_values=pixels).pooler_output for module in (model.vision, clip.vision_model))
        found, wanted = found - found.mean(0), wanted - wanted.mean(0)
        assert torch.cosine_similarity(found, wanted).mean() > 0.8

    def test_preferences_go_on_from_matching(self):
        torch.manual_seed(0)
        mlp, head, features = Score(128), torch.nn.Linear(128, 1), torch.randn(500, 128)
        train_blip.begin_as(mlp, head)
        with torch.no_grad():
            logits = head(features).squeeze(-1)
            assert torch.corrcoef(torch.stack([mlp.eval()(features), logits]))[0, 1] > 0.99
            assert torch.corrcoef(torch.stack([mlp.train()(features), logits]))[0, 1] > 0.9

    def test_run(self, data, tmp_path):
        torch.manual_seed(0)
        save_backbone(make_backbone(CLIPModel.from_pretrained(WEIGHTS / "guide")), tmp_path / "backbone")
        train_blip.main(data, tmp_path / "backbone", tmp_path, steps=2, preference_steps=3, batch_size=4, groups=2)
        reward = load_reward("image-reward", path=str(tmp_path / "model"), device="cpu")
        groups = train_blip.Groups(data / "overall.json")
        pixels, texts, compared = groups.take(range(len(groups.groups)))
        assert len(compared) == sum(map(len, groups.groups))
        scores = reward(pixels, texts)
        # The last layer is scaled such that these scores have mean 0 and standard deviation 1.
        assert scores.mean().item() == pytest.approx(0.0, abs=0.02)
        assert scores.std().item() == pytest.approx(1.0, abs=0.02)
