"""The page of `fk-steer app` on a Space, where strangers reach it: what comes along, and nothing else."""

from fk_steer.app import Limits, launch


if __name__ == "__main__":
    launch(
        host="0.0.0.0", port=7860, limits=Limits(particles=8, steps=50, budget=400, images=8, megabytes=5, fixed=True)
    )
