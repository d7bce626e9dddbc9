"""What a judge's reply says. Every function returns None for a reply that does not say it, never a worst score."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any


GRADER_AXES = (
    "accuracy_to_prompt",
    "creativity_and_originality",
    "visual_quality_and_realism",
    "consistency_and_cohesion",
    "emotional_or_thematic_resonance",
)
OVERALL = "overall_score"
AXES = ("alignment", "coherence", "style")
VIDEO_AXES = ("alignment", "physics", "style")

_DRAFT = re.compile(
    r"[<◁](/?)\s*(?:think|thinking|thought|thoughts|reason|reasoning|analysis|reflection|scratchpad)[>▷]", re.I
)
_NUMBER_WORDS = dict(
    zip(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"], range(11))
)
_VALUE = rf"-?\d+(?:[.,]\d+)?|\b(?:{'|'.join(_NUMBER_WORDS)})\b"
_MAXIMUM = r"/\s*(\d+)|(?:stars?\s+|points?\s+)?out\s+of\s+(?:a\s+possible\s+)?(\d+)|(%|per\s*cent\b|percent\b)"
_SCORE = re.compile(rf"({_VALUE})\s*(?:{_MAXIMUM})?", re.I)
_UNSURE = re.compile(r"\s*(?:-|–|—|~|\bto\b|\bor\b)\s*\d|\s*\?|\s*(?:would|might|could|is|was|seems)\b", re.I)
_NOT = r"(?:\bnot|\bnever|\bcannot|n't|\brather\s+than|\binstead\s+of)"
_NOT_IT = re.compile(rf"{_NOT}\s+(?:an?\s+|quite\s+)?(?:{_VALUE})\s*,?\s*(?:but\s+)?(?:rather\s+)?(?:an?\s+)?", re.I)
_SCALE = re.compile(r"(?:between|from|on\s+a\s+scale\s+(?:of|from))\s+\d+\s*(?:and|to|-|–)\s*(\d+),?", re.I)
_NOT_LABELLED = re.compile(
    rf"(?:\b(?:draft|initial|preliminary|tentative|provisional|example)|{_NOT}[^.\n]{{0,30}})\s*$", re.I
)
_WOULD = re.compile(
    rf"(?:\bwould|\bcould|\bmight|'d)\s+(?:have\s+)?(?:given?|been|rated?|scored?|be)\s+(?:it\s+)?(?:an?\s+)?(?:{_VALUE})",
    re.I,
)


def final_score(reply: str, highest: float = 5.0, lowest: float = 1.0) -> float | None:
    """UnifiedReward's point score, in [lowest, highest]: the last 'Final Score: s' outside drafts, or a lone score.

    A score with a maximum of its own ('70/100', '4 out of 10', '85%') is read as that share of the highest. Ranges
    ('3-4'), questions and negated scores are not read.
    """
    text = _plain(reply)
    found = _labelled_values(text, r"Final\s+Score", highest)
    if not found:
        found = _labelled_values(
            text, r"(?:(?:^|(?<=[\n.;,{(]))\s*|(?<=\bmy )|(?<=\bthe )|\b(?:overall|total)\s+)(?:score|rating)", highest
        )
    value = found[-1] if found else _lone_score(text, highest)
    return value if value is not None and lowest <= value <= highest else None


def axis_scores(reply: str, axes: Sequence[str] = AXES) -> dict[str, float | None]:
    """UnifiedReward's scores of alignment, coherence and style, or other axes, each in [1, 5]; maxima as in
    `final_score`."""
    return {axis: _labelled(reply, rf"{axis}\s+Score") for axis in axes}


_IMAGE = (
    r"(?:(?:the\s+)?(?:image|picture|photo|option|candidate)\s*(?:\#|no\.?\s*)?([12AB]\b|one\b|two\b)"
    r"|(?:the\s+)?(first|second|left|right)(?:-hand)?\s*(?:image|picture|photo|one)?\b)"
)
_CALLED = {
    "1": 1.0,
    "a": 1.0,
    "one": 1.0,
    "first": 1.0,
    "left": 1.0,
    "2": 0.0,
    "b": 0.0,
    "two": 0.0,
    "second": 0.0,
    "right": 0.0,
}
_STATEMENTS = re.compile(
    rf"{_IMAGE}\s+(?:(?:is|looks|seems|appears|was)\s+)(?:(?!better|worse)[\w']+\s+){{0,3}}?"
    r"(?P<kind>better|best|superior|preferable|preferred|winner|worse|worst|inferior)\b(?!\s+than\s+(?:I\b|expected|before))"
    rf"|{_IMAGE}\s+(?P<wins>wins)\b"
    rf"|\b(?:prefer|choose|pick|vote\s+for|go\s+with)\s+(?P<chosen>){_IMAGE}"
    rf"|\b(?:winner|verdict|answer|better(?:\s+(?:image|one))?|preference|preferred|choice)\s*(?:is\b|:|=)\s*(?P<named>){_IMAGE}"
    rf"|\b(?:no|wait|actually|correction)\b[\s,:.]+(?P<mended>){_IMAGE}\s*(?=[.!,]|$)"
    r"|(?P<tie>\bequally\s+(?:good|bad|strong|preferable)\b|\bneither\b[^.\n]{0,40}\bbetter\b"
    r"|\b(?:it\s+is|it's|this\s+is|call\s+it|verdict\s*:|answer\s*:|winner\s*:|result\s*:)\s*(?:an?\s+)?(?:tie|draw)\b|\bare\s+tied\b)",
    re.I,
)
_LONE_IMAGE = re.compile(rf"\s*(?:(?:{_IMAGE}|([12AB]))|(tie|draw|both|neither|equal))\s*[.!]?\s*", re.I)
_CLAUSE = re.compile(r"[,;:]|\b(?:but|however|although|though|while|whereas|and|so)\b", re.I)
_DENIED = re.compile(r"\b(?:not?|never|neither|nor|cannot|hardly|barely|without)\b|n't\b", re.I)
_OPINION = re.compile(
    r"(?:\bnot|n't|\bcannot|\bnever)\b[\w,\s]{1,30}?(?:think|say|believe|agree|conclude|claim|find|feel)\b(?!.*\bbut\b)",
    re.I,
)
_SUPPOSED = re.compile(
    r"\b(?:if|whether|would|could|might|may|unless|initially|at\s+first|first\s+glance|suppose|assume|one\s+can\s+say)\b|'d\b",
    re.I,
)
_CERTAIN = re.compile(r"\b(?:no|without(?:\s+a)?)\s+(?:doubt|question)\b|\bnot\s+only\b|\bno\s+wonder\b", re.I)


def better_image(reply: str) -> float | None:
    """The last verdict on a pair outside drafts: 1.0 if image 1 is better, 0.0 if image 2 is, 0.5 for a tie.

    'First', 'left' and A are image 1. Negations, suppositions and questions are no verdicts; a verdict that is taken
    back without another is none either.
    """
    text = _CERTAIN.sub("", _plain(reply))
    if lone := _LONE_IMAGE.fullmatch(text):
        name = next((group for group in lone.groups()[:3] if group), None)
        return 0.5 if name is None else _CALLED[name.lower()]
    verdict: float | None = None
    for sentence in re.findall(r"[^.!?\n]+[.!?\n]*", re.sub(r"\.{2,}|…", ", ", text)):
        for found in _STATEMENTS.finditer(sentence):
            before = sentence[: found.start()]
            if found["tie"]:
                value, said = 0.5, re.sub(r"\bneither\b", "", found[0], flags=re.I)
            else:
                name = next(group for group in found.groups() if group and group.lower() in _CALLED)
                value, said = _CALLED[name.lower()], found[0]
                if (found["kind"] or "").lower() in ("worse", "worst", "inferior"):
                    value = 1.0 - value
            near = _CLAUSE.split(before)[-1]
            if found["mended"] is not None:
                near, said = "", ""
            if "?" in sentence[found.end() :] or _SUPPOSED.search(near):
                continue
            if _DENIED.search(near + said) or _OPINION.search(before):
                verdict = None if verdict == value else verdict
            else:
                verdict = value
    return verdict


def better_video(reply: str) -> float | None:
    """The last verdict on a pair of videos, as `better_image` reads those on images."""
    return better_image(re.sub(r"\bvideo(s?)\b", r"image\1", reply, flags=re.I))


def better_image_in_answer(reply: str) -> float | None:
    """The verdict inside the last <answer></answer>; the reasoning before it may say anything."""
    answer = answered(reply)
    return None if answer is None else better_image(answer)


def answered(reply: str) -> str | None:
    """What is inside the last <answer></answer> outside drafts; None without one."""
    answers = re.findall(r"<answer>((?:(?!<answer>).)*?)</answer>", _without_drafts(reply), re.DOTALL | re.IGNORECASE)
    return answers[-1] if answers else None


def spoken(reply: str) -> str:
    """What is said in the end, without drafts, and without marks of type."""
    return re.sub(r"[*`$|]|^\s*#+", "", _without_drafts(reply), flags=re.MULTILINE)


def json_objects(reply: str) -> list[dict[str, Any]]:
    """The JSON objects outside drafts, the outermost of each."""
    return _json_values(_without_drafts(reply))


def percentage(reply: str) -> float | None:
    """A probability in [0, 1] from the last 'Probability: p' in per cent."""
    value = _labelled(reply, "Probability", lowest=0.0, highest=100.0)
    return None if value is None else value / 100.0


def grades(reply: str) -> dict[str, float] | None:
    """The grader's scores by axis, clamped to [0, 10], from the first JSON object that holds any.

    A score may be a number, a text that begins with one, or an object with the key 'score'; '70/100' and '4 out of 5'
    are read with their maximum, ranges such as '3-4' not at all. Drafts do not count. Axes without one are left
    out; a missing overall score is the mean of the five axes if those are complete.
    """
    for found in _json_values(_without_drafts(reply)):
        entries = {re.sub(r"\W+", "_", str(key).strip().lower()): value for key, value in found.items()}
        scores = {axis: _grade(entries.get(axis)) for axis in (*GRADER_AXES, OVERALL)}
        known = {axis: score for axis, score in scores.items() if score is not None}
        if known:
            if OVERALL not in known and len(known) == len(GRADER_AXES):
                known[OVERALL] = sum(known.values()) / len(known)
            return known
    return None


def score_list(reply: str, highest: float) -> list[float] | None:
    """EditScore's numbers: what the key 'score' has in the last JSON object with one, or what follows that word where
    the JSON is broken. None unless all of them are numbers in [0, highest]."""
    text = _without_drafts(reply)
    found = [value["score"] for value in _json_values(text) if "score" in value]
    broken = re.findall(r"[\"']score[\"']\s*:\s*\[([^\]\[]*)\]", text)
    given: Any = found[-1] if found else broken[-1].split(",") if broken else None
    try:
        scores = [float(score) for score in (given if isinstance(given, list) else [given])]
    except (TypeError, ValueError):
        return None
    return scores if scores and all(0.0 <= score <= highest for score in scores) else None


def probability_of_yes(first_token: Mapping[str, float]) -> float | None:
    """P(the first token is 'Yes', in any case and with or without a space), in [0, 1].

    0 if only a form of 'No' is among the listed tokens, None if neither is: the reply was no yes or no.
    """
    by_word: dict[str, float] = {}
    for token, logprob in first_token.items():
        word = token.strip().strip("▁Ġ").lower()
        by_word[word] = by_word.get(word, 0.0) + math.exp(logprob)
    if "yes" not in by_word and "no" not in by_word:
        return None
    return min(by_word.get("yes", 0.0), 1.0)


def _labelled(reply: str, label: str, lowest: float = 1.0, highest: float = 5.0) -> float | None:
    found = _labelled_values(_plain(reply), label, highest)
    value = found[-1] if found else None
    return value if value is not None and lowest <= value <= highest else None


def _labelled_values(text: str, label: str, highest: float) -> list[float | None]:
    """What stands after each occurrence of a label, None where that cannot be read."""
    values: list[float | None] = []
    for found in re.finditer(rf"{label}\s*(\([^)\n]*\))?\s*(?:(:|=)\s*|is\s+|of\s+)([^\n]*)", text, re.I):
        if _NOT_LABELLED.search(text[: found.start()].rpartition("\n")[2]):
            continue
        scale, sign, rest = found.groups()
        rest = _NOT_IT.sub("", rest, count=1).lstrip("[({ ")
        score = _SCORE.match(rest)
        if score:
            unsure = _UNSURE.match(rest[score.end() :])
            values.append(None if unsure else _on_scale(score, highest, scale or ""))
        elif sign:
            values.append(None)
    return values


def _on_scale(score: re.Match[str], highest: float, scale: str = "") -> float | None:
    number, *maxima = score.groups()
    value = float(_NUMBER_WORDS.get(number.lower(), number.replace(",", ".")))
    given = re.search(r"(\d+)\D*$", scale)
    maximum = 100.0 if maxima[2] else float(maxima[0] or maxima[1] or (given[1] if given else highest))
    return value / maximum * highest if maximum and 0.0 <= value <= maximum else None


def _lone_score(text: str, highest: float) -> float | None:
    """The score of a short reply that holds one alone, or says that it gives one."""
    text = text.strip(" \n[](){}")
    if whole := re.fullmatch(rf"(?:{_SCORE.pattern})\s*(?:stars?|points?)?\s*[.!]?", text, re.I):
        return _on_scale(whole, highest)
    if len(text) > 200 or ":" in text or not re.search(r"\b(?:give|given|rate|score|rather|deserves)\b", text, re.I):
        return None
    scale = _SCALE.search(text)
    text = _WOULD.sub("", _NOT_IT.sub("", _SCALE.sub("", text)))
    scores = list(_SCORE.finditer(text))
    if len(scores) != 1 or _UNSURE.match(text[scores[0].end() :]) or re.search(_NOT, text, re.I):
        return None
    return _on_scale(scores[0], highest, scale[1] if scale else "")


def _without_drafts(reply: str) -> str:
    """What is said outside of thinking. A block that is never closed goes on to the end; one that is never opened began
    with the reply."""
    kept, depth, end = "", 0, 0
    for tag in _DRAFT.finditer(reply):
        if depth == 0:
            kept += reply[end : tag.start()]
        if tag[1]:
            kept, depth = (kept, depth - 1) if depth else ("", 0)
        else:
            depth += 1
        end = tag.end()
    return kept if depth else kept + reply[end:]


def _plain(reply: str) -> str:
    """What is said in the end: the last answer that is marked as such, without drafts and marks of type."""
    text = _without_drafts(reply)
    if answers := re.findall(r"<answer>((?:(?!<answer>).)*?)</answer>", text, re.DOTALL | re.IGNORECASE):
        text = answers[-1]
    text = re.sub(r"\\boxed|[*`\"$|]|^\s*#+", "", text, flags=re.MULTILINE).replace("’", "'")
    return text.replace("_", " ")


def _json_values(reply: str) -> list[dict[str, Any]]:
    """The JSON objects in a text, the outermost of each, with what stands around them (code fences, lists) ignored."""
    decoder, values, start = json.JSONDecoder(), [], reply.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(reply, start)
            values.append(value)
        except (ValueError, RecursionError):
            end = start + 1
        start = reply.find("{", end)
    return values


def _grade(entry: Any) -> float | None:
    if isinstance(entry, Mapping):
        entry = entry.get("score")
    if isinstance(entry, str):
        score = _SCORE.match(entry.strip())
        if score is None or _UNSURE.match(entry.strip()[score.end() :]):
            return None
        if any(score.groups()[1:]):
            entry = _on_scale(score, 10.0)
        else:
            entry = float(_NUMBER_WORDS.get(score[1].lower(), score[1].replace(",", ".")))
    if isinstance(entry, bool) or not isinstance(entry, int | float) or not math.isfinite(entry):
        return None
    return min(max(float(entry), 0.0), 10.0)
