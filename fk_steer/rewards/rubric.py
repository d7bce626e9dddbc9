"""The rubrics that HPSv3 and HPSv3++ ask with: texts of others, which are read from where they were published."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from llava_reward_guide.texts import read_text

from ..published import Source
from . import wording
from .loading import RewardLoadError
from .wording import OURS, Template, check_fields, our_words, read_script, texts_in_script


REWARD_TOKEN = "<|Reward|>"
"""Ends a rubric: the reward is read at it, and what follows it in a chat does not count."""

FIELDS = ("prompt",)
NAMES = ("INSTRUCTION", "prompt_with_special_token")
"""What the published scripts call the two parts of a rubric."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rubric:
    """A rubric that a checkpoint was trained with.

    Attributes:
        source: the script that holds it, or a wheel that holds the script.
        sha256: of the rubric itself, with {prompt} for the prompt and without the token of the reward.
        ours: file of our own words in `templates`.
        member: of a wheel, the path of the script in it.
    """

    source: Source
    sha256: str
    ours: str
    member: str = ""

    def template(self, reward: str, given: str | Path | None = None) -> Template:
        """The text of a chat up to the token of the reward.

        Args:
            reward: its name, for messages.
            given: a text file with the placeholder {prompt}, of which all counts that stands before the token of the
                reward; a script of the form of the published one (.py), or a wheel that holds it (.whl); 'ours'; or
                'published', as None.

        Raises:
            RewardLoadError: if the published rubric cannot be had.
            OSError: if the file is not there.
            ValueError: if it holds no such text.
        """
        if given in (None, "published"):
            try:
                file = wording.published_file(self.source, reward, retry=True)
            except OSError as error:
                raise RewardLoadError(
                    f"The words that '{reward}' was trained with are not part of this package, and could not be had. "
                    f"{error} With template=ours it asks in our own words, and is another reward."
                ) from error
            template = Template(self._read(file), self.source.url)
        elif given == "ours":
            template = self.own_words
        else:
            template = Template(self._read(Path(str(given))), str(given))
        if template.sha256 != self.sha256:
            words = "our own words" if template.origin == OURS else f"the words of {template.origin!r}"
            logger.warning(
                "'%s' is asked in %s, which it was not trained with: its scores are not those that are published.",
                reward,
                words,
            )
        return template

    @property
    def own_words(self) -> Template:
        """Our own, which ask for the same."""
        return our_words(Path(__file__).parent / "templates" / self.ours, FIELDS)

    def _read(self, file: Path) -> str:
        if file.suffix in (".py", ".whl"):
            first, last = texts_in_script(read_script(file, self.member), NAMES, f"'{file}'")
            text = first.replace("{text_prompt}", "{prompt}") + last
        else:
            text = read_text(file)
        check_fields(text, FIELDS, str(file))
        return text.partition(REWARD_TOKEN)[0]
