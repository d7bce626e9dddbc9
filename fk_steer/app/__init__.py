"""The page of `fk-steer app`: make a picture, score pictures, compare two, in a browser.

`launch` serves it and `build` makes it; both need Gradio, the extra `app`. What they stand on does not: `form` reads
what was typed, `running` runs it, `judging` scores pictures.
"""

from __future__ import annotations

from typing import Any

from llava_reward_guide.packages import require

from .limits import Limits


def launch(**options: Any) -> Any:
    """Serve the page; see `fk_steer.app.serving.launch`.

    Raises:
        ImportError: without Gradio.
    """
    require("gradio")
    from .serving import launch as launch_it

    return launch_it(**options)


__all__ = ["Limits", "launch"]
