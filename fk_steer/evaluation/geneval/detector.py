"""The detectors of GenEval's evaluation: what GenEval's rules need to know about an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ...rewards.loading import default_device, load_pretrained
from ..prompts import CLASSES
from .colours import CLIP, ColourClassifier, cutout
from .rules import Box, Detection


MASK2FORMER = "facebook/mask2former-swin-small-coco-instance"

# ImageNet's, for pixels in [0, 1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Detector(Protocol):
    """Finds objects in images."""

    def detect(self, image: Image.Image, task: str) -> dict[str, list[Detection]]:
        """Class -> its detections that count, most confident first.

        Args:
            image: RGB.
            task: GenEval's tag of the image; the threshold may depend on it.
        """
        ...

    def colour_of(self, image: Image.Image, name: str, detection: Detection) -> str:
        """The colour of a detected object of a class."""
        ...


@dataclass(frozen=True)
class MaskedDetection(Detection):
    """A detection with its pixels, (H, W) bool."""

    mask: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), bool), compare=False, repr=False)


@dataclass(frozen=True)
class Selection:
    """Which detections count; the defaults are those of GenEval's evaluator.

    Attributes:
        threshold: a detection must be more confident than this.
        counting_threshold: the same for the task 'counting'.
        max_objects: per class, the most confident ones.
        max_overlap: drop detections whose box overlaps that of a more confident one of the class to this intersection
            over union or more; 1 keeps all.
    """

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0

    def __call__(self, detections: Sequence[Any], task: str) -> list[Any]:
        """The detections of one class that count, most confident first."""
        threshold = self.counting_threshold if task == "counting" else self.threshold
        found = sorted((one for one in detections if one.score > threshold), key=lambda one: -one.score)
        kept: list[Any] = []
        for one in found[: self.max_objects]:
            if self.max_overlap == 1.0 or all(overlap(one.box, other.box) < self.max_overlap for other in kept):
                kept.append(one)
        return kept


def overlap(box: Box, other: Box) -> float:
    """Intersection over union of boxes whose right and bottom pixels belong to them, as GenEval counts."""

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(right - left + 1, 0) * max(bottom - top + 1, 0)

    shared = area(max(box[0], other[0]), max(box[1], other[1]), min(box[2], other[2]), min(box[3], other[3]))
    union = area(*box) + area(*other) - shared
    return shared / union if union else 0.0


class Mask2FormerDetector:
    """Mask2Former (Cheng et al., arXiv 2112.01527), with MMDetection's preprocessing and its scores, boxes and masks;
    GenEval's evaluator runs the model there.

    The weights are those that the model's authors released. MMDetection trained its own, so that scores near a
    threshold may fall on the other side. The post-processing of Transformers' own processor is no substitute: it
    resizes to 384 x 384 and keeps one object per pixel.

    Args:
        path: hub id or folder of a `Mask2FormerForUniversalSegmentation` trained on COCO's 80 classes.
        clip: hub id or folder of the `CLIPModel` that tells colours.
        device: None for a CUDA device if there is one.
        selection: which detections count.
        side: the shorter side of an image is scaled to this,
        longest_side: unless the longer one would then exceed this.

    Raises:
        ValueError: if the model has other classes.
        RewardLoadError: if weights cannot be loaded.
    """

    def __init__(
        self,
        path: str = MASK2FORMER,
        clip: str = CLIP,
        device: torch.device | str | None = None,
        selection: Selection | None = None,
        side: int = 800,
        longest_side: int = 1333,
    ) -> None:
        from transformers import Mask2FormerForUniversalSegmentation

        self.device = default_device(device)
        self.selection = selection or Selection()
        self.side, self.longest_side = side, longest_side
        self.model = load_pretrained(Mask2FormerForUniversalSegmentation, path, "geneval", dtype=torch.float32)
        self.model.to(self.device).eval().requires_grad_(False)
        _check_classes(self.model.config)
        self._colours = ColourClassifier(clip, self.device)

    @torch.no_grad()
    def detect(self, image: Image.Image, task: str) -> dict[str, list[Detection]]:
        """See `Detector`."""
        pixels, size = detector_pixels(image, self.side, self.longest_side)
        output = self.model(pixel_values=pixels[None].to(self.device))
        scores, labels, boxes, masks = instances(
            output.class_queries_logits[0],
            output.masks_queries_logits[0],
            padded=(pixels.shape[-2], pixels.shape[-1]),
            scaled=size,
            original=(image.height, image.width),
        )
        # Masks are large; most detections are far below any threshold.
        candidates = scores > min(self.selection.threshold, self.selection.counting_threshold)
        found: dict[str, list[Detection]] = {}
        for score, label, box, mask in zip(
            scores[candidates].tolist(),
            labels[candidates].tolist(),
            boxes[candidates].tolist(),
            masks[candidates].cpu().numpy(),
        ):
            found.setdefault(CLASSES[label], []).append(MaskedDetection((*box,), score, mask=mask))
        selected = {name: self.selection(some, task) for name, some in found.items()}
        return {name: some for name, some in selected.items() if some}

    def colour_of(self, image: Image.Image, name: str, detection: Detection) -> str:
        """See `Detector`."""
        assert isinstance(detection, MaskedDetection)
        return self._colours(cutout(image, detection.box, detection.mask), name)


class ShapesDetector:
    """The exact detector of the bundled world. It names colours itself, and its confidence, which says how clean a
    silhouette is, needs no other threshold for counting."""

    def detect(self, image: Image.Image, task: str) -> dict[str, list[Detection]]:
        """See `Detector`."""
        from ...shapes.detector import detect

        return detect(image)

    def colour_of(self, image: Image.Image, name: str, detection: Detection) -> str:
        """See `Detector`."""
        assert detection.colour is not None
        return detection.colour


def detector_pixels(image: Image.Image, side: int = 800, longest_side: int = 1333) -> tuple[Tensor, tuple[int, int]]:
    """What MMDetection feeds the model.

    Returns:
        (3, H, W) float32, normalised, padded with 0 on the right and at the bottom to multiples of 32; and the height
        and width before the padding.
    """
    scale = min(side / min(image.size), longest_side / max(image.size))
    width, height = (int(length * scale + 0.5) for length in image.size)
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))
    return F.pad((pixels - mean) / std, (0, -width % 32, 0, -height % 32)), (height, width)


def instances(
    class_logits: Tensor,
    mask_logits: Tensor,
    padded: tuple[int, int],
    scaled: tuple[int, int],
    original: tuple[int, int],
    number: int = 100,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scored boxes and masks from the model's output for one image, as MMDetection makes them (instance_postprocess
    in mmdet/models/seg_heads/panoptic_fusion_heads/maskformer_fusion_head.py).

    A query may be reported under several classes. The score is the class probability times the mean probability of the
    mask's pixels.

    Args:
        class_logits: (Q, C + 1), the last for no object.
        mask_logits: (Q, h, w).
        padded: (height, width) of the input.
        scaled: the same without its padding.
        original: (height, width) of the image.
        number: the most probable pairs of query and class to report; all if there are fewer.

    Returns:
        scores (N,), labels (N,) in 0 to C - 1, boxes (N, 4) as (left, top, right, bottom) in pixels of the image, right
        and bottom exclusive and all 0 for an empty mask, and masks (N, height, width) bool.
    """
    probabilities = class_logits.softmax(-1)[:, :-1]
    classes = probabilities.shape[1]
    probabilities, indices = probabilities.flatten().topk(min(number, probabilities.numel()))
    queries, labels = indices // classes, indices % classes
    # Each query once, however many classes it is reported under.
    distinct, places = queries.unique(return_inverse=True)
    logits = _resize(mask_logits[distinct], padded)[..., : scaled[0], : scaled[1]]
    logits = _resize(logits, original)
    masks = logits > 0
    confidences = (logits.sigmoid() * masks).sum((1, 2)) / (masks.sum((1, 2)) + 1e-6)
    boxes = torch.stack([*_extent(masks.any(1)), *_extent(masks.any(2))], 1)[:, [0, 2, 1, 3]]
    return probabilities * confidences[places], labels, boxes[places], masks[places]


def _resize(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]


def _extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First index of a True, and one after the last, in each row of (N, L); both 0 where there is none."""
    some, last = occupied.any(1), occupied.shape[1]
    occupied = occupied.int()
    first, end = occupied.argmax(1), last - occupied.flip(1).argmax(1)
    return (first * some).float(), (end * some).float()


def _check_classes(config: Any) -> None:
    """Classes are told by their place; a name that says otherwise means another list."""
    labels = [config.id2label[index] for index in range(config.num_labels)]
    misplaced = [label for place, label in enumerate(labels) if label in CLASSES and CLASSES.index(label) != place]
    if len(labels) != len(CLASSES) or misplaced:
        raise ValueError(
            f"Expected a detector of COCO's {len(CLASSES)} classes in their usual order, but got {len(labels)} "
            f"classes: {', '.join(labels[:3])}, ..."
        )
