"""Train an SAE in each library, by its own trainer, optimizer and defaults, and export its weights.

What a library needs besides its defaults, and why:

    all                   The seed of torch before the SAE is made. Batches of 2,048, the same ones in the same order.
    SAELens               SAETrainer.fit. normalize_activations = "expected_average_only_in", as in its tutorials; the
                          norm is estimated on the training batches. JumpReLU by the loss that takes an L0
                          (`quadratic`). Exported as its own inference model, in which BatchTopK is a threshold.
    dictionary_learning   trainSAE with normalize_activations, as in its demos. Warm-ups and the start of the
                          threshold's average, 1,000 and 2,000 steps by default, are at most half of the run.
    sparsify              Trainer.fit on a stub language model; exported as saved (its averaged weights).

Gated takes a penalty instead of an L0: the caller gives one (tuning.py).

d dimensions · M features.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor

from benchmarks import peer_libraries
from benchmarks.library_sae import DEAD_AFTER
from benchmarks.peer_libraries import DummyTokenDataset, load_library, stub_language_model
from benchmarks.quality.evaluator import (
    ExportedSAE,
    gated_activation,
    relative_difference,
    threshold_activation,
    topk_activation,
)
from benchmarks.quality.places import Batches

TRAINERS_VERSION = 1
"""Raised if what this module does with a library changes; part of the key of the peers' results."""
EXPORT_TOLERANCE = 1e-5
"""Largest relative difference between the exported weights' reconstructions and the library's own."""
CHECKED_ROWS = 2048


class TrainingRequest(NamedTuple):
    """One SAE to train in a library."""

    architecture: str
    d: int
    width: int
    l0: int
    """Requested L0."""
    lr: float
    penalty: float | None
    """Coefficient of the sparsity penalty, for architectures that take no L0."""
    seed: int


class TrainedSAE(NamedTuple):
    """A trained SAE, for activations as they are."""

    sae: ExportedSAE
    forward: Callable[[Tensor], Tensor]
    """The library's own reconstructions of activations [n, d]."""
    seconds: float
    """Duration of the training, without reading the batches."""


class PeerTrainer(ABC):
    """Another library's training."""

    library: ClassVar[type[Any]]
    """Its package, in peer_libraries.py."""
    architectures: ClassVar[tuple[str, ...]]
    penalties: ClassVar[tuple[float, ...]] = ()
    """Penalties of architectures that take no L0, in multiples that cover the L0 of all places."""
    needs_penalty: ClassVar[tuple[str, ...]] = ("gated",)

    @classmethod
    @abstractmethod
    def default_lr(cls, architecture: str, width: int) -> float:
        """Return the library's learning rate."""

    @abstractmethod
    def train(self, asked: TrainingRequest, batches: Batches) -> TrainedSAE:
        """Train an SAE on all batches."""


def train_checked(peer: PeerTrainer, asked: TrainingRequest, batches: Batches) -> TrainedSAE:
    """Train an SAE; return it. Raises RuntimeError if the exported weights reconstruct otherwise than the library."""
    torch.manual_seed(asked.seed)
    quiet, precision = io.StringIO(), torch.get_float32_matmul_precision()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        trained = peer.train(asked, batches)
    torch.set_float32_matmul_precision(precision)
    x = next(iter(batches))[:CHECKED_ROWS]
    with torch.no_grad():
        off = relative_difference(trained.sae(x), trained.forward(x))
    if off > EXPORT_TOLERANCE:
        raise RuntimeError(f"{peer.library.title} {asked.architecture}: the exported weights differ by {off:.1e}")
    return trained


@final
class Stopwatch:
    """Measures a training, without the time spent on reading its batches."""

    def __init__(self, batches: Batches):
        self.batches, self.begun, self.before = batches, time.perf_counter(), batches.seconds

    def read(self) -> float:
        """Return the seconds so far."""
        return time.perf_counter() - self.begun - (self.batches.seconds - self.before)


@final
class SAELens(PeerTrainer):
    """SAELens' SAETrainer."""

    library = peer_libraries.SAELens
    architectures = ("jumprelu", "topk", "batchtopk", "gated")
    penalties = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)

    @classmethod
    def default_lr(cls, architecture: str, width: int) -> float:
        return 3e-4

    def train(self, asked: TrainingRequest, batches: Batches) -> TrainedSAE:
        lib = load_library(self.library)
        common = {"d_in": asked.d, "d_sae": asked.width, "normalize_activations": "expected_average_only_in"}
        if asked.architecture == "jumprelu":
            loss = {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": float(asked.l0)}
            made = lib.JumpReLUTrainingSAE(lib.JumpReLUTrainingSAEConfig(**common, **loss))
        elif asked.architecture == "topk":
            made = lib.TopKTrainingSAE(lib.TopKTrainingSAEConfig(**common, k=asked.l0))
        elif asked.architecture == "batchtopk":
            made = lib.BatchTopKTrainingSAE(lib.BatchTopKTrainingSAEConfig(**common, k=float(asked.l0)))
        else:
            made = lib.GatedTrainingSAE(lib.GatedTrainingSAEConfig(**common, l1_coefficient=asked.penalty))
        rows, samples = batches.stream.batch, batches.stream.batch * batches.steps
        settings = importlib.import_module("sae_lens.config").SAETrainerConfig(
            total_training_samples=samples,
            train_batch_size_samples=rows,
            lr=asked.lr,
            lr_end=asked.lr / 10,  # a required argument; the default schedule is constant
            n_batches_for_norm_estimate=min(1000, batches.steps),
        )
        provider = self.estimate_then_train(batches, settings.n_batches_for_norm_estimate)
        watch = Stopwatch(batches)
        lib.SAETrainer(cfg=settings, sae=made, data_provider=provider).fit()
        seconds = watch.read()
        with tempfile.TemporaryDirectory() as folder:
            made.save_inference_model(folder)
            saved = lib.SAE.load_from_disk(folder)
        return TrainedSAE(self.export(saved, asked), saved, seconds)

    @staticmethod
    def estimate_then_train(batches: Batches, estimated: int) -> Iterator[Tensor]:
        """Yield the first batches for the estimate of the norm, and then all batches."""
        for i, x in enumerate(batches):
            if i == estimated:
                break
            yield x
        yield from batches

    @staticmethod
    def export(saved: Any, asked: TrainingRequest) -> ExportedSAE:
        """Return the weights of an inference model."""
        p = {name: value.detach() for name, value in saved.state_dict().items()}
        b_enc = p.get("b_enc", torch.zeros(asked.width))
        if asked.architecture == "gated":
            activate = gated_activation(p["b_gate"], p["r_mag"].exp(), p["b_mag"])
        else:
            activate = topk_activation(asked.l0) if "threshold" not in p else threshold_activation(p["threshold"])
        b_pre = p["b_dec"] * float(saved.cfg.apply_b_dec_to_input)
        return ExportedSAE(p["W_enc"].T.contiguous(), b_pre, b_enc, p["W_dec"], p["b_dec"], activate)


@final
class DictionaryLearning(PeerTrainer):
    """dictionary_learning's trainSAE."""

    library = peer_libraries.DictionaryLearning
    architectures = ("jumprelu", "topk", "batchtopk", "gated")
    penalties = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)

    @classmethod
    def default_lr(cls, architecture: str, width: int) -> float:
        return {"jumprelu": 7e-5, "gated": 5e-5}.get(architecture) or 2e-4 / (width / 2**14) ** 0.5

    def train(self, asked: TrainingRequest, batches: Batches) -> TrainedSAE:
        load_library(self.library)
        trainers = importlib.import_module("dictionary_learning.trainers")
        batch_top_k = importlib.import_module("dictionary_learning.trainers.batch_top_k")
        half = batches.steps // 2
        config: dict[str, Any] = {
            "steps": batches.steps, "activation_dim": asked.d, "dict_size": asked.width, "layer": 0, "lm_name": "",
            "device": "cpu", "seed": asked.seed, "lr": asked.lr, "warmup_steps": min(1000, half),
        }  # fmt: skip
        if asked.architecture in ("topk", "batchtopk"):
            kind = trainers.TopKTrainer if asked.architecture == "topk" else batch_top_k.BatchTopKTrainer
            config |= {"k": asked.l0, "threshold_start_step": min(1000, half)}
        elif asked.architecture == "jumprelu":
            kind = trainers.JumpReluTrainer
            config |= {"target_l0": float(asked.l0), "sparsity_warmup_steps": min(2000, half)}
        else:
            kind = trainers.GatedSAETrainer
            config |= {"l1_penalty": asked.penalty, "sparsity_warmup_steps": min(2000, half)}
        made: list[Any] = []

        def make(**options: Any) -> Any:
            """Return the trainer, and keep it: trainSAE returns nothing."""
            made.append(kind(**options))
            return made[0]

        training = importlib.import_module("dictionary_learning.training")
        watch = Stopwatch(batches)
        training.trainSAE(
            batches, [{"trainer": make, **config}], steps=batches.steps, normalize_activations=True, device="cpu"
        )
        seconds = watch.read()
        return TrainedSAE(self.export(made[0].ae, asked), made[0].ae, seconds)

    @staticmethod
    def export(saved: Any, asked: TrainingRequest) -> ExportedSAE:
        """Return the weights of a dictionary."""
        p = {name: value.detach() for name, value in saved.state_dict().items()}
        if asked.architecture == "jumprelu":
            activate = threshold_activation(p["threshold"])
            w_enc, zero = p["W_enc"].T.contiguous(), torch.zeros(asked.d)
            return ExportedSAE(w_enc, zero, p["b_enc"], p["W_dec"], p["b_dec"], activate)
        w_enc, w_dec = p["encoder.weight"], p["decoder.weight"].T.contiguous()
        if asked.architecture == "gated":
            b_dec, activate = p["decoder_bias"], gated_activation(p["gate_bias"], p["r_mag"].exp(), p["mag_bias"])
            return ExportedSAE(w_enc, b_dec, torch.zeros(asked.width), w_dec, b_dec, activate)
        is_topk = asked.architecture == "topk"
        activate = topk_activation(asked.l0) if is_topk else threshold_activation(p["threshold"])
        return ExportedSAE(w_enc, p["b_dec"], p["encoder.bias"], w_dec, p["b_dec"], activate)


@final
class Sparsify(PeerTrainer):
    """sparsify's Trainer, with its sign-SGD and schedule-free averaging."""

    library = peer_libraries.Sparsify
    architectures = ("topk",)

    @classmethod
    def default_lr(cls, architecture: str, width: int) -> float:
        return 5e-3 / (width / 2**14) ** 0.5

    def train(self, asked: TrainingRequest, batches: Batches) -> TrainedSAE:
        lib = load_library(self.library)
        coder = lib.SparseCoderConfig(num_latents=asked.width, k=asked.l0)
        source: Iterator[Tensor] | None = None
        with tempfile.TemporaryDirectory() as folder:
            settings = lib.TrainConfig(
                coder, batch_size=1, hookpoints=["site"], log_to_wandb=False, save_every=DEAD_AFTER, save_dir=folder,
                init_seeds=[asked.seed], lr=asked.lr,
            )  # fmt: skip
            data = DummyTokenDataset(batches.stream.batch, batches.steps)
            trainer = lib.Trainer(
                settings, data, stub_language_model(asked.d, lambda: next(source) if source else None)
            )
            source = iter(batches)
            watch = Stopwatch(batches)
            trainer.fit()
            seconds = watch.read()
            saved = lib.SparseCoder.load_from_disk(Path(folder) / "unnamed" / "site")
        p = {name: value.detach() for name, value in saved.state_dict().items()}
        activate = topk_activation(asked.l0)
        sae = ExportedSAE(p["encoder.weight"], p["b_dec"], p["encoder.bias"], p["W_dec"], p["b_dec"], activate)
        return TrainedSAE(sae, lambda x: saved(x).sae_out, seconds)


PEERS: dict[str, type[PeerTrainer]] = {kind.library.title: kind for kind in (SAELens, DictionaryLearning, Sparsify)}
"""The other libraries, by name."""
