"""Data to train a reward on: reading, converting, filtering, batching."""

from __future__ import annotations

from .items import Items, check_images, read_items


__all__ = ["Items", "check_images", "read_items"]
