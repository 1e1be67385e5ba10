"""The study that `jumpahead init` writes loads, for every kind of model, site and text."""

from __future__ import annotations

from pathlib import Path

import pytest

from jumpahead.errors import SiteError, StudyError
from jumpahead.storage.atomic import write_atomic
from jumpahead.study.load import load
from jumpahead.study.template import render_study
from jumpahead.text.config import TextConfig
from tests.planning.test_plan import SHAPE, model, text  # noqa: F401 - fixtures


def test_a_first_study_loads(model: Path, text: Path, tmp_path: Path):  # noqa: F811
    name, content = render_study(str(model), 2, "attention", str(text))
    study = load(write_atomic(tmp_path / "first.toml", content))
    assert name == study.name == "model-2-attention"
    assert study.activations.sites == ("layers.2.attention",)
    assert study.sae.width == (16 * 32,)
    assert {one.architecture for one in study.series} == {"jumprelu", "gated", "topk"}
    assert all(one.l0 == (1, 2, 4) for one in study.series)  # 512 / 128
    assert "column" in content
    assert max(map(len, content.replace(str(text), "").replace(str(model), "").splitlines())) <= 120


@pytest.mark.parametrize("source", ["-", "hf:owner/name:configuration", "x.jsonl", "x.parquet"])
def test_a_first_study_takes_every_source(model: Path, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    for name in ("x.jsonl", "x.parquet"):
        write_atomic(tmp_path / name, "not looked into")
    _, content = render_study(str(model), 2, text=source)
    assert load(write_atomic(tmp_path / "first.toml", content)).text.source == source


def test_a_first_study_of_the_middle_block_or_of_any_module(model: Path):  # noqa: F811
    assert 'sites = ["layers.1.residual"]' in render_study(str(model))[1]  # of blocks 0, 1, 2
    name, content = render_study(str(model), kind="model.layers.2.mlp.up_proj.output")
    assert name == "model-model.layers.2.mlp.up_proj.output"
    assert "# output of model.layers.2.mlp.up_proj (the model has 3 blocks); one panel per site" in content
    assert 'sites = ["layers.0.mlp"]' in render_study(str(model), kind="blocks.0.hook_mlp_out")[1]
    with pytest.raises(StudyError, match=r"--site layers\.0\.mlp names the whole site: leave --layer out"):
        render_study(str(model), 2, "layers.0.mlp")


def test_a_first_study_fetches_the_config_alone(model: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    asked = []

    def download(name: str, file: str, **options: object) -> str:
        asked.append((name, file, options["revision"]))
        return str(model / "config.json")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    name, content = render_study("some-org/some.model-2b")
    assert (name, asked) == ("some.model-2b-1", [("some-org/some.model-2b", "config.json", None)])
    assert "width = [384]" in content  # 16 × 24
    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(StudyError, match=r"'some-org/some\.model-2b' cannot be fetched: no network\. Give"):
        render_study("some-org/some.model-2b")


def unreachable(*_: object, **__: object) -> str:
    raise OSError("no network.")


def test_a_first_study_of_a_model_that_is_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    name, content = render_study("some-org/some.model-2b", 12)
    study = load(write_atomic(tmp_path / "first.toml", content))
    assert name == "some.model-2b-12"
    assert study.sae.width == (16_384,)
    assert study.series[0].l0 == (4, 8, 16, 32, 64, 128)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("MODEL", 3), SiteError, "the last is layers.2.residual"),
        (("MODEL", 1, "mpl"), StudyError, "Did you mean 'mlp'?"),
        (("MODEL", 1, "mlp", "no.txt"), StudyError, "--text no.txt, which does not exist"),
        (("MODEL", 1, "mlp", "hf:a/b/c"), StudyError, "--text hf:a/b/c, which is not the name of a dataset"),
    ],
)
def test_a_first_study_that_cannot_be(model: Path, arguments: tuple, error: type[Exception], message: str):  # noqa: F811
    with pytest.raises(error) as caught:
        render_study(str(model), *arguments[1:])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "keys"),
    [
        ("a.jsonl", '{"text": "plain"}\n', {}),
        ("b.jsonl", '{"content": "plain"}\n', {"column": "content"}),
        (
            "c.jsonl",
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n',
            {"column": "messages", "chat": ("assistant",)},
        ),
        (
            "d.jsonl",
            '{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}\n',
            {"column": "conversations", "chat": ("assistant",)},
        ),
        ("e.jsonl", '{"number": 3}\n', {}),
        ("f.txt", "one<|endoftext|>two<|endoftext|>three", {"separator": "<|endoftext|>"}),
        ("g.txt", "one<|endoftext|>two", {}),
    ],
)
def test_a_first_study_has_the_keys_that_its_text_needs(
    model: Path,  # noqa: F811
    name: str,
    content: str,
    keys: dict,
    tmp_path: Path,
):
    file = write_atomic(tmp_path / name, content)
    found = load(write_atomic(tmp_path / "first.toml", render_study(str(model), text=str(file))[1])).text
    assert found == TextConfig(source=str(file), **keys)


@pytest.mark.parametrize(
    ("size", "tokens"), [(1_000, 100_000), (2_345_678, 520_000), (44_000_000, 9_900_000), (90_000_000, 10_000_000)]
)
def test_a_first_study_trains_on_the_text_about_once(model: Path, size: int, tokens: int, tmp_path: Path):  # noqa: F811
    file = write_atomic(tmp_path / "text.txt", "x" * size)
    assert (
        load(write_atomic(tmp_path / "first.toml", render_study(str(model), text=str(file))[1])).train.tokens == tokens
    )
