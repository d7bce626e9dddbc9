"""Rewards as guides, side by side: a study, its results, tables and report."""
