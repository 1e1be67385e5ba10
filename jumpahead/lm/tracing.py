"""One short forward pass that records which modules run, how often, and what the blocks pass to each other.

Nothing is assumed about a model family: whether a site can be read follows from this record.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from jumpahead.errors import SiteError
from jumpahead.lm.hooks import main_input, remove_on_exit
from jumpahead.lm.loading import RemovedWeights
from jumpahead.lm.sites import Site


class ForwardTrace(NamedTuple):
    """The calls of one forward pass."""

    calls: Counter[nn.Module]
    """Number of calls of each module, in the order of first calls."""
    stream_shape: list[int]
    """Shape of what the first block takes: [b, t, d] if the model has one residual stream."""
    is_complete: bool
    """False if the model is truncated: the pass ended at the first removed block."""

    def refuse_other_streams(self, positions: tuple[int, int], width: int | None, who: str) -> None:
        """Raise SiteError if the blocks pass anything but one vector per position to each other.

        positions: the numbers of rows and positions of the pass. width: of the residual stream, None if it is not
        known. who: the model, for the message.
        """
        shape = self.stream_shape
        if not shape:
            raise SiteError(f"{who} runs none of its blocks on text alone: it has no site that jumpahead can read.")
        if len(shape) != 3 or tuple(shape[:2]) != positions or shape[2] != (width or shape[2]):
            expected = [*positions, width or "d"]
            raise SiteError(
                f"{who} passes {shape} between blocks, not {expected}: it has no single residual stream, "
                "which every site of jumpahead needs."
            )

    def refuse_other_counts(self, module: nn.Module, site: Site, what: str, name: str) -> None:
        """Raise SiteError if a module that a site depends on does not run exactly once in a forward pass.

        what: of the module, and name: of the model, for the message.
        """
        times = self.calls[module]
        if times > 1:
            raise SiteError(
                f"{site.key} cannot be a site of '{name}': {what} runs {times} times in a forward pass (a loop)."
            )
        if times == 0 and self.is_complete:
            raise SiteError(f"{site.key} cannot be a site of '{name}': {what} is not run in a forward pass.")

    def is_before(self, module: nn.Module, other: nn.Module) -> bool:
        """Return True if the first call of `module` is earlier than the first call of `other`."""
        order = list(self.calls)
        return order.index(module) < order.index(other)


def trace_forward(model: nn.Module, first_block: nn.Module, run: Callable[[], object]) -> ForwardTrace:
    """Return the record of the forward pass that `run` makes."""
    calls: Counter[nn.Module] = Counter()
    shapes: list[list[int]] = []

    def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[module] += 1
        if module is first_block and not shapes:
            value = main_input(args, kwargs)
            shapes.append(list(value.shape) if isinstance(value, Tensor) else [])

    is_complete = True
    with contextlib.ExitStack() as stack, torch.no_grad():
        for module in model.modules():
            stack.enter_context(remove_on_exit(module.register_forward_pre_hook(count, with_kwargs=True)))
        try:
            run()
        except RemovedWeights:
            is_complete = False
    return ForwardTrace(calls, shapes[0] if shapes else [], is_complete)
