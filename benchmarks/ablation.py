"""From the published settings to ours, one ingredient at a time."""

from __future__ import annotations

import dataclasses
from typing import Any

from fk_steer.config import PRESETS, FKSteering
from fk_steer.smc import Constant, Rising, Schedule, TargetESS


LATE = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""When the default preset scores."""


def steps() -> dict[str, FKSteering]:
    """What is changed -> the settings with it and all changes before it, starting from `fk-paper`. 'only ...' is a
    change to the default preset that later ones do not take over."""
    settings = PRESETS["fk-paper"].settings
    chain: dict[str, FKSteering] = {"fk-paper": settings}

    def change(name: str, **fields: Any) -> None:
        nonlocal settings
        settings = dataclasses.replace(settings, **fields)
        chain[name] = settings

    change("SSP instead of multinomial", resampler="ssp")
    change("resampling before the noise", resample_after_noise=False)
    change("difference potential, exact terminal weight", potential="difference", floor=None, exact_terminal=True)
    change("lambda rising to twice its value", tempering=Rising(end=2.0))
    change("only below half the ESS, weights carried", ess_threshold=0.5)
    change("six events from 40% on", schedule=Schedule(at=LATE))
    change("lambda solved for half the ESS (adaptive)", tempering=TargetESS(0.5), ess_threshold=1.0)
    ours = settings
    variants: dict[str, dict[str, Any]] = {
        "only with the max potential": {"potential": "max"},
        "only with constant lambda": {"tempering": Constant()},
        "only with noise up to 90%": {"schedule": Schedule(at=LATE, noise=(0.0, 0.9))},
        "only with the best seed kept quiet": {"elite": True},
        "only with 5 particles, 3 from 40% on": {
            "num_particles": 5,
            "schedule": Schedule(at=LATE, alive=(0.6,) * len(LATE)),
        },
        "only with the preview decoder before 70%": {"preview_decoder": "shapes", "preview_until": 0.7},
    }
    chain |= {name: dataclasses.replace(ours, **fields) for name, fields in variants.items()}
    return chain | {"hybrid": PRESETS["hybrid"].settings}
