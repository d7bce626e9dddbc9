"""The text files that people have: marks of Windows, other encodings, other line ends."""

from __future__ import annotations

import json

import pytest

from fk_steer.evaluation.folders import read_items
from fk_steer.evaluation.judge.data import read
from fk_steer.evaluation.prompts import drawbench_prompts, geneval_prompts, prompt_list
from llava_reward_guide.data.items import read_rows
from llava_reward_guide.texts import read_json, read_json_lines, read_table, read_text, read_yaml


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le-mark", "utf-16-be-mark"]


def write(path, text, encoding):
    if encoding.endswith("-mark"):
        path.write_bytes(("\ufeff" + text).encode(encoding.removesuffix("-mark")))
    else:
        path.write_bytes(text.encode(encoding))
    return path


@pytest.fixture(params=ENCODINGS)
def encoding(request):
    return request.param


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lists_of_prompts(encoding, end, tmp_path):
    text = end.join(["a café", "", "a red\u2028circle ", "  ", "two squares", ""])
    expected = [{"prompt": prompt} for prompt in ("a café", "a red\u2028circle", "two squares")]
    assert prompt_list(str(write(tmp_path / "a.txt", text, encoding))) == expected


def test_json_lines(encoding, tmp_path):
    line = {"prompt": "a café", "tag": "x"}
    file = write(tmp_path / "a.jsonl", json.dumps(line, ensure_ascii=False) + "\r\n\r\n", encoding)
    assert prompt_list(str(file)) == [line]
    assert read_json_lines(file) == [(1, line)]


def test_json(encoding, tmp_path):
    rows = [{"prompt": "a café", "chosen_path": "a.png", "reject_path": "b.png"}]
    file = write(tmp_path / "a.json", json.dumps(rows, ensure_ascii=False), encoding)
    assert read_json(file) == read_rows(file) == rows
    assert read(file).judgements[0].prompts == ("a café", "a café")


@pytest.mark.parametrize(("suffix", "sign"), [("csv", ","), ("csv", ";"), ("tsv", "\t"), ("CSV", "\t")])
def test_tables(encoding, suffix, sign, tmp_path):
    rows = [["path", "prompt"], ["a.png", "a café"], ["b.png", '"a ""red"" circle"']]
    text = "\r\n".join(sign.join(row) for row in rows) + "\r\n\r\n"
    file = write(tmp_path / f"a.{suffix}", text, encoding)
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    expected = [{"path": "a.png", "prompt": "a café"}, {"path": "b.png", "prompt": 'a "red" circle'}]
    assert read_table(file) == read_rows(file) == expected
    assert [item.prompt for item in read_items(file)] == ["a café", 'a "red" circle']


def test_drawbench(encoding, tmp_path):
    file = write(tmp_path / "a.csv", "Prompts,Category\r\na café,Colors\r\n", encoding)
    assert [(one.prompt, one.category) for one in drawbench_prompts(file)] == [("a café", "Colors")]


def test_geneval(encoding, tmp_path):
    line = {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a café"}
    file = write(tmp_path / "a.jsonl", json.dumps(line, ensure_ascii=False), encoding)
    assert geneval_prompts(file) == [line]


def test_records_of_a_folder(encoding, tmp_path):
    (tmp_path / "00000" / "samples").mkdir(parents=True)
    for name in ("00000.png", "00001.PNG"):
        (tmp_path / "00000" / "samples" / name).touch()
    write(tmp_path / "00000" / "metadata.jsonl", '{"prompt": "a café"}', encoding)
    items = read_items(tmp_path)
    assert [item.prompt for item in items] == ["a café"] * 2
    assert [item.path.name for item in items] == ["00000.png", "00001.PNG"]


def test_yaml(encoding, tmp_path):
    assert read_yaml(write(tmp_path / "a.yaml", "a: café\r\nb: 1\r\n", encoding)) == {"a": "café", "b": 1}


@pytest.mark.parametrize("reader", [read_text, read_json, read_json_lines, read_table, read_yaml])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("fine\na café".encode("latin-1"), "a.txt' to be text in UTF-8, but line 2 is not.*Save it as UTF-8"),
        (b"fine\na caf\0", "a.txt' to be text in UTF-8, but line 2 holds a NUL"),
        ("no mark".encode("utf-16-le"), "a.txt' to be text in UTF-8, but line 1 holds a NUL.*byte order mark"),
    ],
    ids=["latin", "nul", "no mark"],
)
def test_what_is_no_text(content, message, reader, tmp_path):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        reader(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("reader", "content", "message"),
    [
        (read_json, "{", "a.txt to be JSON"),
        (read_json, "", "a.txt to be JSON"),
        (read_json, "[" * 100000, "a.txt to be JSON, but it is nested too deeply"),
        (read_json_lines, "{}\n\n{", "line 3 of .*a.txt to be JSON"),
        (read_yaml, "a: [", "a.txt' to be YAML"),
    ],
)
def test_what_does_not_parse_is_named(reader, content, message, tmp_path):
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        reader(tmp_path / "a.txt")


def test_long_cells(tmp_path):
    (tmp_path / "a.csv").write_text("path,prompt\na.png," + "x" * 200_000)
    assert len(read_table(tmp_path / "a.csv")[0]["prompt"]) == 200_000
