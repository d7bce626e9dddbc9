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
        ("Final Score: 4/10", 2.0),
        ("Final Score: 4 out of 10", 2.0),
        ("Final Score: 8.5 / 10", 4.25),
        ("Final Score: 85%", 4.25),
        ("Final Score: 4 stars out of 5", 4.0),
        ("Final Score (out of 10): 8", 4.0),
        ("Final Score (0-100): 70", 3.5),
        ("Final Score: 3,5", 3.5),
        ("Final Score: four", 4.0),
        ("Final Score: \\boxed{4}", 4.0),
        ('```json\n{"final_score": 4}\n```', 4.0),
        ("**Score:** 4", 4.0),
        ("70/100", 3.5),
        ("4 stars out of 5", 4.0),
        ("<answer>4</answer>", 4.0),
        ("<think>Final Score: 2</think>\nFinal Score: 4", 4.0),
        ("Final Score: 4\n<thinking>or Final Score: 2?</thinking>", 4.0),
        ("Final Score: 2</think>Final Score: 4", 4.0),
        ("<reasoning>a <think>Final Score: 1</think> Final Score: 2</reasoning>Final Score: 5", 5.0),
        ("<think>Final Score: 2", None),
        ("<think>Final Score: 2</think><answer>Final Score: 3</answer>", 3.0),
        ("Draft Final Score: 5\nFinal Score: 3", 3.0),
        ("The final score is not a 5, rather a 3", 3.0),
        ("not a 5, rather a 3", 3.0),
        ("I'd have given 5 but the hands are wrong, so 3", 3.0),
        ("between 1 and 10 I give 6", 3.0),
        ("Final Score: 4\nThe final score is based on two criteria.", 4.0),
        ("Final Score: 3-4", None),
        ("Final Score: 3 or 4", None),
        ("Final Score: 5? No, 3", None),
        ("Final Score: 5 would be too much", None),
        ("Alignment Score: 4", None),
        ("1. The dog is red\n2. It runs", None),
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
        ("I don't think Image 1 is better", None),
        ("I do not, honestly, believe Image 1 is better.", None),
        ("Image 1 isn't better.", None),
        ("Image 1 is better. Actually, I do not think Image 1 is better.", None),
        ("<think>Image 1 is better</think>Image 2 is better", 0.0),
        ("<think>Image 1 is better", None),
        ("While Image 1 is not bad, Image 2 is better.", 0.0),
        ("Image 2 is worse", 1.0),
        ("Image 1 is much worse than Image 2.", 0.0),
        ("Image 1 is better... no, Image 2", 0.0),
        ("The second image is better", 0.0),
        ("The left image is superior.", 1.0),
        ("Image B is better than Image A", 0.0),
        ("I prefer Image 2 over Image 1.", 0.0),
        ("Winner: Image 1", 1.0),
        ('{"winner": "Image 2"}', 0.0),
        ("Image 2", 0.0),
        ("A", 1.0),
        ("tie", 0.5),
        ("both", 0.5),
        ("Neither image is better.", 0.5),
        ("It's a tie.", 0.5),
        ("The man in image 1 wears a tie.", None),
        ("If Image 1 is better, say so.", None),
        ("Is it that Image 1 is better?", None),
        ("No doubt Image 1 is better.", 1.0),
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
        ("<think>say <answer>Image 1 is better</answer></think>", None),
        ("<answer>I don't think Image 1 is better</answer>", None),
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
        ("score", "expected"),
        [("70/100", 7.0), ("4 out of 5", 8.0), ("85%", 8.5), ("7,5", 7.5), ("3-4", None), ("7 (of 10)", 7.0)],
    )
    def test_scores_with_a_maximum(self, score, expected):
        assert (grades(f'{{"overall_score": "{score}"}}') or {}).get("overall_score") == expected

    def test_drafts_do_not_count(self):
        assert grades('<think>{"overall_score": 2}</think>{"overall_score": 8}') == {"overall_score": 8.0}

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
