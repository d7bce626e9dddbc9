"""What must not change a reward, and what must."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from PIL import Image

from llava_reward_guide import (
    LlavaReward,
    RewardConfig,
    new_perspective,
    preference_probability,
    preference_score,
    random_reward,
)
from llava_reward_guide.backbones import BackboneOutput
from llava_reward_guide.backbones.phi3v import LongRotaryEmbedding, Phi3VConfig
from llava_reward_guide.head import RewardHead
from llava_reward_guide.untrained import random_backbone


BACKBONES = ["phi3_v", "qwen2_5_vl", "llava_next"]
SIZES = [(100, 100), (160, 60), (60, 160), (100, 100)]
PROMPTS = ["a red cube", "two dogs", "an oil painting of a fox in the snow", "x"]


def noise(*sizes):
    generator = torch.Generator().manual_seed(0)
    return [
        Image.fromarray(torch.randint(256, (h, w, 3), generator=generator, dtype=torch.uint8).numpy()) for w, h in sizes
    ]


IMAGES = noise(*SIZES)


def make(model_type="phi3_v", config=None, **options) -> LlavaReward:
    """A tiny one whose rewards differ: random weights as they come give nearly the same to all images."""
    options = {"num_crops": 1 if model_type == "phi3_v" else 16, **options}
    reward = random_reward(model_type, "tiny", config, **options)
    with torch.no_grad():
        for parameter in reward.parameters():
            if parameter.ndim > 1 and parameter.shape[0] < 32000:
                parameter.mul_(4)
    return reward


@pytest.mark.parametrize("model_type", BACKBONES)
def test_batch_is_single(model_type):
    reward = make(model_type)
    alone = torch.cat([reward.embed([image], [prompt]) for image, prompt in zip(IMAGES, PROMPTS)])
    assert alone.std() > 1e-3
    for size in (2, 4):
        torch.testing.assert_close(reward.embed(IMAGES, PROMPTS, batch_size=size), alone, atol=2e-5, rtol=0)


@pytest.mark.parametrize("model_type", BACKBONES)
@pytest.mark.parametrize("pooling", [False, True])
def test_padding_changes_nothing(model_type, pooling):
    config = RewardConfig(add_cross_attention=model_type != "llava_next", mean_pooling=pooling)
    reward = make(model_type, config)
    row = reward.backbone.prepare_row(IMAGES[0], PROMPTS[0])
    longer = replace(
        row,
        input_ids=torch.cat([row.input_ids, torch.full((9,), 70)]),
        image_mask=torch.cat([row.image_mask, torch.zeros(9, dtype=torch.bool)]),
    )
    with torch.no_grad():
        alone = reward(reward.backbone.collate([row]))
        for side in ("left", "right"):
            padded = reward.backbone.collate([row, longer], side)
            assert padded.attention_mask.sum(1).tolist() == [len(row.input_ids), len(longer.input_ids)]
            torch.testing.assert_close(reward(padded)[:1], alone, atol=2e-5, rtol=0)


def test_tensors_are_the_images_that_would_be_saved():
    reward = make()
    pixels = torch.rand(2, 3, 64, 64)
    saved = [Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()) for image in pixels]
    assert torch.equal(reward.score(pixels, PROMPTS[:2]), reward.score(saved, PROMPTS[:2]))


def test_only_the_end_is_computed():
    """SkipCA of one query is the row of SkipCA of all, which is the formula written out."""
    head = RewardHead(RewardConfig(), 16, 1e-5)
    torch.nn.init.normal_(head.ca_layernorm.weight)
    for layer in (head.W_q, head.W_k, head.W_v):
        torch.nn.init.normal_(layer.weight, std=0.5)
    hidden, visual = torch.randn(2, 7, 16), torch.randn(2, 5, 16)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    everywhere = head.skip_connection(hidden, visual, mask)
    torch.testing.assert_close(head.skip_connection(hidden[:, -1:], visual, mask), everywhere[:, -1:])

    query, key, value = (layer(x) for layer, x in ((head.W_q, hidden), (head.W_k, visual), (head.W_v, visual)))
    scores = (query @ key.transpose(1, 2) / 4).masked_fill(~mask[:, None], -torch.inf)
    summed = hidden + scores.softmax(-1) @ value
    expected = summed / (summed.square().mean(-1, keepdim=True) + 1e-5).sqrt() * head.ca_layernorm.weight
    torch.testing.assert_close(everywhere, expected, atol=1e-5, rtol=1e-5)

    output = BackboneOutput(hidden, torch.tensor([[1] * 7, [1] * 5 + [0] * 2]), visual, mask)
    read = head.value_head(torch.stack([everywhere[0, 6], everywhere[1, 4]]))
    torch.testing.assert_close(head(output), read)
    pooled = RewardHead(RewardConfig(mean_pooling=True), 16, 1e-5)
    pooled.load_state_dict(head.state_dict())
    means = torch.stack([everywhere[0].mean(0), everywhere[1, :5].mean(0)])
    torch.testing.assert_close(pooled(output), head.value_head(means))


def test_skip_ca_in_float16():
    """Products of queries and keys that float16 cannot hold, unless the queries are scaled first."""
    head = RewardHead(RewardConfig(), 256, 1e-5)
    for layer in (head.W_q, head.W_k, head.W_v):
        torch.nn.init.eye_(layer.weight)
    hidden = torch.full((1, 1, 256), 20.0)
    visual = torch.stack([torch.full((256,), 20.0), torch.full((256,), 19.96875)])[None]
    expected = head.skip_connection(hidden, visual, None)
    found = head.half().skip_connection(hidden.half(), visual.half(), None)
    torch.testing.assert_close(found.float(), expected, atol=1e-2, rtol=0)


def test_no_visual_tokens_no_attention():
    head = RewardHead(RewardConfig(), 8, 1e-5)
    hidden = torch.randn(2, 1, 8)
    expected, nothing = head.ca_layernorm(hidden), torch.zeros(2, 0, 8)
    assert torch.equal(head.skip_connection(hidden, nothing, nothing[..., 0].bool()), expected)
    unseen = torch.tensor([[False, False], [True, False]])
    visual = torch.randn(2, 2, 8) * unseen[..., None]
    assert torch.equal(head.skip_connection(hidden, visual, unseen)[0], expected[0])


def test_layers():
    """The embeddings of the visual positions are the projected tokens; other layers are others."""
    rewards = {}
    for layer, visual in ((None, None), (None, 0), (None, 1), (3, None), (1, None)):
        reward = make(config=RewardConfig(hidden_layer=layer, visual_layer=visual))
        rewards[layer, visual] = reward.score(IMAGES[:2], PROMPTS[:2])
    assert torch.equal(rewards[None, None], rewards[None, 0])
    assert torch.equal(rewards[None, None], rewards[3, None])
    assert not torch.allclose(rewards[None, None], rewards[None, 1], atol=1e-6)
    assert not torch.allclose(rewards[None, None], rewards[1, None], atol=1e-6)


def test_crops():
    reward = make()
    rows = {crops: reward.backbone.prepare_row(IMAGES[0], "x", crops) for crops in (1, 4, 16)}
    assert [int(row.image_mask.sum()) for row in rows.values()] == [313, 757, 2509]
    assert not torch.equal(reward.score(IMAGES[:1], ["x"]), reward.score(IMAGES[:1], ["x"], num_crops=4))


def several() -> LlavaReward:
    reward = make()
    for seed, (name, config) in enumerate(
        [
            ("safety", RewardConfig("classification")),
            ("fidelity", RewardConfig(add_cross_attention=False)),
            ("preference", RewardConfig("general-preference", value_head_dim=4)),
        ]
    ):
        torch.manual_seed(seed)
        new_perspective(reward, name, config, rank=2, alpha=4)
        with torch.no_grad():
            for parameter in reward.trainable():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        reward.requires_grad_(False)
    return reward.eval()


def test_perspectives():
    reward = several()
    names = ["default", "safety", "fidelity"]
    before = {}
    for name in names:
        reward.set_perspective(name)
        before[name] = reward.score(IMAGES, PROMPTS)
    assert len({tuple(score.tolist()) for score in before.values()}) == 3
    for name in reversed(names):
        reward.set_perspective(name)
        assert torch.equal(reward.score(IMAGES, PROMPTS), before[name])

    seen = []
    features = reward.backbone.vision_features
    reward.backbone.vision_features = lambda inputs: seen.append(1) or features(inputs)
    together = reward.score_perspectives(IMAGES, PROMPTS, names)
    assert len(seen) == 1
    assert reward.active == "default"
    for name in names:
        torch.testing.assert_close(together[name], before[name], atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="Known: default, safety, fidelity, preference"):
        reward.set_perspective("beauty")
    with pytest.raises(ValueError, match="a perspective 'safety' already"):
        new_perspective(reward, "safety", RewardConfig(), rank=0)


def test_new_perspective_keeps_the_mode():
    """One added to a model that scores has no dropout."""
    reward = make()
    new_perspective(reward, "new", RewardConfig(), rank=4, dropout=0.5)
    assert not any(module.training for module in reward.modules())
    reward.train()
    new_perspective(reward, "newer", RewardConfig(), rank=4, dropout=0.5)
    assert reward.backbone.text_model.layers[0].self_attn.o_proj.lora_dropout["newer"].training


def test_general_preference():
    reward = several()
    reward.set_perspective("preference")
    embeddings = reward.embed(IMAGES, PROMPTS)
    assert embeddings.shape == (4, 4)
    scores = preference_score(embeddings[:, None], embeddings[None])
    assert torch.equal(scores, -scores.T)
    assert (scores.diagonal() == 0).all()
    c, r = embeddings[0], embeddings[1]
    torch.testing.assert_close(scores[0, 1], c[0] * r[1] - c[1] * r[0] + c[2] * r[3] - c[3] * r[2])
    # The block-diagonal form of the general preference model.
    rotation = torch.block_diag(*[torch.tensor([[0.0, -1.0], [1.0, 0.0]])] * 2)
    torch.testing.assert_close(scores, embeddings @ rotation.T @ embeddings.T)
    first = reward.preference(IMAGES[:2], IMAGES[2:], PROMPTS[:2])
    second = reward.preference(IMAGES[2:], IMAGES[:2], PROMPTS[:2])
    torch.testing.assert_close(first + second, torch.ones(2))
    with pytest.raises(ValueError, match="gives none a number"):
        reward.score(IMAGES, PROMPTS)


def test_preference_probability():
    a, b = torch.tensor([[0.3], [-1.0]]), torch.tensor([[0.1], [2.0]])
    torch.testing.assert_close(preference_probability(a, b, 0.1), torch.sigmoid(torch.tensor([2.0, -30.0])))
    # Half precision ties where the published evaluation does.
    assert preference_probability(a, a + 0.0001, 0.1, torch.bfloat16)[0] == 0.5
    assert preference_probability(a, a + 0.0001, 0.1)[0] < 0.5
    with pytest.raises(ValueError, match="1 or even"):
        preference_score(torch.ones(3), torch.ones(3))


def test_rotary_embedding_is_chosen_by_row():
    config = Phi3VConfig(
        hidden_size=16,
        num_attention_heads=2,
        max_position_embeddings=64,
        original_max_position_embeddings=8,
        rope_scaling={"type": "su", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4},
        vision_config={"num_hidden_layers": 1},
    )
    rotary = LongRotaryEmbedding(config)
    positions = torch.stack([torch.arange(9), torch.tensor([1, 1, 1, 0, 1, 2, 3, 4, 5])])
    cos, _ = rotary(torch.zeros(2, 9, 16), positions)
    scaling = (1 + torch.log(torch.tensor(8.0)) / torch.log(torch.tensor(8.0))).sqrt()
    torch.testing.assert_close(cos[0, 4, 0], scaling * torch.tensor(4 / 3).cos())
    torch.testing.assert_close(cos[1, 4, 0], scaling * torch.tensor(1.0).cos())
    rotary.by_padded_length = True
    cos, _ = rotary(torch.zeros(2, 9, 16), positions)
    torch.testing.assert_close(cos[1, 4, 0], scaling * torch.tensor(1 / 3).cos())


@pytest.mark.parametrize("model_type", BACKBONES)
def test_trains(model_type):
    """Gradients reach adapter, projector, SkipCA and head, with checkpointing as without."""
    skip = model_type != "llava_next"
    reward = make(model_type)
    new_perspective(reward, "new", RewardConfig(add_cross_attention=skip), rank=2, alpha=4, dropout=0.0)
    parameters = reward.trainable()
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter) * 0.05)
    inputs = reward.backbone.prepare(IMAGES[:2], PROMPTS[:2])
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            reward.backbone.model.activation_checkpointing_enable({"use_reentrant": False})
        reward.train()
        a, b = reward(inputs)
        loss = -torch.nn.functional.logsigmoid((a - b) / 0.1).sum()
        loss.backward()
        gradients.append([parameter.grad.clone() for parameter in parameters])
        reward.zero_grad()
    assert all(gradient.abs().max() > 0 for gradient in gradients[0])
    for plain, checkpointed in zip(*gradients):
        torch.testing.assert_close(checkpointed, plain, atol=1e-5, rtol=1e-3)
    trained = {id(parameter) for parameter in parameters}
    assert all(parameter.requires_grad == (id(parameter) in trained) for parameter in reward.parameters())


def test_fresh_perspective_begins_as_the_backbone():
    """LoRA's B is zero, and the projector is a copy that training does not share."""
    reward = make()
    inputs = reward.backbone.prepare(IMAGES[:1], PROMPTS[:1])
    with torch.no_grad():
        before = reward.backbone(inputs).hidden_states
        new_perspective(reward, "new", RewardConfig(), rank=4)
        assert torch.equal(reward.backbone(inputs).hidden_states, before)
    assert len(reward.trainable(projector=False, head=False)) == 2 * 3 * 4
    assert all(parameter is not base for parameter, base in zip(
        reward.backbone.projector.parameters(), reward._base_projector.parameters()
    ))  # fmt: skip


def test_compile():
    reward = make()
    before = reward.score(IMAGES, PROMPTS)
    reward.compile(backend="aot_eager")
    torch.testing.assert_close(reward.score(IMAGES, PROMPTS), before, atol=1e-5, rtol=0)


def test_bfloat16():
    reward = make()
    half = copy.deepcopy(reward)
    for module in (half.backbone.model, half.head):
        module.to(torch.bfloat16)
    full = reward.score(IMAGES, PROMPTS)
    found = half.score(IMAGES, PROMPTS)
    assert found.dtype == torch.float32
    assert (found - full).abs().max() < 0.1 * full.abs().max()


def test_bad_calls():
    reward = make()
    with pytest.raises(ValueError, match="2 images and a single string"):
        reward.score(IMAGES[:2], "a red cube")
    with pytest.raises(ValueError, match="0 images and 0 prompts"):
        reward.score([], [])
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"`batch_size` to be at least 1, but got {size}"):
            reward.score(IMAGES[:2], PROMPTS[:2], batch_size=size)
    with pytest.raises(ValueError, match="at least 1, but got 100 x 100 and 0"):
        reward.score(IMAGES[:1], ["x"], num_crops=0)
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        reward.score(torch.zeros(2, 1, 8, 8), ["x", "y"])
    with pytest.raises(ValueError, match="Known: full, tiny"):
        random_backbone(size="huge")
    with pytest.raises(ValueError, match="even `value_head_dim`"):
        RewardConfig("general-preference", value_head_dim=3)
    with pytest.raises(ValueError, match="Known: bradley-terry"):
        RewardConfig("elo")
    with pytest.raises(ValueError, match="positive `tau`"):
        RewardConfig(tau=0.0)
