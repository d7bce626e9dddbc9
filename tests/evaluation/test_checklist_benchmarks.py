"""GenEval 2, DPG-Bench and their kin: answers summed up as the published scripts do, and runs over folders."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fk_steer.cli import app
from fk_steer.evaluation.checklists import summaries
from fk_steer.evaluation.checklists.benchmarks import Asked, dpg_checklists
from fk_steer.evaluation.checklists.run import judge_id, run
from fk_steer.evaluation.checklists.summaries import Answered, Line
from fk_steer.evaluation.panel.metrics import parse_metrics
from fk_steer.rewards import Reward
from fk_steer.rewards.checks import Check
from fk_steer.rewards.registry import available_rewards
from fk_steer.shapes.captions import PLURALS
from fk_steer.shapes.detector import detect
from fk_steer.shapes.world import render, sample_scene


def answered(prompt: str, answers, checks=None, **entry) -> Answered:
    checks = checks or [Check(f"{number}?") for number in range(len(answers))]
    return Answered(prompt, {"prompt": prompt, **entry}, tuple(checks), tuple(answers))


def found(lines: list[Line]) -> dict[tuple[str, str], float]:
    return {(line.group, line.name): line.estimate[0] for line in lines}


def kinds(*names: str) -> list[Check]:
    return [Check(f"{name}?", kind=name) for name in names]


class TestGenEval2:
    IMAGES = (
        answered("a", (0.9, 0.4), kinds("object", "count"), atom_count=3),
        answered("a", (0.5, 0.0), kinds("object", "count"), atom_count=3),
        answered("b", (0.2, 0.4, 0.8), kinds("object", "count", "verb"), atom_count=10),
    )

    def test_means(self):
        lines = found(summaries.geneval2(self.IMAGES))
        # By hand: means 0.65, 0.25 and 1.4 / 3; roots 0.6, 0 and 0.4.
        assert lines["score", "Soft-TIFA AM"] == pytest.approx(100 * (0.65 + 0.25 + 1.4 / 3) / 3)
        assert lines["score", "Soft-TIFA GM"] == pytest.approx(100 * (0.6 + 0.0 + 0.4) / 3)

    def test_skills_and_atomicities(self):
        lines = summaries.geneval2(self.IMAGES)
        values = found(lines)
        assert values["skill (AM)", "object"] == pytest.approx(100 * (0.9 + 0.5 + 0.2) / 3)
        assert values["skill (AM)", "verb"] == pytest.approx(80)
        assert values["atomicity (GM)", "3"] == pytest.approx(30)
        assert values["atomicity (GM)", "10"] == pytest.approx(40)
        # By number, not as texts.
        assert [line.name for line in lines if line.group == "atomicity (GM)"] == ["3", "10"]

    def test_standard_errors_are_over_prompts(self):
        line = next(line for line in summaries.geneval2(self.IMAGES) if line.name == "Soft-TIFA AM")
        mean = (0.65 + 0.25 + 1.4 / 3) / 3
        off = [0.9 - 2 * mean, 1.4 / 3 - mean]
        assert line.estimate[1] == pytest.approx(100 * math.sqrt(2 * sum(one**2 for one in off)) / 3)
        assert (line.prompts, line.values) == (2, 3)


class TestDPG:
    CHECKS = (
        Check("dog?", kind="entity - whole"),
        Check("brown?", parents=(0,), kind="attribute - color"),
        Check("cat?", kind="entity - whole"),
        Check("beside?", parents=(0, 2), kind="relation - spatial"),
    )

    def test_children_fall_with_their_parents_in_the_score_alone(self):
        images = [
            # The dog is missing: its colour and place do not count, 1 of 4 is right.
            answered("a", (0.3, 0.9, 0.8, 0.7), self.CHECKS),
            answered("a", (0.9, 0.9, 0.8, 0.7), self.CHECKS),
            answered("b", (0.9, 0.2, 0.8, 0.7), self.CHECKS),
        ]
        lines = found(summaries.dpg(images))
        # Images within prompts first, then prompts.
        assert lines["score", "DPG-Bench"] == pytest.approx(100 * ((0.25 + 1.0) / 2 + 0.75) / 2)
        assert lines["category", "attribute"] == pytest.approx(100 * 2 / 3)
        assert lines["category", "entity"] == pytest.approx(100 * 5 / 6)
        assert lines["category", "relation"] == pytest.approx(100)
        assert lines["subcategory", "entity - whole"] == pytest.approx(100 * 5 / 6)

    def test_the_table_of_questions(self, tmp_path):
        file = tmp_path / "dpg_bench.csv"
        file.write_text(
            "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,"
            "question_natural_language\n"
            "7,A dog.,,1,0,entity,whole,entity - whole (dog),Is there a dog?\n"
            '7,A dog.,,2,1,attribute,color,"attribute - color (dog, brown)",Is the dog brown? \n'
            '7,A dog.,,3,"1, 2",other,x,other - x (y),Why?\n'
            "8,A cat.,,1,0,entity,whole,entity - whole (cat),Is there a cat?\n"
        )
        assert dpg_checklists(file) == {
            "7": (
                Check("Is there a dog?", kind="entity - whole"),
                Check("Is the dog brown?", parents=(0,), kind="attribute - color"),
                Check("Why?", parents=(0, 1), kind="other - x"),
            ),
            "8": (Check("Is there a cat?", kind="entity - whole"),),
        }
        asked = Asked("dpg", questions=file)
        assert asked({"prompt": "A dog.", "item_id": "8"})[1] == (Check("Is there a cat?", kind="entity - whole"),)
        with pytest.raises(ValueError, match="no questions on the item '9'"):
            asked({"prompt": "A dog.", "item_id": "9"})
        # Lists by people and models: no such question, and the question itself.
        file.write_text(file.read_text().replace('"1, 2"', '"9, 3, 2"'))
        assert dpg_checklists(file)["7"][2].parents == (1,)
        file.write_text(file.read_text().replace("7,A dog.,,1,0", "7,A dog.,,first,0"))
        # As published, the first row may be anything.
        assert [check.question for check in dpg_checklists(file)["7"]] == ["Is the dog brown?", "Why?"]
        file.write_text(file.read_text().replace("8,A cat.,,1,0", "8,A cat.,,last,0"))
        with pytest.raises(ValueError, match="Row 4 of .* is none of DPG-Bench's questions"):
            dpg_checklists(file)
        file.write_text("item_id\n7\n")
        with pytest.raises(ValueError, match="Expected DPG-Bench's questions"):
            dpg_checklists(file)


def test_unigenbench():
    points = ("Style", "Attribute - Color", "Attribute - Size", "World Knowledge")
    images = [
        answered("a", (0.9, 0.9, 0.4, 0.6), kinds(*points)),
        answered("b", (0.1, 0.9), kinds("Style", "Attribute - Size")),
    ]
    lines = found(summaries.unigenbench(images))
    assert lines["primary dimension", "Attribute"] == pytest.approx(100 * 2 / 3)
    assert lines["primary dimension", "Style"] == pytest.approx(50)
    assert lines["sub-dimension", "Attribute - Size"] == pytest.approx(50)
    assert lines["score", "mean of primary dimensions"] == pytest.approx((200 / 3 + 50 + 100) / 3)
    assert ("sub-dimension", "Style") not in lines


def test_t2i_compbench():
    ask = Asked("t2i-compbench")
    _, checks = ask({"prompt": "The red bus and a cat", "category": "color", "phrases": ["The red bus", "a cat"]})
    assert [check.question for check in checks] == [
        'Does this image show "The red bus and a cat"?',
        "Does this image show the red bus?",
        "Does this image show a cat?",
    ]
    images = [
        answered("a", (0.9, 0.5, 0.4), checks, category="color"),
        answered("b", (0.7, 0.6), checks[:2], category="color"),
        answered("c", (0.4,), checks[:1], category="numeracy"),
    ]
    lines = found(summaries.t2i_compbench(images))
    assert lines["B-VQA (product over noun phrases)", "color"] == pytest.approx(100 * (0.2 + 0.6) / 2)
    assert lines["VQAScore (whole prompt)", "color"] == pytest.approx(80)
    assert lines["VQAScore (whole prompt)", "numeracy"] == pytest.approx(40)
    assert len(lines) == 3


def test_t2i_compbench_looks_phrases_up():
    entry, checks = Asked("t2i-compbench")({"prompt": "a green bench and a blue bowl"})
    assert entry["category"] == "color"
    assert len(checks) == 3


def test_oneig_counts_direct_parents_alone():
    checks = (Check("a"), Check("b", parents=(0,)), Check("c", parents=(1,)))
    images = [answered("p", (0.1, 0.9, 0.9), checks, category="Portrait")]
    # b falls with a; c does not, as b was answered right. By DPG-Bench's rule c would fall too.
    assert found(summaries.oneig(images))["score", "alignment"] == pytest.approx(100 / 3)
    assert found(summaries.dpg(images))["score", "DPG-Bench"] == pytest.approx(0.0)


def test_tiif():
    images = [
        answered("a", (0.9, 0.1), category="shape+color"),
        answered("b", (0.9,), category="shape+color"),
        answered("c", (0.9,), category="color+texture"),
        answered("d", (0.2,), category="style"),
    ]
    lines = found(summaries.tiif(images))
    assert lines["attribute", "shape+color"] == pytest.approx(200 / 3)
    assert lines["group", "Basic, attribute"] == pytest.approx((200 / 3 + 100) / 2)
    assert lines["score", "mean of groups"] == pytest.approx(((200 / 3 + 100) / 2 + 0) / 2)


def test_wise():
    names = ("Culture", "Time", "Space", "Biology", "Physics", "Chemistry")
    images = [
        answered(f"{name} {n}", (0.9 if n < k else 0.1,), category=name) for k, name in enumerate(names) for n in (0, 1)
    ]
    lines = found(summaries.wise(images))
    assert [lines["category", name] for name in names] == [0, 50, 100, 100, 100, 100]
    assert lines["score", "WiScore"] == pytest.approx(0.12 * 450)
    assert ("score", "WiScore") not in found(summaries.wise(images[:4]))


def test_checklists_of_ones_own():
    images = [
        answered("a", (0.2, 0.8), kinds("count", "object"), tag="counting"),
        answered("b", (0.6, 0.6), kinds("count", "object"), tag="colors"),
    ]
    lines = found(summaries.checklist(images))
    assert lines["score", "Soft-TIFA GM"] == pytest.approx(50)
    assert lines["kind of question", "count"] == pytest.approx(40)
    assert lines["category", "counting"] == pytest.approx(50)


class Oracle(Reward):
    """Answers the questions that wordings of the bundled world are taken apart into, by the exact detector."""

    calls = 0

    def __init__(self, answer: float = 0.9) -> None:
        self.right = float(answer)

    def __call__(self, images, prompts):
        raise AssertionError("It is asked questions.")

    def answers(self, images, checklists):
        type(self).calls += len(images)
        return [[self.of(detect(image), check) for check in checks] for image, checks in zip(images, checklists)]

    def of(self, detections, check):
        singular = {plural: name for name, plural in PLURALS.items()}
        if match := re.match(r"How many (\w+) are", check.question):
            count = len(detections.get(singular[match[1]], []))
            right = check.answer == ("zero", "one", "two", "three", "four", "five", "six")[count]
        elif match := re.match(r"Are there any (\w+) in", check.question):
            right = bool(detections.get(singular[match[1]]))
        else:
            match = re.match(r"(?:Is|Are) the (\w+) (\w+)\?", check.question)
            things = detections.get(singular.get(match[1], match[1]), [])
            right = bool(things) and all(thing.colour == match[2] for thing in things)
        return self.right if right else 1 - self.right


@pytest.fixture
def oracle(monkeypatch):
    monkeypatch.setattr(Oracle, "calls", 0)
    monkeypatch.setitem(available_rewards.__globals__["_BUILT_IN"], "oracle", f"{__name__}:Oracle")
    return Oracle


def save(image: Image.Image, folder: Path, prompt: int, sample: int) -> Path:
    path = folder / f"{prompt:05d}" / "samples" / f"{sample:05d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two prompts of two images each; of the second prompt one image shows three hearts in place of two."""
    rng = np.random.default_rng(0)
    scenes = {
        "a photo of a red star": [[("star", "red")], [("star", "red")]],
        "a photo of two hearts": [[("heart", "blue")] * 2, [("heart", "blue")] * 3],
    }
    for index, (prompt, kinds) in enumerate(scenes.items()):
        for sample, things in enumerate(kinds):
            save(render(sample_scene(rng, things)), tmp_path / "run", index, sample)
        (tmp_path / "run" / f"{index:05d}" / "metadata.jsonl").write_text(json.dumps({"prompt": prompt}))
    return tmp_path / "run"


class TestRuns:
    def test_exact_answers(self, oracle, folder):
        lines = found(run("checklist", folder, None, "oracle", []))
        # 11 of 12 answers are right: the images of the star have three questions each, those of the hearts two.
        star, hearts, wrong = 0.9, 0.9, 0.5
        assert lines["score", "Soft-TIFA AM"] == pytest.approx(100 * (2 * star + hearts + wrong) / 4)
        assert lines["score", "Soft-TIFA GM"] == pytest.approx(100 * (2 * star + hearts + 0.3) / 4)
        assert lines["kind of question", "count"] == pytest.approx(100 * (3 * 0.9 + 0.1) / 4)
        assert lines["kind of question", "attribute"] == pytest.approx(90)

    def test_every_table_names_the_judge(self, oracle, folder, capsys):
        run("checklist", folder, None, "oracle", ["answer=1.0"])
        out = folder / "checklist"
        assert json.loads((out / "summary.json").read_text())["judge"] == "oracle"
        assert (out / "summary.txt").read_text().startswith("Checklist, judged by oracle")
        rows = (out / "summary.csv").read_text().splitlines()
        assert rows[0].endswith(",judge")
        assert all(row.endswith(",oracle") for row in rows[1:])
        assert "judged by oracle" in capsys.readouterr().out

    def test_again_it_asks_about_what_is_new_or_has_changed(self, oracle, folder):
        run("checklist", folder, None, "oracle", [])
        assert oracle.calls == 4
        before = (folder / "checklist" / "summary.json").stat().st_mtime_ns
        run("checklist", folder, None, "oracle", [])
        assert oracle.calls == 4
        assert (folder / "checklist" / "summary.json").stat().st_mtime_ns == before
        image = folder / "00001" / "samples" / "00001.png"
        save(Image.open(folder / "00001" / "samples" / "00000.png"), folder, 1, 1)
        os.utime(image, (4e9, 4e9))
        save(Image.open(image), folder, 1, 2)
        lines = found(run("checklist", folder, None, "oracle", []))
        assert oracle.calls == 6
        assert lines["score", "Soft-TIFA AM"] == pytest.approx(90)

    def test_other_questions_are_asked(self, oracle, folder, tmp_path):
        run("checklist", folder, None, "oracle", [])
        own = {"prompt": "a photo of two hearts", "checks": [["Are there any hearts in the image?", "yes"]]}
        (tmp_path / "own.jsonl").write_text(json.dumps(own) + "\n")
        lines = found(run("checklist", folder, None, "oracle", [], questions=tmp_path / "own.jsonl"))
        assert oracle.calls == 6
        assert lines["kind of question", "count"] == pytest.approx(90)

    def test_what_was_asked_before_a_failure_is_kept(self, oracle, folder, monkeypatch):
        answers = oracle.answers

        def failing(self, images, checklists):
            if oracle.calls == 2:
                raise RuntimeError("out of order")
            return answers(self, images, checklists)

        monkeypatch.setattr(oracle, "answers", failing)
        with pytest.raises(RuntimeError, match="out of order"):
            run("checklist", folder, None, "oracle", [], batch_size=1)
        monkeypatch.setattr(oracle, "answers", answers)
        run("checklist", folder, None, "oracle", [], batch_size=1)
        assert oracle.calls == 4

    def test_images_without_an_answer_are_named_and_asked_about_again(self, oracle, folder, monkeypatch, capsys):
        answers = oracle.answers

        def silent(self, images, checklists):
            given = answers(self, images, checklists)
            return [[None] * len(one) if len(one) == 3 else one for one in given]

        monkeypatch.setattr(oracle, "answers", silent)
        lines = run("checklist", folder, None, "oracle", [])
        assert lines[0].values == 2
        assert "00000/samples/00001.png: the judge gave no answer" in capsys.readouterr().out.replace("\n", "")
        monkeypatch.setattr(oracle, "answers", answers)
        assert run("checklist", folder, None, "oracle", [])[0].values == 4
        assert oracle.calls == 6

    def test_another_judge_needs_another_folder(self, oracle, folder, tmp_path):
        run("checklist", folder, None, "oracle", [])
        with pytest.raises(ValueError, match="was made with another `judge`"):
            run("checklist", folder, None, "oracle", ["answer=0.8"])
        run("checklist", folder, tmp_path / "other", "oracle", ["answer=0.8"])

    def test_a_reward_that_answers_nothing(self, folder):
        with pytest.raises(ValueError, match="'clip-score' does not answer questions. Judges: checklist, and"):
            run("checklist", folder, None, "clip-score", [])

    def test_geneval2_by_the_command(self, oracle, folder):
        for index, (prompt, count) in enumerate([("a red star", 2), ("two hearts", 2)]):
            entry = {
                "prompt": prompt,
                "atom_count": count,
                "vqa_list": [
                    ["Are there any stars in the image?", "Yes"],
                    ["How many hearts are in the image?", "two"],
                ],
                "skills": ["object", "count"],
            }
            (folder / f"{index:05d}" / "metadata.jsonl").write_text(json.dumps(entry))
        result = CliRunner().invoke(app, ["eval", "geneval2", str(folder), "--judge", "oracle"])
        assert result.exit_code == 0, result.output
        summary = json.loads((folder / "geneval2" / "summary.json").read_text())
        values = {(line["group"], line["name"]): line["estimate"][0] for line in summary["lines"]}
        # Stars in the first two images, two hearts in the third.
        assert values["skill (AM)", "object"] == pytest.approx(50)
        assert values["skill (AM)", "count"] == pytest.approx(100 * (0.9 + 3 * 0.1) / 4)
        assert "Published numbers: judged by Qwen3-VL-8B-Instruct" in result.output.replace("\n", " ")

    def test_a_prompt_that_is_not_in_the_list(self, oracle, folder):
        result = CliRunner().invoke(app, ["eval", "t2i-compbench", str(folder), "--judge", "oracle"])
        assert result.exit_code == 1
        assert "is not in the list 't2i-compbench', and its metadata lack category" in result.output.replace("\n", " ")

    def test_prompts_without_questions_are_left_out(self, oracle, folder):
        for index, more in enumerate([{"checks": [{"question": "Are there any stars in the image?"}]}, {}]):
            entry = {"prompt": f"p{index}", "category": "Portrait", "item_id": str(index), **more}
            (folder / f"{index:05d}" / "metadata.jsonl").write_text(json.dumps(entry))
        lines = found(run("oneig", folder, None, "oracle", []))
        assert lines["score", "alignment"] == pytest.approx(100)
        assert json.loads((folder / "oneig" / "summary.json").read_text())["left_out"] == 2

    def test_a_folder_without_images(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="found none to judge"):
            run("checklist", tmp_path, None, "checklist", [])


@pytest.mark.parametrize(
    ("judge", "options", "expected"),
    [
        ("checklist", [], "checklist (Qwen/Qwen3-VL-8B-Instruct@0c351dd01ed87e9c1b53cbc748cba10e6187ff3b)"),
        ("checklist:qwen2.5-vl-3b=/models/qwen", [], "checklist (/models/qwen)"),
        (
            "checklist-chat",
            ["model=m", "base_url=http://127.0.0.1:8000/v1"],
            "checklist-chat (m at http://127.0.0.1:8000/v1)",
        ),
    ],
)
def test_who_judged(judge, options, expected, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert judge_id(parse_metrics([judge], options)[0]) == expected


def test_a_folder_that_is_not_there_is_said_before_anything_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr("fk_steer.published.download", lambda url: pytest.fail("It was fetched."))
    result = CliRunner().invoke(app, ["eval", "dpg", str(tmp_path / "nowhere")])
    assert result.exit_code == 1
    assert "Expected a folder of images at" in result.stderr and "nowhere, but there is none." in result.stderr
