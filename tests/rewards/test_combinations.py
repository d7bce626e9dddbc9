"""Rewards combined in a name, as command lines and studies write them."""

from __future__ import annotations

import pytest
import torch

from fk_steer.bundled import fitted_options
from fk_steer.combinations import Combination, Mean, Votes, by_reward, combination, joined, names_in
from fk_steer.loading import check_names, load_guide
from fk_steer.options import options_of
from fk_steer.rewards import Ensemble, Finalists, Majority, ZScoreSum
from fk_steer.smc import standardize


@pytest.mark.parametrize(
    ("text", "guide", "chooser"),
    [
        ("a", {"a": 1.0}, None),
        ("a+b", {"a": 1.0, "b": 1.0}, None),
        (" a + b ", {"a": 1.0, "b": 1.0}, None),
        ("2*a+b", {"a": 2.0, "b": 1.0}, None),
        ("0.5 * a + -1*b", {"a": 0.5, "b": -1.0}, None),
        ("a>b", {"a": 1.0}, {"b": 1.0}),
        ("a+b>c", {"a": 1.0, "b": 1.0}, {"c": 1.0}),
        ("a>a+2*b", {"a": 1.0}, {"a": 1.0, "b": 2.0}),
    ],
)
def test_reading(text, guide, chooser):
    assert combination(text) == Combination(Mean(guide), None if chooser is None else Mean(chooser))
    assert names_in(text) == tuple(dict.fromkeys([*guide, *(chooser or ())]))


def test_reading_what_rewards_disagree_on_and_votes():
    of_three = {"a-1": 1.0, "b": 1.0, "c-2": 1.0}
    assert combination("a-1+b+c-2-0.5*sd") == Combination(Mean(of_three, 0.5))
    assert combination("a-1 + b + c-2 - 2 * sd > b") == Combination(Mean(of_three, 2.0), Mean({"b": 1.0}))
    assert combination("a-1|b| c-2") == Combination(Votes(("a-1", "b", "c-2")))
    assert combination("b>a-1|b|c-2") == Combination(Mean({"b": 1.0}), Votes(("a-1", "b", "c-2")))
    assert names_in("b>a-1|b|c-2") == ("b", "a-1", "c-2")
    assert not combination("a|b").single


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a reward is missing"),
        ("a+", "a reward is missing"),
        (">a", "a reward is missing"),
        ("a>b>c", "'>' stands once at most"),
        ("2*a", "a weight says how much a reward counts beside others"),
        ("x*a+b", "the weight 'x' is no finite number"),
        ("0*a+b", "the weight '0' is no finite number other than 0"),
        ("inf*a+b", "the weight 'inf'"),
        ("2*3*a+b", "a reward has one weight"),
        ("a+a", "'a' stands twice"),
        ("a-0.5*sd", "standard deviations are those of two rewards or more"),
        ("2*a+b-0.5*sd", "standard deviations are those of two rewards or more"),
        ("a+b-x*sd", "the weight 'x' is no finite number"),
        ("a|", "a reward is missing"),
        ("a|b+c", "votes have no weights"),
        ("a|2*b", "votes have no weights"),
        ("a|b|a", "a reward has one vote"),
    ],
)
def test_what_cannot_be_read(text, message):
    with pytest.raises(ValueError, match="Cannot read the reward") as caught:
        combination(text)
    assert message in str(caught.value)
    assert "'a+b' for the mean of z-scores" in str(caught.value)


def test_options_by_reward():
    assert by_reward("a", {"path": "x"}) == {"a": {"path": "x"}}
    assert by_reward("a+b", {"b": {"path": "x"}}) == {"a": {}, "b": {"path": "x"}}
    assert joined("a+b", {"a": {}, "b": {"path": "x"}}) == {"b": {"path": "x"}}
    with pytest.raises(ValueError, match="options of the combination 'a\\+b' by reward"):
        by_reward("a+b", {"path": "x"})
    assert options_of(["path=x", "b:variant=v"], "a>b") == {"a": {"path": "x"}, "b": {"path": "x", "variant": "v"}}
    with pytest.raises(ValueError, match="Did you mean 'clip-score'"):
        options_of(["clip-scor:path=x"], "clip-score+image-reward")


def test_bundled_weights_of_each():
    options = fitted_options("shapes", "clip-score+llava-reward>hps", {"clip-score": {"path": "shapes-held-out"}})
    assert options == {"clip-score": {"path": "shapes-held-out"}, "llava-reward": {"path": "shapes"}}
    assert fitted_options("org/model", "clip-score+hps", {}) == {}


def test_unknown_rewards_are_known_before_weights_are_loaded():
    with pytest.raises(ValueError, match="Did you mean 'clip-score'"):
        check_names("image-reward+clip-scor")
    with pytest.raises(ValueError, match="Unknown reward 'nope'"):
        load_guide("clip-score>nope", "cpu", **{"clip-score": {"path": "shapes"}})


@pytest.fixture(scope="module")
def parts():
    options = {"clip-score": {"path": "shapes"}, "image-reward": {"path": "shapes"}}
    return {name: load_guide(name, "cpu", **own) for name, own in options.items()}, options


def scores(reward, images):
    return torch.as_tensor(reward(images, ["a red circle"] * len(images)))


def test_what_is_loaded_is_what_is_written(parts):
    single, options = parts
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    a, b = (standardize(scores(one, images)) for one in single.values())
    both = load_guide("clip-score+image-reward", "cpu", **options)
    assert isinstance(both, Ensemble)
    torch.testing.assert_close(scores(both, images), (a + b) / 2)
    careful = load_guide("clip-score+image-reward-0.5*sd", "cpu", **options)
    assert isinstance(careful, Ensemble)
    torch.testing.assert_close(scores(careful, images), (a + b) / 2 - 0.5 * (a - b).abs() / 2)
    votes = load_guide("clip-score|image-reward", "cpu", **options)
    assert isinstance(votes, Majority)
    torch.testing.assert_close(scores(votes, images), scores(Majority(list(single.values())), images))
    weighed = load_guide("3*clip-score+image-reward", "cpu", **options)
    assert isinstance(weighed, ZScoreSum)
    torch.testing.assert_close(scores(weighed, images), 0.75 * a + 0.25 * b)
    # As strong as the plain mean where the weights are alike.
    alike = load_guide("2*clip-score+2*image-reward", "cpu", **options)
    assert alike.default_lmbda == pytest.approx(both.default_lmbda)
    finalists = load_guide("clip-score>image-reward", "cpu", **options)
    assert isinstance(finalists, Finalists)
    assert scores(finalists, images).argmax() == b.argmax()
