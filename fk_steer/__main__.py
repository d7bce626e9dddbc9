"""The command `fk-steer`, or `python -m fk_steer` for launchers that start modules."""

from __future__ import annotations

from llava_reward_guide.packages import require_for_commands


def main() -> None:
    """Run the command line, or say which packages it lacks."""
    require_for_commands()
    from .cli.main import app

    app()


if __name__ == "__main__":
    main()
