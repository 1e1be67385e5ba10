"""A training job: one SAE in training, with its state, its log (train.jsonl) and its checkpoint.

A checkpoint is one safetensors file: `p.NAME` parameters, `m.NAME` first moments (with momentum), `v.NAME` second
moments, `last_touched`, `tokens_since_fired`, `support_share`; its header has the step, the controller, the lines of
the log and the digest of the SAE's inputs. So state and log are of the same step whenever the process is killed;
train.jsonl beside it is a copy for readers.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from jumpahead.engine import Kernels, State, StepDiagnostics, StepResult, synchronize, train_step
from jumpahead.engine.dense_features import estimate_support_share
from jumpahead.errors import ArtefactError, DivergedError
from jumpahead.sae.controller import ControllerState
from jumpahead.sae.saved import SAE
from jumpahead.sae.support import Number
from jumpahead.sae.unit import Unit
from jumpahead.storage.folders import remove_path
from jumpahead.storage.json_files import parse_json, to_json, write_json_lines
from jumpahead.storage.layout import SAEFolder
from jumpahead.storage.tensors import read_tensors, read_tensors_info, write_tensors


@dataclass
class Job:
    """One SAE in training."""

    label: str
    """The SAE's name in messages, such as `jumprelu l0 = 16`."""
    site: str
    """The site in the LM whose activations the SAE is trained on."""
    unit: Unit
    """The unit of training, on the device of the state: activations x become (x − μ)/C."""
    state: State
    """Parameters, optimizer state and controller."""
    folder: SAEFolder | None = None
    """Folder of the checkpoint, the log and the trained SAE; None keeps everything in memory."""
    inputs: str = ""
    """Digest of everything that the trained SAE depends on."""
    made_from: dict[str, Any] = field(default_factory=dict)
    """The values that `inputs` is the digest of, by which a later study says what differs."""
    seconds: float = 0.0
    """Time spent in the steps of this SAE; on a GPU, measured with GPU events."""
    records: list[dict[str, Any]] = field(default_factory=list)
    """Lines of train.jsonl."""
    l0_since_line: list[Number] = field(default_factory=list)
    """L0 of every step since the last line of the log."""
    limited_rows: Number = 0
    """Rows of all steps so far that were scaled down to the norm limit."""
    _unread_timings: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)
    """Start and end events of GPU steps whose duration is not yet added to `seconds`."""

    @property
    def device(self) -> torch.device:
        """Return the device that holds the state."""
        return self.state.last_touched.device

    def step(
        self, x: Tensor, lr: float, warmup: float, kernels: Kernels, diagnostics: StepDiagnostics | None = None
    ) -> StepResult:
        """Run one training step on a batch; return the step's result.

        Raises DivergedError, naming the SAE, if the loss is not finite.
        x: [B, d] activations in the unit E‖x‖² = 1.
        lr: Adam's learning rate in this step.
        warmup: factor of λ in this step, from its warm-up.
        diagnostics: measures the diagnostics of this step, if given.
        """
        result = self._timed_step(x, lr, warmup, kernels, diagnostics)
        self.l0_since_line.append(result.l0)
        return result

    def _timed_step(
        self, x: Tensor, lr: float, warmup: float, kernels: Kernels, diagnostics: StepDiagnostics | None
    ) -> StepResult:
        """Run one training step and measure its duration; on a GPU, `synchronize` reads the duration later."""
        if not x.is_cuda:
            begun = time.perf_counter()
            with self._add_context_to_divergence():
                result = train_step(self.state, x, lr, warmup, kernels, diagnostics)
            self.seconds += time.perf_counter() - begun
            return result
        begun, done = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        with self._add_context_to_divergence():
            result = train_step(self.state, x, lr, warmup, kernels, diagnostics)
        done.record()
        self._unread_timings.append((begun, done))
        return result

    def synchronize(self, kernels: Kernels) -> None:
        """Wait until all steps are finished and add their durations to `seconds`; call before reading the state."""
        with self._add_context_to_divergence():
            synchronize(self.state, kernels)
        for begun, done in self._unread_timings:
            done.synchronize()
            self.seconds += begun.elapsed_time(done) / 1e3
        self._unread_timings.clear()

    @contextlib.contextmanager
    def _add_context_to_divergence(self) -> Iterator[None]:
        """Add the SAE's name, the step and the last checkpoint to a DivergedError raised in this context."""
        try:
            yield
        except DivergedError as error:
            kept = f" The checkpoint of step {self.checkpoint_step} is kept." if self.checkpoint_step else ""
            raise DivergedError(
                f"{self.label} at {self.site}, step {self.state.steps_done}: {error}.{kept} Try a smaller train.lr."
            ) from error

    @property
    def checkpoint_step(self) -> int:
        """Return the step of the last checkpoint on disk; 0 without a readable checkpoint."""
        if self.folder is None or not self.folder.checkpoint_state.exists():
            return 0
        with contextlib.suppress(ArtefactError):
            return int(read_tensors_info(self.folder.checkpoint_state)["steps_done"])
        return 0

    def log_step(
        self, result: StepResult, x: Tensor, lr: float, health: dict[str, float] | None = None
    ) -> dict[str, float]:
        """Add a line to the log; return the values for the progress display, L0 and FVU.

        The logged L0 is the mean over all steps since the last line: at a high learning rate, L0 differs by several
        percent from step to step. All other values in the line are those of this step.
        x: [B, d] the batch, of which the variance is computed.
        lr: Adam's learning rate in this step.
        health: the diagnostics of this step, if they were measured.
        """
        state, variance = self.state, (x - x.mean(0)).square().sum().item() / len(x)
        error, penalty, _, entries = map(float, result[:4])
        l0 = math.fsum(to_floats(self.l0_since_line)) / len(self.l0_since_line)
        self.l0_since_line.clear()
        fvu = error / max(variance, 1e-30)
        dead = int((state.tokens_since_fired >= state.arch.recipe.dead_after_tokens).sum())
        line = {"step": state.steps_done, "l0": l0, "fvu": fvu, "error": error, "penalty": penalty}
        line |= {
            "entries": entries,
            "dense": result.num_dense_features,
            "dead": dead,
            "lr": lr,
            "seconds": round(self.seconds, 3),
        }
        if state.controller is not None:
            line["lambda"] = float(state.sparsity_coefficient)
        if health is not None:
            line["health"] = health
        self.records.append(line)
        return {"L0": l0, "FVU": fvu}

    def checkpoint(self) -> None:
        """Write the checkpoint, then a copy of its log. Without a folder, do nothing."""
        if self.folder is None:
            return
        state = self.state
        tensors = {f"p.{name}": tensor for name, tensor in state.params.items()}
        tensors |= {f"v.{name}": tensor for name, tensor in state.second_moments.items()}
        tensors |= {f"m.{name}": tensor for name, tensor in state.first_moments.items()}
        tensors |= {
            "last_touched": state.last_touched,
            "tokens_since_fired": state.tokens_since_fired,
            "support_share": state.support_share,
        }
        info = {
            "steps_done": state.steps_done,
            "controller": state.controller and state.controller.to_floats(),
            "inputs": self.inputs,
            "made_from": self.made_from,
            "seconds": self.seconds,
            "records": parse_json(to_json(self.records)),  # NaN is null, as in train.jsonl
            "l0_since_line": to_floats(self.l0_since_line),
            "limited_rows": int(self.limited_rows),
        }
        write_tensors(self.folder.checkpoint_state, tensors, info)
        write_json_lines(self.folder.log, self.records)

    def resume(self) -> None:
        """Load the checkpoint on disk, if there is one with the same digest of inputs.

        Raises DamagedError if the checkpoint is damaged.
        """
        if self.folder is None or not self.folder.checkpoint_state.exists():
            return
        path = self.folder.checkpoint_state
        info = read_tensors_info(path)
        if info.get("inputs") != self.inputs:
            return
        read = read_tensors(path)
        state, tensors = self.state, {name: tensor.to(self.device) for name, tensor in read.items()}
        state.params = {name: tensors[f"p.{name}"] for name in state.params}
        state.second_moments = {name: tensors[f"v.{name}"] for name in state.second_moments}
        state.first_moments = {name: tensors[f"m.{name}"] for name in state.first_moments}
        state.last_touched, state.tokens_since_fired, state.support_share = (
            tensors["last_touched"],
            tensors["tokens_since_fired"],
            tensors["support_share"],
        )
        state.steps_done, self.seconds, self.l0_since_line = (
            info["steps_done"],
            info["seconds"],
            list(info["l0_since_line"]),
        )
        self.limited_rows = info["limited_rows"]
        state.controller = ControllerState(*info["controller"]) if info["controller"] else None
        self.records = list(info["records"])

    def finish(self, about: dict[str, Any] | None = None) -> SAE:
        """Return the trained SAE, for the LM's activations without rescaling; save it if the job has a folder.

        After saving, the checkpoint is removed.
        about: further metadata to store with the SAE.
        """
        state = self.state
        coefficient = (
            {"lambda": float(state.sparsity_coefficient)}
            if state.controller
            else {state.arch.setting.kind: state.arch.setting[1]}
        )
        known = {
            "inputs": self.inputs,
            "made_from": self.made_from,
            "scale": self.unit.scale,
            "steps": state.steps_done,
            "seconds": self.seconds,
            "sparsity_coefficient": coefficient,
        }
        params = {name: tensor.cpu() for name, tensor in state.params.items()}
        sae = SAE(state.arch, self.unit.fold(state.arch, params), {**known, **(about or {})})
        if self.folder is not None:
            write_json_lines(self.folder.log, self.records)
            try:
                sae.save(self.folder.path, with_log=True)
            except DivergedError as error:
                raise DivergedError(f"{self.label} at {self.site}: {error} Try a smaller train.lr.") from error
            remove_path(self.folder.checkpoint)
        return sae


def to_floats(values: Sequence[Number]) -> list[float]:
    """Return the values as Python floats; 0-d tensors, all on one device, are read in one transfer."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    read = iter(torch.stack(tensors).tolist() if tensors else ())
    return [next(read) if isinstance(value, Tensor) else value for value in values]


def warm_start(state: State, sae: SAE, unit: Unit, sample: Tensor) -> None:
    """Replace the parameters of an untrained state, and its controller's λ, by those of a saved SAE.

    The saved SAE must have the same architecture, width and d as the state.
    unit: the unit of the training; that of the saved SAE may be another.
    sample: [n, d] activations in this unit.
    """
    params = unit.unfold(state.arch, sae.params)
    assert params.keys() == state.params.keys(), (sorted(params), sorted(state.params))
    state.params = {name: params[name].to(like) for name, like in state.params.items()}
    state.support_share = estimate_support_share(state.arch, state.params, sample)
    sparsity = (sae.about.get("sparsity_coefficient") or {}).get("lambda")
    if state.controller is not None and sparsity is not None:
        state.controller = state.controller._replace(
            penalty_scale=float(sparsity / state.arch.sparsity_coefficient_scale(state.params))
        )
