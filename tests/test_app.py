"""What the page of `fk-steer app` stands on, without the page."""

from __future__ import annotations

import json
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from chat_server import MODEL, ChatServer
from PIL import Image

from fk_steer.app import parts, results
from fk_steer.app.form import options_of, prompt_of, settings_of, spelled, weights_of
from fk_steer.app.judging import Scored, Verdict, judge_pair, readable, score_images, table
from fk_steer.app.limits import Limits
from fk_steer.app.models import Models
from fk_steer.app.running import Run, Runs
from fk_steer.generate import Generation, generate_into
from fk_steer.report.trace import Trace


PROMPT = "a photo of a red star"
FORM = {
    "prompt": PROMPT,
    "model": "shapes",
    "rewards": ["clip-score"],
    "weights": ["", "", "", ""],
    "options": "",
    "preset": "finish",
    "particles": "2",
    "budget": "",
    "lmbda": "",
    "steps": "5",
    "seed": "3",
    "guidance": "",
    "negative": "",
    "height": "",
    "width": "",
    "scheduler": "",
    "compare": True,
    "batch_size": "",
}


@pytest.fixture(scope="module")
def models():
    torch.set_num_threads(1)
    return Models("cpu")


def asked(**changes):
    return settings_of({**FORM, **changes}, Limits())


def run_of(models, folder, **changes):
    settings, weights, batch_size = asked(**changes)
    return Run(models, settings, weights, folder, batch_size)


# The form.


def test_a_form_asks_for_what_the_command_would():
    settings, weights, rows = asked(batch_size="2", lmbda="12,5", guidance="4", preset="fk")
    assert settings == Generation.of(
        [PROMPT], "shapes", preset="fk", particles=2, lmbda=12.5, steps=5, guidance=4.0, seed=3, compare=True
    )
    assert (weights, rows) == ({"clip-score": 1.0}, 2)


def test_empty_fields_are_left_to_preset_and_model():
    settings, _, rows = asked(particles="", steps=" ", prompt="  a photo\n of  a red star ")
    assert settings.steering["num_particles"] == 4
    assert (settings.steps, settings.guidance, rows) == (25, 3.0, None)
    assert settings.prompts == [PROMPT]


def test_without_a_seed_any_is_drawn():
    seeds = {asked(seed="")[0].seed for _ in range(4)}
    assert len(seeds) > 1 and all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize(
    "field, typed, said",
    [
        ("prompt", " ", "Prompt: say what the picture should show"),
        ("prompt", "x" * 2001, "Prompt: expected at most 2000 letters, but got 2001."),
        (
            "lmbda",
            "strong",
            "Lambda: expected a number such as 12 or 0.5, or nothing for the reward's own, but got 'strong'.",
        ),
        ("lmbda", "nan", "Lambda: expected a number"),
        ("lmbda", "1e999", "Lambda: expected a number"),
        (
            "particles",
            "1000",
            "Candidates: expected a whole number from 1 to 32, or nothing for the preset's, but got '1000'.",
        ),
        ("particles", "0", "Candidates: expected a whole number from 1 to 32"),
        ("particles", "2.5", "Candidates: expected a whole number"),
        ("steps", "many", "Steps: expected a whole number from 1 to 250"),
        ("steps", "-3", "Steps: expected"),
        ("seed", "x", "Seed: expected a whole number from 0"),
        ("budget", "1e9", "Budget: expected a whole number from 1 to 5000"),
        ("width", "99999", "Width: expected a whole number from 8 to 2048"),
        ("guidance", "7.5.1", "Guidance: expected a number"),
        ("batch_size", "no", "Rows at a time: expected a whole number"),
        ("rewards", [], "Rewards: choose from one to 4 of them."),
        ("rewards", ["clip-scroe"], "clip-scroe"),
        ("preset", "finsh", "finsh"),
        ("options", "path", "Expected --reward-option as KEY=VALUE"),
        ("options", "hps:path=x", "is for a reward that is not scored by"),
        ("options", "base_url=http://user:secret@host/v1", "Expected `base_url` without a user and password"),
        ("negative", "x" * 2001, "Keep out: expected at most 2000 letters"),
    ],
)
def test_what_is_wrong_in_a_form_is_named(field, typed, said):
    with pytest.raises(ValueError) as error:
        asked(**{field: typed})
    assert said in parts.line_of(error.value)
    assert "secret" not in str(error.value)


def test_a_budget_chooses_the_candidates():
    assert asked(particles="", budget="60")[0].steering["calls"] == 60
    with pytest.raises(ValueError, match="Give one of the two"):
        asked(particles="2", budget="60")


def test_several_rewards_are_weighted():
    settings, weights, _ = asked(rewards=["clip-score", "image-reward"], weights=["2", "", "", ""])
    assert weights == {"clip-score": 2.0, "image-reward": 1.0}
    assert settings.reward == "2*clip-score+image-reward"
    assert settings.reward_options == {"clip-score": {"path": "shapes"}, "image-reward": {"path": "shapes"}}
    assert weights_of(["clip-score"], ["7"]) == {"clip-score": 1.0}
    assert spelled({"a": 1.0, "b": 1.0}) == "a+b"
    with pytest.raises(ValueError, match="Weight of hps: expected a number other than 0"):
        weights_of(["clip-score", "hps"], ["", "0"])


def test_options_are_of_one_reward_or_of_all():
    found = options_of(["clip-score", "hps"], "dtype=float16\nhps:path=folder\n\n", None, Limits())
    assert found == {"clip-score": {"dtype": "float16"}, "hps": {"dtype": "float16", "path": "folder"}}
    assert options_of(["clip-score"], "", "shapes-xl", Limits()) == {"clip-score": {"path": "shapes-xl"}}


@pytest.mark.parametrize(
    "changes", [{"model": "/etc"}, {"model": "owner/name"}, {"rewards": ["hps"]}, {"options": "path=/etc/passwd"}]
)
def test_a_page_for_strangers_offers_what_comes_along_alone(changes):
    with pytest.raises(ValueError):
        settings_of({**FORM, **changes}, Limits(fixed=True))
    assert settings_of({**FORM, "rewards": ["llava-reward"]}, Limits(fixed=True))[0].model == "shapes"


def test_prompts_are_one_line():
    assert prompt_of("two\nlines ", Limits()) == "two lines"


# Runs.


def test_a_run_makes_what_the_command_makes(models, tmp_path):
    settings, weights, _ = asked()
    run = Run(models, settings, weights, tmp_path / "app")
    news = list(run)
    stages = list(dict.fromkeys(one.stage for one in news))
    assert stages[-4:] == ["loading", "unsteered", "steered", "done"]
    assert news[-1].trace is not None and news[-1].trace.returned and not run.stopped
    best = news[-1].best
    files = results.finish(tmp_path / "app", settings, complete=True)
    generate_into(tmp_path / "command", settings, device="cpu")
    for name in ("00", "01", "unsteered-00", "unsteered-01"):
        made, wanted = (Image.open(tmp_path / of / "000" / f"{name}.png") for of in ("app", "command"))
        assert made.tobytes() == wanted.tobytes()
    pictures, _ = results.kept(tmp_path / "app", settings)
    assert [picture.reward for picture in pictures] == Trace.load(files["trace"]).rewards[0]
    assert best["steered"] == pytest.approx(pictures[0].reward)
    plain, first = results.kept(tmp_path / "app", settings, "unsteered-")
    assert best["unsteered"] == pytest.approx(plain[0].reward)
    assert Trace.load(tmp_path / "app/000/unsteered-trace.json").returned[0][first] == [0, 0]
    with zipfile.ZipFile(files["all"]) as packed:
        names = {name.removeprefix("fk-steer/") for name in packed.namelist()}
    assert {
        "000/00.png",
        "000/unsteered-01.png",
        "000/trace.json",
        "report.html",
        "tree.html",
        "settings.json",
    } <= names
    # The command takes the folder for its own, and finds it finished.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "app/000").iterdir()}
    generate_into(tmp_path / "app", settings, device="cpu")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "app/000").iterdir()}


def test_a_tree_grows_event_by_event(models, tmp_path):
    events = [len(news.trace.events) for news in run_of(models, tmp_path, compare=False) if news.trace]
    assert events == sorted(events) and len(set(events)) > 2
    assert all(event.predictions for event in Trace.load(tmp_path / "000/trace.json").events)
    assert not (tmp_path / "000/unsteered-trace.json").exists()


def test_weighted_rewards_steer_by_their_z_scores(models, tmp_path):
    changes = {"rewards": ["clip-score", "shapes-oracle"], "weights": ["3", "1", "", ""], "compare": False}
    *_, last = run_of(models, tmp_path, **changes)
    assert last.trace.reward == "0.75 * z(clip-score) + 0.25 * z(shapes-oracle)"
    assert set(last.trace.events[0].scores) >= {"clip-score", "shapes-oracle"}


def test_a_run_stopped_before_an_event_leaves_no_steered_picture(models, tmp_path):
    run = run_of(models, tmp_path)
    for news in run:
        if news.stage == "unsteered" and news.steps:
            run.stop()
    assert run.stopped and news.stage == "done" and news.trace is None
    assert not list(tmp_path.rglob("*.png"))
    assert not models.lock.locked()


def test_a_run_stopped_later_gives_the_predictions_of_its_last_look(models, tmp_path):
    run = run_of(models, tmp_path, steps="12", compare=False)
    asked_to = False
    for news in run:
        if news.trace is not None and not asked_to:
            run.stop()
            asked_to = True
    assert run.stopped
    trace = Trace.load(tmp_path / "000/trace.json")
    assert trace.returned and len(trace.events) < 8
    settings = run.settings
    files = results.finish(tmp_path, settings, complete=False)
    assert files["picture"].exists() and not (tmp_path / "settings.json").exists()
    assert not models.lock.locked()


def test_a_run_stopped_twice_ends_at_its_next_step(models, tmp_path):
    run = run_of(models, tmp_path, steps="20", compare=False)
    for news in run:
        if news.trace is not None:
            run.stop()
            run.stop()
    assert run.stopped and len(news.trace.events) < 6 and not news.trace.returned
    assert not list(tmp_path.rglob("*.png")) and not models.lock.locked()


def test_whoever_goes_away_stops_the_run(models, tmp_path):
    run = run_of(models, tmp_path, steps="50")
    told = iter(run)
    for news in told:
        if news.steps:
            break
    told.close()
    assert models.lock.acquire(timeout=20)
    models.lock.release()
    assert not list(tmp_path.rglob("trace.json"))
    # The pipeline is as it was.
    assert "progress_bar" not in vars(models.pipeline("shapes"))


def test_a_run_waits_for_another_and_can_be_stopped_meanwhile(models, tmp_path):
    with models.lock:
        run = run_of(models, tmp_path)
        told = iter(run)
        assert next(told).stage == "waiting"
        run.stop()
        assert [news.stage for news in told] == ["done"] and run.stopped


@pytest.mark.parametrize(
    "changes, said",
    [({"model": "shapse"}, "shapes"), ({"scheduler": "fastest"}, "fastest"), ({"options": "pth=x"}, "no option 'pth'")],
)
def test_errors_of_a_run_reach_whoever_watches(models, tmp_path, changes, said):
    with pytest.raises((ValueError, OSError), match=said):
        list(run_of(models, tmp_path, **changes))
    assert not models.lock.locked()


def test_what_is_loaded_stays(models):
    assert models.pipeline("shapes") is models.pipeline("shapes")
    options = {"path": "shapes"}
    assert models.reward("clip-score", options) is models.reward("clip-score", dict(options))
    assert models.reward("clip-score", options) is not models.reward("clip-score", {"path": "shapes-held-out"})
    before = models.pipeline("shapes")
    models.pipeline("shapes-xl")
    assert models.pipeline("shapes") is not before


def test_a_pipeline_comes_with_its_own_scheduler(models, tmp_path):
    own = models.pipeline("shapes").scheduler
    list(run_of(models, tmp_path, scheduler="euler", compare=False, steps="3"))
    assert models.pipeline("shapes").scheduler is own


def test_a_session_has_one_run():
    class Told(threading.Event):
        stop = abandon = threading.Event.set

    runs, first, second = Runs(), Told(), Told()
    with runs.holding("a", first):
        assert not runs.stop("b") and not first.is_set()
        with runs.holding("a", second):
            assert first.is_set() and not second.is_set()
            assert runs.stop("a") and second.is_set()
    assert not runs.stop("a") and not runs.stop(None)


# Pictures that somebody brings along.


@pytest.fixture
def pictures(tmp_path):
    made = {}
    for name, colour in (("red", "#d62026"), ("blue", "#2e4cd6")):
        made[name] = tmp_path / f"{name}.png"
        image = Image.new("RGB", (64, 64), "#eee")
        image.paste(colour, (20, 20, 44, 44))
        image.save(made[name])
    made["broken"] = tmp_path / "broken.png"
    made["broken"].write_bytes(b"nothing")
    return made


CLIP = {"clip-score": {"path": "shapes"}}


def test_pictures_are_scored_best_first(models, pictures):
    files = [pictures[name] for name in ("blue", "broken", "red")]
    scored = score_images(
        models, files, "a photo of a red square", {**CLIP, "image-reward": {"path": "shapes"}}, Limits()
    )
    assert [one.name for one in scored] == ["red.png", "blue.png", "broken.png"]
    assert scored[0].scores["clip-score"] > scored[1].scores["clip-score"]
    assert scored[0].overall == pytest.approx(-scored[1].overall)
    assert scored[2].image is None and "no known format" in scored[2].problem and "/" not in scored[2].problem
    lines = table(scored).splitlines()
    assert lines[0] == "image,clip-score,image-reward,mean z-score,problem" and lines[1].startswith("red.png,")
    shown = parts.score_table(scored)
    assert shown.count("fk-best") == 2
    assert shown.index("red.png") < shown.index("blue.png") < shown.index("broken.png")


def test_pictures_that_cannot_be_scored(models, pictures):
    with pytest.raises(ValueError, match="choose at least one"):
        score_images(models, [], PROMPT, CLIP, Limits())
    with pytest.raises(ValueError, match="at most 1 at a time, but got 2"):
        score_images(models, [pictures["red"]] * 2, PROMPT, CLIP, Limits(images=1))
    with pytest.raises(ValueError, match=r"none of them can be read. broken.png: .*no known format"):
        score_images(models, [pictures["broken"]], PROMPT, CLIP, Limits())
    with pytest.raises(ValueError, match="image as the second"):
        judge_pair(models, pictures["red"], pictures["broken"], PROMPT, "clip-score", CLIP["clip-score"])


def test_one_picture_has_no_place_among_others(models, pictures):
    (one,) = score_images(models, [pictures["red"]], PROMPT, CLIP, Limits())
    assert one.overall is None and "overall" not in parts.score_table([one])


def test_a_pair_by_scores(models, pictures):
    found = judge_pair(
        models, pictures["blue"], pictures["red"], "a photo of a red square", "clip-score", CLIP["clip-score"]
    )
    assert found.better == 1 and not found.relative and not found.reasons
    shown = parts.verdict(found)
    assert "B is better." in shown and "Scores by" in shown and "no reasons" in shown


def test_a_pair_by_a_general_preference(models, pictures):
    options = {"path": "shapes", "objective": "general-preference"}
    found = judge_pair(models, pictures["red"], pictures["blue"], "a photo of a red square", "llava-reward", options)
    assert found.relative and sum(found.scores) == pytest.approx(1.0)
    assert found.better == int(found.scores[1] > found.scores[0])
    other = judge_pair(models, pictures["blue"], pictures["red"], "a photo of a red square", "llava-reward", options)
    assert other.scores == pytest.approx(found.scores[::-1], abs=1e-5)
    assert "is preferred with probability" in parts.verdict(found)
    same = judge_pair(models, pictures["red"], pictures["red"], PROMPT, "llava-reward", options)
    assert same.better is None and "Neither" in parts.verdict(same)


def test_a_chat_judge_says_why(pictures):
    pytest.importorskip("openai")
    graded = {"overall_score": {"explanation": "It is <b>red</b>.", "score": 8}}
    with ChatServer(lambda text, images: json.dumps(graded)) as server:
        options = {"model": MODEL, "base_url": server.url}
        found = judge_pair(Models("cpu"), pictures["red"], pictures["blue"], PROMPT, "llm-grader", options)
    assert found.scores == (8.0, 8.0) and found.better is None
    assert found.reasons == (
        ("of A", "overall score: 8, It is <b>red</b>."),
        ("of B", "overall score: 8, It is <b>red</b>."),
    )
    assert "&lt;b&gt;red" in parts.verdict(found) and "<b>red" not in parts.verdict(found)


def test_a_judge_of_pairs_is_asked_in_both_orders(pictures):
    pytest.importorskip("openai")
    with ChatServer(lambda text, images: "The colours are right. Image 1 is better than Image 2.") as server:
        options = {"variant": "pair", "both_orders": True, "model": MODEL, "base_url": server.url}
        found = judge_pair(Models("cpu"), pictures["red"], pictures["blue"], PROMPT, "unified-reward", options)
    # It likes whatever comes first.
    assert found.relative and found.scores == (0.5, 0.5) and found.better is None
    assert [title for title, _ in found.reasons] == ["A shown first", "B shown first"]


def test_a_judge_that_does_not_answer_is_an_error(pictures):
    pytest.importorskip("openai")
    options = {"model": MODEL, "base_url": "http://127.0.0.1:9/v1", "max_retries": 0}
    with pytest.raises(ValueError, match="got no answer for these pictures"):
        judge_pair(Models("cpu"), pictures["red"], pictures["blue"], PROMPT, "llm-grader", options)


def test_replies_are_made_readable():
    assert readable('```json\n{"alignment": {"score": 3, "why": "half of it"}, "total_score": 4}\n```') == (
        "alignment: 3, half of it\ntotal score: 4"
    )
    assert readable(" Image 1 is better. ") == "Image 1 is better."
    assert readable("[1, 2]") == "[1, 2]"


# The page's pieces.


def test_what_somebody_typed_is_escaped():
    bad = "<img src=x onerror=alert(1)>"
    image = Image.new("RGB", (8, 8))
    shown = parts.score_table([Scored(bad, image, {bad: 1.0}), Scored(bad, None, {}, None, bad)])
    shown += (
        parts.status(bad)
        + parts.status(bad, error=True)
        + parts.verdict(Verdict(bad, (1.0, 2.0), False, ((bad, bad),)))
    )
    assert bad not in shown and shown.count("&lt;img src=x") >= 7


@pytest.mark.parametrize(
    "error, said",
    [
        (ValueError("two\nlines"), "two lines"),
        (MemoryError(), "There is not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "fewer candidates"),
        (ValueError(), "ValueError"),
        (RuntimeError("odd"), "RuntimeError: odd (The terminal shows where this comes from.)"),
    ],
)
def test_an_error_is_a_line(error, said):
    assert said in parts.line_of(error) and "\n" not in parts.line_of(error)
    assert 'role="alert"' in parts.status(parts.line_of(error), error=True)


def test_a_missing_gradio_is_said_in_a_line(monkeypatch):
    import sys

    from fk_steer.app import launch

    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match="pip install"):
        launch()


def test_files_of_a_folder(tmp_path):
    assert results.kept(tmp_path, asked()[0]) == ([], 0)
    assert not list(Path(tmp_path).iterdir())
