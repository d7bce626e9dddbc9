"""The command line, `fk-steer`."""

from .main import app


__all__ = ["app"]
