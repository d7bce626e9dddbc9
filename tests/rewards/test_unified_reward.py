"""UnifiedReward's families: what their replies say, what their checkpoints know, and how they are asked."""

from __future__ import annotations

import json
import logging
import math

import pytest
import torch
from chat_server import MODEL, ChatServer, parts, redness
from PIL import Image
from typer.testing import CliRunner

from fk_steer.cli import app
from fk_steer.evaluation.asked import asked_by, record_asked
from fk_steer.published import sha256
from fk_steer.rewards import RewardError, WeightedSum, load_reward, wording
from fk_steer.rewards.chat.unified import CHECKPOINTS, FAMILIES, TASKS, family_of, prompts, template_of
from fk_steer.rewards.chat.unified.prompts import PUBLISHED, prompt_in_script, source_of


def said(task: str, reply: str, axis: str | None = None) -> float | None:
    return TASKS[task].read(reply, axis)


# What replies say


SHARES = """Alignment Score:
 Image 1: 0.435699999332428
 Image 2: 0.564300000667572

Coherence Score:
 Image 1: 0.4180000126361847
 Image 2: 0.5820000171661377

Style Score:
 Image 1: 0.40790000557899475
 Image 2: 0.5921000242233276
"""
SECOND = """Alignment Score (1-5): 2.694700002670288
Coherence Score (1-5): 2.371500015258789
Style Score (1-5): 2.802500009536743"""
FIRST = 'Word-wise Scores: [["a", 0.1], ["red", 0.4], ["[No_mistakes]", 0.5]]\n\n' + SECOND


def flex(points, winner="Image 1", closing="\n}"):
    dims = [{"name": "d", "reason_1": "...", "reason_2": "...", "score_1": a, "score_2": b} for a, b in points]
    categories = [{"name": "A", "dims": dims[:1], "cat_winner": "Image 2"}, {"name": "B", "dims": dims[1:]}]
    return json.dumps({"prompt": "p", "categories": categories, "reason": "r", "winner": winner})[:-1] + closing


@pytest.mark.parametrize("reply", [SECOND, FIRST, f"**{SECOND}**"])
def test_axes_are_decimals_with_and_without_words(reply):
    assert said("axes", reply, "alignment") == pytest.approx(2.6947)
    assert said("axes", reply) == pytest.approx((2.6947 + 2.3715 + 2.8025) / 3)


def test_a_missing_axis_leaves_no_score():
    lines = SECOND.splitlines()
    assert said("axes", "\n".join(lines[:2])) is None
    assert said("axes", "\n".join(lines[:2]), "coherence") == pytest.approx(2.3715)
    assert said("axes", "\n".join(lines[:2]), "style") is None
    assert said("video-axes", SECOND.replace("Coherence", "Physics"), "physics") == pytest.approx(2.3715)
    assert said("video-axes", SECOND, "physics") is None


def test_shares_of_a_pair():
    assert said("pair-scores", SHARES, "alignment") == pytest.approx(0.4357, abs=1e-6)
    assert said("pair-scores", SHARES) == pytest.approx((0.4357 + 0.4180 + 0.4079) / 3, abs=1e-4)
    assert said("video-pair-scores", SHARES.replace("Image", "Video"), "style") == pytest.approx(0.4079, abs=1e-4)
    assert said("pair-scores", SHARES.replace("Image", "Video")) is None
    # Shares are of their sum, which rounding may move from 1.
    assert said("pair-scores", "Style Score:\nImage 1: 0.30\nImage 2: 0.72", "style") == pytest.approx(0.30 / 1.02)


@pytest.mark.parametrize(
    "block",
    [
        "Style Score:\n Image 1: 0.4",
        "Style Score:\n Image 1: 0.4\n Image 2: 0.4",
        "Style Score:\n Image 1: -0.2\n Image 2: 1.2",
        "Style Score:\n Image 1: 4\n Image 2: 6",
        "Style Score:\n Image 1: X\n Image 2: Y",
        "Style Score (1-5): 3.2",
        "",
    ],
)
def test_no_shares(block):
    assert said("pair-scores", block, "style") is None


def test_flex():
    reply = flex([(8, 2), (5, 5), (2.5, 7.5)])
    assert said("flex", reply) == 1.0
    assert said("flex", f"```json\n{reply}\n```") == 1.0
    assert said("flex", flex([(8, 2), (5, 5)], "Image 2")) == 0.0
    assert said("flex", reply, "points") == pytest.approx((0.8 + 0.5 + 0.25) / 3)
    assert said("video-flex", flex([(1, 9)], "Video 2")) == 0.0
    # The form as it is asked for, another subject, and a reply that was cut.
    assert said("flex", flex([(8, 2)], "Image 1/2")) is None
    assert said("flex", flex([(8, 2)], "Video 1")) is None
    assert said("flex", flex([(8, 2)], closing="")) is None
    # Points are wrong where they do not sum to ten, and then not read.
    assert said("flex", flex([(8, 2), (8, 8)]), "points") is None
    assert said("flex", flex([(8, 2), (11, -1)]), "points") is None
    assert said("flex", flex([(8, 2), ("8", 2)]), "points") is None


def test_thinking():
    draft = "<think>1. Semantics: {0} 1 (9/10) - ...; {0} 2 (7/10) - ...\nTotal score:\n{0} 1: 9=9\n{0} 2: 7=7</think>"
    for task, what in (("think", "Image"), ("video-think", "Video"), ("answer-think", "Answer")):
        for place, value in (("1", 1.0), ("2", 0.0)):
            assert said(task, f"{draft.format(what)}\n<answer>{what} {place} is better</answer>") == value
        # Cut before the verdict: what it says on the way does not count.
        assert said(task, draft.format(what)) is None
        assert said(task, f"<think>So {what} 1 is better") is None
        assert said(task, f"{what} 1 is better") is None


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ('{"reasoning": "Done.", "score": [20, 24]}', (20.0, 24.0)),
        # As the published prompt shows the form, with a comma that JSON has not.
        ('{\n"reasoning" : "ok",\n"score" : [3.5, 25],\n}', (3.5, 25.0)),
        ("score = [0, 12]", (0.0, 12.0)),
        ('{"score": [26, 3]}', None),
        ('{"score": [-1, 3]}', None),
        ('{"score": [20]}', None),
        ('{"score": [20, 21, 22]}', None),
        ('{"score": [score1, score2]}', None),
        ('{"score": 20}', None),
    ],
)
def test_two_scores_of_an_edit(reply, scores):
    assert said("edit", reply) == (scores and min(scores))
    assert said("edit", reply, "preservation") == (scores and scores[1])
    assert said("edit-quality", reply, "naturalness") == (scores and scores[0])


@pytest.mark.parametrize(
    ("reply", "gap"),
    [
        ("Image 1: 2.5\nImage 2: 1.25", 1.25),
        ("Edited Image 1 Score: -0.75\nEdited Image 2 Score: 1.5", -2.25),
        # The published expression loses the sign.
        ("The scores are -1.25 and 0.5.", -1.75),
        ("3.0625 4.0", -0.9375),
        ("Image 1: 2.5", None),
        ("3.5", None),
        ("1.5, 2.5 and 3.5", None),
        ("Both are good.", None),
    ],
)
def test_signed_scores_of_two_edits(reply, gap):
    expected = None if gap is None else pytest.approx(1 / (1 + math.exp(-gap)))
    assert said("edit-pair-scores", reply) == expected


def test_scores_and_verdicts_on_answers():
    assert said("answer", "It is right.\nFinal Score: 85.5") == 85.5
    assert said("answer", "Final Score: 0") == 0.0
    assert said("answer", "Final Score: 101") is None
    assert said("video-answer", "Final Score: 2\nNo. Final Score: 4") == 4.0
    assert said("video-answer", "Final Score: 0") is None
    for reply in ("Overall Judgment: Answer 2 is better than Answer 1.", "The second response is better.", "Answer 2"):
        assert said("answer-pair", reply) == 0.0
        assert said("video-answer-pair", reply) == 0.0
    assert said("answer-pair", "Response 1 is better than Response 2.") == 1.0
    assert said("answer-pair", "Answer 1 mentions a dog. Answer 2 a cat.") is None


@pytest.mark.parametrize("task", TASKS)
def test_nothing_is_never_the_worst_score(task):
    for reply in ("", "I cannot see the pictures.", "Score:", "{}", "null"):
        for axis in (None, *TASKS[task].axes):
            assert said(task, reply, axis) is None


# Prompts


SCRIPT = '''
import torch
prompt = ''
raise SystemExit("this is not run")
messages = [{{"role": "user", "content": [{{"type": "text", "text": (
    "First of all, look. \\n" "Then say in JSON:\\n"
    f"{{{{\\"score\\": [...]}}}}\\n"
    f"Text Caption: [{{{name}}}]"
)}}]}}]
print(f"{{{name}}}")
"""Example output:
Final Score: 4
"""
'''


def test_the_prompt_in_a_script(tmp_path):
    text = 'First of all, look. \nThen say in JSON:\n{"score": [...]}\nText Caption: [{prompt}]'
    assert prompt_in_script(SCRIPT.format(name="prompt"), ["prompt"], "x.py") == text
    assert prompt_in_script(SCRIPT.format(name="instruction"), ["prompt"], "x.py") == text
    marked = "question = '<image>\\n' * len(images) + f'Compare. \\nText: [{prompt}]\\n'"
    assert prompt_in_script(marked, ["prompt"], "x.py") == "Compare. \nText: [{prompt}]\n"
    marked = "question = f'<image>\\n <image>\\nCompare. \\nText: [{prompt}]'"
    assert prompt_in_script(marked, ["prompt"], "x.py") == "Compare. \nText: [{prompt}]"
    answers = 'p = (f"Q: {Query}\\n" f"1: {R1}\\n" + f"2: {R2}")'
    assert prompt_in_script(answers, ["question", "first", "second"], "x") == "Q: {question}\n1: {first}\n2: {second}"
    assert prompt_in_script("problem = 'How natural?'\nx = 'a'", [], "x.py") == "How natural?"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("f'{prompt", "Expected x.py to be Python"),
        ("text = 'Text Caption'", r"into which the variables of the prompt are put \(prompt, caption, instruction\)"),
        ("text = f'{other} {prompt()}'", "Expected a text in x.py"),
        ("text = f'{prompt:>9}'", "Expected a text in x.py"),
    ],
)
def test_scripts_without_a_prompt(script, message):
    with pytest.raises(ValueError, match=message):
        prompt_in_script(script, ["prompt"], "x.py")


@pytest.fixture
def published(monkeypatch, tmp_path):
    """A repository with one script, fetched as the real one would be."""
    content = SCRIPT.format(name="prompt").encode()
    fetched = []

    def download(url, timeout):
        fetched.append(url)
        return content

    monkeypatch.undo()
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(wording, "download", download)
    monkeypatch.setattr(wording, "_unreachable", set())
    monkeypatch.setattr(prompts, "_warned", [])
    monkeypatch.setattr(prompts, "PUBLISHED", {("2.0", "axes"): ("some/script.py", sha256(content))})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return fetched


def test_published_prompts_are_fetched_once(published):
    template = template_of("axes", ["2.0", "qwen"], ["prompt"])
    assert template.text.startswith("First of all, look.")
    assert template.origin == f"{prompts.REPOSITORY}/some/script.py"
    assert prompts.COMMIT in template.origin
    assert template.sha256 == sha256(template.text.encode())
    assert template_of("axes", ["2.0"], ["prompt"], "published") == template
    assert len(published) == 1


def test_our_words_where_the_published_cannot_be_had(published, monkeypatch, caplog):
    def unreachable(url, timeout):
        published.append(url)
        raise OSError("no route to host")

    monkeypatch.setattr(wording, "download", unreachable)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            template = template_of("axes", ["2.0"], ["prompt"])
    assert template == template_of("axes", ["2.0"], ["prompt"], "ours")
    assert template.origin == "fk_steer"
    assert len(published) == 1, "it is not waited for again"
    (line,) = [record.getMessage() for record in caplog.records]
    assert "no route to host" in line
    assert "give its path by the option `template`. Asking in our own words" in line
    with pytest.raises(OSError, match=r"Could not fetch UnifiedReward's prompt of 'axes'"):
        template_of("axes", ["2.0"], ["prompt"], "published")


def test_another_file_is_not_taken_for_the_published_one(published, monkeypatch):
    monkeypatch.setattr(wording, "download", lambda url, timeout: b"prompt = f'{prompt}'")
    with pytest.raises(OSError, match="to have the SHA-256"):
        template_of("axes", ["2.0"], ["prompt"], "published")


def test_nothing_is_fetched_offline(published, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert template_of("axes", ["2.0"], ["prompt"]).origin == "fk_steer"
    assert published == []


def test_templates_by_path(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT.format(name="prompt"))
    (tmp_path / "mine.txt").write_text("How red is {prompt}?\n")
    assert template_of("point", [], ["prompt"], tmp_path / "script.py").text.endswith("Text Caption: [{prompt}]")
    mine = template_of("point", [], ["prompt"], tmp_path / "mine.txt")
    assert (mine.text, mine.origin) == ("How red is {prompt}?", str(tmp_path / "mine.txt"))
    with pytest.raises(ValueError, match=r"mine.txt' to contain \{question\}, \{answer\}, but"):
        template_of("answer", [], ["question", "answer"], tmp_path / "mine.txt")


def test_values_may_hold_placeholders():
    task = TASKS["answer-pair"].asked("{question} 1 {first} 2 {second} {braces}")
    values = {"question": "{first}?", "first": "{second}", "second": r"\1"}
    assert task.text(values) == r"{first}? 1 {second} 2 \1 {braces}"


def test_lists_of_words_need_room():
    assert TASKS["axes"].asked("Word-wise Scores: ... {prompt}").max_tokens == 4096
    assert TASKS["axes"].asked("{prompt}").max_tokens == 512


@pytest.mark.parametrize("task", TASKS)
def test_our_templates_ask_for_what_is_read(task):
    template = template_of(task, [], TASKS[task].fields, "ours").text
    forms = {"Final Score: s", "better than", "<answer>", '"winner"', '"score": [', "Image 1: X", "Video 1: X", "X\n"}
    assert any(form in template for form in forms)
    assert ("Video" in template or "video" in template) == task.startswith("video")


# Checkpoints


def test_every_task_of_every_family_has_a_published_prompt():
    for family in FAMILIES:
        for task in family.tasks:
            assert source_of(task, family.prompts).url.endswith(".py")
    assert {task for family in FAMILIES for task in family.tasks} == set(TASKS)
    assert {style for style, _ in PUBLISHED} == {style for family in FAMILIES for style in family.prompts}
    with pytest.raises(OSError, match="No prompt of 'flex' is published"):
        source_of("flex", ["qwen"])


@pytest.mark.parametrize(
    ("name", "base", "knows", "knows_not"),
    [
        ("CodeGoat24/UnifiedReward-qwen-7b", "Qwen2.5-VL", "axes", "pair-scores"),
        ("UnifiedReward-7b-v1.5", "LLaVA-OneVision", "axes", "video-axes"),
        ("unifiedreward-7b", "LLaVA-OneVision", "answer-pair", "axes"),
        ("CodeGoat24/UnifiedReward-2.0-qwen3vl-32b", "Qwen3-VL", "video-axes", "think"),
        ("CodeGoat24/UnifiedReward-2.0-qwen35-9b", "Qwen3.5", "pair-scores", "flex"),
        ("/models/UnifiedReward-Think-qwen-7b/", "Qwen2.5-VL", "answer-think", "point"),
        ("CodeGoat24/UnifiedReward-Flex-qwen3vl-8b", "Qwen3-VL", "video-flex", "pair"),
        ("CodeGoat24/UnifiedReward-Edit-qwen-72b", "Qwen2.5-VL", "edit-pair", "video"),
    ],
)
def test_families(name, base, knows, knows_not):
    family = family_of(name)
    assert family.base == base
    assert knows in family.tasks
    assert knows_not not in family.tasks


def test_strange_names_have_no_family():
    assert family_of("UnifiedReward") is None
    assert family_of("CodeGoat24/UnifiedReward-qwen-8b") is None
    assert family_of(None) is None


def test_a_checkpoint_that_does_not_know_the_task():
    message = r"Think-qwen-7b does not know the variant 'axes'.*It knows: think, video-think.*known to: .*-qwen-\{3b,7b"
    with pytest.raises(ValueError, match=message):
        load_reward("unified-reward", variant="axes", checkpoint="UnifiedReward-Think-qwen-7b")
    with pytest.raises(ValueError, match="does not know the variant 'edit'"):
        load_reward("unified-reward", variant="edit", model="CodeGoat24/UnifiedReward-2.0-qwen-7b")
    with pytest.raises(ValueError, match="does not know the variant 'flex'"):
        load_reward("unified-reward", variant="flex", backend="transformers", path="CodeGoat24/UnifiedReward-qwen-7b")
    with pytest.raises(ValueError, match="Unknown checkpoint 'UnifiedReward-qwen-8b'.*Did you mean"):
        load_reward("unified-reward", checkpoint="UnifiedReward-qwen-8b")


def test_the_table_of_checkpoints(monkeypatch):
    output = CliRunner().invoke(app, ["rewards", "show", "unified-reward"]).output
    assert "which checkpoint knows which variant" in output
    assert all(checkpoint in output for checkpoint in CHECKPOINTS)
    (line,) = [line for line in output.splitlines() if "UnifiedReward-Flex-qwen3vl-8b" in line and "flex," in line]
    assert line.split() == ["CodeGoat24/UnifiedReward-Flex-qwen3vl-8b", "flex,", "video-flex"]
    # However narrow the terminal is, their names are whole.
    monkeypatch.setattr("fk_steer.console.console._width", 80)
    narrow = CliRunner().invoke(app, ["rewards", "show", "unified-reward"]).output
    assert max(map(len, narrow.split("which checkpoint")[1].split("options:")[0].splitlines())) <= 80
    assert all(checkpoint in narrow for checkpoint in CHECKPOINTS)


# Against a server


def soft(text, pictures):
    """How two pictures share a point, by their redness."""
    first, second = map(redness, pictures[-2:])
    share = first / (first + second)
    return "\n".join(
        f"{axis} Score:\n Image 1: {share}\n Image 2: {1 - share}" for axis in ("Alignment", "Coherence", "Style")
    )


def reds(*shades):
    images = torch.zeros(len(shades), 3, 32, 32)
    images[:, 0] = torch.tensor(shades)[:, None, None]
    return images


def reward_of(server, variant, **options):
    return load_reward("unified-reward", variant=variant, model=MODEL, base_url=server.url, **options)


def test_soft_preferences_tell_how_much_better():
    with ChatServer(soft) as server:
        scores = reward_of(server, "pair-scores")(reds(0.0, 0.2, 1.0), ["a"] * 3)
    a, b, c = 0.5, 0.6, 1.0  # redness
    expected = [(a / (a + b) + a / (a + c)) / 2, (b / (a + b) + b / (b + c)) / 2, (c / (a + c) + c / (b + c)) / 2]
    assert scores.tolist() == pytest.approx(expected, abs=1e-3)


def test_edited_images_come_after_the_one_before(tmp_path):
    Image.new("RGB", (40, 40), "blue").save(tmp_path / "before.png")

    def reply(text, pictures):
        if len(pictures) == 2:
            return f'{{"score": [{25 * redness(pictures[1])}, 20]}}'
        return f"Image {1 if redness(pictures[1]) > redness(pictures[2]) else 2} is better."

    with ChatServer(reply) as server:
        one = reward_of(server, "edit", source=str(tmp_path / "before.png"))
        assert one.takes_edits
        assert one(reds(0.0, 1.0), ["redder", "redder"]).tolist() == pytest.approx([12.5, 20.0])
        pair = reward_of(server, "edit-pair", source={"redder": Image.new("RGB", (40, 40), "blue")})
        assert pair(reds(0.0, 1.0), ["redder", "redder"]).tolist() == [0.0, 1.0]
        with pytest.raises(RewardError, match="no image from before the edit 'greener'"):
            pair(reds(0.0, 1.0), ["greener", "greener"])
    text, pictures = parts(server.requests[0])
    assert text.endswith("Editing instruction: redder")
    assert [picture.size for picture in pictures] == [(40, 40), (32, 32)]
    text, pictures = parts(server.requests[-1])
    assert [redness(picture) for picture in pictures] == pytest.approx([0.25, 0.5, 1.0], abs=0.01)


def test_the_quality_of_an_edit_is_seen_alone():
    with ChatServer(lambda text, pictures: f'{{"score": [{len(pictures)}, 9]}}') as server:
        assert reward_of(server, "edit-quality")(reds(0.5), ["a"]).tolist() == [1.0]
    with pytest.raises(ValueError, match="`source` goes with the variants of edited images"):
        load_reward("unified-reward", source="x.png")


def test_answers():
    def reply(text, pictures):
        if "Response: [" in text:
            return f"Final Score: {90 if 'cat' in text.split('Response: [')[1] else 10}"
        first, second = text.split("Answer 1: ")[1].split("\nAnswer 2: ")
        return "Answer 1 is better." if "cat" in first and "cat" not in second else "Answer 2 is better."

    picture = (Image.new("RGB", (40, 40)),)
    with ChatServer(reply) as server:
        point = reward_of(server, "answer")
        assert point.judge_answers([picture] * 2, ["What?", "Who?"], [["a cat", "a dog", ""], ["cat"]]) == [
            [90.0, 10.0, 10.0],
            [90.0],
        ]
        pair = reward_of(server, "answer-pair")
        assert pair.judge_answers([picture] * 2, ["What?"] * 2, [["a cat", "a dog"], ["a dog", "a cat"]]) == [
            [1.0, 0.0],
            [0.0, 1.0],
        ]
        # A judge that prefers a place says nothing once both orders are asked.
        server.reply = lambda text, pictures: "Answer 1 is better."
        both = reward_of(server, "answer-pair", both_orders=True)
        assert both.judge_answers([picture], ["What?"], [["a cat", "a dog"]]) == [[0.5, 0.5]]
        server.reply = lambda text, pictures: "Hm."
        assert both.judge_answers([picture], ["What?"], [["a cat", "a dog"]]) == [[None, None]]
        with pytest.raises(RewardError, match="judges texts about images, not images"):
            pair(reds(0.5), ["a"])
        with pytest.raises(ValueError, match="Expected two answers"):
            pair.judge_answers([picture], ["What?"], [["a", "b", "c"]])
    # They are asked together, and come in any order.
    asked = [parts(request) for request in server.requests[:4]]
    assert all(len(pictures) == 1 for _, pictures in asked)
    assert any(text.endswith("Question: [What?]\nResponse: [a cat]") for text, _ in asked)


def test_models_that_may_think_are_asked_not_to():
    with ChatServer() as server:
        reward_of(server, "point", checkpoint="CodeGoat24/UnifiedReward-2.0-qwen35-9b")(reds(0.5), ["a"])
        reward_of(server, "point", checkpoint="CodeGoat24/UnifiedReward-2.0-qwen-7b")(reds(0.5), ["a"])
    assert server.requests[0]["chat_template_kwargs"] == {"enable_thinking": False}
    assert "chat_template_kwargs" not in server.requests[1]


def test_records_say_what_was_asked(tmp_path):
    (tmp_path / "mine.txt").write_text("How red is {prompt}?")
    reward = load_reward("unified-reward", template=str(tmp_path / "mine.txt"))
    mixed = WeightedSum({reward: 1.0, (lambda images, prompts: torch.zeros(len(prompts))): 2.0})
    record_asked(tmp_path / "run", asked_by(mixed))
    record = json.loads((tmp_path / "run" / "asked.json").read_text())
    assert record["unified-reward"] == {
        "variant": "point",
        "family": "UnifiedReward-qwen-{3b,7b,32b}",
        "template": str(tmp_path / "mine.txt"),
        "template sha256": sha256(b"How red is {prompt}?"),
    }
    record_asked(tmp_path / "run", asked_by(reward))
    (tmp_path / "mine.txt").write_text("How blue is {prompt}?")
    with pytest.raises(ValueError, match="was made with other questions .*template sha256: "):
        record_asked(tmp_path / "run", asked_by(load_reward("unified-reward", template=str(tmp_path / "mine.txt"))))
    record_asked(tmp_path / "other", asked_by(lambda images, prompts: torch.zeros(len(prompts))))
    record_asked(tmp_path / "other", asked_by(None))
    assert not (tmp_path / "other").exists()
