"""What the reward asks of a multimodal LLM: the last hidden states of its text and the projected visual tokens."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from PIL.Image import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..files import CheckpointError, refuse_empty
from ..images import ImageError
from .text import TextTokenizer


@dataclass(frozen=True)
class Row:
    """One image and its prompt, ready for the backbone.

    Attributes:
        input_ids: (L,) long; the ids at image positions are not looked up.
        image_mask: (L,) bool, True where a visual token stands.
        pixels: what the backbone's vision tower takes of this image.
        image_size: how the image is laid out, as the backbone defines it.
    """

    input_ids: Tensor
    image_mask: Tensor
    pixels: Tensor
    image_size: tuple[int, int]


@dataclass(frozen=True)
class BackboneInputs:
    """A batch of `Row`s, left-padded.

    Attributes:
        input_ids: (B, L) long.
        attention_mask: (B, L) long, 0 on padding.
        image_mask: (B, L) bool.
        pixels: of each row.
        image_sizes: of each row.
        features: of the vision tower, from `Backbone.vision_features`; None to compute them.
    """

    input_ids: Tensor
    attention_mask: Tensor
    image_mask: Tensor
    pixels: list[Tensor]
    image_sizes: list[tuple[int, int]]
    features: Tensor | None = None

    def to(self, device: torch.device | str) -> BackboneInputs:
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            image_mask=self.image_mask.to(device),
            pixels=[pixels.to(device) for pixels in self.pixels],
        )


@dataclass(frozen=True)
class BackboneOutput:
    """What the reward's head reads.

    Attributes:
        hidden_states: (B, L, D) of the text model.
        attention_mask: (B, L), 0 on padding.
        visual_tokens: (B, N, D), padded on the right with zeros.
        visual_mask: (B, N) bool; None lets the padding take part in the attention, as the released code does.
    """

    hidden_states: Tensor
    attention_mask: Tensor
    visual_tokens: Tensor
    visual_mask: Tensor | None


class Backbone(nn.Module, ABC):
    """A multimodal LLM without its language-model head.

    To support another one, write these: `from_pretrained` and `prepare_row` (text and image pipelines), `embed_images`
    (projected visual tokens), `position_ids` where they are not consecutive, the attributes below and `vision_flops`.

    Attributes:
        model_type: in the config.json of the model.
        projector_name: path of the projector in `model`.
        projector_prefixes: prefixes that the projector's names have in the files of checkpoints, wrappers aside.
        adapter_prefixes: prefix in a LoRA file -> prefix in `model`.
        supports_skip_ca: whether the released code has SkipCA for it.
        files: that a folder with the model has beside config.json and its weights.
        model: the `transformers` model.
        tokenizer: of its text.
        pad_token_id: fills `input_ids` on the left.
        num_crops: most crops an image is cut into; None where the backbone has no such choice.
    """

    model_type: ClassVar[str]
    default_id: ClassVar[str]
    projector_name: ClassVar[str]
    projector_prefixes: ClassVar[tuple[str, ...]]
    adapter_prefixes: ClassVar[dict[str, str]]
    supports_skip_ca: ClassVar[bool] = True
    files: ClassVar[tuple[str, ...]] = ("tokenizer.json",)
    num_crops: int | None = None
    tokenizer: TextTokenizer

    def __init__(self, model: Any, pad_token_id: int) -> None:
        super().__init__()
        self.model = model
        self.pad_token_id = pad_token_id

    @classmethod
    @abstractmethod
    def from_pretrained(cls, path: str, **options: Any) -> Backbone:
        """Load model, by `load_weights`, and text pipeline from a folder or hub id; `options` are of `transformers`."""

    @abstractmethod
    def prepare_row(self, image: Image, prompt: str, num_crops: int | None = None) -> Row:
        """Text and pixels of one RGB image with its prompt; `num_crops` overrides the backbone's.

        Raises:
            ImageError: for an image so elongated that the backbone cannot take it.
        """

    @abstractmethod
    def embed_images(self, inputs: BackboneInputs) -> Tensor:
        """Projected visual tokens (sum of N_i, D) of all rows, in order."""

    @abstractmethod
    def vision_flops(self, width: int, height: int, num_crops: int | None = None) -> tuple[int, int]:
        """(FLOPs of tower and projector, number of visual tokens) for an image of this size in pixels.

        Raises:
            ImageError: as `prepare_row`.
        """

    @property
    @abstractmethod
    def text_model(self) -> Any:
        """The decoder, with `embed_tokens`, `layers` and a config."""

    @property
    def config(self) -> Any:
        """Of the decoder."""
        return self.text_model.config

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    @property
    def projector(self) -> nn.Module:
        return self.model.get_submodule(self.projector_name)

    def set_projector(self, module: nn.Module) -> None:
        parent, _, name = self.projector_name.rpartition(".")
        setattr(self.model.get_submodule(parent), name, module)

    def vision_features(self, inputs: BackboneInputs) -> Tensor | None:
        """What of `embed_images` does not depend on the projector; None where the two are one."""
        return None

    def position_ids(self, inputs: BackboneInputs) -> Tensor:
        """(B, L), counted without the padding, which is at 1."""
        positions = inputs.attention_mask.cumsum(-1) - 1
        return positions.masked_fill(inputs.attention_mask == 0, 1)

    def prepare(self, images: Sequence[Image], prompts: Sequence[str], num_crops: int | None = None) -> BackboneInputs:
        """A batch of RGB images with their prompts, on the CPU."""
        return self.collate([self.prepare_row(image, prompt, num_crops) for image, prompt in zip(images, prompts)])

    def check_size(self, image: Image, name: str, num_crops: int | None = None) -> None:
        """Tell what `prepare_row` cannot take without preparing it.

        Raises:
            ImageError: naming the image.
        """
        try:
            self.vision_flops(*image.size, num_crops)
        except ImageError as error:
            raise ImageError(f"The image at '{name}' cannot be scored. {error}") from None

    def collate(self, rows: Sequence[Row], padding_side: str = "left") -> BackboneInputs:
        """Pad rows to one length."""

        def pad(values: list[Tensor], value: int) -> Tensor:
            return pad_sequence(values, batch_first=True, padding_value=value, padding_side=padding_side)

        return BackboneInputs(
            input_ids=pad([row.input_ids for row in rows], self.pad_token_id),
            attention_mask=pad([torch.ones_like(row.input_ids) for row in rows], 0),
            image_mask=pad([row.image_mask for row in rows], False),
            pixels=[row.pixels for row in rows],
            image_sizes=[row.image_size for row in rows],
        )

    def forward(
        self,
        inputs: BackboneInputs,
        hidden_layer: int | None = None,
        visual_layer: int | None = None,
        as_coded: bool = False,
    ) -> BackboneOutput:
        """Run the model.

        Args:
            inputs: on the device of the model.
            hidden_layer: index into the hidden states, 0 being the embeddings; None for the last, after its norm.
            visual_layer: take the visual tokens from this hidden state instead of the projector.
            as_coded: reproduce what the released code does with padding.
        """
        visual = self.embed_images(inputs)
        embeddings = self.text_model.embed_tokens(inputs.input_ids.masked_fill(inputs.image_mask, 0))
        visual = visual.to(embeddings.dtype)
        embeddings = embeddings.masked_scatter(inputs.image_mask[..., None], visual)
        output = self.text_model(
            inputs_embeds=embeddings,
            attention_mask=inputs.attention_mask,
            position_ids=self.position_ids(inputs),
            use_cache=False,
            output_hidden_states=hidden_layer is not None or visual_layer is not None,
        )
        hidden = output.last_hidden_state if hidden_layer is None else output.hidden_states[hidden_layer]
        if visual_layer is not None:
            visual = output.hidden_states[visual_layer][inputs.image_mask]
        tokens, mask = self.visual_tokens(inputs, visual, embeddings, as_coded)
        return BackboneOutput(hidden, inputs.attention_mask, tokens, mask)

    def visual_tokens(
        self, inputs: BackboneInputs, visual: Tensor, embeddings: Tensor, as_coded: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Visual tokens (B, N, D) of the batch from those of all rows, with their mask."""
        counts = inputs.image_mask.sum(1)
        tokens = pad_sequence(list(visual.split(counts.tolist())), batch_first=True)
        mask = torch.arange(tokens.shape[1], device=tokens.device) < counts[:, None]
        return tokens, mask


def load_weights(kind: Any, path: str, **options: Any) -> Any:
    """A model of `transformers` by `kind.from_pretrained`, which fills weights that the files lack with random numbers.

    Raises:
        CheckpointError: if a weight is missing or of another shape, or a file is corrupt.
    """
    try:
        # Mismatches are an error all the same, one that names them.
        model, found = kind.from_pretrained(path, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"Could not read the weights of {kind.__name__} in '{path}': {reason}.") from error
    refuse_empty({name: tuple(got) for name, got, _ in found["mismatched_keys"] if 0 in got}, path)
    wrong = [f"{name} is {tuple(got)} instead of {tuple(own)}" for name, got, own in sorted(found["mismatched_keys"])]
    wrong += [f"{name} is missing" for name in sorted(found["missing_keys"])]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"Expected all weights of {kind.__name__} in '{path}', but {', '.join(wrong[:3])}{more}.")
    return model
