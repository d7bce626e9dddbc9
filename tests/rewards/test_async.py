"""Rewards that are async functions, or return what has yet to be awaited."""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import threading
import time
import warnings

import pytest
import torch
from PIL import Image

from fk_steer import FKSteering, steer
from fk_steer.rewards import PairwiseReward, Reward, RewardError, WeightedSum, as_pil, as_reward
from fk_steer.rewards.judge import scores_or_none
from fk_steer.rewards.waiting import CONCURRENCY, settled
from fk_steer.shapes import load_pipeline


PROMPT = "a photo of a red star"
IMAGES = torch.linspace(0, 1, 5)[:, None, None, None].expand(5, 3, 8, 8).contiguous()
PROMPTS = [PROMPT] * 5
SHADES = torch.linspace(0, 1, 5)


async def brightness(images, prompts):
    await asyncio.sleep(0)
    return images.mean((1, 2, 3))


async def of_images_alone(images):
    await asyncio.sleep(0)
    return images.mean((1, 2, 3)).tolist()


async def of_one(image):
    await asyncio.sleep(0.001)
    return float(image.mean())


def of_each(images, prompts):
    return [of_one(image) for image in images]


async def gathered(images, prompts):
    return await asyncio.gather(*map(of_one, images))


async def of_options(images, prompts, scale):
    return scale * images.mean((1, 2, 3))


class Duck:
    name = "duck"

    async def __call__(self, images, prompts):
        return await brightness(images, prompts)


class Module(torch.nn.Module):
    async def forward(self, images):
        return images.mean((1, 2, 3))


class Called(Reward):
    async def __call__(self, images, prompts):
        return await brightness(images, prompts)


class Encoded(Reward):
    async def encode(self, images, prompts):
        return await asyncio.gather(*map(of_one, images))

    async def of_particles(self, encodings, members, prompts):
        await asyncio.sleep(0)
        return [torch.tensor([encodings[i] for i in group]) for group in members]


async def of_pictures(pictures, prompts):
    assert all(isinstance(picture, Image.Image) for picture in pictures)
    return [picture.getpixel((0, 0))[0] / 255 for picture in pictures]


async def of_picture(picture):
    return picture.getpixel((0, 0))[0] / 255


FORMS = {
    "function": brightness,
    "of images alone": of_images_alone,
    "partial": functools.partial(of_options, scale=1.0),
    "lambda": lambda images, prompts: brightness(images, prompts),
    "a call for each image": of_each,
    "gathered": gathered,
    "object": Duck(),
    "method": Duck().__call__,
    "module": Module(),
    "reward": Called(),
    "reward of all particles": Encoded(),
    "pictures": as_pil(of_pictures),
    "a call for each picture": as_pil(lambda pictures: [of_picture(picture) for picture in pictures]),
    "of a sum": WeightedSum({brightness: 0.5, Called(): 0.5}),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_scores_are_awaited(form):
    torch.testing.assert_close(as_reward(form)(IMAGES, PROMPTS).float(), SHADES, atol=2e-3, rtol=0)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_running_loop_is_no_hindrance(form):
    async def notebook():
        return as_reward(form)(IMAGES, PROMPTS)

    torch.testing.assert_close(asyncio.run(notebook()).float(), SHADES, atol=2e-3, rtol=0)


@pytest.fixture(scope="module")
def pipe():
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def steered(pipe, reward):
    settings = FKSteering(num_particles=3, lmbda=20.0, schedule=(1, 2), seed=0)
    generator = torch.Generator().manual_seed(0)
    return steer(pipe, reward, settings)(PROMPT, num_inference_steps=4, generator=generator, output_type="pt")


def test_steering_by_one_is_steering_by_its_plain_form(pipe):
    plain = steered(pipe, lambda images, prompts: images.mean((1, 2, 3)))
    for form in (brightness, of_each, Encoded()):
        output = steered(pipe, form)
        torch.testing.assert_close(output.images, plain.images, atol=0, rtol=0)
        torch.testing.assert_close(output.rewards[0].float(), plain.rewards[0].float(), atol=1e-6, rtol=0)


def test_steering_within_a_running_loop(pipe):
    async def notebook():
        return steered(pipe, gathered)

    torch.testing.assert_close(asyncio.run(notebook()).images, steered(pipe, gathered).images, atol=0, rtol=0)


def test_an_async_comparer():
    async def compare(first, second, prompts):
        return (first.mean((1, 2, 3)) > second.mean((1, 2, 3))).float()

    wins = PairwiseReward(compare)(IMAGES, PROMPTS)
    torch.testing.assert_close(wins, torch.linspace(0, 1, 5))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_so_are_scores_for_tables_and_files(form):
    assert scores_or_none(form, IMAGES, PROMPTS, "here") == pytest.approx(SHADES.tolist(), abs=2e-3)


def test_as_many_are_under_way_as_of_chat_judges():
    import inspect

    from fk_steer.rewards.chat import ChatClient

    assert inspect.signature(ChatClient).parameters["concurrency"].default == CONCURRENCY
    under_way = most = 0

    async def count(number):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        return number

    started = time.monotonic()
    assert settled([count(number) for number in range(40)]) == list(range(40))
    assert most == CONCURRENCY and time.monotonic() - started < 40 * 0.01


def test_connections_outlive_a_call():
    """Of one loop, as clients are that keep connections; a loop for each call would close theirs."""
    loops = []

    async def reward(images, prompts):
        loops.append(asyncio.get_running_loop())
        return [0.0] * len(prompts)

    for _ in range(2):
        as_reward(reward)(IMAGES, PROMPTS)
    assert loops[0] is loops[1] and loops[0].is_running()


def test_no_gradients():
    weight = torch.nn.Parameter(torch.ones(()))

    async def reward(images, prompts):
        assert not (weight * images).requires_grad
        return images.mean((1, 2, 3))

    as_reward(reward)(IMAGES, PROMPTS)


def test_one_that_calls_another():
    inner = as_reward(brightness)

    async def outer(images, prompts):
        return 2 * inner(images, prompts)

    torch.testing.assert_close(as_reward(outer)(IMAGES, PROMPTS), 2 * SHADES)


def test_from_several_threads():
    found = {}

    def score(number):
        found[number] = as_reward(of_each)(IMAGES * number, PROMPTS)

    threads = [threading.Thread(target=score, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        torch.testing.assert_close(found[number].float(), SHADES * number)


def _score_in_fork(queue):
    queue.put(settled(of_one(IMAGES[2])))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_after_a_fork():
    settled(of_one(IMAGES[0]))
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=_score_in_fork, args=(queue,))
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert queue.get() == pytest.approx(0.5)


async def failing(images, prompts):
    raise KeyError("weights")


def fails_for_one(images, prompts):
    async def fail():
        raise KeyError("weights")

    return [fail(), *(asyncio.sleep(60, 0.0) for _ in prompts[1:])]


@pytest.mark.parametrize("reward", [failing, fails_for_one])
def test_what_one_raises_is_blamed_on_it(pipe, reward):
    started = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RewardError, match=f"'{reward.__name__}' raised KeyError at step 1") as caught:
            steered(pipe, reward)
    assert isinstance(caught.value.__cause__, KeyError)
    assert time.monotonic() - started < 30


def test_an_exit_within_one_is_an_exit():
    async def leaving(images, prompts):
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        as_reward(leaving)(IMAGES, PROMPTS)
    torch.testing.assert_close(as_reward(brightness)(IMAGES, PROMPTS), SHADES)


def test_plain_values_are_as_they_were():
    for value in (1.0, [1.0, 2.0], (1.0,), None, IMAGES, {"a": 1}, "text"):
        assert settled(value) is value


async def of_no_number(images, prompts):
    return ["good"] * len(prompts)


def test_what_is_no_number_is_named(pipe):
    with pytest.raises(RewardError, match="'of_no_number' returned .*'good'.* at step 1"):
        steered(pipe, of_no_number)
