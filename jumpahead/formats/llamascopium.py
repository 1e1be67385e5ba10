"""llamascopium (OpenMOSS, formerly lm-saes) — https://github.com/OpenMOSS/Language-Model-SAEs

    config.json               sae_type, d_model, expansion_factor, act_fn, top_k, norm_activation, hook_point_in, …
    sae_weights.safetensors   W_E [d, M], b_E [M], W_D [M, d], b_D [d] unless use_decoder_bias is false,
                              activation_function.log_jumprelu_threshold [M] if act_fn is jumprelu,
                              dataset_average_activation_norm.HOOK [] for each hook point, if activations are scaled

    π = W_Eᵀ·(s·x) + b_E       f = π·g(π·‖d_j‖) if sparsity_include_decoder_norm, else π·g(π)       x̂ = (W_Dᵀ f + b_D)/s
    s = √d/(average norm) if norm_activation is dataset-wise, 1 if it is inference

The scale is folded so that features are those of unscaled activations, f/s. Norms are folded into the threshold
(jumprelu) or into the weights, with unit decoder rows (topk); relu needs none. Written for unscaled activations.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from jumpahead.interchange.common_form import CommonForm, check_count, common_form, require, take_matrices, to_sae
from jumpahead.interchange.config_file import ConfigFile
from jumpahead.interchange.format import Format, SAEFiles, known_of
from jumpahead.interchange.hook_names import transformer_lens_name
from jumpahead.interchange.weights import WeightsFile
from jumpahead.sae.saved import SAE
from jumpahead.storage.json_files import write_json
from jumpahead.storage.tensors import write_tensors

ACTIVATIONS = ("relu", "jumprelu", "topk")
"""Activation functions that are read and written."""

_THRESHOLD = "activation_function.log_jumprelu_threshold"
_NORM = "dataset_average_activation_norm."


class LlamascopiumFormat(Format):
    """The format of llamascopium; layout in the module's docstring."""

    name, title = "llamascopium", "llamascopium"
    weights = "sae_weights.safetensors"
    files = ("config.json", "sae_weights.safetensors")

    @classmethod
    def recognises(cls, files: SAEFiles) -> bool:
        is_saelens = files.path("cfg.json").is_file() or not files.path("config.json").is_file()
        return files.holds(cls.weights) and not is_saelens

    @classmethod
    def read(cls, files: SAEFiles) -> SAE:
        config = ConfigFile.read(files.path("config.json"))
        config.choice("sae_type", ("sae",))
        activation = config.choice("act_fn", ACTIVATIONS, "relu")
        hook = config.text("hook_point_in")
        if config.text("hook_point_out", hook) != hook:
            raise config.error("hook_point_out", "differs from 'hook_point_in': a transcoder cannot be read")
        config.refuse("use_glu_encoder", "an encoder with a second product cannot be read")
        weights = WeightsFile.read(files.path(cls.weights))
        d, width = weights.matrix_shape("W_E")
        config.must_equal("d_model", d, "W_E has")
        if int(d * config.number("expansion_factor")) != width:
            raise config.error("expansion_factor", f"does not give the {width} features that W_E has")
        params = take_matrices(weights, "W_E", "W_D", width, d, is_encoder_by_row=False, is_decoder_by_row=True)
        has_bias = config.flag("use_decoder_bias", True)
        params |= {
            "b_enc": weights.take("b_E", width),
            "b_dec": weights.take("b_D", d) if has_bias else torch.zeros(d),
        }
        norms = params["W_dec"].norm(dim=1).clamp_min(1e-30)
        has_norms = config.flag("sparsity_include_decoder_norm", True)
        if activation == "jumprelu":
            params["threshold"] = weights.take(_THRESHOLD, width).exp() / (norms if has_norms else 1.0)
        scale = _scale(config, weights, hook, d)
        params |= {name: params[name] / scale for name in ("b_enc", "b_dec", "threshold") if name in params}
        k = 0
        if activation == "topk":
            k = config.count("top_k")
            check_count(k, width, config.error("top_k", f"is {k}, more than the {width} features"))
            if has_norms:
                params["W_enc"], params["W_dec"] = params["W_enc"] * norms[:, None], params["W_dec"] / norms[:, None]
                params["b_enc"] = params["b_enc"] * norms
        weights.finish(f"an SAE of llamascopium with act_fn {activation}")
        lm = config.text("model_name", None)
        return to_sae(CommonForm(activation, params, k), known_of(cls, files, lm, hook, made_by="llamascopium"))

    @classmethod
    def write(cls, sae: SAE, folder: Path) -> None:
        form = common_form(sae, cls.title)
        require(form, ACTIVATIONS, cls.title, sae)
        p, site = form.with_input_bias(None), sae.location.site
        tensors = {"W_E": p["W_enc"].T.contiguous(), "b_E": p["b_enc"], "W_D": p["W_dec"], "b_D": p["b_dec"]}
        if form.activation == "jumprelu":
            tensors[_THRESHOLD] = p["threshold"].clamp_min(torch.finfo(torch.float32).tiny).log()
        hook = transformer_lens_name(site) if site else ""
        config = {
            "sae_type": "sae",
            "d_model": sae.d,
            "expansion_factor": _expansion(sae.width, sae.d),
            "use_decoder_bias": True,
            "act_fn": form.activation,
            "norm_activation": "inference",
            "sparsity_include_decoder_norm": False,
            "top_k": max(1, form.k),
            "hook_point_in": hook,
            "hook_point_out": hook,
            "use_glu_encoder": False,
        }
        write_tensors(folder / cls.weights, tensors)
        write_json(folder / "config.json", config, has_checksum=False)


def _expansion(width: int, d: int) -> float:
    """Return the number that, multiplied by d and rounded down, is the width."""
    factor = width / d
    return factor if int(d * factor) == width else math.nextafter(factor, math.inf)


def _scale(config: ConfigFile, weights: WeightsFile, hook: str, d: int) -> float:
    """Return s, the factor of the activations. Raises ArtefactError if it depends on the token or is not stored."""
    kind = config.choice("norm_activation", ("dataset-wise", "inference"), "dataset-wise")
    norms = {name: weights.number(name) for name in weights.names() if name.startswith(_NORM)}
    if kind == "inference":
        return 1.0
    if f"{_NORM}{hook}" not in norms:
        raise config.error("norm_activation", f"is 'dataset-wise', but the weights have no '{_NORM}{hook}'")
    norm = norms[f"{_NORM}{hook}"]
    if not norm > 0:
        raise weights.error(f"{_NORM}{hook}", f"must be positive, not {norm:g}")
    return math.sqrt(d) / norm


FORMAT = LlamascopiumFormat
