"""TODO: one sentence that says what this module holds."""

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
from jumpahead.engine import Kernels, initial_state, train_step
from jumpahead.sae import recipe
from jumpahead.sae.architecture import Architecture
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.parameters import Params
from jumpahead.sae.recipe import Setting, TrainConfig, learning_rate_at, sparsity_warmup_share
from jumpahead.sae.saved import SAE

SETTLED_STEPS = 400


TrainingState = Literal["trained", "fresh", "settled"]


def float32_kernels() -> Kernels:
    """Our compiled kernels, with the encoder product in float32 whatever else the CPU could do."""
    from jumpahead.engine.kernels.numba import NumbaKernels
    from jumpahead.engine.kernels.numba.matmul_backends import float32_backend

    return NumbaKernels(float32_backend())


ENGINES: dict[str, Callable[[], Kernels]] = {"default": kernel_layer, "float32": float32_kernels}
"""Our kernels as they are chosen by default, and restricted to float32 products."""


@final
class JumpaheadSAE(LibrarySAE):
    """`engine.step` with the default recipe.

    `initialised_at`: at `begin`, at the end of the recipe's schedule. `fresh`: as the recipe initialises, at its beginning:
    the first steps of a run, whose support is the largest. `settled`: after a whole run of SETTLING steps on the data.
    """

    title, package, module = "jumpahead", "jumpahead", "jumpahead"
    architectures = COMPARED_ARCHITECTURES
    aux = True

    def __init__(
        self,
        architecture: str,
        begin: StartingPoint,
        state: TrainingState = "trained",
        bandwidth: float | None = None,
        engine: str = "default",
        data: Sequence[Tensor] = (),
    ):
        steps = SETTLED_STEPS if state == "settled" else 10_000
        config = TrainConfig(tokens=steps * begin.tokens, batch=begin.tokens)
        kind, (width, d) = ARCHITECTURES.get(architecture), begin.shape
        setting = Setting("l0", float(begin.l0))
        rules = kind.recipe_for(config, recipe.Shape(d, width, setting))
        if bandwidth is not None:
            rules = rules._replace(bandwidth=bandwidth)
        aux = {} if architecture != "topk" or begin.dead is not None else {"aux": 0.0}
        arch = (initialised_at(kind, begin) if state == "trained" else kind)(kind.Options(**aux), setting, rules)
        self.state = initial_state(arch, d, width, 0, begin.sample)
        self.first = config.steps - 1 if state == "trained" else 0
        self.rules, self.steps, self.dead = rules, config.steps, begin.dead
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
        i = min(self.first + self.state.steps_done, self.steps - 1)
        lr, warmup = learning_rate_at(self.rules, i, self.steps), sparsity_warmup_share(self.rules, i)
        self.entries.append(float(train_step(self.state, x, lr, warmup, self.kernels).support_size))

    @torch.no_grad()
    def look(self, x: Tensor) -> ReconstructionStats:
        arch = self.state.arch
        saved = SAE(arch, arch.fold(self.state.params, 1.0))
        features = saved.encode(x)
        return reconstruction_stats(x, features, saved.decode(features))


def initialised_at(kind: type[Architecture], begin: StartingPoint) -> type[Architecture]:
    """The architecture, initialised at `begin` instead of as its recipe says."""

    class Trained(kind):
        def initialise(self, d: int, width: int, generator: torch.Generator, sample: Tensor) -> Params:
            p = super().initialise(d, width, generator, sample)
            p |= {"W_enc": begin.w_enc.clone(), "W_dec": begin.w_dec.clone(), "b_dec": begin.b_dec.clone()}
            if "log_threshold" in p:
                p["log_threshold"] = torch.full((width,), begin.threshold).log()
            if "b_mag" in p:
                p |= {"b_enc": torch.full((width,), -begin.threshold), "b_mag": torch.zeros(width)}
            return p

    return Trained
