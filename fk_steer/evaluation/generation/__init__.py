"""Images for a list of prompts, steered or not: any number of processes or machines, one folder, nothing lost."""

from .plan import GenerationSettings, SampleRecord
from .run import generate, is_complete, read_records


__all__ = ["GenerationSettings", "SampleRecord", "generate", "is_complete", "read_records"]
