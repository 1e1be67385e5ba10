"""Synthetic activations: sparse sums of the vectors of a known dictionary, for testing SAEs. No language model.

    x = b + Σ_j a_j · d_j + noise       d_j unit, feature j active with probability p_j, then a_j = max(0.1, N(1, 0.3²))

p_j decreases as a power of j, as feature frequencies in language models do, and sums to `l0`. Options add structure:

    child_probability  P parents with C children each: a child can be active only where its parent is active,
                       then with probability c_1 … c_C; so p_child = p_parent·c. Features 0 … P−1 are the parents,
                       P + C·j … P + C·j + C − 1 the children of parent j.
    correlated_groups  parent j is active if z_j < Φ⁻¹(p_j), z_j = √ρ·u_{j mod G} + √(1−ρ)·e_j with u, e ~ N(0, 1):
                       the parents of a group tend to be active together, each as often as without groups.

The rows of group g are a function of (seed, site, g) alone. To judge an SAE, compare its parameters with `dictionary`,
`frequency` and `feature_activations`; an evaluation does so in the metric `f1`.
"""

from __future__ import annotations

import zlib
from copy import copy
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from jumpahead.activations.base import DTYPES, Activations, OriginOptions, parse_options
from jumpahead.activations.config import ActivationsConfig
from jumpahead.lm.model import LM
from jumpahead.storage.digests import digest_json
from jumpahead.text.contexts import Contexts


class SyntheticOptions(OriginOptions):
    """Size of the dictionary and statistics of its features."""

    d: int = Field(default=32, ge=2)
    """Width of every site."""
    features: int = Field(default=256, ge=1)
    """Number of features in the dictionary."""
    l0: float = Field(default=4.0, gt=0)
    """Mean number of active features of a row."""
    power: float = Field(default=0.7, ge=0)
    """Exponent of the frequencies: p_j ∝ (j + 1)^−power, at most 1/2."""
    noise: float = Field(default=0.02, ge=0)
    """Standard deviation of the noise in each coordinate; active features have a mean activation of 1."""
    groups: int = Field(default=256, ge=1)
    """Number of groups of rows."""
    rows_per_group: int = Field(default=1024, ge=1)
    """Rows of a group, which correspond to the tokens of a group of contexts."""
    seed: int = Field(default=0, ge=0)
    """Seed of the dictionary and of the rows."""
    child_probability: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()
    """Children of every parent, by their probability to be active if the parent is; without it they never are.
    `features` counts parents and children."""
    correlated_groups: int = Field(default=0, ge=0)
    """Number of groups of parents that tend to be active on the same rows; 0 for independent parents."""
    group_correlation: float = Field(default=0.5, ge=0, lt=1)
    """Correlation ρ of the normal variables that decide whether two parents of a group are active."""

    @field_validator("child_probability")
    @classmethod
    def _check_families(cls, value: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        """Return the value. Raises ValueError if the features are not whole families of a parent with its children."""
        size = 1 + len(value)
        if info.data.get("features", size) % size:
            raise ValueError(f"features must be a multiple of {size}, a parent and its children")
        return value

    @property
    def children(self) -> int:
        """Return the number of children of each parent."""
        return len(self.child_probability)

    @property
    def parents(self) -> int:
        """Return the number of parents; without children every feature is one."""
        return self.features // (1 + self.children)


FAMILY_OPTIONS: tuple[str, ...] = ("child_probability", "correlated_groups", "group_correlation")
"""Options that are in the digest only if families or groups are asked for, so that older digests stay valid."""


class Synthetic(Activations):
    """Rows generated from known dictionaries, one per site."""

    Options = SyntheticOptions
    needs_lm = False

    def __init__(self, config: ActivationsConfig) -> None:
        options = cast(SyntheticOptions, parse_options(Synthetic, config))
        self.options = options
        self._first_group = 0
        self.dtype = DTYPES[config.dtype]
        self.widths = dict.fromkeys(config.sites, options.d)
        self.rows_per_group = np.full(options.groups, options.rows_per_group, dtype=np.int64)
        self.groups_per_block = max(1, config.block // 16)
        left_out: set[str] = set() if options.children or options.correlated_groups else set(FAMILY_OPTIONS)
        known = options.model_dump(exclude=left_out)
        self.digest = digest_json(["synthetic", known, sorted(self.widths), config.dtype])
        given_parent = np.array(options.child_probability)
        shape = np.arange(1, options.parents + 1) ** -options.power
        parent_l0 = options.l0 / (1 + given_parent.sum())
        parents = np.minimum(parent_l0 * shape / shape.sum(), 0.5)
        self.frequency = torch.from_numpy(np.concatenate([parents, np.outer(parents, given_parent).ravel()])).float()
        """float32 [features]: the probability of each feature to be active."""
        self._probability = np.concatenate([parents, np.tile(given_parent, options.parents)]).astype(np.float32)
        """float32 [features]: the probability of each feature to be active, of children if their parent is active."""
        self.dictionary = {site: self._unit_vectors(site, options.features) for site in self.widths}
        """float32 [features, d] with unit rows, per site."""
        self.bias = {site: 0.5 * self._unit_vectors(site, options.features + 1)[-1] for site in self.widths}
        """float32 [d], per site: the row without active features and noise."""

    @classmethod
    def open(
        cls,
        config: ActivationsConfig,
        *,
        lm: LM | None = None,
        contexts: Contexts | None = None,
        folder: Path | None = None,
    ) -> Synthetic:
        return cls(config)

    def rows(self, group: int) -> dict[str, Tensor]:
        return {site: self._generate(site, group)[0].to(self.dtype) for site in self.widths}

    @property
    def held_out(self) -> Synthetic:
        """Return held-out activations: as many groups with other rows, generated from the same dictionary."""
        others = copy(self)
        others._first_group = self.options.groups
        others.digest = digest_json([self.digest, "held out"])
        return others

    def feature_activations(self, group: int) -> dict[str, Tensor]:
        """Return the true feature activations of a group's rows: float32 [n, features] by site."""
        return {site: self._generate(site, group)[1] for site in self.widths}

    def _generate(self, site: str, group: int) -> tuple[Tensor, Tensor]:
        """Return a group's rows [n, d] and feature activations [n, features], float32."""
        n, options = int(self.rows_per_group[group]), self.options
        rng = self._rng(site, 1, self._first_group + group)
        active = self._draw_active(rng, n)
        size = np.maximum(rng.normal(1.0, 0.3, (n, options.features)), 0.1)
        features = torch.from_numpy(np.where(active, size, 0.0).astype(np.float32))
        noise = torch.from_numpy(rng.normal(0.0, options.noise, (n, options.d)).astype(np.float32))
        return self.bias[site] + features @ self.dictionary[site] + noise, features

    def _draw_active(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Return which features are active on n rows, bool [n, features]."""
        options, parents = self.options, self.options.parents
        active = rng.random((n, options.features), dtype=np.float32) < self._probability
        if options.correlated_groups:
            shared = rng.normal(size=(n, options.correlated_groups))[:, np.arange(parents) % options.correlated_groups]
            own, rho = rng.normal(size=(n, parents)), options.group_correlation
            cutoff = torch.special.ndtri(torch.from_numpy(self._probability[:parents]).double()).numpy()
            active[:, :parents] = np.sqrt(rho) * shared + np.sqrt(1 - rho) * own < cutoff
        if options.children:
            active[:, parents:] &= np.repeat(active[:, :parents], options.children, axis=1)
        return active

    def _unit_vectors(self, site: str, count: int) -> Tensor:
        """Return `count` random unit vectors for a site, float32 [count, d]."""
        rng = self._rng(site, 0, 0)
        directions = torch.from_numpy(rng.normal(size=(count, self.options.d)))
        return (directions / directions.norm(dim=1, keepdim=True)).float()

    def _rng(self, site: str, *key: int) -> np.random.Generator:
        """Return a random generator that depends on the seed, the site and `key` alone."""
        seed = np.random.SeedSequence((self.options.seed, zlib.crc32(site.encode()), *key))
        return np.random.Generator(np.random.Philox(seed))


Origin = Synthetic
