"""`python -m fk_steer`, for launchers that start modules."""

from .cli.main import app


if __name__ == "__main__":
    app()
