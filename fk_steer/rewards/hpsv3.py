"""HPSv3: a Qwen2-VL trained on people's preferences between images of many models and photographs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..published import Source as PublishedFile
from . import qwen_vl
from .base import Images
from .card import RewardCard
from .loading import RewardLoadError, assign_weights, empty, fetch, read_weights
from .local import LocalReward, Source
from .rubric import REWARD_TOKEN, Rubric
from .wording import Template


BACKBONE = ("Qwen/Qwen2-VL-7B-Instruct", "eed13092ef92e448dd6875b2a00151bd3f7db0ac")
"""Whose tokenizer is used."""

PIXELS = 256 * 28 * 28
"""Of an image, about."""

_WHEEL = "20/ed/6feb979b0086f57dc7a8b545693e1dbeffd60c8d942971e0445c65fcf438/hpsv3-1.0.0-py3-none-any.whl"
RUBRIC = Rubric(
    PublishedFile(
        "the words of HPSv3",
        f"https://files.pythonhosted.org/packages/{_WHEEL}",
        "1a1b3ed1f538315ddf0e90c55b9f5c8ab3248d772cd713c11f7dfe35bf867ab3",
    ),
    "eec53640fa8b722d1bc98497f3697eb7d0ad13afc6ced5936ee3bafc38b6e7f8",
    "hpsv3.txt",
    "hpsv3/dataset/data_collator_qwen.py",
)
"""In the package that its authors published."""

UNUSED = ("lm_head.weight",)


class HPSv3Model(nn.Module):
    """A Qwen2-VL and the mean of its belief about a reward.

    Args:
        config: a `Qwen2VLConfig`.
    """

    def __init__(self, config: Any) -> None:
        from transformers import Qwen2VLModel

        super().__init__()
        self.qwen = Qwen2VLModel(config)
        self.rm_head = head(config.text_config.hidden_size)

    def forward(self, patches: Tensor, grids: Tensor, rows: Sequence[Tensor]) -> Tensor:
        """(N, P), (B, 3), B rows of ids, the last of each the token of the reward -> (B,)."""
        input_ids, mask = qwen_vl.padded(rows, "right", patches.device)
        # As the original: tokens are counted, those of images too, in place of Qwen2-VL's own rows and columns.
        positions = torch.arange(input_ids.shape[1], device=patches.device).expand(3, *input_ids.shape)
        hidden = self.qwen(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            pixel_values=patches,
            image_grid_thw=grids,
            mm_token_type_ids=qwen_vl.is_image(input_ids, mask, self.qwen.config),
            use_cache=False,
        ).last_hidden_state
        return self.rm_head(at_the_end(hidden, mask, self.rm_head))[:, 0]


def head(width: int) -> nn.Sequential:
    """Hidden states to mean and spread of the reward; the place of the dropout, which is off, keeps the numbering."""
    return nn.Sequential(
        nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
    )


def at_the_end(hidden: Tensor, mask: Tensor, head: nn.Sequential) -> Tensor:
    """The states (B, D) of the last tokens of rows padded on the right, in the precision of a head."""
    last = hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
    return last.to(next(head.parameters()).dtype)


def to_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by `HPSv3Model`'s names, from those of HPSv3.safetensors, without those that scoring does not use."""
    renamed = {}
    for name, value in weights.items():
        if name.startswith("visual."):
            name = f"qwen.{name}"
        elif name.startswith("model."):
            name = f"qwen.language_model.{name.removeprefix('model.')}"
        if name not in UNUSED:
            renamed[name] = value
    return renamed


class RubricReward(LocalReward):
    """What HPSv3 and HPSv3++ share: one chat per image, a rubric, and a head at the token of the reward.

    Attributes:
        rubric: what the checkpoint was trained with.
    """

    rubric: ClassVar[Rubric]

    @cached_property
    def template(self) -> Template:
        """The text of a chat up to the token of the reward; our own words for a reward of modules in memory."""
        return self.rubric.own_words

    @property
    def record(self) -> dict[str, str]:
        """What it asks with, for the records of runs."""
        return {
            "variant": self.variant,
            "template": self.template.origin,
            "template sha256": self.template.sha256,
        }

    def words(self, source: Source, template: str | Path | None) -> Template:
        """What to ask with, which is had before weights are downloaded; but weights that lie nowhere are said first.

        Raises:
            RewardLoadError: if either is not there.
        """
        place = Path(source.path)
        if source.given and place.is_absolute() and not place.exists():
            fetch(source.path, self.card.files[0], self.name, source.revision)
        return self.rubric.template(self.name, template)

    def load_words(self, source: Source, tokenizer: str | None, pinned: tuple[str, str], vocabulary: int) -> Any:
        """The tokenizer with the token of the reward: another's, that of a folder that has one, or the backbone's.

        Raises:
            RewardLoadError: if the model knows another number of tokens.
        """
        own = source.given and (Path(source.path) / "tokenizer.json").exists()
        place = tokenizer or (source.path if own else pinned[0])
        words = qwen_vl.load_tokenizer(place, self.name, pinned[1] if place == pinned[0] else None)
        words.add_special_tokens({"additional_special_tokens": [REWARD_TOKEN]})
        if len(words) != vocabulary:
            raise RewardLoadError(
                f"Expected the tokenizer of the reward '{self.name}' to have {vocabulary} tokens with {REWARD_TOKEN}, "
                f"as many as its model, but that in {place!r} has {len(words)}."
            )
        return words

    def place(self) -> None:
        """The heads are never rounded to half precision, as in the original."""
        for name, part in self.model.named_children():
            part.to(self.device, self.dtype if name == "qwen" else torch.promote_types(self.dtype, torch.float32))

    @property
    def compiled(self) -> Iterable[nn.Module]:
        """See `LocalReward`."""
        return (self.model.qwen.language_model,)

    @property
    def sizes(self) -> list[Any]:
        """See `qwen_vl.image_inputs`."""
        factor = qwen_vl.factor_of(self.model.qwen.config)
        return [partial(qwen_vl.smart_size, factor=factor, min_pixels=PIXELS, max_pixels=PIXELS)]

    def read(self, prompts: list[str]) -> Iterable[tuple[Tensor, Tensor]]:
        """Ids before the image of a chat and after it, for each prompt."""
        before = torch.tensor(self.tokenizer(qwen_vl.before_image(self.model.qwen.config)).input_ids)
        marks = [qwen_vl.mark(self.tokenizer, name, self.name) for name in (qwen_vl.VISION_END, REWARD_TOKEN)]
        for prompt in prompts:
            text = qwen_vl.token_ids(self.tokenizer, self.template.text.replace("{prompt}", prompt))
            yield before, torch.cat([marks[0], text, marks[1]])

    def preprocess(self, images: Images, exact: bool = True) -> tuple[Tensor, Tensor]:
        """Patches and their numbers, see `qwen_vl.image_inputs`."""
        return qwen_vl.image_inputs(images, self.model.qwen.config, exact, self.device, self.dtype, self.sizes)

    def rate(self, inputs: tuple[Tensor, Tensor], prompts: Sequence[str]) -> Tensor:
        """The rewards (B,)."""
        rows = qwen_vl.with_image_tokens(inputs[1], self.prompts(prompts), self.model.qwen.config)
        return self.model(*inputs, rows)


class HPSv3(RubricReward):
    """Human Preference Score v3 (Ma et al., arXiv 2508.03789): general human preference, by a Qwen2-VL-7B finetuned on
    HPDv3; the authors' table of models has means from -0.2 (Stable Diffusion 2) to 10.6 (Kolors).

    The image, scaled to about 200,704 pixels, and the prompt in a rubric of visual quality and alignment; a head of
    three layers at the token <|Reward|> gives mean and standard deviation of the reward, of which the mean counts.
    Weights: MizzenAI/HPSv3 (HPSv3.safetensors, 16.6 GB), commit as pinned on the card, licence MIT; tokenizer of
    Qwen/Qwen2-VL-7B-Instruct, Apache-2.0. 7.7 billion weights, without
    the output layer, take 15.5 GB in bfloat16.

    As in the published code, image tokens are counted like words (Qwen2-VL itself gives them rows and columns): the
    weights were trained so. Special tokens in a prompt are read as plain text.

    The words of the rubric are not part of this package: they are read from the authors' package on PyPI (hpsv3 1.0.0),
    fetched once with a checksum.

    Args:
        variant: 'v3', the only one published.
        path: file, folder or hub id of the weights; a folder may hold a config.json for a backbone of another size, and
            a tokenizer in place of Qwen2-VL's.
        tokenizer: hub id or folder.
        template: what to ask with, see `Rubric.template`: None or 'published' for the published words, 'ours' for our
            own, with which it is another reward, or a file.
        revision: of a hub id given as `path`.
        device: None for a CUDA device if there is one.
        dtype: of the backbone; None for bfloat16 on CUDA devices, as the original, and float32 elsewhere. The head runs
            in float32 or better.
        compile: run the language model through `torch.compile`.

    Attributes:
        template: the `Template` that is asked with.

    Raises:
        ValueError: for an unknown variant, a template without the placeholder, or when called, for an image more than
            200 times as long as wide.
        RewardLoadError: if the weights or the published words cannot be had.
    """

    name = "hpsv3"
    card = RewardCard(
        summary="Human Preference Score v3: a Qwen2-VL trained on people's preferences over HPDv3.",
        paper="arXiv 2508.03789",
        hub_id="MizzenAI/HPSv3",
        files=("HPSv3.safetensors",),
        revision="4f81e3e09edd82fe3c5f636444c721b592a735ca",
        licence="MIT",
        typical_range=(-1.0, 12.0),
        default_lmbda=1.0,
        dtype="bfloat16",
        weights=7.75,
        variants={"v3": RewardCard(summary="The published model.")},
    )
    rubric = RUBRIC
    model: HPSv3Model

    def load(
        self, source: Source, *, tokenizer: str | None = None, template: str | Path | None = None
    ) -> tuple[Any, ...]:
        """See `LocalReward`."""
        from transformers import Qwen2VLConfig

        self.template = self.words(source, template)
        file = fetch(source.path, self.card.files[0], self.name, source.revision)
        weights = to_transformers(read_weights(file, self.name))
        vocabulary = len(weights.get("qwen.language_model.embed_tokens.weight", ()))
        config = qwen_vl.config_for(Qwen2VLConfig, file.parent, qwen_vl.QWEN2_VL_7B, vocabulary)
        model = empty(lambda: HPSv3Model(config))
        assign_weights(model, weights, file, self.name)
        return model, self.load_words(source, tokenizer, BACKBONE, vocabulary)
