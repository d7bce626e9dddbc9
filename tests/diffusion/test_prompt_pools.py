"""Several wordings of a prompt as particles."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fk_steer import FKSteering, steer
from fk_steer.diffusion.wordings import check_conditions
from fk_steer.search import Allocation, Evolution, Lookahead, Plan, Screen, Strategy
from fk_steer.search.screen import best_of
from fk_steer.testing import CALLS, PROMPTS, redness, row_generators
from fk_steer.testing.tiny import FAMILIES


STEPS = 8
POOL = [["a red circle", "circle, red", "one round red thing"], ["two blue squares", "squares"]]
SMC = FKSteering(4, lmbda=2.0, tempering="constant", schedule=(0.25, 0.5))
NAMES = [*CALLS, "modular-flux", "modular-sdxl", "qwen-image", "kandinsky5", "z-image", "pixart", "sana"]


def pipe_and_call(name, **options):
    make, call = FAMILIES[name]
    return make(), {**call, "num_inference_steps": STEPS, "output_type": "pt", **options}


def wording(prompt, slot):
    texts = POOL[prompt]
    return texts[slot % len(texts)]


def stock_image(name, pipe, call, prompt, slot):
    """The image of a wording by the pipeline itself: called for it alone, or, where what it makes of a text depends on
    the others' lengths, for the wordings of all particles."""
    rows = range(8) if name == "kandinsky5" else [4 * prompt + slot]
    texts = [wording(row // 4, row % 4) for row in rows]
    asked = {"prompt": texts, "generator": row_generators(*rows), **call}
    images = pipe(**asked, output="images") if hasattr(pipe, "blocks") else pipe(**asked, return_dict=False)[0]
    return images[list(rows).index(4 * prompt + slot)]


@pytest.mark.parametrize(
    "name, strategy", [(name, SMC) for name in NAMES] + [(name, Evolution(4)) for name in ("sd", "sdxl", "flux")]
)
def test_equal_wordings_are_the_prompt(name, strategy):
    pipe, call = pipe_and_call(name)
    plain = steer(pipe, redness, strategy)(prompt=PROMPTS, generator=row_generators(0, 1), **call)
    pool = [[PROMPTS[0]] * 3, [PROMPTS[1]]]
    pooled = steer(pipe, redness, strategy)(prompt=PROMPTS, prompt_pool=pool, generator=row_generators(0, 1), **call)
    assert torch.equal(plain.particles, pooled.particles) and torch.equal(plain.rewards, pooled.rewards)
    assert plain.trace.nfe == pooled.trace.nfe


@pytest.mark.parametrize("name", NAMES)
def test_a_particle_is_the_stock_image_of_its_wording(name):
    pipe, call = pipe_and_call(name)
    output = steer(pipe, redness, best_of(4))(
        prompt=PROMPTS, prompt_pool=POOL, generator=row_generators(*range(8)), **call
    )
    for p in range(2):
        rewards = output.trace.events[-1].rewards[p]
        order = sorted(range(4), key=lambda slot: -rewards[slot])
        for image, slot in zip(output.particles[p], order):
            torch.testing.assert_close(image, stock_image(name, pipe, call, p, slot), atol=1e-4, rtol=1e-4)


class Copies(Strategy):
    """From the middle on, all continue one particle, without noise."""

    def __init__(self, slot):
        super().__init__(4, noise=0.0)
        object.__setattr__(self, "slot", slot)

    def events(self, num_steps):
        return [num_steps // 2]

    def copying(self, num_steps):
        return []

    def step(self, look):
        return Plan(torch.full_like(look.everyone, self.slot))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("slot", [1, 2])
def test_copies_go_on_with_the_wording_of_their_ancestor(name, slot):
    """Without noise all end as the stock image of the wording with which that one began."""
    pipe, call = pipe_and_call(name)
    output = steer(pipe, redness, Copies(slot))(
        prompt=PROMPTS, prompt_pool=POOL, generator=row_generators(*range(8)), **call
    )
    for p in range(2):
        expected = stock_image(name, pipe, call, p, slot)
        for image in output.particles[p]:
            torch.testing.assert_close(image, expected, atol=1e-4, rtol=1e-4)


class Watched:
    """Notes of each row the wording that the denoiser reads with its sample."""

    def __init__(self, pipe):
        self.known = {text: pipe.encode_prompt(text, "cpu", 1, False)[0][0] for texts in POOL for text in texts}
        self.calls = []
        # Within the denoiser, whose own arguments are those of the rows that are computed.
        attention = pipe.unet.down_blocks[1].attentions[0].transformer_blocks[0].attn2
        attention.to_k.register_forward_pre_hook(self.note)

    def note(self, module, args):
        (states,) = args
        half = states[len(states) // 2 :]
        self.calls.append([next(text for text, one in self.known.items() if torch.equal(one, row)) for row in half])


@pytest.mark.parametrize(
    "strategy",
    [SMC, FKSteering(6, schedule=(0.25, 0.5), resampling="top-k").replace(schedule={"at": [2, 4], "alive": [4, 3]})],
    ids=["smc", "pruning"],
)
def test_every_row_is_read_with_the_wording_of_its_root(strategy):
    pipe, call = pipe_and_call("sd")
    watched = Watched(pipe)
    roots = []
    output = steer(pipe, redness, strategy)(
        PROMPTS,
        prompt_pool=POOL,
        generator=row_generators(0, 1),
        on_event=lambda event: roots.append((event.step, event.roots)),
        **call,
    )
    moved = any(row != sorted(set(row)) for _, step in roots for row in step.tolist())
    assert moved or strategy.schedule.alive
    for step, found in roots[:-1]:
        expected = {wording(p, root) for p, row in enumerate(found.tolist()) for root in row}
        assert set(watched.calls[step + 1]) == expected
    assert output.trace.prompts == PROMPTS


@pytest.mark.parametrize("strategy", [Evolution(4), Lookahead(4)], ids=["evolution", "lookahead"])
def test_searches_that_go_back_keep_wordings_too(strategy):
    pipe, call = pipe_and_call("sd")
    watched = Watched(pipe)
    seen = []
    steer(pipe, redness, strategy)(
        PROMPTS, prompt_pool=POOL, generator=row_generators(0, 1), on_event=seen.append, **call
    )
    last = seen[-1]
    expected = {wording(p, root) for p, row in enumerate(last.roots.tolist()) for root in row}
    assert set(watched.calls[-1]) == expected


def test_chunks_change_nothing():
    from fk_steer import Execution

    pipe, call = pipe_and_call("sd")
    options = {"prompt_pool": POOL, **call}
    whole = steer(pipe, redness, SMC)(PROMPTS, generator=row_generators(0, 1), **options)
    parts = steer(pipe, redness, SMC, Execution(denoise_batch_size=3))(
        PROMPTS, generator=row_generators(0, 1), **options
    )
    torch.testing.assert_close(whole.particles, parts.particles, atol=1e-5, rtol=1e-5)


def test_the_reward_reads_the_prompt():
    read = []

    def reward(images, prompts):
        read.extend(prompts)
        return redness(images, prompts)

    pipe, call = pipe_and_call("sd")
    steer(pipe, reward, SMC)(PROMPTS, prompt_pool=POOL, **call)
    assert set(read) == set(PROMPTS)


def test_one_prompt_may_have_its_wordings_alone():
    pipe, call = pipe_and_call("sd")
    steered = steer(pipe, redness, SMC.replace(seed=0))
    assert torch.equal(
        steered(PROMPTS[0], prompt_pool=POOL[0], **call).particles,
        steered(PROMPTS[:1], prompt_pool=POOL[:1], **call).particles,
    )


@pytest.mark.parametrize("per_prompt", [1, 2])
def test_every_image_of_a_prompt_has_all_wordings(per_prompt):
    pipe, call = pipe_and_call("sd", num_images_per_prompt=per_prompt)
    watched = Watched(pipe)
    steer(pipe, redness, best_of(4))(PROMPTS, prompt_pool=POOL, **call)
    assert watched.calls[0] == [wording(p, k) for p in range(2) for _ in range(per_prompt) for k in range(4)]


@pytest.mark.parametrize("name", ["sd", "sdxl", "flux"])
def test_further_passes_have_the_same_wordings(name):
    """Seeds that are kept keep theirs; prompts that are run again have all of them again."""
    pipe, call = pipe_and_call(name)
    output = steer(pipe, redness, Screen(num_particles=4, keep=2, few_steps=2, few_sampler="own"))(
        PROMPTS, prompt_pool=POOL, generator=row_generators(*range(8)), **call
    )
    ((_, full),) = output.trace.retries
    for p in range(2):
        rewards = output.trace.events[-1].rewards[p]
        kept = sorted(sorted(range(4), key=lambda slot: -rewards[slot])[:2])
        for slot, reward in zip(kept, full.events[-1].rewards[p]):
            image = pipe(wording(p, slot), generator=row_generators(4 * p + slot), **call).images
            assert redness(image, [PROMPTS[p]]).item() == pytest.approx(reward, abs=1e-3)


def test_prompts_that_are_run_again_have_their_wordings():
    pipe, call = pipe_and_call("sd")
    watched = Watched(pipe)
    output = steer(pipe, redness, Allocation(best_of(3), passes=2, seed=0))(PROMPTS, prompt_pool=POOL, **call)
    again = [populations for populations, _ in output.trace.retries]
    for number, (p,) in enumerate(again):
        assert watched.calls[STEPS * (number + 1)] == [wording(p, k) for k in range(3)]


@pytest.mark.parametrize(
    "pool, message",
    [
        (["a", "b"], "a list of wordings for each of 2 prompts, but got one list of texts"),
        ([["a"]], "for each of 2 prompts, but got 1 lists"),
        ([["a"], []], "from 1 to 4 wordings of a prompt.*but got 0"),
        ([["a"], ["b"] * 5], "from 1 to 4 wordings of a prompt.*but got 5. Raise `num_particles`"),
        ([["a"], [3]], "`prompt_pool` to be a list of texts for each prompt"),
        ([["a"], "b"], "`prompt_pool` to be a list of texts for each prompt"),
        ("a", "`prompt_pool` to be a list of texts for each prompt, but got 'a'"),
        ([], "for each of 2 prompts, but got 0 lists"),
    ],
)
def test_mistakes_are_told_before_the_loop(pool, message):
    pipe, call = pipe_and_call("sd")
    with pytest.raises((ValueError, TypeError), match=message):
        steer(pipe, redness, SMC)(PROMPTS, prompt_pool=pool, **call)


def test_wordings_need_a_prompt():
    pipe, call = pipe_and_call("sd")
    embeds, negative = pipe.encode_prompt(PROMPTS, "cpu", 1, True)
    with pytest.raises(ValueError, match="`prompt_pool` holds wordings of `prompt`, but there is none"):
        steer(pipe, redness, SMC)(
            prompt_embeds=embeds,
            negative_prompt_embeds=negative,
            reward_prompt=PROMPTS,
            prompt_pool=POOL,
            **call,
        )


def test_what_a_denoiser_keeps_cannot_follow():
    with pytest.raises(ValueError, match="in its argument `cache`, which cannot follow particles of different"):
        check_conditions({"cache": SimpleNamespace(keys=torch.zeros(2))})
