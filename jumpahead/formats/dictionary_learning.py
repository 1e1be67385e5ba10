"""dictionary_learning — https://github.com/saprmarks/dictionary_learning

    config.json   {"trainer": {"dict_class", "k", "lm_name", "layer", "submodule_name", …}, "buffer": {…}}
    ae.pt         a state dict; checkpoints are ae_STEP.pt, with the config.json in the folder above theirs

    dict_class                              tensors                                                        input bias
    AutoEncoder                             encoder.weight, encoder.bias, decoder.weight, bias             bias
    AutoEncoderNew                          encoder.weight, encoder.bias, decoder.weight, decoder.bias     none
    GatedAutoEncoder                        encoder.weight, gate_bias, mag_bias, r_mag, decoder.weight,    decoder_bias
                                            decoder_bias
    AutoEncoderTopK, BatchTopKSAE           encoder.weight, encoder.bias, decoder.weight, b_dec, k,        b_dec
                                            threshold
    MatryoshkaBatchTopKSAE                  W_enc, b_enc, W_dec, b_dec, k, threshold, group_sizes          b_dec
    JumpReluAutoEncoder                     W_enc, b_enc, W_dec, b_dec, threshold                          none

encoder.weight [M, d], decoder.weight [d, M], W_enc [d, M], W_dec [M, d]. Scales are folded in. TopK selects the k
largest; BatchTopK and Matryoshka have one threshold, −1 where none was learned, which is refused. An AutoEncoder is
read with unit decoder rows, as dictionary_learning itself loads it. `ae.pt` is read by torch's restricted reader
(interchange/weights.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jumpahead.interchange.common_form import (
    CommonForm,
    check_count,
    common_form,
    require,
    take_matrices,
    to_sae,
)
from jumpahead.interchange.config_file import ConfigFile
from jumpahead.interchange.format import Format, SAEFiles, known_of
from jumpahead.interchange.weights import WeightsFile
from jumpahead.sae.architectures.matryoshka import MatryoshkaOptions
from jumpahead.sae.recipe import Setting
from jumpahead.sae.saved import SAE
from jumpahead.storage.atomic import write_atomic
from jumpahead.storage.json_files import write_json

Known = dict[str, Any]


class DictionaryLearningFormat(Format):
    """The format of dictionary_learning; layout in the module's docstring."""

    name, title = "dictionary_learning", "dictionary_learning"
    weights = "ae.pt"
    files = ("config.json", "ae.pt")

    @classmethod
    def recognises(cls, files: SAEFiles) -> bool:
        return files.holds(cls.weights) or (files.file.startswith("ae_") and files.file.endswith(".pt"))

    @classmethod
    def read(cls, files: SAEFiles) -> SAE:
        beside = files.path("config.json")
        is_checkpoint = files.file not in ("", cls.weights) and not beside.is_file()
        config = ConfigFile.read(files.folder.parent / "config.json" if is_checkpoint else beside)
        trainer = config.table("trainer")
        read = _READERS[trainer.choice("dict_class", tuple(_READERS))]
        weights = WeightsFile.read(files.path(files.file or cls.weights))
        known = known_of(
            cls, files, trainer.text("lm_name", None), _site(trainer), made_by="dictionary_learning",
            trained_as=trainer.text("dict_class"),
        )  # fmt: skip
        sae = read(weights, trainer, known)
        trainer.must_equal("activation_dim", sae.d, "the weights have")
        trainer.must_equal("dict_size", sae.width, "the weights have")
        weights.finish(f"a dictionary of the class {trainer.text('dict_class')}")
        return sae

    @classmethod
    def write(cls, sae: SAE, folder: Path) -> None:
        form = common_form(sae, cls.title)
        require(form, ("relu", "jumprelu", "topk", "gated"), cls.title, sae)
        dict_class, tensors = _state_dict(form)
        location = sae.location
        trainer = {
            "dict_class": dict_class,
            "activation_dim": sae.d,
            "dict_size": sae.width,
            **({"k": form.k} if form.activation == "topk" else {}),
            "lm_name": location.lm,
            **_layer_of(location.site),
        }
        contiguous = {name: value.contiguous() for name, value in tensors.items()}
        write_atomic(folder / cls.weights, lambda path: torch.save(contiguous, path))
        lm = sae.about.get("lm") or {}
        config = {"trainer": trainer, "buffer": {"ctx_len": lm.get("context")}}
        write_json(folder / "config.json", config, has_checksum=False)


# ---------------------------------------------------------------------------------------------- reading


def _linear(weights: WeightsFile) -> tuple[dict[str, Tensor], int, int]:
    """Return W_enc and W_dec of the linear layers `encoder` and `decoder`, and their width and d."""
    width, d = weights.matrix_shape("encoder.weight")
    matrices = take_matrices(
        weights, "encoder.weight", "decoder.weight", width, d, is_encoder_by_row=True, is_decoder_by_row=False
    )
    return matrices, width, d


def _parameters(weights: WeightsFile) -> tuple[dict[str, Tensor], int, int]:
    """Return W_enc, b_enc, W_dec and b_dec of a dictionary without linear layers, and their width and d."""
    d, width = weights.matrix_shape("W_enc")
    params = take_matrices(weights, "W_enc", "W_dec", width, d, is_encoder_by_row=False, is_decoder_by_row=True)
    return params | {"b_enc": weights.take("b_enc", width), "b_dec": weights.take("b_dec", d)}, width, d


def _auto_encoder(weights: WeightsFile, trainer: ConfigFile, known: Known) -> SAE:
    """Return the SAE of an AutoEncoder, with unit decoder rows."""
    params, width, d = _linear(weights)
    params |= {"b_enc": weights.take("encoder.bias", width), "b_dec": weights.take("bias", d)}
    return to_sae(CommonForm("relu", params, input_bias=params["b_dec"]), known).with_unit_decoder_rows()


def _auto_encoder_new(weights: WeightsFile, trainer: ConfigFile, known: Known) -> SAE:
    """Return the SAE of an AutoEncoderNew."""
    params, width, d = _linear(weights)
    params |= {"b_enc": weights.take("encoder.bias", width), "b_dec": weights.take("decoder.bias", d)}
    return to_sae(CommonForm("relu", params), known)


def _gated(weights: WeightsFile, trainer: ConfigFile, known: Known) -> SAE:
    """Return the SAE of a GatedAutoEncoder."""
    params, width, d = _linear(weights)
    stored = {"b_enc": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag"}
    params |= {name: weights.take(theirs, width) for name, theirs in stored.items()}
    params["b_dec"] = weights.take("decoder_bias", d)
    return to_sae(CommonForm("gated", params, input_bias=params["b_dec"]), known)


def _topk(weights: WeightsFile, trainer: ConfigFile, known: Known) -> SAE:
    """Return the SAE of an AutoEncoderTopK."""
    params, width, d = _linear(weights)
    params |= {"b_enc": weights.take("encoder.bias", width), "b_dec": weights.take("b_dec", d)}
    if "threshold" in weights:
        weights.number("threshold")  # an estimate, which the k largest are not chosen by
    return to_sae(CommonForm("topk", params, _k(weights, trainer, width), params["b_dec"]), known)


def _batch_topk(weights: WeightsFile, trainer: ConfigFile, known: Known) -> SAE:
    """Return the SAE of a BatchTopKSAE."""
    params, width, d = _linear(weights)
    params |= {"b_enc": weights.take("encoder.bias", width), "b_dec": weights.take("b_dec", d)}
    params["threshold"] = _one_threshold(weights, width)
    setting = Setting("k", float(_k(weights, trainer, width)))
    return to_sae(CommonForm("jumprelu", params, input_bias=params["b_dec"]), known, "batchtopk", setting=setting)


def _matryoshka(weights: WeightsFile, trainer: ConfigFile, known: Known) -> SAE:
    """Return the SAE of a MatryoshkaBatchTopKSAE."""
    params, width, _ = _parameters(weights)
    params["threshold"] = _one_threshold(weights, width)
    sizes = weights.integers("group_sizes")
    if min(sizes, default=0) < 1 or sum(sizes) != width:
        raise weights.error("group_sizes", f"holds {sizes[:9]}, which are no groups of {width} features")
    options = MatryoshkaOptions(groups=tuple(size / width for size in sizes))
    setting = Setting("k", float(_k(weights, trainer, width)))
    form = CommonForm("jumprelu", params, input_bias=params["b_dec"])
    return to_sae(form, known, "matryoshka", options, setting)


def _jumprelu(weights: WeightsFile, trainer: ConfigFile, known: Known) -> SAE:
    """Return the SAE of a JumpReluAutoEncoder."""
    params, width, _ = _parameters(weights)
    return to_sae(CommonForm("jumprelu", params | {"threshold": weights.take("threshold", width)}), known)


_READERS: dict[str, Callable[[WeightsFile, ConfigFile, Known], SAE]] = {
    "AutoEncoder": _auto_encoder,
    "AutoEncoderNew": _auto_encoder_new,
    "GatedAutoEncoder": _gated,
    "AutoEncoderTopK": _topk,
    "BatchTopKSAE": _batch_topk,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "JumpReluAutoEncoder": _jumprelu,
}


def _k(weights: WeightsFile, trainer: ConfigFile, width: int) -> int:
    """Return k. Raises ArtefactError if it is in neither file, if the files differ, or if it is above the width."""
    stored = int(weights.number("k")) if "k" in weights else None
    given = trainer.count("k", stored)
    if given is None:
        raise trainer.error("k", "is missing, and so is 'k' in the weights")
    if stored not in (None, given):
        raise trainer.error("k", f"is {given}, but the weights have {stored}")
    return check_count(given, width, trainer.error("k", f"is {given}, which is no number of {width} features"))


def _one_threshold(weights: WeightsFile, width: int) -> Tensor:
    """Return the threshold of all features, [M]. Raises ArtefactError if none was learned."""
    threshold = weights.number("threshold")
    if threshold < 0:
        raise weights.error("threshold", f"is {threshold:g}: the training was too short to learn one")
    return torch.full((width,), threshold)


def _site(trainer: ConfigFile) -> str | None:
    """Return the site's name; None where the configuration does not say it."""
    layer, name = trainer.values.get("layer"), trainer.text("submodule_name", None) or "resid_post"
    kinds = {"resid": "residual", "mlp": "mlp"}
    kind = next((kinds[part] for part in kinds if name.startswith(part)), None)
    return f"layers.{layer}.{kind}" if isinstance(layer, int) and kind else trainer.text("submodule_name", None)


# ---------------------------------------------------------------------------------------------- writing


def _state_dict(form: CommonForm) -> tuple[str, dict[str, Tensor]]:
    """Return the class of dictionary that computes the same, and its tensors.

    Where that class subtracts an input bias, it is b_dec, and the encoder's biases are changed accordingly.
    """
    p = form.with_input_bias(None)
    if form.activation == "jumprelu":
        return "JumpReluAutoEncoder", {**p, "W_enc": p["W_enc"].T}
    linear = {"encoder.weight": p["W_enc"], "decoder.weight": p["W_dec"].T}
    if form.activation == "relu":
        return "AutoEncoderNew", linear | {"encoder.bias": p["b_enc"], "decoder.bias": p["b_dec"]}
    shifted = form.with_input_bias(p["b_dec"])
    if form.activation == "topk":
        own = {"encoder.bias": shifted["b_enc"], "b_dec": p["b_dec"]}
        return "AutoEncoderTopK", linear | own | {"k": torch.tensor(form.k).int(), "threshold": torch.tensor(-1.0)}
    biases = {"gate_bias": shifted["b_enc"], "mag_bias": shifted["b_mag"], "r_mag": p["r_mag"]}
    return "GatedAutoEncoder", linear | biases | {"decoder_bias": p["b_dec"]}


def _layer_of(site: str | None) -> dict[str, Any]:
    """Return the fields of the configuration that name a site."""
    parts = (site or "").split(".")
    if len(parts) == 3 and parts[0] == "layers" and parts[2] in ("residual", "mlp"):
        name = {"residual": "resid_post", "mlp": "mlp_out"}[parts[2]]
        return {"layer": int(parts[1]), "submodule_name": f"{name}_layer_{parts[1]}"}
    return {"layer": None, "submodule_name": site}


FORMAT = DictionaryLearningFormat
