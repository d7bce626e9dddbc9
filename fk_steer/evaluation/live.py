"""Bytes of tensors that are alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts, while it is entered, the bytes of the tensors that operations make. A storage counts once, from when it
    is made until nothing holds it; scratch memory within an operation, arrays and images are not seen.

    Attributes:
        alive, peak: now, and the most there were at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        for value in tree_leaves(output):
            if isinstance(value, Tensor) and value.device.type != "meta":
                storage = value.untyped_storage()
                if storage not in self._known:
                    self._known.add(storage)
                    self.alive += storage.nbytes()
                    weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self.alive)
        return output

    def _free(self, size: int) -> None:
        self.alive -= size
