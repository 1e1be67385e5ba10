"""The SAEs of one series in one panel, as a curve: a setting is a point, the mean of its seeds.

    R  bootstrap replicates, row 0 being the estimate     S  SAEs of a setting, one per seed
    n  settings of a series     m  metrics of `BOOTSTRAPPED`

Replicate r draws documents (the same for all SAEs, see `metrics.replicate_weights`) and, where a series was trained
with several seeds, seeds (the same for all series), so it is a whole frontier of its own:

    value(setting, r) = Σ_s w_rs · value(setting, seed s, r)      w_rs = 1/S + √(S/(S−1)) · (drawn_rs/S − 1/S)

w spreads the mean of S seeds as widely as S independent seeds do (plain resampling: (S−1)/S of that variance).
Initialisation and data order are drawn separately where a study crosses them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from jumpahead.frontier.curve import Curve, Estimate, Place, estimate
from jumpahead.metrics import BOOTSTRAPPED, SHARES, replicate_weights

Point = Mapping[str, Any]
"""One SAE as it stands in frontier.json."""
Seeds = tuple[int, int]
"""(sae_seed, stream_seed)."""
COUNTS = tuple(SHARES.values())


def is_number(value: float | None) -> TypeGuard[float]:
    """True for what was measured: not null, not 0 / 0."""
    return value is not None and math.isfinite(value)


def fidelity_of(points: Iterable[Point]) -> str:
    """What these SAEs are compared by: delta LM loss where it was measured, else FVU."""
    return "delta_lm_loss" if any(is_number(point["metrics"].get("delta_lm_loss")) for point in points) else "fvu"


def seeds_of(point: Point) -> Seeds:
    return point["sae_seed"], point["stream_seed"]


def point_order(point: Point) -> tuple:
    """Sorts SAEs by setting, then by seeds."""
    return (point["setting"]["kind"], point["setting"]["value"], *seeds_of(point))


def replicates_of(point: Point) -> int:
    """How many replicates an SAE has of every metric that has a value."""
    kept = point.get("bootstrap") or {}
    return min((len(kept.get(key) or []) for key in BOOTSTRAPPED if is_number(point["metrics"].get(key))), default=0)


@dataclass(frozen=True)
class SeriesCurve:
    """The curve of one series in one panel, and the SAEs behind its points."""

    name: str
    title: str
    width: int
    settings: list[list[Point]]
    """The SAEs of each setting, in the order of `curve`'s points."""
    curve: Curve
    fidelity: str = "delta_lm_loss"
    """What it is compared by: a key of `words.FIDELITY`."""

    @classmethod
    def of(
        cls,
        series: Mapping[str, Any],
        width: int,
        points: Iterable[Point],
        universe: Sequence[Seeds],
        fidelity: str = "delta_lm_loss",
    ) -> SeriesCurve:
        """Groups SAEs by setting and averages seeds; `universe`: all seeds of the panel.

        SAEs whose L0 or `fidelity` is undefined lie on no curve and are passed over.
        """
        groups: dict[tuple[str, float], list[Point]] = defaultdict(list)
        for point in sorted(points, key=point_order):
            if all(is_number(point["metrics"].get(key)) for key in ("l0", fidelity)):
                groups[point["setting"]["kind"], point["setting"]["value"]].append(point)
        settings = list(groups.values())
        replicates = min((replicates_of(point) for group in settings for point in group), default=0)
        stacked = [_stack(group, universe, replicates, width) for group in settings]
        values = np.stack(stacked, axis=1) if stacked else np.empty((1, 0, len(BOOTSTRAPPED)))
        return cls(
            series["name"],
            series.get("title") or series["name"],
            width,
            settings,
            Curve(values, _logs(settings, values)),
            fidelity,
        )

    @property
    def covers(self) -> str:
        """What its intervals cover: `text and seeds` if every setting was trained with several seeds, else `text`."""
        return "text and seeds" if self.settings and all(len(group) > 1 for group in self.settings) else "text"

    def metrics(self, place: Place) -> dict[str, Estimate]:
        """Every metric at a place of the curve, counts also as shares of the width."""
        found = {key: estimate(place.values[:, i]) for i, key in enumerate(BOOTSTRAPPED)}
        for share, count in SHARES.items():
            found[share] = estimate(place.values[:, BOOTSTRAPPED.index(count)] / self.width)
        return found

    def setting_at(self, place: Place) -> dict[str, Any]:
        """The setting to train with in order to land there: geometric between neighbours, k whole.

        Between settings of different kinds, the nearest SAE's own.
        """
        left, right = (self.settings[i][0]["setting"] for i in (place.left, place.right))
        if place.t == 0:
            return dict(left)
        if left["kind"] != right["kind"]:
            return dict(self.nearest(place)["setting"])
        value = _geometric(left["value"], right["value"], place.t)
        return {"kind": left["kind"], "value": max(1, round(value)) if left["kind"] == "k" else float(f"{value:.3g}")}

    def knob_at(self, place: Place) -> dict[str, float]:
        """Where the setting is a requested L0: the λ that the controllers of its SAEs ended with, interpolated."""
        left, right = self.settings[place.left], self.settings[place.right]
        if left[0]["setting"]["kind"] != "l0" or right[0]["setting"]["kind"] != "l0":
            return {}
        a, b = _mean_lambda(left), _mean_lambda(right)
        return {} if a is None or b is None else {"lambda": _geometric(a, b, place.t)}

    def nearest(self, place: Place) -> Point:
        """The SAE nearest in log L0."""

        def distance(point: Point) -> float:
            return abs(math.log(max(point["metrics"]["l0"], 1e-9)) - here)

        here = math.log(max(float(place.values[0, 0]), 1e-9))
        return min((point for group in self.settings for point in group), key=distance)


def _stack(group: list[Point], universe: Sequence[Seeds], replicates: int, width: int) -> np.ndarray:
    """[1 + R, m] a setting's metrics, averaged over its SAEs; counts and L0 between 0 and the width, FVU ≥ 0."""
    values = np.full((len(group), 1 + replicates, len(BOOTSTRAPPED)), np.nan)
    for i, point in enumerate(group):
        for j, key in enumerate(BOOTSTRAPPED):
            if is_number(point["metrics"].get(key)):
                values[i, 0, j] = point["metrics"][key]
                values[i, 1:, j] = point["bootstrap"][key][:replicates] if replicates else []
    weights = seed_weights([seeds_of(point) for point in group], universe, replicates)
    mean = np.einsum("rs,srm->rm", weights, values)
    low = [-np.inf if key == "delta_lm_loss" else 0 for key in BOOTSTRAPPED]
    high = [width if key in COUNTS or key == "l0" else np.inf for key in BOOTSTRAPPED]
    return np.clip(mean, low, high)


def _logs(settings: list[list[Point]], values: np.ndarray) -> tuple[bool, ...]:
    """L0 and FVU in logarithms; the loss only where every SAE is at least 2 SE above zero; counts never."""

    def is_clear(point: Point) -> bool:
        error, loss = point["standard_errors"].get("delta_lm_loss"), point["metrics"].get("delta_lm_loss")
        return is_number(error) and is_number(loss) and loss > 0 and loss >= 2 * error

    in_log = {"l0": True, "fvu": True, "delta_lm_loss": all(is_clear(point) for group in settings for point in group)}
    is_positive = (values[0] > 0).all(axis=0)
    return tuple(in_log.get(key, False) and bool(is_positive[j]) for j, key in enumerate(BOOTSTRAPPED))


def _geometric(a: float, b: float, t: float) -> float:
    """a at t = 0, b at t = 1, straight in the logarithm where both are positive."""
    if t == 0 or a == b:
        return a
    if a > 0 and b > 0:
        return math.exp((1 - t) * math.log(a) + t * math.log(b))
    return (1 - t) * a + t * b


def _mean_lambda(group: list[Point]) -> float | None:
    values = [(point.get("knob") or {}).get("lambda") for point in group]
    known = [value for value in values if is_number(value) and value > 0]
    return math.exp(sum(map(math.log, known)) / len(known)) if len(known) == len(group) else None


# ---------------------------------------------------------------------------------------------- seeds


def seed_weights(group: Sequence[Seeds], universe: Sequence[Seeds], replicates: int) -> np.ndarray:
    """[1 + R, S] how much each SAE of a setting counts in each replicate; row 0 is the plain mean, rows sum to 1.

    All settings and series of a panel (`universe`: its seeds) share the draws; a setting that lacks some seeds draws
    among those that it has.
    """
    size = len(group)
    weights = np.full((1 + replicates, size), 1 / size)
    if size == 1:
        return weights
    axes = _axes(universe)
    draws = [replicate_weights(len(axis), replicates, seed=1 + i) for i, axis in enumerate(axes)]
    places = [[axis.index(pair if len(axes) == 1 else pair[i]) for pair in group] for i, axis in enumerate(axes)]
    drawn = [draw[:, place] for draw, place in zip(draws, places, strict=True)]
    if size == math.prod(map(len, axes)):  # nothing missing: each axis by itself
        spread = [_spread(draw / len(axis), len(axis)) for draw, axis in zip(drawn, axes, strict=True)]
        weights[1:] = np.prod(spread, axis=0)
    else:
        both = np.prod(drawn, axis=0)
        total = both.sum(axis=1, keepdims=True)
        weights[1:] = _spread(np.where(total > 0, both / np.maximum(total, 1), 1 / size), size)
    return weights


def _axes(universe: Sequence[Seeds]) -> list[list]:
    """[pairs] where one seed varies, or both together; [initialisations, data orders] where they are crossed."""
    pairs = sorted(set(universe))
    saes, streams = sorted({sae for sae, _ in pairs}), sorted({stream for _, stream in pairs})
    return [pairs] if len(pairs) == max(len(saes), len(streams)) else [saes, streams]


def _spread(drawn: np.ndarray, size: int) -> np.ndarray:
    """Shares drawn of `size` seeds, moved away from 1/size so that the mean has the variance of independent seeds."""
    return 1 / size + math.sqrt(size / (size - 1)) * (drawn - 1 / size)
