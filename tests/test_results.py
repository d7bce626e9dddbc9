"""What `fk-steer generate` says of its prompts at the end."""

import pytest
from PIL import Image

from fk_steer.report.results import Picture, Result, summarize
from fk_steer.report.trace import Trace


PIXEL = Image.new("RGB", (1, 1))


def result(unsteered, steered):
    """Of (reward, whether correct), best first."""
    some, others = ([Picture(PIXEL, *of) for of in group] for group in (unsteered, steered))
    return Result("a red circle", others, some, Trace.__new__(Trace))


def test_the_summary_has_standard_errors_and_paired_gains():
    rows = summarize(
        [
            result([(0.4, True), (0.2, False)], [(0.6, True), (0.5, True)]),
            result([(0.3, False), (0.1, False)], [(0.9, True), (0.1, True)]),
        ]
    )
    image, best, steered, over_image, over_best = rows
    assert image == ("one image without steering (mean over all)", "0.250 ± 0.050", "25 ± 25%")
    assert best == ("best image without steering", "0.350 ± 0.050", "50 ± 50%")
    assert steered == ("best steered image", "0.750 ± 0.150", "100 ± 0%")
    # 0.3 and 0.7, then 0.2 and 0.6: the error of a difference, not that of two means.
    assert over_image[1:] == ("+0.500 ± 0.200", "+75 ± 25 points")
    assert over_best[1:] == ("+0.400 ± 0.200", "+50 ± 50 points")


@pytest.mark.parametrize("correct", [None, True])
def test_a_single_prompt_has_no_standard_error(correct):
    rows = summarize([result([], [(0.6, correct)])])
    assert rows == [("best steered image", "0.600", "" if correct is None else "100%")]
