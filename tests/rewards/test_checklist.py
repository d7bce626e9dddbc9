"""The checklist reward: questions, answers, and what becomes of them."""

from __future__ import annotations

import json
import math

import pytest
import torch
from chat_server import MODEL, ChatServer, parts, redness

from fk_steer import FKSteering, Trace, load_reward, steer
from fk_steer.report.page import details_of_best, trace_page
from fk_steer.report.wording import told_of_details
from fk_steer.rewards.chat.checklist_chat import probability
from fk_steer.rewards.chat.client import Answer
from fk_steer.rewards.check_templates import from_wording, plural, taken_apart
from fk_steer.rewards.check_writing import Checklists, parse_checklist
from fk_steer.rewards.checklist import IN_ONE_WORD, details_of, first_tokens
from fk_steer.rewards.checks import (
    Check,
    check_of,
    checklist_lines,
    checklist_of,
    gated,
    mean_of_answers,
    read_checklists,
    whole,
)
from fk_steer.rewards.judge import scores_or_none
from fk_steer.shapes import load_pipeline
from fk_steer.testing.rewards import save_qwen, save_qwen3


def asked(prompt: str) -> list[tuple[str, str, tuple[int, ...], str]]:
    return [(one.question, one.answer, one.parents, one.kind) for one in from_wording(prompt)]


class TestWording:
    def test_number_attributes_and_existence(self):
        assert asked("a photo of two striped green donuts") == [
            ("How many donuts are in the image?", "two", (3,), "count"),
            ("Are the donuts striped?", "yes", (3,), "attribute"),
            ("Are the donuts green?", "yes", (3,), "attribute"),
            ("Are there any donuts in the image?", "yes", (), "object"),
        ]

    def test_relations_stand_between_the_things_and_fall_with_either(self):
        assert asked("a photo of a dog right of a teddy bear") == [
            ("How many dogs are in the image?", "one", (1,), "count"),
            ("Are there any dogs in the image?", "yes", (), "object"),
            ("Is the dog right of the teddy bear?", "yes", (1, 4), "position"),
            ("How many teddy bears are in the image?", "one", (4,), "count"),
            ("Are there any teddy bears in the image?", "yes", (), "object"),
        ]

    def test_the_longest_relation_counts(self):
        questions = [question for question, _, _, kind in asked("a cat to the left of a dog") if kind == "position"]
        assert questions == ["Is the cat to the left of the dog?"]

    def test_several_things(self):
        kinds = [kind for _, _, _, kind in asked("seven lions, a red monkey chasing four suitcases, and a cow")]
        assert kinds == [
            "count",
            "object",
            "count",
            "attribute",
            "object",
            "verb",
            "count",
            "object",
            "count",
            "object",
        ]

    def test_a_colour_may_be_the_thing(self):
        assert [question for question, *_ in asked("an orange")] == [
            "How many oranges are in the image?",
            "Are there any oranges in the image?",
        ]

    @pytest.mark.parametrize(
        "prompt",
        [
            "",
            "A painting of the sea at night",
            "a dog that chases a cat",
            "two",
            "red dogs",
            "a dog in a hat",
            "a dog and two dogs",
        ],
    )
    def test_what_is_worded_otherwise_is_one_question(self, prompt):
        assert taken_apart(prompt) is None
        assert from_wording(prompt) == whole(prompt)
        assert prompt in from_wording(prompt)[0].question

    @pytest.mark.parametrize(
        ("noun", "expected"),
        [("box", "boxes"), ("baby", "babies"), ("toy", "toys"), ("computer mouse", "computer mice"), ("bus", "buses")],
    )
    def test_plurals(self, noun, expected):
        assert plural(noun) == expected


class TestAnswers:
    CHAIN = (Check("a"), Check("b", parents=(0,)), Check("c", parents=(1,)), Check("d"))

    def test_a_wrong_answer_takes_its_children_and_theirs_along(self):
        answers = torch.tensor([[0.4, 0.9, 0.8, 0.7], [0.5, 0.9, 0.8, 0.7], [0.9, 0.2, 0.8, 0.7]])
        expected = torch.tensor([[0.4, 0.0, 0.0, 0.7], [0.5, 0.9, 0.8, 0.7], [0.9, 0.2, 0.0, 0.7]])
        torch.testing.assert_close(gated(answers, self.CHAIN), expected)

    def test_parents_may_come_later(self):
        checks = (Check("a", parents=(1,)), Check("b"))
        assert gated(torch.tensor([1.0, 0.1]), checks).tolist() == pytest.approx([0.0, 0.1])

    def test_means(self):
        answers = torch.tensor([0.2, 0.4, 0.8], dtype=torch.float64)
        checks = (Check("a"), Check("b"), Check("c"))
        assert mean_of_answers(answers, checks).item() == pytest.approx(1.4 / 3)
        assert mean_of_answers(answers, checks, "geometric").item() == pytest.approx(0.064 ** (1 / 3))

    def test_the_geometric_mean_of_a_zero_is_zero_and_has_a_gradient(self):
        answers = torch.tensor([[0.0, 0.5], [0.25, 0.5]], requires_grad=True)
        means = mean_of_answers(answers, (Check("a"), Check("b")), "geometric")
        assert means.tolist() == pytest.approx([0.0, math.sqrt(0.125)])
        (gradient,) = torch.autograd.grad(means.sum(), answers)
        assert gradient.isfinite().all()
        assert gradient[1, 0].item() == pytest.approx(math.sqrt(0.125) / (2 * 0.25))

    def test_spellings(self):
        assert set(Check("", "two").spellings) == {"two", " two", "Two", " Two", "2", " 2"}
        assert set(Check("").spellings) == {"yes", " yes", "Yes", " Yes"}
        assert {"3", "three", " Three"} <= set(Check("", "3").spellings)
        assert "NASA" in Check("", "NASA").spellings


class TestFiles:
    def test_there_and_back(self, tmp_path):
        lists = {
            "a dog": (Check("Is there a dog?"), Check("Is it brown?", "no", (0,), "attribute")),
            "☃": (Check("?"),),
        }
        (tmp_path / "lists.jsonl").write_text(checklist_lines(lists), encoding="utf-8")
        assert read_checklists(tmp_path / "lists.jsonl") == lists

    def test_geneval_2s_lines(self):
        checks = checklist_of(
            {"vqa_list": [["How many pigs?", "two"], ["Any pigs?", "Yes"]], "skills": ["count", "object"]}
        )
        assert checks == (Check("How many pigs?", "two", (), "count"), Check("Any pigs?", "Yes", (), "object"))

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            ({"prompt": "x"}, "Expected `checks`"),
            ({"prompt": "x", "checks": []}, "at least one question"),
            ({"prompt": "x", "checks": [{"question": "a", "parents": [1]}]}, "others of the 1"),
            (
                {"prompt": "x", "checks": [{"question": "a", "parents": [1]}, {"question": "b", "parents": [0]}]},
                "its own",
            ),
            ({"prompt": "x", "checks": [{"question": "a", "weight": 2}]}, "Expected a check such as"),
            ({"checks": [{"question": "a"}]}, "expected an object with a `prompt`"),
            ({"prompt": "x", "vqa_list": [["a", "b"]], "skills": ["c", "d"]}, "as many `skills`"),
        ],
    )
    def test_lines_that_are_none(self, tmp_path, entry, message):
        file = tmp_path / "lists.jsonl"
        file.write_text(json.dumps({"prompt": "y", "checks": [{"question": "q"}]}) + "\n" + json.dumps(entry) + "\n")
        with pytest.raises(ValueError, match=f"Line 2 of .*{message}"):
            read_checklists(file)

    def test_a_file_counts_before_the_wording(self, tmp_path):
        file = tmp_path / "lists.jsonl"
        file.write_text(checklist_lines({"a dog": [Check("Is there a dog?")]}))
        dog, cat = Checklists(file)(["a dog", "a cat"])
        assert dog == (Check("Is there a dog?"),)
        assert cat == from_wording("a cat")

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="Expected checklists in"):
            Checklists(tmp_path / "lists.jsonl")
        with pytest.raises(ValueError, match="a file to keep what the `writer` writes"):
            Checklists(writer="llm")


REPLY = """<think>{"checks": [{"question": "draft?"}]}</think>Here you are:
```json
{"checks": [{"question": "Is there a dog?", "answer": "yes", "parents": [], "kind": "object"},
            {"question": "Is it brown?", "parents": [1], "kind": "attribute", "comment": "none"}]}
```"""


class TestWriter:
    def test_replies(self):
        assert parse_checklist(REPLY) == (
            Check("Is there a dog?", kind="object"),
            Check("Is it brown?", parents=(0,), kind="attribute"),
        )
        assert parse_checklist("no JSON") is None
        assert parse_checklist('{"checks": [{"question": "a", "parents": [1]}]}') is None

    def test_what_is_written_is_kept(self, tmp_path):
        file = tmp_path / "new" / "lists.jsonl"
        with ChatServer(lambda text, images: REPLY) as server:
            lists = Checklists(file, "llm", server.url)
            (first,) = lists(["a brown dog"])
            assert lists(["a brown dog", "a brown dog"]) == [first, first]
            assert len(server.requests) == 1
            assert '"a brown dog"' in parts(server.requests[0])[0]
            # Another process reads it and asks for what is new alone.
            assert Checklists(file, "llm", server.url)(["a brown dog"]) == [first]
            assert len(server.requests) == 1
        assert first == parse_checklist(REPLY)
        assert read_checklists(file) == {"a brown dog": first}

    def test_what_others_wrote_meanwhile_stays(self, tmp_path):
        file = tmp_path / "lists.jsonl"
        with ChatServer(lambda text, images: REPLY) as server:
            lists = Checklists(file, "llm", server.url)
            file.write_text(checklist_lines({"a cat": [Check("Is there a cat?")]}))
            lists(["a brown dog"])
        assert set(read_checklists(file)) == {"a cat", "a brown dog"}

    def test_what_cannot_be_read_is_asked_again_and_then_taken_by_its_wording(self, tmp_path, caplog):
        file = tmp_path / "lists.jsonl"
        with ChatServer(lambda text, images: "I would rather not.") as server:
            lists = Checklists(file, "llm", server.url)
            assert lists(["a dog"]) == [from_wording("a dog")] == lists(["a dog"])
            assert len(server.requests) == 2
        assert "No checklist could be had for the prompt 'a dog'" in caplog.text
        assert not file.exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    save_qwen(folder)
    return folder


@pytest.fixture(scope="module")
def reward(folder):
    return load_reward("checklist", path=str(folder), batch_size=2)


IMAGES = torch.rand(3, 3, 56, 56, generator=torch.Generator().manual_seed(0))


class TestLocal:
    @pytest.mark.parametrize(
        ("save", "system"),
        [(save_qwen, "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"), (save_qwen3, "")],
    )
    def test_the_probability_of_the_first_token(self, save, system, tmp_path):
        """By the model's own chat, one question after the other."""
        reward = load_reward("checklist", **save(tmp_path))
        model, tokenizer = reward.model.qwen, reward.tokenizer
        checks = [Check("How many dogs are in the image?", "two"), Check("Is it red?")]
        (answers,) = reward.answers(IMAGES[:1], [checks])
        patches, grids = reward.preprocess(IMAGES[:1])
        count = int(grids.prod() // 4)
        for check, answer in zip(checks, answers):
            text = (
                f"{system}<|im_start|>user\n<|vision_start|>"
                + "<|image_pad|>" * count
                + f"<|vision_end|>{check.question} Answer in one word.<|im_end|>\n<|im_start|>assistant\n"
            )
            ids = tokenizer(text, return_tensors="pt").input_ids
            with torch.no_grad():
                logits = model(
                    input_ids=ids,
                    pixel_values=patches,
                    image_grid_thw=grids,
                    mm_token_type_ids=(ids == model.config.image_token_id).int(),
                ).logits[0, -1]
            first = {tokenizer(spelling).input_ids[0] for spelling in check.spellings}
            assert answer == pytest.approx(logits.softmax(-1)[list(first)].sum().item(), rel=1e-4)

    def test_spellings_that_begin_alike_count_once(self, reward):
        # ' two' and ' Two' begin with the blank in the tiny tokenizer, which has a token for each character.
        ids = first_tokens(reward.tokenizer, Check("", "two").spellings).tolist()
        assert sorted(ids) == sorted(set(reward.tokenizer.convert_tokens_to_ids(["t", " ", "T", "2"])))

    def test_the_score_is_the_mean(self, folder, reward):
        prompt = "a red dog"
        checks = from_wording(prompt)
        (answers,) = reward.answers(IMAGES[:1], [checks])
        for mean in ("arithmetic", "geometric"):
            one = load_reward("checklist", path=str(folder), mean=mean)
            expected = mean_of_answers(torch.tensor(answers), checks, mean).item()
            assert one(IMAGES[:1], [prompt]).item() == pytest.approx(expected, rel=1e-4)

    def test_an_unknown_mean(self, folder):
        with pytest.raises(ValueError, match="Unknown mean 'harmonic'. Known: arithmetic, geometric"):
            load_reward("checklist", path=str(folder), mean="harmonic")

    def test_one_checklist_per_image(self, reward):
        with pytest.raises(ValueError, match="one checklist per image, but got 3 images and 1 checklists"):
            reward.answers(IMAGES, [[Check("?")]])


@pytest.fixture(scope="module")
def trace(reward):
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    steered = steer(pipe, {reward: 1.0}, FKSteering(num_particles=2, seed=0))
    prompts = ["a photo of a red star", "a photo of two hearts"]
    return steered(prompts, num_inference_steps=8, generator=torch.Generator().manual_seed(0)).trace


class TestTrace:
    def test_what_each_question_got_is_on_record(self, reward, trace):
        for event in trace.events:
            (details,) = event.details.values()
            for population, prompt in enumerate(trace.prompts):
                checks = reward.checklists([prompt])[0]
                for score, said in zip(event.scores["checklist"][population], details[population]):
                    assert list(said) == [check.question for check in checks]
                    answers = torch.tensor(list(said.values()), dtype=torch.float64)
                    assert mean_of_answers(answers, checks).item() == pytest.approx(score)

    def test_it_is_kept_with_the_trace(self, trace, tmp_path):
        trace.save(tmp_path / "trace.json")
        assert Trace.load(tmp_path / "trace.json").events == trace.events
        assert trace.of(1).events[0].details["checklist"] == trace.events[0].details["checklist"][1:]

    def test_it_is_in_the_page(self, trace):
        page = trace_page(trace)
        assert "What the reward of the best one was made of" in page
        best = details_of_best(trace, 0)
        assert list(best)[1] == "Is the star red?"
        assert f'<td>Is the star red?</td><td class="number">{best["Is the star red?"]:.3f}</td>' in page

    def test_the_lowest_are_named_of_many(self):
        details = {f"{number}?": number / 20 for number in range(14, -1, -1)}
        told = told_of_details(details)
        assert told[0] == "11? 0.550"
        assert told[-2:] == ["0? 0.000", "3 more, all higher"]


class TestChat:
    def test_the_sum_over_spellings(self):
        first = {" Two": math.log(0.3), "2": math.log(0.2), "three": math.log(0.5)}
        assert probability(Answer("2", first), Check("", "two")) == pytest.approx(0.5)
        assert probability(Answer("2"), Check("", "two")) == 1.0
        assert probability(Answer("Three."), Check("", "two")) == 0.0
        assert probability(Answer(None), Check("", "two")) is None

    def test_each_question_is_asked_of_each_image(self):
        with ChatServer() as server:
            reward = load_reward("checklist-chat", model=MODEL, base_url=server.url)
            images = IMAGES * torch.tensor([1.0, 0.5, 0.5]).view(1, 3, 1, 1)
            answers = reward.answers(images[:2], [[Check("Red?"), Check("How many?", "two")], [Check("Red?")]])
            texts = [parts(body)[0] for body in server.requests]
        assert sorted(texts) == sorted([IN_ONE_WORD.format(one) for one in ("Red?", "Red?", "How many?")])
        from llava_reward_guide.images import to_pil

        expected = [redness(image) for image in to_pil(images[:2])]
        # The server says Yes or No to everything, so never 'two'.
        assert [len(one) for one in answers] == [2, 1]
        assert answers[0] == [pytest.approx(expected[0], abs=1e-4), 0.0]
        assert answers[1] == [pytest.approx(expected[1], abs=1e-4)]

    def test_without_probabilities_words_count(self):
        with ChatServer(lambda text, images: "Yes." if "Red" in text else "four", logprobs=False) as server:
            reward = load_reward("checklist-chat", model=MODEL, base_url=server.url)
            answers = reward.answers(IMAGES[:1], [[Check("Red?"), Check("How many?", "two"), Check("How?", "four")]])
        assert answers == [[1.0, 0.0, 1.0]]

    def test_statistics_leave_out_what_could_not_be_had(self):
        def reply(text, images):
            return "yes" if redness(images[0]) > 0.5 else " "

        with ChatServer(reply, logprobs=False) as server:
            reward = load_reward("checklist-chat", model=MODEL, base_url=server.url)
            red = torch.zeros(2, 3, 32, 32)
            red[0, 0] = 1.0
            red[1, 1:] = 1.0
            assert scores_or_none(reward, red, ["the sea"] * 2, "here") == [1.0, None]
            # Steering has the mean of the others in its place.
            assert reward(red, ["the sea"] * 2).tolist() == [1.0, 1.0]


def test_a_question_that_is_asked_twice():
    checks = (Check("Red?"), Check("Blue?"), Check("Red?", "no"))
    said = details_of([[0.1, None, 0.3], [0.4, 0.5, 0.6]], [torch.tensor([1, 0])], [checks])
    assert said == [[{"Red?": 0.4, "Blue?": 0.5, "Red? (3)": 0.6}, {"Red?": 0.1, "Red? (3)": 0.3}]]


def test_a_check_of_plain_values():
    assert check_of(["Any dogs?", "Yes"]) == Check("Any dogs?", "Yes")
    assert check_of(Check("a", "b", (1,), "c").to_dict()) == Check("a", "b", (1,), "c")
