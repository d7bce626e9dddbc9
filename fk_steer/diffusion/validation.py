"""What can be said of a steered call before anything runs: whether pipeline and arguments are what they are meant to
be."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from ..rewards.base import Reward
from ..rewards.latent import LatentReward
from ..smc import brief, integer, real, suggestion, unknown
from .components import call_names, denoisers_of, image_output, is_modular, makes_videos
from .inputs import NUMBERS


OUTPUT_TYPES = ("pil", "np", "pt", "latent")

_LEGACY = frozenset({"callback", "callback_steps"})
"""Arguments that Diffusers' own pipelines still take among `**kwargs`; they pass over all others without a word."""

_OF_STEER = frozenset({"reward", "steering", "execution"})


def check_pipeline(pipe: Any) -> None:
    """
    Raises:
        TypeError: for a class, a name or another thing in place of a pipeline.
        ValueError: for a pipeline without an autoencoder, or a modular one that is not loaded or makes no images.
    """
    expected = "Expected a pipeline that is loaded"
    if isinstance(pipe, type):
        raise TypeError(
            f"{expected}, but got the class {pipe.__name__} itself: `{pipe.__name__}.from_pretrained(...)`."
        )
    if isinstance(pipe, str) or hasattr(pipe, "__fspath__"):
        raise TypeError(f"{expected}, but got {pipe!r}. `DiffusionPipeline.from_pretrained(...)` loads one.")
    if not callable(pipe) or not hasattr(pipe, "scheduler"):
        raise TypeError(f"{expected}, but got {brief(pipe)}. The pipeline comes first, then the reward.")
    if is_modular(pipe):
        _check_modular(pipe)
    if "vae" in pipe.components and pipe.vae is None:
        raise ValueError(
            f"{type(pipe).__name__} has no `vae`, which makes the images that are scored. Load it with one."
        )


def _check_modular(pipe: Any) -> None:
    if image_output(pipe) is None:
        raise ValueError(
            f"The blocks of {type(pipe).__name__} make no images, which are what is scored. Steer a pipeline whose "
            "blocks go on to the decoder's."
        )
    if pipe.scheduler is None or not denoisers_of(pipe):
        missing = ", ".join(f"`{name}`" for name in pipe.null_component_names)
        raise ValueError(
            f"{type(pipe).__name__} has components that are not loaded: {missing}. `pipe.load_components()` loads "
            "them, `pipe.update_components(...)` takes those that are."
        )


def check_modular_arguments(pipe: Any, arguments: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: for what a modular pipeline's call takes, and a steered one cannot.
    """
    if not is_modular(pipe):
        return
    if arguments.get("state") is not None:
        raise ValueError(
            "A steered call makes a state of its own. Pass what it needs of another by name, for example "
            '`prompt=state.get("prompt")`.'
        )
    output = arguments.get("output")
    if output not in (None, image_output(pipe)):
        raise ValueError(
            f"A steered call returns a `SteeredOutput`, whose `images` are what the pipeline calls "
            f"`{image_output(pipe)}`. Leave `output={output!r}` out."
        )


def check_stages(pipe: Any) -> None:
    """
    Raises:
        ValueError: for a pipeline of two stages, each with a scheduler.
    """
    if is_modular(pipe) or not hasattr(pipe, "prior_pipe"):
        return
    second = type(getattr(pipe, "decoder_pipe", pipe)).__name__
    raise ValueError(
        f"{type(pipe).__name__} runs two stages, of which the second makes the images. Run the first by itself "
        f"(`pipe.prior_pipe(...)`) and steer the second with what it returns: `steer(pipe.decoder_pipe, reward)`, a "
        f"{second}."
    )


def check_form_of_images(pipe: Any, reward: Reward) -> None:
    """Rewards of latents take those of either.

    Raises:
        ValueError: if the pipeline gives videos and the reward takes images, or the other way, or latents that a reward
            cannot read.
    """
    videos = makes_videos(pipe)
    for leaf in reward.leaves:
        if isinstance(leaf, LatentReward):
            leaf.check_pipeline(pipe)
            continue
        if videos and not leaf.takes_videos:
            raise ValueError(
                f"{type(pipe).__name__} gives videos, and '{leaf.name}' scores images. `FrameReward(reward)` scores "
                "the frames of a video; a function of videos (B, F, 3, H, W) says so by `takes_videos = True`."
            )
        if leaf.takes_videos and not videos:
            raise ValueError(f"{type(pipe).__name__} gives images, and '{leaf.name}' scores videos.")


def check_keywords(pipe: Any, keywords: Mapping[str, Any], *others: str) -> None:
    """Diffusers' own pipelines take any keyword and pass over those they do not know, which hides misspelt ones.

    Args:
        keywords: of a call.
        others: names that are known beside the pipeline's own.

    Raises:
        TypeError: for an unknown one.
    """
    known: dict[str, None]
    if is_modular(pipe):
        known = dict.fromkeys([*sorted(call_names(pipe)), "output", "state"])
    else:
        calls = [(vars(kind)["__call__"], kind) for kind in type(pipe).__mro__ if "__call__" in vars(kind)]
        if not any(kind.__module__.startswith("diffusers.") for _, kind in calls):
            return  # what others do with theirs is not known
        known = {name: None for call, _ in calls for name in inspect.signature(call).parameters}
    names = [name for name in (*known, *others) if name not in ("self", "args", "kwargs")]
    for name in keywords:
        if name not in names and name not in _LEGACY:
            raise TypeError(f"{type(pipe).__name__} takes no argument {name!r}.{suggestion(name, names)}")


def check_generator(generator: Any) -> None:
    """
    Raises:
        TypeError: for anything but None, a generator, or a list or tuple of them.
    """
    several = isinstance(generator, (list, tuple))
    if generator is None or all(isinstance(one, torch.Generator) for one in (generator if several else [generator])):
        return
    raise TypeError(
        f"Expected `generator` to be a `torch.Generator` or a list of them, but got {brief(generator)}. "
        "`torch.Generator().manual_seed(0)` makes one of a seed."
    )


def check_texts(name: str, value: Any) -> None:
    """
    Raises:
        TypeError: for anything but None, a text, or a list or tuple of texts.
    """
    texts = [value] if not isinstance(value, (list, tuple)) else value
    if value is not None and not all(isinstance(text, str) for text in texts):
        raise TypeError(f"Expected `{name}` to be a text or a list of texts, but got {brief(value)}.")


def checked_arguments(pipe: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a pipeline's call, numbers of other libraries as Python's.

    Raises:
        TypeError: for a prompt or generator of another kind, or an argument that belongs elsewhere.
        ValueError: for a number of steps, images or pixels that is none, or an unknown `output_type`.
    """
    found = dict(arguments)
    if elsewhere := sorted(_OF_STEER & found.keys()):
        raise TypeError(
            f"`{elsewhere[0]}` is an argument of `steer`, not of the call: `steer(pipe, reward, steering)`."
        )
    for name in ("prompt", "prompt_2", "prompt_3", "negative_prompt", "negative_prompt_2", "negative_prompt_3"):
        check_texts(name, found.get(name))
    if isinstance(found.get("prompt"), tuple):
        found["prompt"] = list(found["prompt"])
    check_generator(found.get("generator"))
    for name in ("num_inference_steps", *NUMBERS, "height", "width"):
        if name in found:
            # None of them is the same as leaving it out.
            optional = name != "num_inference_steps" or any(
                found.get(key) is not None for key in ("timesteps", "sigmas")
            )
            found[name] = integer(name, found[name], 1, optional=optional)
    if "guidance_scale" in found:
        found["guidance_scale"] = real("guidance_scale", found["guidance_scale"], optional=True)
    if "eta" in found:
        found["eta"] = real("eta", found["eta"], 0.0, 1.0, optional=True)
    if found.get("output_type", "pil") not in OUTPUT_TYPES:
        raise unknown("`output_type`", found["output_type"], OUTPUT_TYPES)
    return found
