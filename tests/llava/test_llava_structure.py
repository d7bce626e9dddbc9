"""Full-size models on the meta device against the published lists of tensors; token ids and layouts."""

from __future__ import annotations

import re

import pytest
import torch
from PIL import Image

from llava_reward_guide import RewardConfig, random_reward
from llava_reward_guide.backbones.qwen2_5_vl import LOADING_PIXELS, PROCESSOR_PIXELS, resize_twice, smart_size
from llava_reward_guide.hd import hd_crops, hd_layout, hd_transform
from llava_reward_guide.untrained import random_backbone


CLIP_LAYER = {
    **{f"layer_norm{i}.{kind}": (1024,) for i in (1, 2) for kind in ("weight", "bias")},
    **{f"self_attn.{name}_proj.weight": (1024, 1024) for name in "qkv"},
    **{f"self_attn.{name}_proj.bias": (1024,) for name in "qkv"},
    "self_attn.out_proj.weight": (1024, 1024),
    "self_attn.out_proj.bias": (1024,),
    "mlp.fc1.weight": (4096, 1024),
    "mlp.fc1.bias": (4096,),
    "mlp.fc2.weight": (1024, 4096),
    "mlp.fc2.bias": (1024,),
}
CLIP = {
    "embeddings.class_embedding": (1024,),
    "embeddings.patch_embedding.weight": (1024, 3, 14, 14),
    "embeddings.position_embedding.weight": (577, 1024),
    **{f"{norm}.{kind}": (1024,) for norm in ("pre_layrnorm", "post_layernorm") for kind in ("weight", "bias")},
    **{f"encoder.layers.{i}.{name}": shape for i in range(24) for name, shape in CLIP_LAYER.items()},
}


def phi_tensors() -> dict[str, tuple]:
    """Of microsoft/Phi-3.5-vision-instruct."""
    layer = {
        "self_attn.qkv_proj.weight": (9216, 3072),
        "self_attn.o_proj.weight": (3072, 3072),
        "mlp.gate_up_proj.weight": (16384, 3072),
        "mlp.down_proj.weight": (3072, 8192),
        "input_layernorm.weight": (3072,),
        "post_attention_layernorm.weight": (3072,),
    }
    image = "model.vision_embed_tokens"
    return {
        "lm_head.weight": (32064, 3072),
        "model.embed_tokens.weight": (32064, 3072),
        "model.norm.weight": (3072,),
        **{f"model.layers.{i}.{name}": shape for i in range(32) for name, shape in layer.items()},
        f"{image}.glb_GN": (1, 1, 4096),
        f"{image}.sub_GN": (1, 1, 1, 4096),
        f"{image}.img_projection.0.weight": (3072, 4096),
        f"{image}.img_projection.0.bias": (3072,),
        f"{image}.img_projection.2.weight": (3072, 3072),
        f"{image}.img_projection.2.bias": (3072,),
        **{f"{image}.img_processor.vision_model.{name}": shape for name, shape in CLIP.items()},
    }


def qwen_tensors() -> dict[str, tuple]:
    """Of Qwen/Qwen2.5-VL-7B-Instruct."""
    layer = {
        "self_attn.q_proj.weight": (3584, 3584),
        "self_attn.q_proj.bias": (3584,),
        "self_attn.k_proj.weight": (512, 3584),
        "self_attn.k_proj.bias": (512,),
        "self_attn.v_proj.weight": (512, 3584),
        "self_attn.v_proj.bias": (512,),
        "self_attn.o_proj.weight": (3584, 3584),
        "mlp.gate_proj.weight": (18944, 3584),
        "mlp.up_proj.weight": (18944, 3584),
        "mlp.down_proj.weight": (3584, 18944),
        "input_layernorm.weight": (3584,),
        "post_attention_layernorm.weight": (3584,),
    }
    block = {
        "norm1.weight": (1280,),
        "norm2.weight": (1280,),
        "attn.qkv.weight": (3840, 1280),
        "attn.qkv.bias": (3840,),
        "attn.proj.weight": (1280, 1280),
        "attn.proj.bias": (1280,),
        **{f"mlp.{name}_proj.weight": (3420, 1280) for name in ("gate", "up")},
        **{f"mlp.{name}_proj.bias": (3420,) for name in ("gate", "up")},
        "mlp.down_proj.weight": (1280, 3420),
        "mlp.down_proj.bias": (1280,),
    }
    return {
        "lm_head.weight": (152064, 3584),
        "model.embed_tokens.weight": (152064, 3584),
        "model.norm.weight": (3584,),
        **{f"model.layers.{i}.{name}": shape for i in range(28) for name, shape in layer.items()},
        "visual.patch_embed.proj.weight": (1280, 3, 2, 14, 14),
        **{f"visual.blocks.{i}.{name}": shape for i in range(32) for name, shape in block.items()},
        "visual.merger.ln_q.weight": (1280,),
        "visual.merger.mlp.0.weight": (5120, 5120),
        "visual.merger.mlp.0.bias": (5120,),
        "visual.merger.mlp.2.weight": (3584, 5120),
        "visual.merger.mlp.2.bias": (3584,),
    }


def llava_tensors() -> dict[str, tuple]:
    """Of llava-hf/llava-v1.6-vicuna-13b-hf."""
    layer = {
        **{f"self_attn.{name}_proj.weight": (5120, 5120) for name in "qkvo"},
        "mlp.gate_proj.weight": (13824, 5120),
        "mlp.up_proj.weight": (13824, 5120),
        "mlp.down_proj.weight": (5120, 13824),
        "input_layernorm.weight": (5120,),
        "post_attention_layernorm.weight": (5120,),
    }
    return {
        "image_newline": (5120,),
        "language_model.lm_head.weight": (32064, 5120),
        "language_model.model.embed_tokens.weight": (32064, 5120),
        "language_model.model.norm.weight": (5120,),
        **{f"language_model.model.layers.{i}.{name}": shape for i in range(40) for name, shape in layer.items()},
        **{f"multi_modal_projector.linear_{i}.weight": (5120, 1024 if i == 1 else 5120) for i in (1, 2)},
        **{f"multi_modal_projector.linear_{i}.bias": (5120,) for i in (1, 2)},
        **{f"vision_tower.vision_model.{name}": shape for name, shape in CLIP.items()},
    }


@pytest.mark.parametrize(
    ("model_type", "published", "count", "renames", "unused"),
    [
        (
            "phi3_v",
            phi_tensors(),
            592,
            [(r"^model\.", "")],
            # The head, and what of the tower comes after the layer that features are taken from.
            r"^lm_head\.|vision_model\.encoder\.layers\.23\.|vision_model\.post_layernorm\.",
        ),
        ("qwen2_5_vl", qwen_tensors(), 729, [(r"^model\.", "language_model.")], r"^lm_head\."),
        (
            "llava_next",
            llava_tensors(),
            759,
            [(r"^language_model\.model\.", "language_model."), (r"^vision_tower\.vision_model\.", "vision_tower.")],
            r"^language_model\.lm_head\.",
        ),
    ],
)
def test_published_tensors(model_type, published, count, renames, unused):
    assert len(published) == count
    backbone = random_backbone(model_type, "full", "meta", torch.bfloat16)
    own = {name: tuple(value.shape) for name, value in backbone.model.state_dict().items()}
    mapped = {}
    for name, shape in published.items():
        if re.search(unused, name):
            continue
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        mapped[name] = shape
    assert own == mapped


def test_published_head():
    reward = random_reward("phi3_v", "full", device="meta", dtype=torch.bfloat16)
    shapes = {name: tuple(value.shape) for name, value in reward.head.state_dict().items()}
    assert shapes == {
        "W_q.weight": (3072, 3072),
        "W_k.weight": (3072, 3072),
        "W_v.weight": (3072, 3072),
        "ca_layernorm.weight": (3072,),
        "value_head.weight": (1, 3072),
    }
    assert reward.backbone.text_model.rotary_emb.attention_scaling == pytest.approx(1.190238, abs=1e-6)
    gpm = RewardConfig("general-preference", value_head_dim=4, add_cross_attention=False)
    reward = random_reward("phi3_v", "full", gpm, device="meta")
    assert {name: tuple(value.shape) for name, value in reward.head.state_dict().items()} == {
        "value_head.weight": (4, 3072)
    }


LAYOUTS = [
    # (w, h), size after scaling, padding (left, top, right, bottom), crops' (height, width) in pixels, crops, tokens
    ((512, 512), (1344, 1344), (0, 0, 0, 0), (1344, 1344), 16, 2509),
    ((768, 768), (1344, 1344), (0, 0, 0, 0), (1344, 1344), 16, 2509),
    ((1024, 1024), (1344, 1344), (0, 0, 0, 0), (1344, 1344), 16, 2509),
    ((640, 512), (1344, 1075), (0, 134, 0, 135), (1344, 1344), 16, 2509),
    ((512, 640), (1075, 1344), (134, 0, 135, 0), (1344, 1344), 16, 2509),
    ((1024, 768), (1344, 1008), (0, 0, 0, 0), (1008, 1344), 12, 1921),
    ((768, 1024), (1008, 1344), (0, 0, 0, 0), (1344, 1008), 12, 1933),
    ((1344, 768), (1680, 960), (0, 24, 0, 24), (1008, 1680), 15, 2353),
    ((768, 1344), (960, 1680), (24, 0, 24, 0), (1680, 1008), 15, 2377),
    ((1920, 1080), (1680, 945), (0, 31, 0, 32), (1008, 1680), 15, 2353),
    ((1000, 100), (3360, 336), (0, 0, 0, 0), (336, 3360), 10, 1609),
    ((300, 299), (1344, 1339), (0, 2, 0, 3), (1344, 1344), 16, 2509),
]


@pytest.mark.parametrize(("size", "scaled", "padding", "pixels", "crops", "tokens"), LAYOUTS)
def test_hd_layouts(size, scaled, padding, pixels, crops, tokens):
    layout = hd_layout(*size)
    assert (layout.size, layout.padding, layout.num_tokens) == (scaled, padding, tokens)
    assert layout.grid == (pixels[0] // 336, pixels[1] // 336)
    assert layout.grid[0] * layout.grid[1] == crops


def test_hd_padding_is_white():
    pixels = hd_transform(Image.new("RGB", (512, 640), (10, 20, 30)), 16)
    assert pixels.shape == (3, 1344, 1344)
    assert (pixels[:, :, :134] == 255).all()
    assert (pixels[:, :, 1344 - 135 :] == 255).all()
    assert (pixels[:, :, 134:-135] == torch.tensor([10, 20, 30])[:, None, None]).all()


@pytest.mark.parametrize("size", [(0, 5), (336 * 17 * 400, 1)])
def test_hd_layout_refuses(size):
    with pytest.raises(ValueError, match="Expected"):
        hd_layout(*size)


def test_phi_tokens():
    backbone = random_backbone("phi3_v", "tiny")
    row = backbone.prepare_row(Image.new("RGB", (512, 512)), "hi ")
    ids = row.input_ids.tolist()
    assert ids[:4] == [1, 32010, 29871, 13]
    assert ids[4 : 4 + 2509] == [-1] * 2509
    # BOS a second time, a bare blank before the newline, the prompt with its trailing blank, the end of text.
    assert ids[4 + 2509 :] == [1, 29871, 13, 3 + ord("h"), 3 + ord("i"), 29871, 32000]
    empty = backbone.prepare_row(Image.new("RGB", (512, 512)), "").input_ids.tolist()
    assert empty[4 + 2509 :] == [1, 29871, 13, 32000]


def test_qwen_tokens():
    backbone = random_backbone("qwen2_5_vl", "tiny")
    row = backbone.prepare_row(Image.new("RGB", (512, 512)), "hi")
    ids = row.input_ids.tolist()
    assert int(row.image_mask.sum()) == 18 * 18 == (504 // 28) ** 2
    assert row.image_size == (36, 36)
    assert ids[0] == 151644
    assert ids[row.image_mask.tolist().index(True) - 1] == 151652
    assert ids[-1] == 151645
    assert [token for token in ids if token == 151655] == [151655] * 324


def test_smart_size():
    assert smart_size(512, 512, PROCESSOR_PIXELS) == (504, 504)
    assert smart_size(200, 100, PROCESSOR_PIXELS) == (644, 336)
    # By qwen-vl-utils' smart_resize a side has at least 28 pixels before the area is looked at.
    assert smart_size(2000, 10, LOADING_PIXELS) == (1988, 28)
    width, height = smart_size(4000, 3000, PROCESSOR_PIXELS)
    assert width * height <= PROCESSOR_PIXELS[1]
    assert resize_twice(Image.new("RGB", (512, 512))).size == (504, 504)
    with pytest.raises(ValueError, match="200:1"):
        smart_size(201, 1, PROCESSOR_PIXELS)


def test_a_single_crop_is_the_global_view():
    """Which is why the tower sees it once."""
    pixels = torch.randint(0, 256, (3, 336, 336), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole, crop = hd_crops(pixels)
    assert torch.equal(whole, crop)
    backbone = random_backbone("phi3_v", "tiny", num_crops=1)
    inputs = backbone.prepare([Image.new("RGB", (64, 64), "red"), Image.new("RGB", (90, 64), "blue")], ["a", "b"])
    assert backbone.vision_features(inputs).shape[0] == 2
    assert inputs.image_mask.sum(1).tolist() == [313, 313]


def test_crops_follow_the_tower():
    layout = hd_layout(128, 64, 4, crop=64, side=4)
    assert (layout.size, layout.padding, layout.grid) == ((128, 64), (0, 0, 0, 0), (1, 2))
    assert layout.num_tokens == (2 + 1) * 16 + 1 + 2 * 4
    pixels = hd_transform(Image.new("RGB", (64, 128)), 4, crop=64)
    assert pixels.shape == (3, 128, 64)
    assert hd_crops(pixels, crop=64).shape == (3, 3, 64, 64)
