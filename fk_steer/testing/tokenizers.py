"""Tokenizers of a few hundred tokens, of the kinds that published rewards have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast


CHARACTERS = [chr(code) for code in range(33, 127)]
QWEN_MARKS = {
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
}
QWEN_CHAT = [*QWEN_MARKS.values(), "<|im_start|>", "<|im_end|>"]


def qwen_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The special tokens a Qwen-VL's configuration names."""
    return {f"{name}_token_id": tokenizer.convert_tokens_to_ids(mark) for name, mark in QWEN_MARKS.items()}


def byte_tokenizer(text: str, size: int = 2000) -> PreTrainedTokenizerFast:
    """Of Qwen's kind: any text becomes tokens, few of them for text like that it is trained on.

    Args:
        size: of the vocabulary, without Qwen's special tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([text, "Yes No"] * 2, trainer)
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *QWEN_MARKS.values()]
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=marks[0],
        eos_token=marks[2],
        additional_special_tokens=marks[1:],
    )


def character_tokenizer(
    first: list[str], marks: Sequence[str] = (), end: str | None = None, special_end: str | None = None
) -> PreTrainedTokenizerFast:
    """Every character is a token, and so is 'Yes'.

    Args:
        first: the first tokens, the padding one first of all, with one called '<unk>'.
        marks: special tokens.
        end: appended to every text.
        special_end: called the end of texts, but not appended.
    """
    words = [*first, " ", "\n", *CHARACTERS, "Yes", *marks]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\bYes\b|[\s\S]"), "isolated")
    if end is not None:
        tokenizer.post_processor = processors.TemplateProcessing(f"$A {end}", special_tokens=[(end, words.index(end))])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token=first[0],
        eos_token=end or special_end,
        additional_special_tokens=list(marks),
    )
