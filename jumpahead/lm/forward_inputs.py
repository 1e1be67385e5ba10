"""The inputs of a forward pass: token ids, positions, and which positions are padding.

Rows padded on the left need a mask: without it the model takes padding for text, and every activation of the row is
another. With a mask, positions are counted from the first token; whether the model honours both is measured.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jumpahead.errors import DataError

PADDING = 3
"""Number of padding positions in the test of a model's attention mask."""


class ForwardInputs(NamedTuple):
    """The inputs of one forward pass."""

    ids: Tensor
    """int64 [b, t]"""
    position_ids: Tensor | None = None
    """int64 [b, t]; None if the model counts positions itself."""
    attention_mask: Tensor | None = None
    """int64 [b, t], 0 where a position is padding; None if no position is."""

    def options(self) -> dict[str, Tensor]:
        """Return the keyword arguments beside the token ids.

        With no KV cache and no attention mask, transformers masks across resets in `position_ids` (isolation.py).
        """
        named = {"position_ids": self.position_ids, "attention_mask": self.attention_mask}
        return {name: value for name, value in named.items() if value is not None}


def with_mask(model: Any, ids: Tensor, position_ids: Tensor | None, mask: Tensor | None) -> ForwardInputs:
    """Return the inputs for rows with padding; positions count from a row's first token.

    mask: bool or int [b, t], None or all True if there is no padding. Raises DataError if its shape is not that of ids.
    """
    if mask is not None and mask.shape != ids.shape:
        raise DataError(f"attention_mask has shape {list(mask.shape)}, the token ids have {list(ids.shape)}.")
    if mask is None or bool(mask.bool().all()):
        return ForwardInputs(ids, position_ids)
    mask = mask.to(device=ids.device, dtype=torch.int64)
    if position_ids is None and "position_ids" in inspect.signature(model.forward).parameters:
        position_ids = (mask.cumsum(1) - 1).clamp_min(0)
    return ForwardInputs(ids, position_ids, mask)


def refuse_unmarked_padding(ids: Tensor, pad_id: int | None, text_starts: set[int | None]) -> None:
    """Raise DataError if a row begins with padding and the caller gave no attention mask.

    text_starts: ids with which a row may begin; one such id is no padding, two are if it is the padding's id too.
    """
    if pad_id is None or ids.ndim != 2:
        return
    is_pad = ids == pad_id
    leading = is_pad.long().cumprod(1).sum(1)
    allowed = 1 if pad_id in text_starts else 0
    is_padded = (leading > allowed) & (leading < ids.shape[1])
    if bool(is_padded.any()):
        row = int(is_padded.nonzero()[0, 0])
        raise DataError(
            f"Row {row} begins with {int(leading[row])} padding tokens: pass attention_mask, or pad on the right."
        )


def check_mask_is_honoured(
    run: Callable[[ForwardInputs], Mapping[str, Tensor]], inputs: ForwardInputs, model: Any
) -> None:
    """Raise DataError unless left-padded rows give what the rows alone give, for each tensor that `run` returns.

    inputs: rows without padding. run: returns tensors [b, t, …] by name.
    """
    ids = inputs.ids
    padding = torch.full((len(ids), PADDING), int(ids[0, -1]), dtype=ids.dtype, device=ids.device)
    mask = torch.cat([torch.zeros_like(padding), torch.ones_like(ids)], dim=1)
    alone, padded = run(inputs), run(with_mask(model, torch.cat([padding, ids], dim=1), None, mask))
    for name, reference in alone.items():
        distance = (padded[name][:, PADDING:] - reference).double().norm() / reference.double().norm().clamp_min(1e-30)
        if not float(distance) <= torch.finfo(reference.dtype).eps ** 0.5:
            raise DataError(
                f"A {type(model).__name__} ignores attention_mask ({name} changes with padding on the left): "
                "pad on the right, or pass one row at a time."
            )
