"""Activations with a known answer: sparse sums of a dictionary that one can look at. No language model.

    x = b + Σ_j a_j · d_j + noise       d_j unit, feature j active with probability p_j, then a_j = max(0.1, N(1, 0.3²))

p_j falls as a power of j, as features of language models do, and sums to `l0`. Group g's rows are a function of (seed,
site, g) alone. An SAE that works finds the d_j: `dictionary`, `frequency` and `truth` are there to compare with.
"""

from __future__ import annotations

import zlib
from copy import copy
from pathlib import Path
from typing import cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from jumpahead.activations import ActivationsConfig
from jumpahead.activations.base import DTYPES, Activations, Options, read_options
from jumpahead.lm.model import LM
from jumpahead.store import digest_json
from jumpahead.text.contexts import Contexts


class SyntheticOptions(Options):
    """Size and shape of the known dictionary."""

    d: int = Field(default=32, ge=2)
    """Width of every site."""
    features: int = Field(default=256, ge=1)
    """Directions in the dictionary."""
    l0: float = Field(default=4.0, gt=0)
    """Mean number of active features of a row."""
    power: float = Field(default=0.7, ge=0)
    """How fast frequencies fall: p_j ∝ (j + 1)^−power, at most 1/2."""
    noise: float = Field(default=0.02, ge=0)
    """Standard deviation of the noise in each coordinate, where a feature has size about 1."""
    groups: int = Field(default=256, ge=1)
    """Groups of rows; what stands for the contexts of a text."""
    rows: int = Field(default=1024, ge=1)
    """Rows per group."""
    seed: int = Field(default=0, ge=0)
    """Another seed is another dictionary and other rows."""


class Synthetic(Activations):
    """Rows made from a known dictionary, one per site."""

    Options = SyntheticOptions

    def __init__(self, config: ActivationsConfig) -> None:
        options = cast(SyntheticOptions, read_options(Synthetic, config))
        self.options = options
        self._first = 0
        self.dtype = DTYPES[config.dtype]
        self.widths = dict.fromkeys(config.sites, options.d)
        self.rows_per_group = np.full(options.groups, options.rows, dtype=np.int64)
        self.groups_per_block = max(1, config.block // 16)
        self.digest = digest_json(["synthetic", options.model_dump(), sorted(self.widths), config.dtype])
        shape = np.arange(1, options.features + 1) ** -options.power
        self.frequency = torch.from_numpy(np.minimum(options.l0 * shape / shape.sum(), 0.5)).float()
        """float32 [features]: how often each feature is active."""
        self.dictionary = {site: self._directions(site, options.features) for site in self.widths}
        """float32 [features, d] with unit rows, per site."""
        self.bias = {site: 0.5 * self._directions(site, options.features + 1)[-1] for site in self.widths}
        """float32 [d], per site: what is there when nothing is active."""

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
        return {site: self._make(site, group)[0].to(self.dtype) for site in self.widths}

    @property
    def held_out(self) -> Synthetic:
        """As many groups more of the same dictionary."""
        others = copy(self)
        others._first = self.options.groups
        others.digest = digest_json([self.digest, "held out"])
        return others

    def truth(self, group: int) -> dict[str, Tensor]:
        """float32 [n, features] at every site: how active each feature of each row is."""
        return {site: self._make(site, group)[1] for site in self.widths}

    def _make(self, site: str, group: int) -> tuple[Tensor, Tensor]:
        n, options = int(self.rows_per_group[group]), self.options
        random = self._random(site, 1, self._first + group)
        active = random.random((n, options.features), dtype=np.float32) < self.frequency.numpy()
        size = np.maximum(random.normal(1.0, 0.3, (n, options.features)), 0.1)
        features = torch.from_numpy(np.where(active, size, 0.0).astype(np.float32))
        noise = torch.from_numpy(random.normal(0.0, options.noise, (n, options.d)).astype(np.float32))
        return self.bias[site] + features @ self.dictionary[site] + noise, features

    def _directions(self, site: str, count: int) -> Tensor:
        random = self._random(site, 0, 0)
        directions = torch.from_numpy(random.normal(size=(count, self.options.d)))
        return (directions / directions.norm(dim=1, keepdim=True)).float()

    def _random(self, site: str, *key: int) -> np.random.Generator:
        seed = np.random.SeedSequence((self.options.seed, zlib.crc32(site.encode()), *key))
        return np.random.Generator(np.random.Philox(seed))


Origin = Synthetic
