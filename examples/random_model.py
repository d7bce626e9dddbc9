"""Save a tiny Stable Diffusion and a tiny CLIP with random weights, to try the command line without a download.

python examples/random_model.py out/random
fk-steer generate "a red circle" --model out/random/sd --reward-option path=out/random/clip --steps 20
"""

import sys
from pathlib import Path

from fk_steer import testing


folder = Path(sys.argv[1])
testing.sd().save_pretrained(folder / "sd")
testing.save_clip(folder / "clip")
print(f"Saved {folder}/sd and {folder}/clip")
