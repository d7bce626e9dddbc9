"""The model of DiNa-LRM: the first layers of Stable Diffusion 3's transformer, and a head that reads their states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava_reward_guide.files import CheckpointError
from llava_reward_guide.lora import Adapter, merge

from .loading import RewardLoadError, assign_weights, empty, fetch, read_json, read_weights


CONFIG, HEAD, LORA = "config.json", "checkpoint/rm_head.pt", "checkpoint/backbone_lora"
BACKBONE = "transformer/diffusion_pytorch_model.safetensors"
UNUSED = ("norm_out.", "proj_out.")
"""Parts of the transformer after its blocks."""


@dataclass(frozen=True)
class Design:
    """What config.json says of the model.

    Attributes:
        backbone: hub id of the pipeline.
        layers: of its transformer that are used.
        visual, textual: after how many of them the hidden states of the image and of the text are read.
        width, queries, heads: of the head.
        project: whether the head has a layer of its own before each modulation.
        adapted: whether there is a LoRA.
        noised: whether clean latents are noised.
    """

    backbone: str
    layers: int
    visual: tuple[int, ...]
    textual: tuple[int, ...]
    width: int
    queries: int
    heads: int
    project: bool
    adapted: bool
    noised: bool

    @classmethod
    def read(cls, file: Path, reward: str) -> Design:
        """
        Raises:
            RewardLoadError: for a file of another form, or a model of a kind that was not published.
        """
        content = read_json(file)
        try:
            model, head = content["model"], content["model"]["reward_head"]
            design = cls(
                backbone=str(model["backbone_model_id"]),
                layers=int(model["num_transformer_layers"]),
                visual=tuple(int(one) for one in model["visual_head_idx"]),
                textual=tuple(int(one) for one in model["text_head_idx"]),
                width=int(head.get("width", -1)),
                queries=int(head.get("num_queries", 4)),
                heads=int(head.get("num_attn_heads", 8)),
                project=bool(head.get("use_proj_in", False)),
                adapted=not model["freeze_backbone"],
                noised=bool(content.get("training", {}).get("add_noise", True)),
            )
            odd = {"use_logistic": model.get("use_logistic", False), "out_dim": head.get("out_dim", 1) != 1}
            odd["use_lora"] = design.adapted and not model["use_lora"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RewardLoadError(
                f"Expected {file} to be the configuration of the reward '{reward}', with what it says of its `model`, "
                f"but it is not. ({type(error).__name__}: {error})"
            ) from error
        if any(odd.values()):
            names = ", ".join(name for name, value in odd.items() if value)
            raise RewardLoadError(f"{file} describes a model that the reward '{reward}' cannot be, by its {names}.")
        return design


class Reading(nn.Module):
    """Hidden states of one layer, modulated by the level of noise and brought to the width of the head's share.

    Args:
        hidden, time: widths of the states and of the embedding of the noise.
        width: of the modulation.
        out: of what is returned.
        project: whether to project even if the widths agree.
    """

    def __init__(self, hidden: int, time: int, width: int, out: int, project: bool) -> None:
        super().__init__()
        self.proj_in = nn.Linear(hidden, width) if project or hidden != width else nn.Identity()
        self.layer_embed = nn.Parameter(torch.zeros(1, 1, width))
        self.cond_mlp = nn.Sequential(nn.Linear(time, 2 * width), nn.SiLU(), nn.Linear(2 * width, 2 * width))
        self.proj = nn.Linear(width, out)

    def forward(self, states: Tensor, time: Tensor) -> Tensor:
        """(B, N, hidden), (B, time) -> (B, N, out)."""
        scale, shift = self.cond_mlp(time)[:, None].chunk(2, dim=-1)
        return self.proj(self.proj_in(states) * (1 + scale) + shift + self.layer_embed)


class Asking(nn.Module):
    """Queries attend to the tokens of an image and, apart from these, to those of a text.

    Args:
        width: of queries and tokens.
        heads: of attention.
        full: also to a text, and with a gate on each token's value; otherwise to the image alone.
    """

    def __init__(self, width: int, heads: int, full: bool) -> None:
        super().__init__()
        self.heads, self.full = heads, full
        self.norm_q, self.norm_v = nn.RMSNorm(width), nn.RMSNorm(width)
        self.to_q, self.to_k_vis, self.to_v_vis = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(width, width))
        if full:
            self.norm_t = nn.RMSNorm(width)
            self.to_k_text, self.to_v_text = nn.Linear(width, width), nn.Linear(width, width)
            self.gate_vis, self.gate_text = (
                nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)) for _ in range(2)
            )

    def forward(self, queries: Tensor, image: Tensor, text: Tensor) -> Tensor:
        """(B, Q, width), (B, N, width), (B, T, width) -> (B, Q, width)."""
        asked, image = self._split(self.to_q(self.norm_q(queries))), self.norm_v(image)
        values = self.to_v_vis(image)
        if not self.full:
            return queries + self.to_out(self._heard(asked, self.to_k_vis(image), values))
        text = self.norm_t(text)
        seen = self._heard(asked, self.to_k_vis(image), values * self.gate_vis(image).sigmoid())
        said = self._heard(asked, self.to_k_text(text), self.to_v_text(text) * self.gate_text(text).sigmoid())
        return queries + self.to_out(seen + said)

    def _heard(self, asked: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        found = F.scaled_dot_product_attention(asked, self._split(keys), self._split(values))
        return found.transpose(1, 2).flatten(2)

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Head(nn.Module):
    """Hidden states of several layers, at one level of noise or more, to a reward.

    Args:
        hidden: width of the states, and of the embedding of the noise.
        design: of the model.
    """

    def __init__(self, hidden: int, design: Design) -> None:
        super().__init__()
        width = hidden if design.width == -1 else design.width
        share = width // 4

        def readings(number: int) -> nn.ModuleList:
            return nn.ModuleList(Reading(hidden, hidden, width, share, design.project) for _ in range(number))

        self.layer_adapters_visual = readings(len(design.visual))
        self.layer_adapters_text = readings(len(design.textual))
        self.agg_visual = nn.Linear(len(design.visual) * share, width)
        self.agg_text = nn.Linear(len(design.textual) * share, width)
        self.query_tokens = nn.Parameter(torch.zeros(1, design.queries, width))
        self.attn1, self.attn2 = Asking(width, design.heads, True), Asking(width, design.heads, False)
        self.norm_ff = nn.RMSNorm(width)
        self.ff = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.head = nn.Linear(width, 1)

    def tokens(self, image: Sequence[Tensor], text: Sequence[Tensor], time: Tensor) -> tuple[Tensor, Tensor]:
        """Of the states (B, N, hidden), (B, T, hidden) of each layer at one level, (B, N, width), (B, T, width)."""
        seen = [reading(states, time) for reading, states in zip(self.layer_adapters_visual, image, strict=True)]
        said = [reading(states, time) for reading, states in zip(self.layer_adapters_text, text, strict=True)]
        return self.agg_visual(torch.cat(seen, -1)), self.agg_text(torch.cat(said, -1))

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """Tokens (B, N, width) and (B, T, width), those of several levels one after the other, to rewards (B,)."""
        queries = self.attn1(self.query_tokens.expand(len(image), -1, -1), image, text)
        queries = self.attn2(queries, image, text)
        queries = queries + self.ff(self.norm_ff(queries))
        rewards: Tensor = self.head(queries)[..., 0].mean(1)
        return rewards


class Backbone(nn.Module):
    """The first layers of the transformer of a Stable Diffusion 3.

    Args:
        config: of the whole transformer.
        layers: that are kept. The last of the whole would tell nothing of the text.

    Raises:
        ValueError: if there are not more layers than these.
    """

    def __init__(self, config: Mapping[str, Any], layers: int) -> None:
        from diffusers import SD3Transformer2DModel

        super().__init__()
        whole = SD3Transformer2DModel.from_config(dict(config))
        if layers >= len(whole.transformer_blocks):
            raise ValueError(f"Expected more than {layers} layers, but there are {len(whole.transformer_blocks)}.")
        self.hidden: int = whole.inner_dim
        self.channels: int = whole.config.in_channels
        self.words: int = whole.context_embedder.in_features
        self.pooled: int = whole.config.pooled_projection_dim
        self.pos_embed, self.time_text_embed = whole.pos_embed, whole.time_text_embed
        self.context_embedder = whole.context_embedder
        self.transformer_blocks = whole.transformer_blocks[:layers]

    def forward(
        self, noisy: Tensor, timestep: Tensor, words: Tensor, pooled: Tensor
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """
        Args:
            noisy: (B, C, H, W).
            timestep: (B,) from 0 to 1000.
            words, pooled: (B, T, D) and (B, E), as `encode_prompt` has them.

        Returns:
            The states of the image and of the text before the first layer and after each, and the embedding of time.
        """
        image, text = self.pos_embed(noisy), self.context_embedder(words)
        time = self.time_text_embed(timestep, pooled)
        images, texts = [image], [text]
        for block in self.transformer_blocks:
            text, image = block(hidden_states=image, encoder_hidden_states=text, temb=time)
            images.append(image)
            texts.append(text)
        return images, texts, time


class DiNaLRMModel(nn.Module):
    """A backbone and a head.

    Args:
        config: of the transformer.
        design: what is made of it.
    """

    def __init__(self, config: Mapping[str, Any], design: Design) -> None:
        super().__init__()
        self.design = design
        self.backbone = Backbone(config, design.layers)
        self.reward_head = Head(self.backbone.hidden, design)

    def forward(self, noisy: Sequence[Tensor], levels: Sequence[float], words: Tensor, pooled: Tensor) -> Tensor:
        """The rewards (B,) as the head has them.

        Args:
            noisy: (B, C, H, W) for each level, (1 - level) * x0 + level * epsilon.
            levels: of the noise, which the head reads together.
            words, pooled: see `Backbone`.
        """
        seen, said = [], []
        for latents, level in zip(noisy, levels, strict=True):
            timestep = torch.full((len(latents),), 1000 * level, dtype=torch.float32, device=latents.device)
            images, texts, time = self.backbone(latents, timestep, words, pooled)
            image, text = self.reward_head.tokens(
                [images[place] for place in self.design.visual], [texts[place] for place in self.design.textual], time
            )
            seen.append(image)
            said.append(text)
        rewards: Tensor = self.reward_head(torch.cat(seen, 1), torch.cat(said, 1))
        return rewards


def load_model(path: str, backbone: str | None, revision: str | None, dtype: torch.dtype, reward: str) -> DiNaLRMModel:
    """The model in evaluation mode, without gradients.

    Raises:
        RewardLoadError: for missing, surplus or misshapen weights, or files of another form.
    """
    design = Design.read(fetch(path, CONFIG, reward, revision), reward)
    place = backbone or design.backbone
    config = read_json(fetch(place, "transformer/config.json", reward))
    try:
        model = empty(lambda: DiNaLRMModel(config, design))
    except (TypeError, ValueError) as error:
        raise RewardLoadError(
            f"Expected the transformer of {place!r} to be that of a Stable Diffusion 3 for the reward '{reward}'. "
            f"({error})"
        ) from error
    file = fetch(place, BACKBONE, reward)
    assign_weights(model.backbone, first_layers(read_weights(file, reward), design.layers), file, reward, dtype=dtype)
    if design.adapted:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            lora = fetch(path, f"{LORA}/{name}", reward, revision).parent
        try:
            adapter = Adapter.read(lora)
            merge(model.backbone, adapter.renamed({"": ""}, model.backbone))
        except CheckpointError as error:
            raise RewardLoadError(f"Could not load the LoRA of the reward '{reward}'. {error}") from error
    head = fetch(path, HEAD, reward, revision)
    assign_weights(model.reward_head, read_weights(head, reward), head, reward, dtype=dtype)
    return model.eval().requires_grad_(False)


def first_layers(weights: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Of a transformer's weights those of its first layers and of what is before them."""
    left = {}
    for name, value in weights.items():
        kind, _, rest = name.partition(".")
        later = kind == "transformer_blocks" and int(rest.partition(".")[0]) >= layers
        if not later and not name.startswith(UNUSED):
            left[name] = value
    return left
