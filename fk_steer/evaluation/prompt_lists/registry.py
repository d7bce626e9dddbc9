"""The published lists by name: where each is from, under what terms, and how it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from . import readers
from .readers import Entry


ELLA = "3c228f1dc6c4d3cad0a47493816151a419f14db3"
"""Commit of TencentQQGYLab/ELLA that DPG-Bench is from."""
UNIGENBENCH = "49d0bcebb0b9418d975d3957c2fee10f34811d14"
"""Commit of CodeGoat24/UniGenBench."""


@dataclass(frozen=True)
class PromptList:
    """A published list of prompts.

    Attributes:
        title: what it is called.
        source: where it is published, a repository with the file or folder that `read` takes.
        licence: of the list; None where none was found.
        read: reads a copy of it.
        ships: whether it comes with the package.
        url, sha256: of the file at a pinned commit, where it is fetched if no copy is given; empty for lists that are
            only read from a copy.
        note: on its terms, for the error that asks for a copy.
    """

    title: str
    source: str
    licence: str | None
    read: Callable[[Path], list[Entry]]
    ships: bool = False
    url: str = ""
    sha256: str = ""
    note: str = ""


def _raw(repository: str, commit: str, path: str) -> str:
    return f"https://raw.githubusercontent.com/{repository}/{commit}/{path}"


def _unigenbench(kind: str, language: str, **options: object) -> PromptList:
    return PromptList(
        f"UniGenBench++, {kind}",
        f"CodeGoat24/UniGenBench, data/test_prompts_{language}.csv",
        "CC BY 4.0",
        readers.read_unigenbench,
        **options,  # type: ignore[arg-type]
    )


LISTS: dict[str, PromptList] = {
    "dpg": PromptList(
        "DPG-Bench", "TencentQQGYLab/ELLA, dpg_bench/prompts", "Apache-2.0", readers.read_dpg, ships=True
    ),
    "t2i-compbench": PromptList(
        "T2I-CompBench++",
        "Karine-Huang/T2I-CompBench, examples/dataset/*_val.txt",
        "MIT",
        readers.read_t2i_compbench,
        ships=True,
    ),
    "unigenbench": _unigenbench("short English prompts", "en", ships=True),
    "unigenbench-zh": _unigenbench("short Chinese prompts", "zh", ships=True),
    "unigenbench-long": _unigenbench(
        "long English prompts",
        "en_long",
        url=_raw("CodeGoat24/UniGenBench", UNIGENBENCH, "data/test_prompts_en_long.csv"),
        sha256="5d2c3d642cc4923504b662ad15b425c2d161a137884701881e00c2691a697253",
    ),
    "unigenbench-zh-long": _unigenbench(
        "long Chinese prompts",
        "zh_long",
        url=_raw("CodeGoat24/UniGenBench", UNIGENBENCH, "data/test_prompts_zh_long.csv"),
        sha256="6e281a5781878584db932a3bfd16dc51afb195566eb7a30c17fb9c09fd3b1776",
    ),
    "geneval2": PromptList(
        "GenEval 2",
        "facebookresearch/GenEval2, geneval2_data.jsonl",
        "CC BY-NC 4.0",
        readers.read_geneval2,
        note="not for commercial use",
    ),
    "oneig": PromptList(
        "OneIG-Bench, English",
        "a checkout of OneIG-Bench/OneIG-Benchmark",
        None,
        readers.read_oneig,
        note="no licence was found there",
    ),
    "tiif": PromptList(
        "TIIF-Bench, short descriptions",
        "A113N-W3I/TIIF-Bench, the folder data/testmini_prompts or data/test_prompts of a checkout",
        None,
        readers.read_tiif,
        note="no licence was found there",
    ),
    "tiif-long": PromptList(
        "TIIF-Bench, long descriptions",
        "A113N-W3I/TIIF-Bench, the folder data/testmini_prompts or data/test_prompts of a checkout",
        None,
        partial(readers.read_tiif, length="long"),
        note="no licence was found there",
    ),
    "wise": PromptList(
        "WISE Verified",
        "PKU-YuanGroup/WISE, data_verified/merge.json",
        None,
        readers.read_wise,
        note="no licence was found there",
    ),
}
"""Name -> list. GenEval, DrawBench and the bundled world's are in `fk_steer.evaluation.prompts`."""


def entries_of(name: str, path: Path | None, fetched: Callable[[PromptList], Path]) -> list[Entry]:
    """The entries of a list.

    Args:
        name: one of `LISTS`.
        path: a copy of it; None for the one that ships, or that `fetched` brings.

    Raises:
        OSError: for a copy that is not there, or a list of which a copy has to be given.
        ValueError: for a copy of another form.
    """
    one = LISTS[name]
    if path is not None:
        if not path.exists():
            raise FileNotFoundError(f"Expected {one.title} at {path}, but there is nothing. Get it: {one.source}.")
        return one.read(path)
    if one.ships:
        return readers.shipped(name)
    if one.url:
        return one.read(fetched(one))
    terms = f" (licence {one.licence}, {one.note})" if one.licence else f" ({one.note})"
    raise FileNotFoundError(
        f"{one.title} does not come with this package{terms}. Get it from {one.source}, and give its path by "
        "--prompts-file."
    )
