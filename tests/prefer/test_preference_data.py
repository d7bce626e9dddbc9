"""Preference data from folders, answers, videos and prompts: what is kept and what is dropped, and that `datasets`
opens it."""

from __future__ import annotations

import io
import itertools
import json
import math
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from chat_server import MODEL, ChatServer, failing, redness
from PIL import Image
from typer.testing import CliRunner

from fk_steer.cli import app
from fk_steer.evaluation.generation import SampleRecord
from fk_steer.files import webp
from fk_steer.prefer import panel, run
from fk_steer.prefer.dataset import content_of
from fk_steer.prefer.run import Preference, prefer
from fk_steer.report.trace import Trace, TraceEvent
from fk_steer.rewards import GeneralPreferenceReward, PairwiseReward


parquet = pytest.importorskip("pyarrow.parquet")


COLOURS = {"red": (250, 10, 10), "orange": (200, 120, 40), "grey": (128, 128, 128), "cyan": (10, 240, 240)}


def rows_of(out: Path):
    return [row for path in sorted((out / "data").glob("*.parquet")) for row in parquet.read_table(path).to_pylist()]


def image(colour, size=(32, 32)):
    return Image.new("RGB", size, COLOURS.get(colour, colour))


@pytest.fixture
def folder(tmp_path):
    """Images of two prompts, as `imagefolder` has them, with scores."""
    place = tmp_path / "images"
    place.mkdir()
    lines = []
    for prompt, names in {"a wall": ["grey", "red", "cyan", "orange"], "a door": ["orange", "cyan"]}.items():
        for name in names:
            file = f"{prompt[2:]}-{name}.png"
            image(name).save(place / file)
            lines.append({"file_name": file, "prompt": prompt, "score": len(lines) % 5 + 1.0, "seed": len(lines)})
    (place / "metadata.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return place


def files(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def reddest(images, prompts):
    return torch.tensor([redness(one) for one in images])


@pytest.fixture
def judges(monkeypatch):
    """Rewards by name, in place of the registry's."""
    known = {"reddest": reddest}
    monkeypatch.setattr(run, "check_names", lambda name: None)
    monkeypatch.setattr(panel, "load_guide", lambda name, device, **options: known[name])
    return known


def test_recorded_scores_decide_without_a_judge(folder, tmp_path):
    summary = prefer([folder], tmp_path / "out", Preference())
    # Scores 1 to 5 and 1: of the wall grey 1, red 2, cyan 3, orange 4; of the door orange 5, cyan 1.
    wall, door = rows_of(tmp_path / "out")
    assert (wall["source_0"], wall["source_1"]) == ("images/wall-orange.png", "images/wall-grey.png")
    assert (wall["score_0"], wall["score_1"], wall["margin"], wall["probability"]) == (4.0, 1.0, 3.0, None)
    assert (wall["seed_0"], wall["seed_1"], wall["judge"], wall["rule"]) == (3, 0, "score", "best-worst")
    assert (door["caption"], door["score_0"], door["score_1"]) == ("a door", 5.0, 1.0)
    assert summary["rows"] == summary["prompts with pairs"] == 2 and summary["candidates"] == 6
    assert summary["pairs"] == {**dict.fromkeys(summary["pairs"], 0), "kept": 2}


def test_the_columns_are_those_that_trainers_read(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    prefer([folder], tmp_path / "out", Preference(rule="all-pairs", margin=2.0))
    data = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert {"caption", "jpg_0", "jpg_1", "label_0", "label_1", "image_0_uid", "best_image_uid"} <= set(
        data.column_names
    )
    # As Pick-a-Pic v2 has them.
    kinds = {name: data.features[name].dtype for name in ("caption", "jpg_0", "jpg_1", "label_0", "label_1")}
    assert kinds == {
        "caption": "string",
        "jpg_0": "binary",
        "jpg_1": "binary",
        "label_0": "float64",
        "label_1": "float64",
    }
    assert len({row["id"] for row in data}) == len(data) == 4
    for row in data:
        chosen = Image.open(io.BytesIO(row["jpg_0"]))
        assert chosen.getpixel((0, 0)) == COLOURS[row["source_0"].rpartition("-")[2][:-4]]
        assert (row["label_0"], row["label_1"]) == (1.0, 0.0)
        assert row["score_0"] - row["score_1"] == row["margin"] >= 2.0
    alone = datasets.load_dataset("parquet", data_files=str(tmp_path / "out/data/*.parquet"), split="train")
    assert alone["id"] == data["id"]


def test_a_reward_decides_whatever_was_recorded(folder, tmp_path, judges):
    prefer([folder], tmp_path / "out", Preference("reddest"))
    wall, door = rows_of(tmp_path / "out")
    assert (wall["source_0"], wall["source_1"]) == ("images/wall-red.png", "images/wall-cyan.png")
    assert wall["score_0"] == pytest.approx(redness(image("red")))
    assert door["judge"] == "reddest" and door["replies"] == []


def test_scores_and_limits_out_of_range_are_refused():
    for wrong, message in [
        ({"rule": "best"}, "Unknown rule 'best'"),
        ({"margin": -1.0}, "`margin`"),
        ({"most": 0}, "`most`"),
        ({"judge": "reddish"}, "reddish"),
    ]:
        with pytest.raises(ValueError, match=message):
            Preference(**wrong)


# Judges that are asked.


def unified(server, **options):
    return {"base_url": server.url, "model": MODEL, "template": "ours", "attempts": 1, "max_retries": 0, **options}


def test_a_pairwise_judge_is_asked_in_both_orders(folder, tmp_path):
    with ChatServer() as server:
        prefer([folder], tmp_path / "out", Preference("unified-reward", unified(server, variant="pair"), "all-pairs"))
        assert len(server.requests) == 2 * (6 + 1)
    found = rows_of(tmp_path / "out")
    order = list(itertools.combinations(["red", "orange", "grey", "cyan"], 2))
    sides = {(row["source_0"], row["source_1"]) for row in found if row["caption"] == "a wall"}
    assert sides == {(f"images/wall-{one}.png", f"images/wall-{other}.png") for one, other in order}
    assert {row["probability"] for row in found} == {1.0} and {len(row["replies"]) for row in found} == {2}
    assert "<answer>Image" in found[0]["replies"][0] and found[0]["replies"][0] != found[0]["replies"][1]


def test_a_judge_that_says_the_first_is_better_decides_nothing(folder, tmp_path):
    with ChatServer(lambda text, images: "Image 1 is better than Image 2.") as server:
        options = unified(server, variant="pair")
        for rule in ("best-worst", "all-pairs", "fixed-pairs"):
            summary = prefer([folder], tmp_path / rule, Preference("unified-reward", options, rule))
            assert summary["rows"] == 0 and summary["pairs"]["kept"] == 0
        assert (
            prefer([folder], tmp_path / "all-pairs", Preference("unified-reward", options, "all-pairs"))["pairs"][
                "disagreement"
            ]
            == 7
        )
    assert rows_of(tmp_path / "all-pairs") == []


def test_the_recipe_of_unified_reward(folder, tmp_path):
    def reply(text, images):
        if len(images) == 2:
            return f"Image {1 if redness(images[0]) > redness(images[1]) else 2} is better"
        return f"Final Score: {1 + 4 * redness(images[0]):.3f}"

    with ChatServer(reply) as server:
        summary = prefer([folder], tmp_path / "out", Preference("unified-reward", unified(server), "unified-reward"))
    wall, door = rows_of(tmp_path / "out")
    # The fixed pairs of the wall are grey and red, cyan and orange.
    assert (wall["source_0"], wall["source_1"]) == ("images/wall-red.png", "images/wall-cyan.png")
    assert wall["score_0"] == pytest.approx(1 + 4 * redness(image("red")), abs=1e-3)
    assert wall["reply_0"] == f"Final Score: {1 + 4 * redness(image('red')):.3f}"
    assert wall["replies"] == ["Image 2 is better", "Image 1 is better"] * 2
    assert len(wall["template"]) == 64
    assert summary["pairs"]["kept"] == 2 and door["caption"] == "a door"


def test_a_reply_that_cannot_be_read_drops_the_candidate_and_is_no_zero(folder, tmp_path):
    def reply(text, images):
        # The cyan image is the worst, were it judged.
        return "I cannot say." if redness(images[0]) < 0.1 else f"Final Score: {1 + 4 * redness(images[0]):.3f}"

    with ChatServer(reply) as server:
        options = unified(server, variant="point")
        summary = prefer([folder], tmp_path / "out", Preference("unified-reward", options))
        every = prefer([folder], tmp_path / "all", Preference("unified-reward", options, "all-pairs"))
    (wall,) = rows_of(tmp_path / "out")
    assert (wall["source_0"], wall["source_1"]) == ("images/wall-red.png", "images/wall-grey.png")
    assert wall["score_1"] == pytest.approx(1 + 4 * redness(image("grey")), abs=1e-3)
    assert summary["pairs"]["unreadable"] == 1 and summary["rows"] == 1
    assert every["pairs"]["unreadable"] == 3 + 1 and every["pairs"]["kept"] == 3
    record = json.loads((tmp_path / "out/prompts/00000.json").read_text())
    assert record["candidates"][2]["score"] is None and record["candidates"][2]["reply"] == "I cannot say."


def test_a_judge_in_a_combination_that_has_no_score_for_one_leaves_the_prompt_out(folder, tmp_path, judges):
    from fk_steer.rewards import Ensemble, load_reward

    def reply(text, images):
        return "I cannot say." if redness(images[0]) < 0.1 else f"Final Score: {1 + 4 * redness(images[0]):.3f}"

    with ChatServer(reply) as server:
        judges["both"] = Ensemble([load_reward("unified-reward", **unified(server)), reddest])
        # Steering would take the mean of the others for the cyan image.
        summary = prefer([folder], tmp_path / "out", Preference("both"))
    assert summary["rows"] == 0 and summary["pairs"]["unreadable"] == 2


def test_a_server_that_is_down_is_no_verdict_of_a_combination_either(folder, tmp_path, judges):
    from fk_steer.rewards import Ensemble, load_reward

    with ChatServer(fault=lambda number: failing(500)) as server:
        judges["both"] = Ensemble([load_reward("unified-reward", **unified(server)), reddest])
        with pytest.raises(ValueError, match="got no score for any"):
            prefer([folder], tmp_path / "out", Preference("both"))
    assert not list((tmp_path / "out").glob("prompts/*"))


def test_a_server_that_is_down_ends_the_run_and_nothing_is_lost(folder, tmp_path):
    with ChatServer(fault=lambda number: failing(500) if number >= 4 else None) as server:
        preference = Preference("unified-reward", unified(server))
        with pytest.raises(ValueError, match="got no answer for the prompt 'a door'"):
            prefer([folder], tmp_path / "out", preference)
        assert [path.name for path in (tmp_path / "out/prompts").iterdir()] == ["00000.json"]
        server.fault = lambda number: None
        summary = prefer([folder], tmp_path / "out", preference)
        assert summary["rows"] == 2 and len(server.requests) == 4 + 2 + 2


def test_a_request_that_fails_among_others_is_counted(folder, tmp_path):
    with ChatServer(fault=lambda number: failing(500) if number == 1 else None) as server:
        options = unified(server, concurrency=1)
        summary = prefer([folder], tmp_path / "out", Preference("unified-reward", options, "all-pairs"))
    assert summary["failed requests"] == 1 and summary["pairs"]["unreadable"] == 3


def test_what_only_compares_all_particles_sees_all_of_a_prompt(folder, tmp_path, judges):
    seen = []

    class Standing(PairwiseReward):
        pass

    def comparer(first, second, prompts):
        seen.append(len(first))
        return [0.5 + 0.5 * (redness(one) - redness(other)) for one, other in zip(first, second)]

    judges["standing"] = Standing(comparer)
    prefer([folder], tmp_path / "out", Preference("standing", rule="best-worst"), batch_size=4)
    wall, _ = rows_of(tmp_path / "out")
    assert (wall["source_0"], wall["source_1"]) == ("images/wall-red.png", "images/wall-cyan.png")
    assert wall["probability"] == pytest.approx(0.5 + 0.5 * (redness(image("red")) - redness(image("cyan"))))
    assert seen == [4, 4, 2, 2, 1, 1]


def test_a_general_preference_compares_two_whoever_else_is_there(folder, tmp_path, judges):
    turns = {"red": 0.0, "orange": 0.5, "grey": 1.0, "cyan": 1.5}

    def embed(images, prompts):
        names = [next(name for name, colour in COLOURS.items() if one.getpixel((0, 0)) == colour) for one in images]
        return torch.tensor([[math.cos(turns[name]), math.sin(turns[name])] for name in names])

    judges["general"] = GeneralPreferenceReward(embed, temperature=0.5)
    prefer([folder], tmp_path / "out", Preference("general", rule="all-pairs"))
    found = {
        tuple(re.findall(r"wall-(\w+)", row["source_0"] + row["source_1"])): row["probability"]
        for row in rows_of(tmp_path / "out")
        if row["caption"] == "a wall"
    }
    # s(v, w) is the sine of the angle from v to w.
    assert found == {
        (one, other): pytest.approx(1 / (1 + math.exp(-math.sin(turns[other] - turns[one]) / 0.5)))
        for one, other in itertools.combinations(["red", "orange", "grey", "cyan"], 2)
    }


# Resuming.


def test_a_finished_run_does_nothing_and_loads_nothing(folder, tmp_path, judges):
    out = tmp_path / "out"
    first = prefer([folder], out, Preference("reddest"))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    del judges["reddest"]
    assert prefer([folder], out, Preference("reddest")) == first
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def test_resuming_goes_by_prompt_and_not_by_the_number_of_pairs_kept(tmp_path, judges):
    """The published scripts take up at item number (pairs kept), and after a dropped one do another twice or never."""
    place = tmp_path / "images"
    place.mkdir()
    lines, asked = [], []
    for number, names in enumerate([("red", "cyan"), ("grey", "grey"), ("red", "grey"), ("cyan", "orange")]):
        for side, name in enumerate(names):
            # Alike to the judge and not to the byte: a tie, and no copy.
            image(name, (32, 32 + 32 * side)).save(place / f"{number}-{side}.png")
            lines.append({"file_name": f"{number}-{side}.png", "prompt": f"prompt {number}"})
    (place / "metadata.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    def until(stop):
        def judge(images, prompts):
            if prompts[0] == stop:
                raise KeyboardInterrupt
            asked.append(prompts[0])
            return reddest(images, prompts)

        return judge

    judges["reddest"] = until("prompt 2")
    with pytest.raises(KeyboardInterrupt):
        prefer([place], tmp_path / "out", Preference("reddest"))
    assert not (tmp_path / "out/summary.json").exists()
    judges["reddest"] = until(None)
    prefer([place], tmp_path / "out", Preference("reddest"))
    assert asked == [f"prompt {number}" for number in range(4)]
    prefer([place], tmp_path / "whole", Preference("reddest"))
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert [row["caption"] for row in rows_of(tmp_path / "out")] == ["prompt 0", "prompt 2", "prompt 3"]


def slow(images, prompts):
    time.sleep(0.05)
    return reddest(images, prompts)


def _killed(folder, out, begun):
    torch.set_num_threads(1)
    run.check_names = lambda name: None
    panel.load_guide = lambda name, device, **options: slow
    begun.set()
    prefer([folder], out, Preference("slow"))


def test_a_kill_in_the_middle_and_another_run_give_the_same_bytes(tmp_path, monkeypatch):
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    with (folder / "metadata.jsonl").open("w") as lines:
        for number in range(24):
            for name, colour in COLOURS.items():
                image(tuple((one + number) % 256 for one in colour)).save(folder / f"{number}-{name}.png")
                lines.write(json.dumps({"file_name": f"{number}-{name}.png", "prompt": f"prompt {number}"}) + "\n")
    context = multiprocessing.get_context("fork")
    for _ in range(2):
        begun = context.Event()
        process = context.Process(target=_killed, args=(folder, out, begun))
        process.start()
        assert begun.wait(60)
        before = len(list((out / "prompts").glob("*.json")))
        while len(list((out / "prompts").glob("*.json"))) < before + 3:
            assert process.is_alive()
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert 6 <= len(list((out / "prompts").glob("*.json"))) < 24
    monkeypatch.setattr(run, "check_names", lambda name: None)
    monkeypatch.setattr(panel, "load_guide", lambda name, device, **options: reddest)
    for place in (out, tmp_path / "whole"):
        prefer([folder], place, Preference("slow"))
    assert files(out) == files(tmp_path / "whole") and len(rows_of(out)) == 24


def test_another_judge_or_other_candidates_are_refused(folder, tmp_path, judges):
    out = tmp_path / "out"
    prefer([folder], out, Preference())
    with pytest.raises(ValueError, match="another `judge`"):
        prefer([folder], out, Preference("reddest"))
    with (folder / "metadata.jsonl").open("a") as file:
        file.write(json.dumps({"file_name": "wall-red.png", "prompt": "a door", "score": 9}) + "\n")
    with pytest.raises(ValueError, match="another `candidates_sha256`"):
        prefer([folder], out, Preference())


def test_a_record_that_cannot_be_read_is_set_aside_with_repair(folder, tmp_path):
    out = tmp_path / "out"
    prefer([folder], out, Preference())
    whole = files(out)
    (out / "summary.json").unlink()
    (out / "prompts/00001.json").write_text('{"prompt": "a door", ')
    with pytest.raises(ValueError, match="00001.json is unreadable: no JSON"):
        prefer([folder], out, Preference())
    prefer([folder], out, Preference(), repair=True)
    assert (out / ".unreadable/prompts/00001.json").exists()
    assert {name: content for name, content in files(out).items() if not name.startswith(".unreadable")} == whole


# Candidates.


def test_images_that_are_the_same_are_compared_once(folder, tmp_path):
    image("red").save(folder / "again.png")
    with (folder / "metadata.jsonl").open("a") as file:
        file.write(json.dumps({"file_name": "again.png", "prompt": "a wall", "score": 7}) + "\n")
    summary = prefer([folder], tmp_path / "out", Preference(rule="all-pairs"))
    assert summary["copies"] == 1 and summary["pairs"]["kept"] == 6 + 1


def test_an_image_that_cannot_be_read_is_left_out_and_counted(folder, tmp_path, judges):
    (folder / "wall-red.png").write_bytes(b"no image")
    summary = prefer([folder], tmp_path / "out", Preference("reddest"))
    wall, _ = rows_of(tmp_path / "out")
    assert summary["unreadable images"] == 1 and wall["source_0"] == "images/wall-orange.png"


def test_an_image_that_cannot_be_read_has_no_say_by_its_recorded_score_either(folder, tmp_path):
    (folder / "wall-grey.png").write_bytes(b"no image")
    summary = prefer([folder], tmp_path / "out", Preference())
    wall, _ = rows_of(tmp_path / "out")
    assert summary["unreadable images"] == 1 and wall["source_1"] == "images/wall-red.png"


def test_what_trainers_would_see_otherwise_than_the_judge_is_kept_as_it_saw_it(tmp_path):
    import hashlib

    def kept(path):
        return content_of(path, hashlib.sha256(path.read_bytes()).hexdigest(), "image")

    image("red").save(tmp_path / "plain.png")
    image("red").save(tmp_path / "plain.jpg")
    assert kept(tmp_path / "plain.png") == (tmp_path / "plain.png").read_bytes()
    assert kept(tmp_path / "plain.jpg") == (tmp_path / "plain.jpg").read_bytes()
    turned = image("red", (32, 64))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert Image.open(io.BytesIO(kept(tmp_path / "turned.jpg"))).size == (64, 32)
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    seen = Image.open(io.BytesIO(kept(tmp_path / "clear.png")))
    assert seen.mode == "RGB" and seen.getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(ValueError, match="is not the file that was judged"):
        content_of(tmp_path / "plain.png", "0" * 64, "image")


def trace(prompt, rewards, relative=False):
    number = len(rewards)
    event = TraceEvent(
        step=4, progress=1.0, timestep=None, lmbda=[1.0], rewards=[rewards], scores={}, log_weights=[[0.0] * number],
        ess=[float(number)], resampled=[False], slots_before=[list(range(number))], slots=[list(range(number))],
        parents=[list(range(number))], parent_events=[[0] * number], distinct_roots=[number], resume=None,
        stopped=[False], nfe=8, reward_calls=number,
    )  # fmt: skip
    return Trace(
        [prompt],
        "clip-score",
        {},
        relative,
        events=[event],
        returned=[[[0, slot] for slot in range(number)]],
        log_normalizer=[0.0],
    )


def generated(place, relative=False, compare=True, prompts=("a wall", "a door"), reward="clip-score", seed=5):
    place.mkdir()
    settings = {
        "model": "shapes", "reward": reward, "reward_options": {"path": "shapes"}, "seed": seed,
        "compare": compare, "prompts": list(prompts),
    }  # fmt: skip
    (place / "settings.json").write_text(json.dumps(settings))
    for index, prompt in enumerate(prompts):
        for prefix, rewards in {"": [0.9, 0.7], "unsteered-": [0.8, 0.1]}.items():
            here = place / f"{index:03d}"
            here.mkdir(exist_ok=True)
            for rank, reward in enumerate(rewards):
                image((int(255 * reward), index, seed)).save(here / f"{prefix}{rank:02d}.png")
            trace(prompt, rewards, relative).save(here / f"{prefix}trace.json")
    return place


def test_a_run_of_generate_gives_its_particles_and_their_rewards(tmp_path):
    prefer([generated(tmp_path / "run")], tmp_path / "out", Preference())
    wall, _ = rows_of(tmp_path / "out")
    assert (wall["source_0"], wall["source_1"]) == ("run/000/00.png", "run/000/unsteered-01.png")
    assert (wall["score_0"], wall["score_1"], wall["seed_0"], wall["model_0"]) == (0.9, 0.1, 5, "shapes")
    assert wall["judge"] == "clip-score" and json.loads(wall["judge_options"]) == {"path": "shapes"}


def test_rewards_that_only_compare_are_not_set_against_those_of_another_call(tmp_path):
    prefer([generated(tmp_path / "run", relative=True)], tmp_path / "out", Preference())
    found = [(row["source_0"], row["source_1"]) for row in rows_of(tmp_path / "out")]
    of_wall = [("run/000/00.png", "run/000/01.png"), ("run/000/unsteered-00.png", "run/000/unsteered-01.png")]
    assert found[:2] == of_wall and len(found) == 4


def test_runs_of_several_seeds_come_together_by_prompt(tmp_path):
    runs = [generated(tmp_path / "one", seed=1, compare=False), generated(tmp_path / "two", seed=2, compare=False)]
    summary = prefer(runs, tmp_path / "out", Preference(rule="all-pairs"))
    assert summary["prompts"] == 2 and summary["candidates"] == 8
    # 0.9 and 0.7 of either seed: four pairs, and two ties.
    assert summary["pairs"]["kept"] == 8 and summary["pairs"]["tie"] == 4


def test_rewards_of_several_kinds_are_not_mixed(tmp_path):
    runs = [generated(tmp_path / "one"), generated(tmp_path / "two", reward="hps")]
    with pytest.raises(ValueError, match="of several kinds .*--judge"):
        prefer(runs, tmp_path / "out", Preference())


def test_prompts_that_are_not_finished_are_left_out(tmp_path, capsys):
    place = generated(tmp_path / "run")
    (place / "001/unsteered-trace.json").unlink()
    assert prefer([place], tmp_path / "out", Preference())["prompts"] == 1
    assert "1 prompts are not finished" in capsys.readouterr().out


def benched(place, samples, reward="clip-score"):
    settings = {"model": "shapes", "reward": reward, "reward_options": {}, "samples_per_prompt": samples}
    for kind in ("samples", "records", "traces"):
        (place / "00000" / kind).mkdir(parents=True)
    (place / "settings.json").write_text(json.dumps(settings))
    (place / "00000/metadata.jsonl").write_text('{"prompt": "a wall"}\n')
    for number in range(samples):
        score = 0.2 + 0.1 * number
        image((int(255 * score), 0, 0)).save(place / f"00000/samples/{number:05d}.png")
        record = SampleRecord(0, number, number, "a wall", "fk", score, [score, 0.1], {}, 8, 2, 1.0)
        (place / f"00000/records/{number:05d}.json").write_text(json.dumps(record.to_dict()))
    return place


def test_a_run_of_bench_gives_its_samples(tmp_path):
    prefer([benched(tmp_path / "run", 3)], tmp_path / "out", Preference())
    (row,) = rows_of(tmp_path / "out")
    assert (row["source_0"], row["source_1"]) == ("run/00000/samples/00002.png", "run/00000/samples/00000.png")
    assert (row["seed_0"], row["seed_1"], row["margin"]) == (2, 0, pytest.approx(0.2))


def test_a_run_of_bench_with_one_sample_says_what_gives_more(tmp_path):
    with pytest.raises(
        ValueError, match="no two candidates.*best particle.*--samples-per-prompt 2.*`fk-steer generate`"
    ):
        prefer([benched(tmp_path / "run", 1)], tmp_path / "out", Preference())
    place = benched(tmp_path / "relative", 2)
    trace("a wall", [0.5, 0.5], relative=True).save(place / "00000/traces/00000.json")
    with pytest.raises(ValueError, match="only compare the particles of a call.*--judge"):
        prefer([place], tmp_path / "out", Preference())


def test_a_folder_in_genevals_layout_needs_a_judge(tmp_path, judges):
    place = tmp_path / "images"
    (place / "00000/samples").mkdir(parents=True)
    (place / "00000/metadata.jsonl").write_text('{"prompt": "a wall", "tag": "colors"}\n')
    for number, name in enumerate(["grey", "red"]):
        image(name).save(place / f"00000/samples/{number:05d}.png")
    with pytest.raises(ValueError, match="holds no rewards to decide by.*--judge"):
        prefer([place], tmp_path / "out", Preference())
    prefer([place], tmp_path / "out", Preference("reddest"))
    assert rows_of(tmp_path / "out")[0]["source_0"] == "images/00000/samples/00001.png"


def test_folders_that_hold_no_candidates_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    for place, message in [("nowhere", "but there is none"), ("empty", "metadata.jsonl.* It holds none")]:
        with pytest.raises(FileNotFoundError, match=message):
            prefer([tmp_path / place], tmp_path / "out", Preference())
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "gone.png", "prompt": "a wall"}\n')
    with pytest.raises(FileNotFoundError, match=r"'gone.png' of line 1"):
        prefer([tmp_path], tmp_path / "out", Preference())
    assert not (tmp_path / "out").exists()


# Videos.


def video(path, colours):
    path.write_bytes(webp([image(one) for one in colours], 8))


@pytest.fixture
def videos(tmp_path):
    place = tmp_path / "videos"
    place.mkdir()
    colours = {"good": ["red"] * 3, "fades": ["red", "grey", "cyan"], "bad": ["cyan"] * 4, "other": ["grey"] * 2}
    for name, frames in colours.items():
        # Frames that are all alike would be joined to one.
        video(place / f"{name}.webp", [(COLOURS[one][0], COLOURS[one][1], number) for number, one in enumerate(frames)])
    lines = [{"file_name": f"{name}.webp", "prompt": "a sunset"} for name in ("good", "fades", "bad", "other")]
    (place / "metadata.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return place


def test_videos_are_compared_by_their_own_frames(videos, tmp_path):
    """The published script extends the first video's frames by the second's, and later scores it from both."""
    shown = []

    def reply(text, images):
        shown.append(len(images))
        means = np.mean([redness(one) for one in images])
        if "Video 1" in text:
            half = len(images) // 2
            sides = [np.mean([redness(one) for one in some]) for some in (images[:half], images[half:])]
            return f"Video {1 if sides[0] > sides[1] else 2} is better"
        return f"Final Score: {1 + 9 * means:.3f}"

    with ChatServer(reply) as server:
        options = unified(server, frames=2, concurrency=1)
        prefer([videos], tmp_path / "out", Preference("unified-reward", options, "unified-reward"))
    # Two fixed pairs in both orders with two frames of each video, then four videos alone.
    assert shown == [4] * 4 + [2] * 4
    (row,) = rows_of(tmp_path / "out")
    assert (row["source_0"], row["source_1"]) == ("videos/good.webp", "videos/bad.webp")
    assert row["video_0"] == (videos / "good.webp").read_bytes() and row["label_0"] == 1.0
    assert row["score_1"] == pytest.approx(1 + 9 * redness(image((10, 240, 0))), abs=0.05)


def test_videos_are_scored_by_rewards_of_images_frame_by_frame(videos, tmp_path, judges):
    judges["frames"] = lambda images, prompts: images[:, 0].mean((1, 2))
    prefer([videos], tmp_path / "out", Preference("frames"))
    (row,) = rows_of(tmp_path / "out")
    assert (row["source_0"], row["source_1"]) == ("videos/good.webp", "videos/bad.webp")
    assert row["score_0"] == pytest.approx(250 / 255)


def test_films_are_candidates_too(tmp_path, judges):
    av = pytest.importorskip("av")
    for name, level in {"bright": 200, "dark": 40}.items():
        with av.open(str(tmp_path / f"{name}.mp4"), "w") as film:
            stream = film.add_stream("mpeg4", rate=8)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            for place in range(3):
                picture = np.full((64, 64, 3), level + place, np.uint8)
                for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                    film.mux(packet)
            for packet in stream.encode():
                film.mux(packet)
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    lines = [{"file_name": f"{name}.mp4", "prompt": "a room"} for name in ("broken", "dark", "bright")]
    (tmp_path / "metadata.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    judges["bright"] = lambda images, prompts: images.mean((1, 2, 3))
    summary = prefer([tmp_path], tmp_path / "out", Preference("bright"))
    (row,) = rows_of(tmp_path / "out")
    assert row["video_0"] == (tmp_path / "bright.mp4").read_bytes() and summary["unreadable images"] == 1
    assert (row["score_0"], row["score_1"]) == (pytest.approx(201 / 255, abs=0.03), pytest.approx(41 / 255, abs=0.03))


@pytest.mark.parametrize(
    "variant, what", [("pair", "compares images"), ("answer", "judges texts"), ("edit", "judges edited images")]
)
def test_a_judge_of_something_else_is_refused(videos, tmp_path, variant, what):
    with ChatServer() as server, pytest.raises(ValueError, match=what):
        prefer([videos], tmp_path / "out", Preference("unified-reward", unified(server, variant=variant)))


# Texts about images.


@pytest.fixture
def answers(tmp_path):
    place = tmp_path / "questions"
    place.mkdir()
    image("red").save(place / "red.png")
    lines = [
        {"question": "What colour?", "image": "red.png", "answers": ["Red.", "It is blue.", "A warm red.", "No idea."]},
        {"question": "How many?", "image": "red.png", "answers": ["One.", "One."]},
    ]
    (place / "answers.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return place / "answers.jsonl"


WORTH = {"Red.": 80, "It is blue.": 9, "A warm red.": 100, "No idea.": 30, "One.": 50}


def worth(text, images):
    """The answers in a question about one or two of them."""
    found = sorted((text.index(answer), points) for answer, points in WORTH.items() if answer in text)
    if "Answer 1" in text:
        return f"Answer {1 if found[0][1] > found[-1][1] else 2} is better"
    return f"Final Score: {found[0][1]}"


def test_texts_about_images_by_the_recipe(answers, tmp_path):
    datasets = pytest.importorskip("datasets")
    with ChatServer(worth) as server:
        summary = prefer([answers], tmp_path / "out", Preference("unified-reward", unified(server), "unified-reward"))
    data = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    (row,) = data
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("What colour?", "A warm red.", "It is blue.")
    assert row["image"].getpixel((0, 0)) == COLOURS["red"]
    # 100 is more than 80, which as texts it is not.
    assert (row["score_0"], row["score_1"], row["margin"]) == (100.0, 9.0, 91.0)
    assert summary["copies"] == 1 and summary["kind"] == "text"


def test_texts_are_scored_by_rewards_of_images_as_their_prompts(answers, tmp_path, judges):
    judges["length"] = lambda images, prompts: torch.tensor([float(len(prompt)) for prompt in prompts])
    prefer([answers], tmp_path / "out", Preference("length", rule="all-pairs", most=1))
    (row,) = rows_of(tmp_path / "out")
    assert (row["chosen"], row["rejected"]) == ("It is blue.", "Red.")


def test_texts_about_videos(videos, tmp_path):
    (videos / "answers.jsonl").write_text(
        json.dumps({"question": "What colour?", "image": "good.webp", "answers": ["No idea.", "Red."]}) + "\n"
    )
    shown = []

    def reply(text, images):
        shown.append(len(images))
        return f"Final Score: {4 if 'Red.' in text else 2}"

    with ChatServer(reply) as server:
        prefer([videos / "answers.jsonl"], tmp_path / "out", Preference("unified-reward", unified(server, frames=2)))
    (row,) = rows_of(tmp_path / "out")
    assert (row["chosen"], row["score_0"], shown) == ("Red.", 4.0, [2, 2])
    assert row["video"] == (videos / "good.webp").read_bytes()


# The command.


def command(*words):
    return CliRunner().invoke(app, ["prefer", *map(str, words)])


def test_from_prompts_to_a_dataset_with_the_bundled_model(tmp_path):
    out, prompts = tmp_path / "out", tmp_path / "prompts.txt"
    prompts.write_text("a photo of three hearts\na photo of a red star\n")
    words = ("--prompts", prompts, "--steps", 3, "--particles", 3, "--seeds", 2, "--rule", "all-pairs", "--out", out)
    result = command(*words)
    assert result.exit_code == 0, result.output
    rows = rows_of(out)
    assert {row["caption"] for row in rows} == {"a photo of three hearts", "a photo of a red star"}
    assert {row["seed_0"] for row in rows} | {row["seed_1"] for row in rows} == {0, 1}
    assert all(row["score_0"] > row["score_1"] and row["judge"] == "clip-score" for row in rows)
    assert f"{len(rows)} pairs from 2 of 2 prompts, by the recorded clip-score and the rule all-pairs." in result.output
    of_candidates = {path.name for path in (out / "candidates/seed-0").rglob("*") if path.is_file()} - {".lock"}
    assert of_candidates == {"settings.json", "trace.json", "00.png", "01.png", "02.png"}
    before = files(out)
    assert command(*words).exit_code == 0 and files(out) == before
    # The same candidates by another judge.
    again = command(
        out / "candidates/seed-0", out / "candidates/seed-1", "--judge", "shapes-oracle", "--out", tmp_path / "other"
    )
    assert again.exit_code == 0, again.output
    assert {row["judge"] for row in rows_of(tmp_path / "other")} <= {"shapes-oracle"}


@pytest.mark.parametrize(
    "words, message",
    [
        ((), "Expected folders of candidates, or prompts"),
        (("--judge-option", "variant=pair", "."), "--judge-option needs a --judge"),
        ((".", "--prompts", "shapes"), "and not both"),
        ((".", "--judge", "clip-scor"), "clip-score"),
    ],
)
def test_mistakes_are_one_line(tmp_path, words, message):
    result = command(*words, "--out", tmp_path / "out")
    assert result.exit_code == 1 and message in result.output and "Traceback" not in result.output
    assert not (tmp_path / "out").exists()
