"""A CLIP tokenizer whose vocabulary is the world's: every word one token, everything else bytes."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, models, trainers
from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from .captions import NUMBERS, PLURALS, RELATIONS
from .world import COLOURS, SHAPES


MAX_LENGTH = 16
END_OF_WORD = "</w>"
START, END = "<|startoftext|>", "<|endoftext|>"


def words() -> list[str]:
    """All words of the captions, in a fixed order."""
    relations = dict.fromkeys(word for relation in RELATIONS for word in relation.split())
    every = ["a", "an", "photo", "of", "and", *NUMBERS.values(), *relations, *COLOURS, *SHAPES, *PLURALS.values()]
    return list(dict.fromkeys(every))


def make_tokenizer() -> CLIPTokenizer:
    """Byte-pair encoding with the merges that make each of `words()` a single token."""
    trained = Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD))
    trainer = trainers.BpeTrainer(
        vocab_size=10_000, min_frequency=1, end_of_word_suffix=END_OF_WORD, show_progress=False
    )
    trained.train_from_iterator(words(), trainer)
    merges = [" ".join(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    characters = list(bytes_to_unicode().values())
    vocabulary = [*characters, *(character + END_OF_WORD for character in characters)]
    vocabulary += [merge.replace(" ", "") for merge in merges] + [START, END]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(vocabulary)}))
        (Path(folder) / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_LENGTH)
