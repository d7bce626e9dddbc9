"""Golden scores of HPSv3's own code, `hpsv3` 1.0.0, on small random weights."""

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
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
    },
    "vision_config": {"depth": 2, "embed_dim": 16, "num_heads": 2, "hidden_size": 32},
}


def main() -> None:
    """Score the cases with the original class, processor and messages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="Folder that holds the package hpsv3.")
    parser.add_argument("--out", type=Path, required=True, help="Folder for the golden files.")
    options = parser.parse_args()
    stand_in("torchvision", "torchvision.io", "torchvision.transforms", "torchvision.transforms.functional")
    stand_in("datasets", "peft", "trl", "matplotlib", "matplotlib.pyplot", "matplotlib.patches", "pandas")
    stand_in("torch.utils.tensorboard", "transformers.trainer", "transformers.trainer_pt_utils")
    stand_in("transformers.trainer_callback", "transformers.training_args")
    stand_in("hpsv3.train", "hpsv3.utils.parser", "hpsv3.utils.training_utils")
    sys.path.insert(0, str(options.source))
    from hpsv3.inference import HPSv3RewardInferencer
    from hpsv3.model.qwen2vl_trainer import Qwen2VLRewardModelBT
    from transformers import Qwen2TokenizerFast, Qwen2VLConfig, Qwen2VLImageProcessor, Qwen2VLProcessor

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
    (options.out / "config.json").write_text(json.dumps({"model_type": "qwen2_vl", **TINY, **ids}, indent=1))
    text = {name: value for name, value in TINY["text_config"].items() if name != "rope_parameters"}
    config = Qwen2VLConfig(
        **text, **ids, vision_config=TINY["vision_config"], vocab_size=len(tokenizer), rope_theta=1e6,
        rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]}, pad_token_id=marks["<|endoftext|>"],
    )  # fmt: skip
    config._attn_implementation = "eager"
    model = Qwen2VLRewardModelBT(
        config, output_dim=2, reward_token="special", rm_head_type="ranknet",
        special_token_ids=tokenizer.convert_tokens_to_ids(["<|Reward|>"]),
    )  # fmt: skip
    published = checkpoints()
    sizes = {**TINY, "text_config": {**TINY["text_config"], "vocab_size": len(tokenizer)}}
    model.load_state_dict(published.random_weights(published.hpsv3(sizes)), strict=True)
    original = HPSv3RewardInferencer.__new__(HPSv3RewardInferencer)
    original.model, original.device, original.use_special_tokens = model.float().eval(), "cpu", True
    original.processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(min_pixels=3136, max_pixels=12845056), tokenizer, chat_template=CHAT_TEMPLATE
    )
    with torch.no_grad():
        rewards = original.reward([image(name) for name, _ in CASES], [prompt for _, prompt in CASES])
    scores = [
        {"image": name, "prompt": prompt, "mean": mean.item(), "spread": spread.item()}
        for (name, prompt), (mean, spread) in zip(CASES, rewards)
    ]
    packages = {"hpsv3": "1.0.0", "transformers": transformers.__version__, "torch": torch.__version__}
    write(options.out, "MizzenAI/HPSv3", packages, scores)


CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a "
    "helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}"
    "{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""What Qwen2-VL's own template makes of one image and one text."""


if __name__ == "__main__":
    main()
