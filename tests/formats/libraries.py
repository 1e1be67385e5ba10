"""Other libraries' layouts and equations, computed from the files that they publish, without the libraries.

Each function takes the configuration and the tensors of a file, and returns features f and reconstructions x̂, float64.
They are written after the libraries' own code; `make test-interop` checks that with the libraries themselves.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def keep_largest(z: Tensor, k: int) -> Tensor:
    """Return the k largest positive values of each row, and 0 elsewhere."""
    f = z.relu()
    return torch.zeros_like(f).scatter(-1, f.topk(k).indices, f.topk(k).values)


def saelens(config: dict[str, Any], t: Tensors, x: Tensor) -> tuple[Tensor, Tensor]:
    """SAELens 6; `scaling_factor` is the scale that activations are multiplied by before."""
    if config.get("activation_fn_str") == "topk":  # version 5
        config = {**config, "architecture": "topk", "k": config["activation_fn_kwargs"]["k"]}
    scale = config.get("scaling_factor", 1.0)
    x, norms = scale * x, t["W_dec"].norm(dim=1)
    if config.get("apply_b_dec_to_input", True):
        x = x - t["b_dec"]
    h = x @ t["W_enc"]
    match config.get("architecture", "standard"):
        case "standard":
            f = (h + t["b_enc"]).relu()
        case "jumprelu":
            z, theta = h + t["b_enc"], t["threshold"] if "threshold" in t else t["log_threshold"].exp()
            f = z.relu() * (z > theta)
        case "gated":
            f = (h + t["b_gate"] > 0) * (x @ (t["W_enc"] * t["r_mag"].exp()) + t["b_mag"]).relu()
        case "topk":
            z, is_rescaled = h + t["b_enc"], config.get("rescale_acts_by_decoder_norm", False)
            f = keep_largest(z * norms if is_rescaled else z, config["k"])
            return f, ((f / norms if is_rescaled else f) @ t["W_dec"] + t["b_dec"]) / scale
        case other:
            raise AssertionError(other)
    return f, (f @ t["W_dec"] + t["b_dec"]) / scale


def gemma_scope(config: dict[str, Any], t: Tensors, x: Tensor) -> tuple[Tensor, Tensor]:
    """Gemma Scope 1 and 2; embeddings are divided by √d first."""
    t, root = (
        {name.lower(): value for name, value in t.items()},
        math.sqrt(x.shape[1]) if config.get("embedding") else 1,
    )
    z = x / root @ t["w_enc"] + t["b_enc"]
    f = z.relu() * (z > t["threshold"])
    return f, (f @ t["w_dec"] + t["b_dec"]) * root


def dictionary_learning(config: dict[str, Any], t: Tensors, x: Tensor) -> tuple[Tensor, Tensor]:
    """dictionary_learning, every dict_class."""
    match config["trainer"]["dict_class"]:
        case "AutoEncoder":
            norms = t["decoder.weight"].norm(dim=0)
            f = ((x - t["bias"]) @ t["encoder.weight"].T + t["encoder.bias"]).relu()
            return f * norms, f @ t["decoder.weight"].T + t["bias"]  # `load_dictionary` makes decoder rows unit
        case "AutoEncoderNew":
            f = (x @ t["encoder.weight"].T + t["encoder.bias"]).relu()
            return f, f @ t["decoder.weight"].T + t["decoder.bias"]
        case "GatedAutoEncoder":
            h = (x - t["decoder_bias"]) @ t["encoder.weight"].T
            f = (h + t["gate_bias"] > 0) * (t["r_mag"].exp() * h + t["mag_bias"]).relu()
            return f, f @ t["decoder.weight"].T + t["decoder_bias"]
        case "AutoEncoderTopK":
            f = keep_largest((x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"], int(t["k"]))
            return f, f @ t["decoder.weight"].T + t["b_dec"]
        case "BatchTopKSAE":
            z = ((x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"]).relu()
            f = z * (z > t["threshold"])
            return f, f @ t["decoder.weight"].T + t["b_dec"]
        case "MatryoshkaBatchTopKSAE":
            z = ((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]).relu()
            f = z * (z > t["threshold"])
        case "JumpReluAutoEncoder":
            z = x @ t["W_enc"] + t["b_enc"]
            f = (z * (z > t["threshold"])).relu()
        case other:
            raise AssertionError(other)
    return f, f @ t["W_dec"] + t["b_dec"]


def sparsify(config: dict[str, Any], t: Tensors, x: Tensor) -> tuple[Tensor, Tensor]:
    """sparsify's TopK."""
    f = keep_largest((x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"], config["k"])
    return f, f @ t["W_dec"] + t["b_dec"]


def qwen_scope(config: dict[str, Any], t: Tensors, x: Tensor) -> tuple[Tensor, Tensor]:
    """Qwen Scope's TopK; k is in the folder's name."""
    f = keep_largest(x @ t["W_enc"].T + t["b_enc"], 5)
    return f, f @ t["W_dec"].T + t["b_dec"]


def llamascopium(config: dict[str, Any], t: Tensors, x: Tensor) -> tuple[Tensor, Tensor]:
    """llamascopium; features are those of unscaled activations."""
    norm = t.get(f"dataset_average_activation_norm.{config['hook_point_in']}")
    s = 1.0 if config["norm_activation"] == "inference" or norm is None else math.sqrt(x.shape[1]) / float(norm)
    z, norms = s * x @ t["W_E"] + t["b_E"], t["W_D"].norm(dim=1)
    gated = z * norms if config["sparsity_include_decoder_norm"] else z
    match config["act_fn"]:
        case "relu":
            f = gated.relu()
        case "jumprelu":
            f = gated * (gated > t["activation_function.log_jumprelu_threshold"].exp())
        case "topk":
            f = keep_largest(gated, config["top_k"])
        case other:
            raise AssertionError(other)
    f = f / norms if config["sparsity_include_decoder_norm"] else f
    return f / s, (f @ t["W_D"] + t.get("b_D", 0.0)) / s
