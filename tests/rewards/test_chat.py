"""Chat judges against a real server on this machine."""

from __future__ import annotations

import base64
import logging
import sys
import threading
import time

import numpy as np
import pytest
import torch
from chat_server import MODEL, ChatServer, cut_off, failing, parts, redness, send
from PIL import Image

from fk_steer.rewards import Clipped, RewardError, load_reward
from fk_steer.rewards.chat.client import ChatClient, Question, check_recordable, data_url
from llava_reward_guide.images import to_pil


KEY = "sk-very-secret-0123456789"
SHADES = torch.linspace(0, 1, 5)


def images(shades: torch.Tensor = SHADES, size: int = 32) -> torch.Tensor:
    """(B, 3, size, size), the redder the higher the shade."""
    batch = torch.zeros(len(shades), 3, size, size)
    batch[:, 0] = shades[:, None, None]
    return batch


def expected(batch: torch.Tensor) -> torch.Tensor:
    return torch.tensor([redness(image) for image in to_pil(batch)])


def ask(server: ChatServer, count: int = 1, text: str = "score it", **options):
    client = ChatClient(MODEL, server.url, **options)
    return client.ask([Question((Image.new("RGB", (30, 30), "red"),), text)] * count, max_tokens=7)


def only(*faults):
    """The first requests fail in these ways, the others not."""
    return lambda number: faults[number] if number < len(faults) else None


class TestRequests:
    def test_body(self):
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8))
        other = picture.transpose(Image.Transpose.ROTATE_90)
        with ChatServer() as server:
            client = ChatClient(
                MODEL, server.url, extra_body={"max_tokens": None, "max_completion_tokens": 9, "seed": 1}
            )
            client.ask([Question((picture, other), "which?", {"logprobs": True})], max_tokens=7)
            ChatClient(MODEL, server.url).ask([Question((picture,), "?")], max_tokens=7)
        body, plain = server.requests
        kinds = [part["type"] for part in body["messages"][0]["content"]]
        assert kinds == ["image_url", "image_url", "text"]
        text, received = parts(body)
        assert text == "which?"
        assert all(np.array_equal(mine, sent) for mine, sent in zip(received, (picture, other)))
        del body["messages"], plain["messages"]
        assert body == {"model": MODEL, "temperature": 0, "max_completion_tokens": 9, "seed": 1, "logprobs": True}
        assert plain == {"model": MODEL, "temperature": 0, "max_tokens": 7}

    def test_formats(self):
        picture = Image.new("RGBA", (64, 48), (200, 10, 10, 255))
        assert data_url(picture).startswith("data:image/png;base64,")
        with ChatServer() as server:
            ChatClient(MODEL, server.url, image_format="jpeg").ask([Question((picture,), "?")], max_tokens=7)
        (body,) = server.requests
        assert body["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/jpeg;base64,")
        (received,) = parts(body)[1]
        assert np.abs(np.asarray(received).astype(int) - (200, 10, 10)).max() <= 4

    def test_small_images_are_enlarged(self):
        with ChatServer() as server:
            ChatClient(MODEL, server.url).ask([Question((Image.new("L", (1, 90), 255),), "?")], max_tokens=7)
        (received,) = parts(server.requests[0])[1]
        assert received.size == (28, 90)

    def test_concurrency_is_used_and_limited(self):
        with ChatServer(delay=0.1) as server:
            ask(server, count=12, concurrency=4)
        assert server.most == 4  # at a time, of twelve

    def test_answers_keep_the_order(self):
        with ChatServer(lambda text, images: (time.sleep(0.02 * (int(text) % 3)), text)[1]) as server:
            client = ChatClient(MODEL, server.url)
            answers = client.ask([Question((), str(number)) for number in range(9)], max_tokens=7)
        assert [answer.text for answer in answers] == [str(number) for number in range(9)]

    def test_default_address(self, monkeypatch):
        monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
        assert ChatClient(MODEL).base_url == "http://127.0.0.1:8000/v1"
        monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere:1/v1")
        assert ChatClient(MODEL).base_url == "http://elsewhere:1/v1"

    @pytest.mark.parametrize(
        "options", [{"concurrency": 0}, {"max_retries": -1}, {"timeout": 0.0}, {"image_format": "webp"}]
    )
    def test_bad_options(self, options):
        with pytest.raises(ValueError, match="Expected|Unknown"):
            ChatClient(MODEL, **options)

    def test_missing_package(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "openai", None)
        with pytest.raises(ImportError, match=r'pip install -e "\.\[chat\]"'):
            load_reward("llm-grader", model=MODEL)


class TestFailures:
    @pytest.mark.parametrize(
        "fault",
        [failing(500), failing(503), failing(429, Retry_After="0.3"), cut_off, lambda handler: time.sleep(1.0)],
        ids=["500", "503", "429", "cut off", "slow"],
    )
    def test_passing_failures_are_retried(self, fault):
        with ChatServer(fault=only(fault)) as server:
            started = time.perf_counter()
            (answer,) = ask(server, timeout=0.5)
            seconds = time.perf_counter() - started
        assert "Final Score: 5.0" in answer.text.replace("*", "")
        assert not answer.failed
        assert len(server.requests) == 2
        assert seconds >= 0.3

    def test_lasting_failures_are_answers_without_text(self):
        with ChatServer(fault=lambda number: failing(500, "broken")) as server:
            (answer,) = ask(server, max_retries=1)
        assert answer.text is None
        assert answer.failed
        assert "broken" in answer.error
        assert len(server.requests) == 2

    def test_nobody_listens(self):
        with ChatServer() as server:
            pass
        (answer,) = ask(server, max_retries=0)
        assert answer.failed
        assert "APIConnectionError" in answer.error

    @pytest.mark.parametrize(
        "payload",
        [
            b'{"choices": [{"mess',
            b"<html>",
            b"null",
            b"[]",
            {"choices": []},
            {"choices": [{"message": {}}]},
            {"choices": [{"message": {"content": None}}]},
            {"choices": [{"message": {"content": ["x"]}}]},
            {"error": "no"},
        ],
    )
    def test_malformed_responses(self, payload):
        with ChatServer(fault=only(lambda handler: send(handler, payload))) as server:
            (answer,) = ask(server)
        assert answer.text is None
        assert not answer.failed
        assert answer.error

    def test_refused_fields_are_left_out(self, caplog):
        def fault(number):
            return failing(400, "no logprobs here") if "logprobs" in server.requests[number] else None

        with ChatServer(fault=fault) as server:
            client = ChatClient(MODEL, server.url, concurrency=1)
            question = Question((), "score it", {"logprobs": True})
            server.reply = lambda text, images: "fine"
            assert [answer.text for answer in client.ask([question] * 3, max_tokens=7)] == ["fine"] * 3
        assert len(server.requests) == 4
        assert "refuses logprobs; asking without" in caplog.text

    def test_a_request_refused_either_way_is_a_failure_of_its_own(self):
        with ChatServer(fault=lambda number: failing(400, "too long")) as server:
            client = ChatClient(MODEL, server.url)
            (answer,) = client.ask([Question((), "?", {"logprobs": True})], max_tokens=7)
        assert answer.failed
        assert "too long" in answer.error
        assert not client.refused

    def test_unknown_model(self):
        with (
            ChatServer(fault=lambda number: failing(404, "The model does not exist")) as server,
            pytest.raises(RewardError, match="does not know the model 'tiny-judge'.*does not exist"),
        ):
            ask(server)


class TestKey:
    @pytest.fixture(autouse=True)
    def _key(self, monkeypatch):
        monkeypatch.setenv("JUDGE_KEY", KEY)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def test_is_sent_and_never_shown(self, caplog):
        caplog.set_level(logging.DEBUG)
        with ChatServer(fault=only(failing(500, f"key {KEY} is fine"))) as server:
            reward = load_reward("llm-grader", model=MODEL, base_url=server.url, api_key_env="JUDGE_KEY")
            reward(images(), ["red"] * 5)
        assert set(server.keys) == {f"Bearer {KEY}"}
        for shown in (repr(reward), repr(reward.ask.chat), repr(vars(reward.ask.chat)), str(reward.counts)):
            assert KEY not in shown
        assert KEY not in caplog.text

    @pytest.mark.parametrize("status", [401, 403])
    def test_refused(self, status):
        with (
            ChatServer(fault=lambda number: failing(status, f"Incorrect key {KEY}")) as server,
            pytest.raises(RewardError, match="refused the key.*environment variable JUDGE_KEY") as raised,
        ):
            ask(server, count=3, api_key_env="JUDGE_KEY")
        assert KEY not in str(raised.value)
        assert raised.value.__cause__ is None

    @pytest.mark.parametrize("status", [404, 500])
    def test_quoted_by_the_server(self, status):
        with ChatServer(fault=lambda number: failing(status, f"key {KEY}")) as server:
            try:
                message = ask(server, max_retries=0)[0].error
            except RewardError as error:
                message = str(error)
        assert "***" in message
        assert KEY not in message

    def test_a_password_in_the_address_is_sent_and_never_shown(self, caplog):
        caplog.set_level(logging.DEBUG)
        with ChatServer(fault=only(None, failing(500))) as server:
            address = server.url.replace("http://", "http://user:s3cr%3Ft@")
            client = ChatClient(MODEL, address, max_retries=0)
            answers = [client.ask([Question((), "?")], max_tokens=7)[0] for _ in range(2)]
        assert server.keys == ["Basic " + base64.b64encode(b"user:s3cr?t").decode()] * 2
        assert answers[1].failed
        shown = f"{client!r} {client.base_url} {answers} {caplog.text}"
        assert "127.0.0.1" in shown
        assert "s3cr" not in shown
        with pytest.raises(ValueError, match="without a user and password.*OPENAI_BASE_URL"):
            check_recordable({"base_url": address})
        check_recordable({"base_url": server.url})

    def test_none_is_needed(self, monkeypatch):
        monkeypatch.delenv("OPENAI_API_KEY")
        with ChatServer() as server:
            assert not ask(server)[0].failed
        assert server.keys == ["Bearer none"]


def unreadable_for(shades: list[float], times: int = 10**9):
    """Replies of the judge of `chat_server`, but what cannot be read for images of these shades."""
    seen: dict[float, int] = {}
    lock = threading.Lock()
    from chat_server import judge

    def reply(text, pictures):
        shade = round(2 * redness(pictures[0]) - 1, 1)
        with lock:
            seen[shade] = seen.get(shade, 0) + 1
            spoilt = shade in shades and seen[shade] <= times
        return "I would rather not say." if spoilt else judge(text, pictures)

    return reply


class TestUnreadableReplies:
    shades = torch.tensor([0.0, 0.2, 0.4, 0.6, 1.0])

    def test_are_asked_for_again(self):
        with ChatServer(unreadable_for([0.2, 0.6], times=1)) as server:
            reward = load_reward("unified-reward", model=MODEL, base_url=server.url)
            batch = images(self.shades)
            torch.testing.assert_close(reward(batch, ["red"] * 5), 1 + 4 * expected(batch))
        counts = reward.counts
        assert (counts.questions, counts.unparsed, counts.asked_again, counts.missing) == (5, 2, 2, 0)
        texts = [parts(body)[0] for body in server.requests]
        assert sum("Reply with the single line 'Final Score: s' only" in text for text in texts) == 2

    def test_malformed_responses_are_asked_for_again(self):
        with ChatServer(fault=only(lambda handler: send(handler, b"{"))) as server:
            reward = load_reward("unified-reward", model=MODEL, base_url=server.url)
            assert reward(images(), ["red"] * 5).isfinite().all()
        assert reward.counts.asked_again == 1

    def test_count_as_the_mean_of_the_prompt(self, caplog):
        with ChatServer(unreadable_for([0.2])) as server:
            reward = load_reward("unified-reward", model=MODEL, base_url=server.url, attempts=3)
            batch = images(self.shades)
            prompts = ["a", "a", "a", "b", "b"]
            scores = reward(batch, prompts)
        wanted = 1 + 4 * expected(batch)
        wanted[1] = (wanted[0] + wanted[2]) / 2
        torch.testing.assert_close(scores, wanted)
        assert (reward.counts.unparsed, reward.counts.asked_again, reward.counts.missing) == (3, 2, 1)
        assert "no score for 1 of 3 images of the prompt 'a'" in caplog.text

    def test_so_do_failed_requests(self):
        def fault(number):
            pictures = parts(server.requests[number])[1]
            return failing(500) if redness(pictures[0]) > 0.99 else None

        with ChatServer(fault=fault) as server:
            reward = load_reward("unified-reward", model=MODEL, base_url=server.url, max_retries=0)
            batch = images(self.shades)
            scores = reward(batch, ["red"] * 5)
        torch.testing.assert_close(scores[4], (1 + 4 * expected(batch))[:4].mean())
        assert (reward.counts.failed, reward.counts.unparsed, reward.counts.missing) == (1, 0, 1)

    def test_a_prompt_without_any_score_is_an_error(self):
        with ChatServer(unreadable_for([0.6, 1.0])) as server:
            reward = load_reward("unified-reward", model=MODEL, base_url=server.url)
            with pytest.raises(
                RewardError, match="'unified-reward' got no score for any of 2 images of the prompt 'b'"
            ):
                reward(images(self.shades), ["a", "a", "a", "b", "b"])
            with pytest.raises(RewardError, match="the reply was 'I would rather not say.'"):
                reward(images(self.shades[4:]), ["b"])

    def test_blocks_do_not_matter_to_steering(self):
        """What stands in for a missing score is the mean over the population, however its images came."""
        with ChatServer(unreadable_for([0.2])) as server:
            reward = load_reward("unified-reward", model=MODEL, base_url=server.url)
            batch = images(self.shades)
            encodings = [entry for image in batch for entry in reward.encode(image[None], ["red"])]
            (scores,) = reward.of_particles(encodings, [torch.arange(5)], ["red"])
            torch.testing.assert_close(scores.float(), reward(batch, ["red"] * 5))

    def test_nor_to_steering_within_bounds(self):
        with ChatServer(unreadable_for([0.2])) as server:
            judge = load_reward("unified-reward", model=MODEL, base_url=server.url)
            clipped = Clipped(judge, high=4.5)
            assert clipped.leaves == (judge,)
            batch = images(self.shades)
            encodings = [entry for image in batch for entry in judge.encode(image[None], ["red"])]
            scores = clipped.combine({judge: judge.of_particles(encodings, [torch.arange(5)], ["red"])[0]})
        torch.testing.assert_close(scores.float(), torch.tensor([3.0, 4.0, 3.8, 4.2, 4.5]), atol=0.01, rtol=0)


class TestUnifiedReward:
    def test_axes(self):
        def reply(text, pictures):
            return "Alignment Score (1-5): 4\nCoherence Score (1-5): 3\nStyle Score (1-5): 2.6"

        with ChatServer(reply) as server:
            options = {"model": MODEL, "base_url": server.url, "variant": "axes"}
            one = images()[:1]
            assert load_reward("unified-reward", **options)(one, ["red"]).item() == pytest.approx(3.2)
            assert load_reward("unified-reward", axis="style", **options)(one, ["red"]).item() == pytest.approx(2.6)
            server.reply = lambda text, pictures: "Alignment Score (1-5): 4"
            assert load_reward("unified-reward", axis="alignment", **options)(one, ["red"]).item() == 4.0
            with pytest.raises(RewardError, match="no score"):
                load_reward("unified-reward", **options)(one, ["red"])

    def test_pairs_that_cannot_be_had(self):
        with ChatServer(unreadable_for([0.0])) as server:
            reward = load_reward("unified-reward", variant="pair", model=MODEL, base_url=server.url)
            scores = reward(images(torch.tensor([0.0, 0.4, 1.0])), ["a"] * 3)
            # The darkest comes first against the middle one, which is the comparison that is spoilt: a tie.
            assert scores.tolist() == [0.25, 0.25, 1.0]
            with pytest.raises(RewardError, match="for the prompt 'a' failed: the reply was 'I would rather not say.'"):
                reward(images(torch.tensor([0.0, 0.4])), ["a"] * 2)

    @pytest.mark.parametrize("variant", ["pair", "think"])
    def test_pairs(self, variant):
        with ChatServer() as server:
            reward = load_reward("unified-reward", variant=variant, model=MODEL, base_url=server.url)
            scores = reward(images(), ["red"] * 5)
        torch.testing.assert_close(scores, torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
        assert len(server.requests) == 10
        assert reward.relative

    def test_position_bias_cancels(self):
        """A judge for which the first image always wins."""
        with ChatServer(lambda text, pictures: "Image 1 is better") as server:
            reward = load_reward("unified-reward", variant="pair", both_orders=True, model=MODEL, base_url=server.url)
            assert reward(images(), ["red"] * 5).tolist() == [0.5] * 5
        assert len(server.requests) == 20

    def test_template(self, tmp_path):
        (tmp_path / "mine.txt").write_text("Wie rot? {braces} Text: {prompt}\nFinal Score: ?\n")
        with ChatServer() as server:
            reward = load_reward("unified-reward", model=MODEL, base_url=server.url, template=tmp_path / "mine.txt")
            reward(images()[:1], ["a {prompt} of {braces}"])
        assert parts(server.requests[0])[0] == "Wie rot? {braces} Text: a {prompt} of {braces}\nFinal Score: ?"
        (tmp_path / "mine.txt").write_text("How red?")
        with pytest.raises(ValueError, match="mine.txt' to contain {prompt}"):
            load_reward("llm-grader", model=MODEL, template=str(tmp_path / "mine.txt"))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"variant": "rank"},
                "Unknown variant 'rank' of unified-reward. Known: point, axes, pair, pair-scores, think, flex, edit",
            ),
            ({"backend": "jax"}, "Unknown backend 'jax'"),
            ({"variant": "axes", "axis": "taste"}, "Unknown axis 'taste'"),
            ({"axis": "style"}, "only used by the variants 'axes'"),
            ({"backend": "transformers"}, "`path` goes with the backend 'transformers'"),
            ({"path": "x"}, "`path` goes with the backend 'transformers'"),
            ({"attempts": 0}, "`attempts` to be at least 1"),
            ({"url": "x"}, "Unknown option 'url' of the server. Known: model, base_url"),
            ({"backend": "transformers", "path": "x", "base_url": "y"}, "'base_url' of the backend 'transformers'"),
        ],
    )
    def test_bad_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            load_reward("unified-reward", **options)


class TestLLMGrader:
    def test_scores(self):
        with ChatServer() as server:
            reward = load_reward("llm-grader", model=MODEL, base_url=server.url)
            torch.testing.assert_close(reward(images(), ["red"] * 5), 10 * expected(images()))
        assert server.requests[0]["response_format"]["type"] == "json_schema"

    def test_axis(self):
        with ChatServer(lambda text, pictures: '{"visual_quality_and_realism": 3, "overall_score": 9}') as server:
            reward = load_reward("llm-grader", model=MODEL, base_url=server.url, axis="visual_quality_and_realism")
            assert reward(images()[:1], ["red"]).item() == 3.0
        with pytest.raises(ValueError, match="Unknown axis 'realism' of llm-grader. Known: accuracy_to_prompt"):
            load_reward("llm-grader", model=MODEL, axis="realism")


class TestVQAChat:
    def test_probability_of_yes(self):
        with ChatServer() as server:
            reward = load_reward("vqa-chat", model=MODEL, base_url=server.url)
            torch.testing.assert_close(reward(images(), ["red"] * 5), expected(images()))
        body = server.requests[0]
        assert parts(body)[0] == 'Does this figure show "red"? Please answer Yes or No.'
        assert (body["logprobs"], body["top_logprobs"], body["max_tokens"]) == (True, 20, 1)

    @pytest.mark.parametrize("refuses", [False, True], ids=["ignores logprobs", "refuses logprobs"])
    def test_without_logprobs(self, refuses, caplog):
        def fault(number):
            return failing(400) if refuses and "logprobs" in server.requests[number] else None

        with ChatServer(logprobs=False, fault=fault) as server:
            reward = load_reward("vqa-chat", model=MODEL, base_url=server.url)
            torch.testing.assert_close(reward(images(), ["red"] * 5), expected(images()))
            before = len(server.requests)
            reward(images(), ["red"] * 5)
        assert len(server.requests) == before + 5
        assert caplog.text.count("gives no log-probabilities; asking for percentages instead") == 1
        assert reward.counts.missing == 0

    def test_one_reply_without_logprobs_is_asked_for_again(self):
        def fault(number):
            without = {"choices": [{"message": {"content": "Yes"}}]}
            return (lambda handler: send(handler, without)) if number == 3 else None

        with ChatServer(fault=fault) as server:
            reward = load_reward("vqa-chat", model=MODEL, base_url=server.url, concurrency=1)
            torch.testing.assert_close(reward(images(), ["red"] * 5), expected(images()))
        assert reward.counts.asked_again == 1
