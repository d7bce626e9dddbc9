"""VQAScore: the probability that a visual question answering model says the image shows the prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from . import clip_flant5, image_text_vqa, qwen_vqa
from .base import Images
from .card import RewardCard
from .clip_flant5 import ClipFlanT5
from .image_text_vqa import ImageTextVQA
from .local import LocalReward, Source
from .qwen_vqa import QwenVQA


T5_FILES = ("config.json", "pytorch_model-*.bin", "pytorch_model.bin.index.json")
QWEN_FILES = ("config.json", "generation_config.json", "model-*.safetensors", "tokenizer.json")


class VQAScore(LocalReward):
    """Probability of "Yes" to "Does this figure show <prompt>?" (Lin et al., arXiv 2404.01291); 0 to 1.

    Variants, commits as pinned on the card:
        - 'clip-flant5-xxl' (11B, the paper's) and 'clip-flant5-xl' (3B): zhiqiulin/clip-flant5-xxl and
          zhiqiulin/clip-flant5-xl, licence Apache-2.0; tokenizer google/flan-t5-xxl.
        - 'qwen2.5-vl-7b' and 'qwen2.5-vl-3b': Qwen/Qwen2.5-VL-7B-Instruct, licence Apache-2.0, and
          Qwen/Qwen2.5-VL-3B-Instruct, Qwen research licence.
        - 'qwen3-vl-8b', 'qwen3-vl-4b' and 'qwen3-vl-2b': Qwen/Qwen3-VL-8B-Instruct, Qwen/Qwen3-VL-4B-Instruct and
          Qwen/Qwen3-VL-2B-Instruct, licence Apache-2.0.
        - 'any': the model of images and text that `path` names, whatever its class, such as google/gemma-3-4b-it or
          Qwen/Qwen3.5-4B; it is asked through its own processor and chat template, so that there are no gradients.

    What 'probability' means differs between the published code and the formula of the paper:
        - 'published': for CLIP-FlanT5 the root of P("Yes") P(end of text | "Yes"); for the others P("Yes") after the
          repetition penalty of their generation settings, if they have one; Qwen2.5-VL's lowers it because the question
          contains the word.
        - 'plain': P("Yes").

    Args:
        variant: one of the above.
        probability: 'published' or 'plain'.
        path: folder or hub id of the weights; a folder has to hold the tokenizer too unless `tokenizer` is given.
        tokenizer: hub id or folder; with 'any' of the whole processor.
        revision: of a hub id given as `path`.
        device: None for a CUDA device if there is one.
        dtype: None for bfloat16 on CUDA devices, as the original, and float32 elsewhere.
        compile: run the models through `torch.compile`.

    Raises:
        ValueError: for an unknown variant or probability.
        RewardLoadError: if the weights cannot be loaded.
    """

    name = "vqa-score"
    card = RewardCard(
        summary='Probability that a model answers "Yes" when asked whether the image shows the prompt.',
        paper="arXiv 2404.01291",
        typical_range=(0.0, 1.0),
        licence="Apache-2.0",
        default_lmbda=10.0,
        dtype="bfloat16",
        variants={
            "clip-flant5-xxl": RewardCard(
                summary="The published model, 11B parameters.",
                hub_id="zhiqiulin/clip-flant5-xxl",
                weights=11.45,
                files=T5_FILES,
            ),
            "clip-flant5-xl": RewardCard(
                summary="Its smaller sibling, 3B parameters.",
                hub_id="zhiqiulin/clip-flant5-xl",
                weights=3.15,
                files=T5_FILES,
                revision="2cee5afb3386792d9b21066a89232687dfce2c62",
            ),
            "qwen2.5-vl-7b": RewardCard(
                summary="Qwen2.5-VL, 7B parameters.",
                hub_id="Qwen/Qwen2.5-VL-7B-Instruct",
                weights=8.29,
                files=QWEN_FILES,
                revision="cc594898137f460bfe9f0759e9844b3ce807cfb5",
            ),
            "qwen2.5-vl-3b": RewardCard(
                summary="Qwen2.5-VL, 3B parameters.",
                hub_id="Qwen/Qwen2.5-VL-3B-Instruct",
                weights=3.75,
                files=QWEN_FILES,
                revision="66285546d2b821cf421d4f5eb2576359d3770cd3",
                licence="Qwen research licence, not for commercial use",
            ),
            "qwen3-vl-8b": RewardCard(
                summary="Qwen3-VL, 8B parameters.",
                hub_id="Qwen/Qwen3-VL-8B-Instruct",
                weights=8.77,
                files=QWEN_FILES,
                revision="0c351dd01ed87e9c1b53cbc748cba10e6187ff3b",
            ),
            "qwen3-vl-4b": RewardCard(
                summary="Qwen3-VL, 4B parameters.",
                hub_id="Qwen/Qwen3-VL-4B-Instruct",
                weights=4.44,
                files=QWEN_FILES,
                revision="ebb281ec70b05090aa6165b016eac8ec08e71b17",
            ),
            "qwen3-vl-2b": RewardCard(
                summary="Qwen3-VL, 2B parameters.",
                hub_id="Qwen/Qwen3-VL-2B-Instruct",
                weights=2.13,
                files=QWEN_FILES,
                revision="89644892e4d85e24eaac8bacfd4f463576704203",
            ),
            "any": RewardCard(summary="Any model of images and text, given by its path.", licence="the model's own"),
        },
    )
    model: ClipFlanT5 | QwenVQA | ImageTextVQA
    probability: str = "published"

    def load(
        self, source: Source, *, tokenizer: str | None = None, probability: Literal["published", "plain"] = "published"
    ) -> tuple[Any, ...]:
        """See `LocalReward`."""
        if probability not in ("published", "plain"):
            raise ValueError(f"Expected `probability` to be 'published' or 'plain', but got {probability!r}.")
        self.probability = probability
        module: Any = {T5_FILES: clip_flant5, QWEN_FILES: qwen_vqa}.get(source.card.files, image_text_vqa)
        return module.load(source, tokenizer, self.name)

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """Whether `score` has gradients: with all but the variant 'any'."""
        return self.model.differentiable

    @property
    def compiled(self) -> Iterable[nn.Module]:
        """See `LocalReward`."""
        return self.model.compiled

    def read(self, prompts: list[str]) -> Iterable[Any]:
        """Tokens of the question and the answer."""
        return [self.model.tokenize(self.tokenizer, prompt) for prompt in prompts]

    def preprocess(self, images: Images, exact: bool = True) -> Any:
        """What the model takes, see the models' `preprocess`."""
        return self.model.preprocess(images, exact, self.device, self.dtype)

    def rate(self, inputs: Any, prompts: Sequence[str]) -> Tensor:
        """The probabilities (B,)."""
        return self.model.answer_probability(inputs, self.prompts(prompts), self.probability == "plain")
