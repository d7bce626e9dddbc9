"""How good an image looks, whatever the prompt: five levels of quality, read off a model that sees images.

Question, levels and score: zhiyuanyou/DeQA-Score, src/evaluate/scorer.py, after Q-Align (arXiv 2312.17090).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import qwen_vl
from .base import Images
from .card import RewardCard
from .loading import RewardLoadError
from .local import LocalReward, Source
from .qwen_vqa import KNOWN, load_image_text_model
from .vqa_score import QWEN_FILES


QUESTION = "How would you rate the quality of this image?"
BEGINNING = "The quality of the image is"
"""Of the reply, to be ended with a level."""

LEVELS = {" excellent": 5.0, " good": 4.0, " fair": 3.0, " poor": 2.0, " bad": 1.0}
"""Word that ends the reply -> its score."""


class Quality(LocalReward):
    """Quality in [1, 5], whatever the prompt, as DeQA-Score (You et al., arXiv 2501.11561) reads it off a model.

    It is the mean of the five levels' scores under the model's probabilities for the word that ends "The quality of the
    image is".

    The models are general ones of the Qwen-VL family, licence Apache-2.0: DeQA's own weights
    (zhiyuanyou/DeQA-Score-Mix3) are of an architecture that only remote code defines, mPLUG-Owl2, and cannot be loaded
    here. `path` takes any fine-tuned Qwen-VL, such as one trained as DeQA was. Weights in bfloat16: 17.5 GB of 8.8
    billion, 8.9 GB of 4.4 billion, 4.3 GB of 2.1 billion. The typical range is of the scale, not measured.

    Variants, commits as pinned on the card: 'qwen3-vl-8b' (Qwen/Qwen3-VL-8B-Instruct), 'qwen3-vl-4b'
    (Qwen/Qwen3-VL-4B-Instruct) and 'qwen3-vl-2b' (Qwen/Qwen3-VL-2B-Instruct).

    Args:
        variant: see above.
        path: folder or hub id of the weights; a folder has to hold the tokenizer too unless `tokenizer` is given.
        tokenizer: hub id or folder.
        revision: of a hub id given as `path`.
        device: None for a CUDA device if there is one.
        dtype: None for bfloat16 on CUDA devices and float32 elsewhere.
        compile: run the language model through `torch.compile`.

    Raises:
        ValueError: for an unknown variant, or when called, for an image more than 200 times as long as wide.
        RewardLoadError: if the weights cannot be loaded.
    """

    name = "quality"
    card = RewardCard(
        summary="How good an image looks, whatever the prompt: five levels read off a model, as DeQA does.",
        paper="arXiv 2501.11561",
        files=QWEN_FILES,
        licence="Apache-2.0",
        typical_range=(1.0, 5.0),
        default_lmbda=4.0,
        dtype="bfloat16",
        variants={
            "qwen3-vl-8b": RewardCard(
                summary="Qwen3-VL, 8B parameters.",
                hub_id="Qwen/Qwen3-VL-8B-Instruct",
                weights=8.77,
                revision="0c351dd01ed87e9c1b53cbc748cba10e6187ff3b",
            ),
            "qwen3-vl-4b": RewardCard(
                summary="Qwen3-VL, 4B parameters.",
                hub_id="Qwen/Qwen3-VL-4B-Instruct",
                weights=4.44,
                revision="ebb281ec70b05090aa6165b016eac8ec08e71b17",
            ),
            "qwen3-vl-2b": RewardCard(
                summary="Qwen3-VL, 2B parameters.",
                hub_id="Qwen/Qwen3-VL-2B-Instruct",
                weights=2.13,
                revision="89644892e4d85e24eaac8bacfd4f463576704203",
            ),
        },
    )

    def load(self, source: Source, *, tokenizer: str | None = None) -> tuple[Any, ...]:
        """See `LocalReward`."""
        model = load_image_text_model(source.path, self.name, source.revision, source.dtype)
        if model.config.model_type not in KNOWN:
            raise RewardLoadError(
                f"Expected a model of the Qwen-VL family for the reward '{self.name}', but {source.path!r} is a "
                f"{model.config.model_type!r}."
            )
        words = qwen_vl.load_tokenizer(tokenizer or source.path, self.name, None if tokenizer else source.revision)
        for level in LEVELS:
            if len(words(level).input_ids) != 1:
                raise RewardLoadError(f"Expected the tokenizer of '{self.name}' to have one token for {level!r}.")
        return model, words

    @property
    def compiled(self) -> Iterable[nn.Module]:
        """See `LocalReward`."""
        return (self.model.model.language_model,)

    def read(self, prompts: list[str]) -> Iterable[tuple[Tensor, Tensor]]:
        """Ids before the image of a chat and after it, the same for all prompts."""
        texts = (
            qwen_vl.before_image(self.model.config),
            qwen_vl.VISION_END + QUESTION + qwen_vl.REPLY + BEGINNING,
        )
        before, after = (torch.tensor(self.tokenizer(text).input_ids) for text in texts)
        return [(before, after)] * len(prompts)

    def preprocess(self, images: Images, exact: bool = True) -> tuple[Tensor, Tensor]:
        """Patches and their numbers, see `qwen_vl.image_inputs`."""
        config = self.model.config
        sizes = [partial(qwen_vl.smart_size, factor=qwen_vl.factor_of(config))]
        return qwen_vl.image_inputs(images, config, exact, self.device, self.dtype, sizes)

    def rate(self, inputs: tuple[Tensor, Tensor], prompts: Sequence[str]) -> Tensor:
        """The scores (B,)."""
        patches, grids = inputs
        rows = qwen_vl.with_image_tokens(grids, self.prompts(prompts), self.model.config)
        # On the left, so that the last position is that of the level in every row.
        input_ids, mask = qwen_vl.padded(rows, "left", patches.device)
        logits = self.model(
            input_ids=input_ids,
            attention_mask=mask,
            pixel_values=patches,
            image_grid_thw=grids,
            mm_token_type_ids=qwen_vl.is_image(input_ids, mask, self.model.config),
            use_cache=False,
            logits_to_keep=1,
        ).logits[:, -1]
        words = [self.tokenizer(level).input_ids[0] for level in LEVELS]
        levels = logits[:, words].to(torch.promote_types(logits.dtype, torch.float32))
        return levels.softmax(-1) @ levels.new_tensor(list(LEVELS.values()))
