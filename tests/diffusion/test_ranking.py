"""The final images of a run, ranked by their paths."""

from __future__ import annotations

import torch

from fk_steer import FKSteering, steer
from fk_steer.testing import PROMPTS, SIZE, redness, row_generators, sd


CALL = {**SIZE, "num_inference_steps": 8, "output_type": "pt"}


def outputs(**overrides):
    settings = FKSteering(4, schedule=(0.3, 0.5, 0.7), **overrides)
    return steer(sd(), redness, settings)(PROMPTS, generator=row_generators(0, 1), **CALL)


def test_images_rewards_and_weights_come_in_the_order_of_the_paths_means():
    plain, ranked = outputs(), outputs(average_last=2)
    *early, last = ranked.trace.events
    for p in range(len(PROMPTS)):
        means = []
        for k, slot in enumerate(last.slots_before[p]):
            path, place = [last.rewards[p][k]], slot
            for event in reversed(early):
                place = event.parents[p][event.slots[p].index(place)]
                path.append(event.rewards[p][event.slots_before[p].index(place)])
            means.append(sum(path[:3]) / 3)
        order = torch.tensor(means).argsort(descending=True, stable=True)
        rewards = torch.tensor(last.rewards[p])[order]
        torch.testing.assert_close(ranked.rewards[p], rewards.float())
        torch.testing.assert_close(ranked.log_weights[p], torch.tensor(last.log_weights[p])[order].float())
        # The same images as without, in another order.
        by_reward = torch.tensor(last.rewards[p]).argsort(descending=True, stable=True)
        places = [by_reward.tolist().index(k) for k in order.tolist()]
        assert torch.equal(ranked.particles[p], plain.particles[p][places])
        assert torch.equal(ranked.images[p], ranked.particles[p, 0])


def test_off_by_default():
    assert FKSteering().average_last == 0
    assert torch.equal(outputs().particles, outputs(average_last=0).particles)
    assert (outputs().rewards.diff(dim=1) <= 0).all()
