"""The model hub: whether it can be reached, and names that stand for nothing. Asked once, before anything is loaded."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from pathlib import Path

from .options import suggest


_TIMEOUT = 3.0


@functools.cache
def is_offline() -> bool:
    """Whether the hub is out of reach, by HF_HUB_OFFLINE or one short request. Then its cache alone is used from here
    on, without the retries of the libraries."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if not constants.HF_HUB_OFFLINE:
        try:
            get_session().head(constants.ENDPOINT, timeout=_TIMEOUT)
        # Each HTTP library has errors of its own; whatever they are, nothing can be had from there.
        except Exception:
            constants.HF_HUB_OFFLINE = True
    return constants.HF_HUB_OFFLINE


def check_source(path: str, what: str, filename: str = "config.json", known: Iterable[str] = ()) -> None:
    """Make sure that a name can be a model, before libraries try for long.

    Args:
        path: folder, file or hub id.
        what: it is, for messages.
        filename: a file that tells whether a hub repository is in the cache.
        known: names that may have been meant.

    Raises:
        OSError: for a folder that does not exist, a name that is no hub id, or a repository that is not in the cache
            while the hub is out of reach.
    """
    if Path(path).exists():
        return
    if not re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", path):
        raise OSError(
            f"Found no {what} {path!r}: there is no such folder, and a hub id looks like owner/name."
            f"{suggest(path, known)}"
        )
    if is_offline():
        from huggingface_hub import try_to_load_from_cache

        if not isinstance(try_to_load_from_cache(path, filename), str):
            raise OSError(
                f"Found no {what} {path!r}: it is neither a folder nor in the cache of the hub, which cannot be "
                f"reached from here.{suggest(path, known)}"
            )
