from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from fk_steer.evaluation import prompts
from fk_steer.evaluation.prompts import (
    CLASSES,
    COLOURS,
    DRAWBENCH,
    DRAWBENCH_CATEGORIES,
    GENEVAL,
    GENEVAL_TASKS,
    check_metadata,
    drawbench_prompts,
    evenly,
    geneval_prompts,
    prompt_list,
)
from fk_steer.published import Source, fetch


DATA = Path(os.environ.get("FK_STEER_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not there; set FK_STEER_DATA")


@needs_data
def test_geneval():
    entries = geneval_prompts(DATA / "geneval_evaluation_metadata.jsonl")
    assert len(entries) == 553
    assert Counter(entry["tag"] for entry in entries) == GENEVAL_TASKS
    asked = [one for entry in entries for kind in ("include", "exclude") for one in entry.get(kind, [])]
    assert {one["class"] for one in asked} <= set(CLASSES)
    assert {one["color"] for one in asked if "color" in one} == set(COLOURS)
    assert tuple((DATA / "geneval_object_names.txt").read_text().splitlines()) == CLASSES


@needs_data
def test_drawbench(tmp_path):
    path = DATA / "drawbench_prompts.txt"
    entries = drawbench_prompts(path)
    assert len(entries) == 200
    assert Counter(entry.category for entry in entries) == DRAWBENCH_CATEGORIES
    by_prompt = {entry.prompt: entry.category for entry in entries}
    assert by_prompt["A red colored car."] == "Colors"
    assert entries[-1].category == "Text"
    # The sheet's own form, with the blank that one copy has after a category.
    sheet = tmp_path / "drawbench.csv"
    sheet.write_text('Prompts,Category\n"One, two.",Gary Marcus et al. \n')
    assert drawbench_prompts(sheet) == [prompts.DrawBenchPrompt("One, two.", "Gary Marcus et al.")]
    sheet.write_text("Prompts,Category\nOne.,Paintings\n")
    with pytest.raises(ValueError, match="Unknown category 'Paintings'"):
        drawbench_prompts(sheet)
    short = tmp_path / "drawbench.txt"
    short.write_text("One.\n")
    with pytest.raises(ValueError, match="Expected the 200 prompts"):
        drawbench_prompts(short)


@needs_data
@pytest.mark.parametrize(
    ("source", "name"), [(GENEVAL, "geneval_evaluation_metadata.jsonl"), (DRAWBENCH, "drawbench_prompts.txt")]
)
def test_checksums(source, name):
    assert hashlib.sha256((DATA / name).read_bytes()).hexdigest() == source.sha256


def test_fetching_once(tmp_path):
    content = b'{"tag": "single_object", "include": [{"class": "cow", "count": 1}], "prompt": "a photo of a cow"}\n'
    source = Source("the prompts", "https://example.org/list.jsonl", hashlib.sha256(content).hexdigest())
    asked = []

    def opener(url):
        asked.append(url)
        return content

    path = fetch(source, opener, tmp_path)
    assert fetch(source, opener, tmp_path) == path
    assert asked == [source.url]
    assert geneval_prompts(path)[0]["prompt"] == "a photo of a cow"
    # A damaged copy is fetched again.
    path.write_bytes(content[:10])
    assert fetch(source, opener, tmp_path).read_bytes() == content
    assert len(asked) == 2


def test_fetching_fails(tmp_path):
    source = Source("the prompts", "https://example.org/list.jsonl", "0" * 64)

    def offline(url):
        raise OSError("no network")

    with pytest.raises(OSError, match="no network. Download it from https://example.org/list.jsonl elsewhere"):
        fetch(source, offline, tmp_path)
    with pytest.raises(OSError, match="elsewhere and give its path by --questions"):
        fetch(source, offline, tmp_path, by="--questions")
    with pytest.raises(OSError, match="the file has changed"):
        fetch(source, lambda url: b"other", tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match=r"evaluation_metadata\.jsonl"):
        geneval_prompts(tmp_path / "nowhere.jsonl")


GOOD = {
    "tag": "position",
    "prompt": "a photo of a cow left of a bench",
    "include": [{"class": "bench", "count": 1}, {"class": "cow", "count": 1, "position": ["left of", 0]}],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"include": [{"class": "bench"}]}, "a class and a count"),
        ({"include": [{"class": "bench", "count": 0}]}, "a count of at least 1"),
        ({"include": [{"class": "bench", "count": 1, "position": ["left of", 0]}]}, "an earlier entry"),
        ({"include": [{"class": "a", "count": 1}, {"class": "b", "count": 1, "position": ["near", 0]}]}, "such as"),
        ({"exclude": [{"class": "bench", "count": 2, "color": "red"}]}, "in 'exclude'"),
        ({"seed": 1}, "an object of"),
    ],
)
def test_metadata_is_checked(tmp_path, change, message):
    assert check_metadata(GOOD) == GOOD
    with pytest.raises(ValueError, match=message):
        check_metadata({**GOOD, **change})
    path = tmp_path / "metadata.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{json.dumps({**GOOD, **change})}\n")
    with pytest.raises(ValueError, match=f"Line 2 of .* is not GenEval's metadata: .*{message}"):
        geneval_prompts(path)


def test_own_lists(tmp_path):
    (tmp_path / "a.txt").write_text("a red circle\n\n  two stars \n")
    assert prompt_list(str(tmp_path / "a.txt")) == [{"prompt": "a red circle"}, {"prompt": "two stars"}]
    (tmp_path / "a.jsonl").write_text('{"prompt": "a star", "source": 3}\n')
    assert prompt_list(str(tmp_path / "a.jsonl")) == [{"prompt": "a star", "source": 3}]
    (tmp_path / "a.csv").write_text("Prompts,Category\nA red car,Colors\n")
    assert prompt_list(str(tmp_path / "a.csv")) == [{"prompt": "A red car", "category": "Colors"}]
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a star"}\n{"text": "a star"}\n')
    with pytest.raises(ValueError, match=r"line 2 of .* `prompt`"):
        prompt_list(str(tmp_path / "bad.jsonl"))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="no prompts"):
        prompt_list(str(tmp_path / "empty.txt"))
    with pytest.raises(FileNotFoundError, match="a file or one of: geneval, drawbench, dpg, .* shapes"):
        prompt_list("nope")


def test_lines_end_where_the_format_says(tmp_path):
    """And not at what else Python takes for the end of a line."""
    odd = "a star,\u2028red\x0b\x85"
    (tmp_path / "a.jsonl").write_text('{"prompt": "one"}\n\n{"prompt": "a\u2028b\u0085c"}\n', encoding="utf-8")
    assert [entry["prompt"] for entry in prompt_list(str(tmp_path / "a.jsonl"))] == ["one", "a\u2028b\u0085c"]
    (tmp_path / "a.csv").write_text(f'Prompts,Category\n"{odd}\nand blue",Colors\n', encoding="utf-8")
    assert [entry["prompt"] for entry in prompt_list(str(tmp_path / "a.csv"))] == [f"{odd}\nand blue"]
    (tmp_path / "a.txt").write_text("a\u2028b\nc\n", encoding="utf-8")
    assert [entry["prompt"] for entry in prompt_list(str(tmp_path / "a.txt"))] == ["a\u2028b", "c"]
    line = json.dumps({**GOOD, "prompt": "a\u2028b"}, ensure_ascii=False)
    (tmp_path / "geneval.jsonl").write_text(f"{line}\n", encoding="utf-8")
    assert [entry["prompt"] for entry in geneval_prompts(tmp_path / "geneval.jsonl")] == ["a\u2028b"]


def test_evenly():
    entries = [{"tag": kind} for kind in "aaaabbc"]
    assert evenly(entries, None) == list(range(7))
    assert evenly(entries, 3) == [0, 4, 6]
    assert evenly(entries, 5) == [0, 1, 4, 5, 6]
    assert evenly(entries, 6) == [0, 1, 2, 4, 5, 6]
    assert evenly([{"prompt": "x"}] * 3, 2) == [0, 1]
