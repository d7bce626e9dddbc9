"""Benchmarks whose images are judged by answers to questions about them: GenEval 2, DPG-Bench and their kin."""
