"""The words that HPSv3 and HPSv3++ ask with: those they were trained with belong to others, and are read from there."""

from __future__ import annotations

import io
import json
import logging
import zipfile
from dataclasses import replace
from urllib.error import HTTPError, URLError

import pytest
import torch
from PIL import Image

from fk_steer import load_reward
from fk_steer.evaluation.asked import asked_by, record_asked
from fk_steer.published import Source, sha256
from fk_steer.rewards import RewardLoadError, hpsv3, hpsv3_plus, wording
from fk_steer.rewards.hpsv3 import HPSv3
from fk_steer.rewards.rubric import REWARD_TOKEN, Rubric
from fk_steer.rewards.wording import parse_script, published_file, read_script, texts_in_script
from fk_steer.testing.rewards import save_hpsv3


SCRIPT = '''
raise SystemExit("this is not run")

INSTRUCTION = """
Judge. \\n- {text_prompt}


"""
other: str = "x"
prompt_with_special_token = """
Overall: <|Reward|>

END
"""
def inside():
    INSTRUCTION = "another"
'''
TEXT = "\nJudge. \n- {prompt}\n\n\n\nOverall: "
MEMBER = "package/dataset/collator.py"


def wheel(member: str = MEMBER) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr(member, SCRIPT)
    return content.getvalue()


@pytest.fixture
def rubric(monkeypatch, tmp_path):
    """A rubric in a wheel, fetched as the real one would be."""
    content = wheel()
    fetched = []

    def download(url, timeout):
        fetched.append(url)
        return content

    monkeypatch.undo()
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(wording, "download", download)
    monkeypatch.setattr(wording, "_unreachable", set())
    source = Source("the words of a reward", "https://files.example/some-1.0.0-py3-none-any.whl", sha256(content))
    one = Rubric(source, sha256(TEXT.encode()), "hpsv3.txt", MEMBER)
    monkeypatch.setattr(HPSv3, "rubric", one)
    return one, fetched


def unreachable(url, timeout):
    raise URLError("no route to host")


def test_the_published_words_are_fetched_once(rubric, caplog):
    one, fetched = rubric
    with caplog.at_level(logging.WARNING):
        templates = [one.template("hpsv3", given) for given in (None, "published", None)]
    assert [(template.text, template.origin) for template in templates] == [(TEXT, one.source.url)] * 3
    assert fetched == [one.source.url]
    assert caplog.messages == []


def test_the_published_words_by_path(rubric, tmp_path, monkeypatch, caplog):
    one, fetched = rubric
    (tmp_path / "some.whl").write_bytes(wheel())
    (tmp_path / "collator.py").write_text(SCRIPT)
    (tmp_path / "text.txt").write_text(f"{TEXT}{REWARD_TOKEN}\n")
    with caplog.at_level(logging.WARNING):
        for name in ("some.whl", "collator.py", "text.txt"):
            template = one.template("hpsv3", tmp_path / name)
            assert (template.text, template.origin) == (TEXT, str(tmp_path / name))
    assert (fetched, caplog.messages) == ([], [])


@pytest.mark.parametrize("reward", ["hpsv3", "hpsv3-plus"])
def test_nothing_is_loaded_where_the_words_cannot_be_had(reward, rubric, monkeypatch):
    """Nor is the hub asked for weights first."""
    monkeypatch.setattr(wording, "download", unreachable)
    message = (
        rf"^The words that '{reward}' was trained with are not part of this package, and could not be had. Could not "
        r"fetch the words of .*no route to host.*Download it from https://.* elsewhere and give its path by the option "
        r"`template`. With template=ours it asks in our own words"
    )
    for _ in range(2):
        with pytest.raises(RewardLoadError, match=message):
            load_reward(reward)


def test_offline_nothing_is_asked_for(rubric, monkeypatch):
    one, fetched = rubric
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RewardLoadError, match="HF_HUB_OFFLINE keeps it from being asked for"):
        one.template("hpsv3")
    assert fetched == []


def test_another_file_is_not_taken_for_the_published_one(rubric, monkeypatch):
    one, _ = rubric
    with pytest.raises(RewardLoadError, match=rf"to have the SHA-256\s+{'0' * 64}, but got"):
        replace(one, source=replace(one.source, sha256="0" * 64)).template("hpsv3")


def test_other_words_are_warned_of(rubric, tmp_path, caplog):
    one, fetched = rubric
    (tmp_path / "mine.txt").write_text("How good is {prompt}?")
    with caplog.at_level(logging.WARNING):
        ours = one.template("hpsv3", "ours")
        mine = one.template("hpsv3", tmp_path / "mine.txt")
    assert (ours.origin, mine.text) == ("fk_steer", "How good is {prompt}?")
    assert caplog.messages == [
        f"'hpsv3' is asked in {words}, which it was not trained with: its scores are not those that are published."
        for words in ("our own words", f"the words of '{tmp_path / 'mine.txt'}'")
    ]
    assert fetched == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"How good?", r"a.txt' to contain \{prompt\}, but"),
        ("a.py", b"INSTRUCTION = '{text_prompt}'", "a.py' to assign a text to prompt_with_special_token, but"),
        ("a.py", b"INSTRUCTION = 1", "to assign a text to INSTRUCTION and to prompt_with_special_token, but"),
        ("a.py", b"INSTRUCTION = '", "a.py' to be Python, but it is not"),
        ("a.whl", b"no archive", f"a.whl' to be a wheel that holds {MEMBER}"),
        ("a.whl", wheel("other.py"), f"a.whl' to be a wheel that holds {MEMBER}"),
    ],
)
def test_files_without_a_rubric(rubric, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        rubric[0].template("hpsv3", tmp_path / name)


def test_the_words_decide_over_the_score_and_are_recorded(rubric, tmp_path):
    (tmp_path / "weights").mkdir()
    saved = save_hpsv3(tmp_path / "weights")
    ours = load_reward("hpsv3", **saved, device="cpu")
    theirs = load_reward("hpsv3", path=saved["path"], device="cpu")
    assert ours.record == {"variant": "v3", "template": "fk_steer", "template sha256": ours.template.sha256}
    assert theirs.record["template"] == rubric[0].source.url
    assert theirs.record["template sha256"] == sha256(TEXT.encode())
    text = theirs.tokenizer.decode(theirs.prompts(["two {prompt}s"])[0][1])
    assert text == f"<|vision_end|>{TEXT.replace('{prompt}', 'two {prompt}s')}{REWARD_TOKEN}"
    image = [Image.new("RGB", (64, 64), "red")]
    assert not torch.equal(ours(image, ["a dog"]), theirs(image, ["a dog"]))

    (tmp_path / "run").mkdir()
    record_asked(tmp_path / "run", asked_by(theirs))
    assert json.loads((tmp_path / "run" / "asked.json").read_text()) == {"hpsv3": theirs.record}
    with pytest.raises(ValueError, match="was made with other questions"):
        record_asked(tmp_path / "run", asked_by(ours))


def test_modules_in_memory_are_asked_in_our_words():
    reward = HPSv3.from_modules(torch.nn.Linear(1, 1), None, device="cpu")
    assert reward.template == hpsv3.RUBRIC.own_words


def test_what_is_published_is_not_shipped():
    for rubric in (hpsv3.RUBRIC, hpsv3_plus.RUBRIC):
        assert rubric.own_words.sha256 != rubric.sha256
        assert "{prompt}" in rubric.own_words.text
    assert hpsv3.RUBRIC.own_words != hpsv3_plus.RUBRIC.own_words


# What all words of others share


def test_a_host_that_cannot_be_reached_is_not_waited_for_again(rubric, monkeypatch):
    tried = []

    def download(url, timeout):
        tried.append(url)
        return unreachable(url, timeout)

    monkeypatch.setattr(wording, "download", download)
    sources = [Source("x", f"https://{host}/{name}.py", "0" * 64) for host, name in ("aa", "ab", "ba")]
    for source, message in zip(sources, ("no route", "it could not be reached a while ago", "no route")):
        with pytest.raises(OSError, match=message):
            published_file(source, "some")
    assert tried == [sources[0].url, sources[2].url]
    with pytest.raises(OSError, match="no route"):
        published_file(sources[1], "some", retry=True)


def test_a_host_that_answers_is_asked_again(rubric, monkeypatch):
    def missing(url, timeout):
        raise HTTPError(url, 404, "Not Found", {}, None)

    monkeypatch.setattr(wording, "download", missing)
    for _ in range(2):
        with pytest.raises(OSError, match="404"):
            published_file(Source("x", "https://a/b.py", "0" * 64), "some")


def test_texts_of_a_script(tmp_path):
    (tmp_path / "a.py").write_bytes("A = B = 'ä'\nA = 'last'\nC = f'{A}'\n".encode())
    script = read_script(tmp_path / "a.py")
    assert texts_in_script(script, ("A", "B"), "a.py") == ["last", "ä"]
    with pytest.raises(ValueError, match="Expected a.py to assign a text to C, but it does not"):
        texts_in_script(script, ("A", "C"), "a.py")
    with pytest.raises(ValueError, match="Expected b.py to be Python"):
        parse_script("(" * 5000, "b.py")
