"""Rewards of rewards of rewards: whatever stands inside whatever, the value is what the definitions say."""

from __future__ import annotations

import ast
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

import fk_steer.rewards
from fk_steer.rewards import (
    Cascade,
    Clipped,
    Composite,
    GeneralPreferenceReward,
    PairwiseReward,
    Reward,
    RewardError,
    Standardized,
    WeightedSum,
    ZScoreSum,
    as_pil,
    as_reward,
)
from fk_steer.rewards.asking import check_combined, check_scores, encode_images
from fk_steer.rewards.base import names_of


SHADES = [10, 240, 90, 200, 30, 130, 60]
"""Of the first four images, all of the prompt 'a', and the other three, of the prompt 'b'."""

PROMPTS = ["a"] * 4 + ["b"] * 3
PARTICLES = [[0, 1, 2, 3], [4, 5, 6]]


def grey(*shades: int) -> torch.Tensor:
    return torch.tensor(shades).view(-1, 1, 1, 1).expand(-1, 3, 4, 4) / 255


BATCH = grey(*SHADES)


def light(images, prompts):
    return images.mean((1, 2, 3)) * 3


def middle(images, prompts):
    """Best in the middle, another order than `light`'s."""
    return -(images.mean((1, 2, 3)) - 0.4).abs()


def compare(first, second, prompts):
    return torch.sigmoid(light(first, prompts).double() - light(second, prompts).double())


def embed(images, prompts):
    return torch.stack([light(images, prompts), torch.ones(len(images))], 1)


def lights(shades: Sequence[int]) -> list[float]:
    return [3 * shade / 255 for shade in shades]


def middles(shades: Sequence[int]) -> list[float]:
    return [-abs(shade / 255 - 0.4) for shade in shades]


def wins(shades: Sequence[int]) -> list[float]:
    points = lights(shades)
    return [
        statistics.mean(1 / (1 + math.exp(b - a)) for j, b in enumerate(points) if j != i) for i, a in enumerate(points)
    ]


def z(values: Sequence[float]) -> list[float]:
    mean, spread = statistics.mean(values), statistics.pstdev(values)
    return [(value - mean) / spread for value in values]


LEAVES = {
    "function": (light, lights),
    "pairwise": (PairwiseReward(compare), wins),
    # s_ij = light_i - light_j.
    "preference": (GeneralPreferenceReward(embed, temperature=1.0), wins),
    "pil": (as_pil(lambda pictures, prompts: [p.getpixel((0, 0))[0] * 3 / 255 for p in pictures], "pil"), lights),
}

# Name -> how to make it of a reward, and its values of those of the reward and of `middle`.
COMPOSITES = {
    "sum": (
        lambda reward: WeightedSum({reward: 2.0, middle: 0.5}),
        lambda values, others: [2 * value + 0.5 * other for value, other in zip(values, others)],
    ),
    "z-scores": (
        lambda reward: ZScoreSum({reward: 1.0, middle: -0.5}),
        lambda values, others: [value - 0.5 * other for value, other in zip(z(values), z(others))],
    ),
    "clipped": (
        lambda reward: Clipped(reward, -0.3, 0.6),
        lambda values, others: [min(max(value, -0.3), 0.6) for value in values],
    ),
    "standardized": (Standardized, lambda values, others: z(values)),
    "late": (lambda reward: Cascade(middle, reward), lambda values, others: values),
    "early": (lambda reward: Cascade(reward, middle), lambda values, others: others),
}


def inside(name: str, values: list[float]) -> list[float]:
    """What a composite around a composite is given: z-scores of a cascade."""
    return z(values) if name in ("late", "early") else values


@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.parametrize(("outer", "inner"), list(itertools.product(COMPOSITES, COMPOSITES)))
def test_any_in_any(outer, inner, leaf):
    reward, values_of = LEAVES[leaf]
    (make, value), (make_inner, inner_value) = COMPOSITES[outer], COMPOSITES[inner]
    nested = make(make_inner(reward))
    expected = []
    for group in PARTICLES:
        shades = [SHADES[i] for i in group]
        inner_values = inner_value(values_of(shades), middles(shades))
        expected += value(inner_values if outer in ("late", "early") else inside(inner, inner_values), middles(shades))
    assert nested(BATCH, PROMPTS).tolist() == pytest.approx(expected, abs=1e-5)
    assert set(nested.leaves) <= {as_reward(reward), as_reward(middle)}
    assert len(nested.leaves) == len(set(nested.leaves))


@pytest.mark.parametrize(("outer", "inner"), list(itertools.product(COMPOSITES, COMPOSITES)))
def test_cascades_switch_wherever_they_are(outer, inner):
    """At the beginning of the loop, 'late' is 'early' and the other way round."""
    mirror = {"late": "early", "early": "late"}
    nested = COMPOSITES[outer][0](COMPOSITES[inner][0](light))
    at_first = nested.at(0.1)
    shades = [SHADES[i] for i in PARTICLES[0]]
    inner_values = COMPOSITES[mirror.get(inner, inner)][1](lights(shades), middles(shades))
    given = inner_values if outer in mirror else inside(inner, inner_values)
    expected = COMPOSITES[mirror.get(outer, outer)][1](given, middles(shades))
    assert at_first(BATCH[:4], ["a"] * 4).tolist() == pytest.approx(expected, abs=1e-5)
    # The same object for as long as the same is in force.
    assert nested.at(0.2) is at_first
    assert nested.at(1.0) is nested.at(0.7)
    if outer not in mirror and inner not in mirror:
        assert at_first is nested
    assert not at_first.standardize and nested.standardize == (outer in mirror)


@dataclass(eq=False)
class Counting(Reward):
    """How often it was asked, of how many images."""

    name: str = "counting"

    def __post_init__(self):
        self.asked = []

    def __call__(self, images, prompts):
        self.asked.append(len(images))
        return light(images, prompts)


def test_leaves_are_scored_once():
    shared = Counting()
    twice = WeightedSum({ZScoreSum({shared: 1.0, light: 1.0}): 1.0, Clipped(shared, high=1.0): 1.0, shared: 0.5})
    assert twice.leaves == (shared, as_reward(light))
    twice(BATCH, PROMPTS)
    assert shared.asked == [7]
    Cascade(shared, middle)(BATCH, PROMPTS)
    assert shared.asked == [7]
    assert Cascade(shared, middle).leaves == (shared, as_reward(middle))


def test_in_blocks_and_with_copies():
    """As steering scores: images in blocks, copies of a particle sharing an image."""
    pairs = PairwiseReward(compare)
    nested = ZScoreSum({WeightedSum({pairs: 2.0, light: 0.1}): 1.0, Clipped(middle, low=-0.2): 1.0})
    members = [torch.tensor([0, 0, 1]), torch.tensor([2, 3, 3])]
    scores = {}
    for leaf in nested.leaves:
        blocks = [encode_images(leaf, BATCH[i : i + 1], ["x"], "here") for i in range(4)]
        whole = torch.cat(blocks).double() if isinstance(blocks[0], torch.Tensor) else [e for b in blocks for e in b]
        scores[leaf] = torch.stack(leaf.of_particles(whole, members, ["x", "y"]))
        assert scores[leaf].dtype == torch.float64
    rewards = nested.combine(scores)
    assert rewards.shape == (2, 3)
    expected = nested(BATCH[[0, 0, 1, 2, 3, 3]], ["x"] * 3 + ["y"] * 3)
    torch.testing.assert_close(rewards.flatten().float(), expected, atol=1e-5, rtol=1e-5)


class TestAttributes:
    def test_relative(self):
        pairs = PairwiseReward(compare)
        assert not WeightedSum({light: 1.0}).relative and not Clipped(light, high=1.0).relative
        for relative in (
            pairs,
            WeightedSum({light: 1.0, pairs: 1.0}),
            Clipped(pairs, high=0.6),
            Standardized(light),
            ZScoreSum({light: 1.0}),
            WeightedSum({ZScoreSum({light: 1.0}): 1.0}),
            Clipped(Cascade(light, middle), high=1.0),
            Cascade(light, pairs),
        ):
            assert relative.relative
        assert not Cascade(pairs, light).relative

    def test_names(self):
        cascade = Cascade(light, middle)
        assert cascade.name == "light -> middle"
        assert WeightedSum({cascade: 2.0, light: 1.0}).name == "2 * z(light -> middle) + 1 * light"
        assert ZScoreSum({cascade: 1.0, light: 0.5}).name == "1 * z(light -> middle) + 0.5 * z(light)"
        assert Clipped(ZScoreSum({light: 1.0}), high=2).name == "clip(1 * z(light), -inf, 2)"
        both = [Counting(), Counting(), Counting("other")]
        assert list(names_of(both).values()) == ["counting", "counting (2)", "other"]

    def test_default_lambdas(self):
        clip = Counting()
        clip.default_lmbda = 20.0
        assert Cascade(clip, light).default_lmbda == 2.0
        assert Standardized(clip).default_lmbda == 2.0
        assert Standardized(Cascade(clip, light, default_lmbda=5.0)).default_lmbda == 5.0
        assert WeightedSum({Cascade(clip, light): 1.0}).default_lmbda == pytest.approx(2.0)
        assert Clipped(WeightedSum({clip: 2.0}), high=1.0).default_lmbda == pytest.approx(10.0)
        both = WeightedSum({ZScoreSum({light: 3.0, middle: 4.0}): 1.0, clip: 4.0})
        assert both.default_lmbda == pytest.approx(1 / math.hypot(5 / 2, 4 / 20))

    def test_a_class_is_its_name(self):
        class Greenness(Reward):
            def __call__(self, images, prompts):
                return images[:, 1].mean((1, 2))

        reward = Greenness()
        assert (reward.name, Reward().name, reward.default_lmbda, reward.relative) == (
            "Greenness",
            "Reward",
            None,
            False,
        )
        assert reward.leaves == (reward,) and reward.at(0.3) is reward
        reward.name = "green"
        assert reward.name == "green"


class TestTies:
    def test_are_zero(self):
        for reward in (Standardized(light), ZScoreSum({light: 1.0}), Clipped(Cascade(middle, light), high=1.0)):
            assert reward(grey(7, 7, 7), ["a"] * 3).tolist() == [0.0] * 3

    def test_of_clipped_rewards(self):
        assert ZScoreSum({Clipped(light, high=0.01): 1.0})(BATCH, PROMPTS).tolist() == [0.0] * 7

    def test_infinities_stay(self):
        def barrier(images, prompts):
            return torch.where(images[:, 0, 0, 0] > 0.9, -torch.inf, images[:, 0, 0, 0])

        scores = WeightedSum({ZScoreSum({barrier: 1.0}): 2.0})(grey(255, 100, 50), ["a"] * 3)
        assert scores.tolist() == pytest.approx([-math.inf, 2.0, -2.0])


class TestErrors:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (torch.zeros(7, 2), r"'bad' returned shape \(7, 2\), but one number per image was expected, \(7,\)"),
            (torch.zeros(1, 7), r"'bad' returned shape \(1, 7\), but one"),
            (0.5, r"'bad' returned shape \(\), but one"),
            ([1.0], r"'bad' returned shape \(1,\), but one"),
            (None, "'bad' returned None, but one number per image was expected"),
            (["high"] * 7, r"'bad' returned \['high'.*, but one number per image"),
        ],
        ids=str,
    )
    def test_not_a_number_per_image(self, values, message):
        def bad(images, prompts):
            return values

        nested = ZScoreSum({Clipped(bad, high=1.0): 1.0, light: 1.0})
        with pytest.raises(RewardError, match=message):
            nested(BATCH, PROMPTS)
        with pytest.raises(RewardError, match=message.split("returned")[0]):
            encode_images(as_reward(bad), BATCH, PROMPTS, "at step 3")

    def test_where(self):
        def bad(images, prompts):
            return torch.zeros(3)

        with pytest.raises(RewardError, match=r"'bad' returned shape \(3,\) at step 3, but .* First prompt: 'a'"):
            encode_images(as_reward(bad), BATCH, PROMPTS, "at step 3")
        with pytest.raises(RewardError, match=r"'light' returned NaN at step 3 for the prompt 'c'"):
            check_scores(light, torch.tensor([0.0, math.nan]), ["a", "c"], "at step 3")
        checked = check_scores(light, [math.inf, -math.inf], ["a", "c"], "")
        assert checked.dtype == torch.float64 and checked.tolist() == [math.inf, -math.inf]

        class Group(Reward):
            def encode(self, images, prompts):
                return [None]

        with pytest.raises(RewardError, match="'Group' returned 1 encodings at step 3, but one per image .* 7"):
            encode_images(Group(), BATCH, PROMPTS, "at step 3")

    def test_nan_made_of_infinities(self):
        both = WeightedSum({light: 1.0, middle: -1.0})
        infinite = torch.tensor([[0.0, 1.0], [math.inf, 1.0]])
        rewards = both.combine(dict.fromkeys(both.leaves, infinite))
        with pytest.raises(RewardError, match=r"'1 \* light \+ -1 \* middle' made NaN .* at step 3 for the prompt 'b'"):
            check_combined(both, rewards, ["a", "b"], "at step 3")
        assert torch.equal(check_combined(both, infinite, ["a", "b"], ""), infinite)

    def test_a_class_that_scores_nothing(self):
        class Nothing(Reward):
            pass

        with pytest.raises(TypeError, match="the class Nothing to define `__call__`, or `encode` and `of_particles`"):
            Nothing()(BATCH, PROMPTS)

    def test_one_prompt_per_image(self):
        with pytest.raises(ValueError, match="one prompt per image, but got 7 images and 2 prompts"):
            WeightedSum({light: 1.0})(BATCH, PROMPTS[:2])


class Duck:
    name, default_lmbda, relative = "duck", 3.0, True

    def __call__(self, images, prompts):
        return light(images, prompts)

    def method(self, images, prompts):
        return light(images, prompts)


class TestAsReward:
    def test_rewards_stay_as_they_are(self):
        for reward in (Counting(), WeightedSum({light: 1.0}), Cascade(light, middle)):
            assert as_reward(reward) is reward

    def test_functions(self):
        reward = as_reward(light)
        assert (reward.name, reward.default_lmbda, reward.relative) == ("light", None, False)
        assert torch.equal(reward(BATCH, PROMPTS), light(BATCH, PROMPTS))
        assert torch.equal(reward.encode(BATCH, PROMPTS), light(BATCH, PROMPTS))
        assert as_reward(lambda images, prompts: [1.0] * len(prompts))(BATCH, PROMPTS).tolist() == [1.0] * 7

    def test_one_function_is_one_reward(self):
        duck = Duck()
        for function in (light, duck, duck.method):
            assert as_reward(function) == as_reward(function)
            assert len({as_reward(function), as_reward(function)}) == 1
        assert as_reward(light) != as_reward(middle) and as_reward(duck.method) != as_reward(Duck().method)
        # `duck.method` is another object each time.
        assert len(WeightedSum({ZScoreSum({duck.method: 1.0}): 1.0, duck.method: 1.0}).leaves) == 1

    def test_objects(self):
        reward = as_reward(Duck())
        assert (reward.name, reward.default_lmbda, reward.relative) == ("duck", 3.0, True)
        assert WeightedSum({Duck(): 2.0}).default_lmbda == pytest.approx(1.5)

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (Duck, "but got the class Duck itself. Expected an object of it"),
            (3.0, "but got 3.0"),
            (None, "but got None"),
            (lambda: 1.0, r"but '<lambda>\(\)' takes other arguments"),
            (lambda a, b, c: a, r"but '<lambda>\(a, b, c\)' takes other arguments"),
        ],
        ids=["class", "number", "nothing", "too few arguments", "too many arguments"],
    )
    def test_anything_else(self, value, message):
        for make in (as_reward, lambda reward: WeightedSum({reward: 1.0}), lambda reward: Cascade(light, reward)):
            with pytest.raises(TypeError, match=message):
                make(value)

    def test_rewards_are_keys(self):
        @dataclass
        class Unhashable(Reward):
            weight: float = 1.0

        with pytest.raises(TypeError, match="'Unhashable' to be hashable.*A dataclass needs `eq=False`"):
            as_reward(Unhashable())


class TestAsPIL:
    def test_gets_what_would_be_saved(self):
        seen = []

        @as_pil
        def first_pixel(pictures, prompts):
            seen.extend(pictures)
            assert prompts == PROMPTS
            return [picture.getpixel((0, 0))[0] for picture in pictures]

        scores = first_pixel(BATCH + 0.3 / 255, PROMPTS)
        assert scores.tolist() == SHADES and scores.dtype == torch.float32
        assert all(isinstance(picture, Image.Image) and picture.mode == "RGB" for picture in seen)
        assert (first_pixel.name, first_pixel.default_lmbda) == ("first_pixel", None)
        assert first_pixel([Image.new("L", (9, 9), 12)] * 7, PROMPTS).tolist() == [12] * 7

    def test_is_a_reward(self):
        reward = as_pil(lambda pictures, prompts: [len(prompt) for prompt in prompts], "length", default_lmbda=2.0)
        assert isinstance(reward, Reward) and (reward.name, reward.default_lmbda) == ("length", 2.0)
        assert ZScoreSum({reward: 1.0})(BATCH, PROMPTS).tolist() == [0.0] * 7

    def test_errors(self):
        with pytest.raises(RewardError, match=r"'<lambda>' returned shape \(1,\), but"):
            WeightedSum({as_pil(lambda pictures, prompts: [1.0]): 1.0})(BATCH, PROMPTS)
        with pytest.raises(TypeError, match="takes other arguments"):
            as_pil(lambda: 1.0)
        with pytest.raises(ValueError, match="one prompt per image"):
            as_pil(lambda pictures, prompts: pictures)(BATCH, PROMPTS[:1])


def test_composites_of_ones_own():
    class Softest(Composite):
        """The lowest of its parts."""

        def of_parts(self, rewards):
            return torch.stack(list(rewards)).amin(0)

    lowest = Clipped(Softest([light, Cascade(middle, light), PairwiseReward(compare)]), low=-1.0)
    shades = SHADES[:4]
    expected = [max(min(values), -1.0) for values in zip(lights(shades), z(lights(shades)), wins(shades))]
    assert lowest(BATCH[:4], ["a"] * 4).tolist() == pytest.approx(expected, abs=1e-5)


def test_knows_nothing_of_what_is_built_on_it():
    """The source of `fk_steer.rewards` imports nothing of the package but itself, smc, where bundled weights lie, and
    how files are written and fetched."""
    package = Path(fk_steer.rewards.__file__).parent
    for file in package.rglob("*.py"):
        depth = len(file.relative_to(package).parts)
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names] if not node.level else []
                outside = node.level > depth
                near = node.level == depth + 1 and node.module in ("bundled", "files", "published", "smc")
                assert not outside or near, (file.name, node.module)
            assert not any(name.startswith("fk_steer") for name in names), (file.name, names)
