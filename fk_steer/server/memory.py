"""Memory of requests under way, counted, so that many large ones cannot fill a machine's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import busy, too_large


class Memory:
    """Counts bytes that requests hold. For one thread, that of the event loop.

    Args:
        total: bytes that may be held at a time.

    Attributes:
        used: bytes that are held.
    """

    def __init__(self, total: int) -> None:
        self.total, self.used = total, 0

    @contextmanager
    def hold(self) -> Iterator[Held]:
        """What a request holds, let go of at the end."""
        held = Held(self)
        try:
            yield held
        finally:
            held.add(-held.bytes)


class Held:
    """What one request holds of a memory.

    Attributes:
        bytes: held by the request.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory, self.bytes = memory, 0

    def add(self, number: int) -> None:
        """Take so many bytes more, or give back a negative number.

        Raises:
            RequestError: if there are not so many, for now or at all.
        """
        if number > 0 and self.bytes + number > self._memory.total:
            raise too_large(
                f"Expected a request that takes at most {self._memory.total} bytes of memory with its images decoded, "
                f"but this one takes {self.bytes + number} or more. Send fewer or smaller images."
            )
        if number > 0 and self._memory.used + number > self._memory.total:
            raise busy("The memory for requests is full.")
        self.bytes += number
        self._memory.used += number
