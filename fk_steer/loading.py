"""Pipelines by name, ready to be steered, for the command line and the benchmarks."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from llava_reward_guide.hub import locate
from llava_reward_guide.packages import require

from .bundled import BUNDLED, BUNDLED_PREVIEWS, resolve
from .combinations import Mean, Votes, by_reward, combination
from .shapes import shared_components
from .smc import is_named, suggestion, unknown


if TYPE_CHECKING:
    from accelerate import PartialState
    from diffusers import AutoencoderTiny

    from .rewards.base import RewardFunction
    from .search import Strategy


DTYPES = ("auto", "float32", "float16", "bfloat16")
"""Of pipelines, by name."""


def quiet_libraries() -> None:
    """Keep what matters visible: no notes about optional packages, no bars for loading weights."""
    import transformers

    # Before the import of diffusers, which is what makes transformers speak.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    import diffusers

    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()


def join_processes(device: str | None) -> PartialState:
    """The processes that torchrun or accelerate has started, in a process group that suits their devices.

    Args:
        device: 'cpu', 'cuda', or None for CUDA devices if there are any.
    """
    from accelerate import PartialState

    from .rewards.loading import default_device

    return PartialState(cpu=default_device(device).type == "cpu")


def load_pipeline(
    model: str,
    kind: str = "auto",
    dtype: str = "auto",
    device: torch.device | str = "cpu",
    lora: str | None = None,
) -> Any:
    """A steerable pipeline.

    Args:
        model: hub id or folder of a pipeline, or the name of a bundled one.
        kind: 'sd', 'sdxl', or 'auto' to go by the model's own class. Models of other classes come as they are; `steer`
            takes them too.
        dtype: 'float32', 'float16', 'bfloat16', or 'auto' for float16 on CUDA devices and float32 elsewhere.
        device: where it goes.
        lora: weights of LoRA to add to it: a folder or file, or a hub id; None for none.

    Raises:
        OSError: see `find_model`.
        ImportError: for LoRA without peft.
        ValueError: if the model is of another kind than asked for, or for an unknown `dtype`.
    """
    from diffusers import DiffusionPipeline

    from .pipelines import FKStableDiffusionPipeline, FKStableDiffusionXLPipeline

    name, model = model, find_model(model)
    if lora is not None:
        lora = locate(lora, "LoRA weights")
    stock = DiffusionPipeline.load_config(model).get("_class_name", "")
    found = {"StableDiffusionPipeline": "sd", "StableDiffusionXLPipeline": "sdxl"}.get(stock, "auto")
    if kind not in ("auto", found):
        fits = "auto" if found == "auto" else f"{found} or auto"
        raise ValueError(f"{name!r} is a {stock}, which the pipeline {kind!r} cannot load. Choose --pipeline {fits}.")
    kind = found
    classes = {"auto": DiffusionPipeline, "sd": FKStableDiffusionPipeline, "sdxl": FKStableDiffusionXLPipeline}
    if not is_named(dtype, DTYPES):
        raise unknown("dtype", dtype, DTYPES)
    if dtype == "auto":
        dtype = "float16" if torch.device(device).type == "cuda" else "float32"
    options = {**shared_components(name, getattr(torch, dtype)), "dtype": getattr(torch, dtype)}
    pipe = classes[kind].from_pretrained(model, **options)
    if lora is not None:
        _add_lora(pipe, lora)
    return pipe.to(device)


def _add_lora(pipe: Any, lora: str) -> None:
    """
    Raises:
        ImportError: without peft.
        ValueError: if there are no such weights, or they are not of this pipeline.
    """
    require("peft", "A pipeline with LoRA")
    expected = f"Expected `lora` to be weights that `{type(pipe).__name__}.load_lora_weights` reads, but got {lora!r}"
    if not hasattr(pipe, "load_lora_weights"):
        raise ValueError(f"A {type(pipe).__name__} takes no LoRA.")
    denoiser = pipe.unet if getattr(pipe, "unet", None) is not None else pipe.transformer
    try:
        pipe.load_lora_weights(lora)
    # Missing files, weights of other models and broken ones bring errors of many kinds.
    except Exception as error:
        raise ValueError(f"{expected}: {' '.join(str(error).split())}") from error
    if not getattr(denoiser, "peft_config", None):
        raise ValueError(f"{expected}, in which nothing is for a {type(denoiser).__name__}.")
    # They come in the precision in which they were saved.
    denoiser.to(denoiser.dtype)


def find_model(model: str) -> str:
    """Where a pipeline is to be loaded from: a folder or hub id. Found out in seconds, before anything else is loaded.

    Raises:
        OSError: for a name that is neither bundled, nor a folder of a pipeline, nor a hub id that can be had.
    """
    place = locate(resolve(model), "model", hint=suggestion(model, BUNDLED))
    if Path(place).exists() and not (Path(place) / "model_index.json").is_file():
        why = "is a file" if Path(place).is_file() else "holds no model_index.json"
        raise OSError(
            f"{model!r} is no pipeline: it {why}. Expected a folder saved with `DiffusionPipeline.save_pretrained` "
            f"(a single file by `from_single_file` first), a hub id or one of: {', '.join(BUNDLED)}."
        )
    return place


_PREVIEWS: WeakKeyDictionary[Any, dict[str, AutoencoderTiny]] = WeakKeyDictionary()


def load_preview(name: str, pipe: Any) -> AutoencoderTiny:
    """A preview decoder for a pipeline, on its device; loaded once for each autoencoder.

    Args:
        name: hub id or folder of an `AutoencoderTiny`, or the name of a bundled pipeline.
        pipe: the pipeline.

    Raises:
        ValueError: if it is not there, or the hub cannot be reached and has not been asked for it before.
    """
    from diffusers import AutoencoderTiny

    loaded = _PREVIEWS.setdefault(pipe.vae, {})
    if name not in loaded:
        try:
            place = locate(resolve(name, BUNDLED_PREVIEWS), "preview decoder", hint=suggestion(name, BUNDLED_PREVIEWS))
            loaded[name] = AutoencoderTiny.from_pretrained(place)
        # Broken files bring errors of many kinds.
        except Exception as error:
            raise ValueError(
                f"Could not load the preview decoder {name!r}. Expected a folder with a saved `AutoencoderTiny`, the "
                "hub id of one that can be reached from here, such as 'madebyollin/taesd', or one of: "
                f"{', '.join(BUNDLED_PREVIEWS)}. ({error})"
            ) from error
    return loaded[name].to(pipe._execution_device, pipe.vae.dtype)


def load_guide(name: str, device: torch.device | str, **options: Any) -> RewardFunction:
    """`load_reward`, on a device where the reward takes one, and for names combined too.

    Args:
        name: of a reward, or of several combined, see `combinations.combination`. 'a+b' is the `Ensemble` of two,
            '2*a+b' a `ZScoreSum` whose weights add up to one, 'a+b-0.5*sd' an `Ensemble` with that kappa, 'a|b|c' their
            `Majority`, and 'a>b' lets b choose among all final images.
        **options: of the reward; of a combination by the names of its rewards.

    Raises:
        ValueError: see `load_reward`, and for a name of another form.
    """
    from .rewards import Ensemble, Finalists, Majority, ZScoreSum

    found = combination(name)
    if found.single:
        return _load_single(name.strip(), device, options)
    of_each = by_reward(name, options)
    # Before any weights are loaded.
    check_names(name)
    loaded = {part: _load_single(part, device, of_each[part]) for part in found.names}

    def together(of: Mean | Votes) -> RewardFunction:
        rewards = [loaded[part] for part in of.names]
        if len(rewards) == 1:
            return rewards[0]
        if isinstance(of, Votes):
            return Majority(rewards)
        if set(of.weights.values()) == {1.0}:
            return Ensemble(rewards, of.kappa)
        total = sum(map(abs, of.weights.values()))
        return ZScoreSum({loaded[part]: weight / total for part, weight in of.weights.items()})

    if found.chooser is None:
        return together(found.guide)
    return Finalists(together(found.guide), together(found.chooser), keep=ALL)


ALL = 1_000_000
"""Finalists: all images."""


def check_names(reward: str) -> None:
    """Make sure that there are the rewards in a name.

    Raises:
        ValueError: for an unknown one, listing those known, or a name of another form.
    """
    from .rewards.registry import reward_factory

    for name in combination(reward).names:
        reward_factory(name)


def check_images(reward: str) -> None:
    """Make sure that the rewards in a name score images, before any weights are loaded.

    Raises:
        ValueError: for one that reads latents, an unknown one or a name of another form.
    """
    from .rewards.latent import check_scores_images
    from .rewards.registry import reward_factory

    for name in combination(reward).names:
        check_scores_images(name, reward_factory(name))


def _load_single(name: str, device: torch.device | str, options: Mapping[str, Any]) -> RewardFunction:
    from .rewards import load_reward
    from .rewards.registry import available_rewards

    entry_point = available_rewards().get(name)
    if entry_point is not None and "device" in inspect.signature(entry_point.load()).parameters:
        options = {"device": device, **options}
    return load_reward(name, **options)


def set_scheduler(pipe: Any, name: str | None, steering: Strategy, num_steps: int | None = None) -> str | None:
    """Give a pipeline the scheduler of that name, or, unless the settings name one, one that adds noise if they need it
    and its own, or the one that a budget would be spent with, adds none.

    Args:
        name: see `fk_steer.diffusion.samplers.sampler`.
        num_steps: of the denoising loop; None for the 50 that most pipelines take by default.

    Returns:
        What was done, if the user did not ask for it.

    Raises:
        ValueError: for an unknown name, or one that does not fit.
    """
    from .diffusion.noise import adds_noise
    from .diffusion.samplers import NOISY, model_kind, sampler, sampler_at_call

    if name is not None:
        pipe.scheduler = sampler(pipe.scheduler, name)
        return None
    if steering.sampler is not None or not steering.copying(num_steps or 50):
        return None
    if adds_noise(sampler_at_call(pipe.scheduler, steering), steering.noise.eta):
        return None
    before = type(pipe.scheduler).__name__
    pipe.scheduler = sampler(pipe.scheduler, NOISY.get(model_kind(pipe.scheduler) or "", "ddim"))
    return (
        f"{before} adds no noise, so copies of a particle would stay identical; sampling with "
        f"{type(pipe.scheduler).__name__} at eta {steering.noise.eta:g}."
    )
