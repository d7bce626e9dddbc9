"""What must hold of a steered pipeline, whatever the pipeline: each check on the tiny components of a test.

| check | what holds |
|---|---|
| no-op | one particle, no steering: the stock call's image, bit for bit |
| particles | three that are only looked at: each the stock image of its generator; with image conditions the first |
| events | a search that looks at every step is shown every step |
| reward | the rewards given back are those of the images given back |
| x0 | x0 predictions are the scheduler's own, and what its last step returns |
| decode | the picture of the last step's x0 prediction is the final image |
| resampling | after a copy, children have their parent's image and not the one they would have had |
| copies | copies that draw the same noise stay equal, with the sampler's noise and without |
| pruning | when the first is dropped, the others end as they would have |
| chunks | one row at a time gives the same images |
| neighbours | a second prompt in the batch changes nothing, where it does not in the stock call |
| prompts | another prompt gives other images, where it does in the stock call |
| preset | the default settings run, and give what the pipeline's own call gives in kind |
| restored | afterwards the stock call gives what it gave before |
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fk_steer
from fk_steer import Execution, Plan, Strategy, steer
from fk_steer.diffusion.components import makes_videos
from fk_steer.diffusion.conditions import begins_with_image
from fk_steer.search import Look, Noise

from .cases import IMAGES, Case, as_tensor, recorded_steps


PARTICLES = 3
TOLERANCE = 5e-3
"""In pixels of [0, 1], for what differs in the order of sums alone."""
SAYS_X0 = (
    "DDIMScheduler",
    "DDPMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
    "SCMScheduler",
)
"""Schedulers whose step also returns x0."""
RETURNED = "not what is returned by the last step of"
ENDS_IN_X0 = ("FlowMatchEuler", "EulerDiscrete", "EulerAncestral")
"""Schedulers, by how their names begin, whose last step returns x0."""


@dataclass(frozen=True)
class Watching(Strategy):
    """Looks at every step and changes nothing."""

    def events(self, num_steps: int) -> Collection[int]:
        return range(num_steps)

    def step(self, look: Look) -> Plan:
        return Plan(look.everyone)

    def copying(self, num_steps: int) -> list[int]:
        return []


@dataclass(frozen=True)
class Copying(Strategy):
    """In the middle of the loop all go on as copies of one; before that, if it shuffles, some change places."""

    source: int = 0
    shuffles: bool = False

    def events(self, num_steps: int) -> Collection[int]:
        middle = (num_steps - 1) // 2
        return [middle - 1, middle] if self.shuffles and middle else [middle]

    def step(self, look: Look) -> Plan:
        if self.shuffles and look.step < (look.num_steps - 1) // 2:
            return Plan(torch.tensor([0, 0, 1]).expand_as(look.everyone))
        return Plan(torch.full_like(look.everyone, self.source))

    def copying(self, num_steps: int) -> list[int]:
        return []


@dataclass(frozen=True)
class Pruning(Copying):
    """In the middle of the loop the first is dropped."""

    def step(self, look: Look) -> Plan:
        return Plan(look.everyone[:, 1:])


@dataclass
class Finding:
    """What a check found.

    Attributes:
        status: 'ok', 'wrong', 'refused', 'late' (refused when the loop had begun), 'crash' or 'n/a'.
        detail: why, or by how much.
        value: the largest difference found.
        place: of an error, the last line of ours and the last of all.
    """

    status: str
    detail: str = ""
    value: float | None = None
    place: str = ""


@dataclass
class Report:
    """Findings by name of the check."""

    case: Case
    findings: dict[str, Finding] = field(default_factory=dict)
    by_batch: float = 0.0
    """By how much images of a stock batch differ from those of single calls, if that is more than rounding."""

    def hold(self, name: str, difference: float, limit: float = TOLERANCE, detail: str = "") -> bool:
        """Note whether a difference is within its limit; the worse finding stays."""
        fine = difference <= limit
        before = self.findings.get(name)
        if before is None or (before.status in ("ok", "n/a") and not fine) or before.status == "n/a":
            self.findings[name] = Finding("ok" if fine else "wrong", "" if fine else detail, difference)
        return fine

    def hold_in_batch(self, name: str, difference: float, detail: str) -> None:
        """`hold` for images made in different batches, where these make no difference to the stock call."""
        if TOLERANCE < difference <= 2 * self.by_batch:
            self.say(name, "n/a", f"differ by {difference:.2g}, and stock images by {self.by_batch:.2g} in a batch")
        else:
            self.hold(name, difference, TOLERANCE, detail)

    def say(self, name: str, status: str, detail: str) -> None:
        self.findings[name] = Finding(status, detail)

    def attempt(self, names: Sequence[str], function: Callable[[], Any]) -> Any:
        """What a function returns; None, and a finding for each name, if it raises."""
        with recorded_steps(self.case) as steps:
            try:
                return function()
            except Exception as error:
                finding = _of_error(error, bool(steps))
        for name in names:
            self.findings.setdefault(name, finding)
        return None


@cache
def _weights(size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def reward(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """A random linear function of all pixels of all frames, of what is in [0, 1]."""
    flat = images.double().clamp(0.0, 1.0).flatten(1)
    return (flat @ _weights(flat.shape[1]) / flat.shape[1] ** 0.5).float()


def check(case: Case) -> dict[str, Finding]:
    """All checks of one case, by name."""
    warnings.filterwarnings("ignore")
    report = Report(case)
    reward.takes_videos = makes_videos(case.pipe)  # type: ignore[attr-defined]
    with recorded_steps(case, predict=True) as steps:
        alone = case.stock(generators(0)[0])
    _check_x0(report, steps)
    if not torch.isfinite(alone).all():
        report.say("no-op", "n/a", "the stock images are not finite")
        return report.findings

    plain = fk_steer.preset("best-of-n", num_particles=1, noise=Noise(case.natural_eta))
    one = report.attempt(["no-op"], lambda: steered(case, plain, generators(0)))
    if one is not None:
        _check_noop(report, alone, in_slots(one)[0, :1])
    pictures: list[Tensor] = []
    watching = Watching(PARTICLES, noise=Noise(case.natural_eta))
    watched = report.attempt(
        ["particles", "events", "reward", "decode"],
        lambda: steered(case, watching, generators(0), on_event=lambda event: _keep(event, pictures)),
    )
    if watched is None and one is None and report.findings["no-op"] == report.findings["particles"]:
        report.attempt(["preset"], lambda: _preset(case))
        return report.findings
    if watched is not None:
        _check_watched(report, watched, alone)
        _check_decode(report, watched, pictures, steps)
    _check_copies(report, watched)
    if watched is not None and _repeats(report):
        pruning = Pruning(PARTICLES, noise=Noise(case.natural_eta))
        pruned = report.attempt(["pruning"], lambda: steered(case, pruning, generators(0)))
        if pruned is not None:
            difference = _difference(in_slots(pruned)[0], in_slots(watched)[0, 1:])
            report.hold_in_batch("pruning", difference, "what is left when another is dropped has changed")
    _check_shuffled(report, alone)
    result = report.attempt(["preset"], lambda: _preset(case))
    if result is not None:
        refusal, output = result
        _check_reward(report, output, "preset")
        report.hold("preset", 0.0)
        report.findings["preset"].detail = refusal
    again = case.stock(generators(0)[0])
    if "stock differs" not in report.findings.get("no-op", Finding("")).detail:
        report.hold("restored", _difference(again, alone), 0.0, "the stock call gives another image than before")
    return report.findings


def generators(*first: int, count: int = PARTICLES) -> list[torch.Generator]:
    """Those of one population for each number, equal for equal numbers."""
    return [torch.Generator().manual_seed(100 * seed + k) for seed in first for k in range(count)]


def steered(
    case: Case,
    strategy: Strategy,
    rows: list[torch.Generator],
    arguments: dict[str, Any] | None = None,
    execution: Execution | None = None,
    on_event: Callable[[Any], Any] | None = None,
    tensors: bool = True,
) -> Any:
    """A steered call's output."""
    torch.manual_seed(0)
    call = {**(case.arguments if arguments is None else arguments), "generator": rows}
    if strategy.num_particles == 1:
        call["generator"] = rows[:1]
    if tensors:
        call |= {name: value for name, value in case.options().items() if name != "return_dict"}
    elif case.output is not None:
        call["output"] = case.output
    if not isinstance(call.get("prompt"), (str, list)):
        call["reward_prompt"] = "a picture"
    return steer(case.pipe, reward, strategy, execution)(**call, on_event=on_event)


def in_slots(output: Any) -> Tensor:
    """(P, K, ...) final images in the order of the slots, not of the rewards."""
    order = torch.tensor(output.trace.events[-1].rewards).argsort(dim=1, descending=True, stable=True)
    particles = torch.stack([as_tensor(images) for images in output.particles])
    return torch.stack([images[ranks.argsort()] for images, ranks in zip(particles, order)])


def _keep(event: Any, pictures: list[Tensor]) -> None:
    if not event.final and event.step == event.num_steps - 1:
        pictures.append(as_tensor(event.predictions()))


def _check_x0(report: Report, steps: list[Any]) -> None:
    if not steps:
        return
    messages = {step.predicted for step in steps if isinstance(step.predicted, str)}
    if messages:
        report.say("x0", "n/a", "; ".join(sorted(messages))[:300])
        return
    for step in steps:
        if step.own is not None and step.scheduler in SAYS_X0 and step.own.shape == step.predicted.shape:
            difference = _difference(step.own.float(), step.predicted) / max(1.0, float(step.own.abs().max()))
            report.hold("x0", difference, 1e-3, f"not what {step.scheduler} says x0 is")
    last = steps[-1]
    if _ends_in_x0(last) and last.previous.shape == last.predicted.shape:
        report.hold("x0", _away(last), 1e-3, f"{RETURNED} {last.scheduler}")


def _ends_in_x0(last: Any) -> bool:
    return bool(last.ends_clean and last.scheduler.startswith(ENDS_IN_X0))


def _is_known(last: Any) -> bool:
    return not isinstance(last.predicted, str) and last.predicted.shape == last.previous.shape


def _away(last: Any) -> float:
    return _difference(last.previous.float(), last.predicted) / max(1.0, float(last.previous.abs().max()))


def _check_noop(report: Report, alone: Tensor, image: Tensor) -> None:
    difference = _difference(image, alone)
    if difference:
        again = _difference(report.case.stock(generators(0)[0]), alone)
        if again:
            report.say("no-op", "n/a", f"stock differs from itself by {again:.2g}")
            return
        as_list = report.attempt([], lambda: report.case.stock(generators(0)[:1]))
        if as_list is not None and _difference(as_list, image) == 0.0:
            difference = 0.0
    report.hold("no-op", difference, 0.0, "not the stock image")


def _check_watched(report: Report, watched: Any, alone: Tensor) -> None:
    case, images = report.case, in_slots(watched)[0]
    seen = [event.step for event in watched.trace.events[:-1]]
    missing = watched.trace.num_steps - len(seen)
    # A two-stage solver is looked at in every other of its steps.
    if missing > (watched.trace.num_steps + 1) // 2 or not seen:
        report.say("events", "wrong", f"of {watched.trace.num_steps} steps {len(seen)} were seen")
    elif seen[-1] < watched.trace.num_steps - 2:
        report.say("events", "wrong", f"the last step seen is {seen[-1]} of {watched.trace.num_steps}")
    else:
        report.say("events", "ok", "")
    if report.findings.get("no-op", Finding("")).status == "n/a":
        report.say("particles", "n/a", report.findings["no-op"].detail)
    else:
        # Particles share the draws of what they are conditioned on, which are those of the first.
        conditioned = any(name in case.arguments for name in (*IMAGES, "controls"))
        noises_conditions = len(case.schedulers) > 1
        shares = conditioned and (noises_conditions or not begins_with_image(case.pipe, case.arguments))
        last = images[-1:] if shares else case.stock(generators(0)[-1])
        difference = max(_difference(images[:1], alone), _difference(images[-1:], last))
        detail = "not the stock images"
        if difference > TOLERANCE:
            stock = report.attempt([], lambda: _stock_rows(case))
            if stock is not None:
                own = max(_difference(stock[:1], alone), 0.0 if shares else _difference(stock[-1:], last))
                detail += f"; a stock batch differs from single calls by {own:.2g}"
                same = slice(0, 1 if shares else None)
                if own > TOLERANCE and _difference(stock[same], images[same]) <= TOLERANCE:
                    difference, report.by_batch = _difference(stock[same], images[same]), own
        report.hold("particles", difference, TOLERANCE, detail)
    _check_reward(report, watched, "reward")


def _stock_rows(case: Case) -> Tensor:
    if "num_images_per_prompt" in case.parameters:
        return case.stock(generators(0), num_images_per_prompt=PARTICLES)
    prompt = case.arguments["prompt"]
    repeated: dict[str, Any] = {"prompt": ([prompt] if isinstance(prompt, str) else prompt) * PARTICLES}
    negative = case.arguments.get("negative_prompt")
    if negative is not None:
        repeated["negative_prompt"] = ([negative] if isinstance(negative, str) else negative) * PARTICLES
    return case.stock(generators(0), **repeated)


def _check_reward(report: Report, output: Any, name: str) -> None:
    difference = 0.0
    for images, rewards in zip(output.particles, output.rewards):
        found = reward(as_tensor(images), [])
        difference = max(difference, _difference(found, rewards.float()) / max(1.0, float(found.abs().max())))
    # Pictures of eight bits are not quite the tensors that were scored.
    report.hold(name, difference, 1e-4 if name == "reward" else 5e-2, "rewards are not those of the images given back")


def _check_decode(report: Report, watched: Any, pictures: list[Tensor], steps: list[Any]) -> None:
    case, last = report.case, steps[-1] if steps else None
    if not pictures:
        report.say("decode", "n/a", "the last step was not looked at")
        return
    difference = _difference(pictures[-1], in_slots(watched).clamp(0.0, 1.0))
    if difference <= TOLERANCE:
        report.hold("decode", difference)
        if RETURNED in report.findings.get("x0", Finding("")).detail:  # which this is the better test of
            del report.findings["x0"]
        return
    if last is not None and _is_known(last) and _away(last) > 1e-3 and not _ends_in_x0(last):
        # A sampler that ends elsewhere is made to end in x0, which tries the decoding alone.
        pictures.clear()
        strategy = Watching(PARTICLES, noise=Noise(case.natural_eta))

        def run() -> Any:
            with recorded_steps(case, last_is_x0=len(steps) - 1):
                return steered(case, strategy, generators(0), on_event=lambda event: _keep(event, pictures))

        watched = report.attempt(["decode"], run)
        if watched is None or not pictures:
            return
    images = in_slots(watched).clamp(0.0, 1.0)
    detail = "x0 is decoded to another image"
    if images.shape != pictures[-1].shape:
        detail = f"x0 is decoded to {tuple(pictures[-1].shape)}, the final image is {tuple(images.shape)}"
    report.hold_in_batch("decode", _difference(pictures[-1], images), detail)


def _check_copies(report: Report, watched: Any) -> None:
    case = report.case
    rows = generators(0)
    names = ["resampling", "copies"]
    strategy = Copying(PARTICLES, noise=Noise(case.natural_eta))
    output = report.attempt(names, lambda: steered(case, strategy, rows, on_event=_same_noise(rows, strategy)))
    if output is None:
        return
    images = in_slots(output)[0]
    report.hold("copies", _difference(images[1:], images[:1].expand_as(images[1:])), TOLERANCE, "copies differ")
    ancestors = [event.parents for event in output.trace.events[:-1]]
    if not ancestors or ancestors[0] != [[0] * PARTICLES]:
        report.say("resampling", "wrong", f"parents {ancestors}")
    elif watched is not None:
        before = in_slots(watched)[0]
        if _difference(before[1:], before[:1].expand_as(before[1:])) < 1e-4:
            report.say("resampling", "n/a", "all particles are alike")
        elif case.natural_eta == 0.0 and _repeats(report):
            report.hold_in_batch("resampling", _difference(images[0], before[0]), "the parent's image has changed")
        else:
            report.hold("resampling", 0.0)


def _repeats(report: Report) -> bool:
    return report.findings.get("no-op", Finding("")).status != "n/a"


def _same_noise(rows: list[torch.Generator], strategy: Copying) -> Callable[[Any], None]:
    """What makes all copies draw the noise of their source from the copying on."""

    def on_event(event: Any) -> None:
        if not event.final and event.step >= (event.num_steps - 1) // 2:
            for start in range(0, len(rows), PARTICLES):
                state = rows[start + strategy.source].get_state()
                for one in rows[start : start + PARTICLES]:
                    one.set_state(state)

    return on_event


def _check_shuffled(report: Report, alone: Tensor) -> None:
    case, strategy = report.case, Copying(PARTICLES, source=1, shuffles=True, noise=Noise(1.0))

    def run(populations: int = 1, arguments: dict[str, Any] | None = None, execution: Any = None) -> Tensor:
        rows = generators(*[0] * populations)
        output = steered(case, strategy, rows, arguments, execution, _same_noise(rows, strategy))
        return in_slots(output)

    whole = report.attempt(["chunks", "neighbours", "prompts"], run)
    if whole is None:
        return
    copies = whole[0]
    report.hold("copies", _difference(copies, copies[:1].expand_as(copies)), TOLERANCE, "copies with noise differ")
    chunked = report.attempt(["chunks"], lambda: run(execution=Execution(1, 1, 1)))
    if chunked is not None:
        report.hold("chunks", _difference(chunked, whole), TOLERANCE, "images depend on the chunk size")

    both = None
    for images_too in (False, True):
        arguments = case.two_prompts(images_too)
        if arguments is None:
            for name in ("neighbours", "prompts"):
                report.say(name, "n/a", "no text")
            return
        stock = _quietly(partial(case.stock, generators(0, 0, count=1), **arguments))
        if stock is not None and len(stock) == 2:
            both = report.attempt(["neighbours", "prompts"], partial(run, 2, arguments))
            break
    else:
        report.say("neighbours", "n/a", "the stock call takes one prompt")
    if stock is not None and len(stock) == 2:
        if both is None:
            return
        difference = _difference(both[0], whole[0])
        own = _difference(stock[:1], alone)
        if difference > TOLERANCE and own > TOLERANCE:
            report.say("neighbours", "n/a", f"differ by {difference:.2g}, in a stock batch by {own:.2g}")
        else:
            report.hold("neighbours", difference, TOLERANCE, f"a prompt in a batch differs; stock by {own:.2g}")
        other = both[1]
    else:
        arguments = case.other_prompt() or {}
        if _quietly(lambda: case.stock(generators(0)[0], **arguments)) is None:
            report.say("prompts", "n/a", "the stock call does not take another prompt")
            return
        found = report.attempt(["prompts"], lambda: run(1, arguments))
        if found is None:
            return
        other = found[0]
    single = _quietly(lambda: case.stock(generators(0)[0], **(case.other_prompt() or {})))
    by_stock = 0.0 if single is None else _difference(single, alone)
    if by_stock < 1e-5:
        report.say("prompts", "n/a", "another prompt gives the same stock image")
    else:
        share = _difference(other, whole[0]) / by_stock
        detail = f"another prompt changes images by {share:.2g} of what it does in the stock call"
        report.hold("prompts", 0.0 if share > 0.02 else 1.0, 0.5, detail)


def _quietly(function: Callable[[], Tensor]) -> Tensor | None:
    """None where the stock call does not take the arguments."""
    try:
        return function()
    except Exception:
        return None


def _preset(case: Case) -> tuple[str, Any]:
    """A call with the default settings, and what they were refused for if pruning ran instead."""
    try:
        return "", steered(case, fk_steer.preset("adaptive", num_particles=PARTICLES), generators(0), tensors=False)
    except ValueError as error:
        if "adds no noise" not in str(error):
            raise
        pruning = fk_steer.preset("psp", num_particles=PARTICLES)
        return f"prunes only: {error}", steered(case, pruning, generators(0), tensors=False)


def _difference(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape and a.squeeze().shape == b.squeeze().shape:  # videos of one frame
        a, b = a.squeeze(), b.squeeze()
    if a.shape != b.shape:
        return float("inf")
    if not a.numel():
        return 0.0
    both = a.isnan() & b.isnan()
    return float((a - b).abs().masked_fill(both, 0.0).nan_to_num(nan=float("inf")).max())


def _of_error(error: Exception, begun: bool) -> Finding:
    frames = traceback.extract_tb(error.__traceback__)
    package = str(Path(fk_steer.__file__).parent)
    ours = [frame for frame in frames if frame.filename.startswith(package)]

    def place(frame: Any) -> str:
        parts = Path(frame.filename).parts
        return f"{'/'.join(parts[-3:])}:{frame.lineno} {frame.name}"

    status = "crash"
    if isinstance(error, ValueError) and ours and ours[-1] == frames[-1]:
        status = "late" if begun else "refused"
    places = [place(ours[-1])] if ours else []
    if frames[-1] not in ours:
        places.append(place(frames[-1]))
    message = " ".join(str(error).split())[:400]
    return Finding(status, f"{type(error).__name__}: {message}", None, " <- ".join(places))
