"""When to score, and how many particles are alive after it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .checks import numbers
from .names import Keywords


@dataclass(frozen=True)
class Schedule(Keywords):
    """The plan of a run, independent of the number of steps and particles.

    Throughout, a float is a fraction and an int a count: `0.25` is a quarter of the loop (or of the particles), `25`
    is step 25 counted from zero (or 25 particles).

    Attributes:
        at: when x0 predictions are scored, in ascending order. A fraction, in [0, 1), is the share of the loop's
            denoiser calls made by then, rounded down: halving the particles at 0.5 halves the cost of the second half.
            0.25 is the prediction of step 24 of 100 (counted from zero), after 25 calls. The final images are always
            scored, so an entry that falls on the last step is dropped.
        alive: how many particles live on after each entry of `at`; None keeps their number. Fractions are of
            `num_particles`, rounded down but at least 1.

    Raises:
        ValueError: for entries out of range or order, or `alive` and `at` of different lengths.
    """

    at: tuple[float | int, ...] = ()
    alive: tuple[float | int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", numbers("at", self.at))
        for entry in self.at:
            if isinstance(entry, float) and not 0.0 <= entry < 1.0:
                raise ValueError(f"Expected fractions in `at` from 0.0 up to but not 1.0, but got {entry}.")
            if isinstance(entry, int) and entry < 0:
                raise ValueError(f"Expected step indices in `at` of at least 0, but got {entry}.")
        for kind in (float, int):
            entries = [entry for entry in self.at if isinstance(entry, kind)]
            if any(b <= a for a, b in zip(entries, entries[1:])):
                raise ValueError(f"Expected `at` in ascending order, but got {self.at}.")
        if self.alive is not None:
            object.__setattr__(self, "alive", numbers("alive", self.alive))
            if len(self.alive) != len(self.at):
                raise ValueError(
                    f"Expected one entry of `alive` for each of `at` ({len(self.at)}), but got {len(self.alive)}."
                )
            for entry in self.alive:
                if not 0 < entry <= (1.0 if isinstance(entry, float) else math.inf):
                    raise ValueError(
                        f"Expected `alive` to hold counts of at least 1 or fractions in (0.0, 1.0], but got {entry}."
                    )

    def events(self, num_steps: int, num_particles: int) -> dict[int, int]:
        """The number of particles alive after each event, by its step index, for a loop of `num_steps` steps.

        Raises:
            ValueError: if a step index lies outside the loop, or more particles are to be alive than there are.
        """
        events: dict[int, int] = {}
        alive = num_particles
        for position, entry in enumerate(self.at):
            step = step_of(entry, num_steps)
            if step < max(events, default=0):
                raise ValueError(f"Expected `at` in ascending order, but in {num_steps} steps {self.at} is not.")
            if step >= num_steps:
                raise ValueError(f"The schedule scores at step {step}, outside the loop of {num_steps} steps.")
            if self.alive is not None:
                wanted = self.alive[position]
                alive = max(1, math.floor(wanted * num_particles + 1e-9)) if isinstance(wanted, float) else wanted
            if alive > num_particles:
                raise ValueError(f"The schedule keeps {alive} particles alive, but there are only {num_particles}.")
            if step < num_steps - 1:
                events[step] = alive
        return events

    def shortfall(self, num_steps: int, num_particles: int) -> str | None:
        """What a loop of `num_steps` steps leaves of the entries, as a sentence; None if there is a step for each."""
        if not self.at or (len(self.at) < num_steps and self.events(num_steps, num_particles)):
            return None
        left = len(self.events(num_steps, num_particles))
        steered = "so nothing is steered" if not left else f"so {left} of them {'is' if left == 1 else 'are'} left"
        return (
            f"The schedule has {len(self.at)} scoring event{'s' if len(self.at) > 1 else ''}, but the loop only "
            f"{num_steps} step{'s' if num_steps > 1 else ''}, the last of which is the final image's, {steered}. Take "
            "more steps, or score less often."
        )


def step_of(entry: float | int, num_steps: int) -> int:
    """The step, counted from zero, after which the share `entry` of a loop's denoiser calls is made; an int is a step
    already."""
    return max(0, math.floor(entry * num_steps + 1e-9) - 1) if isinstance(entry, float) else entry
