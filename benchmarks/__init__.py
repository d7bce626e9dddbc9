"""Benchmarks, installed as `fk_steer.benchmarks` and run by `fk-steer bench`."""
