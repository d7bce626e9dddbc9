"""What can be seen and done from outside: scoring events, pictures in the trace, searches of one's own."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from fk_steer import Execution, FKSteering, Strategy, steer
from fk_steer.diffusion.recorder import thumbnails
from fk_steer.pipelines import FKStableDiffusionPipeline
from fk_steer.report.trace import Trace
from fk_steer.search import DepthFirst, Plan
from fk_steer.testing import CALLS, PROMPTS, SIZE, quiet, redness, row_generators, sd


STEPS = 6


class Seen:
    """The events of a run, their predictions, and after each the images that the reward was shown."""

    def __init__(self, stop_at=None):
        self.stop_at, self.events, self.predictions, self.shown = stop_at, [], [], []
        self.images = []

    def reward(self, images, prompts):
        self.images.append(images.clone())
        return redness(images, prompts)

    def __call__(self, event):
        self.events.append(event)
        self.predictions.append(event.predictions())
        self.shown.append(torch.cat(self.images))
        self.images = []
        if len(self.events) - 1 == self.stop_at:
            event.stop()


def run(name, seen, steering, prompts=PROMPTS, execution=None, **call):
    make, own = CALLS[name]
    return steer(make(), seen.reward, steering, execution)(
        prompts,
        generator=torch.Generator().manual_seed(5),
        on_event=seen,
        **{**own, "num_inference_steps": STEPS, "output_type": "pt", **call},
    )


def by_slot(output, p):
    """Final images of a population, by slot."""
    final = output.trace.events[-1]
    ranked = torch.tensor(final.rewards[p]).argsort(descending=True, stable=True).tolist()
    return {final.slots[p][k]: image for k, image in zip(ranked, output.particles[p])}


@pytest.mark.parametrize("name", CALLS)
def test_an_event_shows_what_was_scored(name):
    seen = Seen()
    output = run(name, seen, "adaptive", execution=Execution.in_batches(3))
    assert len(seen.events) == len(output.trace.events) > 3
    for event, predictions, shown, record in zip(seen.events, seen.predictions, seen.shown, output.trace.events):
        assert event.step == record.step
        assert event.progress == record.progress
        assert event.timestep == record.timestep
        assert event.prompts == tuple(PROMPTS)
        assert event.rewards.tolist() == record.rewards
        assert event.slots.gather(1, event.ancestors).tolist() == record.parents
        assert event.slots_after.tolist() == record.slots
        assert (event.nfe, event.reward_calls) == (record.nfe, record.reward_calls)
        assert predictions.shape == (2, 4, 3, 16, 16)
        texts = [prompt for prompt in PROMPTS for _ in range(4)]
        again = redness(predictions.flatten(0, 1), texts).view(2, 4)
        torch.testing.assert_close(again.double(), event.rewards, atol=1e-4, rtol=1e-4)
        distances = torch.cdist(predictions.flatten(2).flatten(0, 1), shown.flatten(1))
        assert distances.amin(1).max() < 1e-3
        assert distances.amin(0).max() < 1e-3
    assert [event.final for event in seen.events] == [False] * (len(seen.events) - 1) + [True]
    # What the images are made of is seen last.
    for p in range(2):
        for slot, image in by_slot(output, p).items():
            assert torch.equal(seen.predictions[-1][p, seen.events[-1].slots[p].tolist().index(slot)], image)


STOPPABLE = {
    "adaptive": FKSteering(),
    "psp": FKSteering.preset("psp"),
    "after the noise": FKSteering.preset("fk-paper", lmbda=8.0),
    "depth-first": DepthFirst(2),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("strategy", STOPPABLE)
def test_stop_ends_the_run_with_the_predictions_of_those_who_go_on(name, strategy):
    seen = Seen(stop_at=1)
    pipe_calls = []
    output = run(name, seen, STOPPABLE[strategy], callback_on_step_end=lambda *step: pipe_calls.append(step[1]) or {})
    event, predictions = seen.events[1], seen.predictions[1]
    assert not event.final
    assert [later.final for later in seen.events] == [False, False, True]
    # The stock loop runs out, the denoiser does not. It counts the steps that it has been sent back to once more.
    assert output.trace.nfe == event.nfe
    first = output.trace.events[0]
    repeated = 0 if first.resume is None else first.step + 1 - first.resume
    assert max(pipe_calls) == STEPS - 1 + repeated
    for p in range(2):
        images = by_slot(output, p)
        assert list(images) and set(images) == set(event.slots_after[p].tolist())
        for slot, ancestor in zip(event.slots_after[p].tolist(), event.ancestors[p].tolist()):
            if ancestor < len(predictions[p]):
                torch.testing.assert_close(images[slot], predictions[p, ancestor], atol=1e-5, rtol=1e-5)
            else:
                # Remembered at the first event.
                former = seen.events[0].slots[p].tolist().index(event.parents[p].tolist()[slot])
                torch.testing.assert_close(images[slot], seen.predictions[0][p, former], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(redness(output.images, PROMPTS), output.rewards[:, 0], atol=1e-4, rtol=1e-4)


def test_stop_at_the_final_images_changes_nothing():
    plain, stopped = Seen(), Seen(stop_at=2)
    settings = FKSteering(schedule=(0.4, 0.6))
    assert torch.equal(run("sd", plain, settings).particles, run("sd", stopped, settings).particles)
    assert stopped.events[2].final


class TestKeptPredictions:
    def test_pictures_are_those_of_the_predictions(self, tmp_path):
        seen = Seen()
        output = run("sd", seen, "adaptive", execution=Execution.in_batches(3), keep_predictions=True)
        for event, record, predictions in zip(seen.events, output.trace.events, seen.predictions):
            assert event.thumbnails == record.predictions
            assert [len(row) for row in record.predictions] == [4, 4]
            for p in range(2):
                for k, url in enumerate(record.predictions[p]):
                    assert url.startswith("data:image/jpeg;base64,")
                    picture = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
                    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) / 255
                    own = (pixels - predictions[p, k]).abs().mean()
                    assert own < 0.1
        output.trace.save(tmp_path / "trace.json")
        loaded = Trace.load(tmp_path / "trace.json")
        assert loaded.events[0].predictions == output.trace.events[0].predictions
        assert loaded.to_dict() == output.trace.to_dict()
        assert output.trace.of(1).events[0].predictions == [output.trace.events[0].predictions[1]]

    def test_without_it_there_are_none(self):
        output = run("sd", Seen(), FKSteering(schedule=(0.5,)))
        assert [event.predictions for event in output.trace.events] == [[], []]

    def test_pictures_are_small(self):
        black, red = torch.zeros(3, 16, 32), torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 16, 32)
        found = []
        for url in thumbnails(8)(torch.stack([black, red])):
            picture = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
            assert picture.size == (8, 4)
            found.append(np.asarray(picture).mean((0, 1)).round(-1).tolist())
        assert found == [[0, 0, 0], [250, 0, 0]]


class TestEqualPrompts:
    """A prompt that is there twice gets other noise the second time, wherever the two are."""

    CALL = {**SIZE, "num_inference_steps": 4, "output_type": "pt"}

    def particles(self, prompts, seed=3, **call):
        steering = FKSteering(2, lmbda=1.0, schedule=(0.5,), seed=seed)
        return steer(sd(), redness, steering)(prompts, **self.CALL, **call).particles

    @pytest.mark.parametrize("generator", [False, True], ids=["seed", "generator"])
    def test_independent_of_position(self, generator):
        first, other = PROMPTS

        def of(*prompts, **call):
            if generator:
                call["generator"] = torch.Generator().manual_seed(8)
            return self.particles(list(prompts), **call)

        close = {"atol": 1e-5, "rtol": 1e-5}
        twice = of(first, other, first)
        assert (twice[0] - twice[2]).abs().max() > 1e-2
        torch.testing.assert_close(of(first)[0], twice[0], **close)
        torch.testing.assert_close(of(other)[0], twice[1], **close)
        torch.testing.assert_close(of(other, first, first), twice[[1, 0, 2]], **close)
        # As if it had been asked for twice as many images.
        torch.testing.assert_close(of(first, num_images_per_prompt=2), twice[[0, 2]], **close)

    def test_embeddings(self):
        pipe = sd()
        embeddings, negative = pipe.encode_prompt([PROMPTS[0], PROMPTS[0]], "cpu", 1, True)
        twice = self.particles(
            None, prompt_embeds=embeddings, negative_prompt_embeds=negative, reward_prompt=[PROMPTS[0]] * 2
        )
        torch.testing.assert_close(twice, self.particles([PROMPTS[0]] * 2), atol=1e-5, rtol=1e-5)


@dataclass(frozen=True)
class FollowTheBest(Strategy):
    every: int = 2

    def events(self, num_steps):
        return range(self.every, num_steps, self.every)

    def step(self, look):
        return Plan(look.ranked()[:, :1].expand_as(look.rewards))


class TestOwnStrategy:
    def check(self, output, steps):
        events = output.trace.events
        assert [event.step for event in events] == steps
        for event in events[:-1]:
            for rewards, slots, parents in zip(event.rewards, event.slots_before, event.parents):
                assert set(parents) == {slots[rewards.index(max(rewards))]}
        assert all(np.allclose(weights, np.log(1 / 3)) for weights in events[-1].log_weights)
        assert events[-1].distinct_roots == [1, 1]
        assert output.trace.steering["strategy"] == "FollowTheBest"
        assert output.trace.steering["every"] == 2
        assert np.isnan(output.trace.log_normalizer).all()

    @pytest.mark.parametrize("name", CALLS)
    def test_steers_any_pipeline(self, name):
        self.check(run(name, Seen(), FollowTheBest(3)), [2, 4, 6])

    def test_in_a_pipeline_class(self):
        pipe = quiet(FKStableDiffusionPipeline.from_pipe(sd()))
        self.check(
            pipe(PROMPTS, reward=redness, steering=FollowTheBest(3), num_inference_steps=STEPS, **SIZE), [2, 4, 6]
        )

    def test_copies_need_noise(self):
        with pytest.raises(ValueError, match="adds no noise after the first resampling"):
            steer(sd(), redness, FollowTheBest(3))(PROMPTS, eta=0.0, num_inference_steps=STEPS, **SIZE)


def test_one_particle_uses_the_very_generator_it_is_given():
    """One generator per particle is not one per prompt from which others are seeded."""
    pipe = sd()
    call = {**SIZE, "num_inference_steps": 4, "output_type": "pt"}
    stock = pipe(PROMPTS, generator=row_generators(3, 4), eta=1.0, **call).images
    output = steer(pipe, redness, FKSteering(1))(PROMPTS, generator=row_generators(3, 4), **call)
    assert torch.equal(output.images, stock)
