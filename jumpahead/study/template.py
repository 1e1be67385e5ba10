"""A first study for a model: what `jumpahead init` writes, commented so that it can be edited without a manual."""

from __future__ import annotations

import json
import re
from pathlib import Path

from jumpahead.errors import StudyError, nearest
from jumpahead.lm.config import LMConfig
from jumpahead.lm.model_shape import Outline, model_folder, outline
from jumpahead.lm.sites import KINDS, Site, parse_site
from jumpahead.text.config import TextConfig
from jumpahead.text.sources import source_of

FEATURES_PER_DIMENSION = 16
"""Below this, features are not rare and the frontier does not look like a large model's (DESIGN.md section 9)."""
RAREST = 128
"""The largest L0 is at most width / RAREST, for the same reason."""

STUDY = """\
# A study for {model}: which sparse autoencoder to train on {place}, and what it costs.
#
#     jumpahead plan {name}.toml                       what it will do, before it does anything
#     jumpahead run {name}.toml                        interrupt it as you like: it continues where it was
#     jumpahead ask runs/{name} --delta-loss 0.2       what each architecture costs there
#
# Any key can be overridden: --set train.tokens=10_000_000

name = {name_toml}

[lm]
model = {model_toml}
# context = {context:<20}  tokens per context; the model's maximum, at most 1024, by default
dtype = "fast"  # bfloat16 where that is faster here and leaves the model's loss alone, else float32

[text]
# stdlib (this machine's Python library); a UTF-8 text, JSON Lines or Parquet file, or a folder of them; hf:owner/name,
# a Hugging Face dataset; - for standard input
source = {text_toml}
# column = "text"                 where rows of JSON Lines, Parquet and datasets hold their text
# separator = "<|endoftext|>"     what separates documents inside a file; by default a file is one document
# max_tokens = 20_000_000         of a large text, only so much
held_out = 0.1  # share of the documents that is evaluated on and never trained on

[activations]
sites = [{site_toml}]  # {about}; one panel per site
origin = "live"  # the model runs while the SAEs train; "shards" keeps activations on disk

[sae]
width = [{width}]  # features: {ratio}; one panel per width
seed = [0]  # initialisations; with several, the intervals cover them too

[train]
tokens = 10_000_000  # activations each SAE is trained on; `plan` says how often the text is repeated
batch = 2048
recipe = "short"  # "paper": the published hyper-parameters, made for billions of tokens

[evaluate]
tokens = 100_000  # held-out tokens scored with each SAE spliced in

# One [[series]] is one curve. l0 asks for a mean number of active features per token; instead, lambda = [...] gives
# jumprelu and gated the weight of their penalty, and k = [...] gives topk the number of features it keeps.

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


def write(
    model: str, layer: int | None = None, kind: str = "residual", text: str = "stdlib", width: int | None = None
) -> tuple[str, str]:
    """The name and the content of a study of one site; StudyError or SiteError where it cannot be.

    `kind` is residual, mlp or attention of block `layer`, by default the middle one; or it names a site by itself.
    Of a model on the hub only the config is brought here; with a layer one can do without.
    """
    if objection := source_of(TextConfig(source=text)).objection():
        raise StudyError(f"--text {text}, {objection}: give stdlib, a file or a folder of text, JSON Lines or Parquet, "
                         "hf:owner/name, or -.")  # fmt: skip
    shape = _shape(LMConfig(model=model), is_needed=layer is None and kind in KINDS)
    site = _site(layer, kind, shape)
    d = shape.width_at(site) if shape else None
    width = width or (FEATURES_PER_DIMENSION * d if d else 16_384)
    name = _name(model, site)
    content = STUDY.format(
        name=name,
        name_toml=json.dumps(name),
        model=model,
        model_toml=json.dumps(model, ensure_ascii=False),
        text_toml=json.dumps(text, ensure_ascii=False),
        place=_place(site),
        context=min(1024, shape.context) if shape else 1024,
        site_toml=json.dumps(site.key),
        about=_about(site, shape, d),
        width=width,
        ratio=f"{width / d:g} × the site's {d} dimensions" if d else "16 × the site's dimensions is a good start",
        l0=_l0(width),
    )
    return name, "\n".join(map(_aligned, content.split("\n")))


def _shape(config: LMConfig, is_needed: bool) -> Outline | None:
    """The model's shape; None where it cannot be had and is not needed."""
    try:
        return outline(config, fetch=True)
    except StudyError:
        if is_needed or model_folder(config) is not None:
            raise
        return None


def _site(layer: int | None, kind: str, shape: Outline | None) -> Site:
    """The site that was asked for."""
    if "." in kind:
        if layer is not None:
            raise StudyError(f"--site {kind} names the whole site: leave --layer out.")
        return parse_site(kind)
    if kind not in KINDS:
        raise StudyError(f"--site {kind}: there is no such site.{nearest(kind, KINDS)}")
    if layer is None:
        assert shape is not None
        layer = (shape.blocks - 1) // 2
    return Site(layer, kind)


def _aligned(line: str) -> str:
    """`key = value` with its comment in one column, or above it where the value is long."""
    code, _, comment = line.partition("  # ")
    if not comment or line.startswith("#     "):
        return line
    beside = f"{code:<34}# {comment}"
    return beside if len(code) < 34 and len(beside) <= 120 else f"# {comment}\n{code}"


def _name(model: str, site: Site) -> str:
    """`stories260K-4`, `gemma-2-2b-12-mlp`, `gpt2-transformer.h.3.mlp.c_fc.output`: a folder's name."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model).name).strip(".-") or "study"
    if site.layer is None:
        return f"{stem}-{site.key}"
    return f"{stem}-{site.layer}" + ("" if site.kind == "residual" else f"-{site.kind}")


def _place(site: Site) -> str:
    return site.key if site.layer is None else f"block {site.layer}"


def _about(site: Site, shape: Outline | None, d: int | None) -> str:
    what = {
        "residual": f"what block {site.layer} passes on",
        "mlp": f"what the MLP of block {site.layer} adds",
        "attention": f"what enters the output projection of block {site.layer}'s attention",
        "input": f"what enters {site.path}",
        "output": f"what leaves {site.path}",
    }[site.kind]
    blocks = f" (the model has {shape.blocks} blocks)" if shape else ""
    return what + (f", {d} dimensions" if d else "") + blocks


def _l0(width: int) -> list[int]:
    """Up to six settings, each twice the one before, the largest at most width / RAREST and 256."""
    largest = 2 ** max(2, min(8, (width // RAREST).bit_length() - 1))
    return [l0 for l0 in (largest // 32, largest // 16, largest // 8, largest // 4, largest // 2, largest) if l0 >= 1]
