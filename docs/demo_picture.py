"""The picture at the top of README, from what `make demo` leaves.

make demo
python docs/demo_picture.py
"""

import argparse
import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from fk_steer.report.results import Picture, Result, results_in
from fk_steer.report.trace import Trace


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--run", type=Path, default=Path("out/demo"), help="folder of `make demo`")
parser.add_argument("--out", type=Path, default=Path("docs/shapes.png"), help="file to write")
arguments = parser.parse_args()

SIDE, GAP, LABEL, SHOWN, TASKS = 84, 8, 118, 4, 3
FRAMES = {True: "#1a9850", False: "#d73027"}


def first_of(result: Result, folder: Path) -> Picture:
    """The unsteered image of the first seed, whatever its rank."""
    order = Trace.load(folder / "unsteered-trace.json").returned[0]
    return result.unsteered[[slot for _, slot in order].index(0)]


results = results_in(arguments.run, json.loads((arguments.run / "settings.json").read_text()))
per_task = len(results) // TASKS
chosen = [task * per_task + place for task in range(TASKS) for place in range(SHOWN)]
size = {2: "two", 4: "four", 8: "eight", 10: "ten"}.get(len(results[0].unsteered), str(len(results[0].unsteered)))
rows = {
    "one image": [first_of(results[i], arguments.run / f"{i:03d}") for i in chosen],
    f"best of {size}": [results[i].unsteered[0] for i in chosen],
    f"{size}, steered": [results[i].steered[0] for i in chosen],
}
font = ImageFont.load_default(15)
height = len(rows) * (SIDE + GAP) + GAP
sheet = Image.new("RGB", (LABEL + len(chosen) * (SIDE + GAP) + 2 * GAP, height), "white")
draw = ImageDraw.Draw(sheet)
for line, (name, pictures) in enumerate(rows.items()):
    top = GAP + line * (SIDE + GAP)
    draw.text((GAP, top + SIDE / 2), name, fill="black", font=font, anchor="lm")
    for column, picture in enumerate(pictures):
        left = LABEL + column * (SIDE + GAP) + (column // SHOWN) * GAP
        draw.rectangle((left - 3, top - 3, left + SIDE + 2, top + SIDE + 2), fill=FRAMES[bool(picture.correct)])
        sheet.paste(picture.image.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, top))
sheet.save(arguments.out, optimize=True)
