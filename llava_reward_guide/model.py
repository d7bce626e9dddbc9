"""LLaVA-Reward: a multimodal LLM that says how good an image is for a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import lora
from .backbones import Backbone, BackboneInputs
from .backbones.base import Row
from .checkpoint import Checkpoint, write_checkpoint
from .config import RewardConfig
from .files import CheckpointError, on_cpu
from .head import RewardHead
from .images import Images, check_form, to_pil
from .perspective import Perspective, build_perspective
from .preference import preference_probability


class LlavaReward(nn.Module):
    """A backbone with one or several perspectives on it (alignment, fidelity, safety, overall), one of them active.

    ```py
    reward = LlavaReward.from_pretrained("smz8599/LLaVA-Reward/alignment/llavareward_phi_alignment")
    reward.score(images, prompts)  # (B,) float32, higher is better
    ```

    `forward` and all modules are differentiable; `score`, `embed` and `preference` are not.

    Args:
        backbone: without perspectives yet.
        batch_size: images in a pass through the backbone, unless a call says otherwise.
    """

    def __init__(self, backbone: Backbone, batch_size: int = 4) -> None:
        super().__init__()
        self.backbone = backbone
        self.batch_size = batch_size
        self.perspectives: dict[str, Perspective] = {}
        self.active = ""
        self.head: RewardHead
        self._merged = False
        # Shared by perspectives that bring none.
        self._base_projector = backbone.projector

    @classmethod
    def from_pretrained(cls, checkpoint: str | Path | Mapping[str, str | Path], **options: Any) -> LlavaReward:
        """Load checkpoints onto a backbone; see `llava_reward_guide.loading.load` for the options."""
        from .loading import load

        return load(cls, checkpoint, **options)

    @property
    def device(self) -> torch.device:
        return self.head.value_head.weight.device

    @property
    def config(self) -> RewardConfig:
        """The configuration of the active perspective."""
        return self.perspectives[self.active].config

    @property
    def merged(self) -> bool:
        """Whether the adapter was added to the weights, after which it cannot be saved."""
        return self._merged

    def add_perspective(self, name: str, checkpoint: Checkpoint, merge: bool = False) -> None:
        """Add a perspective and make it the active one.

        Args:
            merge: add its adapter to the weights, after which there can be no other perspective.

        Raises:
            CheckpointError: if the checkpoint does not fit the backbone.
            ValueError: for a name in use, or after a merge.
        """
        if name in self.perspectives:
            raise ValueError(f"There is a perspective {name!r} already.")
        if not name or "." in name:
            raise ValueError(f"Expected a name without dots for a perspective, but got {name!r}.")
        if self._merged or (merge and self.perspectives):
            raise ValueError(
                "A merged adapter cannot share the backbone with other perspectives. Load all of them with "
                "`merge=False`."
            )
        perspective = build_perspective(self.backbone, self._base_projector, checkpoint)
        if checkpoint.adapter is not None:
            adapter = checkpoint.adapter.renamed(self.backbone.adapter_prefixes, self.backbone.model)
            inside = [path for path in adapter.weights if path.startswith(f"{self.backbone.projector_name}.")]
            if inside and checkpoint.projector:
                # The projector is replaced as a whole, and the adapter would go with the old one.
                raise CheckpointError(
                    f"Expected LoRA on the projector or its trained weights in '{checkpoint.source}', but found both "
                    f"({inside[0]}). Merge the adapter into the projector, and save that."
                )
            if merge:
                lora.merge(self.backbone.model, adapter)
            else:
                lora.attach(self.backbone.model, name, adapter)
                # New modules begin in training mode, with dropout on.
                self.backbone.model.train(self.training)
                perspective.has_adapter = True
            self._merged = merge
        perspective.head.train(self.training)
        perspective.projector.train(self.training)
        self.perspectives[name] = perspective
        self.set_perspective(name)

    def set_perspective(self, name: str) -> None:
        """Switch adapter, projector and head; the backbone stays.

        Raises:
            ValueError: for an unknown name.
        """
        if name not in self.perspectives:
            raise ValueError(f"Unknown perspective {name!r}. Known: {', '.join(self.perspectives)}.")
        perspective = self.perspectives[name]
        # Only what is active is registered and follows `.to`; the others follow when they are called up.
        weight = self.backbone.text_model.norm.weight
        self.head = perspective.head.to(weight.device)
        self.backbone.set_projector(perspective.projector.to(weight.device))
        lora.activate(self.backbone.model, name if perspective.has_adapter else None)
        self.active = name

    def trainable(self, adapter: bool = True, projector: bool = True, head: bool = True) -> list[nn.Parameter]:
        """Freeze everything but these parts of the active perspective, and return their parameters."""
        self.requires_grad_(False)
        parameters = list(self.head.parameters()) if head else []
        if projector:
            parameters += self.backbone.projector.parameters()
        if adapter and self.perspectives[self.active].has_adapter:
            parameters += lora.parameters(self.backbone.model, self.active)
        for parameter in parameters:
            parameter.requires_grad_(True)
        return parameters

    def forward(self, inputs: BackboneInputs) -> Tensor:
        """Rewards (B, value_head_dim) of a prepared batch, in the dtype of the model."""
        config = self.config
        output = self.backbone(
            inputs, hidden_layer=config.hidden_layer, visual_layer=config.visual_layer, as_coded=config.as_coded
        )
        return self.head(output)

    @torch.no_grad()
    def embed(
        self,
        images: Images,
        prompts: Sequence[str],
        num_crops: int | None = None,
        batch_size: int | None = None,
    ) -> Tensor:
        """Rewards before they are compared: one number each, or the embedding of a general preference model.

        Args:
            images: (B, 3, H, W) float in [0, 1], or B PIL images of any sizes.
            prompts: B texts.
            num_crops: most crops of an image; None for the backbone's. Fewer cost less.
            batch_size: images in a pass; None for the model's. Images alike in length share one.

        Returns:
            (B, value_head_dim) float32 on the device of the model.

        Raises:
            ImageError: for an image so elongated that the backbone cannot take it.
            ValueError: if there are not as many prompts as images, no image at all, or a size below one.
        """
        rows = self._rows(images, prompts, num_crops)
        return self._embed_rows(rows, [self.active], batch_size)[self.active]

    def score(
        self, images: Images, prompts: Sequence[str], num_crops: int | None = None, batch_size: int | None = None
    ) -> Tensor:
        """How good each image is for the prompt at the same position; see `embed`.

        Returns:
            (B,) float32, higher is better: a reward, or the logit of a classifier.

        Raises:
            ValueError: for a general preference model, which compares images and gives none a number.
        """
        return self._scalar(self.active, self.embed(images, prompts, num_crops, batch_size))

    @torch.no_grad()
    def score_perspectives(
        self,
        images: Images,
        prompts: Sequence[str],
        perspectives: Sequence[str] | None = None,
        num_crops: int | None = None,
        batch_size: int | None = None,
    ) -> dict[str, Tensor]:
        """`score` from several perspectives: images are prepared, and seen by the vision tower, once.

        Args:
            perspectives: names; None for all.

        Returns:
            name -> (B,) float32. The active perspective is unchanged.
        """
        names = list(self.perspectives if perspectives is None else perspectives)
        rows, before = self._rows(images, prompts, num_crops), self.active
        try:
            embeddings = self._embed_rows(rows, names, batch_size)
        finally:
            self.set_perspective(before)
        return {name: self._scalar(name, embedding) for name, embedding in embeddings.items()}

    def preference(
        self,
        images: Images,
        others: Images,
        prompts: Sequence[str],
        other_prompts: Sequence[str] | None = None,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> Tensor:
        """Probability (B,) that an image is preferred to the other one, of `dtype`.

        Args:
            other_prompts: of the other images, where they differ.
            dtype: bfloat16 repeats the ties of the published evaluation.
            **options: of `embed`.
        """
        a = self.embed(images, prompts, **options)
        b = self.embed(others, prompts if other_prompts is None else other_prompts, **options)
        return preference_probability(a, b, self.config.tau, dtype)

    def compile(self, **options: Any) -> None:
        """Compile the layers of the text model, one by one: fast to compile, and lengths may vary.

        Args:
            **options: of `torch.compile`; dynamic shapes by default.
        """
        for layer in self.backbone.text_model.layers:
            layer.compile(**{"dynamic": True, **options})

    def save_pretrained(
        self,
        folder: str | Path,
        layout: str = "safetensors",
        state_dict: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Save the active perspective, without the backbone.

        Args:
            folder: where; made if missing.
            layout: 'safetensors' for ours, 'published' for that of the released checkpoints.
            state_dict: of this model, gathered from the processes it is sharded over; None for its own.

        Raises:
            ValueError: for an unknown layout, or if the adapter was merged and cannot be told from the weights.
        """
        if self._merged:
            raise ValueError("The adapter was merged into the weights. Load with `merge=False` to save it.")
        backbone = self.backbone
        state = self.state_dict() if state_dict is None else state_dict
        projector = _below(state, f"backbone.model.{backbone.projector_name}.")
        checkpoint = Checkpoint(
            config=self.config,
            head=on_cpu(_below(state, "head.")),
            projector=on_cpu({backbone.projector_prefixes[0] + name: value for name, value in projector.items()}),
            adapter=lora.extract(
                backbone.model, self.active, backbone.adapter_prefixes, _below(state, "backbone.model.")
            ),
            backbone={
                "model_type": backbone.model_type,
                "hidden_size": backbone.hidden_size,
                "name": backbone.model.config.name_or_path,
            },
        )
        write_checkpoint(checkpoint, Path(folder), layout)

    def _scalar(self, name: str, embedding: Tensor) -> Tensor:
        if self.perspectives[name].config.objective == "general-preference":
            raise ValueError(
                "A general preference model compares images and gives none a number. Use `preference`, or `embed` and "
                "`preference_score`; to steer, load it as the reward 'llava-reward', which ranks the particles of a "
                "prompt."
            )
        return embedding[:, 0]

    def _rows(self, images: Images, prompts: Sequence[str], num_crops: int | None) -> list[Row]:
        check_form(images)
        if isinstance(prompts, str) or len(images) != len(prompts) or not len(prompts):
            raise ValueError(
                f"Expected one image or more and one prompt per image, but got {len(images)} images and "
                f"{'a single string' if isinstance(prompts, str) else f'{len(prompts)} prompts'}."
            )
        return [self.backbone.prepare_row(image, prompt, num_crops) for image, prompt in zip(to_pil(images), prompts)]

    def _embed_rows(self, rows: Sequence[Row], names: Sequence[str], batch_size: int | None) -> dict[str, Tensor]:
        if any(self.perspectives[name].config.as_coded for name in names if name in self.perspectives):
            # What the released code makes of padding depends on the batch; alone, a row has none.
            batch_size = 1
        order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
        size = self.batch_size if batch_size is None else batch_size
        if size < 1:
            raise ValueError(f"Expected `batch_size` to be at least 1, but got {size}.")
        results: dict[str, list[Tensor]] = {name: [] for name in names}
        for start in range(0, len(order), size):
            inputs = self.backbone.collate([rows[index] for index in order[start : start + size]]).to(self.device)
            if len(names) > 1:
                inputs = replace(inputs, features=self.backbone.vision_features(inputs))
            for name in names:
                if name != self.active:
                    self.set_perspective(name)
                results[name].append(self(inputs).float())
        back = torch.tensor(order, device=self.device).argsort()
        return {name: torch.cat(parts)[back] for name, parts in results.items()}


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
