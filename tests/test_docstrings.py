"""What the API reference prints: every public name says what it is, in a sentence that stands alone."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
from sentences import fragment


MODULES = (
    "fk_steer",
    "fk_steer.search",
    "fk_steer.smc",
    "fk_steer.rewards",
    "fk_steer.diffusion",
    "fk_steer.pipelines",
    "fk_steer.modular",
    "fk_steer.server",
    "fk_steer.evaluation.generation",
    "llava_reward_guide",
    "llava_reward_guide.data",
    "llava_reward_guide.training",
)


def public(module: Any) -> Iterator[tuple[str, Any]]:
    """Names and objects: classes and functions of `__all__`, and methods and properties that the classes define."""
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isclass(value):
            yield name, value
            for key, member in vars(value).items():
                function = getattr(member, "__func__", getattr(member, "fget", member))
                if not key.startswith("_") and inspect.isfunction(function):
                    yield f"{name}.{key}", function
        elif inspect.isfunction(value):
            yield name, value


@pytest.mark.parametrize("name", MODULES)
def test_first_sentences_stand_alone(name):
    module = importlib.import_module(name)
    faults = {name: fragment(module.__doc__)} | {
        key: fragment(value.__doc__) for key, value in public(module) if value.__doc__ is not None
    }
    assert {key: fault for key, fault in faults.items() if fault} == {}


@pytest.mark.parametrize("name", MODULES)
def test_public_names_say_what_they_are(name):
    module = importlib.import_module(name)
    assert [key for key, value in public(module) if "." not in key and not value.__doc__] == []


@pytest.mark.parametrize("name", MODULES)
def test_entries_of_sections_have_one_name_each(name):
    """'low, high: bounds.' is an attribute `low,` of type `high` to what makes the reference."""
    module = importlib.import_module(name)
    several = [
        f"{key}: {line.strip()}"
        for key, value in public(module)
        for line in (inspect.cleandoc(value.__doc__) if value.__doc__ else "").splitlines()
        if re.match(r" {4}\*?\w+(, \*{0,2}\w+)+( \(.*?\))?: ", line)
    ]
    assert several == []


@pytest.mark.parametrize(
    "text",
    ["Guide.", "Its name.", "Of the run.", "Those of both.", "See `Reward`.", "(P,) weights.", "Name -> place of it.",
     "The rewards of a prompt", "In a sentence.", "sum_i w_i r_i of rewards."],
)  # fmt: skip
def test_fragments_are_told(text):
    assert fragment(text)


@pytest.mark.parametrize(
    "text", ["Make a reward.", "`FluxPipeline` whose call takes `reward=`.", "Whether a step lies inside.\n\nOf it."]
)
def test_sentences_are_told(text):
    assert fragment(text) is None
