"""Models by folder or hub id: whether a name stands for one, found out in seconds and before libraries try for long."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread


PATIENCE = 3.0
"""Seconds that the hub is given to answer; libraries ask each of many files for half a minute."""
_REMEMBERED = 60.0
"""Seconds for which a hub that has not answered is not asked again."""

_silent_since: float | None = None
_found: set[str] = set()


def locate(path: str, what: str, revision: str | None = None, hint: str = "") -> str:
    """Where a model is to be loaded from.

    Args:
        path: folder, file or hub id.
        what: it is, for messages.
        revision: of the repository.
        hint: what to say after that it was not found, such as a name that may have been meant.

    Returns:
        The path as it is; for a hub id, where the hub cannot be reached or no longer has it, the folder in the cache.

    Raises:
        OSError: if there is no such folder and the name is no hub id, or one that is neither in the cache nor to be had
            from the hub.
    """
    if Path(path).exists():
        return path
    hint = hint or _near_folder(path)
    check_id(path, what, hint)
    if path in _found:
        return path
    problem = ask_about(path)
    if problem is None:
        _found.add(path)
        return path
    if (cached := _cached(path, revision)) is None:
        raise OSError(
            f"Found no {what} {path!r}: it is no folder here, not in the cache of the hub, and {problem}.{hint}"
        )
    return str(cached)


def check_id(name: str, what: str, hint: str = "") -> None:
    """
    Args:
        name: that is no folder or file.
        what, hint: see `locate`.

    Raises:
        OSError: if it cannot be a hub id either.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise OSError(
            f"Found no {what} {name!r}: there is no such folder or file, and it is no hub id, which looks like "
            f"owner/name.{hint}"
        ) from error


def ask_about(repository: str, kind: str = "model") -> str | None:
    """What keeps a repository from being had from the hub, None if nothing is known to.

    Args:
        kind: 'model' or 'dataset'.
    """
    global _silent_since
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE keeps the hub from being asked"
    out_of_reach = f"{constants.ENDPOINT} cannot be reached from here"
    if _silent_since is not None and time.monotonic() - _silent_since < _REMEMBERED:
        return out_of_reach
    try:
        ask = HfApi().dataset_info if kind == "dataset" else HfApi().model_info
        within(PATIENCE, lambda: ask(repository, timeout=PATIENCE))
    except RepositoryNotFoundError:
        return "the hub shows none of that name (private ones after `hf auth login`)"
    except HfHubHTTPError:
        # It answers; what it answers about files is for those who ask for them.
        pass
    # Each library below it has errors of its own; whatever they are, nothing can be had from there.
    except Exception:
        _silent_since = time.monotonic()
        return out_of_reach
    _silent_since = None
    return None


def within(seconds: float, ask: Callable[[], object]) -> None:
    """Call something that may hang, as names being looked up do, whatever their timeout.

    Raises:
        TimeoutError: if it does.
        Exception: what was raised there.
    """
    errors: list[Exception | None] = []

    def work() -> None:
        try:
            ask()
            errors.append(None)
        except Exception as error:
            errors.append(error)

    thread = Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not errors:
        raise TimeoutError
    if errors[0] is not None:
        raise errors[0]


def _cached(repository: str, revision: str | None) -> Path | None:
    """The folder of a repository in the cache: of the revision, else of any; None if there is none."""
    from huggingface_hub import constants, snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    # It was never asked for by that name of a revision, or the cache is not in order.
    except (OSError, ValueError):
        pass
    if revision is not None:
        return None
    snapshots = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "snapshots"
    filled = [folder for folder in snapshots.glob("*") if any(folder.glob("*"))]
    return max(filled, key=lambda folder: folder.stat().st_mtime, default=None)


def _near_folder(path: str) -> str:
    """' Did you mean ...?' with what has a name like it in the same folder, '' if nothing has."""
    parent = Path(path).parent
    try:
        names = [entry.name for entry in parent.iterdir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(Path(path).name, names, n=1)
    return f" Did you mean {str(parent / near[0])!r}?" if near else ""
