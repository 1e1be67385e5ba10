"""SAEs that are used: encoding, decoding, saving and loading. They take the LM's activations without rescaling."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from jumpahead.errors import ArtefactError, DataError, DivergedError, StudyError
from jumpahead.sae.architecture import Architecture, Options
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.location import Location
from jumpahead.sae.parameters import Params
from jumpahead.sae.recipe import Recipe, Setting, recipe_from
from jumpahead.storage.artefacts import RUN_COMMAND, damaged_artefact_error
from jumpahead.storage.digests import digest_json
from jumpahead.storage.json_files import write_json
from jumpahead.storage.layout import SAE_SCHEMA, SAEFolder
from jumpahead.storage.tensors import read_tensors, read_tensors_digest, write_tensors


@final
class SAE:
    """A trained SAE of any make. Its inputs are the LM's activations without rescaling.

    Inputs may have any floating-point dtype and be on any device; they are cast to the SAE's. An SAE of another make
    (`jumpahead.load`) has neither recipe nor, unless its features depend on it, setting.

    >>> sae = SAE.load("runs/demo/saes/layers.1.residual/4096/jumprelu/l0-16_seed-0")
    >>> f = sae.encode(x)       # [..., M], mostly zeros
    >>> x_hat = sae.decode(f)   # [..., d]
    """

    def __init__(self, arch: Architecture, params: Params, about: dict[str, Any] | None = None):
        self.arch, self.params, self.about = arch, params, about or {}
        self.width, self.d = params["W_dec"].shape
        self.warned_of_location = False
        """True once a warning said that the SAE is used where it does not belong (lm/sae_location.py)."""

    def __repr__(self) -> str:
        setting = f", {self.setting.label}" if self.setting else ""
        return f"SAE({self.arch.name}{setting}, d={self.d}, width={self.width})"

    @property
    def architecture(self) -> str:
        """Return the architecture's name."""
        return self.arch.name

    @property
    def b_pre(self) -> Tensor | None:
        """Return what is subtracted from activations before the encoder product, [d]; None for nothing (unit.py)."""
        return self.params.get("b_pre")

    @property
    def setting(self) -> Setting | None:
        """Return the sparsity setting; None if it is not known."""
        return self.arch.known_setting

    @property
    def recipe(self) -> Recipe | None:
        """Return the recipe that the SAE was trained with; None if jumpahead did not train it."""
        return self.arch.known_recipe

    @property
    def location(self) -> Location:
        """Return where the SAE belongs: language model and site, as far as they are known."""
        return Location.from_config(self.about)

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the parameters, the architecture, its options and the setting."""
        known = [self.architecture, asdict(self.arch.options), self.setting, self.width, self.d]
        sha = hashlib.sha256(digest_json(known).encode())
        for name in sorted(self.params):
            sha.update(name.encode())
            sha.update(self.params[name].detach().cpu().contiguous().numpy().data)
        return sha.hexdigest()

    @property
    def device(self) -> torch.device:
        """Return the device of the parameters."""
        return self.params["W_enc"].device

    def to(self, device: torch.device | str) -> SAE:
        """Return the SAE on a device; returns this object if it is on that device already."""
        params = {name: tensor.to(device) for name, tensor in self.params.items()}
        is_there = all(params[name] is tensor for name, tensor in self.params.items())
        return self if is_there else SAE(self.arch, params, self.about)

    def with_unit_decoder_rows(self) -> SAE:
        """Return the SAE with decoder rows of norm one and features ‖d_j‖·f_j: x̂ stays the same.

        Raises DataError for TopK, whose selection of features would change.
        """
        norms = self.params["W_dec"].norm(dim=1).clamp_min(1e-30)
        if self.arch.encodes_by_setting:
            raise DataError(f"{self!r} keeps the largest features of a token, which other decoder norms would change.")
        return SAE(self.arch, self.arch.rescale_features(self.params, norms), self.about)

    def cast(self, values: Tensor | np.ndarray, size: int, label: str) -> Tensor:
        """Return values [..., size] as a tensor with the dtype and on the device of the parameters.

        label: what the values are called in the error. Raises DataError if the last dimension is not `size`, or if the
        values are not floating-point numbers.
        """
        if isinstance(values, np.ndarray) and values.dtype.kind == "f":
            values = torch.from_numpy(np.array(values, dtype=np.float32))
        if not (isinstance(values, Tensor) and values.is_floating_point()):
            kind = getattr(values, "dtype", type(values).__name__)
            raise DataError(f"{label} must be a tensor or array of floating-point numbers, not {kind}.")
        if values.dim() == 0 or values.shape[-1] != size:
            found = values.shape[-1] if values.dim() else "a single number"
            raise DataError(f"{label} must have {size} values in their last dimension, not {found}.")
        return values.to(self.params["W_enc"])

    def preactivations(self, x: Tensor) -> Tensor:
        """Return the pre-activations π [..., M] of activations x [..., d] that `cast` returned."""
        x = x if self.b_pre is None else x - self.b_pre
        return x @ self.params["W_enc"].T + self.params["b_enc"]

    def encode(self, x: Tensor | np.ndarray) -> Tensor:
        """Return the features f [..., M] of activations x [..., d], dense, float32.

        For many tokens use `jumpahead.engine.encode`, which returns sparse features.
        """
        x = self.cast(x, self.d, "Activations for this SAE")
        return self.arch.activate(self.params, self.preactivations(x))

    def decode(self, f: Tensor | np.ndarray) -> Tensor:
        """Return the reconstructions x̂ [..., d] decoded from features f [..., M], float32."""
        return self.cast(f, self.width, "Features of this SAE") @ self.params["W_dec"] + self.params["b_dec"]

    def __call__(self, x: Tensor | np.ndarray) -> Tensor:
        """Return the reconstructions decode(encode(x)) [..., d] of activations x [..., d], float32."""
        return self.decode(self.encode(x))

    def save(self, folder: Path | str, *, with_log: bool = False) -> None:
        """Write weights.safetensors and then config.json into `folder`; an SAE is complete once config.json exists.

        with_log: the folder has the training's log, which belongs to the SAE. Raises DivergedError if a parameter is
        not finite.
        """
        files = SAEFolder(Path(folder))
        if name := non_finite_parameter(self.params):
            raise DivergedError(f"{self!r} holds NaN or infinite values in {name}: it is not saved.")
        write_tensors(files.weights, self.params)
        config = {
            "schema": SAE_SCHEMA,
            "architecture": self.arch.name,
            "options": asdict(self.arch.options),
            "setting": self.setting and self.setting._asdict(),
            "recipe": self.recipe and self.recipe._asdict(),
            "d": self.d,
            "width": self.width,
            **{key: value for key, value in self.about.items() if key != "files"},
            "files": files.file_digests(with_log=with_log),
        }
        write_json(files.config, config)

    @classmethod
    def load(cls, folder: Path | str) -> SAE:
        """Return the SAE saved in `folder`. Raises ArtefactError if it is missing, damaged or in another format.

        Files that were changed after saving are refused.

        `jumpahead.load` also reads SAEs of other libraries.
        """
        files = SAEFolder(Path(folder))
        config = files.read_config()
        try:
            arch = _architecture_from(config)
            width, d, digest = config["width"], config["d"], config["files"][files.weights.name]
        except (KeyError, TypeError, ValueError, AttributeError, StudyError) as error:
            raise ArtefactError(
                f"{files.config} is not the configuration of an SAE: {str(error).rstrip('.')}."
            ) from error
        params = read_tensors(files.weights)
        shapes = {"W_enc": (width, d), "W_dec": (width, d), "b_dec": (d,), **dict.fromkeys(arch.vectors, (width,))}
        shapes |= {"b_pre": (d,)} if "b_pre" in params else {}
        if {name: tuple(tensor.shape) for name, tensor in params.items()} != shapes:
            raise ArtefactError(f"{files.weights} does not hold a {width}×{d} {arch.name} SAE: train it again.")
        if read_tensors_digest(files.weights) != digest:
            raise damaged_artefact_error(files.weights, "is not the file that its config.json names", RUN_COMMAND)
        if name := non_finite_parameter(params):
            raise ArtefactError(f"{files.weights}: '{name}' holds NaN or infinite values.")
        return cls(arch, params, {k: v for k, v in config.items() if k not in _CONFIG_KEYS})


def non_finite_parameter(params: Params) -> str | None:
    """Return the name of the first parameter that holds NaN or infinite values; None if all are finite."""
    for name, tensor in params.items():
        if tensor.numel() and not all(math.isfinite(end.item()) for end in torch.aminmax(tensor)):  # both keep NaN
            return name
    return None


_CONFIG_KEYS = {"files", "schema", "architecture", "options", "setting", "recipe", "d", "width"}


def _architecture_from(config: dict[str, Any]) -> Architecture:
    """Return the architecture in a saved configuration, with its options, setting and recipe.

    Raises KeyError, TypeError, ValueError or StudyError if a part is missing or impossible.
    """
    kind = ARCHITECTURES.get(config["architecture"])
    setting = config["setting"] and Setting(**config["setting"])
    if setting and setting.kind not in kind.settings:
        raise ValueError(f"{kind.name} has no setting '{setting.kind}'")
    if setting and not (isinstance(setting.value, int | float) and 0 < setting.value < float("inf")):
        raise ValueError(f"the setting is {setting.value!r}")
    if setting is None and kind.encodes_by_setting:
        raise ValueError(f"{kind.name} needs a setting")
    recipe = config["recipe"] and recipe_from(config["recipe"])
    return kind(_options_from(kind, config["options"]), setting or None, recipe or None)


def _options_from(kind: type[Architecture], saved: dict[str, Any]) -> Options:
    """Return the options in a saved configuration, with lists as tuples. Raises TypeError for an unknown option."""
    return kind.Options(**{name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()})
