"""Batches of latents and texts: what each step of fine-tuning sees.

**Every random draw is seeded by what it is used for.** The captions of a step come from a generator made of (seed,
step); what happens to one of them (posterior sample, noise, timestep, caption dropout) from one made of (seed, step,
place in the batch). So neither the number of processes nor accumulation nor an interruption changes what a step sees.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.nn import functional

from ..models import pipelines
from ..models.limits import check_words, tokenizers
from .captions import Captions
from .latents import Encoded
from .nets import Net, States

TEXTS = 256  # captions that are encoded together


@dataclass(frozen=True)
class Batch:
    """Samples of a step."""

    latents: Float32[Tensor, "n channel h w"]
    noise: Float32[Tensor, "n channel h w"]
    timestep: Int64[Tensor, "n"]  # numbers of the process's noise levels
    caption: Int64[np.ndarray, "n"]  # numbers into the captions' texts

    def split(self, size: int) -> list["Batch"]:
        parts = (slice(start, start + size) for start in range(0, len(self.caption), size))
        return [Batch(self.latents[p], self.noise[p], self.timestep[p], self.caption[p]) for p in parts]

    def to(self, device: torch.device) -> "Batch":
        latents, noise, timestep = (part.to(device) for part in (self.latents, self.noise, self.timestep))
        return Batch(latents, noise, timestep, self.caption)


class Sampler:
    """``sampler(step, places)``: what is in some places of a step's batch of ``size``.

    ``texts`` are the captions by number; 0 is the empty one, which a share of ``dropout`` gets instead of its own.
    """

    def __init__(
        self, captions: Captions, encoded: Encoded, net: Net, size: int, dropout: float = 0.1,
        balanced: bool = True, seed: int = 0,
    ) -> None:  # fmt: skip
        self.captions, self.encoded, self.net, self.dropout, self.seed = captions, encoded, net, dropout, seed
        self.rows = captions.draws(size, balanced, seed)
        texts, place = captions.texts()
        self.texts, self.number = ["", *texts], place.astype(np.int32) + 1
        longest = pipelines.defaults(net.pipeline).get("max_sequence_length")
        check_words(tokenizers(net.pipeline), self.texts[1:], longest)

    def __call__(self, step: int, places: range) -> Batch:
        rows = self.rows(step)
        latents, noise, timestep, caption = [], [], [], []
        for place in places:
            # place + 1, since numpy pads with zeros: (seed, step, 0) would be the generator of the step's captions
            rng = np.random.default_rng([self.seed, step, place + 1])
            timestep.append(self.net.process.draw(rng))
            caption.append(0 if rng.random() < self.dropout else self.number[rows[place]])
            mean, *deviation = self.encoded[self.captions.image[rows[place]]]
            inside, outside = rng.standard_normal((2, *mean.shape), np.float32)
            sample = mean + deviation[0] * inside if deviation else mean
            latents.append((sample - self.net.shift) * self.net.scale)
            noise.append(outside)
        x, epsilon = (torch.from_numpy(np.stack(part)) for part in (latents, noise))
        return Batch(x, epsilon, torch.tensor(timestep), np.array(caption, np.int64))


def ahead(make: Callable[[int], Batch], steps: range) -> Iterator[tuple[int, Batch]]:
    """Each step with its batch, which is made while the step before is at work."""
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(make, step) for step in steps[:1]]
        for step in steps:
            batch = waiting.pop().result()
            waiting += [pool.submit(make, later) for later in range(step + 1, min(step + 2, steps.stop))]
            yield step, batch


class Text:
    """``text(numbers)``: what the network reads of captions, as the pipeline itself makes it for generation.

    Captions repeat, so the states of all are computed once, where they fit into ``cache_mb`` and are fewer than the
    draws of the run; else those of each batch. At full size 60,000 captions take 7 GB of Stable Diffusion's states in
    bfloat16 and 250 GB of FLUX's; encoding is 0.5 % of Stable Diffusion's arithmetic.
    """

    def __init__(self, net: Net, texts: list[str], cache_mb: int, draws: int) -> None:
        self.net, self.texts = net, texts
        one = sum(state.nbytes for state in self._encode([max(texts, key=len)]).values())
        self.cached = len(texts) <= draws and one * len(texts) <= cache_mb << 20
        if self.cached:
            groups = [self._encode(texts[i : i + TEXTS]) for i in range(0, len(texts), TEXTS)]
            self.states = {name: _joined([group[name] for group in groups]) for name in groups[0]}

    def __call__(self, numbers: Int64[np.ndarray, "n"]) -> States:
        if self.cached:
            states, place = self.states, numbers
        else:
            distinct, place = np.unique(numbers, return_inverse=True)
            states = self._encode([self.texts[number] for number in distinct])
        return {name: state[torch.from_numpy(place).to(state.device)] for name, state in states.items()}

    @torch.no_grad()
    def _encode(self, texts: list[str]) -> States:
        return self.net.encode(texts)


def _joined(groups: list[Tensor]) -> Tensor:
    """The states of groups of captions, filled with zeros up to the longest, where a group is as long as its own."""
    length = max(group.shape[1] for group in groups)
    return torch.cat([functional.pad(x, (0, 0) * (x.ndim - 2) + (0, length - x.shape[1])) for x in groups])
