"""HPSv2 against outputs of tgxs002/HPSv2 866735e, to the tolerances of the fixtures' README.txt."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from conftest import golden_folders
from PIL import Image
from transformers import BatchEncoding, CLIPTokenizer

from fk_steer import load_reward


BPE = golden_folders("clip_bpe_subset")[0]
WORD = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+")
"""What CLIP's tokenizer takes for a word."""


def vocabulary(golden):
    """The fixture's own, or that of the words of the shipped one."""
    return golden if (golden / "vocab.json").exists() and (golden / "merges.txt").exists() else BPE


def agree(tokenizer, words, ids, known):
    """Whether ids are those of words, of which each is as the tokenizer has it, or new and always the same."""
    if not words:
        return not ids
    word, *others = words
    own = tokenizer(word, add_special_tokens=False).input_ids
    if word in known:
        return ids[: len(known[word])] == known[word] and agree(tokenizer, others, ids[len(known[word]) :], known)
    if ids[: len(own)] == own and agree(tokenizer, others, ids[len(own) :], known):
        return True
    seen = set(tokenizer.get_vocab().values())
    for length in range(1, len(word) + 1):
        # A word that the vocabulary knows whole is never another id.
        if ids[:length] and not set(ids[:length]) <= seen:
            trial = {**known, word: ids[:length]}
            if agree(tokenizer, others, ids[length:], trial):
                known[word] = ids[:length]
                return True
    return False


@pytest.fixture(scope="module", params=golden_folders("hpsv2_openclip"), ids=str)
def golden(request):
    return request.param


@pytest.fixture(scope="module")
def expected(golden):
    return json.loads((golden / "expected.json").read_text()), np.load(golden / "expected.npz")


@pytest.fixture(scope="module")
def pairs(golden, expected):
    """Those whose image is there: the copies beside the tests are not complete."""
    pairs = [pair for pair in expected[0]["pairs"] if (golden / pair["image"]).exists()]
    assert len(pairs) >= 7
    return pairs


@pytest.fixture(scope="module")
def reward(golden, pairs):
    """With the fixture's own ids, which are those of the real vocabulary folded into a small one."""
    reward = load_reward("hps", path=str(golden / "HPS_tiny.pt"), tokenizer=str(vocabulary(golden)), device="cpu")
    ids = {reward.clean(pair["prompt"]): pair["input_ids"] for pair in pairs}
    reward.tokenizer = lambda texts, **_: BatchEncoding({"input_ids": torch.tensor([ids[text] for text in texts])})
    return reward


def test_tokens(golden, reward, expected):
    """With the real ids: HTML entities are resolved, Unicode repaired, long prompts cut before end-of-text."""
    tokenizer = CLIPTokenizer.from_pretrained(vocabulary(golden))
    known: dict[str, list[int]] = {}
    for line in expected[0]["tokenizer"]:
        ids, want = (
            tokenizer(reward.clean(line["prompt"]), truncation=True, max_length=77).input_ids,
            line["ids_49408"],
        )
        want = [token for token in want if token]
        if ids == want:
            continue
        # Only words that the vocabulary lacks may be otherwise, and only if nothing was cut.
        assert set(want) - set(tokenizer.get_vocab().values()), line["prompt"]
        assert want[0] == ids[0]
        assert want[-1] == ids[-1]
        if len(want) < 77:
            assert agree(tokenizer, WORD.findall(reward.clean(line["prompt"]).lower()), want[1:-1], known), line[
                "prompt"
            ]


@pytest.mark.parametrize("antialias", [True, False])
def test_preprocessing(golden, reward, antialias, monkeypatch):
    monkeypatch.setattr(reward, "antialias", antialias)
    values = np.load(golden / "preprocess_expected.npz")
    files = [
        file for file in sorted((golden / "images").glob("*.png")) if f"{file.stem}/antialias_True/stride7" in values
    ]
    assert len(files) >= 7
    for file in files:
        pixels = reward.preprocess([Image.open(file)])[0].numpy()
        # The original keeps the alpha channel, and fails on it later.
        want = values[f"{file.stem}/antialias_{antialias}/stride7"][:3]
        np.testing.assert_allclose(pixels[:, ::7, ::7], want, atol=1e-4)


def test_features(golden, reward, expected, pairs):
    for pair in pairs:
        with torch.no_grad():
            pixels = reward.preprocess([Image.open(golden / pair["image"])])
            image = reward.model.get_image_features(pixel_values=pixels).pooler_output[0]
            text = reward.model.get_text_features(torch.tensor([pair["input_ids"]])).pooler_output[0]
        for name, features in (("image", image), ("text", text)):
            want = expected[1][f"{pair['key']}/{name}_features_unnormalized"]
            np.testing.assert_allclose(features.numpy(), want, atol=1e-5)


def test_scores_from_files(golden, reward, pairs):
    images = [Image.open(golden / pair["image"]) for pair in pairs]
    prompts = [pair["prompt"] for pair in pairs]
    np.testing.assert_allclose(reward(images, prompts).numpy(), [pair["score"] for pair in pairs], atol=2e-6)


def test_scores_without_antialiasing(golden, reward, pairs, monkeypatch):
    monkeypatch.setattr(reward, "antialias", False)
    images = [Image.open(golden / pair["image"]) for pair in pairs]
    want = [pair["score_with_preprocess_antialias_False"] for pair in pairs]
    np.testing.assert_allclose(reward(images, [pair["prompt"] for pair in pairs]).numpy(), want, atol=2e-6)


def test_ranking(golden, reward, expected, pairs):
    prompts = {pair["prompt_index"]: pair["prompt"] for pair in pairs}
    matrix = expected[0]["matrix"]
    for column, index in enumerate(matrix["prompt_indices"]):
        if index not in prompts:
            continue
        images = [Image.open(golden / "images" / f"{name}.png") for name in matrix["images"]]
        scores = reward(images, [prompts[index]] * len(images)).numpy()
        want = np.array(matrix["cosine"])[:, column]
        np.testing.assert_allclose(scores, want, atol=2e-6)
        assert scores.argsort().tolist() == want.argsort().tolist()


def test_where_the_original_fails(golden, reward, pairs):
    """Transparent images, and images of 224 pixels on the longer side that are not square."""
    images = [Image.open(golden / "images" / name) for name in ("rgba.png", "longest224.png")]
    assert reward(images, [pairs[0]["prompt"]] * 2).isfinite().all()
    pixels = reward.preprocess(images[1:])[0]
    assert (pixels[:, 0] == pixels[:, 0, :1]).all(), "padded above"
