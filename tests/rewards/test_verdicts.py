from __future__ import annotations

import math

import pytest

from fk_steer.rewards.chat.verdicts import (
    GRADER_AXES,
    axis_scores,
    better_image,
    better_image_in_answer,
    final_score,
    grades,
    percentage,
    probability_of_yes,
)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("star (object): 1\nFinal Score: 4", 4.0),
        ("Final Score: 4.25", 4.25),
        ("Final Score: 4.", 4.0),
        ("**Final Score:** 3.5", 3.5),
        ("**Final Score: 2**", 2.0),
        ("Final Score: [3]", 3.0),
        ("final score : 4/5", 4.0),
        ("Final Score: 2 ... on reflection\nFinal Score: 4", 4.0),
        ("Final Score: 4/10", None),
        ("Final Score: 10", None),
        ("Final Score: 5.5", None),
        ("Final Score: 0", None),
        ("Final Score: -3", None),
        ("Final Score:", None),
        ("The image is fine. Final Sc", None),
        ("", None),
    ],
)
def test_final_score(reply, expected):
    assert final_score(reply) == expected


def test_axis_scores():
    reply = (
        'Word-wise Scores: [["a", 0.1]]\nAlignment Score (1-5): 4.2\n**Coherence Score (1 - 5):** 3\nStyle Score: 2/5'
    )
    assert axis_scores(reply) == {"alignment": 4.2, "coherence": 3.0, "style": 2.0}
    assert axis_scores("Alignment Score (1-5): 7") == {"alignment": None, "coherence": None, "style": None}


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Image 1 is better than Image 2.", 1.0),
        ("Image 2 is better than Image 1.", 0.0),
        ("Image 2 is better.", 0.0),
        ("**Image 1** is clearly better", 1.0),
        ("Both images are equally good.", 0.5),
        ("One may say that Image 1 is better than Image 2, but image 2 is better.", 0.0),
        ("Image 1 is not better than Image 2", None),
        ("Image 2 is no better than Image 1.", None),
        ("Image 1 is better than Image 2. They are not equally good.", 1.0),
        ("Image 2 is better, so they aren't equally good.", 0.0),
        ("Image 1 is red.", None),
        ("", None),
    ],
)
def test_better_image(reply, expected):
    assert better_image(reply) == expected


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("<think>Image 1 is better</think><answer>Image 2 is better</answer>", 0.0),
        ("<answer>Image 2 is better</answer> or <answer>\nImage 1 is better\n</answer>", 1.0),
        ("<think>so Image 1 is better than", None),
        ("<think>Image 1 is better</think><answer>Image 1 is bet", None),
        ("Image 1 is better", None),
    ],
)
def test_answer(reply, expected):
    assert better_image_in_answer(reply) == expected


class TestGrades:
    def test_forms_of_scores(self):
        reply = """Here you are:
        ```json
        [{"Accuracy to prompt": {"explanation": "a {brace}", "score": "7.5/10"}, "creativity_and_originality": 12,
          "visual_quality_and_realism": "6", "consistency_and_cohesion": {"score": 4}, "overall_score": 8}]
        ```"""
        assert grades(reply) == {
            "accuracy_to_prompt": 7.5,
            "creativity_and_originality": 10.0,
            "visual_quality_and_realism": 6.0,
            "consistency_and_cohesion": 4.0,
            "overall_score": 8.0,
        }

    def test_overall_from_five_axes(self):
        five = {axis: index for index, axis in enumerate(GRADER_AXES)}
        assert grades(str(five).replace("'", '"'))["overall_score"] == 2.0
        assert "overall_score" not in grades('{"accuracy_to_prompt": 3}')

    @pytest.mark.parametrize(
        "reply",
        ["", "8", '{"overall_score": {"score": 7', '{"score": 7}', '{"overall_score": true}', '{"overall_score": NaN}',
         '{"overall_score": null}', "{" * 2000],
    )  # fmt: skip
    def test_nothing_to_read(self, reply):
        assert grades(reply) is None


def test_percentage():
    assert percentage("Probability: 37.5") == 0.375
    assert percentage("probability: 80%") == 0.8
    assert percentage("Probability: 101") is None


def test_probability_of_yes():
    log = math.log
    assert probability_of_yes({"Yes": log(0.5), " yes": log(0.25), "▁No": log(0.2), "It": log(0.05)}) == pytest.approx(
        0.75
    )
    assert probability_of_yes({"No": log(0.9), "A": log(0.1)}) == 0.0
    assert probability_of_yes({"The": log(0.9)}) is None
    assert probability_of_yes({"Yes": 1e-9}) == 1.0
