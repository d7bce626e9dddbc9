"""What a run leaves behind, in the layout of `fk-steer generate`, and the files to take home."""

from __future__ import annotations

import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..bundled import BUNDLED
from ..diffusion.steer import SteeredOutput
from ..files import png, record_settings, write_atomically
from ..generate import Generation
from ..preparation import write_images
from ..report.figures import figure_png
from ..report.page import html_report
from ..report.results import VIDEO, Picture, pictures_in, results_in
from ..report.sheet import contact_sheet
from ..report.trace import Trace


RUN, REPORT = "000", "report.html"


def keep(folder: Path, output: SteeredOutput, prefix: str = "") -> None:
    """Write the images of a prompt, best first, and its trace.

    Args:
        prefix: 'unsteered-' for what was made without steering.
    """
    assert output.trace is not None
    here = folder / RUN
    write_images(here, prefix, output, write_atomically)
    output.trace.save(here / f"{prefix}trace.json")


def kept(folder: Path, settings: Generation, prefix: str = "") -> tuple[list[Picture], int]:
    """The pictures that `keep` wrote, best first, and which of them began with the first noise: without steering that
    is what the model alone makes of the seed. None and 0 if they were not made."""
    here = folder / RUN
    if not (here / f"{prefix}trace.json").exists():
        return [], 0
    order = [slot for _, slot in Trace.load(here / f"{prefix}trace.json").returned[0]]
    pictures = pictures_in(here, prefix, settings.prompts[0], settings.model in BUNDLED)
    return pictures, order.index(0) if 0 in order else 0


def finish(folder: Path, settings: Generation, complete: bool) -> dict[str, Path]:
    """The files of a run that can be taken home: 'picture', 'tree', 'trace' and 'all'.

    Args:
        complete: whether the run came to its end; else no settings are written, by which another command would take the
            folder for one that did.
    """
    plain, here = _plain(folder, settings), folder / RUN
    trace = Trace.load(here / "trace.json")
    trace.save_html(folder / "tree.html")
    write_atomically(here / "lineage.png", figure_png(trace.plot()))
    results = results_in(folder, plain)
    write_atomically(folder / "contact_sheet.png", png(contact_sheet(results)))
    write_atomically(folder / REPORT, html_report(results, plain).encode())
    if complete:
        record_settings(folder, plain)
    best = next(path for path in (here / "00.png", here / f"00{VIDEO}") if path.exists())
    archive = folder / "fk-steer.zip"
    inside = sorted(path for path in folder.rglob("*") if path.is_file())
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in inside:
            packed.write(path, Path("fk-steer") / path.relative_to(folder))
    return {"picture": best, "tree": folder / "tree.html", "trace": here / "trace.json", "all": archive}


def _plain(folder: Path, settings: Generation) -> dict[str, Any]:
    compared = (folder / RUN / "unsteered-trace.json").exists()
    return asdict(replace(settings, compare=compared))
