"""Rewards that run on a server: the same scores, and one clear error where there are none."""

from __future__ import annotations

import json
import pickle
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import torch
from odd_images import picture
from PIL import Image
from reward_server import RewardServer, mean_red, red
from typer.testing import CliRunner

from fk_steer import FKSteering, load_reward, steer
from fk_steer.cli import app
from fk_steer.rewards import MissingScoreError, PairwiseReward, Reward, RewardError, RewardLoadError, ZScoreSum, as_pil
from fk_steer.rewards import remote as module
from fk_steer.rewards.chat import check_recordable
from fk_steer.rewards.judge import scores_or_none
from fk_steer.server import Limits
from fk_steer.shapes import load_pipeline


PROMPT = "a photo of a red star"
KEY = "a-key-of-the-tests"


@pytest.fixture(scope="module")
def clip():
    return load_reward("clip-score", path="shapes", device="cpu")


@pytest.fixture(scope="module")
def server(clip):
    with RewardServer({"clip-score": clip, "red": red()}) as running:
        yield running


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Waits between attempts are noted and not waited for."""
    noted: list[float] = []
    monkeypatch.setattr(module, "sleep", noted.append)
    return noted


def remote(server: Any, reward: str | None = "clip-score", **options: Any) -> Any:
    return load_reward("remote", url=server.url, **({} if reward is None else {"reward": reward}), **options)


class TestScores:
    def test_are_those_of_the_reward_in_this_process(self, server, clip):
        images = torch.rand(11, 3, 40, 56, generator=torch.Generator().manual_seed(0))
        prompts = [PROMPT, "two blue squares"] * 5 + ["naïve ☃ \n\x00"]
        scores = remote(server, batch_size=4)(images, prompts)
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, clip(images, prompts), atol=1e-6, rtol=0)

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "F", "YCbCr"])
    def test_of_pictures_of_any_mode(self, server, clip, mode):
        if mode == "I;16":
            image = Image.fromarray((np.arange(480).reshape(20, 24) * 136).astype(np.uint16))
        else:
            image = picture().convert("L").convert(mode) if mode == "F" else picture().convert(mode)
        image.info["transparency"] = 3
        image.getexif()[0x0112] = 6  # beside pixels that are the right way up
        assert image.mode == mode
        expected = clip([image.copy()], [PROMPT])
        torch.testing.assert_close(remote(server)([image], [PROMPT]), expected, atol=1e-6, rtol=0)

    def test_of_a_reward_that_sees_transparency(self):
        """Images keep their mode on the way."""
        seen = []

        class Modes(Reward):
            def __call__(self, images, prompts):
                seen.extend(image.mode for image in images)
                return torch.zeros(len(images))

        with RewardServer({"modes": Modes()}) as server:
            modes = ["RGB", "RGBA", "L", "LA", "P", "1"]
            remote(server, "modes")([picture().convert(mode) for mode in modes], ["a"] * 6)
        assert seen == modes

    def test_facts_are_those_that_the_server_tells(self, server, clip):
        reward = remote(server)
        card = clip.card.variant(clip.variant)
        assert (reward.name, reward.reward, reward.relative) == ("remote", "clip-score", False)
        assert reward.default_lmbda == reward.card.default_lmbda == card.default_lmbda
        assert (reward.card.summary, reward.card.typical_range) == (card.summary, card.typical_range)

    def test_no_images_are_no_request(self, server):
        before = server.metric('fk_steer_requests_total{path="/score",status="200"}')
        assert remote(server)(torch.zeros(0, 3, 8, 8), []).shape == (0,)
        assert server.metric('fk_steer_requests_total{path="/score",status="200"}') == before

    def test_requests_are_of_the_size_that_is_asked_for_or_taken(self, server):
        def requests() -> float:
            return server.metric('fk_steer_requests_total{path="/score",status="200"}')

        images = torch.rand(10, 3, 8, 8)
        before = requests()
        remote(server, "red", batch_size=3)(images, ["a"] * 10)
        assert requests() == before + 4
        with RewardServer(limits=Limits(images=2)) as small:
            assert remote(small, "red", batch_size=100)(images, ["a"] * 10).shape == (10,)
            assert small.metric('fk_steer_requests_total{path="/score",status="200"}') == 5
        noise = torch.rand(6, 3, 40, 40, generator=torch.Generator().manual_seed(0))  # about 5 kB each
        with RewardServer(limits=Limits(body=20_000)) as small:
            assert remote(small, "red")(noise, ["a"] * 6).shape == (6,)
            assert small.metric('fk_steer_requests_total{path="/score",status="200"}') == 2


class TestComparing:
    @staticmethod
    def comparer(first, second, prompts):
        return [1 / (1 + 2 ** (b - a)) for a, b in zip(mean_red(first), mean_red(second))]

    def test_particles_of_a_prompt_are_compared(self):
        local = PairwiseReward(self.comparer, name="pairs")
        images = [Image.new("RGB", (4, 4), (value, 0, 0)) for value in (3, 1, 7, 5, 2)]
        prompts = ["a", "b", "a", "b", "a"]
        with RewardServer({"pairs": PairwiseReward(self.comparer, name="pairs")}) as server:
            reward = remote(server, None)
            assert reward.relative
            torch.testing.assert_close(reward(images, prompts), local(images, prompts))
            assert scores_or_none(reward, images, prompts, "here") == pytest.approx(local(images, prompts).tolist())

    def test_copies_tie_as_they_do_here(self):
        """With a judge that always prefers the first place, copies would win against each other otherwise."""

        def first_wins(first, second, prompts):
            return [0.9] * len(prompts)

        local = PairwiseReward(first_wins)
        images = torch.tensor([0.2, 0.4, 0.6]).view(3, 1, 1, 1).expand(3, 3, 4, 4)
        members = [torch.tensor([0, 0, 2, 1, 2])]
        with RewardServer({"pairs": PairwiseReward(first_wins)}) as server:
            reward = remote(server, None)
            found = reward.of_particles(reward.encode(images, ["a"] * 3), members, ["a"])
        expected = local.of_particles(local.encode(images, ["a"] * 3), members, ["a"])
        torch.testing.assert_close(found[0], expected[0])

    def test_sums_of_z_scores(self):
        images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        images = (images * 255).round() / 255
        local = ZScoreSum({red(): 1.0})
        with RewardServer({"z": ZScoreSum({red(): 1.0})}) as server:
            found = remote(server, None)(images, ["a", "b"] * 3)
        torch.testing.assert_close(found, local(images, ["a", "b"] * 3), atol=1e-5, rtol=1e-5)


class Judge(Reward):
    """Has no scores for dark images."""

    name = "judge"

    def __call__(self, images, prompts):
        return torch.tensor(mean_red(images))

    def scores_or_none(self, images, prompts):
        return [score if score > 50 else None for score in mean_red(images)]


class TestMissing:
    def test_counts_as_the_mean_of_the_others_and_is_told_to_statistics(self):
        images = [Image.new("RGB", (4, 4), (value, 0, 0)) for value in (100, 10, 200)]
        with RewardServer({"judge": Judge()}) as server:
            reward = remote(server, None)
            assert reward(images, ["a"] * 3).tolist() == [100.0, 150.0, 200.0]
            assert scores_or_none(reward, images, ["a"] * 3, "here") == [100.0, None, 200.0]
            with pytest.raises(MissingScoreError, match="no score for any image of 'b'"):
                reward(images, ["a", "b", "a"])


class Stub:
    """A server of whatever is given: (status, headers, body) for each request in turn, the last one for ever."""

    REWARDS = json.dumps({
        "rewards": [{"name": "red", "relative": False, "standardize": False, "default_lmbda": 1.0,
                     "card": {"summary": "Red.", "paper": None, "licence": None, "typical_range": None}}],
        "limits": {"images": 64, "bytes": 100_000},
    })  # fmt: skip

    def __init__(self, *answers: tuple[int, dict[str, str], str], rewards: tuple[int, str] = (200, REWARDS)) -> None:
        self.answers, self.asked = list(answers), 0
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                self.answer(rewards[0], {}, rewards[1])

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                owner.asked += 1
                status, headers, body = owner.answers.pop(0) if len(owner.answers) > 1 else owner.answers[0]
                if status == 0:
                    self.connection.close()
                    return
                self.answer(status, headers, body)

            def answer(self, status: int, headers: dict[str, str], body: str) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Stub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()


GOOD = (200, {}, '{"scores": {"red": [5.0]}}')
BUSY = (503, {"Retry-After": "3"}, '{"error": {"code": "busy", "message": "Full."}}')


def one(stub: Stub, **options: Any) -> float:
    return remote(stub, None, **options)([Image.new("RGB", (2, 2))], ["a"]).item()


class TestFailures:
    @pytest.mark.parametrize(
        "answer", [BUSY, (502, {}, "<html>"), (504, {}, "{}"), (429, {}, ""), (0, {}, "")],
        ids=["busy", "gateway", "gateway too slow", "too many", "broken off"],
    )  # fmt: skip
    def test_what_fails_in_passing_is_tried_again(self, answer, waits):
        with Stub(answer, answer, GOOD) as stub:
            assert one(stub) == 5.0
            assert stub.asked == 3
        assert len(waits) == 2
        if answer is BUSY:
            assert waits == [3.0, 3.0]
        else:
            assert 0.18 < waits[0] < 0.32 < waits[1] < 0.63

    def test_and_for_good_it_is_one_error(self):
        with Stub(BUSY) as stub:
            with pytest.raises(RewardError, match=r"in 3 attempts: .* answered: Full \(status 503\)\. Does `fk-steer"):
                one(stub, max_retries=2)
            assert stub.asked == 3

    def test_a_timeout(self):
        free = threading.Event()

        def slow(pictures, prompts):
            free.wait(10)
            return mean_red(pictures)

        with RewardServer({"slow": as_pil(slow)}) as server:
            with pytest.raises(RewardError, match="it took too long to answer"):
                remote(server, None, timeout=0.3, max_retries=0)([picture()], ["a"])
            free.set()

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ('{"scores": {"red": [1.0, 2.0]}}', "to return 1 scores of 'red', but got 2"),
            ('{"scores": {"red": []}}', "to return 1 scores of 'red', but got 0"),
            ('{"scores": {"red": [NaN]}}', "that are no numbers"),
            ('{"scores": {"blue": [1.0]}}', "is no server of `fk-steer serve`: its reply holds no scores"),
            ('{"scores": {"red": ["x"]}}', "its reply holds no scores"),
            ("<html>", "its reply holds no scores"),
        ],
    )
    def test_replies_of_another_form(self, body, message):
        with Stub((200, {}, body)) as stub, pytest.raises(RewardError, match=message):
            one(stub)

    def test_what_a_server_refuses_is_not_tried_again(self):
        with Stub((422, {}, '{"error": {"code": "invalid", "message": "No such thing."}}'), GOOD) as stub:
            with pytest.raises(RewardError, match=r"answered: No such thing \(status 422\)"):
                one(stub)
            assert stub.asked == 1

    def test_infinite_scores_come_through(self):
        with Stub((200, {}, '{"scores": {"red": ["-Infinity"]}}')) as stub:
            assert one(stub) == float("-inf")

    def test_no_server(self):
        with Stub() as stub:
            url = stub.url
        with pytest.raises(RewardLoadError, match=rf"Could not get an answer from {url}: no connection"):
            load_reward("remote", url=url)

    @pytest.mark.parametrize("rewards", [(404, "<html>"), (200, "<html>"), (200, "[]"), (200, '{"rewards": []}')])
    def test_another_server(self, rewards):
        with (
            Stub(GOOD, rewards=rewards) as stub,
            pytest.raises(RewardLoadError, match="is no server of `fk-steer serve`"),
        ):
            remote(stub, None)

    def test_unknown_and_unnamed_rewards(self, server):
        with pytest.raises(ValueError, match=r"Unknown reward 'clip-scor' of http.*Known: clip-score, red"):
            remote(server, "clip-scor")
        with pytest.raises(ValueError, match="serves several rewards: clip-score, red. Say which"):
            remote(server, None)

    @pytest.mark.parametrize(
        "url", ["127.0.0.1:8008", "ftp://x", "http://", "http://user:secret@x", "http://x?key=secret", "http://x:y", 3]
    )
    def test_urls_of_another_form(self, url):
        with pytest.raises(ValueError, match="Expected `url` to be the address of a server") as caught:
            load_reward("remote", url=url)
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize("option", [{"batch_size": 0}, {"concurrency": 0}, {"max_retries": -1}, {"timeout": 0}])
    def test_numbers_out_of_range(self, server, option):
        with pytest.raises(ValueError, match=f"`{next(iter(option))}`"):
            remote(server, **option)


@pytest.fixture(scope="module")
def locked():
    with RewardServer(api_key=KEY) as running:
        yield running


class TestKey:
    def test_comes_from_the_environment(self, locked, monkeypatch):
        monkeypatch.setenv("FK_STEER_API_KEY", KEY)
        assert remote(locked, None)([picture()], ["a"]).item() > 0
        monkeypatch.delenv("FK_STEER_API_KEY")
        monkeypatch.setenv("OTHER", KEY)
        assert remote(locked, None, api_key_env="OTHER")([picture()], ["a"]).item() > 0

    @pytest.mark.parametrize("key", [None, "wrong-key-wrong-key"])
    def test_a_wrong_one_is_told_and_not_shown(self, locked, monkeypatch, key):
        monkeypatch.delenv("FK_STEER_API_KEY", raising=False)
        if key:
            monkeypatch.setenv("FK_STEER_API_KEY", key)
        with pytest.raises(RewardLoadError, match="refused the key .* environment variable FK_STEER_API_KEY") as caught:
            remote(locked, None)
        assert "wrong-key" not in str(caught.value)

    def test_is_kept_nowhere(self, locked, monkeypatch):
        monkeypatch.setenv("FK_STEER_API_KEY", KEY)
        reward = remote(locked, None)
        assert KEY not in repr(reward) + str(vars(reward)) and KEY.encode() not in pickle.dumps(reward)

    def test_is_no_option(self, locked):
        with pytest.raises(ValueError, match="no option 'api_key'"):
            remote(locked, None, api_key=KEY)

    def test_addresses_with_passwords_are_not_recorded(self):
        check_recordable({"url": "http://x:8008"})
        with pytest.raises(ValueError, match="`url` without a user and password"):
            check_recordable({"url": "http://user:secret@x:8008"})


def test_a_copy_in_another_process_asks_by_itself(server, clip):
    reward = pickle.loads(pickle.dumps(remote(server)))
    image = picture()
    torch.testing.assert_close(reward([image], [PROMPT]), clip([image], [PROMPT]), atol=1e-6, rtol=0)


def test_steering_through_a_server_makes_the_same_images(server, clip):
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    settings = FKSteering(num_particles=4, lmbda=20.0, schedule=(0.4, 0.7), seed=0, tempering="constant")

    def run(reward: Any) -> Any:
        generator = torch.Generator().manual_seed(1)
        return steer(pipe, reward, settings)([PROMPT], num_inference_steps=6, generator=generator, output_type="pt")

    here, there = run(clip), run(remote(server))
    assert torch.equal(here.images, there.images)
    torch.testing.assert_close(here.rewards, there.rewards, atol=1e-5, rtol=0)
    # Particles were copied, so that the rewards along the way mattered.
    assert any(event.parents[0] != sorted(set(event.parents[0])) for event in there.trace.events)


def test_on_the_command_line(server, clip, tmp_path, monkeypatch):
    monkeypatch.setenv("FK_STEER_API_KEY", KEY)
    path = tmp_path / "red.png"
    picture().save(path)
    options = ["--reward-option", f"url={server.url}", "--reward-option", "reward=clip-score"]
    result = CliRunner().invoke(app, ["score", str(path), "--prompt", PROMPT, "--reward", "remote", *options, "--json"])
    assert result.exit_code == 0, result.output
    (entry,) = json.loads(result.stdout)["results"]
    assert entry["scores"]["remote"] == pytest.approx(clip([picture()], [PROMPT]).item(), abs=1e-6)
    out = tmp_path / "out"
    made = CliRunner().invoke(
        app,
        ["generate", PROMPT, "--model", "shapes", "--reward", "remote", *options, "--steps", "2", "--particles", "2",
         "--out", str(out), "--device", "cpu"],
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    texts = [file.read_text() for file in out.rglob("*.json")]
    assert any(server.url in text for text in texts)
    assert not any(KEY in text for text in texts)
