"""Benchmarks of judges in the forms in which they are published: what is read, what is asked, and what is counted."""

from __future__ import annotations

import json

import pytest
import torch
from chat_server import ChatServer, parts, redness
from PIL import Image
from typer.testing import CliRunner

from fk_steer.cli import app
from fk_steer.evaluation.judge.agreement import of_benchmark, statistics
from fk_steer.evaluation.judge.benchmarks import BENCHMARKS
from fk_steer.evaluation.judge.data import read
from fk_steer.evaluation.judge.judgements import JudgeData, Judgement, Kind, Subject
from fk_steer.evaluation.judge.media import load_frames
from fk_steer.evaluation.judge.scores import score
from fk_steer.rewards import RewardError, load_reward
from llava_reward_guide.images import ImageError


def written(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def values_of(data, scores, **options):
    columns = statistics(data.kind, data.judgements, scores, **options) | of_benchmark(data, data.judgements, scores)
    return {name: value for name, (value, _) in columns.items()}


# What is read


def answers(name, ranking=(0, 1), **fields):
    return {
        "id": name,
        "query": "What is it?",
        "response": ["a cat", "a dog"],
        "image": f"images/{name}.png",
        "human_ranking": list(ranking),
        "models": ["", ""],
        **fields,
    }


IDS = [
    "RLAIF-V-82592",
    "RLHF-V-5665",
    "mathverse_2028",
    "mmmu_pro_test_Computer_Science_334",
    "wildvision-battle-6481",
    "jailbreak-typo-Physical_Harm-15",
    "hallucination_pair-9965",
    "hallucination_pair-1003",
]


def test_vl_reward_bench(tmp_path):
    data = read(written(tmp_path / "data.json", [answers(name) for name in IDS[:-1]] + [answers(IDS[-1], (1, 0))]))
    assert (data.format, data.kind, data.subject) == ("vl-rewardbench", Kind.preferences, Subject.answers)
    one, last = data.judgements[0], data.judgements[-1]
    assert one == Judgement(
        ("images/RLAIF-V-82592.png",),
        ("What is it?", "What is it?"),
        (1.0, 0.0),
        "RLAIF-V-82592",
        ("a cat", "a dog"),
        groups=("hallucination", "hallucination"),
    )
    assert last.human == (0.0, 1.0)
    # The script looks up what an id begins with and so calls POVID's general.
    assert [judgement.groups[0] for judgement in data.judgements] == [
        *["hallucination"] * 2, *["reasoning"] * 2, *["general"] * 4,
    ]  # fmt: skip
    assert [judgement.groups[1] for judgement in data.judgements] == [
        *["hallucination"] * 2, *["reasoning"] * 2, *["general"] * 2, *["hallucination"] * 2,
    ]  # fmt: skip
    # Right on the first of each group and on one of POVID's; the last but one is a tie, which counts as wrong.
    scores = [[1, 0], [0, 1], [1, 0], [0, 1], [1, 0], [0, 1], [0.5, 0.5], [0, 1]]
    found = values_of(data, scores, relative=True)
    assert found["accuracy (fp32)"] == 50.0
    assert found["ties (fp32)"] == 12.5
    assert (found["hallucination"], found["reasoning"], found["general"]) == (50.0, 50.0, 50.0)
    assert found["macro"] == 50.0
    assert (found["corrected hallucination"], found["corrected general"]) == (50.0, 50.0)
    # With groups of different size macro is not the share of all.
    scores[4:6] = [[0, 1], [0, 1]]
    found = values_of(data, scores, relative=True)
    assert found["accuracy (fp32)"] == 37.5
    assert found["general"] == 25.0
    assert found["macro"] == pytest.approx((50 + 50 + 25) / 3)
    assert found["corrected general"] == 0.0
    assert found["corrected hallucination"] == 50.0
    assert found["corrected macro"] == pytest.approx((50 + 50 + 0) / 3)


def film(prompt, human, sides, vote):
    left, right = sides
    return {"prompt": prompt, left: "a.mp4", right: "b.mp4", vote: human}


@pytest.mark.parametrize("sides", [("left_video", "right_video"), ("video_left", "video_right")])
def test_genai_bench_videos(tmp_path, sides):
    kinds = {"leftvote": (1.0, 0.0), "rightvote": (0.0, 1.0), "tievote": (0.0, 0.0), "bothbad_vote": (0.0, 0.0)}
    data = read(written(tmp_path / "data.json", [film("p", kind, sides, "vote_type") for kind in kinds]))
    assert (data.kind, data.subject) == (Kind.votes, Subject.videos)
    assert data.judgements[0].images == ("a.mp4", "b.mp4")
    assert [one.human for one in data.judgements] == list(kinds.values())
    # Right on the left vote and on one of the ties.
    found = values_of(data, [[1, 0], [1, 0], [0.5, 0.5], [1, 0]])
    assert (found["tau"], found["diff"], found["tie votes"]) == (50.0, 50.0, 50.0)


def test_videogen_reward_bench(tmp_path):
    lines = ["path_A,path_B,A_model,B_model,prompt,VQ,MQ,TA,Overall"]
    lines += [f'videos/a.mp4,videos/b.mp4,x,y,"a cat, running",A,same,B,{overall}' for overall in ("A", "B", "same")]
    data = read(written(tmp_path / "videogen-rewardbench.csv", "\n".join(lines)))
    assert (data.format, data.kind, data.subject) == ("videogen-rewardbench", Kind.votes, Subject.videos)
    assert data.judgements[1] == Judgement(
        ("videos/a.mp4", "videos/b.mp4"), ("a cat, running",) * 2, (0.0, 1.0), "a cat, running"
    )
    found = values_of(data, [[0.9, 0.1], [0.55, 0.45], [0.5, 0.5]])
    assert found["tau"] == pytest.approx(200 / 3)
    assert found["diff"] == 50.0
    # Its authors take the best threshold for a tie: up to 0 the third is one, and the second is wrong at any.
    assert found["calibrated tau"] == pytest.approx(200 / 3)
    with pytest.raises(ValueError, match=r"Entry 0: Expected `Overall` to be A, B or same, but got 'C'"):
        read(written(tmp_path / "x.csv", lines[0] + "\na,b,x,y,p,A,A,A,C"))


def pair(prompt, first, second, chosen="A", **fields):
    return {
        "id": "1",
        "prompt_content": prompt,
        "response_a": {"model_name": "a", "response_content": first},
        "response_b": {"model_name": "b", "response_content": second},
        "chosen": chosen,
        "human_annotations": [1, 2],
        **fields,
    }


TEXT, IMAGE = ["text", "Make it red. "], ["image", "input_images/x.jpg"]


def made(name):
    return ["image", f"images/{name}.jpg"]


def test_mmrb2(tmp_path):
    data = read(written(tmp_path / "t2i.json", {"pairs": [pair([TEXT], [made("a")], [TEXT, made("b")], "B")]}))
    assert (data.format, data.subject) == ("mmrb2", Subject.images)
    assert data.judgements == [
        Judgement(("images/a.jpg", "images/b.jpg"), ("Make it red.",) * 2, (0.0, 1.0), "Make it red.")
    ]
    pairs = [
        pair([IMAGE, TEXT], [made("a")], [made("b")]),
        pair([IMAGE, IMAGE, TEXT], [made("a")], [made("b")]),
        pair([IMAGE, TEXT], [made("a")], [made("a"), made("b")]),
        pair([IMAGE, TEXT], [TEXT], [TEXT]),
        pair([IMAGE, TEXT], [made("c")], [made("d")]),
    ]
    data = read(written(tmp_path / "edit.json", {"pairs": pairs}))
    assert data.subject is Subject.edits
    assert [one.before for one in data.judgements] == ["input_images/x.jpg"] * 2
    assert data.judgements[1].images == ("images/c.jpg", "images/d.jpg")
    assert data.left_out == {
        "have several images in the prompt": 1,
        "have several images in an answer, or in one of the two": 1,
        "are answers, not edited images": 1,
    }
    data = read(written(tmp_path / "reasoning.json", {"pairs": [pairs[3]]}))
    assert (data.subject, data.judgements[0].answers) == (Subject.answers, ("Make it red.",) * 2)
    assert data.judgements[0].images == ("input_images/x.jpg",)
    with pytest.raises(ValueError, match="nothing in it that a reward can judge: 1 have several images in the prompt"):
        read(written(tmp_path / "interleaved.json", {"pairs": pairs[1:2]}))
    with pytest.raises(ValueError, match="Entry 0: Expected `chosen` to be A or B, but got ''"):
        read(written(tmp_path / "x.json", {"pairs": [pair([TEXT], [made("a")], [made("b")], "")]}))


def test_mmrb2_counts_each_order():
    judgements = [
        Judgement(("a", "b"), (str(i),) * 2, human, str(i)) for i, human in enumerate([(1.0, 0.0), (0.0, 1.0)] * 2)
    ]
    data = JudgeData("mmrb2", Kind.preferences, judgements)
    # Right in both orders, wrong in both, and twice right in one of them: 4 of 8.
    found = values_of(data, [[1.0, 0.0], [1.0, 0.0], [0.5, 0.5], [0.5, 0.5]], relative=True)
    assert found["accuracy, ties half"] == 50.0
    assert found["accuracy (fp32)"] == 25.0


def test_rows_of_mmrb2_on_the_hub(tmp_path):
    row = {
        "pair_id": "1",
        "prompt_text": "Make <image_0> red.",
        "prompt_images": ["000000-prompt_images-0.image"],
        "response_a_text": "",
        "response_a_images": ["a.image"],
        "response_b_text": "<image_0>",
        "response_b_images": ["b.image"],
        "chosen": "b",
    }
    data = read(written(tmp_path / "data.json", [row]))
    assert (data.format, data.subject) == ("mmrb2-rows", Subject.edits)
    (one,) = data.judgements
    assert (one.images, one.before, one.human) == (("a.image", "b.image"), row["prompt_images"][0], (0.0, 1.0))
    assert " ".join(one.prompts[0].split()) == "Make red."


def test_unknown_forms_name_the_benchmarks(tmp_path):
    with pytest.raises(ValueError, match=r"Known: .*videogen-rewardbench: Overall, path_A, path_B, prompt; .*mmrb2: "):
        read(written(tmp_path / "data.json", [{"text": "p"}]))
    assert set(BENCHMARKS) >= {"vl-rewardbench", "mmrb2", "videogen-rewardbench", "genai-bench-video"}


# Videos


def shades(folder, number, low=0):
    """A folder of frames, each a little redder than the one before."""
    folder.mkdir()
    for place in range(number):
        Image.new("RGB", (32, 32), (low + place, 0, 0)).save(folder / f"{place:03d}.png")
    return folder


def test_frames_of_folders_and_animations(tmp_path):
    folder = shades(tmp_path / "frames", 12)
    frames = [Image.open(path).convert("RGB") for path in sorted(folder.iterdir())]
    frames[0].save(tmp_path / "film.webp", save_all=True, append_images=frames[1:], lossless=True)
    frames[0].save(tmp_path / "film.png", save_all=True, append_images=frames[1:])
    for path in (folder, tmp_path / "film.webp", tmp_path / "film.png"):
        assert [frame.getpixel((0, 0))[0] for frame in load_frames(path, 4)] == [0, 3, 6, 9]
        assert [frame.getpixel((0, 0))[0] for frame in load_frames(path, 4, to_the_end=True)] == [0, 3, 7, 11]
        assert len(load_frames(path, 99)) == 12
    (tmp_path / "none").mkdir()
    with pytest.raises(ImageError, match="holds no frames"):
        load_frames(tmp_path / "none", 4)
    with pytest.raises(ImageError, match=r"nowhere.webp cannot be read as a video"):
        load_frames(tmp_path / "nowhere.webp", 4)


def test_frames_of_films(tmp_path):
    av = pytest.importorskip("av")
    import numpy as np

    with av.open(str(tmp_path / "film.mp4"), "w") as film:
        stream = film.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for place in range(12):
            picture = np.full((64, 64, 3), 20 * place, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                film.mux(packet)
        for packet in stream.encode():
            film.mux(packet)
    found = [frame.getpixel((32, 32))[0] for frame in load_frames(tmp_path / "film.mp4", 4)]
    assert found == pytest.approx([0, 60, 120, 180], abs=6)
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    with pytest.raises(ImageError, match=r"broken.mp4 cannot be read as a video"):
        load_frames(tmp_path / "broken.mp4", 4)


# The command


def run(*arguments):
    return CliRunner().invoke(app, ["judge", *map(str, arguments)])


def options(server, **given):
    values = {"base_url": server.url, "max_retries": 0, **given}
    return [word for key, value in values.items() for word in ("--reward-option", f"{key}={value}")]


def results(out, label="unified-reward"):
    return json.loads((out / label / "results.json").read_text())


def better(text, pictures):
    """Answers with a cat are the better ones, and redder pictures and films."""
    if "Answer 1:" in text:
        first, second = text.split("Answer 1: ")[1].split("\nAnswer 2: ")
        return "Answer 1 is better." if "cat" in first else "Answer 2 is better."
    if "Edited" in text or "edited" in text:
        pictures = pictures[1:]
    half = len(pictures) // 2
    first, second = (sum(map(redness, some)) for some in (pictures[:half], pictures[half:]))
    what = "Video" if "Video 1" in text else "Image"
    return f"{what} {1 if first > second else 2} is better."


def test_judging_answers(tmp_path):
    (tmp_path / "images").mkdir()
    for name in IDS:
        Image.new("RGB", (32, 32), "red").save(tmp_path / "images" / f"{name}.png")
    entries = [answers(name, (0, 1) if number % 2 else (1, 0)) for number, name in enumerate(IDS)]
    entries[0]["response"] = ["a horse", "a cow"]
    path = written(tmp_path / "data.json", entries)
    with ChatServer(better) as server:
        arguments = (path, "--out", tmp_path / "out", "--reward", "unified-reward", "--batch-size", 5)
        found = run(*arguments, *options(server, variant="answer-pair"))
        assert found.exit_code == 0, found.output
        asked = len(server.requests)
        again = run(*arguments, *options(server, variant="answer-pair"))
        assert again.exit_code == 0, again.output
        assert len(server.requests) == asked == 8
        texts = [parts(body)[0] for body in server.requests]
    # Who comes first is by chance, and what is preferred is not the place.
    assert {"Answer 1: a cat" in text for text in texts[1:]} == {True, False}
    statistics = results(tmp_path / "out")["statistics"]
    # The first of an odd number is preferred by people, and 'a cat' by the judge; of the horse it says the second.
    assert statistics["macro"]["value"] == pytest.approx(
        sum(statistics[group]["value"] for group in ("general", "hallucination", "reasoning")) / 3
    )
    assert statistics["reasoning"]["value"] == 50.0
    assert statistics["corrected hallucination"]["value"] >= statistics["corrected general"]["value"] == 50.0
    record = json.loads((tmp_path / "out" / "unified-reward" / "asked.json").read_text())["unified-reward"]
    assert record["variant"] == "answer-pair"
    assert len(record["template sha256"]) == 64


def test_judging_videos(tmp_path):
    shades(tmp_path / "dark", 16), shades(tmp_path / "light", 16, 200)
    entry = {"prompt": "p", "path_A": "light", "path_B": "dark", "Overall": "A"}
    path = written(
        tmp_path / "data.json",
        [entry, {**entry, "prompt": "q", "Overall": "B"}, {**entry, "prompt": "r", "Overall": "same"}],
    )
    with ChatServer(better) as server:
        out = tmp_path / "out"
        found = run(path, "--out", out, "--reward", "unified-reward", *options(server, variant="video-pair"))
        assert found.exit_code == 0, found.output
        assert {len(parts(body)[1]) for body in server.requests} == {16}
        assert results(out)["statistics"]["diff"]["value"] == 50.0
        assert results(out)["statistics"]["tau"]["value"] == pytest.approx(100 / 3)
        # A reward of images scores the frames.
        data = read(path)
        scored = score(
            data, tmp_path, lambda: lambda images, prompts: torch.tensor([redness(x) for x in images]), out / "x"
        )
    means = [sum(redness(frame) for frame in load_frames(tmp_path / name, 8, True)) / 8 for name in ("light", "dark")]
    assert scored.scores[0] == pytest.approx(means)
    refused = run(path, "--out", tmp_path / "no", "--reward", "unified-reward", *options(server, variant="pair"))
    assert refused.exit_code == 1
    assert "The data are of videos, which 'unified-reward' does not judge" in refused.stderr
    assert "variant=video-pair" in refused.stderr


def test_judging_edits(tmp_path):
    (tmp_path / "images").mkdir(), (tmp_path / "input_images").mkdir()
    Image.new("RGB", (48, 48), "blue").save(tmp_path / "input_images" / "x.jpg")
    for name, shade in (("a", 50), ("b", 250)):
        Image.new("RGB", (32, 32), (shade, 0, 0)).save(tmp_path / "images" / f"{name}.jpg")
    pairs = [pair([IMAGE, TEXT], [made("a")], [made("b")], chosen) for chosen in "ABB"]
    pairs.append(pair([IMAGE, IMAGE, TEXT], [made("a")], [made("b")]))
    path = written(tmp_path / "edit.json", {"pairs": pairs})
    with ChatServer(better) as server:
        given = options(server, variant="edit-pair", both_orders=True)
        found = run(path, "--out", tmp_path / "out", "--reward", "unified-reward", *given)
        assert found.exit_code == 0, found.output
        assert "left out 1 that have several images in the prompt" in found.output
        assert len(server.requests) == 6
        assert {parts(body)[1][0].size for body in server.requests} == {(48, 48)}
    assert results(tmp_path / "out")["statistics"]["accuracy, ties half"]["value"] == pytest.approx(200 / 3)
    assert results(tmp_path / "out")["left out"] == {"have several images in the prompt": 1}


def test_answers_without_a_verdict_are_left_out(tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{name}.png")
    entries = [answers("mmmu_1", image="a.png"), answers("mmmu_2", image="b.png", query="Why?")]
    data = read(written(tmp_path / "data.json", entries))

    def silent(text, pictures):
        return "Hm." if "Why?" in text else better(text, pictures)

    with ChatServer(silent) as server:
        scored = score(
            data,
            tmp_path,
            lambda: load_reward("unified-reward", variant="answer-pair", base_url=server.url),
            tmp_path / "out",
        )
        assert [one.cluster for one in scored.judgements] == ["mmmu_1"]
        assert scored.scores == [[1.0, 0.0]]
        assert list(scored.problems) == ["b.png (answer 1)", "b.png (answer 2)"]
    with pytest.raises(RewardError, match="got no answer on the images from judgement 0"):
        score(
            data,
            tmp_path,
            lambda: load_reward("unified-reward", variant="answer-pair", base_url=server.url, max_retries=0),
            tmp_path / "down",
        )
    assert not list((tmp_path / "down").rglob("*.json"))


def test_pairs_of_different_prompts_share_a_call(tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (32, 32), (200 if name == "a" else 20, 0, 0)).save(tmp_path / f"{name}.png")
    judgements = [Judgement(("a.png", "b.png"), (prompt,) * 2, (1.0, 0.0), prompt) for prompt in "pqrp"]
    data = JudgeData("test", Kind.preferences, judgements)

    def silent(text, pictures):
        return "Hm." if "[q]" in text else better(text, pictures)

    calls = []

    def load():
        reward = load_reward("unified-reward", variant="pair", base_url=server.url)
        called = type(reward).__call__
        return type(
            "Counted", (type(reward),), {"__call__": lambda self, x, p: calls.append(list(p)) or called(self, x, p)}
        )(variant="pair", base_url=server.url)

    with ChatServer(silent) as server:
        scored = score(data, tmp_path, load, tmp_path / "out")
    # What says nothing of one prompt loses the whole call, and then each is asked alone.
    assert calls == [[*"ppqqrr"], [*"pp"], [*"qq"], [*"rr"], [*"pp"]]
    assert scored.scores == [[1.0, 0.0]] * 3
    assert [one.cluster for one in scored.judgements] == [*"prp"]


# Parquet


def test_parquet_files(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets")

    for name in ("light", "dark"):
        Image.new("RGB", (32, 32), (200 if name == "light" else 20, 0, 0)).save(tmp_path / f"{name}.png")
    images = {
        name: {"bytes": (tmp_path / f"{name}.png").read_bytes(), "path": f"{name}.png"} for name in ("light", "dark")
    }
    rows = [
        {"prompt": f"p{i}", "left_image": images["light"], "right_image": images["dark"], "vote_type": vote}
        for i, vote in enumerate(["leftvote", "rightvote", "tievote"])
    ]
    (tmp_path / "test").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows[:2]), tmp_path / "test" / "test-00000.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows[2:]), tmp_path / "test" / "test-00001.parquet")
    with ChatServer(better) as server:
        out = tmp_path / "out"
        arguments = ("--out", out, "--reward", "unified-reward", *options(server, variant="pair"))
        found = run(tmp_path / "test", *arguments)
        assert found.exit_code == 0, found.output
        stamp = (out / "data" / "data.json").stat().st_mtime_ns
        assert run(tmp_path / "test", *arguments).exit_code == 0
        assert len(server.requests) == 3
    assert (out / "data" / "data.json").stat().st_mtime_ns == stamp
    assert results(out)["statistics"]["tau"]["value"] == pytest.approx(100 / 3)
    assert results(out)["statistics"]["diff"]["value"] == 50.0
    other = run(tmp_path / "test" / "test-00001.parquet", *arguments)
    assert other.exit_code == 1
    assert "was made with another `data`" in other.stderr


def test_lists_of_images_in_rows(tmp_path, monkeypatch):
    picture = {"bytes": b"GIF", "path": "x.gif"}
    from fk_steer.evaluation.judge import hub

    row = {
        "pair_id": "1",
        "prompt_images": [picture, picture],
        "film": "https://example.org/a.MP4",
        "site": "https://example.org",
        "../fps": float("nan"),
        "../x": picture,
    }
    monkeypatch.setattr(hub, "hub_rows", lambda name: [row])
    monkeypatch.setattr(hub, "download", lambda url: url.encode())
    path = hub.export("a/b/edit:test", tmp_path / "data")
    (kept,) = json.loads(path.read_text())
    assert kept["prompt_images"] == ["000000-prompt_images-0.gif", "000000-prompt_images-1.gif"]
    assert (tmp_path / "data" / "000000-prompt_images-1.gif").read_bytes() == b"GIF"
    assert (tmp_path / "data" / kept["film"]).read_bytes() == b"https://example.org/a.MP4"
    assert kept["site"] == "https://example.org"
    assert kept["../fps"] is None
    # Names of columns lead nowhere else.
    assert kept["../x"] == "000000-___x.gif"
