"""One steered call: what the user asked for, with a generator for every particle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..search import Strategy
from .arguments import number_of_prompts, reward_prompts, texts_or_keys
from .components import makes_videos
from .generators import draw_seed, fresh_generators, particle_generators
from .inputs import NUMBERS, Way, entries_of
from .outputs import default_output_type
from .wordings import wordings_of


@dataclass(frozen=True)
class Call:
    """Arguments of a pipeline's call, for P populations of particles.

    Attributes:
        pipe: the pipeline.
        arguments: of its own call, by name, without those below.
        prompts: P texts that the reward reads.
        per_prompt: populations per prompt, `num_images_per_prompt` or `num_videos_per_prompt`.
        num_slots: rows of the pipeline's batch for each population, one per particle.
        generators: P * num_slots, prompt by prompt; the noise of a row.
        search_generators: P, for what a search draws.
        output_type: asked for, or what the pipeline gives unasked.
        eta: asked for; None if it was not.
        wordings: P * num_slots texts that the pipeline is given in place of the prompts, one per row; None for none.
    """

    pipe: Any
    arguments: Mapping[str, Any]
    prompts: tuple[str, ...]
    per_prompt: int
    num_slots: int
    generators: tuple[torch.Generator, ...]
    search_generators: tuple[torch.Generator, ...]
    output_type: str = "pil"
    eta: float | None = None
    wordings: tuple[str, ...] | None = None

    @classmethod
    def of(
        cls,
        pipe: Any,
        strategy: Strategy,
        arguments: Mapping[str, Any],
        reward_prompt: str | Sequence[str] | None = None,
        shared: Callable[[int], int] = lambda seed: seed,
        prompt_pool: Sequence[str] | Sequence[Sequence[str]] | None = None,
    ) -> Call:
        """From what a user gives.

        Args:
            arguments: of the pipeline's call, by name.
            reward_prompt: what the reward reads in place of the prompts.
            shared: makes a seed that was drawn here the one that all processes use.
            prompt_pool: wordings of each prompt, see `wordings_of`.

        Raises:
            ValueError: for arguments that do not fit together.
        """
        rest = dict(arguments)
        output_type, eta = rest.pop("output_type", None) or default_output_type(pipe), rest.pop("eta", None)
        generator = rest.pop("generator", None)
        per_prompt = max(rest.pop(name, None) or 1 for name in NUMBERS)
        num_prompts = number_of_prompts(rest)
        texts = reward_prompts(rest, reward_prompt, num_prompts)
        num_rows = num_prompts * per_prompt * strategy.num_particles
        latents = rest.get("latents")
        if latents is not None and len(latents) != num_rows:
            raise ValueError(f"Expected `latents` for {num_rows} particles, but got {len(latents)}.")
        seed = strategy.seed
        if generator is None and seed is None:
            seed = shared(draw_seed())
        rows, of_search = particle_generators(
            generator, seed, texts_or_keys(rest, num_prompts), per_prompt, strategy.num_particles
        )
        prompts = tuple(text for text in texts for _ in range(per_prompt))
        wordings = None
        if prompt_pool is not None:
            wordings = wordings_of(rest, prompt_pool, num_prompts, per_prompt, strategy.num_particles)
        return cls(
            pipe,
            rest,
            prompts,
            per_prompt,
            strategy.num_particles,
            tuple(rows),
            tuple(of_search),
            output_type,
            eta,
            wordings,
        )

    @property
    def num_populations(self) -> int:
        """P."""
        return len(self.prompts)

    @property
    def num_rows(self) -> int:
        """Of the pipeline's batch."""
        return self.num_populations * self.num_slots

    @property
    def num_prompts(self) -> int:
        """Of the pipeline's call."""
        return self.num_populations // self.per_prompt

    @property
    def rows_per_prompt(self) -> int:
        """Of the pipeline's batch."""
        return self.per_prompt * self.num_slots

    @property
    def videos(self) -> bool:
        """Whether the pipeline gives videos."""
        return makes_videos(self.pipe)

    @property
    def stops_early(self) -> bool:
        """Whether the loop ends before its last step, so that what it leaves is noisy."""
        return self.arguments.get("denoising_end") is not None

    def generators_of(self, rows: Tensor) -> list[torch.Generator]:
        """Those of some rows (L,)."""
        return [self.generators[row] for row in rows.tolist()]

    def stock(self, way: Way) -> dict[str, Any]:
        """The arguments of the pipeline's own call, a row per particle.

        Args:
            way: how the pipeline is asked for them.
        """
        prompts = [prompt for prompt in range(self.num_prompts) for _ in range(self.rows_per_prompt)]
        asked = way.arguments(self.pipe, self.arguments, self.num_prompts, prompts)
        asked |= self.worded(range(self.num_rows))
        # What is denoised may be moved in place.
        own = {
            name: value.clone()
            for name, value in asked.items()
            if name.endswith("latents") and isinstance(value, Tensor)
        }
        return {**asked, **own, "generator": way.generators(self.generators)}

    def worded(self, rows: Sequence[int]) -> dict[str, Any]:
        """The texts in place of the prompts of some rows, as an argument; nothing where there are none."""
        if self.wordings is None:
            return {}
        texts = [self.wordings[row] for row in rows]
        return {"prompt": texts if len(texts) > 1 else texts[0]}

    @property
    def wordiest_row(self) -> int:
        """The first of the rows with the longest text; 0 where there are none."""
        texts = self.wordings
        if texts is None:
            prompt = self.arguments.get("prompt")
            if not isinstance(prompt, (list, tuple)) or len(prompt) != self.num_prompts:
                return 0
            texts = tuple(prompt[row // self.rows_per_prompt] for row in range(self.num_rows))
        return max(range(len(texts)), key=lambda row: (len(texts[row]), -row))

    def in_steps(self, num_steps: int) -> Call:
        """The same call with a loop of so many steps, without noise of its own asking."""
        rest = {name: value for name, value in self.arguments.items() if name not in ("timesteps", "sigmas")}
        return dataclasses.replace(self, arguments={**rest, "num_inference_steps": num_steps}, eta=None)

    def begun_from(self, slots: Tensor, states: Sequence[Tensor]) -> Call:
        """The same call for some particles of each population, from the noise they began with.

        Args:
            slots: (P, M) theirs.
            states: P * num_slots, of the generators when they began.
        """
        rows = (slots + self.num_slots * torch.arange(self.num_populations)[:, None]).flatten().tolist()
        arguments = dict(self.arguments)
        if arguments.get("latents") is not None:
            arguments["latents"] = arguments["latents"][rows]
        generators = []
        for row in rows:
            generator = torch.Generator(self.generators[row].device)
            generator.set_state(states[row])
            generators.append(generator)
        wordings = None if self.wordings is None else tuple(self.wordings[row] for row in rows)
        return dataclasses.replace(
            self, arguments=arguments, num_slots=slots.shape[1], generators=tuple(generators), wordings=wordings
        )

    def subset(self, populations: Sequence[int], strategy: Strategy) -> Call:
        """The same call for some of its populations, with other noise drawn from their generators."""
        arguments = {name: value for name, value in self.arguments.items() if name != "latents"}
        chosen = [p // self.per_prompt for p in populations]
        asked: dict[str, Any] = {
            **entries_of(self.pipe, arguments, self.num_prompts, chosen),
            "generator": fresh_generators([self.search_generators[p] for p in populations]),
            "output_type": self.output_type,
        }
        if self.eta is not None:
            asked["eta"] = self.eta
        call = Call.of(self.pipe, strategy, asked, [self.prompts[p] for p in populations])
        if self.wordings is None:
            return call
        rows = [p * self.num_slots + slot for p in populations for slot in range(self.num_slots)]
        return dataclasses.replace(call, wordings=tuple(self.wordings[row] for row in rows))
