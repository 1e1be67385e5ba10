"""What a kernel layer does with tensor operations, and one after the other, where it has nothing better."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from jumpahead.engine.supports import Support
from jumpahead.sae.base import Affine, Entries

if TYPE_CHECKING:
    from jumpahead.engine.step import Item


class Ordinary(ABC):
    """Some methods of `step.Kernels`."""

    @abstractmethod
    def sums(self, support: Support, vector: Tensor) -> Tensor:
        """As in `Kernels`."""

    def entries(self, support: Support) -> Entries:
        return Entries(support.pre, support.feature, support.part, support.token)

    def fired(self, support: Support, values: Tensor) -> Tensor:
        return self.sums(support, (values > 0).to(support.pre.dtype))

    def summed(self, support: Support, gradient: Affine, projections: tuple[Tensor, ...]) -> Tensor:
        return self.sums(support, gradient.at(projections))

    def at_once(self, items: int) -> int:
        return 1

    def side_by_side(self, items: Sequence[Item], work: Callable[[Item], None]) -> None:
        for item in items:
            work(item)
