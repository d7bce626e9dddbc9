"""Names and shapes of the tensors in published reward checkpoints, at any size, and random weights under those names.

Sources: the code that wrote the files, THUDM/ImageReward c1392c6, tgxs002/HPSv2 866735e (open_clip),
christophschuhmann/improved-aesthetic-predictor, linzhiqiu/t2v_metrics before 74c7208, the package hpsv3 1.0.0 with
transformers 4.45.2, Kwai-Kolors/MPS be9027f as imscore 0.0.11 saves it, hjbahng/cyclereward 36e1077,
PlantPotatoOnMoon/HPSv3-PlusPlus 7bdbebc with transformers 4.57.0, HKUST-C4G/diffusion-rm af485b4 with diffusers 0.36.0
and peft 0.17.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


Shapes = dict[str, tuple[int, ...]]

MED_CONFIG = {
    "vocab_size": 30524,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "encoder_width": 1024,
}
"""What ImageReward's med_config.json says, as far as it matters."""

FLAN_T5_XXL = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_decoder_layers": 24,
    "num_heads": 64,
    "vocab_size": 32128,
    "relative_attention_num_buckets": 32,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0,
}
FLAN_T5_XL = {**FLAN_T5_XXL, "d_model": 2048, "d_ff": 5120, "num_heads": 32}


def random_weights(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Weights whose outputs differ between inputs: scales near one, the rest of a variance that keeps activations'."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        if name.endswith("logit_scale"):
            value = torch.tensor(4.6052)
        elif len(shape) == 1 and name.endswith("weight"):
            value = 1 + 0.1 * value
        elif len(shape) == 1:
            value = 0.1 * value
        elif "embed" not in name and "shared" not in name:
            value = value / value[0].numel() ** 0.5
        weights[name] = value
    return weights


def linear(name: str, out_width: int, in_width: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (out_width, in_width), **({f"{name}.bias": (out_width,)} if bias else {})}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def score_head(width: int, prefix: str = "layers") -> Shapes:
    """The five linear layers of ImageReward and of the aesthetic predictor."""
    widths = [width, 1024, 128, 64, 16, 1]
    shapes: Shapes = {}
    for place, before, after in zip((0, 2, 4, 6, 7), widths, widths[1:]):
        shapes |= linear(f"{prefix}.{place}", after, before)
    return shapes


def cycle_reward(vit: Mapping[str, Any], med: Mapping[str, Any]) -> Shapes:
    """CycleReward-Combo.pth and its siblings."""
    places, widths = (0, 2, 4, 6, 8), [med["hidden_size"], 1024, 128, 64, 16, 1]
    shapes = {name: shape for name, shape in image_reward(vit, med).items() if not name.startswith("mlp.")}
    for place, before, after in zip(places, widths, widths[1:]):
        shapes |= linear(f"mlp.layers.{place}", after, before)
    return shapes


def image_reward(vit: Mapping[str, Any], med: Mapping[str, Any]) -> Shapes:
    """ImageReward.pt."""
    width, patch = vit.get("embed_dim", 1024), vit.get("patch_size", 16)
    hidden = int(width * vit.get("mlp_ratio", 4))
    shapes: Shapes = {
        "blip.visual_encoder.cls_token": (1, 1, width),
        "blip.visual_encoder.pos_embed": (1, (vit.get("img_size", 224) // patch) ** 2 + 1, width),
        "blip.visual_encoder.patch_embed.proj.weight": (width, 3, patch, patch),
        "blip.visual_encoder.patch_embed.proj.bias": (width,),
        **norm("blip.visual_encoder.norm", width),
    }
    for block in range(vit.get("depth", 24)):
        name = f"blip.visual_encoder.blocks.{block}"
        shapes |= norm(f"{name}.norm1", width) | norm(f"{name}.norm2", width)
        shapes |= linear(f"{name}.attn.qkv", 3 * width, width) | linear(f"{name}.attn.proj", width, width)
        shapes |= linear(f"{name}.mlp.fc1", hidden, width) | linear(f"{name}.mlp.fc2", width, hidden)
    text, inner = med["hidden_size"], med["intermediate_size"]
    name = "blip.text_encoder.embeddings"
    shapes |= {
        f"{name}.position_ids": (1, med["max_position_embeddings"]),
        f"{name}.word_embeddings.weight": (med["vocab_size"], text),
        f"{name}.position_embeddings.weight": (med["max_position_embeddings"], text),
        **norm(f"{name}.LayerNorm", text),
    }
    for layer in range(med["num_hidden_layers"]):
        name = f"blip.text_encoder.encoder.layer.{layer}"
        for attention, source in (("attention", text), ("crossattention", width)):
            shapes |= linear(f"{name}.{attention}.self.query", text, text)
            shapes |= linear(f"{name}.{attention}.self.key", text, source)
            shapes |= linear(f"{name}.{attention}.self.value", text, source)
            shapes |= linear(f"{name}.{attention}.output.dense", text, text)
            shapes |= norm(f"{name}.{attention}.output.LayerNorm", text)
        shapes |= linear(f"{name}.intermediate.dense", inner, text) | linear(f"{name}.output.dense", text, inner)
        shapes |= norm(f"{name}.output.LayerNorm", text)
    shapes |= linear("blip.vision_proj", 256, width) | linear("blip.text_proj", 256, text)
    return shapes | score_head(text, "mlp.layers")


def open_clip(config: Mapping[str, Any]) -> Shapes:
    """The `state_dict` of HPS_v2_compressed.pt and HPS_v2.1_compressed.pt."""
    vision, text, embed = config["vision_cfg"], config["text_cfg"], config["embed_dim"]
    width, patch = vision["width"], vision["patch_size"]
    shapes: Shapes = {
        "positional_embedding": (text["context_length"], text["width"]),
        "text_projection": (text["width"], embed),
        "logit_scale": (),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": ((vision["image_size"] // patch) ** 2 + 1, width),
        "visual.proj": (width, embed),
        "visual.conv1.weight": (width, 3, patch, patch),
        "token_embedding.weight": (text["vocab_size"], text["width"]),
        **norm("visual.ln_pre", width),
        **norm("visual.ln_post", width),
        **norm("ln_final", text["width"]),
    }
    for prefix, tower in (("visual.transformer", vision), ("transformer", text)):
        width = tower["width"]
        for block in range(tower["layers"]):
            name = f"{prefix}.resblocks.{block}"
            shapes |= norm(f"{name}.ln_1", width) | norm(f"{name}.ln_2", width)
            shapes |= {f"{name}.attn.in_proj_weight": (3 * width, width), f"{name}.attn.in_proj_bias": (3 * width,)}
            shapes |= linear(f"{name}.attn.out_proj", width, width)
            shapes |= linear(f"{name}.mlp.c_fc", 4 * width, width) | linear(f"{name}.mlp.c_proj", width, 4 * width)
    return shapes


def clip_vision(config: Mapping[str, Any], prefix: str) -> Shapes:
    """The vision model of a `CLIPModel` checkpoint."""
    width, inner, patch = config["hidden_size"], config["intermediate_size"], config["patch_size"]
    shapes: Shapes = {
        f"{prefix}embeddings.class_embedding": (width,),
        f"{prefix}embeddings.patch_embedding.weight": (width, 3, patch, patch),
        f"{prefix}embeddings.position_embedding.weight": ((config["image_size"] // patch) ** 2 + 1, width),
        **norm(f"{prefix}pre_layrnorm", width),
        **norm(f"{prefix}post_layernorm", width),
    }
    for layer in range(config["num_hidden_layers"]):
        name = f"{prefix}encoder.layers.{layer}"
        shapes |= norm(f"{name}.layer_norm1", width) | norm(f"{name}.layer_norm2", width)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{name}.self_attn.{part}", width, width)
        shapes |= linear(f"{name}.mlp.fc1", inner, width) | linear(f"{name}.mlp.fc2", width, inner)
    return shapes


def clip_flant5(config: Mapping[str, Any], vision: Mapping[str, Any]) -> Shapes:
    """The shards of clip-flant5, together."""
    width, attention = config["d_model"], config["d_kv"] * config["num_heads"]
    buckets = (config["relative_attention_num_buckets"], config["num_heads"])
    shapes: Shapes = {
        "shared.weight": (config["vocab_size"], width),
        "lm_head.weight": (config["vocab_size"], width),
        **linear("mm_projector.0", width, vision["hidden_size"]),
        **linear("mm_projector.2", width, width),
        **clip_vision(vision, "vision_tower.vision_tower.vision_model."),
    }
    stacks = (
        ("encoder", config["num_layers"], ["SelfAttention"]),
        ("decoder", config["num_decoder_layers"], ["SelfAttention", "EncDecAttention"]),
    )
    for stack, layers, attentions in stacks:
        shapes[f"{stack}.embed_tokens.weight"] = (config["vocab_size"], width)
        shapes[f"{stack}.final_layer_norm.weight"] = (width,)
        shapes[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = buckets
        for layer in range(layers):
            for place, kind in enumerate(attentions):
                name = f"{stack}.block.{layer}.layer.{place}"
                shapes[f"{name}.layer_norm.weight"] = (width,)
                shapes |= {f"{name}.{kind}.{part}.weight": (attention, width) for part in "qkv"}
                shapes[f"{name}.{kind}.o.weight"] = (width, attention)
            name = f"{stack}.block.{layer}.layer.{len(attentions)}"
            shapes[f"{name}.layer_norm.weight"] = (width,)
            shapes |= {f"{name}.DenseReluDense.wi_{part}.weight": (config["d_ff"], width) for part in "01"}
            shapes[f"{name}.DenseReluDense.wo.weight"] = (width, config["d_ff"])
    return shapes


def rank_head(width: int, prefix: str = "rm_head") -> Shapes:
    """The three linear layers of HPSv3 and HPSv3++."""
    return linear(f"{prefix}.0", 1024, width) | linear(f"{prefix}.3", 16, 1024) | linear(f"{prefix}.5", 2, 16)


def qwen2_vl(config: Mapping[str, Any]) -> Shapes:
    """A Qwen2-VL as transformers named its tensors up to 4.51."""
    text, vision = config["text_config"], config["vision_config"]
    width, inner, out = vision["embed_dim"], 4 * vision["embed_dim"], vision["hidden_size"]
    merged = 4 * width
    shapes: Shapes = {
        "visual.patch_embed.proj.weight": (width, 3, 2, 14, 14),
        **norm("visual.merger.ln_q", width),
        **linear("visual.merger.mlp.0", merged, merged),
        **linear("visual.merger.mlp.2", out, merged),
    }
    for block in range(vision["depth"]):
        name = f"visual.blocks.{block}"
        shapes |= norm(f"{name}.norm1", width) | norm(f"{name}.norm2", width)
        shapes |= linear(f"{name}.attn.qkv", 3 * width, width) | linear(f"{name}.attn.proj", width, width)
        shapes |= linear(f"{name}.mlp.fc1", inner, width) | linear(f"{name}.mlp.fc2", width, inner)
    return shapes | qwen_text(text, "model", bias=True) | {"lm_head.weight": (text["vocab_size"], text["hidden_size"])}


def qwen_text(text: Mapping[str, Any], prefix: str, bias: bool) -> Shapes:
    """The language model of a Qwen-VL.

    Args:
        bias: of queries, keys and values, as Qwen2 has it; without, they are normalised, as in Qwen3.
    """
    width, inner, heads = text["hidden_size"], text["intermediate_size"], text["num_attention_heads"]
    size = text.get("head_dim", width // heads)
    shapes: Shapes = {f"{prefix}.embed_tokens.weight": (text["vocab_size"], width), f"{prefix}.norm.weight": (width,)}
    for layer in range(text["num_hidden_layers"]):
        name = f"{prefix}.layers.{layer}"
        shapes |= linear(f"{name}.self_attn.q_proj", heads * size, width, bias)
        for part in "kv":
            shapes |= linear(f"{name}.self_attn.{part}_proj", text["num_key_value_heads"] * size, width, bias)
        shapes |= linear(f"{name}.self_attn.o_proj", width, heads * size, bias=False)
        if not bias:
            shapes |= {f"{name}.self_attn.{part}_norm.weight": (size,) for part in "qk"}
        shapes |= {f"{name}.mlp.{part}_proj.weight": (inner, width) for part in ("gate", "up")}
        shapes[f"{name}.mlp.down_proj.weight"] = (width, inner)
        shapes |= {f"{name}.{part}_layernorm.weight": (width,) for part in ("input", "post_attention")}
    return shapes


def hpsv3(config: Mapping[str, Any]) -> Shapes:
    """HPSv3.safetensors."""
    return qwen2_vl(config) | rank_head(config["text_config"]["hidden_size"])


def clip(config: Mapping[str, Any], prefix: str) -> Shapes:
    """A `CLIPModel` of an open_clip configuration, as transformers names its tensors."""
    vision, text, embed = config["vision_cfg"], config["text_cfg"], config["embed_dim"]
    sizes = {"image_size": vision["image_size"], "patch_size": vision["patch_size"]}
    shapes = clip_vision(
        {**sizes, "hidden_size": vision["width"], "intermediate_size": 4 * vision["width"],
         "num_hidden_layers": vision["layers"]},
        f"{prefix}vision_model.",
    )  # fmt: skip
    width = text["width"]
    shapes |= {
        f"{prefix}logit_scale": (),
        f"{prefix}text_model.embeddings.token_embedding.weight": (text["vocab_size"], width),
        f"{prefix}text_model.embeddings.position_embedding.weight": (text["context_length"], width),
        f"{prefix}visual_projection.weight": (embed, vision["width"]),
        f"{prefix}text_projection.weight": (embed, width),
        **norm(f"{prefix}text_model.final_layer_norm", width),
    }
    for layer in range(text["layers"]):
        name = f"{prefix}text_model.encoder.layers.{layer}"
        shapes |= norm(f"{name}.layer_norm1", width) | norm(f"{name}.layer_norm2", width)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{name}.self_attn.{part}", width, width)
        shapes |= linear(f"{name}.mlp.fc1", 4 * width, width) | linear(f"{name}.mlp.fc2", width, 4 * width)
    return shapes


def mps(config: Mapping[str, Any], heads: int = 16, layers: int = 4, size: int = 64) -> Shapes:
    """model.safetensors of RE-N-Y/mpsv1.

    Args:
        config: of the CLIP, as open_clip has it.
        heads, layers, size: of the attention that follows.
    """
    width, inner = config["embed_dim"], heads * size
    shapes = clip(config, "mps.model.")
    for layer in range(layers):
        cross, among = (f"mps.cross_model.layers.{layer}.{part}.fn" for part in (0, 1))
        for name in (cross, among):
            shapes |= norm(f"{name}.norm", width)
        shapes |= linear(f"{cross}.to_q", inner, width, bias=False) | linear(f"{cross}.to_kv", 2 * size, width, False)
        shapes |= linear(f"{cross}.to_out", width, inner, bias=False)
        shapes |= linear(f"{cross}.ff.0", 8 * width, width, False) | linear(f"{cross}.ff.2", width, 4 * width, False)
        shapes[f"{among}.rotary_emb.inv_freq"] = (size // 2,)
        shapes |= linear(f"{among}.fused_attn_ff_proj", inner + 2 * size + 8 * width, width, bias=False)
        shapes |= linear(f"{among}.attn_out", width, inner, bias=False)
        shapes |= linear(f"{among}.ff_out.1", width, 4 * width, bias=False)
    return shapes


def qwen3_vl(config: Mapping[str, Any]) -> Shapes:
    """A Qwen3-VL as transformers names its tensors."""
    text, vision = config["text_config"], {**QWEN3_VISION, **config["vision_config"]}
    width, inner, out = vision["hidden_size"], vision["intermediate_size"], vision["out_hidden_size"]
    merged = 4 * width
    shapes: Shapes = {
        "model.visual.patch_embed.proj.weight": (width, 3, 2, 16, 16),
        "model.visual.patch_embed.proj.bias": (width,),
        "model.visual.pos_embed.weight": (vision["num_position_embeddings"], width),
    }
    for block in range(vision["depth"]):
        name = f"model.visual.blocks.{block}"
        shapes |= norm(f"{name}.norm1", width) | norm(f"{name}.norm2", width)
        shapes |= linear(f"{name}.attn.qkv", 3 * width, width) | linear(f"{name}.attn.proj", width, width)
        shapes |= linear(f"{name}.mlp.linear_fc1", inner, width) | linear(f"{name}.mlp.linear_fc2", width, inner)
    deep = [f"deepstack_merger_list.{place}" for place in range(len(vision["deepstack_visual_indexes"]))]
    for merger in ("merger", *deep):
        name = f"model.visual.{merger}"
        shapes |= norm(f"{name}.norm", width if merger == "merger" else merged)
        shapes |= linear(f"{name}.linear_fc1", merged, merged) | linear(f"{name}.linear_fc2", out, merged)
    shapes |= qwen_text(text, "model.language_model", bias=False)
    return shapes | {"lm_head.weight": (text["vocab_size"], text["hidden_size"])}


QWEN3_VISION = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [8, 16, 24],
}
"""Of Qwen3-VL-8B."""


def hpsv3_plus(config: Mapping[str, Any], condition: int = 256) -> Shapes:
    """hpsv3++.pth."""
    width = config["text_config"]["hidden_size"]
    shapes = qwen3_vl(config) | rank_head(width)
    shapes |= linear("cond_encoder.0", condition, 2) | linear("cond_encoder.2", condition, condition)
    shapes |= linear("film_gen.0", width, condition) | linear("film_gen.2", 2 * width, width)
    shapes |= linear("cap_encoder.proj", condition, width)
    return shapes | linear("cap_encoder.pool_attn", 1, condition) | linear("cap_encoder.out_proj", 1, condition)


SD3_MEDIUM: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 384,
    "dual_attention_layers": list(range(13)),
    "qk_norm": "rms_norm",
}
"""The transformer of Stable Diffusion 3.5 medium."""

DINA_LRM: dict[str, Any] = {
    "model": {
        "backbone_model_id": "stabilityai/stable-diffusion-3.5-medium",
        "num_transformer_layers": 12,
        "freeze_backbone": False,
        "use_lora": True,
        "lora_config": {"r": 64, "lora_alpha": 128, "init_lora_weights": "gaussian"},
        "use_logistic": False,
        "visual_head_idx": [4, 8, 12],
        "text_head_idx": [4, 8, 12],
        "use_text_features": True,
        "use_t_embed": True,
        "reward_head": {
            "use_proj_in": False,
            "width": -1,
            "out_dim": 1,
            "num_queries": 4,
            "num_attn_heads": 8,
            "dropout": 0.0,
        },
    },
    "training": {"add_noise": True},
}
"""What the published config.json says, as far as it matters."""


TINY_SD3: dict[str, Any] = {
    "sample_size": 8,
    "patch_size": 1,
    "in_channels": 4,
    "num_layers": 4,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 64,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 64,
    "out_channels": 4,
    "pos_embed_max_size": 24,
    "dual_attention_layers": [0, 1],
    "qk_norm": "rms_norm",
}
"""Of the form of `SD3_MEDIUM`, and the widths of `fk_steer.testing.sd3`."""

TINY_DINA_LRM: dict[str, Any] = {
    **DINA_LRM,
    "model": {
        **DINA_LRM["model"],
        "num_transformer_layers": 3,
        "lora_config": {"r": 2, "lora_alpha": 4, "init_lora_weights": "gaussian"},
        "visual_head_idx": [1, 2, 3],
        "text_head_idx": [2, 3],
    },
}


def sd3_transformer(config: Mapping[str, Any]) -> Shapes:
    """diffusion_pytorch_model.safetensors of a Stable Diffusion 3.5."""
    size = config["attention_head_dim"]
    width, patch = size * config["num_attention_heads"], config["patch_size"]
    shapes: Shapes = {
        "pos_embed.pos_embed": (1, config["pos_embed_max_size"] ** 2, width),
        "pos_embed.proj.weight": (width, config["in_channels"], patch, patch),
        "pos_embed.proj.bias": (width,),
        **linear("time_text_embed.timestep_embedder.linear_1", width, 256),
        **linear("time_text_embed.timestep_embedder.linear_2", width, width),
        **linear("time_text_embed.text_embedder.linear_1", width, config["pooled_projection_dim"]),
        **linear("time_text_embed.text_embedder.linear_2", width, width),
        **linear("context_embedder", config["caption_projection_dim"], config["joint_attention_dim"]),
        **linear("norm_out.linear", 2 * width, width),
        **linear("proj_out", patch**2 * config["out_channels"], width),
    }
    for layer in range(config["num_layers"]):
        name, last = f"transformer_blocks.{layer}", layer == config["num_layers"] - 1
        dual = layer in config["dual_attention_layers"]
        shapes |= linear(f"{name}.norm1.linear", (9 if dual else 6) * width, width)
        shapes |= linear(f"{name}.norm1_context.linear", (2 if last else 6) * width, width)
        parts = {"attn": ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj"]}
        parts["attn"] += [] if last else ["to_add_out"]
        norms = {"attn": ["norm_q", "norm_k", "norm_added_q", "norm_added_k"]}
        if dual:
            parts["attn2"], norms["attn2"] = parts["attn"][:4], norms["attn"][:2]
        for attention in parts:
            for part in parts[attention]:
                shapes |= linear(f"{name}.{attention}.{part}", width, width)
            shapes |= {f"{name}.{attention}.{part}.weight": (size,) for part in norms[attention]}
        for part in ["ff"] if last else ["ff", "ff_context"]:
            shapes |= linear(f"{name}.{part}.net.0.proj", 4 * width, width)
            shapes |= linear(f"{name}.{part}.net.2", width, 4 * width)
    return shapes


def dina_lora(config: Mapping[str, Any], transformer: Mapping[str, Any]) -> Shapes:
    """checkpoint/backbone_lora/adapter_model.safetensors.

    Args:
        config: config.json.
        transformer: configuration of the whole one.
    """
    layers, rank = config["model"]["num_transformer_layers"], config["model"]["lora_config"]["r"]
    shapes: Shapes = {}
    for name, shape in sd3_transformer(transformer).items():
        block, attention, _ = ([*name.split("."), "", ""])[1:4]
        if attention.startswith("attn") and len(shape) == 2 and int(block) < layers:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            shapes |= {f"{module}.lora_A.weight": (rank, shape[1]), f"{module}.lora_B.weight": (shape[0], rank)}
    return shapes


def dina_head(config: Mapping[str, Any], transformer: Mapping[str, Any]) -> Shapes:
    """checkpoint/rm_head.pt; see `dina_lora`."""
    model = config["model"]
    width = transformer["attention_head_dim"] * transformer["num_attention_heads"]
    shapes: Shapes = {"query_tokens": (1, model["reward_head"]["num_queries"], width)}
    for kind, places in (("visual", model["visual_head_idx"]), ("text", model["text_head_idx"])):
        for place in range(len(places)):
            name = f"layer_adapters_{kind}.{place}"
            shapes[f"{name}.layer_embed"] = (1, 1, width)
            shapes |= linear(f"{name}.cond_mlp.0", 2 * width, width) | linear(
                f"{name}.cond_mlp.2", 2 * width, 2 * width
            )
            shapes |= linear(f"{name}.proj", width // 4, width)
        shapes |= linear(f"agg_{kind}", width, len(places) * (width // 4))
    for name in ("attn1", "attn2"):
        kinds = ["vis", "text"] if name == "attn1" else ["vis"]
        shapes |= {f"{name}.norm_{one}.weight": (width,) for one in ("qvt" if name == "attn1" else "qv")}
        for part in ["to_q", "to_out.0", *(f"to_{one}_{kind}" for kind in kinds for one in "kv")]:
            shapes |= linear(f"{name}.{part}", width, width)
    for kind in ("vis", "text"):
        shapes |= linear(f"attn1.gate_{kind}.0", width, width) | linear(f"attn1.gate_{kind}.2", 1, width)
    shapes["norm_ff.weight"] = (width,)
    return shapes | linear("ff.0", 4 * width, width) | linear("ff.2", width, 4 * width) | linear("head", 1, width)


def sd3_weights(config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Random weights of `sd3_transformer`, those of the embeddings scaled like others."""
    weights = random_weights(sd3_transformer(config))
    for name, value in weights.items():
        if "embed" in name and name.endswith("weight"):
            weights[name] = value / value[0].numel() ** 0.5
    return weights


def adapter_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """adapter_config.json beside `dina_lora`, as far as it matters."""
    attention = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
    return {"peft_type": "LORA", "bias": "none", "target_modules": attention, **config["model"]["lora_config"]}


def dina_inputs() -> dict[str, Tensor]:
    """What golden rewards of a `TINY_DINA_LRM` are for: three latents, their texts, and noise (1, 4, 8, 8)."""
    drawn = torch.Generator().manual_seed(1)
    shapes = {"latents": (3, 4, 8, 8), "words": (3, 7, 64), "pooled": (3, 64)}
    inputs = {name: torch.randn(shape, generator=drawn) for name, shape in shapes.items()}
    # The first draw of the reward itself.
    return {**inputs, "noise": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))}
