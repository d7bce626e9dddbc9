"""Every registered reward with tiny random weights, for tests of this package and of plugins.

`TINY_REWARDS` says for each how to write a tiny checkpoint in the layout of the published one; the contract test runs
over all of them and fails for a registered reward that is not among them. A plugin's tests have a table of their own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from ..rewards import load_reward
from . import checkpoints as published
from .pipelines import DIM, PROMPTS, clip_tokenizer, save_clip
from .tokenizers import CHARACTERS, QWEN_CHAT, byte_tokenizer, character_tokenizer, qwen_ids


@dataclass(frozen=True)
class TinyReward:
    """How to make a reward for tests.

    Attributes:
        save: writes what the reward needs into a folder and returns the options of `load_reward`.
        prompts: two prompts it can score.
        takes_any_prompt: False for a reward that refuses prompts of other kinds.
        uses_prompt: False for a reward that only looks at the image.
        differentiable: False for a reward of this process that has no gradients.
    """

    save: Callable[[Path], dict[str, Any]]
    prompts: Sequence[str] = tuple(PROMPTS)
    takes_any_prompt: bool = True
    uses_prompt: bool = True
    differentiable: bool = True


def tiny_reward(key: str, folder: str | Path, tiny: TinyReward | None = None, **options: Any) -> Any:
    """The reward of a key of `TINY_REWARDS`, its checkpoint in `folder`.

    Args:
        key: the reward's name, or 'NAME:VARIANT'.
        folder: empty or absent.
        tiny: how to make it; None for what `TINY_REWARDS` says.
        **options: of `load_reward`, on top of those the checkpoint needs.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name, *variant = key.split(":")
    given = {"variant": variant[0]} if variant else {}
    saved = (tiny or TINY_REWARDS[key]).save(folder)
    return load_reward(name, **{**saved, **given, **options})


def save_hps(folder: Path) -> dict[str, Any]:
    """open_clip's names; end-of-text is the last word of the tiny vocabulary, as of the real one."""
    weights = published.random_weights(published.open_clip(_save_open_clip(folder)))
    for version in ("v2", "v2.1"):
        torch.save({"state_dict": weights}, folder / f"HPS_{version}_compressed.pt")
    return {"path": str(folder)}


def _save_open_clip(folder: Path) -> dict[str, Any]:
    """A CLIP's configuration and its tokenizer."""
    config = {
        "embed_dim": DIM,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": DIM, "head_width": 8, "patch_size": 8},
        "text_cfg": {
            "context_length": 32,
            "vocab_size": len(clip_tokenizer()),
            "width": DIM,
            "heads": 4,
            "layers": 2,
        },
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    clip_tokenizer().save_pretrained(folder)
    return config


def save_aesthetic(folder: Path) -> dict[str, Any]:
    """The predictor beside a CLIP."""
    torch.save(published.random_weights(published.score_head(DIM)), folder / "aesthetic-model.pth")
    return {"path": save_clip(folder)}


def save_image_reward(folder: Path) -> dict[str, Any]:
    """ImageReward.pt with its configurations and a vocabulary of single characters."""
    vit = {"img_size": 32, "patch_size": 8, "embed_dim": DIM, "depth": 2, "num_heads": 4}
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS, *(f"##{c}" for c in CHARACTERS)]
    sizes = {"vocab_size": len(words) + 2, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2}
    med = {**published.MED_CONFIG, **sizes, "num_attention_heads": 4, "max_position_embeddings": 40}
    (folder / "vit_config.json").write_text(json.dumps(vit))
    (folder / "med_config.json").write_text(json.dumps(med))
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.save(published.random_weights(published.image_reward(vit, med)), folder / "ImageReward.pt")
    return {"path": str(folder)}


def save_cycle_reward(folder: Path) -> dict[str, Any]:
    """The same files for each variant but for the weights, which bear the authors' names."""
    save_image_reward(folder)
    vit, med = (json.loads((folder / f"{name}_config.json").read_text()) for name in ("vit", "med"))
    med["max_position_embeddings"] = 128
    (folder / "med_config.json").write_text(json.dumps(med))
    weights = published.random_weights(published.cycle_reward(vit, med))
    for variant in ("Combo", "T2I", "I2T"):
        torch.save(weights, folder / f"CycleReward-{variant}.pth")
    return {"path": str(folder)}


def save_mps(folder: Path) -> dict[str, Any]:
    """model.safetensors with a CLIP's configuration and tokenizer."""
    config = _save_open_clip(folder)
    save_file(published.random_weights(published.mps(config, heads=2)), folder / "model.safetensors")
    return {"path": str(folder)}


def save_clip_flant5(folder: Path) -> dict[str, Any]:
    """Two shards with their index."""
    vision = {**VISION, "hidden_act": "quick_gelu"}
    sizes = {"d_model": DIM, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
    tokenizer = character_tokenizer(["<pad>", "</s>", "<unk>"], end="</s>")
    config = {**published.FLAN_T5_XL, **sizes, "vocab_size": len(tokenizer)}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "clip_t5", "vision_config": vision}))
    weights = published.random_weights(published.clip_flant5(config, vision))
    names = sorted(weights)
    index: dict[str, str] = {}
    for shard, start in enumerate((0, 1), 1):
        part = {name: weights[name] for name in names[start::2]}
        file = f"pytorch_model-{shard:05d}-of-00002.bin"
        torch.save(part, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    tokenizer.save_pretrained(folder)
    return {"path": str(folder)}


def save_qwen(folder: Path) -> dict[str, Any]:
    """As `save_pretrained` writes it, with the repetition penalty of the published generation settings."""
    tokenizer = character_tokenizer(["<|endoftext|>", "<unk>"], QWEN_CHAT)
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": DIM,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
                "bos_token_id": 0,
                "eos_token_id": 0,
            },
            vision_config={
                "depth": 2,
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_heads": 2,
                "out_hidden_size": DIM,
                "fullatt_block_indexes": [1],
            },
            **qwen_ids(tokenizer),
        )
    )
    model.generation_config.repetition_penalty = 1.05
    return _save_model(model, tokenizer, folder)


def save_qwen3(folder: Path) -> dict[str, Any]:
    """A Qwen3-VL, as `save_pretrained` writes it."""
    tokenizer = character_tokenizer(["<|endoftext|>", "<unk>"], QWEN_CHAT)
    torch.manual_seed(0)
    sizes = {**QWEN3_VL, "text_config": {**QWEN3_VL["text_config"], "vocab_size": len(tokenizer)}}
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**sizes, **qwen_ids(tokenizer)))
    return _save_model(model, tokenizer, folder)


def save_quality(folder: Path) -> dict[str, Any]:
    """A Qwen3-VL whose tokenizer has a token for each level."""
    from ..rewards.quality import LEVELS

    tokenizer = byte_tokenizer("".join(LEVELS) * 5, size=400)
    sizes = {**QWEN3_VL, "text_config": {**QWEN3_VL["text_config"], "vocab_size": len(tokenizer)}}
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**sizes, **qwen_ids(tokenizer)))
    return _save_model(model, tokenizer, folder)


def save_llava(folder: Path) -> dict[str, Any]:
    """A LLaVA with its processor."""
    tokenizer = character_tokenizer(["<pad>", "<unk>", "</s>"], ["<image>"], special_end="</s>")
    text = {"hidden_size": DIM, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**VISION),
            text_config=LlamaConfig(**text, vocab_size=len(tokenizer), max_position_embeddings=4096),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        )
    )
    side = {"height": 32, "width": 32}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=side),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="{% for message in messages %}USER: {% for part in message['content'] %}{% if part['type'] == "
        "'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT: ",
    )
    processor.save_pretrained(folder)
    return _save_model(model, tokenizer, folder)


def _save_model(model: Any, tokenizer: Any, folder: Path) -> dict[str, Any]:
    # So small that the image would not show in the answer's probability with the usual initialisation.
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data.mul_(5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"path": str(folder)}


def save_hpsv3(folder: Path) -> dict[str, Any]:
    """HPSv3.safetensors with a configuration and a tokenizer that has most of our words for the rubric."""
    from ..rewards.hpsv3 import RUBRIC

    words = byte_tokenizer(RUBRIC.own_words.text)
    config = {"model_type": "qwen2_vl", **QWEN2_VL, **qwen_ids(words)}
    (folder / "config.json").write_text(json.dumps(config))
    # One more than there are, the token of the reward.
    sizes = {**QWEN2_VL, "text_config": {**QWEN2_VL["text_config"], "vocab_size": len(words) + 1}}
    save_file(published.random_weights(published.hpsv3(sizes)), folder / "HPSv3.safetensors")
    words.save_pretrained(folder)
    return {"path": str(folder), "template": "ours"}


def save_hpsv3_plus(folder: Path) -> dict[str, Any]:
    """hpsv3++.pth with a configuration and a tokenizer."""
    from ..rewards.hpsv3_plus import RUBRIC

    words = byte_tokenizer(RUBRIC.own_words.text)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3_vl", **QWEN3_VL, **qwen_ids(words)}))
    sizes = {**QWEN3_VL, "text_config": {**QWEN3_VL["text_config"], "vocab_size": len(words) + 1}}
    torch.save(published.random_weights(published.hpsv3_plus(sizes)), folder / "hpsv3++.pth")
    words.save_pretrained(folder)
    return {"path": str(folder), "template": "ours"}


def save_dina_lrm(folder: Path) -> dict[str, Any]:
    """config.json and the folder checkpoint, and beside them the transformer of a pipeline as small as `sd3()`."""
    lora, transformer = folder / "checkpoint" / "backbone_lora", folder / "sd3" / "transformer"
    for place in (lora, transformer):
        place.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(published.TINY_DINA_LRM))
    (lora / "adapter_config.json").write_text(json.dumps(published.adapter_config(published.TINY_DINA_LRM)))
    config = {"_class_name": "SD3Transformer2DModel", **published.TINY_SD3}
    (transformer / "config.json").write_text(json.dumps(config))
    sizes = (published.TINY_DINA_LRM, published.TINY_SD3)
    save_file(published.random_weights(published.dina_lora(*sizes)), lora / "adapter_model.safetensors")
    torch.save(published.random_weights(published.dina_head(*sizes)), folder / "checkpoint" / "rm_head.pt")
    save_file(published.sd3_weights(published.TINY_SD3), transformer / "diffusion_pytorch_model.safetensors")
    return {"path": str(folder), "backbone": str(folder / "sd3")}


QWEN2_VL: dict[str, Any] = {
    "text_config": {
        "hidden_size": DIM,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
    },
    "vision_config": {"depth": 2, "embed_dim": 16, "num_heads": 2, "hidden_size": DIM},
}
QWEN3_VL: dict[str, Any] = {
    "text_config": {
        "hidden_size": DIM,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
        },
    },
    "vision_config": {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": DIM,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    },
}


def _save_clip(folder: Path) -> dict[str, Any]:
    return {"path": save_clip(folder)}


VISION = {
    "hidden_size": DIM,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


def save_llava_reward(folder: Path) -> dict[str, Any]:
    """On a Phi-3.5-vision, which sees one crop of an image beside the whole of it."""
    from llava_reward_guide import LlavaReward, RewardConfig, new_perspective
    from llava_reward_guide.untrained import random_backbone, save_backbone

    torch.manual_seed(0)
    backbone = random_backbone("phi3_v", "tiny")
    path = save_backbone(backbone, folder / "backbone")
    reward = LlavaReward(backbone)
    new_perspective(reward, "default", RewardConfig(), rank=2, alpha=4)
    reward.save_pretrained(folder / "checkpoint")
    return {"path": str(folder / "checkpoint"), "backbone": path, "num_crops": 1}


TINY_REWARDS: Mapping[str, TinyReward] = MappingProxyType(
    {
        "aesthetic": TinyReward(save_aesthetic, uses_prompt=False),
        "checklist": TinyReward(save_qwen),
        "checklist:any": TinyReward(save_llava, differentiable=False),
        "clip-score": TinyReward(_save_clip),
        "clip-score:hessel": TinyReward(_save_clip),
        "cycle-reward": TinyReward(save_cycle_reward),
        "dina-lrm": TinyReward(save_dina_lrm),
        "hps": TinyReward(save_hps),
        "llava-reward": TinyReward(save_llava_reward),
        "hps:v2": TinyReward(save_hps),
        "hpsv3": TinyReward(save_hpsv3),
        "hpsv3-plus": TinyReward(save_hpsv3_plus),
        "image-reward": TinyReward(save_image_reward),
        "mps": TinyReward(save_mps),
        "pickscore": TinyReward(_save_clip),
        "quality": TinyReward(save_quality, uses_prompt=False),
        "shapes-oracle": TinyReward(
            lambda folder: {}, prompts=("a photo of a red star", "a photo of three hearts"), takes_any_prompt=False
        ),
        "vqa-score": TinyReward(save_clip_flant5),
        "vqa-score:qwen2.5-vl-7b": TinyReward(save_qwen),
        "vqa-score:qwen3-vl-8b": TinyReward(save_qwen3),
        "vqa-score:any": TinyReward(save_llava, differentiable=False),
    }
)
"""Reward's name, or NAME:VARIANT -> how to make it. A new reward needs one entry."""
