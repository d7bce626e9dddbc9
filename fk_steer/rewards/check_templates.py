"""Checklists made from the wording of a prompt, for prompts like those of GenEval and GenEval 2: things with a number,
attributes and where they are or what they do to one another."""

from __future__ import annotations

import re

from .checks import NUMBERS, YES, Check, Checklist, whole


# fmt: off
ATTRIBUTES = frozenset((
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray", "grey", "cyan",
    "magenta", "golden", "gold", "silver", "beige", "turquoise", "metal", "metallic", "wooden", "glass", "plastic",
    "stone", "leather", "rubber", "fabric", "paper", "ceramic", "concrete", "fluffy", "furry", "sparkling", "shiny",
    "transparent", "checkered", "striped", "spotted", "round", "square", "rectangular", "oval", "triangular",
    "spherical", "cubic", "cylindrical", "conical", "small", "large", "big", "tiny", "huge", "tall", "short",
    "long",
))
# fmt: on
"""Words before a noun that are asked about one by one; a colour that is the noun itself, an orange, is one."""

RELATIONS = (
    *("to the left of", "to the right of", "on the left of", "on the right of", "on the top of", "at the bottom of"),
    *("left of", "right of", "on top of", "in front of", "next to", "above", "below", "under", "behind", "beside"),
    *("on the side of", "near", "inside", "underneath", "over", "playing with", "jumping over", "chasing"),
)
"""What may stand between two things, the longer before those that they contain."""

ARTICLES = ("a", "an")
# fmt: off
IRREGULAR = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "mouse": "mice", "foot": "feet",
    "goose": "geese", "tooth": "teeth", "knife": "knives", "wolf": "wolves", "leaf": "leaves", "loaf": "loaves",
    "skis": "skis", "scissors": "scissors", "broccoli": "broccoli", "fish": "fish", "deer": "deer",
}
# fmt: on

_LEAD = re.compile(r"^(?:an? )?(?:photo|picture|image|photograph|drawing|painting) (?:of|showing) ")
_BETWEEN = re.compile(rf",? and |, |(?<!\S)({'|'.join(map(re.escape, RELATIONS))})(?!\S)")
# fmt: off
_NO_NOUN = frozenset((
    "and", "or", "with", "in", "on", "at", "of", "to", "from", "that", "which", "who", "is", "are", "was", "were",
    "by", "for", "as", "his", "her", "its", "their", "while", "no", "not",
))
# fmt: on
_LONGEST = 3
"""Words of a noun: 'computer keyboard' has two."""


def plural(noun: str) -> str:
    """The plural of a noun, by its last word."""
    *before, last = noun.split(" ")
    if last in IRREGULAR:
        last = IRREGULAR[last]
    elif re.search(r"[^aeiou]y$", last):
        last = f"{last[:-1]}ies"
    elif re.search(r"(s|x|z|ch|sh)$", last):
        last = f"{last}es"
    else:
        last = f"{last}s"
    return " ".join([*before, last])


def from_wording(prompt: str) -> Checklist:
    """The checklist of a prompt, in GenEval 2's questions: of each thing how many there are, each attribute, whether
    there are any, and how it relates to the next. Whether there are any is the parent of the others.

    A prompt that is worded otherwise gets one question about the whole of it.
    """
    return taken_apart(prompt) or whole(prompt)


def taken_apart(prompt: str) -> Checklist | None:
    """`from_wording`, None for a prompt that is worded otherwise, or names a thing twice, of which questions would not
    say which one they mean."""
    text = _LEAD.sub("", " ".join(prompt.lower().split()).rstrip("."))
    pieces = _BETWEEN.split(text)
    things = [_thing(piece.strip()) for piece in pieces[::2]]
    # Between two things there is a relation, or None for 'and'.
    relations = [None, *pieces[1::2]]
    nouns = [thing[0] if thing[1] != "one" else plural(thing[0]) for thing in things if thing is not None]
    if len(set(nouns)) < len(things):
        return None
    checks: list[Check] = []
    before: tuple[str, bool, int] | None = None
    for thing, relation in zip(things, relations):
        assert thing is not None
        noun, number, attributes = thing
        many = number != "one"
        named = noun if many else plural(noun)
        # Where there is a relation to ask for, it stands between the questions on the two things.
        place = None
        if relation is not None and before is not None:
            place = len(checks)
            checks.append(Check("", kind="verb" if "ing" in relation.split()[0] else "position"))
        exists = len(checks) + 1 + len(attributes)
        checks.append(Check(f"How many {named} are in the image?", number, (exists,), "count"))
        verb = "Are" if many else "Is"
        checks += [Check(f"{verb} the {noun} {one}?", YES, (exists,), "attribute") for one in attributes]
        checks.append(Check(f"Are there any {named} in the image?", YES, (), "object"))
        if place is not None and before is not None:
            other, others, existed = before
            checks[place] = Check(
                f"{'Are' if others else 'Is'} the {other} {relation} the {noun}?",
                YES,
                (existed, exists),
                checks[place].kind,
            )
        before = (noun, many, exists)
    return tuple(checks)


def _thing(text: str) -> tuple[str, str, list[str]] | None:
    """(noun, number, attributes) of 'two green dogs'; None for what is not of that form."""
    first, _, rest = text.partition(" ")
    number = "one" if first in ARTICLES else first
    if number not in NUMBERS[1:]:
        return None
    words = rest.split()
    attributes = []
    while len(words) > 1 and words[0] in ATTRIBUTES:
        attributes.append(words.pop(0))
    if not 0 < len(words) <= _LONGEST or any(word in _NO_NOUN or not re.fullmatch(r"[a-z'-]+", word) for word in words):
        return None
    return " ".join(words), number, attributes
