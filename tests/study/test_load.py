"""The study file: what it says comes back, and what it says wrongly is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jumpahead.errors import StudyError
from jumpahead.study.load import load
from jumpahead.study.save import to_toml
from jumpahead.study.schema import sae_specs

ROOT = Path(__file__).resolve().parents[2]
SMALL = """
[sae]
width = 512

[train]
tokens = 9_000
batch = 300

[[series]]
architecture = "topk"
k = [8, 16]
"""


def written(folder: Path, text: str, name: str = "small.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def error(folder: Path, text: str, *overrides: str) -> str:
    """The sentence, without the folder, of loading `text`."""
    with pytest.raises(StudyError) as caught:
        load(written(folder, text), overrides)
    return str(caught.value).replace(f"{folder}/", "")


# ---------------------------------------------------------------------------------------------- reading and writing


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.toml")), ids=lambda path: path.name)
def test_the_studies_of_this_repository_load_and_round_trip(path: Path, tmp_path: Path):
    study = load(path)
    assert load(written(tmp_path, to_toml(study))) == study


def test_the_demo_is_three_series_at_six_settings():
    found = sae_specs(load(ROOT / "studies" / "demo.toml"))
    assert len(found) == 18
    assert {(unit.site, unit.width) for unit in found} == {("layers.1.residual", 8192)}
    assert [unit.key for unit in found[4:7]] == [
        "saes/layers.1.residual/8192/jumprelu/l0-32_seed-0",
        "saes/layers.1.residual/8192/jumprelu/l0-64_seed-0",
        "saes/layers.1.residual/8192/gated/l0-4_seed-0",
    ]


def test_defaults_scalars_and_names(tmp_path: Path):
    study = load(written(tmp_path, SMALL))
    assert study.name == "small"  # the file's
    assert study.sae.width == (512,)
    assert study.sae.seed == study.stream.seed == (0,)
    assert study.lm.model == "tiny"
    assert study.series[0].name == "topk"
    assert study.series[0].settings == [("k", 8), ("k", 16)]
    assert study.evaluate.tokens == 100_000


def test_a_series_recipe_is_kept_as_it_was_given(tmp_path: Path):
    study = load(written(tmp_path, SMALL + "recipe = { lr = 2e-3, resample_every = 50, threshold_form = 'raw' }\n"))
    assert study.series[0].recipe == {"lr": 0.002, "resample_every": 50, "threshold_form": "raw"}
    assert load(written(tmp_path, to_toml(study))) == study


def test_resolving_fills_in_options_and_canonical_sites(tmp_path: Path):
    text = SMALL + "options = { aux = 0.0625 }\n[activations]\nsites = 'blocks.2.hook_resid_post'\n"
    study = load(written(tmp_path, text))
    assert study.series[0].options == {"aux": 0.0625, "k_aux": None}
    assert list(study.activations.sites) == ["layers.2.residual"]
    assert load(written(tmp_path, to_toml(study))) == study


def test_options_that_are_none_round_trip(tmp_path: Path):
    text = SMALL.replace('"topk"\nk', '"jumprelu"\nl0') + "options = { target = 'batch', target_weight = 0.5 }\n"
    study = load(written(tmp_path, text))
    assert study.series[0].options == {"frequency_scale": None, "target": "batch", "target_weight": 0.5}
    assert load(written(tmp_path, to_toml(study))) == study


def test_awkward_text_round_trips(tmp_path: Path):
    study = load(written(tmp_path, SMALL), ["text.separator='<|endoftext|>\\n\"é\"'", "train.lr=1e-7"])
    assert study.text.separator == '<|endoftext|>\\n"é"'
    odd = study.model_copy(update={"text": study.text.model_copy(update={"separator": "\t\x7f\u2028\\ 'x'\n"})})
    again = load(written(tmp_path, to_toml(odd)))
    assert again == odd
    assert again.train.lr == 1e-7


def test_units_are_the_product_and_their_keys_differ(tmp_path: Path):
    overrides = [
        "sae.width=[512,1024]",
        "sae.seed=[0,3]",
        "stream.seed=[0,2]",
        "activations.sites=['layers.0.mlp','layers.1.mlp']",
    ]
    found = sae_specs(load(written(tmp_path, SMALL), overrides))
    assert len(found) == 2 * 2 * 2 * 2 * 2  # sites, widths, settings, seeds, streams
    assert len({unit.key for unit in found}) == 32
    assert found[3].key == "saes/layers.0.mlp/512/topk/k-8_seed-3_stream-2"
    assert found[0].label == "topk k = 8"
    assert found[3].label == "topk k = 8, seed 3, stream 2"


# ---------------------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("train.lr=3e-4", lambda s: s.train.lr, 3e-4),
        ("train.tokens=1e6", lambda s: s.train.tokens, 1_000_000),
        ("train.tokens = 2_000_000", lambda s: s.train.tokens, 2_000_000),
        ("lm.bos=none", lambda s: s.lm.bos, "none"),
        ("name=other", lambda s: s.name, "other"),
        ("sae.width=[64,128]", lambda s: s.sae.width, (64, 128)),
        ("series.topk.k=32", lambda s: s.series[0].k, (32,)),
        ("series.0.k=[32]", lambda s: s.series[0].k, (32,)),
        ("series.topk.options.aux=0.5", lambda s: s.series[0].options["aux"], 0.5),
        ("train.batch=", lambda s: s.train.batch, 2048),
    ],
)
def test_overrides(tmp_path: Path, override: str, read: Any, value: Any):
    found = read(load(written(tmp_path, SMALL), [override]))
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr", "--set train.lr: write it as KEY=VALUE, for instance --set train.tokens=2_000_000."),
        ("=3", "--set =3: write it as KEY=VALUE, for instance --set train.tokens=2_000_000."),
        ("train.tokns=9", "small.toml: there is no key 'train.tokns'. Did you mean 'tokens'?"),
        ("tokens=9", "small.toml: there is no key 'tokens'. Did you mean 'train.tokens'?"),
        ("trian.tokens=9", "small.toml: there is no key 'trian'. Did you mean 'train'?"),
        ("train.batch.x=9", "--set train.batch.x=9: train.batch is a value, not a table."),
        ("series.topq.k=9", "--set series.topq.k=9: there is no series 'topq'. Did you mean 'topk'?"),
        ("series.topk=9", "--set series.topk=9: say which key of the series, for instance --set series.topk.l0=16."),
        ("train.batch=abc", "small.toml: 'train.batch' must be a whole number, not \"abc\"."),
        ("train.batch=2.5", "small.toml: 'train.batch' must be a whole number, not 2.5."),
        ("train.batch=true", "small.toml: 'train.batch' must be a whole number, not true."),
    ],
)
def test_wrong_overrides(tmp_path: Path, override: str, message: str):
    assert error(tmp_path, SMALL, override) == message
