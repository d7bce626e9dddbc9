"""What a server of rewards answers to what is asked properly."""

from __future__ import annotations

import base64
import threading
import time

import httpx2
import numpy as np
import pytest
import torch
from odd_images import encoded, picture
from PIL import Image
from reward_server import RewardServer, error_of, filled, mean_red, red

from fk_steer import load_reward
from fk_steer.rewards import PairwiseReward, Reward, RewardError, ZScoreSum, as_pil
from fk_steer.server import Limits, create_app
from fk_steer.server.scoring import Served, model_of


PROMPT = "a photo of a red star"


@pytest.fixture(scope="module")
def clip():
    return load_reward("clip-score", path="shapes", device="cpu")


@pytest.fixture(scope="module")
def server(clip):
    with RewardServer({"red": red(), "clip-score": clip}, models={"red": "owner/red"}) as running:
        yield running


def test_files_get_the_scores_of_the_reward_itself(server, clip):
    images = [picture(seed=seed) for seed in range(3)]
    reply = server.score(*[encoded(image, "PNG") for image in images], prompt=PROMPT)
    assert reply.status_code == 200
    scores = reply.json()["scores"]
    assert list(scores) == ["red", "clip-score"]
    assert scores["red"] == pytest.approx(mean_red(images), abs=1e-4)
    torch.testing.assert_close(torch.tensor(scores["clip-score"]), clip(images, [PROMPT] * 3), atol=1e-6, rtol=0)


def test_base64_in_json_is_the_same(server):
    files = [filled(7), filled(200)]
    texts = [base64.b64encode(files[0]).decode(), f"data:image/png;base64,{base64.b64encode(files[1]).decode()}"]
    reply = server.client.post("/score", json={"images": texts, "prompts": ["a", "b"], "rewards": ["red"]})
    assert reply.status_code == 200
    assert reply.json() == {"scores": {"red": [7.0, 200.0]}}
    form = {"images": texts, "prompts": ["a", "b"], "rewards": ["red"]}
    mixed = server.client.post("/score", data=form, files=[("images", ("x", filled(9)))])
    assert "`prompts`: expected one for all images, or 3" in mixed.json()["error"]["message"]
    assert server.client.post("/score", data=form, files=[("nothing", ("x", b""))]).status_code == 422


def test_a_prompt_for_each_image_or_one_for_all(server, clip):
    image, prompts = picture(), [PROMPT, "two blue squares"]
    files = [("images", ("a", encoded(image, "PNG")))] * 2
    reply = server.client.post("/score", files=files, data={"prompts": prompts, "rewards": ["clip-score"]})
    expected = clip([image] * 2, prompts)
    assert expected[0] != expected[1]
    torch.testing.assert_close(torch.tensor(reply.json()["scores"]["clip-score"]), expected, atol=1e-6, rtol=0)


def test_what_is_served_is_told(server, clip):
    told = server.client.get("/rewards").json()
    by_name = {one["name"]: one for one in told["rewards"]}
    assert by_name["red"] == {
        "name": "red", "model": "owner/red", "relative": False, "standardize": False, "default_lmbda": 1.0,
        "card": {"summary": None, "paper": None, "hub_id": None, "licence": None, "typical_range": None},
    }  # fmt: skip
    card = clip.card.variant(clip.variant)
    assert by_name["clip-score"]["model"] is None  # other weights than the published ones, for all that is known
    assert by_name["clip-score"]["card"] == {
        "summary": card.summary, "paper": card.paper, "hub_id": card.hub_id, "licence": card.licence,
        "typical_range": list(card.typical_range),
    }  # fmt: skip
    assert told["limits"] == {"images": 64, "bytes": 2**25, "pixels": 2**24, "prompt_characters": 10_000}


@pytest.mark.parametrize(("options", "model"), [({"path": "shapes"}, "shapes"), ({}, "openai/clip-vit-large-patch14")])
def test_the_card_is_that_of_the_weights_which_are_loaded(clip, options, model):
    assert model_of(clip, options) == model
    told = Served("clip-score", clip, model_of(clip, options)).facts
    published = clip.card.variant("cosine")
    assert (told.model, told.card.hub_id) == (model, model)
    assert told.card.paper == published.paper
    if options:
        # Nothing of ViT-L/14.
        assert told.card.summary == clip.card.summary != published.summary
        assert (told.card.licence, told.card.typical_range) == (None, None)
    else:
        assert told.card.summary == published.summary
        assert (told.card.licence, told.card.typical_range) == (published.licence, published.typical_range)


def test_the_name_of_a_chat_judge_on_its_server_is_no_place_of_weights():
    judge = load_reward("unified-reward", model="some-name", template="ours")
    told = Served("unified-reward", judge, model_of(judge, {"model": "some-name"})).facts
    card = judge.card.variant("point")
    assert (told.model, told.card.hub_id, told.card.typical_range) == ("some-name", card.hub_id, card.typical_range)


def test_state(server):
    assert server.client.get("/health").json() == {"status": "ok"}
    assert server.client.get("/ready").json() == {"status": "ready"}
    server.service.draining = True
    try:
        stopping = server.client.get("/ready")
        assert (stopping.status_code, stopping.json()) == (503, {"status": "stopping"})
    finally:
        server.service.draining = False


def test_metrics_count(server):
    name = 'fk_steer_images_total{reward="red"}'
    before, requests = server.metric(name), server.metric('fk_steer_requests_total{path="/score",status="200"}')
    assert server.score(filled(1), filled(2)).status_code == 200
    assert server.metric(name) == before + 2
    assert server.metric('fk_steer_requests_total{path="/score",status="200"}') == requests + 1
    assert server.metric("fk_steer_memory_bytes") == 0
    assert server.metric("fk_steer_requests_under_way") == 0
    text = server.client.get("/metrics")
    assert text.headers["content-type"].startswith("text/plain; version=")
    assert "# TYPE fk_steer_batch_images histogram" in text.text


def test_images_are_read_as_files_are_everywhere(server):
    """EXIF turns, 16 bits, CMYK, transparency, palettes, animations: by the rules of `load_image`."""
    exif = Image.Exif()
    exif[0x0112] = 6
    half = Image.new("RGB", (20, 10), (0, 0, 0))
    half.paste((200, 0, 0), (0, 0, 10, 10))
    frames = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in (40, 250)]
    deep = Image.fromarray(np.full((4, 4), 0x6400, np.uint16))
    clear = Image.new("RGBA", (4, 4), (80, 0, 0, 0))
    expected = {
        encoded(half, "PNG", exif=exif): 100.0,
        encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]): 40.0,
        encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]): 40.0,
        encoded(deep, "PNG"): 100.0,
        encoded(clear, "PNG"): 80.0,
        encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 55)), "TIFF"): 200.0,
        encoded(Image.new("P", (4, 4), 0), "PNG"): 0.0,
        encoded(Image.new("L", (4, 4), 33), "WEBP", lossless=True): 33.0,
    }
    for data, score in expected.items():
        reply = server.client.post(
            "/score", files=[("images", ("a", data))], data={"prompts": ["a"], "rewards": ["red"]}
        )
        assert reply.json()["scores"]["red"] == [pytest.approx(score, abs=1.0)], data[:30]


def test_the_way_up_is_that_of_exif():
    def top(pictures, prompts):
        return [float(np.asarray(one)[0, :, 0].mean()) for one in pictures]

    exif = Image.Exif()
    exif[0x0112] = 8  # a quarter to the left: what was right comes on top
    image = Image.new("RGB", (20, 10), (0, 0, 0))
    image.paste((200, 0, 0), (10, 0, 20, 10))
    with RewardServer({"top": as_pil(top)}) as server:
        assert server.score(encoded(image, "PNG", exif=exif)).json()["scores"]["top"] == [200.0]
        assert server.score(encoded(image, "PNG")).json()["scores"]["top"] == [100.0]


class TestBatches:
    def test_requests_share_batches(self):
        sizes = []

        def counting(pictures, prompts):
            sizes.append(len(pictures))
            time.sleep(0.05)
            return mean_red(pictures)

        with RewardServer({"red": as_pil(counting)}, max_batch=4, max_wait=0.5) as server:
            found: dict[int, float] = {}

            def ask(value: int) -> None:
                reply = httpx2.post(
                    f"{server.url}/score", files=[("images", ("a", filled(value)))], data={"prompts": ["a"]}, timeout=30
                )
                found[value] = reply.json()["scores"]["red"][0]

            threads = [threading.Thread(target=ask, args=(value,)) for value in range(12)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert found == {value: float(value) for value in range(12)}  # nobody gets another's
        assert max(sizes) == 4 and len(sizes) < 12 and sum(sizes) == 12

    def test_a_request_larger_than_a_batch_is_split(self):
        sizes = []

        def counting(pictures, prompts):
            sizes.append(len(pictures))
            return mean_red(pictures)

        with RewardServer({"red": as_pil(counting)}, max_batch=4) as server:
            reply = server.score(*[filled(value) for value in range(10)])
        assert reply.json()["scores"]["red"] == [float(value) for value in range(10)]
        assert sizes == [4, 4, 2]

    def test_one_request_that_cannot_be_scored_is_no_others_error(self):
        def picky(pictures, prompts):
            if "bad" in prompts:
                raise ValueError("The prompt is bad.")
            return mean_red(pictures)

        with RewardServer({"red": as_pil(picky)}, max_wait=0.5, max_batch=3) as server:
            replies: dict[str, httpx2.Response] = {}

            def ask(prompt: str) -> None:
                files = [("images", ("a", filled(5)))]
                replies[prompt] = httpx2.post(
                    f"{server.url}/score", files=files, data={"prompts": [prompt]}, timeout=30
                )

            threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in ("good", "bad", "fine")]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert error_of(replies["bad"], 422) == "not_scorable"
            assert "The prompt is bad." in replies["bad"].json()["error"]["message"]
            for prompt in ("good", "fine"):
                assert replies[prompt].json()["scores"]["red"] == [5.0]


class TestComparing:
    @staticmethod
    def pairwise(**options) -> PairwiseReward:
        return PairwiseReward(
            lambda first, second, prompts: [float(a > b) for a, b in zip(mean_red(first), mean_red(second))],
            name="pairs",
            **options,
        )

    def test_two_images_get_a_verdict(self):
        with RewardServer({"pairs": self.pairwise()}) as server:
            assert server.client.get("/rewards").json()["rewards"][0]["relative"]
            assert server.score(filled(9), filled(3)).json()["scores"]["pairs"] == [1.0, 0.0]
            assert server.score(filled(3)).json()["scores"]["pairs"] == [0.5]

    def test_equal_images_are_copies_which_tie_and_are_not_compared(self):
        asked = []

        def compare(first, second, prompts):
            asked.extend(zip(mean_red(first), mean_red(second)))
            return [1.0] * len(prompts)  # the first place always wins

        with RewardServer({"pairs": PairwiseReward(compare, both_orders=True)}) as server:
            scores = server.score(filled(9), filled(9), filled(3)).json()["scores"]["pairs"]
        assert scores == [0.5, 0.5, 0.5]
        assert len(asked) == 2  # one pair in both orders

    def test_images_of_other_prompts_and_requests_are_apart(self):
        with RewardServer({"z": ZScoreSum({red(): 1.0})}, max_wait=0.3) as server:
            images = [("images", ("a", filled(value))) for value in (0, 10, 100, 104)]
            reply = server.client.post("/score", files=images, data={"prompts": ["a", "a", "b", "b"]})
            assert reply.json()["scores"]["z"] == pytest.approx([-1.0, 1.0, -1.0, 1.0], abs=1e-6)
            replies = []

            def ask(low: int, high: int) -> None:
                files = [("images", ("a", filled(value))) for value in (low, high)]
                answer = httpx2.post(f"{server.url}/score", files=files, data={"prompts": ["a"]}, timeout=30)
                replies.append(answer.json()["scores"]["z"])

            threads = [threading.Thread(target=ask, args=pair) for pair in ((0, 10), (200, 201))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert replies == [pytest.approx([-1.0, 1.0], abs=1e-6)] * 2


class TestFailures:
    class Failing(Reward):
        name = "failing"

        def __init__(self, error: Exception) -> None:
            self.error = error

        def __call__(self, images, prompts):
            raise self.error

    def test_a_reward_that_fails_says_so_and_the_server_goes_on(self):
        inner = RuntimeError("/home/somebody/secret.bin is broken")
        with RewardServer({"red": red(), "failing": self.Failing(inner)}) as server:
            reply = server.score(filled(1))
            assert error_of(reply, 500) == "reward_failed"
            assert "secret.bin" not in reply.text
            data = {"prompts": ["a"], "rewards": ["red"]}
            again = server.client.post("/score", files=[("images", ("a", filled(1)))], data=data)
            assert again.json() == {"scores": {"red": [1.0]}}

    def test_what_a_reward_says_for_people_is_passed_on(self):
        with RewardServer({"failing": self.Failing(RewardError("The judge is away."))}) as server:
            reply = server.score(filled(1))
        assert error_of(reply, 500) == "reward_failed"
        assert "The judge is away." in reply.json()["error"]["message"]

    def test_a_device_without_memory_is_busy(self):
        with RewardServer({"failing": self.Failing(torch.OutOfMemoryError())}) as server:
            reply = server.score(filled(1))
        assert error_of(reply, 503) == "out_of_memory"
        assert reply.headers["retry-after"] == "1"

    def test_infinite_scores_are_words_and_nan_is_an_error(self):
        values = iter([[float("inf"), float("-inf")], [float("nan"), 0.0]])
        with RewardServer({"odd": as_pil(lambda pictures, prompts: next(values))}) as server:
            assert server.score(filled(1), filled(2)).json()["scores"]["odd"] == ["Infinity", "-Infinity"]
            assert error_of(server.score(filled(1), filled(2)), 500) == "reward_failed"

    def test_scores_that_take_too_long(self):
        def slow(pictures, prompts):
            time.sleep(1.0)
            return mean_red(pictures)

        with RewardServer({"red": as_pil(slow)}, limits=Limits(seconds=0.2)) as server:
            assert error_of(server.score(filled(1)), 504) == "too_long"


@pytest.mark.parametrize(
    ("rewards", "options", "message"),
    [
        ({}, {}, "at least one reward to serve"),
        ({"red": red()}, {"max_batch": 0}, "`max_batch` to be an integer of at least 1"),
        ({"red": red()}, {"max_wait": -1}, "`max_wait`"),
        ({"red": red()}, {"hosts": ["http://x/y"]}, "name of a host"),
        ({"red": red()}, {"hosts": ["x:70000"]}, "name of a host"),
        ({"video": type("Video", (Reward,), {"takes_videos": True})()}, {}, "'video' scores videos"),
    ],
)
def test_what_cannot_be_served_is_told_at_once(rewards, options, message):
    with pytest.raises(ValueError, match=message):
        create_app(rewards, **options)


@pytest.mark.parametrize(
    ("limits", "message"),
    [({"images": 0}, "`images`"), ({"seconds": 0}, "`seconds`"), ({"queue": 3}, "the queue to take the images")],
)
def test_limits_make_sense(limits, message):
    with pytest.raises(ValueError, match=message):
        Limits(**limits)
