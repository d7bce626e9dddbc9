"""Loading the weights of rewards, with errors that say what was expected."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llava_reward_guide.hub import locate
from llava_reward_guide.texts import read_text

from ..bundled import BUNDLED_REWARDS
from ..smc import suggestion


class RewardLoadError(OSError):
    """The weights of a reward could not be loaded; the message says from where and what was expected there."""


def default_device(device: torch.device | str | None) -> torch.device:
    """`device`, or the CUDA device if there is one, or the CPU."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def load_pretrained(kind: Any, path: str, reward: str, **options: Any) -> Any:
    """`kind.from_pretrained(path, **options)` with one clear error. A model gets all of its weights.

    Raises:
        RewardLoadError: naming the reward, the class and the place, and the tensors that are missing or misshapen.
    """
    options = {name: value for name, value in options.items() if value is not None}
    place = _locate(path, reward, options.get("revision"))
    is_model = issubclass(kind, nn.Module)
    if is_model:
        # Otherwise what a file lacks is drawn by chance, and said in a log that the commands keep quiet.
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        loaded = kind.from_pretrained(place, **options)
    # Broken files bring errors of many kinds; tokenizers raise plain Exceptions.
    except Exception as error:
        raise RewardLoadError(
            f"Could not load {kind.__name__} of the reward '{reward}' from {path!r}. Expected a folder saved with "
            f"`save_pretrained` or the id of a hub repository that can be reached from here. ({error})"
        ) from error
    if not is_model:
        return loaded
    model, info = loaded
    # Buffers are the same in every model of a class; older files have some that newer ones lack.
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    _check_complete(
        {
            "missing": sorted(parameters.intersection(info["missing_keys"])),
            "of another shape": [
                f"{name} {tuple(found)} instead of {tuple(wanted)}" for name, found, wanted in info["mismatched_keys"]
            ],
        },
        model,
        len(parameters),
        path,
        reward,
    )
    return model


def _locate(path: str, reward: str, revision: str | None) -> str:
    hint = suggestion(path, BUNDLED_REWARDS.get(reward, {}))
    try:
        return locate(path, f"weights of the reward '{reward}' at", revision, hint)
    except OSError as error:
        raise RewardLoadError(str(error)) from error


def fetch(path: str, filename: str, reward: str, revision: str | None = None) -> Path:
    """One file of a reward.

    Args:
        path: the file itself, a folder that holds `filename`, or the id of a hub repository that does.

    Raises:
        RewardLoadError: if it is not there.
    """
    from huggingface_hub import hf_hub_download

    local = Path(_locate(path, reward, revision))
    if local.is_file():
        return local
    if (local / filename).is_file():
        return local / filename
    if not local.exists():
        try:
            return Path(hf_hub_download(path, filename, revision=revision))
        except OSError as error:
            raise RewardLoadError(
                f"Could not find {filename} of the reward '{reward}' at {path!r}. Expected the file itself, a folder "
                f"that holds it, or the id of a hub repository that can be reached from here. ({error})"
            ) from error
    raise RewardLoadError(f"Expected the folder {path!r} to hold {filename} of the reward '{reward}', but it does not.")


def read_weights(file: Path, reward: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a pickle that holds nothing but tensors, one level of `state_dict`,
    `model` or `module` unwrapped.

    Raises:
        RewardLoadError: if the file holds anything else.
    """
    from pickle import UnpicklingError

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise RewardLoadError(
            f"Could not read the weights of the reward '{reward}' from {file}. Expected a .safetensors file or tensors "
            f"saved with `torch.save`; pickles of other objects are refused. ({error})"
        ) from error
    for wrapper in ("state_dict", "model", "module"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise RewardLoadError(f"Expected {file} to hold the tensors of the reward '{reward}' by name, but it does not.")
    return dict(content)


def read_json(file: Path) -> dict[str, Any]:
    """The content of a JSON file that belongs to a reward's weights.

    Raises:
        RewardLoadError: if it is none.
    """
    try:
        return json.loads(read_text(file))
    except ValueError as error:
        raise RewardLoadError(f"Expected {file} to be a JSON file. ({error})") from error


def read_sharded(path: str, reward: str, revision: str | None = None) -> dict[str, Tensor]:
    """The tensors of a repository in the layout of `save_pretrained`: one file, or shards with an index.

    Raises:
        RewardLoadError: if there are none.
    """
    names = ("model.safetensors", "pytorch_model.bin")
    for name in names:
        for index_name in (name, f"{name}.index.json"):
            try:
                file = fetch(path, index_name, reward, revision)
            except RewardLoadError:
                continue
            if index_name == name:
                return read_weights(file, reward)
            shards = sorted(set(json.loads(read_text(file))["weight_map"].values()))
            weights: dict[str, Tensor] = {}
            for shard in shards:
                weights.update(read_weights(fetch(path, shard, reward, revision), reward))
            return weights
    raise RewardLoadError(
        f"Could not find the weights of the reward '{reward}' at {path!r}. Expected a folder, or the id of a hub "
        f"repository that can be reached from here, with {' or '.join(names)}, or shards of one with their index."
    )


def empty(make: Any) -> Any:
    """The module `make()` returns, its parameters without memory (on the meta device), its buffers in place."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return make()


def assign_weights(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    source: object,
    reward: str,
    ignored: Iterable[str] = (),
    dtype: torch.dtype | None = None,
) -> None:
    """Give a module its weights, all of them and no others.

    Args:
        weights: under the module's own names.
        source: for messages.
        ignored: names in `weights` that the module has no use for.
        dtype: to cast to; None leaves them as they are.

    Raises:
        RewardLoadError: listing missing, unexpected and misshapen tensors.
    """
    expected = module.state_dict()
    ignored = set(ignored)
    weights = {name: value for name, value in weights.items() if name not in ignored}
    problems = {
        "missing": [name for name in expected if name not in weights],
        "unexpected": [name for name in weights if name not in expected],
        "of another shape": [
            f"{name} {tuple(value.shape)} instead of {tuple(expected[name].shape)}"
            for name, value in weights.items()
            if name in expected and value.shape != expected[name].shape
        ],
    }
    _check_complete(problems, module, len(expected), source, reward)
    module.load_state_dict({name: value.to(dtype) for name, value in weights.items()}, assign=True)


def _check_complete(
    problems: Mapping[str, list[str]], module: nn.Module, number: int, source: object, reward: str
) -> None:
    """Raise if there is any problem: kind -> names of tensors, out of so many that were expected."""
    if any(problems.values()):
        what = "; ".join(f"{_some(names)} {kind}" for kind, names in problems.items() if names)
        raise RewardLoadError(
            f"{source} does not hold the weights of the reward '{reward}' ({type(module).__name__}, "
            f"{number} tensors expected): {what}."
        )


def _some(names: list[str], shown: int = 3) -> str:
    return f"{len(names)} ({', '.join(names[:shown])}{', ...' if len(names) > shown else ''})"
