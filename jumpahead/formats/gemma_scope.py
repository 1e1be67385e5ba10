"""Gemma Scope — https://huggingface.co/google/gemma-scope — JumpReLU SAEs of Gemma 2

    …/layer_L/width_W/average_l0_N/params.npz   float32: W_enc [d, M], W_dec [M, d], b_enc [M], b_dec [d], threshold [M]

There is no input bias, and scales are folded in. The file does not say what the SAE belongs to: model and site are
taken from the folder's name (`gemma-scope-2b-pt-res/layer_12/…`), as far as it says. An SAE of embeddings was trained
on rows of the embedding matrix; the model's embeddings are √d times those, which is folded here.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jumpahead.errors import ArtefactError
from jumpahead.interchange.common_form import CommonForm, common_form, require, take_matrices, to_sae
from jumpahead.interchange.format import Format, SAEFiles, known_of
from jumpahead.interchange.weights import WeightsFile
from jumpahead.sae.saved import SAE
from jumpahead.storage.atomic import write_atomic

_REPO = re.compile(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att)")
_KINDS = {"res": "residual", "mlp": "mlp", "att": "attention"}


class GemmaScopeFormat(Format):
    """The format of Gemma Scope 1; layout in the module's docstring."""

    name, title = "gemma_scope", "Gemma Scope"
    weights = "params.npz"
    files = ("params.npz",)

    @classmethod
    def read(cls, files: SAEFiles) -> SAE:
        if "transcoder" in files.address:
            raise ArtefactError(f"{files.address} is a transcoder, which cannot be read: only SAEs can.")
        weights = WeightsFile.read(files.path(files.file or cls.weights))
        stored = {name.lower(): name for name in weights.names()}
        name = {key: stored.get(key.lower(), key) for key in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")}
        d, width = weights.matrix_shape(name["W_enc"])
        params = take_matrices(
            weights, name["W_enc"], name["W_dec"], width, d, is_encoder_by_row=False, is_decoder_by_row=True
        )
        params["b_dec"] = weights.take(name["b_dec"], d)
        params |= {key: weights.take(name[key], width) for key in ("b_enc", "threshold")}
        if "scaling_factor" in weights and not bool((weights.take("scaling_factor", width) == 1).all()):
            raise weights.error("scaling_factor", "is not 1: features scaled after training cannot be read")
        weights.finish("a JumpReLU SAE of Gemma Scope")
        lm, site = _location(files)
        if site == "model.embed_tokens.output":
            params["W_enc"] /= math.sqrt(d)
            params |= {key: params[key] * math.sqrt(d) for key in ("W_dec", "b_dec")}
        return to_sae(CommonForm("jumprelu", params), known_of(cls, files, lm, site, made_by="Gemma Scope"))

    @classmethod
    def write(cls, sae: SAE, folder: Path) -> None:
        form = common_form(sae, cls.title)
        require(form, ("relu", "jumprelu"), cls.title, sae, "it has one threshold per feature and nothing else")
        p = form.with_input_bias(None)
        arrays = {
            "W_enc": p["W_enc"].T,
            "W_dec": p["W_dec"],
            "b_enc": p["b_enc"],
            "b_dec": p["b_dec"],
            "threshold": p.get("threshold", torch.zeros(sae.width)),
        }
        stored: dict[str, Any] = {name: np.ascontiguousarray(value.numpy()) for name, value in arrays.items()}

        def save(path: Path) -> None:
            with open(path, "wb") as file:  # given a name, numpy would append .npz
                np.savez(file, **stored)

        write_atomic(folder / cls.weights, save)


def _location(files: SAEFiles) -> tuple[str | None, str | None]:
    """Return the model and the site that the names of the folder and of its parents say; None for what they do not."""
    text = files.address if files.address.startswith("hf://") else files.folder.resolve().as_posix()
    repo, layer = _REPO.search(text), re.search(r"layer_(\d+)", text)
    if repo is None:
        return None, None
    model = f"google/gemma-2-{repo[1]}" + ("-it" if repo[2] == "it" else "")
    if "/embedding/" in f"{text}/":
        return model, "model.embed_tokens.output"
    return model, f"layers.{layer[1]}.{_KINDS[repo[3]]}" if layer else None


FORMAT = GemmaScopeFormat
