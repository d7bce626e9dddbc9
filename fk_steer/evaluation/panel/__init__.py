"""Mean scores of images by several metrics."""
