"""What a pipeline's `encode_prompt` returned, kept so that no prompt is encoded twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from .layout import Layout, UnknownLayoutError, learned_layout, members_of, num_units, take_units


class EncodedPrompts:
    """What it returned in the main run, call by call, for some of its rows.

    Args:
        num_rows: of the main run.
        rows_per_prompt: so many of them belong to one prompt.
    """

    def __init__(self, num_rows: int, rows_per_prompt: int) -> None:
        self.num_rows, self.rows_per_prompt = num_rows, rows_per_prompt
        self._all: list[Any] = []
        self._one: list[Any] = []
        """What it returned for one row."""
        self._layouts: list[Layout] | None = None
        self._count = 0
        """Calls since the call of the pipeline began."""

    def forget(self) -> None:
        """The main run begins anew."""
        self._all, self._one = [], []

    def remember(self, encoded: Any) -> None:
        """What it returned in the main run."""
        self._all.append(encoded)

    def begin(self) -> None:
        """The pipeline is called again."""
        self._count = 0

    def of_one_row(self, encode: Callable[[], Any]) -> Any:
        """What it returns in a call for one row."""
        if self.num_rows == 1:
            return self.of_rows([0], encode)
        number = self._next()
        if number == len(self._one):
            self._one.append(encode())
        return self._one[number]

    def of_rows(self, rows: list[int], encode: Callable[[], Any]) -> Any:
        """What it returned for these rows in the main run; what `encode` returns where that cannot be told."""
        number = self._next()
        if number >= len(self._all) or (self.num_rows > 1 and self._layouts is None):
            return encode()
        encoded = self._all[number]
        if self.num_rows == 1:
            return encoded
        assert self._layouts is not None
        layout, index = self._layouts[number], torch.tensor(rows)
        units = next((n for n in _numbers(encoded, layout) if n is not None), self.num_rows)
        return take_units(encoded, layout, index if units == self.num_rows else index // self.rows_per_prompt)

    def learn(self) -> None:
        """Compare what it returned for one row with what it did for all."""
        self._layouts = self._compared()

    def _next(self) -> int:
        self._count += 1
        return self._count - 1

    def _compared(self) -> list[Layout] | None:
        if len(self._one) != len(self._all):
            return None
        layouts = []
        for one, many in zip(self._one, self._all):
            for number in (self.num_rows, self.num_rows // self.rows_per_prompt):
                try:
                    layouts.append(learned_layout(one, many, number))
                    break
                except UnknownLayoutError:
                    continue
            else:
                return None
        return layouts


def _numbers(value: Any, layout: Layout) -> Iterator[int | None]:
    """How many rows each part of `value` holds."""
    if isinstance(layout, dict):
        members = value if isinstance(value, Mapping) else members_of(value)
        for key, item in enumerate(value) if members is None else members.items():
            yield from _numbers(item, layout.get(key))
    else:
        yield num_units(value, layout)
