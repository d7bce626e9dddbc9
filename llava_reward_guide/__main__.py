"""The command `llava-reward`, or `python -m llava_reward_guide`."""

from __future__ import annotations

from .packages import require_for_commands


def main() -> None:
    """Run the command line, or say which packages it lacks."""
    require_for_commands()
    from .cli import app

    app(prog_name="llava-reward")


if __name__ == "__main__":
    main()
