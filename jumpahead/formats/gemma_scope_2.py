"""Gemma Scope 2 — https://huggingface.co/google/gemma-scope-2 — JumpReLU SAEs of Gemma 3

    config.json          architecture "jump_relu", model_name, hf_hook_point_in, and hf_hook_point_out of a transcoder
    params.safetensors   w_enc [d, M], w_dec [M, d], b_enc [M], b_dec [d], threshold [M]

There is no input bias, and scales are folded in. Transcoders, which have another output than input, are refused.
"""

from __future__ import annotations

from pathlib import Path

import torch

from jumpahead.interchange.common_form import CommonForm, common_form, require, take_matrices, to_sae
from jumpahead.interchange.config_file import ConfigFile
from jumpahead.interchange.format import Format, SAEFiles, known_of
from jumpahead.interchange.hook_names import gemma_scope_name
from jumpahead.interchange.weights import WeightsFile
from jumpahead.sae.saved import SAE
from jumpahead.storage.json_files import write_json
from jumpahead.storage.tensors import write_tensors


class GemmaScope2Format(Format):
    """The format of Gemma Scope 2; layout in the module's docstring."""

    name, title = "gemma_scope_2", "Gemma Scope 2"
    weights = "params.safetensors"
    files = ("config.json", "params.safetensors")

    @classmethod
    def read(cls, files: SAEFiles) -> SAE:
        config = ConfigFile.read(files.path("config.json"))
        config.choice("architecture", ("jump_relu",))
        config.refuse("affine_connection", "a transcoder cannot be read")
        site = config.text("hf_hook_point_in", None)
        if config.text("hf_hook_point_out", site) != site:
            raise config.error("hf_hook_point_out", "differs from 'hf_hook_point_in': a transcoder cannot be read")
        weights = WeightsFile.read(files.path(files.file or cls.weights))
        d, width = weights.matrix_shape("w_enc")
        params = take_matrices(weights, "w_enc", "w_dec", width, d, is_encoder_by_row=False, is_decoder_by_row=True)
        params["b_dec"] = weights.take("b_dec", d)
        params |= {name: weights.take(name, width) for name in ("b_enc", "threshold")}
        weights.finish("a JumpReLU SAE of Gemma Scope 2")
        lm = (config.text("model_name", None) or "").replace("-v3-", "-3-")  # gemma-v3-1b-pt is google/gemma-3-1b-pt
        return to_sae(CommonForm("jumprelu", params), known_of(cls, files, lm, site, made_by="Gemma Scope 2"))

    @classmethod
    def write(cls, sae: SAE, folder: Path) -> None:
        form = common_form(sae, cls.title)
        require(form, ("relu", "jumprelu"), cls.title, sae, "it has one threshold per feature and nothing else")
        p, location = form.with_input_bias(None), sae.location
        tensors = {"w_enc": p["W_enc"].T.contiguous(), "w_dec": p["W_dec"], "b_enc": p["b_enc"], "b_dec": p["b_dec"]}
        write_tensors(folder / cls.weights, tensors | {"threshold": p.get("threshold", torch.zeros(sae.width))})
        config = {
            "architecture": "jump_relu",
            "model_name": location.lm,
            "hf_hook_point_in": gemma_scope_name(location.site) if location.site else None,
        }
        known = {name: value for name, value in config.items() if value is not None}
        write_json(folder / "config.json", known, has_checksum=False)


FORMAT = GemmaScope2Format
