"""Rewards without trained weights: a fresh perspective to train, and whole models with random weights to test and time,
which need no download."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor, nn
from transformers import LlavaNextConfig, LlavaNextModel, Qwen2_5_VLConfig, Qwen2_5_VLModel

from . import lora
from .attention import check_attention
from .backbones import Backbone
from .backbones.llava_next import LlavaNext
from .backbones.phi3v import Phi3V, Phi3VConfig, Phi3VModel
from .backbones.qwen2_5_vl import Qwen25VL
from .backbones.text import TextTokenizer
from .checkpoint import Checkpoint
from .config import RewardConfig
from .head import RewardHead
from .lora import Adapter
from .model import LlavaReward


_PHI = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32064,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "sliding_window": 262144,
}
_QWEN_TEXT: dict[str, Any] = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
_QWEN_VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
_VICUNA: dict[str, Any] = {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "vocab_size": 32064,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 32001,
}
_CLIP = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]

_TINY_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
_TINY_CLIP = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
_TINY_QWEN = {
    "fullatt_block_indexes": [2],
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 64,
}

SIZES = ("full", "tiny")


def random_backbone(
    model_type: str = "phi3_v",
    size: str = "full",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    attn_implementation: str = "sdpa",
    num_crops: int = 16,
) -> Backbone:
    """A backbone with random weights and a tokenizer of single bytes, in which special tokens have their real ids.

    Args:
        model_type: 'phi3_v', 'qwen2_5_vl' or 'llava_next'.
        size: 'full' for that of Phi-3.5-vision, Qwen2.5-VL-7B or LLaVA-v1.6-vicuna-13b, 'tiny' for tests.
        device: 'meta' builds the structure without memory.

    Raises:
        ImportError: if an implementation of attention needs a package that is not installed.
        ValueError: for an unknown type, size or implementation of attention.
    """
    check_attention(attn_implementation)
    if size not in SIZES:
        raise ValueError(f"Unknown size {size!r}. Known: {', '.join(SIZES)}.")
    tiny = size == "tiny"

    def build(kind: Any, config: Any) -> Any:
        with torch.device(device):
            return kind._from_config(config, dtype=dtype, attn_implementation=attn_implementation)

    if model_type == "phi3_v":
        vision = {**(_TINY_CLIP if tiny else _CLIP), "image_size": 336, "patch_size": 14, "hidden_act": "quick_gelu"}
        text: dict[str, Any] = {**_PHI, **(_TINY_TEXT if tiny else {})}
        # The published factors belong to the weights; random ones do with none.
        ones = [1.0] * (text["hidden_size"] // text["num_attention_heads"] // 2)
        rope = {"type": "su", "short_factor": ones, "long_factor": ones}
        phi = Phi3VConfig(**text, rope_scaling=rope, vision_config=vision)
        return Phi3V(build(Phi3VModel, phi), _llama_tokenizer(_PHI_TOKENS), num_crops)
    if model_type == "qwen2_5_vl":
        text = {**_QWEN_TEXT, **(_TINY_TEXT if tiny else {})}
        if tiny:
            text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 2, 2]}
        qwen = Qwen2_5_VLConfig(text_config=text, vision_config=_TINY_QWEN if tiny else _QWEN_VISION)
        return Qwen25VL(build(Qwen2_5_VLModel, qwen), _qwen_tokenizer())
    if model_type == "llava_next":
        side = 56 if tiny else 336
        llava = LlavaNextConfig(
            text_config={"model_type": "llama", **_VICUNA, **(_TINY_TEXT if tiny else {})},
            vision_config={
                "model_type": "clip_vision_model",
                **(_TINY_CLIP if tiny else _CLIP),
                "image_size": side,
                "patch_size": 14,
                "hidden_act": "quick_gelu",
            },
            image_grid_pinpoints=[[h * side // 336, w * side // 336] for h, w in _PINPOINTS],
            image_token_index=32000,
        )
        return LlavaNext(build(LlavaNextModel, llava), _llama_tokenizer({"<image>": 32000, "<pad>": 32001}))
    raise ValueError(f"Unknown backbone {model_type!r}. Known: phi3_v, qwen2_5_vl, llava_next.")


def random_reward(
    model_type: str = "phi3_v",
    size: str = "full",
    config: RewardConfig | None = None,
    seed: int = 0,
    batch_size: int = 4,
    **options: Any,
) -> LlavaReward:
    """A whole LLaVA-Reward with random weights, its LoRA merged as after `from_pretrained`: what it costs is real, what
    it says is not.

    Args:
        config: of the head; None for SkipCA with a Bradley-Terry head where the backbone has SkipCA.
        **options: of `random_backbone`.
    """
    torch.manual_seed(seed)
    reward = LlavaReward(random_backbone(model_type, size, **options).requires_grad_(False), batch_size)
    config = config or RewardConfig(add_cross_attention=reward.backbone.supports_skip_ca)
    new_perspective(reward, "default", config, rank=0)
    return reward.eval()


def save_backbone(backbone: Backbone, folder: str | Path, state_dict: Mapping[str, Tensor] | None = None) -> str:
    """Save a backbone with its tokenizer where `load_backbone` finds it, under the published names.

    Args:
        state_dict: of its model, gathered from the processes it is sharded over; None for its own.
    """
    state = backbone.model.state_dict() if state_dict is None else dict(state_dict)
    if backbone.model_type == "phi3_v":
        Path(folder).mkdir(parents=True, exist_ok=True)
        weights = {f"model.{name}": value.contiguous() for name, value in state.items()}
        # Published, and of no use to the reward.
        weights["lm_head.weight"] = torch.zeros(1, backbone.hidden_size)
        save_file(weights, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        backbone.model.config.save_pretrained(folder)
    else:
        backbone.model.save_pretrained(folder, state_dict=state)
    backbone.tokenizer.save(str(Path(folder) / "tokenizer.json"))
    return str(folder)


def new_perspective(
    reward: LlavaReward,
    name: str,
    config: RewardConfig,
    rank: int = 128,
    alpha: int = 256,
    dropout: float = 0.05,
    targets: tuple[str, ...] | None = None,
    vision: bool = False,
) -> None:
    """Add an untrained perspective and make it active: LoRA on the text model, a projector of its own, a fresh head.

    The defaults are the paper's. LoRA's B begins at zero, so that the backbone begins as it is.

    Args:
        rank: 0 for none.
        targets: last parts of the names of the layers to adapt; None for all linear ones.
        vision: adapt the vision tower too.
    """
    backbone = reward.backbone
    (text,) = (path for path, module in backbone.model.named_modules() if module is backbone.text_model)
    layers = f"{text}.layers." if text else "layers."
    weights = {}
    for inside in (True, False) if vision else (True,):
        for path, module in backbone.model.named_modules():
            # An adapted layer has the linear one inside.
            linear = isinstance(module, nn.Linear) and "lora_" not in path
            path = path.removesuffix(".base_layer")
            wanted = targets is None or path.rpartition(".")[2] in targets
            if not rank or not linear or not wanted or path.startswith(layers) != inside:
                continue
            if path.startswith(f"{backbone.projector_name}."):
                # Trained as a whole.
                continue
            weights[lora.published_name(path, backbone.adapter_prefixes)] = (
                torch.randn(rank, module.in_features) / rank,
                torch.zeros(module.out_features, rank),
            )
    head = RewardHead(config, backbone.hidden_size, backbone.config.rms_norm_eps)
    prefix = backbone.projector_prefixes[0]
    projector = {prefix + key: value for key, value in backbone.projector.state_dict().items()}
    adapter = Adapter(weights, alpha, dropout) if weights else None
    reward.add_perspective(name, Checkpoint(config, head.state_dict(), projector, adapter))


_PHI_TOKENS = {
    "<|endoftext|>": 32000,
    "<|assistant|>": 32001,
    "<|system|>": 32006,
    "<|end|>": 32007,
    "<|user|>": 32010,
    "<|image|>": 32044,
}


def _llama_tokenizer(special: dict[str, int]) -> TextTokenizer:
    """Llama's scheme, its vocabulary reduced to bytes and the blank."""
    special = {"<unk>": 0, "<s>": 1, "</s>": 2, **special}
    vocabulary = {**{f"<0x{byte:02X}>": 3 + byte for byte in range(256)}, "\u2581": 29871, **special}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.add_special_tokens(list(special))
    return TextTokenizer(tokenizer)


def _qwen_tokenizer() -> TextTokenizer:
    special = {
        "<|endoftext|>": 151643,
        "<|im_start|>": 151644,
        "<|im_end|>": 151645,
        "<|vision_start|>": 151652,
        "<|vision_end|>": 151653,
        "<|image_pad|>": 151655,
    }
    alphabet = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab={**alphabet, **special}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(list(special))
    return TextTokenizer(tokenizer)
