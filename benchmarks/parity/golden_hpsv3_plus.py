"""Golden scores of HPSv3++'s own code (PlantPotatoOnMoon/HPSv3-PlusPlus) on small random weights."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.parity.shared import (
    CASES,
    QWEN_MARKS,
    ask_in_our_words,
    checkpoints,
    image,
    save_tokenizer,
    stand_in,
    write,
)


TINY: dict[str, Any] = {
    "text_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rms_norm_eps": 1e-6,
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
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    },
}


def main() -> None:
    """Score the cases with the original class, processor and messages: together, one by one, and at an iteration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="Folder of the repository.")
    parser.add_argument("--out", type=Path, required=True, help="Folder for the golden files.")
    options = parser.parse_args()
    # First, as transformers would take the stand-ins for the libraries.
    from transformers import Qwen2TokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration  # noqa: F401
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    stand_in("torchvision", "torchvision.io", "torchvision.transforms", "torchvision.transforms.functional", "pandas")
    stand_in("hpsv3.trainer.common", "hpsv3.utils.parser")
    sys.path.insert(0, str(options.source))
    from hpsv3.inference import HPSv3RewardInferencer
    from hpsv3.model.qwen3vl_rm import Qwen3VLRewardModelFiLMHybrid

    torch.set_num_threads(1)
    save_tokenizer(options.out, ask_in_our_words(options.out))
    tokenizer = Qwen2TokenizerFast.from_pretrained(options.out, padding_side="right")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|Reward|>"]})
    marks = dict(zip(QWEN_MARKS, tokenizer.convert_tokens_to_ids(QWEN_MARKS)))
    ids = {
        "image_token_id": marks["<|image_pad|>"],
        "video_token_id": marks["<|video_pad|>"],
        "vision_start_token_id": marks["<|vision_start|>"],
        "vision_end_token_id": marks["<|vision_end|>"],
    }
    (options.out / "config.json").write_text(json.dumps({"model_type": "qwen3_vl", **TINY, **ids}, indent=1))
    text = {name: value for name, value in TINY["text_config"].items() if name != "rope_parameters"}
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    text |= {"rope_theta": 5e6, "rope_scaling": rope, "vocab_size": len(tokenizer)}
    config = Qwen3VLConfig(text_config=text, vision_config=TINY["vision_config"], **ids)
    config.pad_token_id = marks["<|endoftext|>"]
    config._attn_implementation = "eager"
    model = Qwen3VLRewardModelFiLMHybrid(
        config, output_dim=2, reward_token="special", rm_head_type="ranknet",
        special_token_ids=tokenizer.convert_tokens_to_ids(["<|Reward|>"]),
    )  # fmt: skip
    published = checkpoints()
    sizes = {**TINY, "text_config": {**TINY["text_config"], "vocab_size": len(tokenizer)}}
    model.load_state_dict(published.random_weights(published.hpsv3_plus(sizes)), strict=True)
    original = HPSv3RewardInferencer.__new__(HPSv3RewardInferencer)
    original.model, original.device, original.use_special_tokens = model.float().eval(), "cpu", True
    pixels = Qwen2VLImageProcessor(
        patch_size=16, min_pixels=65536, max_pixels=16777216, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    original.processor = Processor(pixels, tokenizer, marks["<|image_pad|>"])
    images, prompts = [image(name) for name, _ in CASES], [prompt for _, prompt in CASES]
    found = {
        "together": original.reward(prompts, images)[:, 0],
        "alone": torch.cat([original.reward([prompt], [one])[:, 0] for prompt, one in zip(prompts, images)]),
        "alone at 0.5": torch.cat(
            [original.reward([prompt], [one], iter_step=0.5)[:, 0] for prompt, one in zip(prompts, images)]
        ),
    }
    scores = [
        {"image": name, "prompt": prompt, **{way: values[index].item() for way, values in found.items()}}
        for index, (name, prompt) in enumerate(CASES)
    ]
    packages = {"transformers": transformers.__version__, "torch": torch.__version__}
    write(options.out, "PlantPotatoOnMoon/HPSv3-PlusPlus 7bdbebc", packages, scores)


class Processor:
    """What Qwen3-VL's processor makes of one image and one text per chat; its own class needs torchvision."""

    def __init__(self, pixels: Any, tokenizer: Any, image_token: int) -> None:
        self.pixels, self.tokenizer, self.image_token = pixels, tokenizer, image_token

    def apply_chat_template(self, chats: list, tokenize: bool, add_generation_prompt: bool) -> list[str]:
        """The text of each chat."""
        return [
            "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
            + chat[0]["content"][1]["text"]
            + "<|im_end|>\n<|im_start|>assistant\n"
            for chat in chats
        ]

    def __call__(self, text: list[str], images: list, **_: object) -> dict[str, torch.Tensor]:
        """Tokens and patches."""
        vision = self.pixels(images=images, return_tensors="pt")
        counts = (vision["image_grid_thw"].prod(1) // 4).tolist()
        filled = [one.replace("<|image_pad|>", "<|image_pad|>" * count) for one, count in zip(text, counts)]
        return {**self.tokenizer(filled, padding=True, return_tensors="pt"), **vision}


if __name__ == "__main__":
    main()
