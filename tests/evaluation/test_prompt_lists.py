"""Published lists of prompts: those that ship, and copies of others."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import pytest

from fk_steer.evaluation import prompts
from fk_steer.evaluation.checklists.benchmarks import BENCHMARKS, DPG_QUESTIONS
from fk_steer.evaluation.prompt_lists.readers import with_parents
from fk_steer.evaluation.prompt_lists.registry import LISTS
from fk_steer.evaluation.prompts import evenly, prompt_list
from fk_steer.published import Source, fetch
from fk_steer.rewards.checks import Check


COMPBENCH = ("color", "shape", "texture", "spatial", "3d_spatial", "numeracy", "non_spatial", "complex")


class TestShipped:
    def test_dpg(self):
        entries = prompt_list("dpg")
        assert len(entries) == len({entry["item_id"] for entry in entries}) == 1065
        assert Counter(entry["category"] for entry in entries)["partiprompts"] == 324
        first = next(entry for entry in entries if entry["item_id"] == "0")
        assert first["prompt"].startswith("An expansive field, blanketed by the soft light of morning")

    def test_t2i_compbench(self):
        entries = prompt_list("t2i-compbench")
        assert Counter(entry["category"] for entry in entries) == dict.fromkeys(COMPBENCH, 300)
        assert entries[0] == {
            "prompt": "a green bench and a blue bowl",
            "category": "color",
            "phrases": ["a green bench", "a blue bowl"],
        }
        for entry in entries:
            assert ("phrases" in entry) == (entry["category"] in ("color", "shape", "texture"))
            assert all(phrase in entry["prompt"] for phrase in entry.get("phrases", []))

    @pytest.mark.parametrize(("name", "points"), [("unigenbench", 27), ("unigenbench-zh", 27)])
    def test_unigenbench(self, name, points):
        entries = prompt_list(name)
        assert [entry["index"] for entry in entries] == list(range(600))
        assert len({point for entry in entries for point in entry["testpoints"]}) == points
        assert all(len(entry["testpoints"]) == len(entry["descriptions"]) for entry in entries)

    def test_a_limit_is_spread_over_categories(self):
        entries = prompt_list("t2i-compbench")
        chosen = evenly(entries, 16)
        assert Counter(entries[index]["category"] for index in chosen) == dict.fromkeys(COMPBENCH, 2)


def test_every_benchmark_has_a_list():
    assert BENCHMARKS.keys() <= LISTS.keys()


@pytest.mark.parametrize("name", [name for name, one in LISTS.items() if not one.ships and not one.url])
def test_what_does_not_ship_says_where_it_is(name):
    with pytest.raises(FileNotFoundError, match="does not come with this package .*Get it from .*--prompts-file"):
        prompt_list(name)


def test_a_copy_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="Expected GenEval 2 at .* Get it: facebookresearch/GenEval2"):
        prompt_list("geneval2", tmp_path / "geneval2_data.jsonl")


def test_only_published_lists_have_copies(tmp_path):
    with pytest.raises(ValueError, match="Only published lists .geneval, drawbench, dpg.* not 'shapes'"):
        prompt_list("shapes", tmp_path)


def test_what_is_fetched_is_checked(tmp_path, monkeypatch):
    content = (
        b'index,prompt_en,sub_dims_en\n0,A dog.,"{""Testpoints"": [""Style""], ""Testpoint Description"": [""x""]}"\n'
    )
    source = LISTS["unigenbench-long"]
    assert "/49d0bcebb0b9418d975d3957c2fee10f34811d14/" in source.url
    with pytest.raises(OSError, match=source.sha256):
        fetch(Source(source.title, source.url, source.sha256), lambda url: content, tmp_path)
    monkeypatch.setattr(prompts, "fetch", lambda one: tmp_path / "list.csv")
    (tmp_path / "list.csv").write_bytes(content)
    (entry,) = prompt_list("unigenbench-long")
    assert entry == {"prompt": "A dog.", "index": 0, "category": "", "testpoints": ["Style"], "descriptions": ["x"]}


def test_a_content_is_known_by_its_id_in_git(tmp_path):
    content = b"what Git calls a blob\n"
    known = hashlib.sha1(b"blob 22\0" + content).hexdigest()
    source = Source("the file", "https://example.org/file.csv", blob=known)
    path = fetch(source, lambda url: content, tmp_path)
    assert path.read_bytes() == content

    def never(url):
        raise AssertionError("It is there already.")

    assert fetch(source, never, tmp_path) == path
    with pytest.raises(OSError, match=f"Git id {DPG_QUESTIONS.blob}"):
        fetch(DPG_QUESTIONS, lambda url: content, tmp_path)


class TestCopies:
    def test_geneval2(self, tmp_path):
        line = {
            "prompt": "a pig",
            "atom_count": 3,
            "vqa_list": [["How many pigs are there?", "one"]],
            "skills": ["count"],
        }
        file = tmp_path / "geneval2_data.jsonl"
        file.write_text(json.dumps(line) + "\n")
        assert prompt_list("geneval2", file) == [{**line, "category": "3"}]
        file.write_text(json.dumps({**line, "skills": []}) + "\n" + json.dumps({"prompt": "a pig"}))
        with pytest.raises(ValueError, match="Line 2 of .* is not GenEval 2's: expected `prompt`, `atom_count`"):
            prompt_list("geneval2", file)

    def test_dpg(self, tmp_path):
        (tmp_path / "7.txt").write_text("A field.\n")
        assert prompt_list("dpg", tmp_path) == [{"prompt": "A field.", "item_id": "7"}]
        table = tmp_path / "dpg_bench.csv"
        table.write_text("item_id,text,proposition_id\n7,A field.,1\n7,A field.,2\n8,A sea.,1\n")
        assert [entry["item_id"] for entry in prompt_list("dpg", table)] == ["7", "8"]
        table.write_text("id,text\n7,A field.\n")
        with pytest.raises(ValueError, match="Expected the columns item_id, text in .*, but got id, text"):
            prompt_list("dpg", table)

    def test_unigenbench_in_chinese(self, tmp_path):
        file = tmp_path / "list.csv"
        head = "index,prompt_zh,sub_dims_zh\n"
        file.write_text(head + '3,狗,"{""考点"": [""风格""], ""考点对应描述"": [""水墨""]}"\n', "utf-8")
        (entry,) = prompt_list("unigenbench-zh", file)
        assert (entry["prompt"], entry["testpoints"], entry["descriptions"]) == ("狗", ["风格"], ["水墨"])
        file.write_text(head + '3,狗,"{""考点"": [""风格""], ""考点对应描述"": []}"\n', "utf-8")
        with pytest.raises(ValueError, match="Row 1 of .* is not UniGenBench's"):
            prompt_list("unigenbench-zh", file)

    def test_a_published_row_lacks_a_comma(self, tmp_path):
        file = tmp_path / "list.csv"
        points = '{""Testpoints"": [""Style"" ""Grammar""], ""Testpoint Description"": [""x y"", ""z""]}'
        file.write_text(f'index,prompt_en,sub_dims_en\n509,A wall.,"{points}"\n')
        (entry,) = prompt_list("unigenbench-long", file)
        assert (entry["testpoints"], entry["descriptions"]) == (["Style", "Grammar"], ["x y", "z"])

    def test_t2i_compbench(self, tmp_path):
        (tmp_path / "color_val.txt").write_text("a red dog\n\n")
        (tmp_path / "shape_val.txt").write_text("a round box\n")
        (tmp_path / "color_train.txt").write_text("a blue dog\n")
        found = [(entry["prompt"], entry["category"]) for entry in prompt_list("t2i-compbench", tmp_path)]
        assert found == [("a red dog", "color"), ("a round box", "shape")]

    def test_oneig(self, tmp_path):
        (tmp_path / "OneIG-Bench.csv").write_text(
            "category,id,prompt_en,class\nPortrait,000,A man.,\nText_Rendering,000,A sign.,\n"
            "Anime_Stylization,001,A nun.,\n"
        )
        questions = tmp_path / "scripts" / "alignment" / "Q_D"
        questions.mkdir(parents=True)
        asked = {"question": '{"1": "Is there a man?", "2": "Is he old?"}', "dependency": '{"1": [0], "2": [1]}'}
        for name, known in {"human": {"000": asked}, "anime": {}, "object": {}}.items():
            (questions / f"{name}.json").write_text(json.dumps(known))
        man, sign, nun = prompt_list("oneig", tmp_path)
        assert man["checks"] == [
            {"question": "Is there a man?", "answer": "yes", "parents": []},
            {"question": "Is he old?", "answer": "yes", "parents": [0]},
        ]
        assert "checks" not in sign
        assert "checks" not in nun
        with pytest.raises(FileNotFoundError, match="Expected a checkout of OneIG-Benchmark"):
            prompt_list("oneig", tmp_path / "scripts")

    def test_parents_that_make_no_sense(self):
        checks = [Check(text) for text in "abc"]
        # No such question, the question itself, and a circle: a needs c, c needs b, b needs a.
        listed = with_parents(checks, {1: [0, 3, 7], 2: [2, 1], 3: [2, 2]})
        assert [check.parents for check in listed] == [(), (0,), (1,)]
        # A later parent is one all the same.
        assert [check.parents for check in with_parents(checks[:2], {1: [2], 2: [2]})] == [(1,), ()]

    def test_tiif(self, tmp_path):
        folder, questions = tmp_path / "testmini_prompts", tmp_path / "testmini_eval_prompts"
        folder.mkdir()
        questions.mkdir()
        prompt = {"type": "style", "short_description": "A city.", "long_description": "A long city."}
        asked = {"type": "style", "yn_question_list": ["Is it a city?  "], "yn_answer_list": ["No"]}
        (folder / "style_prompts.jsonl").write_text(json.dumps(prompt) + "\n")
        (questions / "style_eval_prompts.jsonl").write_text(json.dumps(asked) + "\n")
        (short,), (long,) = prompt_list("tiif", folder), prompt_list("tiif-long", folder)
        assert short["checks"] == [{"question": "Is it a city?", "answer": "no"}]
        assert (short["prompt"], long["prompt"], short["category"]) == ("A city.", "A long city.", "style")
        (questions / "style_eval_prompts.jsonl").write_text(json.dumps(asked) * 1 + "\n" + json.dumps(asked) + "\n")
        with pytest.raises(ValueError, match="Expected as many lines in .* but got 1 and 2"):
            prompt_list("tiif", folder)

    def test_wise(self, tmp_path):
        file = tmp_path / "merge.json"
        entries = [
            {"Prompt": "Round pastry", "Explanation": "Mooncakes", "prompt_id": number}
            for number in (1, 400, 401, 1000)
        ]
        file.write_text(json.dumps(entries))
        found = prompt_list("wise", file)
        assert [entry["category"] for entry in found] == ["Culture", "Culture", "Time", "Chemistry"]
        assert found[0]["explanation"] == "Mooncakes"
        file.write_text(json.dumps([{"Prompt": "Round pastry"}]))
        with pytest.raises(ValueError, match="Entry 1 of .* is not WISE's"):
            prompt_list("wise", file)
