"""jumpahead's SAE in training, as one of the compared libraries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, final

import torch
from torch import Tensor

from benchmarks.library_sae import (
    COMPARED_ARCHITECTURES,
    DEAD_AFTER,
    LibrarySAE,
    ReconstructionStats,
    StartingPoint,
    reconstruction_stats,
)
from jumpahead.engine import Kernels, initial_state, kernel_layer, train_step
from jumpahead.sae import recipe
from jumpahead.sae.architecture import Architecture
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.parameters import Params
from jumpahead.sae.recipe import Setting, TrainConfig, learning_rate_at, sparsity_warmup_share
from jumpahead.sae.saved import SAE

SETTLED_STEPS = 400
"""Training steps of the state `settled`."""


TrainingState = Literal["trained", "fresh", "settled"]


def float32_kernels() -> Kernels:
    """Return the compiled kernels with the encoder product in float32, even if bfloat16 is faster."""
    from jumpahead.engine.kernels.numba import NumbaKernels
    from jumpahead.engine.kernels.numba.matmul_backends import float32_backend

    return NumbaKernels(float32_backend())


ENGINES: dict[str, Callable[[], Kernels]] = {"default": kernel_layer, "float32": float32_kernels}
"""The default kernels, and the kernels restricted to float32 products."""


@final
class JumpaheadSAE(LibrarySAE):
    """`engine.train_step` with the default recipe.

    `trained`: at `start`, at the end of the recipe's schedule. `fresh`: as the recipe initialises, at the start of its
    schedule; these steps have the largest support. `settled`: after a whole run of SETTLED_STEPS steps on the data.
    """

    title, package, module = "jumpahead", "jumpahead", "jumpahead"
    architectures = COMPARED_ARCHITECTURES
    aux = True

    def __init__(
        self,
        architecture: str,
        start: StartingPoint,
        state: TrainingState = "trained",
        bandwidth: float | None = None,
        engine: str = "default",
        data: Sequence[Tensor] = (),
    ):
        steps = SETTLED_STEPS if state == "settled" else 10_000
        config = TrainConfig(tokens=steps * start.tokens, batch=start.tokens)
        kind, (width, d) = ARCHITECTURES.get(architecture), start.shape
        setting = Setting("l0", float(start.l0))
        adapted = kind.recipe_for(config, recipe.Shape(d, width, setting))
        if bandwidth is not None:
            adapted = adapted._replace(bandwidth=bandwidth)
        aux = {} if architecture != "topk" or start.dead is not None else {"aux": 0.0}
        arch = (initialised_at(kind, start) if state == "trained" else kind)(kind.Options(**aux), setting, adapted)
        self.state = initial_state(arch, d, width, 0, start.sample)
        self.first_step = config.steps - 1 if state == "trained" else 0
        self.recipe, self.steps, self.dead = adapted, config.steps, start.dead
        self.kernels = ENGINES[engine]()
        self.entries: list[float] = []
        """|S| per token of every step."""
        for i in range(SETTLED_STEPS if state == "settled" else 0):
            self.step(data[i % len(data)])
        self.entries.clear()

    def prepare(self) -> None:
        if self.dead is not None:
            self.state.tokens_since_fired[self.dead] = DEAD_AFTER

    def step(self, x: Tensor) -> None:
        i = min(self.first_step + self.state.steps_done, self.steps - 1)
        lr, warmup = learning_rate_at(self.recipe, i, self.steps), sparsity_warmup_share(self.recipe, i)
        self.entries.append(float(train_step(self.state, x, lr, warmup, self.kernels).support_size))

    @torch.no_grad()
    def evaluate(self, x: Tensor) -> ReconstructionStats:
        arch = self.state.arch
        saved = SAE(arch, arch.fold(self.state.params, 1.0))
        features = saved.encode(x)
        return reconstruction_stats(x, features, saved.decode(features))


def initialised_at(kind: type[Architecture], start: StartingPoint) -> type[Architecture]:
    """Return a subclass of the architecture that initialises at `start` instead of by its recipe."""

    class InitialisedAtStart(kind):
        def initialise(self, d: int, width: int, generator: torch.Generator, sample: Tensor) -> Params:
            p = super().initialise(d, width, generator, sample)
            p |= {"W_enc": start.w_enc.clone(), "W_dec": start.w_dec.clone(), "b_dec": start.b_dec.clone()}
            if "log_threshold" in p:
                p["log_threshold"] = torch.full((width,), start.threshold).log()
            if "b_mag" in p:
                p |= {"b_enc": torch.full((width,), -start.threshold), "b_mag": torch.zeros(width)}
            return p

    return InitialisedAtStart
