"""One training step, as each library makes it: its own classes, its own step, its own optimizer at its defaults.

A contender is one SAE of one library in training. Nothing of a peer is written again here; where a library leaves a
part of the step to its user, the docstring says what was filled in. Learning rates are the libraries' own: they change
no time. All start from the same weights (`Start`), hence from the same L0, as far as public attributes allow.

    library               architectures            the step
    SAELens               JumpReLU, TopK, Gated    SAETrainer.step
    dictionary_learning   JumpReLU, TopK, Gated    JumpReluTrainer, TopKTrainer, GatedSAETrainer: .update
    sparsify              TopK                     Trainer.fit, fed one batch at a time
    overcomplete          JumpReLU, TopK           train_sae on one batch
    jumpahead             JumpReLU, TopK, Gated    engine.step

None of them need be installed to import this file: `missing` says which are.

B tokens · d dimensions · M features.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import os
import queue
import sys
import threading
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any, ClassVar, Literal, NamedTuple, final

import torch
from torch import Tensor

from jumpahead.engine import Kernels, fresh_state, step
from jumpahead.sae import recipe
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.base import SAE, Architecture, Params, quantile_for_l0
from jumpahead.sae.recipe import Setting, TrainConfig, learning_rate, sparsity_warmup

COMPARED = ("jumprelu", "topk", "gated")
ENDLESS = 1_000_000
"""Steps of the run that a contender believes to be in."""
SETTLING = 400
State = Literal["trained", "fresh", "settled"]
SILENT = 1_000_000_000
"""Tokens, or steps, without firing: dead by every library's measure."""


class Start(NamedTuple):
    """Where every contender starts: an SAE that fits its data, as after training."""

    w_enc: Tensor
    """[M, d]."""
    w_dec: Tensor
    """[M, d], unit rows."""
    b_dec: Tensor
    """[d]: subtracted before the encoder, added after the decoder."""
    threshold: float
    """What leaves `l0` of the π = W_enc·(x − b_dec) of a token above it, on average."""
    l0: int
    """Active features per token."""
    tokens: int
    """B."""
    sample: Tensor
    """[n, d] activations, for initialisations."""
    dead: Tensor | None = None
    """[M] bool: features that count as dead before every step; their encoder rows are short, so that they do not fire
    but their π is positive on half of the tokens. None: no dead features, and no AuxK."""

    @property
    def shape(self) -> tuple[int, int]:
        """(M, d)."""
        return self.w_enc.shape[0], self.w_enc.shape[1]


def start(dictionary: Tensor, sample: Tensor, tokens: int, l0: int, dead: float = 0.0) -> Start:
    """From the true dictionary [M, d]; a share `dead` of the features is dead."""
    width = len(dictionary)
    b_dec, w_enc, mask = sample.mean(0), dictionary.clone(), None
    if dead:
        mask = torch.zeros(width, dtype=torch.bool)
        mask[torch.randperm(width, generator=torch.Generator().manual_seed(1))[: round(dead * width)]] = True
        w_enc[mask] *= 0.05
    threshold = quantile_for_l0((sample - b_dec) @ w_enc.T, l0)
    return Start(w_enc, dictionary.clone(), b_dec, threshold, l0, tokens, sample, mask)


class Look(NamedTuple):
    """What an SAE does with activations, as its own library computes it."""

    l0: float
    """Active features per token."""
    error: float
    """‖x − x̂‖² per token."""


class Contender(ABC):
    """One library's SAE in training."""

    title: ClassVar[str]
    package: ClassVar[str]
    """Its name in the package index."""
    module: ClassVar[str]
    architectures: ClassVar[tuple[str, ...]]
    aux: ClassVar[bool] = False
    """Whether its TopK revives features that its own counters say are dead."""
    precision: ClassVar[str] = "highest"
    """The float32 matmul precision that it trains with by default: torch's, unless it sets another."""
    failed: str = ""
    """Why it is not asked for steps any more."""

    @abstractmethod
    def __init__(self, architecture: str, begin: Start):
        """An SAE of one of `architectures`, at `begin`."""

    def prepare(self) -> None:  # noqa: B027 — only those with dead features have something to do
        """Before every step, not timed: mark the dead features as dead once more."""

    @abstractmethod
    def step(self, x: Tensor) -> None:
        """Train on one batch [B, d]: forward, loss, backward, decoder norm, optimizer."""

    @abstractmethod
    def look(self, x: Tensor) -> Look:
        """Encode and decode x [n, d]."""

    def close(self) -> None:  # noqa: B027 — most have nothing to end
        """End what the contender started."""


def looked(x: Tensor, features: Tensor, x_hat: Tensor) -> Look:
    """features [n, M] or [n, k], x_hat [n, d]."""
    active = (features != 0).sum().item() / len(x)
    return Look(active, (x - x_hat).square().sum(1).mean().item())


def put(parameter: Any, value: Tensor | float) -> None:
    """Fill a library's parameter in place, in its own memory layout."""
    with torch.no_grad():
        parameter.copy_(value) if isinstance(value, Tensor) else parameter.fill_(value)


# ---------------------------------------------------------------------------------------------- the other libraries


@final
class SAELens(Contender):
    """`SAETrainer.step`, what its own runners call. Adam, gradient clipping; decoder norms are free there."""

    title, package, module = "SAELens", "sae-lens", "sae_lens"
    architectures = COMPARED
    aux = True

    def __init__(self, architecture: str, begin: Start):
        lib = load(self)
        width, d = begin.shape
        common = {"d_in": d, "d_sae": width, "device": "cpu"}
        if architecture == "jumprelu":
            self.sae = lib.JumpReLUTrainingSAE(lib.JumpReLUTrainingSAEConfig(**common))
            put(self.sae.threshold, begin.threshold)
        elif architecture == "topk":
            coefficient = {} if begin.dead is not None else {"aux_loss_coefficient": 0.0}
            self.sae = lib.TopKTrainingSAE(lib.TopKTrainingSAEConfig(**common, **coefficient, k=begin.l0))
        else:
            self.sae = lib.GatedTrainingSAE(lib.GatedTrainingSAEConfig(**common))
            put(self.sae.b_gate, -begin.threshold)
        put(self.sae.W_enc, begin.w_enc.T)
        put(self.sae.W_dec, begin.w_dec)
        put(self.sae.b_dec, begin.b_dec)
        settings = importlib.import_module("sae_lens.config").SAETrainerConfig(
            total_training_samples=ENDLESS * begin.tokens,
            train_batch_size_samples=begin.tokens,
            lr_end=3e-5,  # has to be said; the default schedule is constant
        )
        self.trainer = lib.SAETrainer(cfg=settings, sae=self.sae, data_provider=iter(()))
        self.dead = begin.dead

    def prepare(self) -> None:
        if self.dead is not None:
            self.trainer.n_forward_passes_since_fired[self.dead] = SILENT

    def step(self, x: Tensor) -> None:
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    @torch.no_grad()
    def look(self, x: Tensor) -> Look:
        features = self.sae.encode(x)
        return looked(x, features, self.sae.decode(features))


@final
class DictionaryLearning(Contender):
    """`update` of its trainers. Its JumpReLU subtracts no b_dec: the encoder's bias starts at −W_enc·b_dec."""

    title, package, module = "dictionary_learning", "dictionary-learning", "dictionary_learning"
    architectures = COMPARED
    aux = True

    def __init__(self, architecture: str, begin: Start):
        load(self)
        trainers = importlib.import_module("dictionary_learning.trainers")
        width, d = begin.shape
        common = {"steps": ENDLESS, "activation_dim": d, "dict_size": width, "device": "cpu"}
        common |= {"layer": 0, "lm_name": "synthetic"}
        if architecture == "jumprelu":
            self.trainer = trainers.JumpReluTrainer(**common, target_l0=float(begin.l0))
            self.sae = self.trainer.ae
            put(self.sae.W_enc, begin.w_enc.T)
            put(self.sae.W_dec, begin.w_dec)
            put(self.sae.b_enc, -(begin.w_enc @ begin.b_dec))
            put(self.sae.b_dec, begin.b_dec)
            put(self.sae.threshold, begin.threshold)
        else:
            if architecture == "topk":
                alpha = {} if begin.dead is not None else {"auxk_alpha": 0.0}
                self.trainer = trainers.TopKTrainer(**common, **alpha, k=begin.l0)
                self.sae = self.trainer.ae
                put(self.sae.b_dec, begin.b_dec)
            else:
                self.trainer = trainers.GatedSAETrainer(**common)
                self.sae = self.trainer.ae
                put(self.sae.decoder_bias, begin.b_dec)
                put(self.sae.gate_bias, -begin.threshold)
            put(self.sae.encoder.weight, begin.w_enc)
            put(self.sae.decoder.weight, begin.w_dec.T)
        self.dead = begin.dead
        self.steps = 1  # at step 0 TopKTrainer replaces b_dec by a geometric median

    def prepare(self) -> None:
        if self.dead is not None:
            self.trainer.num_tokens_since_fired[self.dead] = SILENT

    def step(self, x: Tensor) -> None:
        self.trainer.update(self.steps, x)
        self.steps += 1

    @torch.no_grad()
    def look(self, x: Tensor) -> Look:
        features = self.sae.encode(x)
        return looked(x, features, self.sae.decode(features))


@final
class Overcomplete(Contender):
    """`train_sae` on a loader of one batch. Its users choose the loss and the optimizer: Adam at 5e-4 and, for TopK,
    the mean squared error are its README's; for JumpReLU its own `heaviside` is the L0 penalty. The encoder is
    `untied`, linear; the default one would have batch normalisation besides. No decoder bias."""

    title, package, module = "overcomplete", "overcomplete", "overcomplete"
    architectures = ("jumprelu", "topk")

    def __init__(self, architecture: str, begin: Start):
        self.lib = load(self)
        width, d = begin.shape
        options = {"dictionary_params": {"initializer": begin.w_dec.numpy()}}
        if architecture == "jumprelu":
            self.sae = self.lib.JumpSAE(d, width, **options)
            put(self.sae.thresholds, torch.tensor(begin.threshold).log().item())
            self.criterion = self.jump_loss
        else:
            self.sae = self.lib.TopKSAE(d, width, top_k=begin.l0, **options)
            self.criterion = squared_error
        self.sae.untied(bias=True)
        put(self.sae.encoder.bias, -(begin.w_enc @ begin.b_dec))
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=5e-4)

    def jump_loss(self, x: Tensor, x_hat: Tensor, pre: Tensor, f: Tensor, dictionary: Tensor) -> Tensor:
        """‖x − x̂‖² + 0.001·L0."""
        on = self.lib.heaviside(pre, self.sae.thresholds.exp(), self.sae.kernel_fn, self.sae.bandwidth)
        return (x - x_hat).square().sum(1).mean() + 1e-3 * on.sum(1).mean()

    def step(self, x: Tensor) -> None:
        self.lib.train_sae(self.sae, [x], self.criterion, self.optimizer, nb_epochs=1, monitoring=0)

    @torch.no_grad()
    def look(self, x: Tensor) -> Look:
        _, features, x_hat = self.sae(x)
        return looked(x, features, x_hat)


def squared_error(x: Tensor, x_hat: Tensor, *_: Tensor) -> Tensor:
    """The loss of overcomplete's README."""
    return (x - x_hat).square().mean()


@final
class Sparsify(Contender):
    """`Trainer.fit` itself, in a thread: its language model is a stand-in of one module, which passes on the next batch
    when there is one. A step is what `fit` does between two batches. Sign-SGD with schedule-free averaging is its
    default; AuxK is off by default, and 1/32 where it is asked for. It sets the precision `high`."""

    title, package, module = "sparsify", "eai-sparsify", "sparsify"
    architectures = ("topk",)
    aux = True
    precision = "high"

    def __init__(self, architecture: str, begin: Start):
        lib = load(self)
        width, d = begin.shape
        self.handover = Handover()
        alpha = {"auxk_alpha": 1 / 32} if begin.dead is not None else {}
        coder = lib.SparseCoderConfig(num_latents=width, k=begin.l0)
        settings = lib.TrainConfig(
            coder, batch_size=1, hookpoints=["site"], log_to_wandb=False, save_every=SILENT, **alpha
        )
        with contextlib.redirect_stdout(io.StringIO()):
            self.trainer = lib.Trainer(settings, Rows(begin.tokens), carrier(d, self.handover))
        self.sae = self.trainer.saes["site"]
        put(self.sae.encoder.weight, begin.w_enc)
        put(self.sae.W_dec, begin.w_dec)
        put(self.sae.b_dec, begin.b_dec)
        self.dead = begin.dead
        self.handover.start(self.trainer.fit)

    def prepare(self) -> None:
        if self.dead is not None:
            self.trainer.num_tokens_since_fired["site"][self.dead] = SILENT

    def step(self, x: Tensor) -> None:
        self.handover.give(x)

    @torch.no_grad()
    def look(self, x: Tensor) -> Look:
        values, indices, _ = self.sae.encode(x)
        return looked(x, values, self.sae.decode(values, indices))

    def close(self) -> None:
        self.handover.stop()


class Finished(BaseException):
    """Ends `Trainer.fit` from inside; not an Exception, so that nothing on the way takes it for a fault."""


@final
class Handover:
    """Batches from this thread to one that runs a library's training loop, one at a time."""

    def __init__(self) -> None:
        self.batches: queue.Queue[Tensor | None] = queue.Queue(1)
        self.asked: queue.Queue[BaseException | None] = queue.Queue(1)
        self.thread: threading.Thread | None = None

    def start(self, loop: Callable[[], object]) -> None:
        """Run `loop` until it asks for its first batch."""
        threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()

        def run() -> None:
            torch.set_num_threads(threads)
            try:
                loop()
                self.asked.put(RuntimeError("the training loop ended by itself"))
            except Finished:
                pass
            except BaseException as error:  # noqa: BLE001 — handed to the thread that waits
                self.asked.put(error)

        self.thread = threading.Thread(target=run, daemon=True)
        quiet = io.StringIO()
        with contextlib.redirect_stderr(quiet), contextlib.redirect_stdout(quiet):  # its progress bar stays there
            self.thread.start()
            self._wait()
        torch.set_float32_matmul_precision(precision)

    def give(self, x: Tensor) -> None:
        """Hand over a batch [B, d] and wait until the loop asks for the next."""
        self.batches.put(x)
        self._wait()

    def take(self) -> Tensor:
        """In the loop's thread: ask for a batch."""
        self.asked.put(None)
        x = self.batches.get()
        if x is None:
            raise Finished
        return x

    def stop(self) -> None:
        """End the loop."""
        if self.thread is not None:
            self.batches.put(None)
            self.thread.join(timeout=60)

    def _wait(self) -> None:
        error = self.asked.get()
        if error is not None:
            raise error


@final
class Rows:
    """A data set of endless sequences of B tokens; the tokens mean nothing, only their number."""

    def __init__(self, tokens: int):
        self.row = {"input_ids": torch.zeros(tokens, dtype=torch.int64)}

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return self.row


def carrier(d: int, handover: Handover) -> Any:
    """A language model, in Hugging Face's sense, whose only module passes on the handed batch as [1, B, d]."""
    import transformers

    class Carrier(transformers.PreTrainedModel):
        def __init__(self) -> None:
            super().__init__(transformers.PretrainedConfig())
            self.site = torch.nn.Identity()
            self.anchor = torch.nn.Parameter(torch.zeros(1))  # tells the trainer the device

        def forward(self, input_ids: Tensor) -> Tensor:
            if handover.thread is None:  # the trainer asks for the site's width first
                return self.site(torch.zeros(1, input_ids.numel(), d))
            return self.site(handover.take()[None])

    return Carrier()


PEERS: tuple[type[Contender], ...] = (SAELens, DictionaryLearning, Overcomplete, Sparsify)
"""The libraries measured besides ours."""


def peers(architecture: str) -> list[type[Contender]]:
    """Those that have the architecture."""
    return [peer for peer in PEERS if architecture in peer.architectures]


@functools.cache
def missing(peer: type[Contender]) -> str:
    """Why a library cannot be measured here; empty where it can."""
    try:
        version = metadata.version(peer.package)
    except metadata.PackageNotFoundError:
        return f"not installed: `make bench-peers` installs {peer.package}"
    try:
        load(peer)
    except Exception as error:  # noqa: BLE001 — whatever goes wrong while importing another library
        return f"{version} does not import: {type(error).__name__}: {error}".splitlines()[0]
    return ""


def load(peer: Contender | type[Contender]) -> Any:
    """The library's module."""
    os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")  # else sparsify decodes with Triton, which needs a GPU
    os.environ.setdefault("WANDB_MODE", "disabled")
    with contextlib.redirect_stdout(io.StringIO()), vision_left_out(peer.module):
        return importlib.import_module(f"{peer.module}.sae" if peer.module == "overcomplete" else peer.module)


@contextlib.contextmanager
def vision_left_out(module: str) -> Iterator[None]:
    """overcomplete imports torchvision for vision models that are not used here; where torchvision is absent (its
    builds fit only some builds of torch), an empty module stands in while overcomplete is imported."""
    absent = module == "overcomplete" and importlib.util.find_spec("torchvision") is None
    if absent:
        sys.modules["torchvision"] = types.ModuleType("torchvision")
        sys.modules["torchvision"].transforms = types.ModuleType("transforms")  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if absent:
            del sys.modules["torchvision"]


# ---------------------------------------------------------------------------------------------- ours


def float32_kernels() -> Kernels:
    """Our compiled kernels, with the encoder product in float32 whatever else the CPU could do."""
    from jumpahead.engine.kernels.numba import Compiled
    from jumpahead.engine.kernels.numba.product import float32

    return Compiled(float32())


ENGINES: dict[str, Callable[[], Kernels]] = {"default": kernel_layer, "float32": float32_kernels}
"""Our kernels as they are chosen by default, and restricted to float32 products."""


@final
class Ours(Contender):
    """`engine.step` with the default recipe.

    `trained`: at `begin`, at the end of the recipe's schedule. `fresh`: as the recipe initialises, at its beginning:
    the first steps of a run, whose support is the largest. `settled`: after a whole run of SETTLING steps on the data.
    """

    title, package, module = "jumpahead", "jumpahead", "jumpahead"
    architectures = COMPARED
    aux = True

    def __init__(
        self,
        architecture: str,
        begin: Start,
        state: State = "trained",
        bandwidth: float | None = None,
        engine: str = "default",
        data: Sequence[Tensor] = (),
    ):
        steps = SETTLING if state == "settled" else 10_000
        config = TrainConfig.model_validate({"tokens": steps * begin.tokens, "batch": begin.tokens})
        kind, (width, d) = ARCHITECTURES.get(architecture), begin.shape
        setting = Setting("l0", float(begin.l0))
        rules = kind.recipe_for(config, recipe.Shape(d, width, setting))
        if bandwidth is not None:
            rules = rules._replace(bandwidth=bandwidth)
        aux = {} if architecture != "topk" or begin.dead is not None else {"aux": 0.0}
        arch = (trained(kind, begin) if state == "trained" else kind)(kind.Options(**aux), setting, rules)
        self.state = fresh_state(arch, d, width, 0, begin.sample)
        self.first = config.steps - 1 if state == "trained" else 0
        self.rules, self.steps, self.dead = rules, config.steps, begin.dead
        self.kernels = ENGINES[engine]()
        self.entries: list[float] = []
        """|S| per token of every step."""
        for i in range(SETTLING if state == "settled" else 0):
            self.step(data[i % len(data)])
        self.entries.clear()

    def prepare(self) -> None:
        if self.dead is not None:
            self.state.silent[self.dead] = SILENT

    def step(self, x: Tensor) -> None:
        i = min(self.first + self.state.t, self.steps - 1)
        lr, warmup = learning_rate(self.rules, i, self.steps), sparsity_warmup(self.rules, i)
        self.entries.append(float(step(self.state, x, lr, warmup, self.kernels).entries))

    @torch.no_grad()
    def look(self, x: Tensor) -> Look:
        arch = self.state.arch
        saved = SAE(arch, arch.fold(self.state.p, 1.0))
        features = saved.encode(x)
        return looked(x, features, saved.decode(features))


def trained(kind: type[Architecture], begin: Start) -> type[Architecture]:
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
