"""Small files in every published layout, built by hand: no other library is needed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.formats import libraries

D, WIDTH, K = 10, 37, 5
MODEL, HOOK, SITE = "google/gemma-2-2b", "blocks.3.hook_resid_post", "layers.3.residual"


class Layout(NamedTuple):
    """One SAE in one published layout."""

    label: str
    format: str
    """The name of the format."""
    folder: str
    """Path of the SAE's folder; some formats say nowhere else what the SAE belongs to."""
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    architecture: str
    """The architecture that it is read as."""
    site: str | None = SITE
    model: str | None = MODEL
    more: tuple[tuple[str, dict[str, Any]], ...] = ()
    """Further JSON files by name."""
    scales_features: bool = False
    """True if features are read as multiples of the library's, because decoder rows are made unit."""

    def outputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the library computes: f and x̂."""
        doubles = {name: value.double() for name, value in self.tensors.items()}
        config = {**self.config, **{key: value for _, table in self.more for key, value in table.items()}}
        config["embedding"] = "embedding" in self.folder
        return OUTPUTS[self.format](config, doubles, x.double())

    def write(self, root: Path) -> Path:
        """Write the files; return the SAE's folder."""
        folder = root / self.folder
        folder.mkdir(parents=True)
        config, weights = FILES[self.format]
        if config:
            (folder / config).write_text(json.dumps(self.config))
        for name, table in self.more:
            (folder / name).write_text(json.dumps(table))
        write_weights(folder / weights, self.tensors)
        return folder


FILES = {
    "saelens": ("cfg.json", "sae_weights.safetensors"),
    "gemma_scope": ("", "params.npz"),
    "gemma_scope_2": ("config.json", "params.safetensors"),
    "dictionary_learning": ("config.json", "ae.pt"),
    "sparsify": ("cfg.json", "sae.safetensors"),
    "llamascopium": ("config.json", "sae_weights.safetensors"),
    "qwen_scope": ("", "layer0.sae.pt"),
}
"""Names of the configuration and of the weights."""
OUTPUTS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "saelens": libraries.saelens,
    "gemma_scope": libraries.gemma_scope,
    "gemma_scope_2": libraries.gemma_scope,
    "dictionary_learning": libraries.dictionary_learning,
    "sparsify": libraries.sparsify,
    "llamascopium": libraries.llamascopium,
    "qwen_scope": libraries.qwen_scope,
}


def write_weights(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors by the suffix of a path."""
    plain = {name: value.contiguous() for name, value in tensors.items()}
    if path.suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in plain.items()})
    elif path.suffix == ".pt":
        torch.save(plain, path)
    else:
        save_file(plain, path)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file that `write_weights` or an export wrote."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays}
    return torch.load(path, weights_only=True) if path.suffix == ".pt" else load_file(path)


def normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """Return normal numbers, float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def _weights(width: int = WIDTH, d: int = D) -> dict[str, Tensor]:
    """Return W_enc and W_dec [M, d], which resemble each other, and biases; decoder rows have norms around 1.5."""
    w_dec = normal(width, d, seed=1, scale=0.5)
    w_enc = 0.7 * w_dec + normal(width, d, seed=2, scale=0.2)
    return {"e": w_enc, "d": w_dec, "b": normal(width, seed=3, scale=0.3), "c": normal(d, seed=4, scale=0.4)}


def layouts(width: int = WIDTH, d: int = D) -> list[Layout]:
    """Return one SAE of every published layout."""
    w = _weights(width, d)
    theta = normal(width, seed=5).abs() + 0.2
    gate = {
        "g": normal(width, seed=6, scale=0.3),
        "m": normal(width, seed=7, scale=0.3),
        "r": normal(width, seed=8) / 5,
    }
    return [
        *_saelens(w, theta, gate, width, d),
        *_gemma_scope(w, theta),
        *_dictionary_learning(w, theta, gate, width, d),
        *_sparsify(w, width, d),
        *_llamascopium(w, theta, width, d),
        Layout(
            "qwen-scope", "qwen_scope", f"SAE-Res-Qwen3-1.7B-Base-W32K-L0_{K}", {},
            {"W_enc": w["e"], "W_dec": w["d"].T, "b_enc": w["b"], "b_dec": w["c"]}, "topk",
            site="layers.0.residual", model="Qwen/Qwen3-1.7B-Base",
        ),
    ]  # fmt: skip


def _saelens(w, theta, gate, width, d) -> list[Layout]:
    metadata = {"model_name": MODEL, "hook_name": HOOK, "hook_head_index": None, "sae_lens_version": "6.54.12"}
    base = {
        "d_in": d, "d_sae": width, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True,
        "normalize_activations": "none", "reshape_activations": "none", "metadata": metadata,
    }  # fmt: skip
    shared = {"W_enc": w["e"].T, "W_dec": w["d"], "b_dec": w["c"]}
    encoder = shared | {"b_enc": w["b"]}
    jump = encoder | {"threshold": theta}
    gated = shared | {"b_gate": gate["g"], "b_mag": gate["m"], "r_mag": gate["r"]}
    topk = base | {"architecture": "topk", "k": K}
    before_6 = {
        "d_in": d, "d_sae": width, "dtype": "torch.float32", "model_name": MODEL, "hook_point": HOOK,
        "hook_point_head_index": None, "normalize_activations": False, "activation_fn_str": "relu",
    }  # fmt: skip
    scaled = base | {"architecture": "jumprelu", "normalize_activations": "expected_average_only_in"}

    def one(label, config, tensors, architecture, **more):
        return Layout(f"saelens-{label}", "saelens", f"saelens/{label}", config, tensors, architecture, **more)

    unbiased = base | {"architecture": "jumprelu", "apply_b_dec_to_input": False}
    fifth = before_6 | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
    scaler = (("activation_scaler.json", {"scaling_factor": 0.37}),)
    raw = encoder | {"log_threshold": theta.log()}
    return [
        one("standard", base | {"architecture": "standard"}, encoder, "relu"),
        one("jumprelu", base | {"architecture": "jumprelu"}, jump, "jumprelu"),
        one("jumprelu-unbiased", unbiased, jump | {"threshold": theta - 0.6}, "jumprelu"),
        one("jumprelu-log", base | {"architecture": "jumprelu"}, raw, "jumprelu"),
        one("jumprelu-scaled", scaled, jump, "jumprelu", more=scaler),
        one("gated", base | {"architecture": "gated"}, gated, "gated"),
        one("topk", topk | {"rescale_acts_by_decoder_norm": True}, encoder, "topk"),
        one("topk-plain", topk, encoder, "topk"),
        one("version-5", before_6, encoder, "relu"),
        one("version-5-topk", fifth, encoder, "topk"),
    ]


def _gemma_scope(w, theta) -> list[Layout]:
    tensors = {"W_enc": w["e"].T, "W_dec": w["d"], "b_enc": w["b"], "b_dec": w["c"], "threshold": theta}
    lower = {name.lower(): value for name, value in tensors.items()}
    config = {
        "architecture": "jump_relu",
        "model_name": "google/gemma-v3-1b-pt",
        "hf_hook_point_in": "model.layers.3.output",
    }
    repo, average = "gemma-scope-2b-pt-res", "width_16k/average_l0_82"
    third = "google/gemma-3-1b-pt"
    attention = "gemma-scope-9b-it-att/layer_3/width_16k/average_l0_82"
    place = {"site": "layers.3.attention", "model": "google/gemma-2-9b-it"}
    return [
        Layout("gemma-scope", "gemma_scope", f"{repo}/layer_3/{average}", {}, tensors, "jumprelu"),
        Layout("gemma-scope-attention", "gemma_scope", attention, {}, lower, "jumprelu", **place),
        Layout(
            "gemma-scope-embedding", "gemma_scope", f"{repo}/embedding/{average}", {}, tensors, "jumprelu",
            site="model.embed_tokens.output",
        ),
        Layout("gemma-scope-2", "gemma_scope_2", "resid_post/layer_3", config, lower, "jumprelu", model=third),
    ]  # fmt: skip


def _dictionary_learning(w, theta, gate, width, d) -> list[Layout]:
    linear = {"encoder.weight": w["e"], "decoder.weight": w["d"].T}
    topk = linear | {"encoder.bias": w["b"], "b_dec": w["c"], "k": torch.tensor(K, dtype=torch.int32)}
    plain = {"W_enc": w["e"].T, "b_enc": w["b"], "W_dec": w["d"], "b_dec": w["c"]}
    groups = {"group_sizes": torch.tensor([3, 9, width - 12]), "k": topk["k"], "threshold": torch.tensor(0.83)}
    gated = {"gate_bias": gate["g"], "mag_bias": gate["m"], "r_mag": gate["r"], "decoder_bias": w["c"]}
    classes = {
        "AutoEncoder": (linear | {"encoder.bias": w["b"], "bias": w["c"]}, "relu"),
        "AutoEncoderNew": (linear | {"encoder.bias": w["b"], "decoder.bias": w["c"]}, "relu"),
        "GatedAutoEncoder": (linear | gated, "gated"),
        "AutoEncoderTopK": (topk | {"threshold": torch.tensor(-1.0)}, "topk"),
        "BatchTopKSAE": (topk | {"threshold": torch.tensor(0.83)}, "batchtopk"),
        "MatryoshkaBatchTopKSAE": (plain | groups, "matryoshka"),
        "JumpReluAutoEncoder": (plain | {"threshold": theta}, "jumprelu"),
    }
    found = []
    for name, (tensors, architecture) in classes.items():
        trainer = {"dict_class": name, "activation_dim": d, "dict_size": width, "lm_name": MODEL, "layer": 3}
        trainer |= {"submodule_name": "resid_post_layer_3", **({"k": K} if "k" in tensors else {})}
        config = {"trainer": trainer, "buffer": {"ctx_len": 128}}
        found.append(Layout(name, "dictionary_learning", f"{name}/trainer_0", config, tensors, architecture))
    return found


def _sparsify(w, width, d) -> list[Layout]:
    config = {
        "activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": width, "k": K,
        "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": d,
    }  # fmt: skip
    tensors = {"encoder.weight": w["e"], "encoder.bias": w["b"], "W_dec": w["d"], "b_dec": w["c"]}
    return [
        Layout("sparsify", "sparsify", "run/layers.3", config, tensors, "topk", model=None),
        Layout("sparsify-mlp", "sparsify", "run/h.3.mlp", config, tensors, "topk", site="layers.3.mlp", model=None),
    ]


def _llamascopium(w, theta, width, d) -> list[Layout]:
    base = {
        "sae_type": "sae", "d_model": d, "expansion_factor": width / d, "use_decoder_bias": True, "top_k": K,
        "use_glu_encoder": False, "hook_point_in": HOOK, "hook_point_out": HOOK,
    }  # fmt: skip
    tensors = {"W_E": w["e"].T, "b_E": w["b"], "W_D": w["d"], "b_D": w["c"]}
    norm = {f"dataset_average_activation_norm.{HOOK}": torch.tensor(7.3)}
    jump = tensors | {"activation_function.log_jumprelu_threshold": theta.log()}

    def one(label, architecture, tensors, kind, has_norms):
        config = base | {"act_fn": architecture, "norm_activation": kind, "sparsity_include_decoder_norm": has_norms}
        scales = architecture == "topk" and has_norms
        return Layout(
            f"llamascopium-{label}", "llamascopium", f"llamascopium/{label}", config, tensors, architecture,
            model=None, scales_features=scales,
        )  # fmt: skip

    without = {name: value for name, value in tensors.items() if name != "b_D"}
    unbiased = one("relu-unbiased", "relu", without, "inference", True)
    unbiased.config["use_decoder_bias"] = False
    return [
        one("relu", "relu", tensors | norm, "dataset-wise", True),
        unbiased,
        one("jumprelu", "jumprelu", jump | norm, "dataset-wise", True),
        one("jumprelu-plain", "jumprelu", jump, "inference", False),
        one("topk", "topk", tensors | norm, "dataset-wise", True),
        one("topk-plain", "topk", tensors, "inference", False),
    ]


LAYOUTS = layouts()
