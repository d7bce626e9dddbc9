"""The prompts that the checkpoints were trained with, read from the scripts they were published in.

A script is parsed and never run. It is fetched once, at one commit and with a checksum; where it cannot be had, our own
words ask for the same (`rewards/chat/templates`), and the record says so.
"""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from llava_reward_guide.texts import read_text

from ....published import Source
from ... import wording
from ...wording import Template, check_fields, our_words, parse_script
from ..judge import TEMPLATES


COMMIT = "ff6f520247a2d36e2aff7b2ba53a935afd437f66"
REPOSITORY = f"https://raw.githubusercontent.com/CodeGoat24/UnifiedReward/{COMMIT}"

# fmt: off
PUBLISHED: dict[tuple[str, str], tuple[str, str]] = {
    ("llava", "point"): (
        "inference_llava/image_generation/point_score_image_generation.py",
        "f3d5eba5421697dbbeb703c21f463aab652e72453f8a7a1654c272d6e94cf0cc",
    ),
    ("llava", "axes"): (
        "inference_llava/image_generation/point_score_ACS_image_generation.py",
        "535fe2b1a3b482f49dc9d49eb718702e8510833b41ca0ca7405b9f6e65a33b92",
    ),
    ("llava", "pair"): (
        "inference_llava/image_generation/pair_rank_image_generation.py",
        "a21e1898b5f22e9f84e051e313654df9a49928a4cae84eff6f85e9efd102c47b",
    ),
    ("llava", "video"): (
        "inference_llava/video_generation/point_score_video_generation.py",
        "83727e1a25f6a08e9b34d63711a83539ba0e88e2d9fd2a5f83e30823305abcb7",
    ),
    ("llava", "video-pair"): (
        "inference_llava/video_generation/pair_rank_video_generation.py",
        "e9ee5a4ae7193ddff9f1e09677b06a347cc48d2836686e9b0ce4353332660b71",
    ),
    ("llava", "answer"): (
        "inference_llava/image_understanding/point_score_image_understanding.py",
        "52db17e00475cc421546e61dc759b8361fd0136b3c9b59b46b050e7c3a2e0b33",
    ),
    ("llava", "answer-pair"): (
        "inference_llava/image_understanding/pair_rank_image_understanding.py",
        "09902311fcab469a447e2682d832c9200efa974fba736dfb3ae6b4f82b3271d5",
    ),
    ("llava", "video-answer"): (
        "inference_llava/video_understanding/point_score_video_understanding.py",
        "21d91b918a56c21bba8532bf9b881d6da79108a8c9f2b2f8131c723f692121be",
    ),
    # The script beside the others has a typing error and is no Python; the benchmark's asks in words of its own.
    ("llava", "video-answer-pair"): (
        "benchmark_evaluation/LLaVA_evaluation/test_llava_video_understanding_assessment.py",
        "1a11c6eb3e4b3ca3714bdb3dc9e504c178053abc15033ea2998d8e3144594da3",
    ),
    ("qwen", "point"): (
        "inference_qwen/image_generation/qwen_point_score_image_generation.py",
        "5c8c2efcb7f07283a3a4b3685043e2da0ee909c876829a9edbe4938a4881971c",
    ),
    ("qwen", "axes"): (
        "inference_qwen/image_generation/qwen_point_score_ACS_image_generation.py",
        "8abf36eecd7016170c282fcd7223142adb4bf40c7db0d83d0bc26a6f19594449",
    ),
    ("qwen", "pair"): (
        "inference_qwen/image_generation/qwen_pair_rank_image_generation.py",
        "6e574817f88b86542a1de1cd0201dd5754f6d292ab1fc8a4d4a73501412bd5ac",
    ),
    ("qwen", "video"): (
        "inference_qwen/video_generation/qwen_point_score_video_generation.py",
        "0900194fa091899a3cc85dcea2b03a9d55ceacc3f57fc2618db478837dca45a4",
    ),
    ("qwen", "video-pair"): (
        "inference_qwen/video_generation/qwen_pair_rank_video_generation.py",
        "ef374d740464127ca60db5555e823ac2b2cf28ad3eec194f168863f1e69486ca",
    ),
    ("qwen", "answer"): (
        "inference_qwen/image_understanding/qwen_point_score_image_understanding.py",
        "62ef6f0ee50afb664e04a6cc929cdc49a42685922ebdc598146c9d1f70498f57",
    ),
    ("qwen", "answer-pair"): (
        "inference_qwen/image_understanding/qwen_pair_rank_image_understanding.py",
        "32c2085162f93a155e7204e380b36a82e4ecec44fa1fc94cb3e8ccd67e9e8d8e",
    ),
    ("qwen", "video-answer"): (
        "inference_qwen/video_understanding/qwen_point_score_video_understanding.py",
        "f96c8cabdec3027ebb474c5e1435768212851fc1cc1a561fed2923dc7cf6622f",
    ),
    ("qwen", "video-answer-pair"): (
        "inference_qwen/video_understanding/qwen_pair_rank_video_understanding.py",
        "b063e1a546bc5824230fff6ead5b7693228da85182e0c05d1b04703fcf2f42d7",
    ),
    ("2.0", "axes"): (
        "inference_qwen/UnifiedReward-2.0-inference/point_score_ACS_image_generation.py",
        "fa67c436c6742084b43581d17bf3c98fa53aad5816ccd5ec39717c27c2a1dfa3",
    ),
    ("2.0", "pair-scores"): (
        "inference_qwen/UnifiedReward-2.0-inference/pair_score_image_generation.py",
        "0560fa85dfbd5861b3298b877bbdff064b135e17314b8c18fbe490d734aca567",
    ),
    ("2.0", "video-axes"): (
        "inference_qwen/UnifiedReward-2.0-inference/point_score_APS_video_generation.py",
        "a901e1b0df28a26988cd22778a25868a68f1f2cf8f56f4d665b21fd1f8229ab7",
    ),
    ("2.0", "video-pair-scores"): (
        "inference_qwen/UnifiedReward-2.0-inference/pair_score_video_generation.py",
        "aef091a9eed77a19286fea72ef0f5fca5dbbb09d906167a690b6dcd508afc1ea",
    ),
    ("think-llava", "think"): (
        "UnifiedReward-Think/inference_llava/image_generation/infer_cot_image_generation.py",
        "7affd52e1251b51521c2fdb6eb3b179e700bef40ae098e132df191ae747f7b12",
    ),
    ("think-llava", "video-think"): (
        "UnifiedReward-Think/inference_llava/video_generation/infer_cot_video_generation.py",
        "2b5d551ad252dfa5fc3eb160c3134a4ace11f9cb5882bd2ab04cf6ebb6319341",
    ),
    ("think-llava", "answer-think"): (
        "UnifiedReward-Think/inference_llava/image_understanding/infer_cot_image_understanding.py",
        "0b21f781ca27b4adfca318ae24f75cc0c008697e4912dd2df658962f3ea8d3dd",
    ),
    ("think-llava", "video-answer-think"): (
        "UnifiedReward-Think/inference_llava/video_understanding/infer_cot_video_understanding.py",
        "cbdf1feeb01c9dbd9863af54b9a359abb8472e0b231d518b446a88c6ea1b94d7",
    ),
    ("think-qwen", "think"): (
        "UnifiedReward-Think/inference_qwen/image_generation/qwen_infer_cot_image_generation.py",
        "a9d33d0c19975461931834d0630ec1cc5db4d354baaae578c7618cbe514269e4",
    ),
    ("think-qwen", "video-think"): (
        "UnifiedReward-Think/inference_qwen/video_generation/qwen_infer_cot_video_generation.py",
        "c2ae65a2aa5fac97b4447ce5fe65f20dc1f822811bae1daeaa71bcd23a20525f",
    ),
    ("think-qwen", "answer-think"): (
        "UnifiedReward-Think/inference_qwen/image_understanding/qwen_infer_cot_image_understanding.py",
        "9a7c6d50583a908cfd286be3b5974354a4bac2ce2f05a5e9b6bc3c28c244d2a9",
    ),
    ("think-qwen", "video-answer-think"): (
        "UnifiedReward-Think/inference_qwen/video_understanding/qwen_infer_cot_video_understanding.py",
        "6f69dcddd1669646f92660d35edbdeaa57430c3a575b245a827d981e800b3a58",
    ),
    ("think-qwen3", "think"): (
        "UnifiedReward-Think/inference_qwen/UnifiedReward-Think-qwen3-inference/qwen3_infer_cot_image_generation.py",
        "bffcd30e553292ec3c0a09e3e9ce047704f5de9071314620fb79a9c89c66c902",
    ),
    ("think-qwen3", "video-think"): (
        "UnifiedReward-Think/inference_qwen/UnifiedReward-Think-qwen3-inference/qwen3_infer_cot_video_generation.py",
        "e0a3521a00fe0e168acb444124b0f6a80328c14a2136c388379424440e7b4a33",
    ),
    ("think-qwen3", "answer-think"): (
        "UnifiedReward-Think/inference_qwen/UnifiedReward-Think-qwen3-inference/qwen3_infer_cot_image_understanding.py",
        "4dc7233d36a4c125c9610423a5e124523e78eea5eaf40a7e2aff0516b9ae116a",
    ),
    ("think-qwen3", "video-answer-think"): (
        "UnifiedReward-Think/inference_qwen/UnifiedReward-Think-qwen3-inference/qwen3_infer_cot_video_understanding.py",
        "e1799a8e73e8832f85ebdd5fc8466ea88c123d75a8b63f151ff6967462900bd2",
    ),
    ("flex", "flex"): (
        "UnifiedReward-Flex/flex_pair_rank_image_generation.py",
        "88e955b1a54c74e5d41fa949f71be0de65e976df8110d021c31d683c37e8e264",
    ),
    ("flex", "video-flex"): (
        "UnifiedReward-Flex/flex_pair_rank_video_generation.py",
        "fb1ea44bd24f77bf78a87222d634dc25a9e6ee06d7254f02a3c2b93c23801096",
    ),
    ("edit", "edit"): (
        "UnifiedReward-Edit/edit_pointwise_instruction_following.py",
        "fc27991f59a91eaf83cfa4630e4dcaefb901678c153ec9ae7507cd30280d4115",
    ),
    ("edit", "edit-quality"): (
        "UnifiedReward-Edit/edit_pointwise_quality.py",
        "985898661f905192ea3193e2e9d1ec2fb12bec222c30c56d314f7b5cf40ac2d6",
    ),
    ("edit", "edit-pair"): (
        "UnifiedReward-Edit/edit_pairwise_rank.py",
        "9d2eb2ab52105572595af990cb35df1b74f452a0892d55cfa00f70347c836e7b",
    ),
    ("edit", "edit-pair-scores"): (
        "UnifiedReward-Edit/edit_paiwise_score.py",
        "a95de7746c5e8d48f41d5a72a555ca5e2c02906f8dc5cb7978cd7e69bf203747",
    ),
}
# fmt: on
"""(style, task) -> script in the repository and its SHA-256."""

NAMES = {
    "prompt": "prompt",
    "caption": "prompt",
    "instruction": "prompt",
    "Query": "question",
    "R1": "first",
    "R2": "second",
    "Response": "answer",
}
"""Variable of the scripts -> placeholder of a template."""

logger = logging.getLogger(__name__)
_warned: list[str] = []
"""What was said in this process of our own words being asked instead; it is said once."""


def template_of(
    task: str, styles: Sequence[str], fields: Sequence[str], template: str | Path | None = None
) -> Template:
    """The template of a task.

    Args:
        styles: of the checkpoint's family, see `PUBLISHED`.
        fields: placeholders that it must have.
        template: 'ours'; 'published', which must be had; a text file with the placeholders; a script of the form of the
            published ones (.py), which is parsed; or None for what was published if it can be had, else ours.

    Raises:
        OSError: if the file is not there, or 'published' cannot be had.
        ValueError: if it holds no such prompt.
    """
    if template in (None, "published"):
        try:
            return _published(task, styles, fields, retry=template == "published")
        except OSError as error:
            if template is not None:
                raise
            if not _warned:
                logger.warning("%s Asking in our own words, which the records say.", error)
                _warned.append(str(error))
    if template in (None, "ours"):
        return our_words(TEMPLATES / f"unified-reward-{task}.txt", fields)
    text = read_text(str(template))
    text = prompt_in_script(text, fields, str(template)) if Path(str(template)).suffix == ".py" else text.strip()
    check_fields(text, fields, str(template))
    return Template(text, str(template))


def prompt_in_script(script: str, fields: Sequence[str], where: str) -> str:
    """The prompt in a script, as a template: the longest text with all fields, its variables as placeholders.

    Marks of images at its start (`<image>`), which the servers put there themselves, are left out. Braces of the prompt
    itself stay as they are.

    Args:
        script: Python; it is parsed and not run.
        fields: placeholders that it must have, see `NAMES`.
        where: for messages.

    Raises:
        ValueError: if it is no Python, or holds no such text.
    """
    texts = [_text(node) for node in ast.walk(parse_script(script, where)) if isinstance(node, ast.expr)]
    fitting = [text for text in texts if text and all(f"{{{field}}}" in text for field in fields)]
    if not fitting:
        names = ", ".join(name for name, field in NAMES.items() if field in fields) or "none"
        raise ValueError(f"Expected a text in {where} into which the variables of the prompt are put ({names}).")
    return re.sub(r"^(?:\s*<image>\s*)+", "", max(fitting, key=len))


def source_of(task: str, styles: Sequence[str]) -> Source:
    """Where the prompt of a task was published, in the first of the styles that has it.

    Raises:
        OSError: if none has.
    """
    for style in styles:
        if (style, task) in PUBLISHED:
            path, digest = PUBLISHED[style, task]
            return Source(f"UnifiedReward's prompt of {task!r}", f"{REPOSITORY}/{path}", digest)
    raise OSError(f"No prompt of {task!r} is published for these checkpoints.")


def _published(task: str, styles: Sequence[str], fields: Sequence[str], retry: bool) -> Template:
    source = source_of(task, styles)
    text = prompt_in_script(read_text(wording.published_file(source, "unified-reward", retry)), fields, source.url)
    check_fields(text, fields, source.url)
    return Template(text, source.url)


def _text(node: ast.expr) -> str | None:
    """What an expression says, its variables as placeholders; None if it is no text."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return _joined([_text(part) for part in parts])
        case ast.FormattedValue(value=ast.Name(id=name), format_spec=None) if name in NAMES:
            return f"{{{NAMES[name]}}}"
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return _joined([_text(left), _text(right)])
        # Marks of images, one for each: their number is the servers' affair.
        case ast.BinOp(op=ast.Mult(), left=ast.Constant(value=str(text))) if "<image>" in text:
            return ""
    return None


def _joined(parts: Sequence[str | None]) -> str | None:
    known = [part for part in parts if part is not None]
    return "".join(known) if len(known) == len(parts) else None
