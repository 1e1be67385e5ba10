"""What an architecture is, and the SAE a user holds.

Shapes and units, here and in every file of this folder:

    B tokens · d activation dimensions · M features (the width) · |S| entries of the support
    x      [B, d]  activations in the unit E‖x‖² = 1 (training), or the LM's own (a saved SAE: scale and pre-encoder
                   bias folded into its weights)
    W_enc  [M, d]  one row per feature          b_enc [M]
    W_dec  [M, d]  one row per feature: d_j     b_dec [d]
    π = W_enc·(x − b_dec) + b_enc  pre-activations          f ≥ 0  features          x̂ = Σ_j f_j d_j + b_dec

An architecture is written twice, side by side in one file: `loss`, the paper on dense tensors for autograd (the oracle
of every test), and `selection`, `values`, `rule`, the same on the support: the entries (token, feature) that carry a
value or a gradient. `rule` is elementwise, so it serves a sparse support and a dense block of features alike; what it
asks of the whole batch stands in `Counts`. No kernel knows an architecture, and no architecture knows a kernel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, final

import torch
from torch import Tensor

from jumpahead import store
from jumpahead.errors import ArtefactError, DataError, StudyError
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.checked import BaseModel, ConfigDict
from jumpahead.sae.recipe import (
    Recipe,
    Setting,
    Shape,
    TrainConfig,
    recipe,
    recipe_from,
    short_rate,
    wanted_l0,
    with_hands,
)

Params = dict[str, Tensor]


class Options(BaseModel):
    """The options of a series; an architecture without options uses this."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def objection(self, kind: str) -> str:
        """Why these options do not go together, or not with settings of this kind: a sentence; empty where they do."""
        return ""


class Above(NamedTuple):
    """Selection: every entry with π > lower."""

    lower: Tensor
    """[M]; −inf keeps every token of a feature, +inf none."""
    edges: tuple[Tensor, ...] = ()
    """[M] each: other values of π at which `values` or `rule` change their mind; decided canonically, like `lower`."""


class Largest(NamedTuple):
    """Selection: the k largest positive π of each token; of equal ones the lower feature index wins."""

    k: int
    dead: Tensor | None = None
    """[M] bool: where set, the `k_dead` largest positive π among these are selected besides, as part 2."""
    k_dead: int = 0


class LargestOfBatch(NamedTuple):
    """Selection: the largest positive π of a whole batch, k per token on average; of equal ones the lower feature index
    wins, then the earlier token."""

    k: float
    guess: float | Tensor
    """About where the smallest of them is; may be 0-d, on the device. What is selected does not depend on it, only how
    long that takes."""
    dead: Tensor | None = None
    """[M] bool: as in `Largest`, of each token, as part 2."""
    k_dead: int = 0

    def count(self, tokens: int) -> int:
        """Entries selected in a batch of so many tokens, at most."""
        return max(1, round(self.k * tokens))


Simple = Above | Largest
"""What a kernel layer selects by itself."""
Selection = Simple | LargestOfBatch
MAIN, DEAD = 1, 2  # bits of Entries.part


class Loops(Protocol):
    """What a kernel layer does with a sparse support faster than tensor operations do."""

    def at(self, vector: Tensor) -> Tensor:
        """`Entries.at`."""
        ...

    def between(self, low: Tensor, high: Tensor | None, weight: Tensor | None) -> Tensor:
        """`Entries.between`."""
        ...


@final
class Entries:
    """Support vectors: a value per entry, and how to look up what belongs to its feature or its token.

    On a sparse support every vector is [|S|]; on a dense block of m features it is [m, B].
    """

    def __init__(
        self,
        pre: Tensor,
        feature: Tensor,
        part: Tensor | None = None,
        token: Tensor | None = None,
        loops: Loops | None = None,
    ):
        self.pre = pre
        """π at each entry, [|S|] or [m, B]."""
        self.feature = feature
        """[|S|] the feature of each entry, or [m] those of the block's rows."""
        self.part = part
        """uint8 like `pre`, bits MAIN and DEAD; None where there is one part only."""
        self.token = token
        """[|S|] the token of each entry; None on a dense block, and where nobody will ask."""

        self._loops = loops

    def at(self, vector: Tensor) -> Tensor:
        """`vector` [M] at each entry's feature: [|S|], or [m, 1]."""
        if self._loops is not None:
            return self._loops.at(vector)
        found = vector.index_select(0, self.feature)
        return found if self.pre.dim() == 1 else found[:, None]

    def between(self, low: Tensor, high: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
        """weight_j where low_j < π (and π < high_j), and 0 elsewhere; vectors [M], weight 1 where None. Like `pre`."""
        if self._loops is not None:
            return self._loops.between(low, high, weight)
        is_in = self.pre > self.at(low)
        if high is not None:
            is_in &= self.pre < self.at(high)
        return is_in.to(self.pre.dtype) if weight is None else is_in * self.at(weight)

    def across(self, vector: Tensor) -> Tensor:
        """`vector` [B] at each entry's token: [|S|], or [1, B]."""
        if self.pre.dim() > 1:
            return vector[None, :]
        assert self.token is not None, "these entries do not know their tokens"
        return vector.index_select(0, self.token)

    def within(self, bit: int) -> Tensor:
        """0/1 at each entry: whether it belongs to the part `bit`."""
        return torch.ones_like(self.pre) if self.part is None else ((self.part & bit) != 0).to(self.pre.dtype)


class Reconstruction(NamedTuple):
    """One squared error of the loss."""

    target: Literal["input", "residual"]
    """`input`: x. `residual`: x − x̂ of the first reconstruction and what continues it, as a constant."""
    live: bool
    """False: W_dec and b_dec are frozen here; only the values get a gradient."""
    bias: bool
    """Whether b_dec is added."""
    continues: bool = False
    """Whether it continues the one before: x̂ is that one's and what its own values add, the target is that one's, and
    the gradient of its error reaches that one's values and b_dec as well. So nested reconstructions cost one."""


Number = float | Tensor
"""A float, or a 0-d float64 tensor on the device of an SAE: a step does not wait for the device to say what it is."""


class Knobs(NamedTuple):
    """What changes from step to step."""

    sparsity: Number = 0.0
    """λ in force, warm-up included."""
    dead: Tensor | None = None
    """[M] bool: features counted as dead; None where the architecture does not ask."""
    l0: float | None = None
    """L0, or k, asked for in this step; None: the setting's."""


class Counts(NamedTuple):
    """What fired, over the whole batch: the support and every dense block together."""

    tokens: int
    """B."""
    fired: Tensor
    """[M] tokens on which each feature is positive, in the values' dtype."""
    active: Tensor | None = None
    """[B] features that are positive on each token; None where the architecture does not ask."""


class Affine(NamedTuple):
    """A gradient at each entry: Σ_r slope_r·projection_r + constant.

    By the chain rule every gradient is of this form: projection_r = ∂(r-th squared error)/∂(its coefficient of d_j) is
    all that the entry hears from the reconstruction, and slope_r = ∂(that coefficient)/∂(the parameter).
    """

    slopes: tuple[Tensor | None, ...]
    """Like `pre`, one per reconstruction; None is zero."""
    constant: Tensor | None = None
    """What the sparsity term adds; None is zero."""

    def at(self, projections: tuple[Tensor, ...]) -> Tensor:
        """The gradient, given the projections."""
        found = self.constant
        for slope, projection in zip(self.slopes, projections, strict=True):
            if slope is not None:
                found = slope * projection if found is None else found + slope * projection
        assert found is not None, "a gradient of nothing"
        return found


class Gradients(NamedTuple):
    """What a rule returns."""

    pre: Affine
    """∂L/∂(W_enc·(x − b_dec)) at each entry."""
    vectors: dict[str, Affine]
    """For each trained [M] vector, its gradient's contribution at each entry; summed per feature by the engine."""
    shrink: Tensor | None
    """c at each entry: ∂L/∂d_j gets Σc·d_j/‖d_j‖ (a penalty on ‖d_j‖); None without one."""


class Thresholds(NamedTuple):
    """Learned thresholds, and where their straight-through gradient comes from."""

    theta: Tensor
    """[M] θ."""
    lower: Tensor
    """[M] Only entries with lower < π < upper train θ; −inf where rectified zeros do too."""
    upper: Tensor
    """[M]"""
    trained: str
    """The trained vector, a key of `Architecture.trained`."""
    is_log: bool
    """Whether that vector is log θ; else it is θ."""
    in_sqrt_lambda: bool = True
    """Whether √λ is what θ is to be measured in: where every active entry costs λ."""


class Architecture(ABC):
    """One paper. Instances hold options, setting and recipe; parameters are passed in."""

    name: ClassVar[str]
    title: ClassVar[str]
    colour: ClassVar[str]
    """Of its curve; from the Okabe–Ito palette, distinguishable by colour-blind readers."""
    dash: ClassVar[str] = "solid"
    symbol: ClassVar[str] = "circle"
    order: ClassVar[int]
    """Position in legends."""
    settings: ClassVar[tuple[str, ...]]
    """The kinds of sparsity setting it takes: of `l0`, `lambda`, `k`."""
    keeps_whole: ClassVar[bool] = False
    """Whether `l0` must be a whole number."""
    vectors: ClassVar[tuple[str, ...]]
    """The [M] parameters of a saved SAE, besides W_enc, W_dec and b_dec."""
    Options: ClassVar[type[Options]] = Options
    rate: ClassVar[float] = 0.064
    """The learning rate of the `short` recipe, as `recipe.short_rate` counts it."""
    reconstructions: tuple[Reconstruction, ...] = (Reconstruction("input", live=True, bias=True),)
    first_price: ClassVar[float] = 0.1
    """Where the controller starts λ, in units of `sparsity_unit`. Gated and ReLU settle at 0.1 to 0.2 for L0 32 and 8
    on the bundled model (docs/LOG.md, 2026-11-22 and 24)."""
    revision: ClassVar[int] = 0
    """Raised when a requested L0 is steered in another way than before: SAEs that asked for one are trained again."""
    hands: ClassVar[tuple[float, float]] = (0.05, 0.05)
    """g and h of the controller, in every preset: no paper has it. In `short` they follow the learning rate
    (`recipe.with_hands`)."""

    def __init__(self, options: Options, setting: Setting, recipe: Recipe):
        assert setting.kind in self.settings, (self.name, setting)
        if objection := options.objection(setting.kind):
            raise StudyError(f"{self.name}: {objection}")
        self.options, self.setting, self.recipe = options, setting, recipe

    @classmethod
    def tuned(cls, short: Recipe, config: TrainConfig, shape: Shape) -> Recipe:
        """The `short` recipe as this architecture does best with it (docs/LOG.md)."""
        return short

    @classmethod
    def published(cls, paper: Recipe, config: TrainConfig, shape: Shape) -> Recipe:
        """The `paper` recipe, with what this architecture's own paper has instead."""
        return paper

    @classmethod
    def recipe_for(cls, config: TrainConfig, shape: Shape, changes: Mapping[str, Any] | None = None) -> Recipe:
        """Every hyper-parameter: the recipe of `config`, tuned where it is `short`, and a series' own changes."""
        found = recipe(config)._replace(control_gain=cls.hands[0], steering=cls.hands[1])
        if config.recipe == "paper":
            found = cls.published(found, config, shape)
        if config.recipe == "short":
            lr = (changes or {}).get("lr", config.lr) or short_rate(cls.rate, shape, config.tokens)
            found = found._replace(lr=lr)
            if shape.setting.kind == "l0" and "lambda" in cls.settings:
                found = with_hands(found, shape)
            found = cls.tuned(found, config, shape)
        return found._replace(**changes or {})

    @property
    def decoder_norm(self) -> Literal["unit", "free"]:
        """`unit`: rows of W_dec have norm one after every step. `free`: they do not until saved."""
        return "unit"

    @property
    def trained(self) -> dict[str, float]:
        """The trained [M] parameters, each with its learning rate in multiples of the recipe's."""
        return dict.fromkeys(self.vectors, 1.0)

    @property
    def gate(self) -> str:
        """The trained [M] vector that sets how often a feature fires: what `threshold_pull` pulls on."""
        return "b_enc"

    @property
    def uses_dead(self) -> bool:
        """Whether `knobs.dead` is wanted."""
        return False

    @property
    def uses_active(self) -> bool:
        """Whether `counts.active` is wanted."""
        return False

    @property
    def controlled(self) -> bool:
        """Whether λ is moved by a controller towards a requested L0."""
        return self.setting.kind == "l0" and "lambda" in self.settings

    @property
    def fixed_sparsity(self) -> float:
        """λ after its warm-up, where no controller moves it; 0 without a sparsity term."""
        return self.setting.value if self.setting.kind == "lambda" else 0.0

    def asked(self, knobs: Knobs) -> float:
        """The L0, or k, asked for in this step; of a saved SAE, the setting's."""
        return self.setting.value if knobs.l0 is None else knobs.l0

    @abstractmethod
    def initialise(self, d: int, width: int, generator: torch.Generator, sample: Tensor) -> Params:
        """Fresh parameters, float32. sample [n, d]: activations in the unit E‖x‖² = 1."""

    def derive(self, p: Params) -> Params:
        """[M] vectors that several of the functions below need, computed once per step."""
        return {}

    @abstractmethod
    def selection(self, p: Params, v: Params, knobs: Knobs, *, training: bool) -> Selection:
        """Which entries can carry a value (or, in training, a gradient). v: what `derive` returned."""

    @abstractmethod
    def values(self, entries: Entries, p: Params, v: Params) -> tuple[Tensor, ...]:
        """The coefficient of d_j at each entry, one vector per reconstruction; of those that continue the first, and of
        it, the sum are the features f.

        Reconstructions left out at the end are absent from this step's loss.
        """

    def features(self, values: tuple[Tensor, ...]) -> Tensor:
        """f at each entry, given its `values`."""
        return values[0]

    @abstractmethod
    def rule(
        self, entries: Entries, values: tuple[Tensor, ...], p: Params, v: Params, knobs: Knobs, counts: Counts
    ) -> Gradients:
        """Gradients at each entry, as functions of the projections, one per reconstruction in `values`."""

    def charge(self, entries: Entries, values: tuple[Tensor, ...], v: Params) -> Tensor:
        """Where the sparsity term is a sum over entries: what λ/B multiplies, summed over these in float64:
        the order, which padding changes, must not be seen. 0-d."""
        return entries.pre.new_zeros(())

    def penalty(self, charge: Number, counts: Counts, knobs: Knobs) -> Number:
        """The sparsity term of the loss, mean over the batch. charge: the sum of all `charge`s."""
        return knobs.sparsity / counts.tokens * charge

    def weights(self, x: Tensor, errors: Tensor) -> tuple[Number, ...]:
        """The weight of each squared error where there are several, given x and x̂ − x of all features, both [B, d]."""
        return (1.0,) * len(self.reconstructions)

    @abstractmethod
    def loss(self, p: Params, x: Tensor, knobs: Knobs) -> Tensor:
        """The paper's loss, mean over the batch, on dense tensors, for autograd."""

    @abstractmethod
    def activate(self, p: Params, pre: Tensor) -> Tensor:
        """Features f [..., M] from pre-activations π [..., M]: the dense forward pass of a saved SAE."""

    def activate_batch(self, p: Params, pre: Tensor, knobs: Knobs) -> Tensor:
        """Features f of a batch in training, from its π [B, M], on dense tensors: as `selection` and `values` say."""
        return self.activate(p, pre)

    def observe(self, p: Params, least: Number, lr: float) -> None:  # noqa: B027 — only for `LargestOfBatch`
        """Take note of a batch after its step, in place: the smallest π that `LargestOfBatch` selected, and Adam's
        learning rate. Not called where it selected nothing."""

    @final
    def decay(self, p: Params, lr: float, counts: Counts) -> None:
        """Draw the gate's values towards their median, after Adam's update, in place. lr: Adam's learning rate."""
        if pull := self.recipe.threshold_pull:
            gate, apart = p[self.gate], self.apart(counts)
            middle = (gate - apart).median() + apart
            gate += min(1.0, pull * self.trained[self.gate] * lr) * (middle - gate)

    def apart(self, counts: Counts) -> Tensor:
        """How far the sparsity term wants a feature's gate from the others': [M], or 0-d for all alike."""
        return counts.fired.new_zeros(())

    def constrain(self, p: Params) -> None:  # noqa: B027 — most have nothing to constrain
        """Bring parameters back into their domain after a step, in place."""

    def revive(self, p: Params, dead: Tensor) -> None:  # noqa: B027 — most leave dead features alone
        """Care for dead features after a step, in place. dead [M] bool."""

    def begin(self, p: Params, features: Tensor, thresholds: Tensor) -> None:
        """Start features [n] anew with these thresholds [n] on π, in place; their rows are set already."""
        p["b_enc"][features] = 0.0

    def thresholds(self, v: Params) -> Thresholds | None:
        """What training's health looks at; None for architectures without learned thresholds. v: of `derive`."""
        return None

    def steer(self, p: Params, growth: Number) -> None:  # noqa: B027 — only for architectures with a controller
        """Move every threshold by the factor exp(growth), or what stands for a threshold by that share, in place."""

    def started_l0(self, width: int, d: int) -> float:
        """The mean L0 that training starts from in the `short` recipe."""
        wanted = d / 4 if self.setting.kind == "lambda" else wanted_l0(self.recipe, self.setting, 0)
        return min(wanted, width / 8)

    def sparsity_unit(self, p: Params) -> Number:
        """What the controller's λ is a multiple of: what moves with the thresholds need not be found by control."""
        return 1.0

    def fold_vectors(self, p: Params, scale: float, norms: Tensor) -> Params:
        """The trained vectors of the folded SAE. norms [M]: ‖d_j‖ before folding, float64."""
        shift = p["W_enc"].double() @ p["b_dec"].double()
        return {"b_enc": scale * (p["b_enc"].double() - shift)}

    def fold(self, p: Params, scale: float) -> Params:
        """Parameters that take the LM's own activations x_raw = scale·x, without a pre-encoder bias, and unit d_j."""
        norms = p["W_dec"].double().norm(dim=1).clamp_min(1e-30)
        folded = {
            "W_enc": p["W_enc"].double(),
            "W_dec": p["W_dec"].double() / norms[:, None],
            "b_dec": scale * p["b_dec"].double(),
            **self.fold_vectors(p, scale, norms),
        }
        return {name: tensor.float().contiguous() for name, tensor in folded.items()}

    def unfold_vectors(self, folded: Params, scale: float, shift: Tensor) -> Params:
        """What `fold_vectors` folds, where rows of W_dec are unit. shift [M]: W_enc·b_dec, float64."""
        return {"b_enc": folded["b_enc"].double() / scale + shift}

    def unfold(self, folded: Params, scale: float) -> Params:
        """Parameters to train on, in the unit E‖x‖² = 1: `fold` of them, with the same scale, gives `folded` again."""
        b_dec = folded["b_dec"].double() / scale
        shift = folded["W_enc"].double() @ b_dec
        p = {"W_enc": folded["W_enc"], "W_dec": folded["W_dec"], "b_dec": b_dec}
        p |= self.unfold_vectors(folded, scale, shift)
        return {name: tensor.to(torch.float32, copy=True).contiguous() for name, tensor in p.items()}


def with_unit_rows(p: Params) -> Params:
    """The matrices and b_enc, float64, with unit d_j and π_j ← ‖d_j‖·π_j: the same SAE where f grows like π."""
    norms = p["W_dec"].double().norm(dim=1).clamp_min(1e-30)
    return {
        "W_enc": p["W_enc"].double() * norms[:, None],
        "W_dec": p["W_dec"].double() / norms[:, None],
        "b_enc": p["b_enc"].double() * norms,
    }


def unit_rows(d: int, width: int, generator: torch.Generator) -> Tensor:
    """[width, d]: He-uniform, then each row rescaled to norm one (Gemma Scope section 3.2)."""
    rows = torch.rand(width, d, generator=generator) * 2 - 1
    return rows / rows.norm(dim=1, keepdim=True)


def common_parameters(
    d: int, width: int, generator: torch.Generator, sample: Tensor, recipe: Recipe
) -> tuple[Params, Tensor]:
    """W_dec unit rows, W_enc = W_dec (untied afterwards), b_enc = 0, b_dec the mean or zero; and π of the sample."""
    w_dec = unit_rows(d, width, generator)
    b_dec = sample.mean(0) if recipe.centre else torch.zeros(d)
    p = {"W_enc": w_dec.clone(), "W_dec": w_dec, "b_enc": torch.zeros(width), "b_dec": b_dec}
    some = sample[: max(64, min(len(sample), 2**24 // width))]
    return p, (some - b_dec) @ w_dec.T


def quantile_for_l0(pre: Tensor, l0: float) -> float:
    """The threshold that leaves `l0` entries per token of pre [n, M] above it."""
    return float(torch.topk(pre.flatten(), max(1, round(l0 * len(pre)))).values[-1])


@final
class SAE:
    """A trained SAE: takes the LM's own activations.

    >>> sae = SAE.load("runs/demo/saes/layers.1.residual/4096/jumprelu/l0-16_seed-0")
    >>> f = sae.encode(x)       # [..., M], mostly zeros
    >>> x_hat = sae.decode(f)   # [..., d]
    """

    def __init__(self, arch: Architecture, params: Params, about: dict[str, Any] | None = None):
        self.arch, self.params, self.about = arch, params, about or {}
        self.width, self.d = params["W_dec"].shape

    def __repr__(self) -> str:
        return f"SAE({self.arch.name}, {self.arch.setting.label}, d={self.d}, width={self.width})"

    @property
    def architecture(self) -> str:
        """The architecture's name."""
        return self.arch.name

    def to(self, device: torch.device | str) -> SAE:
        """The same SAE on another device; itself where it is there."""
        params = {name: tensor.to(device) for name, tensor in self.params.items()}
        is_there = all(params[name] is tensor for name, tensor in self.params.items())
        return self if is_there else SAE(self.arch, params, self.about)

    def _check(self, tensor: Tensor, size: int, what: str) -> None:
        if tensor.shape[-1] != size:
            raise DataError(f"{what} must have {size} values in their last dimension, not {tensor.shape[-1]}.")

    def encode(self, x: Tensor) -> Tensor:
        """Features. x [..., d] → f [..., M]. Dense: for many tokens use `jumpahead.engine.encode`."""
        self._check(x, self.d, "Activations for this SAE")
        return self.arch.activate(self.params, x @ self.params["W_enc"].T + self.params["b_enc"])

    def decode(self, f: Tensor) -> Tensor:
        """Reconstructions. f [..., M] → x̂ [..., d]."""
        self._check(f, self.width, "Features of this SAE")
        return f @ self.params["W_dec"] + self.params["b_dec"]

    def __call__(self, x: Tensor) -> Tensor:
        """decode(encode(x))."""
        return self.decode(self.encode(x))

    def save(self, folder: Path | str) -> None:
        """Write config.json and weights.safetensors into `folder`; the config last, so that it vouches for the rest."""
        files = store.SAEFolder(Path(folder))
        store.write_tensors(files.weights, self.params)
        config = {
            "schema": "jumpahead.sae/1",
            "architecture": self.arch.name,
            "options": self.arch.options.model_dump(),
            "setting": self.arch.setting._asdict(),
            "recipe": self.arch.recipe._asdict(),
            "d": self.d,
            "width": self.width,
            **self.about,
        }
        store.write_json(files.config, config)

    @classmethod
    def load(cls, folder: Path | str) -> SAE:
        """Read a saved SAE; ArtefactError where it is missing, torn or of another make."""
        files = store.SAEFolder(Path(folder))
        config = store.read_json(files.config, schema="jumpahead.sae/1")
        try:
            kind, setting = ARCHITECTURES.get(config["architecture"]), Setting(**config["setting"])
            if setting.kind not in kind.settings:
                raise ValueError(f"{kind.name} has no setting '{setting.kind}'")
            arch = kind(kind.Options(**config["options"]), setting, recipe_from(config["recipe"]))
            width, d = config["width"], config["d"]
        except (KeyError, TypeError, ValueError, StudyError) as error:
            raise ArtefactError(
                f"{files.config} is not the configuration of an SAE: {str(error).rstrip('.')}."
            ) from error
        params = store.read_tensors(files.weights)
        shapes = {"W_enc": (width, d), "W_dec": (width, d), "b_dec": (d,), **dict.fromkeys(arch.vectors, (width,))}
        if {name: tuple(tensor.shape) for name, tensor in params.items()} != shapes:
            raise ArtefactError(f"{files.weights} does not hold a {width}×{d} {arch.name} SAE: train it again.")
        return cls(arch, params, {k: v for k, v in config.items() if k not in _WRITTEN})


_WRITTEN = {"schema", "architecture", "options", "setting", "recipe", "d", "width"}
