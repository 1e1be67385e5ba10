"""Find out why a model's numbers are not finite: its weights, or the range of its dtype."""

from __future__ import annotations

import contextlib
from typing import Any

from torch import Tensor, nn

from jumpahead.errors import StudyError
from jumpahead.lm.hooks import first_output, remove_on_exit
from jumpahead.lm.model import LM


def check_finite(lm: LM, ids: Tensor) -> Tensor:
    """Return the logits [b, t, V] for token ids [b, t].

    Raises StudyError if logits are not finite, naming the weights or the module where that begins.
    """
    logits = lm.logits(ids)
    if bool(logits.isfinite().all()):
        return logits
    dtype = str(lm.dtype).removeprefix("torch.")
    if weights := _first_bad_weights(lm.model):
        raise StudyError(
            f"lm.model = '{lm.name}': logits are not finite in {dtype}: {weights}. Use other weights of the model."
        )
    where = _first_overflow(lm, ids)
    raise StudyError(
        f"lm.model = '{lm.name}': logits are not finite in {dtype}: {where} overflows. Set lm.dtype = 'float32' or "
        "'bfloat16'."
    )


def _first_bad_weights(model: nn.Module) -> str | None:
    """Return a clause that names the first parameter with numbers that are not finite, and its first such row."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not bool(parameter.isfinite().all()):
            rows = (~parameter.detach().isfinite()).reshape(len(parameter), -1).any(1) if parameter.ndim else None
            bad = "" if rows is None else f" in row {int(rows.nonzero()[0, 0])} of {len(rows)}"
            return f"the weights {name} are not{bad}"
    return None


def _first_overflow(lm: LM, ids: Tensor) -> str:
    """Return the path of the first module whose output is not finite."""
    paths = {module: path for path, module in lm.model.named_modules()}
    bad: list[str] = []

    def note(module: nn.Module, _args: Any, output: Any) -> None:
        value = first_output(output)
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
            bad.append(paths[module])

    with contextlib.ExitStack() as stack:
        for module in paths:
            stack.enter_context(remove_on_exit(module.register_forward_hook(note)))
        lm.logits(ids)
    return bad[0] if bad else type(lm.model).__name__
