"""Trained SAEs: encoding, decoding, saving and loading. Their inputs are the LM's activations without rescaling."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from jumpahead.errors import ArtefactError, DataError, StudyError
from jumpahead.sae.architecture import Architecture, Options
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.parameters import Params
from jumpahead.sae.recipe import Setting, recipe_from
from jumpahead.storage.json_files import read_json, write_json
from jumpahead.storage.layout import SAEFolder
from jumpahead.storage.tensors import read_tensors, write_tensors


@final
class SAE:
    """A trained SAE. Its inputs are the LM's activations without rescaling.

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
        """Return the architecture's name."""
        return self.arch.name

    @property
    def b_pre(self) -> Tensor | None:
        """Return what is subtracted from activations before the encoder product, [d]; None for nothing (unit.py)."""
        return self.params.get("b_pre")

    def to(self, device: torch.device | str) -> SAE:
        """Return the SAE on a device; returns this object if it is on that device already."""
        params = {name: tensor.to(device) for name, tensor in self.params.items()}
        is_there = all(params[name] is tensor for name, tensor in self.params.items())
        return self if is_there else SAE(self.arch, params, self.about)

    def _check_last_dimension(self, tensor: Tensor, size: int, label: str) -> None:
        """Raise DataError unless the last dimension of a tensor is `size`. label: the tensor's name in the error."""
        if tensor.shape[-1] != size:
            raise DataError(f"{label} must have {size} values in their last dimension, not {tensor.shape[-1]}.")

    def encode(self, x: Tensor) -> Tensor:
        """Return the features f [..., M] of activations x [..., d], dense.

        For many tokens use `jumpahead.engine.encode`, which returns sparse features.
        """
        self._check_last_dimension(x, self.d, "Activations for this SAE")
        x = x if self.b_pre is None else x - self.b_pre
        return self.arch.activate(self.params, x @ self.params["W_enc"].T + self.params["b_enc"])

    def decode(self, f: Tensor) -> Tensor:
        """Return the reconstructions x̂ [..., d] decoded from features f [..., M]."""
        self._check_last_dimension(f, self.width, "Features of this SAE")
        return f @ self.params["W_dec"] + self.params["b_dec"]

    def __call__(self, x: Tensor) -> Tensor:
        """Return the reconstructions decode(encode(x)) [..., d] of activations x [..., d]."""
        return self.decode(self.encode(x))

    def save(self, folder: Path | str) -> None:
        """Write weights.safetensors and then config.json into `folder`; an SAE is complete once config.json exists."""
        files = SAEFolder(Path(folder))
        write_tensors(files.weights, self.params)
        config = {
            "schema": "jumpahead.sae/1",
            "architecture": self.arch.name,
            "options": asdict(self.arch.options),
            "setting": self.arch.setting._asdict(),
            "recipe": self.arch.recipe._asdict(),
            "d": self.d,
            "width": self.width,
            **self.about,
        }
        write_json(files.config, config)

    @classmethod
    def load(cls, folder: Path | str) -> SAE:
        """Return the SAE saved in `folder`. Raises ArtefactError if it is missing, damaged or in another format."""
        files = SAEFolder(Path(folder))
        config = read_json(files.config, schema="jumpahead.sae/1")
        try:
            kind, setting = ARCHITECTURES.get(config["architecture"]), Setting(**config["setting"])
            if setting.kind not in kind.settings:
                raise ValueError(f"{kind.name} has no setting '{setting.kind}'")
            arch = kind(_options_from(kind, config["options"]), setting, recipe_from(config["recipe"]))
            width, d = config["width"], config["d"]
        except (KeyError, TypeError, ValueError, StudyError) as error:
            raise ArtefactError(
                f"{files.config} is not the configuration of an SAE: {str(error).rstrip('.')}."
            ) from error
        params = read_tensors(files.weights)
        shapes = {"W_enc": (width, d), "W_dec": (width, d), "b_dec": (d,), **dict.fromkeys(arch.vectors, (width,))}
        shapes |= {"b_pre": (d,)} if "b_pre" in params else {}
        if {name: tuple(tensor.shape) for name, tensor in params.items()} != shapes:
            raise ArtefactError(f"{files.weights} does not hold a {width}×{d} {arch.name} SAE: train it again.")
        return cls(arch, params, {k: v for k, v in config.items() if k not in _CONFIG_KEYS})


_CONFIG_KEYS = {"schema", "architecture", "options", "setting", "recipe", "d", "width"}


def _options_from(kind: type[Architecture], saved: dict[str, Any]) -> Options:
    """Return the options in a saved configuration, with lists as tuples. Raises TypeError for an unknown option."""
    return kind.Options(**{name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()})
