"""Settings by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..smc import Constant, Current, Geometric, Max, Resampling, Rising, Schedule, is_named, unknown
from .allocation import Allocation
from .assignments import changed, check_once
from .depth_first import DepthFirst
from .evolution import Evolution
from .feynman_kac import FKSteering
from .finish import Finish
from .lookahead import Lookahead
from .metropolis import Metropolis
from .refine import Refine
from .screen import Screen
from .strategy import Noise, Strategy


@dataclass(frozen=True)
class Preset:
    """Settings by name, with what they are and when to take them.

    Attributes:
        summary: what happens to the particles, in a sentence.
        use_when: for whom they are, in a sentence.
        settings: what the name stands for.
    """

    summary: str
    use_when: str
    settings: Strategy


_EVERY_TWENTIETH = Schedule(at=tuple(step / 20 for step in range(1, 20)))

PRESETS: dict[str, Preset] = {
    "adaptive": Preset(
        "SSP resampling at six events from 40% of the loop on, with the lambda that keeps the effective sample size "
        "(ESS) a third of the way from one particle to all (2 of 4); none has to be given. Its weighted images are "
        "samples of the tilted distribution.",
        "Use it when you want samples of the tilted distribution or weighted images, several different images of "
        "a prompt, or when your reward is easy to fool.",
        FKSteering(),
    ),
    "sparing": Preset(
        "The steering of 'adaptive' with two events, at 50 and 70% of the loop.",
        "Use it when scoring an image takes longer than denoising it, as it does with a chat judge or a large "
        "LLaVA-Reward.",
        FKSteering(schedule=Schedule(at=(0.5, 0.7))),
    ),
    "fk": Preset(
        "SSP resampling when the effective sample size falls below half, weights carried in between, lambda rising to "
        "its value, nothing scored in the first quarter.",
        "Use it when you know which lambda you want and need the weights of plain sequential Monte Carlo.",
        FKSteering(
            tempering=Rising(),
            schedule=Schedule(at=(0.25, 0.4, 0.55, 0.7, 0.85)),
            resampling=Resampling(ess_threshold=0.5),
        ),
    ),
    "fk-paper": Preset(
        "The published settings and the reference's choices: DDIM eta 1, max potential with floor 0, multinomial "
        "resampling in steps 20, 40, 60 and 80 of 100, counted from zero, after the noise.",
        "Use it when you repeat the experiments of the paper; it takes 100 steps where the call says nothing else.",
        FKSteering(
            potential=Max(exact_terminal=False, floor=0.0),
            tempering=Constant(),
            schedule=Schedule(at=(0.21, 0.41, 0.61, 0.81)),
            resampling=Resampling("multinomial", after_noise=True),
            steps=100,
        ),
    ),
    "bfs": Preset(
        "Breadth-first search (Zhang et al., arXiv 2505.23614): SSP resampling, max potential, lambda rising to twice "
        "its value.",
        "Use it when your reward sees only a part of what you want, since it follows the reward less closely than "
        "most, or to compare with that paper.",
        FKSteering(potential=Max(), tempering=Rising(end=2.0), schedule=Schedule(at=(0.2, 0.4, 0.6, 0.8))),
    ),
    "das": Preset(
        "DAS without gradients (Kim et al., arXiv 2501.05803): difference potential, geometric tempering, SSP "
        "resampling when the effective sample size falls below half.",
        "Use it when lambda is to grow from the first steps on and scoring is cheap: x0 predictions are scored 19 "
        "times.",
        FKSteering(tempering=Geometric(), schedule=_EVERY_TWENTIETH, resampling=Resampling(ess_threshold=0.5)),
    ),
    "psp": Preset(
        "Prune seeds on a deterministic sampler (arXiv 2607.21591): the better half goes on at 25% and again at 50% of "
        "the loop. 8 particles cost 4 trajectories.",
        "Use it when your sampler adds no noise, so that particles can be pruned and not copied.",
        FKSteering(
            num_particles=8,
            potential=Current(),
            schedule=Schedule(at=(0.25, 0.5), alive=(0.5, 0.25)),
            resampling=Resampling("top-k"),
            noise=Noise(eta=0.0),
        ),
    ),
    "svdd": Preset(
        "SVDD with one beam (Li et al., arXiv 2408.08252): all go on from the best particle, 19 times along the loop.",
        "Use it when scoring is cheap beside denoising and one good image is all you want; its particles end much "
        "alike.",
        FKSteering(potential=Current(), schedule=_EVERY_TWENTIETH, resampling=Resampling("argmax")),
    ),
    "hybrid": Preset(
        "Prune seeds on a deterministic sampler, branch the survivors with noise in a middle window while the best one "
        "goes on without, and finish deterministically. 8 particles cost 4 trajectories.",
        "Use it when many seeds are to be tried and the last steps are to run without noise.",
        FKSteering(
            num_particles=8,
            potential=Current(),
            schedule=Schedule(at=(0.25, 0.5, 0.75), alive=(0.375, 0.5, 0.125)),
            resampling=Resampling("top-k"),
            noise=Noise(window=(0.5, 0.75)),
            elite=True,
        ),
    ),
    "best-of-n": Preset(
        "Independent images on a deterministic sampler, the best one first.",
        "Use it when you want independent images, a baseline to compare with, or scores of the final images alone.",
        FKSteering(schedule=Schedule(), noise=Noise(eta=0.0)),
    ),
    "depth-first": Preset(
        "Depth-first search (Zhang et al., arXiv 2505.23614): at 60% of the loop, back to 30% and down again with "
        "other noise while the best x0 prediction is below `target_reward`; three attempts, the best goes on.",
        "Use it when you know which reward is good enough (`target_reward`): prompts that reach it cost nothing more.",
        DepthFirst(num_particles=2, noise=Noise(eta=0.0)),
    ),
    "evolution": Preset(
        "Evolution by re-noising: at 60% of the loop the better half of the x0 predictions goes back to 30% as parents "
        "of two children each; two generations, the best go on.",
        "Use it when your sampler adds no noise and good particles are to have children all the same.",
        Evolution(noise=Noise(eta=0.0)),
    ),
    "lookahead": Preset(
        "Particles are judged at 20, 40 and 60% of the loop by where two large deterministic steps lead them, and "
        "resampled as in 'adaptive'.",
        "Use it when your reward cannot judge blurred x0 predictions; every event takes further denoiser calls.",
        Lookahead(),
    ),
    "finish": Preset(
        "The default: the steering of 'adaptive' up to 70% of the loop; then all follow the best x0 prediction at "
        "every step, one of them with noise recombined from the others' by their rewards. No lambda has to be given.",
        "Use it when you want one image as good as the compute allows; its particles end much alike.",
        Finish(),
    ),
    "refine": Preset(
        "The search of 'finish'; then the best image is noised half-way by all particles and denoised again, and "
        "replaced where that makes it better.",
        "Use it when you want one image better still and are ready to wait for another half of the loop.",
        Refine(),
    ),
    "metropolis": Preset(
        "Chains of finished images: each is noised half-way and denoised again four times, accepted by Metropolis' "
        "rule.",
        "Use it when you want samples of the tilted distribution from finished images and know your lambda; it "
        "takes three times the denoiser calls of the loop.",
        Metropolis(),
    ),
    "allocation": Preset(
        "Two passes of 'adaptive' for every prompt, and as many again where they promise the most improvement of the "
        "best image. 4 particles cost 16 trajectories on average.",
        "Use it when you have many prompts of unequal difficulty and the compute may go where it helps.",
        Allocation(),
    ),
    "screen": Preset(
        "Twelve seeds in four steps of DPM-Solver++ each, and the best two in full from the same noise; the best of "
        "all images first.",
        "Use it when seeds matter more than steps, on models that DPM-Solver++ can sample.",
        Screen(),
    ),
}

DEFAULT_PRESET = "finish"
"""`fk_steer.defaults` has it too, for the command line."""


def preset(name: str, **overrides: Any) -> Strategy:
    """The settings of a preset, with any field replaced. `fk-steer presets` prints them.

    Raises:
        ValueError: for an unknown name or setting, listing the known ones.
    """
    if not is_named(name, PRESETS):
        raise unknown("preset", name, PRESETS)
    return PRESETS[name].settings.replace(**overrides)


def markdown_table() -> str:
    """The presets as a Markdown table, as `fk-steer presets --markdown` prints it. docs/presets.md holds it.

    The last two columns are the particles and what they cost at most, in full runs of a loop of 25 steps.
    """
    rows = []
    for name, one in PRESETS.items():
        particles, cost = one.settings.num_particles, one.settings.cost(25) / 25
        rows.append(f"| `{name}` | {one.summary} | {one.use_when} | {particles} | {cost:.2g} |")
    head = "| preset | what it does | when to use it | particles | cost |"
    return "\n".join([head, "|---|---|---|---:|---:|", *rows]) + "\n"


def asked(
    name: str,
    *,
    particles: int | None = None,
    budget: int | None = None,
    lmbda: float | None = None,
    changes: Mapping[str, Any] | None = None,
    elsewhere: Collection[str] = (),
) -> Strategy:
    """The settings of a preset as commands ask for them.

    Args:
        particles: in place of the preset's.
        budget: denoiser calls per image, which choose the particles; None for none.
        lmbda: in place of the preset's.
        changes: further settings, dotted for parts of them, see `assignments.changed`.
        elsewhere: settings that the command has been given as arguments of the pipeline's call.

    Raises:
        ValueError: see `preset`, or for particles beside a budget, or a setting that is given in two ways.
    """
    if particles is not None and budget is not None:
        raise ValueError(
            f"A budget of {budget} denoiser calls chooses the particles, so `particles` cannot be {particles} beside "
            "it. Give one of the two."
        )
    given = {"num_particles": particles, "calls": budget, "lmbda": lmbda}
    given = {field: value for field, value in given.items() if value is not None}
    if changes:
        check_once(changes, {*given, *elsewhere})
    made = preset(name, **given)
    return changed(made, changes) if changes else made
