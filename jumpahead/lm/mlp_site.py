"""The site `layers.N.mlp`: found by measuring what a block adds to the residual stream, on the model at hand.

With the modules silenced that mix positions (attention, convolution, recurrence), a block adds only what its MLP adds:

    block input + scale · output of the module = block output

The module is the first for which this holds with scale 1: those with a known name first, then any module of the block
(BLOOM and MPT add the residual inside their MLP, so that only its last product is the site). Otherwise a scale is taken
(Granite multiplies the MLP's output by a number before it adds it). If nothing satisfies the equation, the site is
refused. Modules that mix positions are found by their names, or without: earlier tokens are changed, and where a
module's output changes at later positions although its input there does not, it mixes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from jumpahead.lm.hook_points import named_projections
from jumpahead.lm.hooks import (
    StopForward,
    detached_copy,
    first_output,
    main_input,
    override_block_input,
    remove_on_exit,
    replace_first_output,
)

TOLERANCE = 1e-3
"""Maximum relative error of the equation, beside rounding."""
ROUNDING = 4.0
"""Maximum rounding error of the equation, in units of ε of the dtype times the norm of the block's output."""
MAX_ROUNDS = 4
"""Maximum number of modules that mix positions, one after another, in a block."""


class MLPSite(NamedTuple):
    """The module whose output, times a scale, is what a block's MLP adds to the residual stream."""

    path: str
    """Path of the module within the block."""
    scale: float


class _BlockPass(NamedTuple):
    """Tensors inside one block in a forward pass; tensors are [b, t, …]."""

    inputs: dict[str, Tensor]
    """Main input of each module that takes one vector per position, by path; "" is the block itself."""
    outputs: dict[str, Tensor]


def find_mlp_site(
    block: nn.Module,
    named: list[str],
    run: Callable[[], object],
    declared: list[float],
) -> MLPSite | None:
    """Return the site of a block, or None if no module is one.

    named: paths of modules with a known name, in order of preference. run: makes one forward pass, which a hook may end
    once the block has run. declared: numbers that the configuration and the block name; a measured scale that is near
    one of them is that one.
    """
    hidden = _block_input(block, run)
    other = hidden.clone()
    half = hidden.shape[1] // 2
    other[:, :half] = hidden.roll(1, dims=0)[:, :half]
    # Where the residual is added inside (BLOOM), only the projection may be silenced, not the module around it. An
    # attention whose keys come from another block (Gemma 4) does not seem to mix: known names are silenced first.
    silenced = named_projections(block)
    tried = {path.partition(".")[0] for path in silenced}
    clean = _run_block(block, run, hidden, silenced)
    for _ in range(MAX_ROUNDS):
        moved = _run_block(block, run, other, silenced)
        found = _mixing_children(block, clean, moved, half, [*named, *silenced])
        if not found:
            break
        silenced += [path for child in found for path in _to_silence(block, child, tried)]
        tried |= set(found)
        clean = _run_block(block, run, hidden, silenced)
    site = _select(block, clean, named, silenced, declared)
    if site is not None:
        without = _run_block(block, run, hidden, [*silenced, site.path])
        added = site.scale * clean.outputs[site.path].double()
        if not _is_small(without.outputs[""].double() - hidden.double(), added, hidden):
            site = None
    return site


def _block_input(block: nn.Module, run: Callable[[], object]) -> Tensor:
    """Return what the model gives to a block, [b, t, d]."""
    seen: list[Tensor] = []

    def store(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(detached_copy(main_input(args, kwargs)))
        raise StopForward

    handle = block.register_forward_pre_hook(store, with_kwargs=True)
    with remove_on_exit(handle), torch.no_grad(), contextlib.suppress(StopForward):
        run()
    return seen[0]


def _run_block(block: nn.Module, run: Callable[[], object], hidden: Tensor, silenced: list[str]) -> _BlockPass:
    """Run the model up to the end of a block; return the inputs and outputs of the block's modules.

    hidden: the block's input, [b, t, d]. silenced: paths of modules that return zeros.
    """
    seen = _BlockPass({}, {})

    def record(path: str) -> Callable[..., Any]:
        def after(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if path in silenced:
                output = replace_first_output(output, torch.zeros_like(first_output(output)))
            if path not in seen.outputs:
                for kept, value in ((seen.inputs, _main(args, kwargs)), (seen.outputs, first_output(output))):
                    x = _per_position(value, hidden.shape[:2])
                    if x is not None:
                        kept[path] = x.detach().clone()
            if path == "":
                raise StopForward
            return output

        return after

    with contextlib.ExitStack() as stack, torch.no_grad():
        stack.enter_context(override_block_input(block, hidden))
        for path, module in block.named_modules():
            stack.enter_context(remove_on_exit(module.register_forward_hook(record(path), with_kwargs=True)))
        with contextlib.suppress(StopForward):
            run()
    return seen


def _to_silence(block: nn.Module, child: str, tried: set[str]) -> list[str]:
    """Return the paths to silence of a child that mixes positions: its projections, or itself if that did not help."""
    return [child] if child in tried else named_projections(block, [child]) or [child]


def _mixing_children(
    block: nn.Module, clean: _BlockPass, moved: _BlockPass, half: int, excluded: list[str]
) -> list[str]:
    """Return the block's children whose output at positions ≥ half moves although their input there does not.

    excluded: paths of modules that are not looked at.
    """
    found = []
    for path, _ in block.named_children():
        if path in excluded or path not in moved.outputs:
            continue
        if path not in clean.inputs or path not in moved.inputs or path not in clean.outputs:
            continue
        is_still = torch.equal(clean.inputs[path][:, half:], moved.inputs[path][:, half:])
        if is_still and not torch.equal(clean.outputs[path][:, half:], moved.outputs[path][:, half:]):
            found.append(path)
    return found


def _select(
    block: nn.Module, seen: _BlockPass, named: list[str], silenced: list[str], declared: list[float]
) -> MLPSite | None:
    """Return the first module that satisfies the equation with scale 1, else with a scale, else None."""
    hidden, result = seen.inputs[""], seen.outputs[""]
    added = (result.double() - hidden.double())[:, 1:]
    paths = [path for path, _ in block.named_modules() if path in seen.outputs and path not in ("", *silenced)]
    candidates = [*(path for path in named if path in seen.outputs), *(path for path in paths if path not in named)]
    scales: dict[str, float] = {}
    for path in candidates:
        x = seen.outputs[path].double()[:, 1:]
        if x.shape != added.shape or not float(x.norm()) > 0:
            continue
        if _is_small(added - x, x, result) or _is_rescaled(hidden, x, result):
            return MLPSite(path, 1.0)
        scale = _scale(added, x, declared)
        if scale is not None and _is_small(added - scale * x, scale * x, result):
            scales.setdefault(path, scale)
    return next((MLPSite(path, scale) for path, scale in scales.items()), None)


def _is_rescaled(hidden: Tensor, x: Tensor, result: Tensor) -> bool:
    """Return True if the block multiplies its whole stream after the MLP is added (Gemma 4): result = α · (hidden + x).

    x: [b, t − 1, d], without the first position.
    """
    stream, after = hidden.double()[:, 1:] + x, result.double()[:, 1:]
    factor = float(((stream * after).sum(-1) / stream.square().sum(-1).clamp_min(1e-30)).median())
    return abs(factor) > 1e-4 and _is_small(after / factor - stream, x, result)


def _scale(added: Tensor, x: Tensor, declared: list[float]) -> float | None:
    """Return the number s for which s · x is closest to `added`, as the model declares it; None if it is not positive.

    A number that is not declared is rounded to four digits, so that it is the same on every machine.
    """
    squares = x.square().sum(-1).clamp_min(1e-30)
    measured = float(((added * x).sum(-1) / squares).median())
    if not 1e-4 < measured < 1e4:
        return None
    close = [one for one in declared if math.isclose(one, measured, rel_tol=1e-2)]
    return min(close, key=lambda one: abs(one - measured), default=float(f"{measured:.4g}"))


def _is_small(error: Tensor, added: Tensor, result: Tensor) -> bool:
    """Return True if the typical row of `error` is zero but for rounding, next to rows of `added` and `result`."""
    rounding = ROUNDING * torch.finfo(result.dtype).eps * result.double().norm(dim=-1)
    allowed = TOLERANCE * added.norm(dim=-1).median() + rounding.median()
    return bool(error.norm(dim=-1).median() <= allowed)


def _main(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return a module's main input; None if it has none."""
    try:
        return main_input(args, kwargs)
    except (StopIteration, KeyError):
        return None


def _per_position(value: Any, shape: torch.Size) -> Tensor | None:
    """Return a tensor as [b, t, d], or None if it is not one vector per position."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return None
    if value.ndim == 3 and value.shape[:2] == shape:
        return value
    return value.unflatten(0, shape) if value.ndim == 2 and len(value) == shape.numel() else None
