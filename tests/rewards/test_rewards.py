from __future__ import annotations

import math
from importlib.metadata import EntryPoint

import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from fk_steer.rewards import (
    Clipped,
    RewardLoadError,
    WeightedSum,
    ZScoreSum,
    available_rewards,
    load_reward,
    pickscore,
    registry,
)
from fk_steer.rewards.base import lmbda_for, name_of
from fk_steer.rewards.pickscore import PickScore
from fk_steer.testing import PROMPTS, save_clip
from fk_steer.testing.rewards import tiny_reward


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


def images(n: int = 2, size: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(n, 3, size, size, generator=generator) * 255).round() / 255


def pil(batch: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()) for image in batch]


class TestCLIPScore:
    def test_equals_transformers(self, clip_folder):
        """The cosine of CLIPModel's own logits, on CLIPProcessor's pixels."""
        reward = load_reward("clip-score", path=clip_folder)
        model = CLIPModel.from_pretrained(clip_folder).eval()
        from transformers import CLIPImageProcessorPil

        size = model.config.vision_config.image_size
        processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
        processor = CLIPProcessor(processor, reward.tokenizer)
        inputs = processor(text=PROMPTS, images=pil(images()), return_tensors="pt", padding=True)
        with torch.no_grad():
            logits = model(**inputs).logits_per_image / model.logit_scale.exp()
        torch.testing.assert_close(reward(images(), PROMPTS), logits.diag(), atol=2e-6, rtol=1e-5)

    def test_hessel(self, clip_folder):
        plain = load_reward("clip-score", path=clip_folder)
        hessel = load_reward("clip-score", variant="hessel", path=clip_folder)
        cosine = plain(images(), [f"A photo depicts {prompt}" for prompt in PROMPTS])
        torch.testing.assert_close(hessel(images(), PROMPTS), 2.5 * cosine.clamp(min=0))
        assert (plain.default_lmbda, hessel.default_lmbda) == (20.0, 8.0)

    def test_prompts_are_encoded_once(self, clip_folder):
        reward = load_reward("clip-score", path=clip_folder)
        encode, encoded = reward.model.get_text_features, []

        def count(**tokens):
            encoded.append(len(tokens["input_ids"]))
            return encode(**tokens)

        reward.model.get_text_features = count
        for _ in range(3):
            reward(images(4), PROMPTS * 2)
        assert encoded == [2]

    def test_a_text_is_no_list_of_prompts(self, clip_folder):
        with pytest.raises(ValueError, match="Expected a list of prompts, .* but got the text 'ab'"):
            load_reward("clip-score", path=clip_folder)(images(), "ab")

    def test_missing_weights(self, tmp_path):
        with pytest.raises(RewardLoadError, match="the reward 'clip-score' at '.*nowhere': there is no such folder"):
            load_reward("clip-score", path=str(tmp_path / "nowhere"))
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(RewardLoadError, match="saved with `save_pretrained`"):
            load_reward("clip-score", path=str(tmp_path))

    def test_unknown_variant(self):
        with pytest.raises(ValueError, match="Unknown variant 'b32' of clip-score. Known: cosine, hessel"):
            load_reward("clip-score", variant="b32")


def test_the_aesthetic_predictor_is_not_rounded(tmp_path):
    exact = tiny_reward("aesthetic", tmp_path)
    half = load_reward("aesthetic", path=str(tmp_path), dtype="float16", device="cpu")
    assert half.model.clip.dtype == torch.float16
    for mine, wanted in zip(half.model.head.parameters(), exact.model.head.parameters(), strict=True):
        assert torch.equal(mine, wanted)
    assert not half.model.training
    assert not any(parameter.requires_grad for parameter in half.model.parameters())


@pytest.mark.parametrize("size", [(40, 40), (47, 40), (40, 53), (61, 90)])
def test_pickscores_pixels_are_those_of_transformers(size, tmp_path):
    """Of odd margins too, where torchvision's crop begins elsewhere."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    reward = tiny_reward("pickscore", tmp_path)
    side = reward.model.config.vision_config.image_size
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    noise = torch.rand(size[1], size[0], 3, generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray((noise * 255).byte().numpy())
    wanted = processor(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(reward.preprocess([picture]), wanted, atol=2e-2, rtol=0)


def test_pickscores_tokenizer_is_of_the_same_commit(monkeypatch):
    asked = []

    def load(kind, path, reward, **options):
        asked.append((kind.__name__, path, options["revision"]))

    monkeypatch.setattr(pickscore, "load_pretrained", load)
    monkeypatch.setattr(PickScore, "_assemble", lambda *modules, **settings: None)
    load_reward("pickscore", path="mine/pickscore", revision="abc")
    load_reward("pickscore")
    assert asked[:2] == [("CLIPModel", "mine/pickscore", "abc"), ("CLIPTokenizer", "mine/pickscore", "abc")]
    assert asked[3] == ("CLIPTokenizer", *pickscore.TOKENIZER)


class TestRegistry:
    def test_unknown_name(self):
        with pytest.raises(ValueError, match="Unknown reward 'clipscore'. Known: .*clip-score, "):
            load_reward("clipscore")

    def test_unknown_option(self):
        with pytest.raises(ValueError, match="'clip-score' has no option 'model'. It takes: variant, path"):
            load_reward("clip-score", model="x")

    def test_unknown_statistic(self):
        """Whatever the checkpoint."""
        with pytest.raises(ValueError, match="Unknown statistic 'median'. Known: win-probability, log-odds"):
            load_reward("llava-reward", path="shapes", statistic="median")

    def test_missing_option(self):
        with pytest.raises(ValueError, match="'llm-grader' needs the option 'model'. It takes: model, axis"):
            load_reward("llm-grader")

    def test_plugins(self, monkeypatch):
        plugin = EntryPoint("two", "fk_steer.rewards.composite:WeightedSum", registry.ENTRY_POINTS)
        monkeypatch.setattr(registry, "entry_points", lambda group: [plugin] if group == "fk_steer.rewards" else [])
        assert available_rewards()["two"] is plugin
        assert isinstance(load_reward("two", weights={math.dist: 1.0}), WeightedSum)

    def test_two_packages_may_not_share_a_name(self, monkeypatch):
        clash = EntryPoint("clip-score", "other:Thing", registry.ENTRY_POINTS)
        monkeypatch.setattr(registry, "entry_points", lambda group: [clash])
        with pytest.raises(ValueError, match="Two rewards are called 'clip-score': fk_steer.*other:Thing"):
            available_rewards()


class TestWeightedSum:
    @staticmethod
    def red(images, prompts):
        return images[:, 0].mean((1, 2))

    @staticmethod
    def length(images, prompts):
        return [float(len(prompt)) for prompt in prompts]

    def test_sum(self):
        both = WeightedSum({self.red: 2.0, self.length: -0.5})
        expected = 2.0 * images()[:, 0].mean((1, 2)) - 0.5 * torch.tensor([12.0, 16.0])
        torch.testing.assert_close(both(images(), PROMPTS), expected)
        assert both.name == "2 * red + -0.5 * length"
        assert both.default_lmbda is None

    def test_default_lambda(self, clip_folder):
        clip = load_reward("clip-score", path=clip_folder)
        other = load_reward("clip-score", variant="hessel", path=clip_folder)
        assert WeightedSum({clip: 1.0}).default_lmbda == pytest.approx(20.0)
        assert WeightedSum({clip: 2.0}).default_lmbda == pytest.approx(10.0)
        assert WeightedSum({clip: 1.0, other: 0.4}).default_lmbda == pytest.approx(1 / math.hypot(0.05, 0.05))
        assert WeightedSum({clip: 1.0}, default_lmbda=3.0).default_lmbda == 3.0

    @pytest.mark.parametrize("weights", [{}, {len: math.inf}])
    def test_bad_weights(self, weights):
        with pytest.raises(ValueError, match="finite weights"):
            WeightedSum(weights)


class TestZScoreSum:
    def test_default_lambda(self):
        red, length = TestWeightedSum.red, TestWeightedSum.length
        assert ZScoreSum({red: 3.0, length: 4.0}).default_lmbda == pytest.approx(2 / 5)
        assert ZScoreSum({red: 0.0}).default_lmbda is None
        assert ZScoreSum({red: 1.0}, default_lmbda=3.0).default_lmbda == 3.0

    def test_no_normalizing_constant_comes_of_it(self):
        assert ZScoreSum({TestWeightedSum.red: 1.0}).relative


class TestClipped:
    def test_bounds(self):
        clipped = Clipped(TestWeightedSum.length, low=13.0, high=15.0)
        assert clipped(images(3), ["", "x" * 14, "x" * 20]).tolist() == [13.0, 14.0, 15.0]
        assert Clipped(TestWeightedSum.length, high=1.0)(images(2), ["", "xy"]).tolist() == [0.0, 1.0]
        assert clipped.name == "clip(length, 13, 15)"

    def test_default_lambda(self, clip_folder):
        clip = load_reward("clip-score", path=clip_folder)
        assert Clipped(clip, high=0.3).default_lmbda == 20.0
        assert Clipped(TestWeightedSum.red, high=0.3).default_lmbda is None
        assert WeightedSum({Clipped(clip, high=0.3): 2.0}).default_lmbda == pytest.approx(10.0)

    @pytest.mark.parametrize("bounds", [(1.0, 1.0), (2.0, 1.0), (math.nan, 1.0)])
    def test_bad_bounds(self, bounds):
        with pytest.raises(ValueError, match="Expected `low` below `high`"):
            Clipped(TestWeightedSum.red, *bounds)


def test_plain_functions_are_rewards():
    assert name_of(TestWeightedSum.red) == "red"
    assert lmbda_for(TestWeightedSum.red, None) is None
    assert lmbda_for(TestWeightedSum.red, 2.0) == 2.0
