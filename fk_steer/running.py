"""What a run that is looked at says of itself: what is loaded, what it costs, how far it is and how good so far."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from .combinations import by_reward, names_in
from .console import Bar, Panel, console, duration, say
from .diffusion.budgets import loop_length
from .search import Strategy
from .search.feynman_kac import FKSteering
from .steps import steps_told


FIRST_STEPS = 3
"""Of a loop, after which it is said how long the whole takes."""


def needs_download(name: str) -> bool:
    """Whether a model is to be fetched from the hub: it is no folder here, and nothing of it is in the cache."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    if Path(name).exists():
        return False
    # A reward's folder within a repository has a path of its own.
    repository = "/".join(name.split("/")[:2])
    return not (Path(HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model") / "snapshots").is_dir()


def say_loading(model: str, reward: str | None, options: Mapping[str, Any]) -> None:
    """Say what is about to be loaded, and what of it has to be downloaded first.

    Args:
        model: where the pipeline is, see `find_model`.
        reward: a name, or names combined; None for none.
        options: of the reward, as `fitted_options` has them.
    """
    from .rewards.registry import reward_factory

    wanted = [model]
    for name, own in by_reward(reward, options).items() if reward else ():
        card = getattr(reward_factory(name), "card", None)
        variant = card and (card.variant(own["variant"]) if own.get("variant") in card.variants else card)
        if "path" not in own and variant and variant.hub_id:
            wanted.append(variant.hub_id)
    fetched = [name for name in wanted if needs_download(name)]
    names = " and ".join(f"the reward '{name}'" for name in names_in(reward))
    what = f"Loading {names + ' and ' if names else ''}the pipeline ..."
    say(what if not fetched else f"{what} Downloads first: {', '.join(fetched)}.")


def costs_with(pipe: Any, strategy: Strategy, call: Mapping[str, Any], images: int, at_a_time: int | None) -> list[str]:
    """`costs`, of a pipeline that is loaded.

    Args:
        pipe: the pipeline, with its scheduler.
        strategy: settings with nothing left open.
        call: arguments of the pipeline's call.
        images: how many are steered.
        at_a_time: denoiser rows at most; None for all.
    """
    guided = (call.get("guidance_scale") or 0) > 1
    return costs(strategy, loop_of(pipe, strategy, call), guided, images, at_a_time, f"{_memory(pipe)}; ")


def loop_of(pipe: Any, strategy: Strategy, call: Mapping[str, Any]) -> int:
    """Denoiser calls of the loop that a call runs, see `costs_with`."""
    number = call.get("num_inference_steps") or strategy.steps or 50
    return loop_length(pipe, pipe.scheduler, {**call, "num_inference_steps": number})


def costs(
    strategy: Strategy,
    num_steps: int,
    guided: bool,
    images: int,
    at_a_time: int | None,
    memory: str = "",
    together: int = 1,
) -> list[str]:
    """What steered images cost, before the first of them, in four lines at most.

    Args:
        strategy: settings; with a budget that is not spent yet, that is what they cost.
        num_steps: of the loop, in denoiser calls.
        guided: whether guidance doubles the denoiser's rows.
        images: how many are steered.
        at_a_time: denoiser rows at most; None for all of a call's.
        memory: what is known of it.
        together: images of a call.
    """
    K = strategy.num_particles
    doubled = ", 2 rows each" if guided else ""
    if guided and (last := strategy.guided_steps(num_steps)) < num_steps:
        doubled += f" up to step {last}, then 1"
    if strategy.calls is not None:
        passes: int | None = strategy.calls
        return [
            f"an image: {passes} denoiser passes at most{doubled}, as the budget says",
            *([f"in all:   {images} images, {images * strategy.calls} denoiser passes"] if images > 1 else []),
        ]
    particles = f"{K} particle{'s'[: K > 1]}"
    try:
        passes = strategy.cost(num_steps)
    except NotImplementedError:  # a search of one's own need not say
        passes = None
    if passes == K * num_steps:
        lines = [f"an image: {particles} x {num_steps} steps = {passes} denoiser passes{doubled}"]
    elif passes is not None:
        lines = [f"an image: {passes} denoiser passes at most{doubled} ({particles}, {num_steps} steps)"]
    else:
        lines = [f"an image: {particles} over {num_steps} steps{doubled}"]
    looks = looks_of(strategy, num_steps)
    if looks is not None:
        lines.append(f"          {K} x ({looks - 1} events + 1) = {K * looks} decoded and scored")
    else:
        lines.append(f"          {K} or more decoded and scored, as often as the search looks at them")
    rows = together * K * (1 + guided)
    rows = rows if at_a_time is None else min(rows, at_a_time)
    lines.append(f"memory:   {memory}{rows} denoiser row{'s'[: rows > 1]} at a time")
    if images > 1 and passes is not None:
        lines.append(f"in all:   {images} images, {images * passes} denoiser passes")
    return lines


def looks_of(strategy: Strategy, num_steps: int) -> int | None:
    """How often the particles of a call are decoded and scored, the end included; None if that is not known before."""
    if not isinstance(strategy, FKSteering) or strategy.goes_back or strategy.calls is not None:
        return None
    return (len(strategy.events(num_steps)) if strategy.looks else 0) + 1


def show_costs(lines: list[str]) -> None:
    """The lines of `costs`: in a box, or where there is no terminal as they are."""
    if console.is_terminal:
        console.print(Panel("\n".join(lines), title="what it costs", title_align="left", expand=False), highlight=False)
    else:
        console.print("\n".join(["what it costs", *lines]), highlight=False, soft_wrap=True)


def _memory(pipe: Any) -> str:
    weights = sum(
        tensor.numel() * tensor.element_size()
        for part in pipe.components.values()
        if isinstance(part, torch.nn.Module)
        for tensor in part.parameters()
    )
    device = torch.device(pipe._execution_device)
    text = f"{_size(weights)} of weights on {device}"
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        text += f", {_size(free)} of {_size(total)} free"
    return text


def _size(number: int) -> str:
    return f"{number / 2**30:.1f} GB" if number >= 2**30 else f"{number / 2**20:.0f} MB"


class Watched:
    """A run over prompts, as it goes on. On a terminal a bar over prompts, with the best reward so far, and one over
    steps; elsewhere the lines that `line` prints, one that says after the first steps how long a loop takes, and one
    after the first look at the particles, if that is later, with the seconds of decoding and scoring.

    Args:
        prompts: how many there are to do.
        loops: pipeline calls of each.
        shown: whether there is to be anything.
        looks: how often the particles of a call are decoded and scored, see `looks_of`.
    """

    def __init__(self, prompts: int, loops: int, shown: bool, looks: int | None = None) -> None:
        self._bar = Bar(shown and console.is_terminal)
        self._said = shown and not console.is_terminal
        self._prompts, self._loops, self._looks = prompts, loops, looks
        self._best: float | None = None
        self._estimated = self._complete = self._seen = self._between = False
        self._elapsed = self._denoised = 0.0
        self._steps_without = 0
        # Seconds of the first step with a look in it.
        self._looked: float | None = None

    def __enter__(self) -> Watched:
        self._bar.start()
        self._task = self._bar.add_task("prompts", total=self._prompts)
        self._steps = self._bar.add_task("steps", total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def steps_of(self, pipe: Any) -> AbstractContextManager[None]:
        """Take the place of a pipeline's own bar."""
        return steps_told(pipe, self._step)

    def see(self, event: Any) -> None:
        """A scoring event of the pipeline's call."""
        # The last look of a loop is after its steps.
        self._seen = not self._between
        best = event.rewards.max().item()
        self._best = best if self._best is None else max(self._best, best)
        self._bar.update(self._task, note=f"best reward {self._best:.3f}")

    def done(self, line: str) -> None:
        """A prompt is finished: go on to the next, and print a line about this one."""
        self._bar.advance(self._task)
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _step(self, done: int, total: int, elapsed: float) -> None:
        self._bar.update(self._steps, completed=done, total=total)
        if self._complete:
            return
        # Each loop counts from 0.
        step = elapsed - self._elapsed if elapsed >= self._elapsed else elapsed
        self._between = done >= total
        self._elapsed = 0.0 if self._between else elapsed
        if not self._seen:
            self._denoised += step
            self._steps_without += 1
        elif self._looked is None:
            self._looked = step
        self._seen = False
        if not self._estimated and done >= min(FIRST_STEPS, total):
            self._estimated = True
            self._estimate(f"By the first {done} steps", total)
        elif self._estimated and self._looked is not None:
            self._estimate("With the first look at the particles", total)

    def _estimate(self, what: str, total: int) -> None:
        """Say how long a loop takes, of `total` steps."""
        denoising = self._denoised / self._steps_without if self._steps_without else self._looked or 0.0
        loop, rest = denoising * total, ", without decoding and scoring"
        if self._looked is not None and self._looks is not None:
            loop += max(0.0, self._looked - denoising) * self._looks
            rest = ", decoding and scoring included"
        # How often a search looks may not be known, and one that looks at the end alone says nothing before.
        self._complete = self._looked is not None or self._looks in (None, 1)
        prompts = f", all {self._prompts} prompts {duration(loop * self._loops * self._prompts)}"
        if self._said:
            say(f"{what} a loop takes {duration(loop)}{prompts if self._prompts > 1 else ''}{rest}.")
