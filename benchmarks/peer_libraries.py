"""One training step of each of the other libraries: its own classes, step and optimizer, with its defaults.

No library's code is reimplemented here. If a library leaves a part of the step to its user, the docstring says what was
filled in. Learning rates are the libraries' own; they do not affect the time. All start from the same weights
(`StartingPoint`), hence from the same L0, as far as public attributes allow.

    library               architectures            the step
    SAELens               JumpReLU, TopK, Gated    SAETrainer.step
    dictionary_learning   JumpReLU, TopK, Gated    JumpReluTrainer, TopKTrainer, GatedSAETrainer: .update
    sparsify              TopK                     Trainer.fit, fed one batch at a time
    overcomplete          JumpReLU, TopK           train_sae on one batch
    jumpahead             JumpReLU, TopK, Gated    engine.train_step (jumpahead_sae.py)

This module can be imported without the libraries; `missing_reason` says which are not available.

B tokens · d dimensions · M features.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import os
import sys
import types
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any, final

import torch
from torch import Tensor

from benchmarks.batch_channel import BatchChannel
from benchmarks.library_sae import (
    COMPARED_ARCHITECTURES,
    DEAD_AFTER,
    NOMINAL_STEPS,
    LibrarySAE,
    ReconstructionStats,
    StartingPoint,
    fill_,
    reconstruction_stats,
)


@final
class SAELens(LibrarySAE):
    """`SAETrainer.step`, as its own runners call it: Adam, gradient clipping, free decoder norms."""

    title, package, module = "SAELens", "sae-lens", "sae_lens"
    architectures = COMPARED_ARCHITECTURES
    aux = True

    def __init__(self, architecture: str, start: StartingPoint):
        lib = load_library(self)
        width, d = start.shape
        common = {"d_in": d, "d_sae": width, "device": "cpu"}
        if architecture == "jumprelu":
            self.sae = lib.JumpReLUTrainingSAE(lib.JumpReLUTrainingSAEConfig(**common))
            fill_(self.sae.threshold, start.threshold)
        elif architecture == "topk":
            coefficient = {} if start.dead is not None else {"aux_loss_coefficient": 0.0}
            self.sae = lib.TopKTrainingSAE(lib.TopKTrainingSAEConfig(**common, **coefficient, k=start.l0))
        else:
            self.sae = lib.GatedTrainingSAE(lib.GatedTrainingSAEConfig(**common))
            fill_(self.sae.b_gate, -start.threshold)
        fill_(self.sae.W_enc, start.w_enc.T)
        fill_(self.sae.W_dec, start.w_dec)
        fill_(self.sae.b_dec, start.b_dec)
        settings = importlib.import_module("sae_lens.config").SAETrainerConfig(
            total_training_samples=NOMINAL_STEPS * start.tokens,
            train_batch_size_samples=start.tokens,
            lr_end=3e-5,  # a required argument; the default schedule is constant
        )
        self.trainer = lib.SAETrainer(cfg=settings, sae=self.sae, data_provider=iter(()))
        self.dead = start.dead

    def prepare(self) -> None:
        if self.dead is not None:
            self.trainer.n_forward_passes_since_fired[self.dead] = DEAD_AFTER

    def step(self, x: Tensor) -> None:
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    @torch.no_grad()
    def evaluate(self, x: Tensor) -> ReconstructionStats:
        features = self.sae.encode(x)
        return reconstruction_stats(x, features, self.sae.decode(features))


@final
class DictionaryLearning(LibrarySAE):
    """`update` of its trainers. Its JumpReLU does not subtract b_dec, so its encoder bias starts at −W_enc·b_dec."""

    title, package, module = "dictionary_learning", "dictionary-learning", "dictionary_learning"
    architectures = COMPARED_ARCHITECTURES
    aux = True

    def __init__(self, architecture: str, start: StartingPoint):
        load_library(self)
        trainers = importlib.import_module("dictionary_learning.trainers")
        width, d = start.shape
        common = {"steps": NOMINAL_STEPS, "activation_dim": d, "dict_size": width, "device": "cpu"}
        common |= {"layer": 0, "lm_name": "synthetic"}
        if architecture == "jumprelu":
            self.trainer = trainers.JumpReluTrainer(**common, target_l0=float(start.l0))
            self.sae = self.trainer.ae
            fill_(self.sae.W_enc, start.w_enc.T)
            fill_(self.sae.W_dec, start.w_dec)
            fill_(self.sae.b_enc, -(start.w_enc @ start.b_dec))
            fill_(self.sae.b_dec, start.b_dec)
            fill_(self.sae.threshold, start.threshold)
        else:
            if architecture == "topk":
                alpha = {} if start.dead is not None else {"auxk_alpha": 0.0}
                self.trainer = trainers.TopKTrainer(**common, **alpha, k=start.l0)
                self.sae = self.trainer.ae
                fill_(self.sae.b_dec, start.b_dec)
            else:
                self.trainer = trainers.GatedSAETrainer(**common)
                self.sae = self.trainer.ae
                fill_(self.sae.decoder_bias, start.b_dec)
                fill_(self.sae.gate_bias, -start.threshold)
            fill_(self.sae.encoder.weight, start.w_enc)
            fill_(self.sae.decoder.weight, start.w_dec.T)
        self.dead = start.dead
        self.steps = 1  # at step 0 TopKTrainer replaces b_dec by a geometric median

    def prepare(self) -> None:
        if self.dead is not None:
            self.trainer.num_tokens_since_fired[self.dead] = DEAD_AFTER

    def step(self, x: Tensor) -> None:
        self.trainer.update(self.steps, x)
        self.steps += 1

    @torch.no_grad()
    def evaluate(self, x: Tensor) -> ReconstructionStats:
        features = self.sae.encode(x)
        return reconstruction_stats(x, features, self.sae.decode(features))


@final
class Overcomplete(LibrarySAE):
    """`train_sae` on a loader of one batch.

    Users choose the loss and the optimizer. Adam at 5e-4 and, for TopK, the mean squared error are from its README; for
    JumpReLU the L0 penalty is its own `heaviside`. The encoder is `untied` and linear; the default encoder also has
    batch normalisation. There is no decoder bias.
    """

    title, package, module = "overcomplete", "overcomplete", "overcomplete"
    architectures = ("jumprelu", "topk")

    def __init__(self, architecture: str, start: StartingPoint):
        self.lib = load_library(self)
        width, d = start.shape
        options = {"dictionary_params": {"initializer": start.w_dec.numpy()}}
        if architecture == "jumprelu":
            self.sae = self.lib.JumpSAE(d, width, **options)
            fill_(self.sae.thresholds, torch.tensor(start.threshold).log().item())
            self.criterion = self.jump_loss
        else:
            self.sae = self.lib.TopKSAE(d, width, top_k=start.l0, **options)
            self.criterion = squared_error
        self.sae.untied(bias=True)
        fill_(self.sae.encoder.bias, -(start.w_enc @ start.b_dec))
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=5e-4)

    def jump_loss(self, x: Tensor, x_hat: Tensor, pre: Tensor, f: Tensor, dictionary: Tensor) -> Tensor:
        """Return ‖x − x̂‖² + 0.001·L0."""
        on = self.lib.heaviside(pre, self.sae.thresholds.exp(), self.sae.kernel_fn, self.sae.bandwidth)
        return (x - x_hat).square().sum(1).mean() + 1e-3 * on.sum(1).mean()

    def step(self, x: Tensor) -> None:
        self.lib.train_sae(self.sae, [x], self.criterion, self.optimizer, nb_epochs=1, monitoring=0)

    @torch.no_grad()
    def evaluate(self, x: Tensor) -> ReconstructionStats:
        _, features, x_hat = self.sae(x)
        return reconstruction_stats(x, features, x_hat)


def squared_error(x: Tensor, x_hat: Tensor, *_: Tensor) -> Tensor:
    """Return the loss of overcomplete's README."""
    return (x - x_hat).square().mean()


@final
class Sparsify(LibrarySAE):
    """`Trainer.fit` itself, in a thread, on a stub language model whose only module returns the next batch.

    A step is what `fit` does between two batches. Its defaults are sign-SGD with schedule-free averaging and no AuxK;
    with dead features the AuxK coefficient is 1/32. It sets the matmul precision `high`.
    """

    title, package, module = "sparsify", "eai-sparsify", "sparsify"
    architectures = ("topk",)
    aux = True
    precision = "high"

    def __init__(self, architecture: str, start: StartingPoint):
        lib = load_library(self)
        width, d = start.shape
        self.channel = BatchChannel()
        alpha = {"auxk_alpha": 1 / 32} if start.dead is not None else {}
        coder = lib.SparseCoderConfig(num_latents=width, k=start.l0)
        settings = lib.TrainConfig(
            coder, batch_size=1, hookpoints=["site"], log_to_wandb=False, save_every=DEAD_AFTER, **alpha
        )
        with contextlib.redirect_stdout(io.StringIO()):
            self.trainer = lib.Trainer(settings, DummyTokenDataset(start.tokens), stub_language_model(d, self.receive))
        self.sae = self.trainer.saes["site"]
        fill_(self.sae.encoder.weight, start.w_enc)
        fill_(self.sae.W_dec, start.w_dec)
        fill_(self.sae.b_dec, start.b_dec)
        self.dead = start.dead
        self.channel.start(self.trainer.fit)

    def receive(self) -> Tensor | None:
        """Return the next batch; None before training."""
        return None if self.channel.thread is None else self.channel.receive()

    def prepare(self) -> None:
        if self.dead is not None:
            self.trainer.num_tokens_since_fired["site"][self.dead] = DEAD_AFTER

    def step(self, x: Tensor) -> None:
        self.channel.send(x)

    @torch.no_grad()
    def evaluate(self, x: Tensor) -> ReconstructionStats:
        values, indices, _ = self.sae.encode(x)
        return reconstruction_stats(x, values, self.sae.decode(values, indices))

    def close(self) -> None:
        self.channel.stop()


@final
class DummyTokenDataset:
    """A data set of sequences of B zero tokens: only their number matters."""

    def __init__(self, tokens: int, sequences: int = NOMINAL_STEPS):
        self.row, self.sequences = {"input_ids": torch.zeros(tokens, dtype=torch.int64)}, sequences

    def __len__(self) -> int:
        return self.sequences

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return self.row


def stub_language_model(d: int, receive: Callable[[], Tensor | None]) -> Any:
    """Return a Hugging Face language model whose only module returns the batch [B, d] of `receive`, as [1, B, d].

    If `receive` returns None, the module returns zeros: the trainer first determines the width.
    """
    import transformers

    class StubLanguageModel(transformers.PreTrainedModel):
        def __init__(self) -> None:
            super().__init__(transformers.PretrainedConfig())
            self.site = torch.nn.Identity()
            self.anchor = torch.nn.Parameter(torch.zeros(1))  # from which the trainer infers the device

        def forward(self, input_ids: Tensor) -> Tensor:
            x = receive()
            return self.site(torch.zeros(1, input_ids.numel(), d) if x is None else x[None])

    return StubLanguageModel()


PEERS: tuple[type[LibrarySAE], ...] = (SAELens, DictionaryLearning, Overcomplete, Sparsify)
"""The libraries that jumpahead is compared with."""


def peers_with(architecture: str) -> list[type[LibrarySAE]]:
    """Return the libraries that implement the architecture."""
    return [peer for peer in PEERS if architecture in peer.architectures]


@functools.cache
def missing_reason(peer: type[LibrarySAE]) -> str:
    """Return why a library cannot be measured on this machine; an empty string if it can."""
    try:
        version = metadata.version(peer.package)
    except metadata.PackageNotFoundError:
        return f"not installed: `make bench-peers` installs {peer.package}"
    try:
        load_library(peer)
    except Exception as error:  # noqa: BLE001 — imports of other libraries raise anything
        return f"{version} does not import: {type(error).__name__}: {error}".splitlines()[0]
    return ""


def load_library(peer: LibrarySAE | type[LibrarySAE]) -> Any:
    """Import and return the library's module."""
    os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")  # else sparsify decodes with Triton, which needs a GPU
    os.environ.setdefault("WANDB_MODE", "disabled")
    with contextlib.redirect_stdout(io.StringIO()), without_torchvision(peer.module):
        return importlib.import_module(f"{peer.module}.sae" if peer.module == "overcomplete" else peer.module)


@contextlib.contextmanager
def without_torchvision(module: str) -> Iterator[None]:
    """Replace a missing torchvision by an empty module while overcomplete is imported.

    overcomplete imports it for vision models that are not used here; its builds fit only some builds of torch.
    """
    absent = module == "overcomplete" and importlib.util.find_spec("torchvision") is None
    if absent:
        sys.modules["torchvision"] = types.ModuleType("torchvision")
        sys.modules["torchvision"].transforms = types.ModuleType("transforms")  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if absent:
            del sys.modules["torchvision"]
