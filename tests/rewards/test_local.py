"""What the rewards share whose model runs in this process, and what is known of all of them."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from torch import nn

from fk_steer.bundled import BUNDLED, BUNDLED_REWARDS, WEIGHTS, bundled_options, resolve_reward
from fk_steer.rewards import RewardCard, available_rewards, load_reward, markdown_table
from fk_steer.rewards.local import LocalReward, PromptCache, Source
from fk_steer.rewards.registry import reward_factory


class TestPromptCache:
    @staticmethod
    def counted(size):
        computed = []

        def compute(prompts):
            computed.extend(prompts)
            return [prompt.upper() for prompt in prompts]

        return PromptCache(compute, size), computed

    def test_each_prompt_once(self):
        cache, computed = self.counted(4)
        assert cache(["a", "b", "a"]) == ["A", "B", "A"]
        assert cache(["b", "c"]) == ["B", "C"]
        assert computed == ["a", "b", "c"]

    def test_full(self):
        """Whatever has to go, every prompt of a call gets its value, those known before it among them."""
        cache, computed = self.counted(2)
        for prompts in (["a", "b"], ["a", "c"], ["c", "b"], ["a", "b", "c", "d"], ["d", "a"]):
            assert cache(prompts) == [prompt.upper() for prompt in prompts]
        before = len(computed)
        cache(["d", "a"])
        assert len(computed) == before

    def test_room_for_all_of_a_call(self):
        cache, computed = self.counted(3)
        cache(["a", "b"])
        cache(["a", "b", "c"])
        assert computed == ["a", "b", "c"]


class Linear(LocalReward):
    """A reward of a user: a linear layer on the mean colour."""

    name = "linear"
    card = RewardCard(
        summary="A linear layer on the mean colour.",
        hub_id="somebody/linear",
        revision="abc",
        dtype="float16",
        variants={
            "small": RewardCard(summary="One.", default_lmbda=3.0),
            "large": RewardCard(summary="Two.", revision="def", default_lmbda=4.0),
        },
    )

    def load(self, source: Source, *, bias: float = 0.0) -> tuple:
        self.source = source
        layer = nn.Linear(3, 1)
        nn.init.ones_(layer.weight)
        nn.init.constant_(layer.bias, bias)
        return (layer,)

    def preprocess(self, images, exact=True):
        return images.to(self.device, self.dtype).mean((2, 3))

    def rate(self, inputs, prompts):
        assert self.prompts(prompts) == list(prompts)
        return self.model(inputs)[:, 0]


class TestOfOnesOwn:
    def test_scores(self):
        reward = Linear(bias=1.0, device="cpu")
        assert reward(torch.ones(2, 3, 4, 4), ["a", "b"]).tolist() == [4.0, 4.0]
        assert (reward.variant, reward.default_lmbda, reward.dtype) == ("small", 3.0, torch.float32)
        assert not any(parameter.requires_grad for parameter in reward.model.parameters())
        assert Linear(variant="large").default_lmbda == 4.0
        made = Linear.from_modules(nn.Linear(3, 1), variant="large", dtype="bfloat16", device="cpu")
        assert made.model.weight.dtype == torch.bfloat16 and made.default_lmbda == 4.0

    def test_where_the_weights_are(self):
        def source(**options):
            found = Linear(device="cpu", **options).source
            return found.path, found.revision, found.given

        assert source() == ("somebody/linear", "abc", False)
        assert source(variant="large") == ("somebody/linear", "def", False)
        assert source(revision="x") == ("somebody/linear", "x", False)
        assert source(path="mine") == ("mine", None, True)
        assert source(path="mine", revision="x") == ("mine", "x", True)
        assert Linear(device="cpu").source.card.hub_id == "somebody/linear"
        assert Linear(device="cpu", dtype="bfloat16").source.dtype == torch.bfloat16

    def test_signature(self):
        parameters = inspect.signature(Linear).parameters
        assert list(parameters) == ["variant", "path", "revision", "device", "dtype", "compile", "bias"]
        assert (parameters["variant"].default, parameters["bias"].default) == ("small", 0.0)
        with pytest.raises(TypeError, match="unexpected keyword argument 'bios'"):
            Linear(bios=1.0)

        class Own(Linear):
            def __init__(self, scale: float) -> None:
                super().__init__(device="cpu")
                self.scale = scale

        assert list(inspect.signature(Own).parameters) == ["scale"]

    def test_bad_values(self):
        with pytest.raises(ValueError, match="Unknown variant 'huge' of linear. Known: small, large"):
            Linear(variant="huge")
        with pytest.raises(ValueError, match="floating-point type"):
            Linear(dtype="int8")


@pytest.mark.parametrize("name", ["aesthetic", "clip-score", "hps", "image-reward", "pickscore", "vqa-score"])
def test_options_are_told(name):
    """Without variable arguments, so that a wrong one is refused with a list of those there are."""
    parameters = inspect.signature(reward_factory(name)).parameters
    shared = ["variant", "path", "revision", "device", "dtype", "compile"]
    assert list(parameters)[:6] == shared
    assert parameters["variant"].default == next(iter(reward_factory(name).card.variants))
    with pytest.raises(ValueError, match=f"'{name}' has no option 'weights'. It takes: {', '.join(parameters)}"):
        load_reward(name, weights="x")
    # What is not shared is explained where the reward is.
    documented = inspect.getdoc(reward_factory(name))
    assert all(f"\n    {option}: " in documented for option in parameters)


class TestBundled:
    def test_weights_are_there(self):
        for folders in (BUNDLED, *BUNDLED_REWARDS.values()):
            assert all((WEIGHTS / folder).is_dir() for folder in folders.values())

    def test_options(self):
        for model in BUNDLED:
            for reward in ("clip-score", "image-reward", "llava-reward"):
                assert bundled_options(model, reward) == {"path": model}
            assert bundled_options(model, "hps") == bundled_options(model, None) == {}
        # A reward's own name of weights is no pipeline.
        assert bundled_options("shapes-held-out", "clip-score") == bundled_options("org/model", "clip-score") == {}

    def test_paths(self):
        assert resolve_reward("clip-score", "shapes-held-out") == str(WEIGHTS / "judge")
        assert resolve_reward("image-reward", "shapes-xl") == str(WEIGHTS / "image-reward")
        assert resolve_reward("hps", "shapes") == "shapes"
        assert resolve_reward("clip-score", "org/clip") == "org/clip"

    @pytest.mark.parametrize("name", ["clip-score", "image-reward"])
    def test_load(self, name):
        reward = load_reward(name, device="cpu", **bundled_options("shapes", name))
        assert reward(torch.rand(2, 3, 32, 32), ["a photo of a red star"] * 2).isfinite().all()


def test_the_table_of_the_docs_is_what_is_printed():
    """`python -c "from fk_steer.rewards import markdown_table; print(markdown_table())"`."""
    table = markdown_table()
    rows = table.splitlines()[2:]
    own = [name for name, entry in available_rewards().items() if entry.value.startswith("fk_steer.")]
    assert [row.split("`")[1] for row in rows] == sorted(own)
    assert table in (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
