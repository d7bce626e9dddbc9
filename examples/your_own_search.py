"""A search of your own: settings that say, at some steps, which particle each one continues.

python examples/your_own_search.py
"""

import argparse
from dataclasses import dataclass

import torch

from fk_steer import Noise, Plan, Search, Strategy, load_reward, steer
from fk_steer.bundled import bundled_options
from fk_steer.loading import load_pipeline
from fk_steer.options import Help


# Ten lines: every few steps the worst particle gives its place to the best.
@dataclass(frozen=True)
class ReplaceTheWorst(Strategy):
    every: int = 4

    def events(self, num_steps):
        return range(self.every, num_steps - 1, self.every)

    def step(self, look):  # rewards (P, K) of the x0 predictions: K particles for each of P prompts
        ancestors, ranked = look.everyone.clone(), look.ranked()
        return Plan(ancestors.scatter(1, ranked[:, -1:], ranked[:, :1]))


# One with memory gives `start` instead, which makes a `Search` for each call. This one goes back once: if the best x0
# prediction at 60% of the loop is worse than that of the step before it, all particles try again from 40% on.
@dataclass(frozen=True)
class SecondThoughts(Strategy):
    goes_back = True

    def start(self, start):
        return _SecondThoughts(start.num_steps)

    def copying(self, num_steps):  # steps at which copies are made that only the sampler's noise can part
        return []


class _SecondThoughts(Search):
    def __init__(self, num_steps):
        self.late, self.early = round(0.6 * num_steps), round(0.4 * num_steps)
        self.events = {self.late - 1, self.late}
        self.before = None

    def step(self, look):
        if look.step < self.late:
            self.before = look.rewards.amax(1)
            return Plan(look.everyone)
        worse = (look.rewards.amax(1) < self.before).all()
        self.events = ()
        return Plan(look.everyone, resume=self.early if worse else None, by="renoise")


parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
parser.add_argument("--model", default="shapes", help="Draw with this pipeline, a hub id, folder or bundled one.")
parser.add_argument("--prompt", default="a photo of a red star and a blue circle", help="Say what to generate.")
parser.add_argument("--steps", type=int, default=25, help="Take this many denoising steps.")
options = parser.parse_args()

pipe = load_pipeline(options.model, device="cuda" if torch.cuda.is_available() else "cpu")
reward = load_reward("clip-score", **bundled_options(options.model, "clip-score"))
for strategy in (ReplaceTheWorst(num_particles=4), SecondThoughts(num_particles=4, noise=Noise(eta=0.0))):
    output = steer(pipe, reward, strategy)(
        options.prompt, num_inference_steps=options.steps, generator=torch.Generator().manual_seed(0)
    )
    steps = ", ".join(str(event.step) for event in output.trace.events)
    print(f"{strategy.name}: best reward {output.rewards[0, 0].item():.3f}, scored at steps {steps}")
