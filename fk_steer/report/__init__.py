"""How to look at a run: its trace, lineage plots, contact sheets, a page."""
