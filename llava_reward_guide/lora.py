"""LoRA adapters: reading, merging into the weights, or keeping them apart to be switched (through peft)."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .files import CheckpointError, read_tensors
from .names import bare, bare_weights
from .options import read_mapping
from .packages import require


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter: W + scaling * B A for each of its modules.

    Attributes:
        weights: name of the module in the file -> (A (r, in), B (out, r)).
        alpha: scaling is alpha / r.
        dropout: on the input of A, in training.
        source: where it was read, for messages.
    """

    weights: dict[str, tuple[Tensor, Tensor]]
    alpha: int
    dropout: float = 0.0
    source: str = "an adapter"

    @property
    def rank(self) -> int:
        return next(iter(self.weights.values()))[0].shape[0]

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    @classmethod
    def read(cls, folder: Path) -> Adapter:
        """Read adapter_config.json and adapter_model.safetensors or .bin, whatever wraps the names of the modules.

        Raises:
            CheckpointError: if a file is missing, the two disagree, or it is not plain LoRA.
        """
        path = folder / "adapter_config.json"
        if not path.is_file():
            raise CheckpointError(f"Expected '{path}', but it is missing.")
        config = read_mapping(path)
        _check_plain(config, path)
        file = _existing_weights(folder)
        tensors = bare_weights(read_tensors(file), file)
        if not tensors:
            raise CheckpointError(f"Expected LoRA weights in '{file}', but it holds none.")
        halves: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            match = _LORA_NAME.fullmatch(key)
            if match is None:
                raise CheckpointError(f"Expected names that end in lora_A or lora_B in '{folder}', but found {key!r}.")
            module, half = match.groups()
            if half in halves.setdefault(module, {}):
                raise CheckpointError(f"Expected one adapter in '{file}', but '{module}' has several of lora_{half}.")
            halves[module][half] = tensor
        for module, pair in halves.items():
            if len(pair) < 2:
                raise CheckpointError(f"Expected lora_A and lora_B for '{module}' in '{folder}', but one is missing.")
            if pair["A"].ndim != 2 or pair["A"].shape[0] != config["r"] or pair["B"].shape[1:] != (config["r"],):
                raise CheckpointError(
                    f"Expected LoRA of rank {config['r']}, as '{path}' says, but '{module}' has "
                    f"A {tuple(pair['A'].shape)} and B {tuple(pair['B'].shape)}."
                )
        targets = config.get("target_modules") or []
        if not isinstance(targets, str):
            found = {target for target in targets if any(_matches(module, target) for module in halves)}
            stray = [module for module in halves if not any(_matches(module, target) for target in targets)]
            # The list may name layers that a smaller model does not have, but no kind of module may be missing.
            kinds = {target.rpartition(".")[2] for target in targets} - {target.rpartition(".")[2] for target in found}
            if kinds or stray:
                raise CheckpointError(
                    f"The modules in '{folder}' do not fit the target_modules of its config: no weights for "
                    f"{', '.join(sorted(kinds)) or 'none'}; weights of unnamed modules: "
                    f"{', '.join(stray[:3]) or 'none'}."
                )
        weights = {module: (pair["A"], pair["B"]) for module, pair in halves.items()}
        return cls(weights, config["lora_alpha"], config.get("lora_dropout") or 0.0, str(folder))

    def write(self, folder: Path, safetensors: bool) -> None:
        """Write both files, under the published names."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "bias": "none",
            "init_lora_weights": "gaussian",
            "target_modules": sorted({module.rpartition(".")[2] for module in self.weights}),
        }
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        tensors = {
            f"{module}.lora_{half}.weight": tensor.detach().cpu().contiguous()
            for module, pair in self.weights.items()
            for half, tensor in zip("AB", pair)
        }
        if safetensors:
            save_file(tensors, folder / "adapter_model.safetensors")
        else:
            torch.save(tensors, folder / "adapter_model.bin")

    def renamed(self, prefixes: Mapping[str, str], model: nn.Module) -> Adapter:
        """With the names that the modules have in `model`.

        Raises:
            CheckpointError: if a module is not there or has another shape.
        """
        weights = {}
        own = {bare(prefix): prefixes[prefix] for prefix in prefixes}
        for name, (a, b) in self.weights.items():
            # The longest prefix that fits: newer releases save 'model.language_model.' where older ones had 'model.'.
            plain = bare(name)
            prefix = max((prefix for prefix in own if plain.startswith(prefix)), key=len, default=None)
            path = plain if prefix is None else own[prefix] + plain.removeprefix(prefix)
            try:
                module = model.get_submodule(path)
            except AttributeError:
                raise CheckpointError(
                    f"The adapter in '{self.source}' has weights for '{name}', which {type(model).__name__} has not. "
                    f"Load it with the backbone it was trained on."
                ) from None
            shape = (getattr(module, "out_features", None), getattr(module, "in_features", None))
            if (b.shape[0], a.shape[1]) != shape:
                raise CheckpointError(
                    f"The adapter in '{self.source}' adapts '{name}' as {(b.shape[0], a.shape[1])}, but that of "
                    f"{type(model).__name__} is {shape}. Load it with the backbone it was trained on."
                )
            weights[path] = (a, b)
        return Adapter(weights, self.alpha, self.dropout, self.source)


def merge(model: nn.Module, adapter: Adapter) -> None:
    """Add an adapter to the weights, in float32, rounded once."""
    for path, (a, b) in adapter.weights.items():
        module: Any = model.get_submodule(path)
        weight = module.weight.data
        delta = adapter.scaling * (b.to(weight.device, torch.float32) @ a.to(weight.device, torch.float32))
        weight.copy_(weight.float() + delta)


def attach(model: Any, name: str, adapter: Adapter) -> None:
    """Put an adapter beside the weights under a name; `activate` switches it on.

    Raises:
        ImportError: without peft.
    """
    require("peft", "Keeping LoRA apart from the weights, as several perspectives need (a single one is merged),")
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=list(adapter.weights),
    )
    with warnings.catch_warnings():
        # A second adapter is what is wanted.
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        inject_adapter_in_model(config, model, name)
    for path, (a, b) in adapter.weights.items():
        layer: Any = model.get_submodule(path)
        for half, tensor in ((layer.lora_A, a), (layer.lora_B, b)):
            weight = half[name].weight
            weight.data = tensor.to(weight.device, model.dtype)


def activate(model: nn.Module, name: str | None) -> None:
    """Use the adapter of this name and no other; None for the weights alone."""
    for layer in _lora_layers(model).values():
        layer.enable_adapters(name is not None)
        if name is not None:
            layer.set_adapter(name, inference_mode=True)


def extract(model: nn.Module, name: str, prefixes: Mapping[str, str], state: Mapping[str, Tensor]) -> Adapter | None:
    """The adapter of this name in a state dict of `model`, under the published names; None if there is none."""
    layers = {path: layer for path, layer in _lora_layers(model).items() if name in layer.lora_A}
    if not layers:
        return None
    first = next(iter(layers.values()))
    weights = {
        published_name(path, prefixes): (
            state[f"{path}.lora_A.{name}.weight"],
            state[f"{path}.lora_B.{name}.weight"],
        )
        for path in layers
    }
    dropout = first.lora_dropout[name]
    return Adapter(weights, first.lora_alpha[name], getattr(dropout, "p", 0.0))


def published_name(path: str, prefixes: Mapping[str, str]) -> str:
    """The name in a LoRA file of a module at this path; of several prefixes for one place the first."""
    fitting = [published for published, own in prefixes.items() if path.startswith(own)]
    if not fitting:
        return path
    published = max(fitting, key=lambda one: len(prefixes[one]))
    return published + path.removeprefix(prefixes[published])


def parameters(model: nn.Module, name: str) -> list[nn.Parameter]:
    """A and B of the adapter of this name."""
    layers = [layer for layer in _lora_layers(model).values() if name in layer.lora_A]
    return [half[name].weight for layer in layers for half in (layer.lora_A, layer.lora_B)]


def _lora_layers(model: nn.Module) -> dict[str, Any]:
    return {path: module for path, module in model.named_modules() if hasattr(module, "lora_A")}


# In a file: 'module.lora_A.weight', with the name of the adapter ('lora_A.default.weight') if peft did not save it.
_LORA_NAME = re.compile(r"(.+?)\.lora_([AB])(?:\.(?!bias$)[^.]+)*")

# Of peft's configuration: what would change the result and is not supported, with the values that mean off.
_UNSUPPORTED = (
    "use_rslora", "use_dora", "use_qalora", "use_bdlora", "fan_in_fan_out", "rank_pattern", "alpha_pattern",
    "modules_to_save", "layer_replication", "lora_bias", "target_parameters", "trainable_token_indices",
    "alora_invocation_tokens", "arrow_config", "megatron_config",
)  # fmt: skip

# Initialisations that change the weights of the backbone too.
_CHANGES_BACKBONE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def _check_plain(config: Mapping[str, Any], path: Path) -> None:
    kind = config.get("peft_type", "LORA")
    if str(kind).upper() != "LORA":
        raise CheckpointError(f"Expected plain LoRA in '{path.parent}', but its `peft_type` is {kind!r}.")
    for name in _UNSUPPORTED:
        if config.get(name):
            raise CheckpointError(f"Expected plain LoRA in '{path.parent}', but its config sets {name}.")
    if config.get("bias", "none") != "none":
        raise CheckpointError(f"Expected plain LoRA in '{path.parent}', but its `bias` is {config['bias']!r}.")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BACKBONE):
        raise CheckpointError(
            f"Expected plain LoRA in '{path.parent}', but its `init_lora_weights` {start!r} changes the backbone's own "
            f"weights too, which are not in the file. Convert it by peft's `path_initial_model_for_weight_conversion`."
        )
    for name, kinds, wanted in (
        ("r", int, "a whole number above 0"),
        ("lora_alpha", (int, float), "a number"),
        ("lora_dropout", (int, float), "a number"),
    ):
        value = config.get(name, 0.0 if name == "lora_dropout" else None)
        if name == "lora_dropout" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, kinds) or (name == "r" and value < 1):
            raise CheckpointError(f"Expected `{name}` in '{path}' to be {wanted}, but got {value!r}.")
    targets = config.get("target_modules")
    if not isinstance(targets, (str, list, type(None))) or not all(isinstance(name, str) for name in targets or []):
        raise CheckpointError(f"Expected `target_modules` in '{path}' to be a list of names, but got {targets!r}.")


def _matches(module: str, target: str) -> bool:
    target = bare(target)
    return module == target or module.endswith(f".{target}")


def _existing_weights(folder: Path) -> Path:
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"Expected adapter_model.safetensors or adapter_model.bin in '{folder}', but found neither.")
