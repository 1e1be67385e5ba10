"""Training many SAEs on one stream of activations.

Every SAE sees every batch. Batch i is a function of the study alone, an SAE's state after it is a function of its own
inputs and of batches 0 … i; so an SAE that joins late, or continues from a checkpoint, ends with the bytes it would
have had anyway. x is divided by the site's scale C first: training happens in the unit E‖x‖² = 1.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jumpahead import store
from jumpahead.engine import Kernels, State, StepResult, Watch, dense_features, settle, step
from jumpahead.errors import ArtefactError, DivergedError, StudyError
from jumpahead.formatting import duration
from jumpahead.progress import Progress, Silent
from jumpahead.sae.base import SAE, Number
from jumpahead.sae.controller import Control
from jumpahead.sae.recipe import Recipe, TrainConfig, learning_rate, sparsity_warmup

if TYPE_CHECKING:
    from jumpahead.activations.stream import Stream

REPORTS = 200
"""Lines of train.jsonl per SAE and run, about: one every so many steps, an odd number. With β₁ = 0 an SAE may swing
from step to step, and an even number would show one side of it."""
WATCHED = 7
"""Every so many of these lines says how healthy training is: about 30 steps of a run, each some 3 % longer for it."""
STATE = "state.safetensors"


@dataclass
class Job:
    """One SAE in training."""

    label: str
    """For people: `jumprelu l0 = 16`."""
    site: str
    scale: float
    """C of the site."""
    state: State
    folder: store.SAEFolder | None = None
    """Where checkpoints, the log and the result go; None keeps everything in memory."""
    inputs: str = ""
    """Digest of everything the SAE depends on."""
    seconds: float = 0.0
    """Time spent in its own steps; on a GPU, the GPU's."""
    records: list[dict[str, Any]] = field(default_factory=list)
    """Lines of train.jsonl."""
    fired: list[Number] = field(default_factory=list)
    """L0 of every step since the last line."""
    _timed: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)
    """Before and after steps on a GPU that `seconds` does not hold yet."""

    @property
    def device(self) -> torch.device:
        """Where its state is."""
        return self.state.last.device

    def step(self, x: Tensor, lr: float, warmup: float, kernels: Kernels, watch: Watch | None = None) -> StepResult:
        """One batch; names the SAE where the loss is not finite."""
        result = self._timed_step(x, lr, warmup, kernels, watch)
        self.fired.append(result.l0)
        return result

    def _timed_step(self, x: Tensor, lr: float, warmup: float, kernels: Kernels, watch: Watch | None) -> StepResult:
        if not x.is_cuda:
            begun = time.perf_counter()
            with self._named():
                result = step(self.state, x, lr, warmup, kernels, watch)
            self.seconds += time.perf_counter() - begun
            return result
        begun, done = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        with self._named():
            result = step(self.state, x, lr, warmup, kernels, watch)
        done.record()
        self._timed.append((begun, done))
        return result

    def settle(self, kernels: Kernels) -> None:
        """Wait for its last step, where kernels do not by themselves: before anything of the state is read."""
        with self._named():
            settle(self.state, kernels)
        for begun, done in self._timed:
            done.synchronize()
            self.seconds += begun.elapsed_time(done) / 1e3
        self._timed.clear()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """A diverged step says whose it is."""
        try:
            yield
        except DivergedError as error:
            kept = f" The checkpoint of step {self.saved} is kept." if self.saved else ""
            raise DivergedError(
                f"{self.label} at {self.site}, step {self.state.t}: {error}.{kept} Try a smaller train.lr."
            ) from error

    @property
    def saved(self) -> int:
        """The step of the last checkpoint on disk, 0 without one."""
        if self.folder is None or not (self.folder.checkpoint / STATE).exists():
            return 0
        with contextlib.suppress(ArtefactError):
            return int(store.read_info(self.folder.checkpoint / STATE)["t"])
        return 0

    def record(
        self, result: StepResult, x: Tensor, lr: float, health: dict[str, float] | None = None
    ) -> dict[str, float]:
        """Add a line to the log; returns what progress shows. x [B, d]: the batch, for its variance.

        L0 is the mean of all steps since the last line: at a high learning rate it differs by several percent from one
        to the next. All else is of this step.
        """
        state, variance = self.state, (x - x.mean(0)).square().sum().item() / len(x)
        error, penalty, _, entries = map(float, result[:4])
        l0 = math.fsum(numbers(self.fired)) / len(self.fired)
        self.fired.clear()
        fvu = error / max(variance, 1e-30)
        dead = int((state.silent >= state.arch.recipe.dead_after).sum())
        line = {"step": state.t, "l0": l0, "fvu": fvu, "error": error, "penalty": penalty}
        line |= {
            "entries": entries,
            "dense": result.dense,
            "dead": dead,
            "lr": lr,
            "seconds": round(self.seconds, 3),
        }
        if state.control is not None:
            line["lambda"] = float(state.sparsity)
        if health is not None:
            line["health"] = health
        self.records.append(line)
        return {"L0": l0, "FVU": fvu}

    def checkpoint(self) -> None:
        """Write the state, then the log."""
        if self.folder is None:
            return
        state = self.state
        tensors = {f"p.{name}": tensor for name, tensor in state.p.items()}
        tensors |= {f"v.{name}": tensor for name, tensor in state.v.items()}
        tensors |= {"last": state.last, "silent": state.silent, "share": state.share}
        info = {
            "t": state.t,
            "control": state.control and state.control.read(),
            "inputs": self.inputs,
            "seconds": self.seconds,
            "fired": numbers(self.fired),
        }
        self.folder.checkpoint.mkdir(parents=True, exist_ok=True)
        store.write_tensors(self.folder.checkpoint / STATE, tensors, info)
        store.rewrite_lines(self.folder.log, self.records)

    def resume(self) -> None:
        """Continue from the checkpoint on disk, if there is one made from the same inputs and not torn."""
        if self.folder is None or not (self.folder.checkpoint / STATE).exists():
            return
        path = self.folder.checkpoint / STATE
        try:
            info, read = store.read_info(path), store.read_tensors(path)
        except ArtefactError:
            return
        if info["inputs"] != self.inputs:
            return
        state, tensors = self.state, {name: tensor.to(self.device) for name, tensor in read.items()}
        state.p = {name: tensors[f"p.{name}"] for name in state.p}
        state.v = {name: tensors[f"v.{name}"] for name in state.v}
        state.last, state.silent, state.share = tensors["last"], tensors["silent"], tensors["share"]
        state.t, self.seconds, self.fired = info["t"], info["seconds"], list(info.get("fired", []))
        state.control = Control(*info["control"]) if info["control"] else None
        if self.folder.log.exists():
            self.records = [line for line in store.read_lines(self.folder.log) if line["step"] <= state.t]

    def finished(self, about: dict[str, Any] | None = None) -> SAE:
        """The SAE for the LM's own activations; saved, and the checkpoint removed, where it has a folder."""
        state = self.state
        knob = {"lambda": float(state.sparsity)} if state.control else {state.arch.setting.kind: state.arch.setting[1]}
        known = {"inputs": self.inputs, "scale": self.scale, "steps": state.t, "seconds": self.seconds, "knob": knob}
        p = {name: tensor.cpu() for name, tensor in state.p.items()}
        sae = SAE(state.arch, state.arch.fold(p, self.scale), {**known, **(about or {})})
        if self.folder is not None:
            store.rewrite_lines(self.folder.log, self.records)
            sae.save(self.folder.path)
            store.remove(self.folder.checkpoint)
        return sae


def numbers(values: Sequence[Number]) -> list[float]:
    """Floats and 0-d tensors of one device as floats, with one wait for that device."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    read = iter(torch.stack(tensors).tolist() if tensors else ())
    return [next(read) if isinstance(value, Tensor) else value for value in values]


def begin_as(state: State, sae: SAE, scale: float, sample: Tensor) -> None:
    """Makes an untrained state that of a saved SAE, of the same architecture, width and d; λ goes on from its last.

    scale: C of the site. sample [n, d]: activations in the unit E‖x‖² = 1.
    """
    p = state.arch.unfold(sae.params, scale)
    assert p.keys() == state.p.keys(), (sorted(p), sorted(state.p))
    state.p = {name: p[name].to(like) for name, like in state.p.items()}
    state.share = dense_features.first_share(state.arch, state.p, sample)
    sparsity = (sae.about.get("knob") or {}).get("lambda")
    if state.control is not None and sparsity is not None:
        state.control = state.control._replace(price=float(sparsity / state.arch.sparsity_unit(state.p)))


def train(
    jobs: Sequence[Job],
    stream: Stream,
    config: TrainConfig,
    kernels: Kernels,
    progress: Progress | None = None,
    unit: str = "tokens",
) -> None:
    """Train every job to config.steps. Ctrl-C finishes the step at hand, checkpoints all, and raises.

    unit: what progress calls the activations.
    """
    progress, steps = progress or Silent(), config.steps
    first = min(job.state.t for job in jobs)
    saved = time.monotonic()
    with (
        interruptible() as interrupted,
        progress.phase("training", config.tokens, unit, first * config.batch) as p,
        contextlib.closing(stream.batches(first)) as batches,
    ):
        for i, batch in zip(range(first, steps), batches, strict=False):
            x, due = in_unit(batch, jobs), [job for job in jobs if job.state.t == i]
            shown: dict[str, dict[str, float]] = {}

            def one(job: Job, i: int = i, x: dict[str, Tensor] = x, shown: dict[str, dict[str, float]] = shown) -> None:
                if not interrupted():
                    shown[job.label] = advance(job, i, x[job.site], config, kernels)

            with shared_time(due):
                kernels.side_by_side(due, one)
            p.advance(config.batch, {job.label: shown[job.label] for job in due if shown.get(job.label)})
            if interrupted() or time.monotonic() - saved > 60 * config.checkpoint_minutes:
                for job in jobs:
                    job.settle(kernels)
                checkpoint_all(jobs, progress, interrupted())
                saved = time.monotonic()


@contextlib.contextmanager
def shared_time(jobs: Sequence[Job]) -> Iterator[None]:
    """Within this context several steps may be done at the same time: afterwards `seconds` are shares of the time that
    went by, in proportion to what each step took."""
    before, begun = [job.seconds for job in jobs], time.perf_counter()
    yield
    passed, own = time.perf_counter() - begun, [job.seconds - was for job, was in zip(jobs, before, strict=True)]
    share = min(1.0, passed / max(sum(own), 1e-9))
    for job, was, seconds in zip(jobs, before, own, strict=True):
        job.seconds = was + share * seconds


def shares(whole: float, own: float, made: float, beside: bool) -> str:
    """Where the time of a training went, in a sentence. Seconds: of all, of SAEs' steps, of making activations."""
    parts = {"SAEs' own steps": own, "their activations" + ", beside them," * beside: made}
    share = 100 / max(whole, 1e-9)
    words = (f"{what} {duration(seconds)} ({share * seconds:.0f} %)" for what, seconds in parts.items())
    return f"Of {duration(whole)}, {' and '.join(words)}."


def rate_left(r: Recipe, step: int, steps: int) -> float:
    """Σ of Adam's learning rate from `step` (0-based) to the end: as far as its β₁ = 0 can carry a parameter."""
    return math.fsum(learning_rate(r, i, steps) for i in range(step, steps))


def in_unit(batch: dict[str, Tensor], jobs: Sequence[Job]) -> dict[str, Tensor]:
    """Each site's batch divided by its scale, on the device of the jobs there, once for all of them."""
    places = {(job.site, job.scale, job.device) for job in jobs}
    return {site: batch[site].to(device) * (1.0 / scale) for site, scale, device in places}


def device_for(config: TrainConfig) -> torch.device:
    """Where SAEs train; StudyError where there is no such place."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise StudyError('train.device = "cuda": torch sees no GPU here; leave it out to train on the CPU.')
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def checkpoint_all(jobs: Sequence[Job], progress: Progress, stopping: bool) -> None:
    """Checkpoint every job; with `stopping`, raise KeyboardInterrupt afterwards."""
    if stopping:
        progress.say("Stopping: writing checkpoints …")
    for job in jobs:
        job.checkpoint()
    if stopping:
        raise KeyboardInterrupt


def advance(job: Job, i: int, x: Tensor, config: TrainConfig, kernels: Kernels) -> dict[str, float]:
    """Step i, from 0, of an SAE; what progress shows of it, nothing where the step has no line in the log."""
    rules, steps = job.state.arch.recipe, config.steps
    every, is_last = max(1, steps // REPORTS) | 1, i + 1 == steps
    lr, warmup = learning_rate(rules, i, steps), sparsity_warmup(rules, i)
    watch = None
    if (i + 1) % (every * WATCHED) == 0 or is_last:
        watch = Watch(job.state, config.batch, warmup)
    result = job.step(x, lr, warmup, kernels, watch)
    if (i + 1) % every != 0 and not is_last:
        return {}
    job.settle(kernels)
    health = watch and watch.health(job.state, rate_left(rules, i + 1, steps))
    return job.record(result, x, lr, health)


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Within this context Ctrl-C and SIGTERM set a flag, so that no step is cut in two; a second interrupts.

    Yields a function that says whether one came. Outside the main thread signals stay as they are.
    """
    came: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
        came.append(number)
        if len(came) > 1:
            raise KeyboardInterrupt

    with contextlib.suppress(ValueError):
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def use_threads(threads: int | None) -> None:
    """Set torch's number of CPU threads; all cores when None."""
    if threads is not None:
        torch.set_num_threads(threads)
