"""What the lineages of every trace have in common."""

from __future__ import annotations


def check_lineages(trace, num_particles):
    """Who lives on was seen where and when the trace says, and initial particles that have died out stay so."""
    for p in range(len(trace.prompts)):
        alive, roots = list(range(num_particles)), num_particles
        for number, event in enumerate(trace.events):
            assert event.slots_before[p] == alive
            for slot, seen in zip(event.parents[p], event.parent_events[p], strict=True):
                assert seen <= number
                assert slot in trace.events[seen].slots_before[p]
                if seen < number:
                    assert any(earlier.resume is not None for earlier in trace.events[: number + 1])
            if event.resume is not None:
                assert 0 <= event.resume < trace.num_steps
            assert event.distinct_roots[p] <= roots
            alive, roots = event.slots[p], event.distinct_roots[p]
