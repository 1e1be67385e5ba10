"""Qwen Scope — https://huggingface.co/collections/Qwen/qwen-scope — TopK SAEs of Qwen 3

    SAE-Res-MODEL-W32K-L0_50/layerN.sae.pt   W_enc [M, d], W_dec [d, M], b_enc [M], b_dec [d]

There is no input bias. k, the model and the site stand in the names of the repository and of the file alone: L0_50 and
layerN. Without them the SAE is refused, because it would compute something else. Read, not written.
"""

from __future__ import annotations

import re
from pathlib import Path

from jumpahead.errors import ArtefactError, StudyError
from jumpahead.interchange.common_form import CommonForm, check_count, take_matrices, to_sae
from jumpahead.interchange.format import Format, SAEFiles, known_of
from jumpahead.interchange.weights import WeightsFile
from jumpahead.sae.saved import SAE

_REPO = re.compile(r"SAE-Res-([\w.-]+)-W\d+K-L0_(\d+)(?![\w.])")
_FILE = re.compile(r"layer(\d+)\.sae\.pt")


class QwenScopeFormat(Format):
    """The format of Qwen Scope; layout in the module's docstring."""

    name, title = "qwen_scope", "Qwen Scope"
    weights = "layer0.sae.pt"
    files = ("layer0.sae.pt",)

    @classmethod
    def recognises(cls, files: SAEFiles) -> bool:
        return bool(_FILE.fullmatch(files.file)) or files.holds(cls.weights)

    @classmethod
    def read(cls, files: SAEFiles) -> SAE:
        path = files.path(files.file or cls.weights)
        where = files.address if files.address.startswith("hf://") else files.folder.resolve().as_posix()
        repo, layer = _REPO.search(where), _FILE.fullmatch(path.name)
        if repo is None or layer is None:
            raise ArtefactError(f"{path}: its folder's name does not say k: keep a name like SAE-Res-MODEL-W32K-L0_50.")
        weights = WeightsFile.read(path)
        width, d = weights.matrix_shape("W_enc")
        params = take_matrices(weights, "W_enc", "W_dec", width, d, is_encoder_by_row=True, is_decoder_by_row=False)
        params |= {"b_enc": weights.take("b_enc", width), "b_dec": weights.take("b_dec", d)}
        weights.finish("a TopK SAE of Qwen Scope")
        error = ArtefactError(f"{path}: L0_{repo[2]} in the name of its folder is no number of {width} features.")
        k = check_count(int(repo[2]), width, error)
        known = known_of(cls, files, f"Qwen/{repo[1]}", f"layers.{layer[1]}.residual", made_by="Qwen Scope")
        return to_sae(CommonForm("topk", params, k), known)

    @classmethod
    def write(cls, sae: SAE, folder: Path) -> None:
        raise StudyError(
            f"An SAE of architecture '{sae.architecture}' cannot be exported to {cls.title}, which is read only: "
            "name another format."
        )


FORMAT = QwenScopeFormat
