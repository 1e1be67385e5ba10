"""The state of a forward pass at a site, and how a pass continues from there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from jumpahead.lm.forward_inputs import ForwardInputs
from jumpahead.lm.hook_points import HookPoint
from jumpahead.lm.hooks import (
    StopForward,
    capture,
    detached_copy,
    extra_outputs,
    first_output,
    main_input,
    override_block_input,
    override_output,
    remove_on_exit,
    splice_activation,
)
from jumpahead.lm.sites import Site


class ResumePoint(NamedTuple):
    """The state of a forward pass at a site, from which `LM.run_from_site` continues."""

    site: Site
    inputs: ForwardInputs
    activation: Tensor
    """[b, t, d]: activations of the unmodified model at the site."""
    block_input: Tensor | None
    """[b, t, width]: input of the site's block, or output of the last block for a site after all blocks.

    None for a residual site and for a site before all blocks: resuming there needs no block input."""
    extra_outputs: tuple[tuple[Any, ...] | None, ...]
    """For each block before the site's block, its outputs after the first; None if the block returns a bare tensor."""
    site_extra_outputs: tuple[Any, ...] | None
    """Outputs after the first of the site's module if resuming skips this module (a block or an MLP); else None."""
    is_flattened: bool
    """True if the site's module returns a tensor of shape [b·t, d]."""
    skips_blocks: bool
    """False if resuming runs the whole model, because blocks leave more behind than their output."""


class ResumeRecorder:
    """Hooks that record what a resumption at a site needs."""

    def __init__(self, blocks: list[nn.Module], point: HookPoint, depth: int) -> None:
        """Record for the site of a hook point.

        depth: the number of blocks that have run when a forward pass reaches the site; −1 before all blocks.
        """
        self.blocks, self.point, self.depth = blocks, point, depth
        self._before = blocks[: max(depth, 0)]
        self._block_input: Tensor | None = None
        self._extra_outputs: dict[int, tuple[Any, ...] | None] = {}
        self._activation: Tensor | None = None
        self._is_flattened = False

    @contextlib.contextmanager
    def hooks(self, shape: torch.Size) -> Iterator[None]:
        """Record within the context; the forward pass ends at the site with StopForward.

        shape: of the token ids, (b, t).
        """
        point, depth = self.point, self.depth
        with contextlib.ExitStack() as stack:
            if 0 <= depth < len(self.blocks) and point.site.kind != "residual":
                handle = self.blocks[depth].register_forward_pre_hook(self._store_input, with_kwargs=True)
                stack.enter_context(remove_on_exit(handle))
            modules = [*self._before, point.module] if point.can_skip_module else self._before
            for index, module in enumerate(modules):
                stack.enter_context(remove_on_exit(module.register_forward_hook(self._store_outputs_of(index))))
            stack.enter_context(capture(point, shape, self._store_activation))
            yield

    def _store_input(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Store the input of the site's block."""
        self._block_input = detached_copy(main_input(args, kwargs))

    def _store_outputs_of(self, index: int) -> Callable[..., None]:
        """Return a hook that stores the outputs of a module that a resumption skips."""

        def store_outputs(_module: nn.Module, _args: Any, output: Any) -> None:
            self._extra_outputs[index] = extra_outputs(output)
            value = first_output(output)
            if index == len(self.blocks) - 1 == self.depth - 1:  # a site after all blocks
                self._block_input = detached_copy(value)
            self._is_flattened = isinstance(value, Tensor) and value.ndim == 2

        return store_outputs

    def _store_activation(self, value: Tensor) -> None:
        """Store the site's activations and end the forward pass."""
        self._activation = detached_copy(value)
        raise StopForward

    def result(self, inputs: ForwardInputs, skips_blocks: bool) -> ResumePoint:
        """Return what was recorded in a pass over `inputs`."""
        assert self._activation is not None
        count = len(self._before)
        return ResumePoint(
            self.point.site,
            inputs,
            self._activation,
            self._block_input,
            tuple(self._extra_outputs.get(index) for index in range(count)),
            self._extra_outputs.get(count),
            self._is_flattened,
            skips_blocks,
        )


@contextlib.contextmanager
def resume_with(
    point: ResumePoint, blocks: list[nn.Module], hook_point: HookPoint, depth: int, value: Tensor
) -> Iterator[None]:
    """Let forward passes within the context continue from a site, with `value` [b, t, d] there.

    Modules before the site are skipped, and so is a module whose output is the site, unless the whole model has to run.
    depth: the number of blocks that have run when a forward pass reaches the site; −1 before all blocks.
    """
    with contextlib.ExitStack() as stack:
        if not point.skips_blocks:
            stack.enter_context(splice_activation(hook_point, point.inputs.ids.shape, lambda _: value))
            yield
            return
        for block, extra in zip(blocks[: max(depth, 0)], point.extra_outputs, strict=True):
            stack.enter_context(override_output(block, extra, None))
        if point.block_input is not None and depth < len(blocks):
            stack.enter_context(override_block_input(blocks[depth], point.block_input))
        elif point.block_input is not None:
            stack.enter_context(override_output(blocks[-1], point.extra_outputs[-1], point.block_input))
        if hook_point.can_skip_module:
            output = value.flatten(0, 1) if point.is_flattened else value
            stack.enter_context(override_output(hook_point.module, point.site_extra_outputs, output))
        else:
            stack.enter_context(splice_activation(hook_point, point.inputs.ids.shape, lambda _: value))
        yield
