"""sparsify — https://github.com/EleutherAI/sparsify — TopK SAEs

    HOOKPOINT/cfg.json          k, d_in, num_latents (0: d_in·expansion_factor), activation, transcode, …
    HOOKPOINT/sae.safetensors   encoder.weight [M, d], encoder.bias [M], W_dec [M, d], b_dec [d]

The input bias is b_dec. HOOKPOINT is the path of a module in the model, whose output is the site: `layers.3`. The files
do not name the model. Transcoders, skip connections and the activation `groupmax` are refused.
"""

from __future__ import annotations

from pathlib import Path

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
from jumpahead.sae.saved import SAE
from jumpahead.storage.json_files import write_json
from jumpahead.storage.tensors import write_tensors


class SparsifyFormat(Format):
    """The format of sparsify; layout in the module's docstring."""

    name, title = "sparsify", "sparsify"
    weights = "sae.safetensors"
    files = ("cfg.json", "sae.safetensors")

    @classmethod
    def read(cls, files: SAEFiles) -> SAE:
        config = ConfigFile.read(files.path("cfg.json"))
        config.choice("activation", ("topk",), "topk")
        for key, what in {
            "transcode": "a transcoder",
            "skip_connection": "a skip connection",
            "signed": "signed k",
        }.items():
            config.refuse(key, f"{what} cannot be read")
        weights = WeightsFile.read(files.path(cls.weights))
        width, d = weights.matrix_shape("encoder.weight")
        config.must_equal("d_in", d, "encoder.weight has")
        if config.values.get("num_latents"):
            config.must_equal("num_latents", width, "encoder.weight has")
        else:
            config.must_equal("expansion_factor", width // d, "encoder.weight has a width of d times")
        params = take_matrices(
            weights, "encoder.weight", "W_dec", width, d, is_encoder_by_row=True, is_decoder_by_row=True
        )
        params |= {"b_enc": weights.take("encoder.bias", width), "b_dec": weights.take("b_dec", d)}
        weights.finish("an SAE of sparsify")
        k = config.count("k")
        check_count(k, width, config.error("k", f"is {k}, more than the {width} features"))
        known = known_of(cls, files, None, _site(files), made_by="sparsify")
        return to_sae(CommonForm("topk", params, k, params["b_dec"]), known)

    @classmethod
    def write(cls, sae: SAE, folder: Path) -> None:
        form = common_form(sae, cls.title)
        require(form, ("topk",), cls.title, sae)
        p = form.with_input_bias(form.params["b_dec"])
        tensors = {"encoder.weight": p["W_enc"], "encoder.bias": p["b_enc"], "W_dec": p["W_dec"], "b_dec": p["b_dec"]}
        config = {
            "activation": "topk",
            "expansion_factor": max(1, sae.width // sae.d),
            "normalize_decoder": True,
            "num_latents": sae.width,
            "k": form.k,
            "multi_topk": False,
            "skip_connection": False,
            "transcode": False,
            "d_in": sae.d,
        }
        write_tensors(folder / cls.weights, tensors)
        write_json(folder / "cfg.json", config, has_checksum=False)


def _site(files: SAEFiles) -> str | None:
    """Return the site that the folder's name says: the output of a module; None if it is no path of a module."""
    name = files.folder.name
    is_module = any(part.isdecimal() for part in name.split(".")) and "." in name
    return f"{name}.output" if is_module else None


FORMAT = SparsifyFormat
