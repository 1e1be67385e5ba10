"""The training runs of the benchmark: learning rates and penalties on the development data, then the SAEs of the table.

    rate      One learning rate per place, library and architecture: the library's own times the factor of RATE_FACTORS
              with the lowest mean, over the tuning L0, of log(error) + 0.65·log(L0 / requested L0). The error is delta
              LM loss, or FVU on the dictionary. 0.65: the slope of log loss in log L0 (benchmarks/sparsity).
    penalty   An architecture that takes no L0 is trained with every penalty of a grid at every rate. The penalty for a
              requested L0 is interpolated, log against log, on the curve of its rate; beyond the curve, its end.

In the table every library appears with its own learning rate (`default`) and with the tuned one (`tuned`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.quality.places import PLACES, Place
from benchmarks.quality.runs import OURS, QualityRun
from benchmarks.quality.trainers import PEERS
from benchmarks.sparsity.tune import LOSS_SLOPE
from jumpahead.sae.architectures import ARCHITECTURES

RATE_FACTORS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Multiples of the library's learning rate."""
TUNING_TOKENS = 2_000_000


class Selection(NamedTuple):
    """A part of the comparison; an empty field stands for all."""

    places: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    l0: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()
    rates: tuple[str, ...] = ()

    def has(self, one: QualityRun) -> bool:
        """Return True if a run is in the selection."""
        pairs = [
            (self.places, one.place), (self.libraries, one.library), (self.architectures, one.architecture),
        ]  # fmt: skip
        if one.part == "final":
            pairs += [(self.l0, one.requested_l0), (self.tokens, one.tokens), (self.seeds, one.seed)]
            pairs += [(self.rates, one.rate)] if one.library != OURS else []
        return all(not wanted or value in wanted for wanted, value in pairs)


def peer_series() -> list[tuple[str, str]]:
    """Return every (library, architecture) of the other libraries."""
    return [(library, architecture) for library, kind in PEERS.items() for architecture in kind.architectures]


def tuning_runs() -> Iterator[QualityRun]:
    """Yield every run on development data."""
    for place in PLACES.values():
        for library, architecture in peer_series():
            kind = PEERS[library]
            for factor in RATE_FACTORS:
                lr, rate = round_rate(factor * kind.default_lr(architecture, place.width)), f"× {factor:g}"
                common = (place.name, "development", TUNING_TOKENS, library, architecture)
                if architecture in kind.needs_penalty:
                    yield from (QualityRun(*common, 0, rate, lr, penalty) for penalty in kind.penalties)
                else:
                    yield from (QualityRun(*common, l0, rate, lr) for l0 in place.tuning_l0)


def round_rate(lr: float) -> float:
    """Round a learning rate to three significant digits."""
    return float(f"{lr:.3g}")


def table_runs(development: Iterable[dict[str, Any]]) -> Iterator[QualityRun]:
    """Yield every run of the table that can be planned with the results on development data that there are."""
    known = list(development)
    for place in PLACES.values():
        for budget in place.budgets:
            for seed in budget.seeds:
                for l0 in place.l0:
                    for architecture in ARCHITECTURES.names():
                        yield QualityRun(
                            place.name, "final", budget.tokens, OURS, architecture, l0, "recipe", None, None, seed
                        )
                    for library, architecture in peer_series():
                        for rate, lr in rates(known, place, library, architecture):
                            penalty, is_known = None, True
                            if architecture in PEERS[library].needs_penalty:
                                penalty = penalty_for(curve(known, place.name, library, architecture, lr), l0)
                                is_known = penalty is not None
                            if is_known:
                                yield QualityRun(
                                    place.name,
                                    "final",
                                    budget.tokens,
                                    library,
                                    architecture,
                                    l0,
                                    rate,
                                    lr,
                                    penalty,
                                    seed,
                                )


def rates(
    development: Sequence[dict[str, Any]], place: Place, library: str, architecture: str
) -> list[tuple[str, float]]:
    """Return the learning rates of the table: `default`, and `tuned` if every rate has its development results."""
    own = PEERS[library].default_lr(architecture, place.width)
    found, scores = [("default", round_rate(own))], {}
    for factor in RATE_FACTORS:
        lr = round_rate(factor * own)
        scores[lr] = rate_score(curve(development, place.name, library, architecture, lr), place.tuning_l0)
    if None not in scores.values():
        found.append(("tuned", min(scores, key=lambda lr: scores[lr] or 0.0)))
    return found


def curve(
    development: Iterable[dict[str, Any]], place: str, library: str, architecture: str, lr: float
) -> list[dict[str, Any]]:
    """Return the development results of one place, library, architecture and learning rate."""
    wanted = (place, library, architecture, lr)
    return [one for one in development if (one["place"], one["library"], one["architecture"], one["lr"]) == wanted]


def rate_score(lines: Sequence[dict[str, Any]], tuning_l0: Sequence[int]) -> float | None:
    """Return the score of one learning rate, lower is better: inf if it diverged, None without a result for each L0.

    An SAE stands for a tuning L0 if it was requested; without requests, the SAE with the nearest L0 does.
    """
    scores = []
    for l0 in tuning_l0:
        there = [one for one in lines if one["requested_l0"] in (l0, 0)]
        if not there:
            return None
        usable = [one for one in there if one["l0"] and (one.get("delta_lm_loss") or one["fvu"] or 0) > 0]
        if not usable:
            return math.inf
        nearest = min(usable, key=lambda one: abs(math.log(one["l0"] / l0)))
        error = nearest.get("delta_lm_loss") or nearest["fvu"]
        scores.append(math.log(error) + LOSS_SLOPE * math.log(nearest["l0"] / l0))
    return sum(scores) / len(scores)


def penalty_for(lines: Sequence[dict[str, Any]], l0: float) -> float | None:
    """Return the penalty that should reach an L0, from development results at one rate; None for fewer than two."""
    points = sorted((math.log(one["l0"]), math.log(one["penalty"])) for one in lines if one["l0"])
    if len(points) < 2:
        return None
    log_l0, log_penalty = np.array(points).T
    return float(f"{math.exp(float(np.interp(math.log(l0), log_l0, log_penalty))):.3g}")
