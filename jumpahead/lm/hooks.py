"""Hooks for forward passes: capture activations, replace activations, or skip modules whose output is known.

    b, t, d      contexts, positions, width of a site

Each is a context manager that removes its hooks on exit. Callers see activations as [b, t, d], although some model
families (OPT) pass [b·t, d] between modules.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from jumpahead.errors import SiteError
from jumpahead.lm.hook_points import HookPoint
from jumpahead.lm.sites import Site


class StopForward(Exception):
    """Raised by a hook to end a forward pass when everything is captured."""


@contextlib.contextmanager
def splice_activation(point: HookPoint, shape: torch.Size, replace: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace activations x [b, t, d] at a hook point by `replace(x)` within the context.

    shape: of the token ids in every forward pass, (b, t). Where the site is a multiple of what the module returns,
    `replace` takes and returns the multiple; what it leaves unchanged keeps every bit.
    """

    def replaced(value: Any) -> Tensor:
        x = _as_sequences(value, shape, point.site)
        if point.scale == 1:
            return replace(x).reshape(value.shape)
        site = x * point.scale
        new = replace(site)
        return torch.where(new == site, x, new / point.scale).reshape(value.shape)

    def at_input(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            return (replaced(args[0]), *args[1:]), kwargs
        name = _main_keyword(kwargs)
        return args, {**kwargs, name: replaced(kwargs[name])}

    def at_output(_module: nn.Module, _args: Any, output: Any) -> Any:
        return replace_first_output(output, replaced(first_output(output)))

    if point.side == "input":
        handle = point.module.register_forward_pre_hook(at_input, with_kwargs=True)
    else:
        handle = point.module.register_forward_hook(at_output)
    with remove_on_exit(handle):
        yield


@contextlib.contextmanager
def capture(point: HookPoint, shape: torch.Size, store: Callable[[Tensor], None]) -> Iterator[None]:
    """Call `store` with the activations [b, t, d] at a hook point in each forward pass within the context.

    shape: of the token ids in every forward pass, (b, t).
    """

    def store_and_keep(value: Tensor) -> Tensor:
        store(value)
        return value

    with splice_activation(point, shape, store_and_keep):
        yield


@contextlib.contextmanager
def override_output(module: nn.Module, extra_outputs: tuple[Any, ...] | None, value: Tensor | None) -> Iterator[None]:
    """Make a block or an MLP return `value`, without running the module. If `value` is None, it returns its input.

    extra_outputs: outputs to return after the first; None for a module that returns a bare tensor. Only `forward` is
    replaced: the module keeps its index, attributes and hooks.
    """

    def forward(*args: Any, **kwargs: Any) -> Any:
        # a copy: Falcon adds into the tensor that its MLP returns
        output = (args[0] if args else kwargs[_main_keyword(kwargs)]) if value is None else value.clone()
        return output if extra_outputs is None else (output, *extra_outputs)

    original = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if original is None:
            del module.forward
        else:
            module.forward = original


@contextlib.contextmanager
def override_block_input(block: nn.Module, hidden: Tensor) -> Iterator[None]:
    """Replace the hidden states that a block receives by `hidden` [b, t, width] within the context."""

    def override(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, _main_keyword(kwargs): hidden})

    with remove_on_exit(block.register_forward_pre_hook(override, with_kwargs=True)):
        yield


@contextlib.contextmanager
def remove_on_exit(handle: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    """Remove a registered hook when the context exits."""
    try:
        yield
    finally:
        handle.remove()


def detached_copy(value: Tensor) -> Tensor:
    """Return a copy of the tensor that autograd accepts and that in-place operations of the model do not change."""
    with torch.inference_mode(False):
        return value.clone()


def first_output(output: Any) -> Any:
    """Return a module's first output."""
    return output[0] if isinstance(output, tuple | list) and output else output


def extra_outputs(output: Any) -> tuple[Any, ...] | None:
    """Return a module's outputs after the first; None if it returns a bare tensor."""
    return tuple(output[1:]) if isinstance(output, tuple | list) else None


def replace_first_output(output: Any, value: Tensor) -> Any:
    """Return a module's output, of the same type, with `value` as the first."""
    if isinstance(output, list):
        return [value, *output[1:]]
    if isinstance(output, tuple) and (fields := getattr(output, "_fields", ())):
        return output._replace(**{fields[0]: value})  # pyright: ignore[reportAttributeAccessIssue]
    return (value, *output[1:]) if isinstance(output, tuple) else value


def main_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return a module's main input: its first argument, or the keyword argument that holds the hidden states."""
    return args[0] if args else kwargs[_main_keyword(kwargs)]


def _main_keyword(kwargs: dict[str, Any]) -> str:
    """Return the name of the keyword argument that holds the hidden states, or else the first tensor."""
    if "hidden_states" in kwargs:
        return "hidden_states"
    return next(name for name, value in kwargs.items() if isinstance(value, Tensor))


def _as_sequences(value: Any, shape: torch.Size, site: Site) -> Tensor:
    """Return a module's input or output reshaped to [b, t, d]. Raises SiteError if it is not one vector per position.

    shape: of the token ids, (b, t).
    """
    if isinstance(value, Tensor) and value.is_floating_point():
        if value.ndim == 3 and value.shape[:2] == shape:
            return value
        if value.ndim == 2 and len(value) == shape.numel():
            return value.unflatten(0, shape)
    what = f"{list(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise SiteError(
        f"{site.key} cannot be a site: its module passes {what}, not one vector for each of {shape[0]} × {shape[1]} "
        "positions."
    )
