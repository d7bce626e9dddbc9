"""Nothing makes the host wait for a device but the rewards of an event, once.

Run on the CPU, where nothing waits: what would wait elsewhere is counted. Tensors that come from the samples, and all
that is computed from them, would be on the device."""

from __future__ import annotations

import functools
from collections import Counter
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import diffusers
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from fk_steer import FKSteering, Resampling, steer
from fk_steer.diffusion.denoising import Denoiser
from fk_steer.diffusion.engine import Engine
from fk_steer.search import DepthFirst, Evolution, Lookahead, Metropolis
from fk_steer.testing import CALLS, PROMPTS, redness, sd_scheduler


STEPS = 10


class Waits(TorchDispatchMode):
    """Counts, in our own code, what a device would be waited for.

    Attributes:
        of_step: for each call of `scheduler.step`, and of the denoiser before it, what waited in it.
    """

    OPERATIONS = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique2", "_unique2")

    def __init__(self):
        super().__init__()
        self.on_device = WeakTensorKeyDictionary()
        self.ours = False
        self.of_step = [Counter()]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        tensors = [value for value in tree_leaves((args, kwargs or {})) if isinstance(value, torch.Tensor)]
        if any(tensor in self.on_device for tensor in tensors):
            name = function.overloadpacket._qualified_op_name.split("::")[1]
            masks = name in ("index", "index_put_") and any(
                isinstance(index, torch.Tensor) and index.dtype == torch.bool and index in self.on_device
                for index in args[1]
            )
            if name in self.OPERATIONS or masks:
                self.wait(name)
            self.mark(output)
        return output

    def mark(self, values):
        for value in tree_leaves(values):
            if isinstance(value, torch.Tensor):
                self.on_device[value] = True

    def wait(self, name):
        if self.ours:
            self.of_step[-1][name] += 1

    @contextmanager
    def within(self, ours):
        before, self.ours = self.ours, ours
        try:
            yield
        finally:
            self.ours = before

    def method(self, name, original):
        """A method of tensors that copies to the host."""

        def call(tensor, *args, **kwargs):
            to_host = name != "to" or "cpu" in args or kwargs.get("device") == "cpu"
            if to_host and tensor in self.on_device:
                self.wait(name)
                output = original(tensor, *args, **kwargs)
                if isinstance(output, torch.Tensor):
                    output = output.clone()
                    self.on_device.pop(output, None)
                return output
            return original(tensor, *args, **kwargs)

        return call

    def theirs(self, function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            with self.within(False):
                return function(*args, **kwargs)

        return call


def waits(pipe, steering, **call):
    """What our own code waited for in each step, and the trace."""
    mode = Waits()
    own_step, own_denoise = Engine.step, Denoiser.forward

    def step(engine, inner, model_output, timestep, sample, *args, **kwargs):
        mode.mark((model_output, timestep, sample, pipe.scheduler.timesteps))
        with mode.within(True):
            output = own_step(engine, inner, model_output, timestep, sample, *args, **kwargs)
        mode.of_step.append(Counter())
        return output

    def denoise(denoiser, inner, *args, **kwargs):
        mode.mark((args, kwargs))
        with mode.within(True):
            return own_denoise(denoiser, mode.theirs(inner), *args, **kwargs)

    with ExitStack() as stack:
        stack.enter_context(patch.object(Engine, "step", step))
        stack.enter_context(patch.object(Denoiser, "forward", denoise))
        # What the models, the scheduler and the reward do is theirs.
        kind = type(pipe.scheduler)
        stack.enter_context(patch.object(kind, "step", mode.theirs(kind.step)))
        stack.enter_context(patch.object(pipe.vae, "decode", mode.theirs(pipe.vae.decode)))
        for name in ("cpu", "tolist", "numpy", "to"):
            stack.enter_context(patch.object(torch.Tensor, name, mode.method(name, getattr(torch.Tensor, name))))
        stack.enter_context(mode)
        reward = mode.theirs(redness)
        output = steer(pipe, reward, steering)(PROMPTS, num_inference_steps=STEPS, output_type="pt", **call)
    return mode.of_step, output.trace


def test_the_test_can_tell():
    mode = Waits()
    device, host = torch.arange(4.0), torch.arange(4.0)
    mode.mark(device)
    with ExitStack() as stack:
        for name in ("cpu", "tolist"):
            stack.enter_context(patch.object(torch.Tensor, name, mode.method(name, getattr(torch.Tensor, name))))
        stack.enter_context(mode)
        with mode.within(True):
            for tensor in (device, host):
                twice = 2 * tensor
                _ = twice.sum().item(), bool(twice[0] > 0), torch.equal(twice, twice), twice.nonzero()
                _ = twice.cpu(), twice.tolist(), twice[twice > 1]
    assert dict(mode.of_step[0]) == {
        "_local_scalar_dense": 2, "equal": 1, "nonzero": 1, "cpu": 1, "tolist": 1, "index": 1,
    }  # fmt: skip


STEERINGS = {
    "adaptive": FKSteering(),
    "fk": FKSteering.preset("fk", lmbda=5.0),
    "psp": FKSteering.preset("psp"),
    "hybrid": FKSteering.preset("hybrid"),
    "early stop": FKSteering(stop=0.5),
    "multinomial": FKSteering(resampling=Resampling("multinomial")),
    "depth-first": DepthFirst(2),
    "evolution": Evolution(3),
    "lookahead": Lookahead(3),
    "metropolis": Metropolis(2, lmbda=1.0),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("steering", ["adaptive", "psp"])
def test_a_step_waits_for_nothing_and_an_event_for_its_rewards(name, steering):
    make, call = CALLS[name]
    check(make(), STEERINGS[steering], call)


@pytest.mark.parametrize("steering", STEERINGS)
def test_whatever_the_search(steering):
    make, call = CALLS["sd"]
    # Where copies are to go through the denoiser before noise has parted them, one comparison makes sure that they are
    # still equal: a callback of the user's may have changed them.
    check(make(), STEERINGS[steering], call, comparisons=steering in ("hybrid", "lookahead"))


@pytest.mark.parametrize(
    "kind", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler"]
)
def test_whatever_the_sampler(kind):
    make, call = CALLS["sd"]
    pipe = make()
    pipe.scheduler = sd_scheduler(kind=getattr(diffusers, kind))
    check(pipe, STEERINGS["adaptive"], call)


def check(pipe, steering, call, comparisons=False):
    of_step, trace = waits(pipe, steering, **call)
    first, *others, _ = of_step
    # Once, to look the loop over before it begins.
    assert first.keys() <= {"tolist", "cpu"}
    found = Counter()
    for counter in others:
        assert counter.keys() <= {"cpu", "tolist"}, others
        assert max(counter.values(), default=0) <= 1
        found += counter
    assert found["cpu"] == len(trace.events) - 1
    assert bool(found["tolist"]) == comparisons
