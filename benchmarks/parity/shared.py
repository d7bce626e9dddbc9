"""What the scripts of golden outputs share. They run in environments of the originals, so nothing of this package is
imported but `fk_steer/testing/checkpoints`, by its path."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers


REPOSITORY = Path(__file__).parent.parent.parent
IMAGES = REPOSITORY / "tests" / "golden" / "hpsv2_openclip_a" / "images"
CASES = [
    ("land.png", "a red circle left of a blue square"),
    ("port.png", "a red circle left of a blue square"),
    ("small.png", "two dogs, one of them asleep"),
    ("odd1.png", ""),
    ("land.png", "Ein Bär im Schnee, aquarelle, 35 mm {photo}"),
]
"""Image and prompt of each golden score."""

RUBRIC = (
    "\nRate the generated image, please, from 0 to 10.\n\n**How it looks:**  \nSharp, well composed, and nothing in it "
    "is odd. \nThe text was: {text_prompt}\n\n\n"
)
"""Words of our own that stand for an original's: its code does not depend on which they are. Spaces at the end of a
line and several empty lines are as in the original's."""

ENDING = """
The rating of this image: <|Reward|>

END
"""
"""What comes after `RUBRIC`; what follows the token of the reward is not seen at it."""

QWEN_MARKS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]


def checkpoints() -> Any:
    """The package with the layouts of published checkpoints and random weights."""
    path = REPOSITORY / "fk_steer" / "testing" / "checkpoints" / "__init__.py"
    spec = importlib.util.spec_from_file_location("checkpoints", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules["checkpoints"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stand_in(*names: str) -> None:
    """Stand in for modules that an original imports and the scores do not depend on."""
    for name in names:
        sys.modules[name] = MagicMock(name=name, __version__="0.20.0", __spec__=None, __path__=[])


def image(name: str) -> Image.Image:
    """One of the images that ship with the tests, RGB."""
    return Image.open(IMAGES / name).convert("RGB")


def ask_in_our_words(folder: Path) -> str:
    """Put `RUBRIC` in the place of the words of an original of HPSv3's kind, and in rubric.txt, with {prompt} for the
    prompt. The whole of it."""
    # Imported by name, so that it is here that they are replaced.
    inference: Any = sys.modules["hpsv3.inference"]
    inference.INSTRUCTION, inference.prompt_with_special_token = RUBRIC, ENDING
    whole = RUBRIC + ENDING
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rubric.txt").write_text(whole.replace("{text_prompt}", "{prompt}"))
    return whole


def save_tokenizer(folder: Path, text: str) -> Path:
    """A small byte-level tokenizer of Qwen's kind, trained on a text, as tokenizer.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in QWEN_MARKS])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write(folder: Path, source: str, packages: dict[str, str], scores: list[dict[str, Any]], **facts: Any) -> None:
    """The golden scores with what made them."""
    content = {"source": source, "packages": packages, **facts, "scores": scores}
    (folder / "expected.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(scores, indent=1))
