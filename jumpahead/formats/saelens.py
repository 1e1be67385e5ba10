"""SAELens — https://github.com/decoderesearch/SAELens — versions 5 and 6

    cfg.json                  architecture, d_in, d_sae, apply_b_dec_to_input, normalize_activations, metadata, …
    sae_weights.safetensors   W_enc [d, M], b_enc [M], W_dec [M, d], b_dec [d]; jumprelu: threshold [M]; gated: b_gate,
                              b_mag and r_mag [M] instead of b_enc

Read: standard, jumprelu, gated and topk, which also are what BatchTopK and Matryoshka SAEs are exported as. The input
bias is b_dec if `apply_b_dec_to_input`, true where it is missing. Decoder norms, if topk selects by π·‖d_j‖, are
folded into W_enc and W_dec; a scale in activation_scaler.json (checkpoints of a training) into all.
`normalize_activations` that depends on the token is refused: no SAE without it computes the same.

Written: version 6, in float32, with `apply_b_dec_to_input` if the SAE has an input bias.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jumpahead.interchange.common_form import CommonForm, check_count, common_form, take_matrices, to_sae
from jumpahead.interchange.config_file import ConfigFile
from jumpahead.interchange.format import Format, SAEFiles, known_of
from jumpahead.interchange.hook_names import transformer_lens_name
from jumpahead.interchange.weights import WeightsFile
from jumpahead.sae.parameters import Params
from jumpahead.sae.saved import SAE
from jumpahead.storage.json_files import write_json
from jumpahead.storage.tensors import write_tensors

VERSION = "6.54.12"
"""The version of SAELens that writes the files that this module writes."""
ACTIVATIONS = {"standard": "relu", "jumprelu": "jumprelu", "gated": "gated", "topk": "topk"}
"""Activation function of each architecture of SAELens that is read and written."""
_VECTORS = {"relu": ("b_enc",), "topk": ("b_enc",), "jumprelu": ("b_enc", "threshold"), "gated": ("b_mag", "r_mag")}
_RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
"""Keys of versions before 6."""


class SAELensFormat(Format):
    """The format of SAELens; layout in the module's docstring."""

    name, title = "saelens", "SAELens"
    weights = "sae_weights.safetensors"
    files = ("cfg.json", "sae_weights.safetensors", "activation_scaler.json")

    @classmethod
    def recognises(cls, files: SAEFiles) -> bool:
        is_llamascopium = files.path("config.json").is_file() and not files.path("cfg.json").is_file()
        return files.holds(cls.weights) and not is_llamascopium

    @classmethod
    def read(cls, files: SAEFiles) -> SAE:
        config, metadata, version = _read_config(files.path("cfg.json"))
        activation = ACTIVATIONS[_architecture(config)]
        weights = WeightsFile.read(files.path(cls.weights))
        d, width = weights.matrix_shape("W_enc")
        config.must_equal("d_in", d, "W_enc has")
        config.must_equal("d_sae", width, "W_enc has")
        params = _read_params(weights, activation, width, d)
        k = 0
        if activation == "topk":
            k = config.count("k")
            check_count(k, width, config.error("k", f"is {k}, more than the {width} features"))
            if config.flag("rescale_acts_by_decoder_norm", False):
                params = _with_norms_folded(params)
        bias = params["b_dec"] if config.flag("apply_b_dec_to_input", True) else None
        sae = to_sae(CommonForm(activation, params, k, bias), _known(cls, files, metadata, version))
        return _with_scale_folded(sae, config, files)

    @classmethod
    def write(cls, sae: SAE, folder: Path) -> None:
        form = common_form(sae, cls.title)
        names = {activation: name for name, activation in ACTIVATIONS.items()}
        has_bias, site = form.input_bias is not None, sae.location.site
        p = form.with_input_bias(form.params["b_dec"]) if has_bias else form.params
        tensors = {"W_enc": p["W_enc"].T.contiguous(), "W_dec": p["W_dec"], "b_dec": p["b_dec"]}
        tensors["b_gate" if form.activation == "gated" else "b_enc"] = p["b_enc"]
        tensors |= {name: p[name] for name in _VECTORS[form.activation] if name != "b_enc"}
        hook = transformer_lens_name(site) if site else None
        config = {
            "architecture": names[form.activation],
            "d_in": sae.d,
            "d_sae": sae.width,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": has_bias,
            "normalize_activations": "none",
            "reshape_activations": "hook_z" if hook and hook.endswith("hook_z") else "none",
            **({"k": form.k, "rescale_acts_by_decoder_norm": False} if form.activation == "topk" else {}),
            "metadata": _metadata(sae, hook),
        }
        write_tensors(folder / cls.weights, tensors)
        write_json(folder / "cfg.json", config, has_checksum=False)


def _read_config(path: Path) -> tuple[ConfigFile, ConfigFile, str]:
    """Return the configuration with the keys of version 6, its metadata, and the version that wrote it.

    Raises ArtefactError for a version after 6, and for anything that the SAE would need at every token.
    """
    config = ConfigFile.read(path)
    metadata = config.table("metadata", {})
    version = config.text("sae_lens_version", None) or metadata.text("sae_lens_version", None) or "5"
    major = version.partition(".")[0]
    if not major.isdecimal() or int(major) > 6:
        raise config.error("sae_lens_version", f"is '{version[:20]}': only SAELens up to version 6 can be read")
    if int(major) < 6:
        values = {_RENAMED.get(key, key): value for key, value in config.values.items()}
        if values.get("activation_fn") == "topk" and isinstance(values.get("activation_fn_kwargs"), dict):
            values |= {"architecture": "topk", "k": values["activation_fn_kwargs"].get("k")}
        config = metadata = ConfigFile(path, {"architecture": "standard", **values})
        config.refuse("finetuning_scaling_factor", "features scaled after training cannot be read")
        if config.text("activation_fn", "relu") not in ("relu", "topk"):
            raise config.error("activation_fn", f"is {config.text('activation_fn')!r}: only relu and topk can be read")
    if metadata.has("hook_head_index"):
        raise metadata.error("hook_head_index", "is set: an SAE of a single attention head cannot be read")
    config.choice("reshape_activations", ("none", "hook_z"), "none")
    _check_normalisation(config)
    return config, metadata, version


def _architecture(config: ConfigFile) -> str:
    """Return the architecture. Raises ArtefactError, naming it, if it cannot be read."""
    name = config.text("architecture")
    if name in ("batchtopk", "matryoshka_batchtopk"):
        raise config.error("architecture", f"is '{name}', a checkpoint of a training: save_inference_model exports it")
    return config.choice("architecture", tuple(ACTIVATIONS))


def _check_normalisation(config: ConfigFile) -> None:
    """Raise ArtefactError if activations are normalised per token, or whitened."""
    value = config.values.get("normalize_activations")
    if value in (None, False, True, "none", "expected_average_only_in"):
        return
    raise config.error(
        "normalize_activations",
        f"is '{str(value)[:40]}', which depends on the token: no SAE that takes the model's own activations equals it",
    )


def _read_params(weights: WeightsFile, activation: str, width: int, d: int) -> Params:
    """Return the parameters of an activation function, with jumpahead's names and orientation."""
    params = take_matrices(
        weights, "W_enc", "W_dec", width, d, is_encoder_by_row=False, is_decoder_by_row=True
    ) | {"b_dec": weights.take("b_dec", d)}  # fmt: skip
    if activation == "gated":
        params["b_enc"] = weights.take("b_gate", width)
    for name in _VECTORS[activation]:
        if name == "threshold" and name not in weights and "log_threshold" in weights:  # of a training before 6.54
            params[name] = weights.take("log_threshold", width).exp()
        else:
            params[name] = weights.take(name, width)
    weights.finish(f"an SAE of the architecture in cfg.json, {activation}")
    return params


def _with_norms_folded(params: Params) -> Params:
    """Return the parameters of TopK with unit decoder rows and π·‖d_j‖ in the place of π."""
    norms = params["W_dec"].norm(dim=1).clamp_min(1e-8)
    return params | {
        "W_enc": params["W_enc"] * norms[:, None],
        "W_dec": params["W_dec"] / norms[:, None],
        "b_enc": params["b_enc"] * norms,
    }


def _with_scale_folded(sae: SAE, config: ConfigFile, files: SAEFiles) -> SAE:
    """Return the SAE for unscaled activations. Raises ArtefactError if it takes scaled ones, of unknown scale."""
    if config.values.get("normalize_activations") not in (True, "expected_average_only_in"):
        return sae
    if not files.path("activation_scaler.json").is_file():
        raise config.error(
            "normalize_activations",
            "is 'expected_average_only_in', and there is no activation_scaler.json with the scale",
        )
    scaler = ConfigFile.read(files.path("activation_scaler.json"))
    scale = scaler.number("scaling_factor")
    if not scale > 0:
        raise scaler.error("scaling_factor", f"must be positive, not {scale:g}")
    p = sae.params
    scaled = {"W_enc": p["W_enc"] * scale} | {
        name: p[name] / scale for name in ("W_dec", "b_dec", "b_pre") if name in p
    }
    return SAE(sae.arch, p | scaled, sae.about)


def _known(format_: type[Format], files: SAEFiles, metadata: ConfigFile, version: str) -> dict[str, Any]:
    """Return what is known of the SAE: model, site and how it was made."""
    return known_of(
        format_, files, metadata.text("model_name", None), metadata.text("hook_name", None),
        made_by=f"SAELens {version}", trained_as=metadata.text("training_architecture", None),
        neuronpedia_id=metadata.text("neuronpedia_id", None),
    )  # fmt: skip


def _metadata(sae: SAE, hook: str | None) -> dict[str, Any]:
    """Return the metadata of the exported SAE. hook: the site's name in TransformerLens."""
    lm = sae.about.get("lm") or {}
    bos = lm.get("bos")
    known = {
        "model_name": lm.get("model"),
        "hook_name": hook,
        "context_size": lm.get("context"),
        "prepend_bos": None if bos is None else bos == "auto",
        "dataset_path": None,
        "training_architecture": sae.architecture,
        "neuronpedia_id": sae.about.get("neuronpedia_id"),
    }
    known = {name: value for name, value in known.items() if value is not None}
    return {**known, "hook_head_index": None, "sae_lens_version": VERSION, "sae_lens_training_version": None}


FORMAT = SAELensFormat
