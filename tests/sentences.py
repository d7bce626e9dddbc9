"""What makes a first line, or a help text, a sentence that stands alone."""

from __future__ import annotations

import re


DANGLING = frozenset(
    ["Of", "In", "By", "With", "Without", "Under", "On", "To", "For", "From", "As", "At", "Among", "Between", "Into"]
    + ["Its", "Their", "Those", "That", "This", "These", "It", "They", "See", "Same"]
)
"""First words that lean on something said before: 'Of the run.', 'Its name.', 'Those of both.', 'See the class.'"""


def fragment(text: str) -> str | None:
    """Why the first sentence of a text does not stand alone; None if it does."""
    first = " ".join(text.strip().split("\n\n")[0].split())
    sentence = re.split(r"(?<=[.!?])\s", first)[0]
    words = sentence.split()
    if not re.match(r"[A-Z`]", sentence):
        return "It does not begin with a capital letter."
    if first[-1] not in ".:?":
        return "It does not end."
    if len(words) < 3:
        return f"{len(words)} words are no sentence."
    if words[0].rstrip(",;:") in DANGLING:
        return f"'{words[0]}' leans on something said before."
    return "An arrow is no verb." if "->" in sentence else None
