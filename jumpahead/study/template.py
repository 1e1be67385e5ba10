"""The study that `jumpahead init` writes for a model, commented so that it can be edited without a manual."""

from __future__ import annotations

import json
import re
from pathlib import Path

from jumpahead.errors import StudyError, did_you_mean
from jumpahead.lm.config import LMConfig
from jumpahead.lm.model_files import cached_config_dir
from jumpahead.lm.model_shape import ModelShape, read_model_shape
from jumpahead.lm.sites import KINDS, Site, parse_site
from jumpahead.study.text_hints import SEPARATORS, TextHints, read_text_hints
from jumpahead.text.config import TextConfig
from jumpahead.text.sources import source_of

FEATURES_PER_DIMENSION = 16
"""Default width, in multiples of d: below it, features are not rare and the frontier unlike a large model's."""
MIN_TRAIN_TOKENS, MAX_TRAIN_TOKENS = 100_000, 10_000_000
"""Limits of the suggested number of training tokens, which is that of the text if it lies between them."""
MIN_WIDTH_PER_L0 = 128
"""Lower bound of width / L0 for the suggested settings, for the same reason."""

STUDY = """\
# A study for {model}: which sparse autoencoder to train on {location}, and what it costs.
#
#     jumpahead plan {name}.toml                       SAEs, tokens, memory, disk and time, before any work
#     jumpahead run {name}.toml                        may be interrupted: the same command continues
#     jumpahead ask runs/{name} --delta-loss 0.2       the cost of each architecture at that loss
#
# Any key can be overridden: --set train.tokens=10_000_000

name = {name_toml}

[lm]
model = {model_toml}
# context = {context:<20}  tokens per context; the model's maximum, at most 1024, by default
dtype = "fast"  # bfloat16 if it is faster on this machine and does not change the model's loss, else float32

[text]
# stdlib (this machine's Python library); a UTF-8 text, JSON Lines or Parquet file, or a folder of them; hf:owner/name,
# a Hugging Face dataset; - for standard input
source = {text_toml}
{text_keys}
# max_tokens = 20_000_000         upper limit of the training tokens that are read
held_out = 0.1  # share of the documents that is used for evaluation only

[activations]
sites = [{site_toml}]  # {site_comment}; one panel per site
origin = "live"  # the model runs while the SAEs train; "shards" keeps activations on disk

[sae]
width = [{width}]  # features per SAE: {width_comment}; one panel per width
seed = [0]  # seeds of the initialisation; with several, intervals cover them too

[train]
tokens = {tokens}  # activations per SAE{tokens_comment}
batch = 2048
recipe = "short"  # "paper": the published hyper-parameters, for billions of tokens

[evaluate]
tokens = 100_000  # held-out tokens scored with each SAE spliced into the model

# One [[series]] is one curve. l0 requests mean numbers of active features per token. Instead, lambda = [...] fixes the
# sparsity coefficient of jumprelu and gated, and k = [...] the number of features that topk keeps per token.

[[series]]
architecture = "jumprelu"
l0 = {l0}

[[series]]
architecture = "gated"
l0 = {l0}

[[series]]
architecture = "topk"
l0 = {l0}
"""


def render_study(
    model: str, layer: int | None = None, kind: str = "residual", text: str = "stdlib", width: int | None = None
) -> tuple[str, str]:
    """Return the name and the TOML of a study of one site. Raises StudyError or SiteError for arguments that cannot be.

    kind: residual, mlp or attention of block `layer`, by default the middle block; or the full name of a site. Only the
    config.json of a model on the hub is fetched; without it, `layer` is required and the width is a default.
    """
    if problem := source_of(TextConfig(source=text)).problem():
        raise StudyError(f"--text {text}, {problem}: give stdlib, a file or a folder of text, JSON Lines or Parquet, "
                         "hf:owner/name, or -.")  # fmt: skip
    shape = _shape(LMConfig(model=model), is_needed=layer is None and kind in KINDS)
    site = _site(layer, kind, shape)
    d = shape.width_at(site) if shape else None
    width = width or (FEATURES_PER_DIMENSION * d if d else 16_384)
    name = _study_name(model, site)
    hints = read_text_hints(text)
    tokens = min(MAX_TRAIN_TOKENS, max(MIN_TRAIN_TOKENS, _round_down(0.9 * hints.tokens))) if hints.tokens else None
    content = STUDY.format(
        text_keys=_text_keys(hints),
        tokens=f"{tokens or MAX_TRAIN_TOKENS:_}",
        tokens_comment="; `plan` says how often the text is repeated"
        if tokens in (None, MIN_TRAIN_TOKENS, MAX_TRAIN_TOKENS)
        else ": about all of the text, once; `plan` counts it",
        name=name,
        name_toml=json.dumps(name),
        model=model,
        model_toml=json.dumps(model, ensure_ascii=False),
        text_toml=json.dumps(text, ensure_ascii=False),
        location=site.key if site.layer is None else f"block {site.layer}",
        context=min(1024, shape.max_context) if shape else 1024,
        site_toml=json.dumps(site.key),
        site_comment=_site_comment(site, shape, d),
        width=width,
        width_comment=f"{width / d:g} × the site's {d} dimensions" if d else "16 × the site's dimensions is a start",
        l0=_l0_settings(width),
    )
    return name, "\n".join(map(_align_comment, content.split("\n")))


def _text_keys(hints: TextHints) -> str:
    """Return the lines of `[text]` on column, chat and separator: those that the text needs, the others as comments."""
    column = f"column = {json.dumps(hints.column or 'text')}"
    chat = f"chat = {json.dumps(list(hints.chat or ('assistant',)))}"
    separator = f"separator = {json.dumps(hints.separator or SEPARATORS[0])}"
    lines = [
        (hints.column, column, "the column of the text in JSON Lines, Parquet and datasets"),
        (hints.chat, chat, "the column holds conversations: roles that are trained on"),
        (hints.separator, separator, "the separator of documents in a file; by default a file is one document"),
    ]
    return "\n".join(f"{key}  # {comment}" if found else f"# {key:<32}{comment}" for found, key, comment in lines)


def _round_down(value: float) -> int:
    """Return a number rounded down to two significant digits."""
    unit = 10 ** max(0, len(str(int(value))) - 2)
    return int(value) // unit * unit


def _shape(config: LMConfig, is_needed: bool) -> ModelShape | None:
    """Return the model's shape; None if it cannot be read and is not needed. Raises StudyError if it is needed."""
    try:
        return read_model_shape(config, download=True)
    except StudyError:
        if is_needed or cached_config_dir(config) is not None:
            raise
        return None


def _site(layer: int | None, kind: str, shape: ModelShape | None) -> Site:
    """Return the requested site; by default of the middle block. Raises StudyError or SiteError if it cannot exist."""
    if "." in kind:
        if layer is not None:
            raise StudyError(f"--site {kind} names the whole site: leave --layer out.")
        return parse_site(kind)
    if kind not in KINDS:
        raise StudyError(f"--site {kind}: there is no such site.{did_you_mean(kind, KINDS)}")
    if layer is None:
        assert shape is not None
        layer = (shape.num_blocks - 1) // 2
    return Site(layer, kind)


def _align_comment(line: str) -> str:
    """Return `key = value  # comment` with the comment at a fixed column, or above if the value is long."""
    code, _, comment = line.partition("  # ")
    if not comment or line.startswith("#     "):
        return line
    beside = f"{code:<34}# {comment}"
    return beside if len(code) < 34 and len(beside) <= 120 else f"# {comment}\n{code}"


def _study_name(model: str, site: Site) -> str:
    """Return a study's name, fit for a folder: `gemma-2-2b-12-mlp`, `gpt2-transformer.h.3.mlp.c_fc.output`."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model).name).strip(".-") or "study"
    if site.layer is None:
        return f"{stem}-{site.key}"
    return f"{stem}-{site.layer}" + ("" if site.kind == "residual" else f"-{site.kind}")


def _site_comment(site: Site, shape: ModelShape | None, d: int | None) -> str:
    """Return what the activations at a site are, their dimensions and the model's number of blocks."""
    meaning = {
        "residual": f"residual stream after block {site.layer}",
        "mlp": f"output of the MLP of block {site.layer}",
        "attention": f"input of the attention output projection of block {site.layer}",
        "input": f"input of {site.path}",
        "output": f"output of {site.path}",
    }[site.kind]
    blocks = f" (the model has {shape.num_blocks} blocks)" if shape else ""
    return meaning + (f", {d} dimensions" if d else "") + blocks


def _l0_settings(width: int) -> list[int]:
    """Return up to six L0, each twice the one before, the largest at most width / MIN_WIDTH_PER_L0 and 256."""
    largest = 2 ** max(2, min(8, (width // MIN_WIDTH_PER_L0).bit_length() - 1))
    return [l0 for l0 in (largest // 32, largest // 16, largest // 8, largest // 4, largest // 2, largest) if l0 >= 1]
