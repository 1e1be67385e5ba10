"""The hook points of a loaded model: names say where to look, short forward passes decide.

Each measurement is made once per model, when the first site asks for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from jumpahead.errors import SiteError
from jumpahead.lm.hook_points import HookPoint, example_path, find_block, find_by_path, named_mlps, named_projections
from jumpahead.lm.mlp_site import MLPSite, find_mlp_site
from jumpahead.lm.sites import KINDS, Site
from jumpahead.lm.tracing import ForwardTrace, trace_forward

TRACE = (3, 2)
"""Contexts, and tokens of each, in the pass that counts calls; different, so that their order shows."""
ROWS, LENGTH = 3, 16
"""Contexts, and tokens of each, in the measurement of what a block adds."""


class MeasuredSites:
    """The hook points of one model."""

    def __init__(
        self,
        model: Any,
        blocks: list[nn.Module],
        name: str,
        run: Callable[[int, int], Tensor],
        before: MeasuredSites | None = None,
    ) -> None:
        """Prepare to measure a model on request.

        name: of the model, for error messages. run: makes a forward pass over that many rows and positions and returns
        their token ids. before: the sites of the model before it was truncated, whose measurements are kept.
        """
        self._model, self._blocks, self._name, self._run = model, blocks, name, run
        self._config = model.config.get_text_config(decoder=True)
        self._points: dict[Site, HookPoint] = dict(before._points) if before else {}
        self._mlps: dict[int, MLPSite | None] = dict(before._mlps) if before else {}

    def point(self, site: Site) -> HookPoint:
        """Return the hook point of a site.

        Raises SiteError, with sites to use instead, if the model has no such site, or what it has there is not what the
        site's name says.
        """
        if site not in self._points:
            index = find_block(self._model, self._blocks, site, self._name)
            who = f"'{self._name}' ({type(self._model).__name__})"
            self._trace.refuse_other_streams(TRACE, getattr(self._config, "hidden_size", None), who)
            if index is not None:
                self._trace.refuse_other_counts(self._blocks[index], site, f"block {index}", self._name)
            if index is None or site.layer is None:
                found = find_by_path(self._model, self._blocks, site, self._name)
            else:
                found = self._find_in_block(site, index)
            if isinstance(found, str):
                raise self._no_such_site(site, self._blocks[site.layer or 0], found)
            self._trace.refuse_other_counts(found.module, site, "its module", self._name)
            self._points[site] = found
        return self._points[site]

    def depth(self, site: Site) -> int:
        """Return the number of blocks that have run when a forward pass reaches the site; −1 before all blocks."""
        point = self.point(site)
        if point.block is not None:
            return point.block
        return -1 if self._trace.is_before(point.module, self._blocks[0]) else len(self._blocks)

    def describe(self, site: Site) -> str:
        """Return the path of a site's module with its side, and the scale if there is one."""
        point = self.point(site)
        path = next(path for path, module in self._model.named_modules() if module is point.module)
        return f"{path}.{point.side}" + (f" × {point.scale:g}" if point.scale != 1 else "")

    @cached_property
    def _trace(self) -> ForwardTrace:
        """Return the record of one short forward pass."""
        try:
            return trace_forward(self._model, self._blocks[0], lambda: self._run(*TRACE))
        except (ValueError, TypeError, AttributeError, LookupError, RuntimeError) as exc:
            reason = next(iter(str(exc).splitlines()), type(exc).__name__).rstrip(".")
            raise SiteError(
                f"'{self._name}' ({type(self._model).__name__}) cannot run on token ids alone: {reason}."
            ) from exc

    def _find_in_block(self, site: Site, index: int) -> HookPoint | str:
        """Return the hook point of a block's site, or a clause that says why the block has none."""
        block = self._blocks[index]
        kind = type(block).__name__
        if site.kind == "residual":
            return HookPoint(site, block, "output", index)
        if site.kind == "mlp":
            mlp = self._measure(index)
            if mlp is None:
                return f"no module of its {kind} returns what it adds to the stream beside attention"
            return HookPoint(site, block.get_submodule(mlp.path), "output", index, mlp.scale)
        paths = named_projections(block)
        if not paths:
            return f"its {kind} has no module with a known name for it"
        if len(paths) > 1:
            return f"its {kind} has {len(paths)} attentions"
        return HookPoint(site, block.get_submodule(paths[0]), "input", index)

    def _no_such_site(self, site: Site, block: nn.Module, reason: str) -> SiteError:
        """Return the SiteError for a site that a block does not have, with the sites that it has.

        reason: a clause of the message.
        """
        assert site.layer is not None
        others = [Site(site.layer, kind) for kind in KINDS if kind != site.kind]
        right = [other.key for other in others if not isinstance(self._find_in_block(other, site.layer), str)]
        path = example_path(self._model, block, named_mlps(block) if site.kind == "mlp" else [])
        return SiteError(f"'{self._name}' has no {site.key}: {reason}. Try {', '.join([*right, path])}.")

    def _measure(self, index: int) -> MLPSite | None:
        """Return the site of a block's MLP, or None if it has none."""
        if index not in self._mlps:
            block = self._blocks[index]
            self._mlps[index] = find_mlp_site(
                block, named_mlps(block), lambda: self._run(ROWS, LENGTH), self._declared(block)
            )
        return self._mlps[index]

    def _declared(self, block: nn.Module) -> list[float]:
        """Return the numbers that may be a block's multiplier, from the block and from the configuration."""
        named = [*vars(block).values(), *self._config.to_dict().values()]
        numbers = [float(value) for value in named if isinstance(value, int | float) and not isinstance(value, bool)]
        return [number / root for number in numbers for root in (1.0, math.sqrt(len(self._blocks)))]
