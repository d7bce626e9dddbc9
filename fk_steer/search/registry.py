"""Strategies by name."""

from __future__ import annotations


STRATEGIES: dict[str, str] = {
    "feynman-kac": "fk_steer.search.feynman_kac:FKSteering",
    "depth-first": "fk_steer.search.depth_first:DepthFirst",
    "evolution": "fk_steer.search.evolution:Evolution",
    "finish": "fk_steer.search.finish:Finish",
    "lookahead": "fk_steer.search.lookahead:Lookahead",
    "refine": "fk_steer.search.refine:Refine",
    "metropolis": "fk_steer.search.metropolis:Metropolis",
    "allocation": "fk_steer.search.allocation:Allocation",
    "screen": "fk_steer.search.screen:Screen",
}
"""Name -> 'module:Class'. A new strategy needs one line."""
