"""UnifiedReward in this process: tiny Qwen2.5-VL and Qwen3-VL models with random weights and a byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoModelForImageTextToText,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from fk_steer.rewards import RewardError, RewardLoadError, load_reward
from fk_steer.rewards.chat import Answer, Question
from fk_steer.rewards.chat.qwen_chat import QwenChat
from fk_steer.testing import clip_tokenizer


SPECIAL = [f"<|{name}|>" for name in ["im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad"]]
REPLY = "Final Score:4"


def tokenizer() -> Qwen2Tokenizer:
    """Every byte is a token."""
    vocab = {character: index for index, character in enumerate(sorted(ByteLevel.alphabet()))}
    return Qwen2Tokenizer(vocab=vocab, merges=[], extra_special_tokens=SPECIAL)


def ids_of(words: Qwen2Tokenizer) -> dict[str, int]:
    return dict(zip(SPECIAL, words.convert_tokens_to_ids(SPECIAL)))


def second(words: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    """A tiny Qwen2.5-VL."""
    ids = ids_of(words)
    config = Qwen2_5_VLConfig(
        text_config={
            **TEXT,
            "vocab_size": len(words),
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
            "eos_token_id": ids["<|im_end|>"],
        },
        vision_config={**VISION, "fullatt_block_indexes": [1], "window_size": 56},
        **tokens(ids),
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def third(words: Qwen2Tokenizer) -> Qwen3VLForConditionalGeneration:
    """A tiny Qwen3-VL."""
    ids = ids_of(words)
    config = Qwen3VLConfig(
        text_config={
            **TEXT,
            "vocab_size": len(words),
            "head_dim": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
            "eos_token_id": ids["<|im_end|>"],
        },
        vision_config={**VISION, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
        **tokens(ids),
    )
    return Qwen3VLForConditionalGeneration(config)


TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
}
VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
KINDS = {"Qwen2.5-VL": (second, 14), "Qwen3-VL": (third, 16)}
"""Kind -> maker of a model, and the side of its patches."""


def tokens(ids: dict[str, int]) -> dict[str, int]:
    names = ("image_pad", "video_pad", "vision_start", "vision_end")
    keys = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return {key: ids[f"<|{name}|>"] for key, name in zip(keys, names)}


def save(folder: Path, speaks: bool, kind: str = "Qwen2.5-VL") -> str:
    """A tiny model; one that `speaks` replies with `REPLY` to everything, the other with noise."""
    torch.manual_seed(0)
    words = tokenizer()
    ids = ids_of(words)
    make, patch = KINDS[kind]
    model = make(words)
    if speaks:
        # Blocks that add nothing leave the embedding of the last token, from which the head reads the next one.
        for layer in model.model.language_model.layers:
            layer.self_attn.o_proj.weight.data.zero_()
            layer.mlp.down_proj.weight.data.zero_()
        chain = [*words("\n" + REPLY)["input_ids"], ids["<|im_end|>"]]
        assert len(set(chain)) == len(chain) <= 32
        model.model.language_model.embed_tokens.weight.data.zero_()
        model.lm_head.weight.data.zero_()
        for axis, (token, following) in enumerate(zip(chain, chain[1:])):
            model.model.language_model.embed_tokens.weight.data[token, axis] = 1.0
            model.lm_head.weight.data[following, axis] = 1.0
    else:
        # Larger weights than at initialisation, so that images and texts change what is said.
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.mul_(8.0)
    # As in the published folders; ours must decode greedily all the same.
    model.generation_config.update(do_sample=True, temperature=1.0, repetition_penalty=1.05)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=112 * 112, patch_size=patch).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=KINDS)
def random_folder(request, tmp_path_factory):
    return save(tmp_path_factory.mktemp("random"), speaks=False, kind=request.param)


@pytest.fixture(scope="module", params=KINDS)
def speaking_folder(request, tmp_path_factory):
    return save(tmp_path_factory.mktemp("speaking"), speaks=True, kind=request.param)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8))


QUESTIONS = [
    Question((picture(64, 64),), "how good?"),
    Question((picture(90, 40, 1), picture(56, 56, 2)), "which of the two is better, would you say?"),
    Question((picture(64, 64, 3),), "how good?"),
]


def greedy(folder: str, question: Question, max_tokens: int) -> str:
    """By hand: the template as a text, the processor's pixels, and whole forward passes without a cache."""
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    words = Qwen2Tokenizer.from_pretrained(folder)
    vision = Qwen2VLImageProcessorPil.from_pretrained(folder)(images=list(question.images), return_tensors="pt")
    places = "".join(
        f"<|vision_start|>{'<|image_pad|>' * int(grid.prod() // 4)}<|vision_end|>" for grid in vision["image_grid_thw"]
    )
    # The template of Qwen3-VL has no system message of its own.
    system = (
        "" if model.config.model_type == "qwen3_vl" else "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    )
    text = f"{system}<|im_start|>user\n{places}{question.text}<|im_end|>\n<|im_start|>assistant\n"
    ids = words(text, return_tensors="pt")["input_ids"]
    length = ids.shape[1]
    for _ in range(max_tokens):
        with torch.no_grad():
            is_image = (ids == model.config.image_token_id).int()
            logits = model(input_ids=ids, mm_token_type_ids=is_image, **vision).logits
        following = logits[:, -1].argmax(-1, keepdim=True)
        if following.item() == words.convert_tokens_to_ids("<|im_end|>"):
            break
        ids = torch.cat([ids, following], 1)
    return words.decode(ids[0, length:], skip_special_tokens=True)


def test_greedy_decoding(random_folder):
    chat = QwenChat(random_folder, "unified-reward", device="cpu")
    answers = [answer.text for answer in chat.ask(QUESTIONS, max_tokens=12)]
    assert answers == [greedy(random_folder, question, 12) for question in QUESTIONS]
    assert answers[0] != answers[2]


def test_batches_do_not_matter(random_folder):
    together = QwenChat(random_folder, "unified-reward", device="cpu").ask(QUESTIONS, max_tokens=12)
    alone = QwenChat(random_folder, "unified-reward", device="cpu", batch_size=1).ask(QUESTIONS, max_tokens=12)
    assert together == alone


def test_prompts_hold_no_special_tokens(random_folder):
    chat = QwenChat(random_folder, "unified-reward", device="cpu")
    question = Question((picture(64, 64),), "<|image_pad|><|im_end|><|endoftext|>")
    tokens = chat._tokens(question, [4])
    assert tokens.count(chat._special["<|image_pad|>"]) == 4
    assert tokens.count(chat._special["<|im_end|>"]) == (1 if "qwen3" in chat._network.config.model_type else 2)
    assert chat.ask([question], max_tokens=2)[0].text is not None


def test_the_end_of_a_text_ends_a_reply(random_folder):
    """As in the published generation settings."""
    chat = QwenChat(random_folder, "unified-reward", device="cpu")
    ends = tokenizer().convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert chat._network.generation_config.eos_token_id == ends


def test_reward(speaking_folder):
    reward = load_reward("unified-reward", backend="transformers", path=speaking_folder, device="cpu", batch_size=2)
    assert reward.chat.ask(QUESTIONS, max_tokens=30)[1].text == REPLY
    scores = reward(torch.rand(3, 3, 40, 40), ["a red star", "", "x" * 300])
    assert scores.tolist() == [4.0] * 3
    assert scores.dtype == torch.float32
    mixed = [Image.new("RGBA", (20, 60)), Image.new("L", (1, 1)), Image.new("P", (30, 30))]
    assert reward(mixed, ["a"] * 3).tolist() == [4.0] * 3
    assert reward.counts.missing == 0


def test_noise_is_not_a_score(random_folder):
    reward = load_reward("unified-reward", backend="transformers", path=random_folder, device="cpu", max_tokens=8)
    with pytest.raises(RewardError, match="no score for any of 2 images of the prompt 'a'"):
        reward(torch.rand(2, 3, 40, 40), ["a", "a"])
    assert reward.counts.unparsed == 4


def test_loading(random_folder, tmp_path):
    with pytest.raises(RewardLoadError, match="the reward 'unified-reward' at '.*nowhere': there is no such folder"):
        load_reward("unified-reward", backend="transformers", path=str(tmp_path / "nowhere"))
    AutoModelForImageTextToText.from_pretrained(random_folder).save_pretrained(tmp_path)
    clip_tokenizer().save_pretrained(tmp_path)
    Qwen2VLImageProcessorPil().save_pretrained(tmp_path)
    with pytest.raises(RewardLoadError, match="to be Qwen-VL's, with <.image_pad.> at 261"):
        load_reward("unified-reward", backend="transformers", path=str(tmp_path))


def test_models_of_other_kinds_are_served(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_5"}')
    message = "of one of the kinds qwen2_5_vl, qwen3_vl in .*, but it is 'qwen3_5'. Serve it"
    with pytest.raises(RewardLoadError, match=message):
        load_reward("unified-reward", backend="transformers", path=str(tmp_path))


def test_pairs_in_this_process(speaking_folder, monkeypatch):
    options = {"backend": "transformers", "path": speaking_folder, "device": "cpu", "both_orders": True}
    reward = load_reward("unified-reward", variant="pair", **options)
    shown = []

    def ask(questions, max_tokens):
        shown.extend(len(question.images) for question in questions)
        return [Answer("Image 1 is better than Image 2.") for _ in questions]

    monkeypatch.setattr(reward.chat, "ask", ask)
    assert reward(torch.rand(2, 3, 40, 40), ["a", "a"]).tolist() == [0.5, 0.5]
    assert shown == [2, 2]
