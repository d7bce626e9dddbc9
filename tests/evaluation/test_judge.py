from __future__ import annotations

import csv
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from chat_server import ChatServer, failing, judge
from PIL import Image
from scipy import stats
from typer.testing import CliRunner

from fk_steer.cli import app
from fk_steer.evaluation.judge.agreement import (
    calibrated_accuracy,
    labels,
    preferences,
    ratings,
    statistics,
    verdicts,
    votes,
)
from fk_steer.evaluation.judge.data import JudgeData, Judgement, Kind, read
from fk_steer.evaluation.judge.scores import score
from fk_steer.evaluation.judge.table import write_table
from fk_steer.rewards import PairwiseReward, RewardError, load_reward
from fk_steer.testing import save_clip


DATA = Path(os.environ.get("FK_STEER_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not there; set FK_STEER_DATA")


# Statistics


@needs_data
def test_tifa160():
    """The human answers of TIFA160: published numbers of images and ties, and what is known of two metrics."""
    data = read(DATA / "tifa160.json", DATA / "dsg_tifa160_answers.csv")
    human = [one.human[0] for one in data.judgements]
    assert (data.kind, len(human)) == (Kind.ratings, 800)
    assert np.mean(human) == pytest.approx(3.8626875)
    constant = ratings(human, [0.0] * 800)
    assert constant["pairwise accuracy"][0] == pytest.approx(100 * 23991 / 319600)
    assert constant["human ties"][0] == pytest.approx(100 * 23991 / 319600)
    assert "Pearson" not in constant
    perfect = ratings(human, human)
    assert perfect["pairwise accuracy"][0] == 100.0
    assert perfect["calibrated tie threshold"][0] == 0.0
    assert perfect["Pearson"][0] == pytest.approx(100.0)
    assert perfect["Kendall tau-b"][0] == pytest.approx(100.0)


def test_calibration_by_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(20):
        human, metric = rng.integers(-1, 2, 30), rng.integers(-4, 5, 30) / 4
        shares = {}
        for threshold in sorted({0.0, *np.abs(metric)}):
            verdict = np.where(np.abs(metric) <= threshold, 0, np.sign(metric))
            shares[threshold] = np.mean(verdict == human)
        best = max(shares, key=shares.get)
        assert calibrated_accuracy(human, metric) == (pytest.approx(shares[best]), best)
    # Nothing ties: a threshold of 0 is tried all the same.
    assert calibrated_accuracy([1, -1], [0.5, -0.25]) == (1.0, 0.0)
    assert calibrated_accuracy([1, 0], [0.5, -0.25]) == (1.0, 0.25)


def test_correlations_with_ties():
    rng = np.random.default_rng(0)
    human, metric = rng.integers(0, 4, 60).astype(float), rng.integers(0, 5, 60).astype(float)
    columns = ratings(human.tolist(), metric.tolist())
    assert columns["Kendall tau-b"][0] == pytest.approx(100 * stats.kendalltau(human, metric).statistic)
    # tau-b by its definition.
    pairs = list(itertools.combinations(range(60), 2))
    a, b = (np.array([np.sign(x[i] - x[j]) for i, j in pairs]) for x in (human, metric))
    assert columns["Kendall tau-b"][0] == pytest.approx(100 * (a @ b) / np.sqrt((a @ a) * (b @ b)))
    assert columns["Pearson"][0] == pytest.approx(100 * np.corrcoef(human, metric)[0, 1])


def test_conventions_of_ties():
    gaps = [-0.00041, -0.0003, 0.0, 0.0007, 0.00081, 0.5, -0.5]
    found = verdicts(gaps, [0.0] * len(gaps))
    assert found["fp32"].tolist() == [-1, -1, 0, 1, 1, 1, -1]
    # Divided by the temperature 0.1: the window of ties is about -0.0039 to 0.0078.
    assert found["bf16"].tolist() == [-1, 0, 0, 0, 1, 1, -1]
    assert verdicts(gaps, [0.0] * len(gaps), tie_threshold=0.5)["fp32"].tolist() == [0] * 7
    # A classifier that calls both safe cannot tell them apart.
    found = verdicts([2.0, 2.0, -1.0, 0.0], [1.0, -1.0, 3.0, -2.0])
    assert found["fp32"].tolist() == [1, 1, -1, 1]
    assert found["labels"].tolist() == [0, 1, -1, 1]


def test_accuracy_with_and_without_ties():
    columns = preferences([3.0, 2.0, 1.0, 1.0], [1.0, 1.0, 1.0, 2.0], ["a", "b", "c", "d"])
    assert columns["accuracy (fp32)"][0] == pytest.approx(50.0)
    assert columns["accuracy without ties (fp32)"][0] == pytest.approx(200 / 3)
    assert columns["ties (fp32)"][0] == pytest.approx(25.0)
    # Independent pairs: the binomial standard error.
    assert columns["accuracy (fp32)"][1] == pytest.approx(100 * np.sqrt(0.25 / 3))
    assert columns["ties (labels)"][0] == 100.0
    assert "accuracy without ties (labels)" not in columns


def test_rankings_are_all_pairs_of_different_rank():
    ranked = Judgement(("a", "b", "c"), ("p",) * 3, (-1.0, -2.0, -2.0), "id")
    columns = statistics(Kind.preferences, [ranked], [[0.5, 0.1, 0.9]])
    assert columns["accuracy (fp32)"] == (50.0, None)


def test_votes():
    human, metric = [1, -1, 0, 0, 1], [0.3, -0.2, 0.0, 0.4, -0.1]
    columns = votes(human, metric, list("abcde"))
    assert columns["tau"][0] == pytest.approx(60.0)
    assert columns["tau, tie votes wrong"][0] == pytest.approx(40.0)
    assert columns["diff"][0] == pytest.approx(200 / 3)
    assert columns["tie votes"][0] == pytest.approx(40.0)
    assert columns["calibrated tau"][0] == pytest.approx(60.0)


def test_labels():
    human, scores = [1, 1, 1, 0, 0], [2.0, 0.0, -1.0, -3.0, 0.0]
    columns = {name: value for name, (value, _) in labels(human, scores).items()}
    # Positive 1: 2 hits, 1 miss, 1 false alarm. Positive 0: 1 hit, 1 miss, 1 false alarm.
    assert columns["accuracy"] == pytest.approx(60.0)
    assert columns["F1 (1 positive)"] == pytest.approx(100 * 2 * 2 / 6)
    assert columns["F1 (0 positive)"] == pytest.approx(100 * 2 * 1 / 4)
    assert columns["recall (0 positive)"] == pytest.approx(50.0)
    # Pairs of a 1 and a 0: wins 2 + 1.5 + 1 of 6.
    assert columns["AUC"] == pytest.approx(100 * 4.5 / 6)


def test_f1_of_a_constant_on_smid():
    """Calling all of SMID safe (1649 of 2941 are) gives the F1 that the publication's numbers have to beat."""
    columns = labels([1] * 1649 + [0] * 1292, [1.0] * 2941)
    assert columns["F1 (1 positive)"][0] == pytest.approx(71.9, abs=0.05)
    assert columns["F1 (0 positive)"][0] == 0.0
    assert columns["AUC"][0] == pytest.approx(50.0)


# Formats


def written(path, content):
    path.write_text(json.dumps(content))
    return path


def test_formats(tmp_path):
    path = tmp_path / "data.json"
    data = read(written(path, [{"prompt": ["p", "q"], "chosen_path": "a", "reject_path": "b", "c_rate": 2}]))
    assert data == JudgeData(
        "llava-reward-pairs", Kind.preferences, [Judgement(("a", "b"), ("p", "q"), (1.0, 0.0), "p")]
    )
    data = read(written(path, [{"path": "a", "label": 0, "prompt": "", "source": "SMID"}]))
    assert data == JudgeData("llava-reward-labels", Kind.labels, [Judgement(("a",), ("",), (0.0,), "a")])
    data = read(written(path, [{"caption": "p", "image0": "a", "image1": "b", "label": 1, "info": ""}]))
    assert data == JudgeData("mj-bench", Kind.preferences, [Judgement(("a", "b"), ("p", "p"), (0.0, 1.0), "p")])
    kinds = {"leftvote": (1.0, 0.0), "rightvote": (0.0, 1.0), "tievote": (0.0, 0.0), "bothbad_vote": (0.0, 0.0)}
    entries = [{"prompt": "p", "left_image": "a", "right_image": "b", "vote_type": kind} for kind in kinds]
    data = read(written(path, entries))
    assert (data.format, data.kind) == ("genai-bench", Kind.votes)
    assert [one.human for one in data.judgements] == list(kinds.values())
    lines = tmp_path / "data.jsonl"
    lines.write_text("\n".join(map(json.dumps, entries)))
    assert read(lines) == data


def test_lines_end_where_the_format_says(tmp_path):
    entry = {"prompt": "a\u2028b\u0085c", "chosen_path": "a", "reject_path": "b"}
    (tmp_path / "data.jsonl").write_text(json.dumps(entry, ensure_ascii=False) + "\n\n", encoding="utf-8")
    assert read(tmp_path / "data.jsonl").judgements[0].prompts[0] == entry["prompt"]
    (tmp_path / "bad.jsonl").write_text(json.dumps(entry) + '\n\n{"prompt"\n')
    with pytest.raises(ValueError, match=r"line 3 of .*bad\.jsonl to be JSON"):
        read(tmp_path / "bad.jsonl")


@needs_data
def test_published_samples():
    pairs = read(DATA / "llava_reward_sample" / "pairwise_sample.json")
    assert (pairs.format, pairs.kind) == ("llava-reward-pairs", Kind.preferences)
    # The trailing blank of a prompt matters to the model.
    assert pairs.judgements[0].prompts[0].endswith("voidstar ")
    assert read(DATA / "llava_reward_sample" / "non_pairwise_sample.json").kind is Kind.labels
    ranked = read(DATA / "imagereward_test.json")
    assert (ranked.format, len(ranked.judgements)) == ("image-reward", 466)
    assert ranked.judgements[0].human == (-1.0, -2.0, -5.0, -3.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "Expected a list of objects"),
        ([{"text": "p"}], "Unknown format .* Known: llava-reward-pairs: "),
        ([{"path": "a", "label": 2, "prompt": ""}], "Entry 0: Expected the label 0 or 1, but got 2"),
        ([{"prompt": "p", "left_image": "a", "right_image": "b", "vote_type": "none"}], "Unknown vote 'none'"),
        ({"a": {"text_id": "1", "image_path": "a", "text": "p"}}, "--human"),
        (
            [{"path": "a", "label": 1, "prompt": ""}, {"path": "a", "label": 1}],
            "Entry 1 has no field 'prompt'",
        ),
    ],
)
def test_unknown_forms(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read(written(tmp_path / "data.json", content))


# Scoring


def redness(images, prompts):
    return torch.tensor([np.asarray(image)[..., 0].mean() / 255 for image in images])


@pytest.fixture
def pairs(tmp_path):
    """Ten pairs, the redder image preferred; the last has an image that cannot be read."""
    entries = []
    for index in range(10):
        for name, red in (("c", 200 - index), ("r", 100 + index)):
            Image.new("RGB", (16, 16 + index), (red, 50, 50)).save(tmp_path / f"{index}{name}.png")
        entries.append({"prompt": f"p{index}", "chosen_path": f"{index}c.png", "reject_path": f"{index}r.png"})
    (tmp_path / "9r.png").write_bytes(b"no image")
    return written(tmp_path / "pairs.json", entries)


def test_scoring_resumes(pairs, tmp_path):
    calls = []

    def reward(images, prompts):
        calls.append(list(prompts))
        return redness(images, prompts)

    data, out = read(pairs), tmp_path / "out"
    scored = score(data, pairs.parent, lambda: reward, out, batch_size=4)
    assert calls[0] == ["p0", "p0", "p1", "p1", "p2", "p2", "p3", "p3"]
    assert len(calls) == 3
    assert len(scored.judgements) == 9
    assert list(scored.problems) == ["9r.png"]
    assert scored.seconds_per_image > 0
    columns = statistics(data.kind, scored.judgements, scored.scores)
    assert columns["accuracy (fp32)"] == (100.0, 0.0)

    def never():
        raise AssertionError("nothing is missing")

    assert score(data, pairs.parent, never, out, batch_size=4) == scored
    # An interrupted batch is done again, and nothing else.
    (out / "scores" / "000004.json").unlink()
    assert score(data, pairs.parent, lambda: reward, out, batch_size=4).scores == scored.scores
    assert calls[3:] == [calls[1]]


def test_comparing_rewards_see_the_two_images_alone(tmp_path):
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    data = JudgeData(
        "test", Kind.preferences, [Judgement(("a.png", "b.png"), ("p", "p"), (1.0, 0.0), str(i)) for i in range(200)]
    )

    def prefer_the_first(first, second, prompts):
        return torch.ones(len(prompts))

    scored = score(data, tmp_path, lambda: PairwiseReward(prefer_the_first), tmp_path / "out", batch_size=50)
    columns = statistics(data.kind, scored.judgements, scored.scores)
    # The better image always comes first in the data. Whoever prefers a place must not profit: 5 standard errors.
    assert columns["accuracy (fp32)"][0] == pytest.approx(50.0, abs=5 * 100 * 0.5 / np.sqrt(200))
    # Probabilities of winning are no scores of single images; that is known without the reward, too.
    again = score(data, tmp_path, lambda: pytest.fail("nothing is missing"), tmp_path / "out", batch_size=50)
    columns = statistics(data.kind, again.judgements, again.scores, relative=again.relative)
    assert columns and all(name.endswith("(fp32)") for name in columns)
    single = JudgeData("test", Kind.labels, [Judgement(("a.png",), ("p",), (1.0,), "p")])
    with pytest.raises(ValueError, match="Choose a reward that scores images"):
        score(single, tmp_path, lambda: PairwiseReward(prefer_the_first), tmp_path / "single")


def silent_about_dark_images(text, images):
    return "I would rather not say." if redness(images, [])[0] < 0.42 else judge(text, images)


@pytest.mark.parametrize("variant", ["point", "pair"])
def test_grades_that_could_not_be_had(pairs, tmp_path, variant):
    """The judge is silent about dark images; of a pair, if the dark one comes first."""
    with ChatServer(silent_about_dark_images) as server:

        def reward():
            return load_reward("unified-reward", variant=variant, base_url=server.url, max_retries=0)

        scored = score(read(pairs), pairs.parent, reward, tmp_path / "out", batch_size=1)
        server.fault = lambda number: failing(500)
        with pytest.raises(RewardError, match="InternalServerError"):
            score(read(pairs), pairs.parent, reward, tmp_path / "later", batch_size=1)
    left_out = [path for path, problem in scored.problems.items() if "has no score for it" in problem]
    assert left_out
    assert len(scored.judgements) + len({path[0] for path in left_out}) == 9
    assert all(first > second for first, second in scored.scores)
    assert not list((tmp_path / "later").rglob("*.json"))


def test_images_are_turned_the_right_way_up(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, given in (("upright", None), ("lying", exif)):
        Image.new("RGB", (8, 4)).save(tmp_path / f"{name}.png", exif=given)
    data = JudgeData("test", Kind.preferences, [Judgement(("upright.png", "lying.png"), ("p", "p"), (1.0, 0.0), "p")])

    def width(images, prompts):
        return torch.tensor([float(image.width) for image in images])

    assert score(data, tmp_path, lambda: width, tmp_path / "out").scores == [[8.0, 4.0]]


def test_infinite_rewards_are_refused(pairs, tmp_path):
    def reward(images, prompts):
        return torch.tensor([float("inf") if prompt == "p5" else 0.0 for prompt in prompts])

    with pytest.raises(RewardError, match="returned inf for an image of judgement 5"):
        score(read(pairs), pairs.parent, lambda: reward, tmp_path / "out", batch_size=4)


def run(*arguments):
    return CliRunner().invoke(app, ["judge", *map(str, arguments)])


def test_command(pairs, tmp_path):
    option = f"path={save_clip(tmp_path / 'clip')}"
    arguments = (pairs, "--out", tmp_path / "out", "--reward-option", option, "--batch-size", 4, "--device", "cpu")
    first = run(*arguments)
    assert first.exit_code == 0, first.output
    assert "skipped 9r.png" in first.output
    results = json.loads((tmp_path / "out" / "clip-score" / "results.json").read_text())
    assert (results["judgements"], results["skipped"]) == (9, 1)
    assert 0 <= results["statistics"]["accuracy (fp32)"]["value"] <= 100
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("scores/*")}
    again = run(*arguments, "--tie-threshold", 10)
    assert again.exit_code == 0, again.output
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("scores/*")} == stamps
    results = json.loads((tmp_path / "out" / "clip-score" / "results.json").read_text())
    assert results["statistics"]["ties (fp32)"]["value"] == 100.0
    # Another reward beside it shares the table.
    second = run(*arguments, "--label", "hessel", "--reward-option", "variant=hessel")
    assert second.exit_code == 0, second.output
    with (tmp_path / "out" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["reward"], row["judgements"]) for row in rows] == [("clip-score", "9"), ("hessel", "9")]
    refused = run(*arguments[:-4], "--batch-size", 5)
    assert refused.exit_code == 1
    assert "another `batch_size` (batch_size: 4 -> 5)" in refused.stderr


def test_counts_are_whole_numbers(tmp_path):
    counts = {"judgements": 12345, "skipped": 0, "seconds per image": 0.123456}
    (tmp_path / "clip-score").mkdir()
    written(tmp_path / "clip-score" / "results.json", {**counts, "statistics": {}})
    write_table(tmp_path)
    assert (tmp_path / "table.csv").read_text().splitlines()[1] == "clip-score,12345,0,0.1235"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "nowhere"], "None of the 20 images is there, such as nowhere"),
        (["--reward", "nope"], "Unknown reward 'nope'"),
        (["--reward", "llm-grader", "--reward-option", "base_url=http://u:p@x/v1"], "without a user and password"),
        (["--label", ".."], "usable as the name of a folder"),
        (["--label", "a/b"], "usable as the name of a folder"),
        (["--temperature", "0"], "`temperature` to be above 0.0"),
        (["--human", "answers.csv"], "belong to TIFA160"),
    ],
)
def test_bad_input(pairs, tmp_path, arguments, message):
    result = run(pairs, "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_rows_and_images_of_a_hugging_face_dataset(pairs, tmp_path, monkeypatch):
    images = [{"bytes": (tmp_path / name).read_bytes(), "path": None} for name in ("0c.png", "0r.png")]
    row = {"caption": "p", "image0": images[0], "image1": images[1], "label": 0, "info": ""}
    monkeypatch.setattr("fk_steer.evaluation.judge.hub.hub_rows", lambda name: [row] * 3)
    option = f"path={save_clip(tmp_path / 'clip')}"
    found = run("hf:MJ-Bench/MJ-Bench:safety", "--out", tmp_path / "out", "--reward-option", option, "--device", "cpu")
    assert found.exit_code == 0, found.output
    assert json.loads((tmp_path / "out" / "clip-score" / "results.json").read_text())["judgements"] == 3
    assert read(tmp_path / "out" / "data" / "data.json").format == "mj-bench"
