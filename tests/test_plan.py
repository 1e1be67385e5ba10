"""The plan: counts that can be worked out by hand, and what `init` writes."""

from __future__ import annotations

import gzip
import json
import re
from hashlib import sha256
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

import jumpahead.evaluation  # noqa: F401 — takes the real kernels before a test puts others in their place
from jumpahead import engine, store, sweep
from jumpahead.activations.origins.shards import Part
from jumpahead.activations.row_files import Reader
from jumpahead.engine.kernels.torch.layer import Plain
from jumpahead.errors import DataError, SiteError, StudyError
from jumpahead.formatting import size
from jumpahead.lm.config import LMConfig
from jumpahead.lm.fingerprint import of_precision
from jumpahead.lm.model_shape import outline
from jumpahead.lm.sites import Site
from jumpahead.planning import plan
from jumpahead.progress import Silent
from jumpahead.study import template
from jumpahead.study.schema import Study, load, parse

SHAPE = {
    "num_hidden_layers": 3, "hidden_size": 24, "num_attention_heads": 4, "head_dim": 8, "vocab_size": 300,
    "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    store.write_json(tmp_path / "model" / "config.json", SHAPE)
    return tmp_path / "model"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """40 documents of 700 bytes each."""
    for number in range(40):
        store.write_atomic(tmp_path / "text" / f"{number}.txt", f"{number:02d}" + "abcdefg" * 99 + "hijkl")
    return tmp_path / "text"


def small(model: Path, text: Path, **tables: object) -> Study:
    raw = {
        "name": "small",
        "lm": {"model": str(model), "context": 32, "batch": 4},
        "text": {"source": str(text), "held_out": 0.25},
        "activations": {"sites": ["layers.1.mlp", "layers.2.attention"], "block": 8},
        "sae": {"width": [48, 96]},
        "train": {"tokens": 10_000, "batch": 64},
        "series": [{"architecture": "topk", "k": [3, 5]}, {"architecture": "jumprelu", "l0": 4}],
        **tables,
    }
    return parse(raw)


# ---------------------------------------------------------------------------------------------- plan


def test_sizes_by_hand(model: Path, text: Path, tmp_path: Path):
    study = small(model, text)
    made = plan.make(study, tmp_path / "run")
    assert [(panel.site, panel.width, panel.d, panel.saes) for panel in made.panels] == [
        ("layers.1.mlp", 48, 24, 3),
        ("layers.1.mlp", 96, 24, 3),
        ("layers.2.attention", 48, 32, 3),  # 4 heads of 8
        ("layers.2.attention", 96, 32, 3),
    ]
    # two matrices, three vectors of the width, one of the site
    assert [panel.parameters for panel in made.panels] == [2 * m * d + 3 * m + d for d in (24, 32) for m in (48, 96)]
    assert made.saes == 12
    assert made.found == 0
    # 156 steps of 64
    assert made.train_tokens == 9984
    # 28,000 bytes at 4 per token, split into train and held out
    assert made.tokens.train + made.tokens.held_out == pytest.approx(7_000, abs=2)
    assert not made.tokens.is_counted
    assert made.epochs == pytest.approx(9984 / made.tokens.train)
    assert made.scored_tokens == made.tokens.held_out  # 100,000 were asked for
    parameters = 3 * sum(panel.parameters or 0 for panel in made.panels)
    assert made.disk_bytes == 4 * parameters + 12 * 300_000 + 2 * (made.tokens.train + made.tokens.held_out)
    assert made.disk_bytes_training == made.disk_bytes + 8 * parameters
    # 8 contexts of 32 at 24 + 32 dimensions, twice; a step: 2²⁰ floats, five of 64 × 32, 200 entries of 40 bytes on
    # each of 64 tokens; logits of 4 × 32 × 300, twice
    step = plan.threads(study) * (2**22 + 20 * 64 * 32 + 40 * 64 * 200)
    assert made.memory_bytes == 10 * parameters + 2 * 8 * 32 * 56 * 4 + step + 2 * 4 * 32 * 300 * 4


def test_notes_say_what_one_would_want_to_know(model: Path, text: Path, tmp_path: Path):
    notes = " ".join(plan.make(small(model, text), tmp_path).notes)
    assert "each training token is seen 2.0 times" in notes
    assert re.search(r"evaluate\.tokens asks for 100,000, and there are only [0-9,]+ held-out tokens: all are", notes)
    huge = plan.make(small(model, text, sae={"width": 10**9}), tmp_path)
    assert "train fewer SAEs at once" in " ".join(huge.notes)
    single = store.write_atomic(tmp_path / "one.txt", "abc" * 100)
    alone = plan.make(small(model, single), tmp_path)
    assert "no document is held out" in " ".join(alone.notes)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet"])
def test_rows_are_estimated_like_files(kind: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """4,000 rows of 700 bytes; of more than 1,000,000 bytes the rest is taken to be alike, however it is packed."""
    texts = ["".join(sha256(f"{n} {i}".encode()).hexdigest() for i in range(11))[:700] for n in range(4000)]
    path, lines = tmp_path / f"x.{kind}", "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=100, use_dictionary=False)
    else:
        path.write_bytes(gzip.compress(lines) if kind.endswith("gz") else lines)
    whole = plan.make(small(model, path), tmp_path / "run").tokens
    assert whole.train + whole.held_out == pytest.approx(700_000, abs=2)
    monkeypatch.setattr(plan, "ENOUGH_BYTES", 1_000_000)
    some = plan.make(small(model, path), tmp_path / "run").tokens
    assert some.is_known
    assert some.train + some.held_out == pytest.approx(700_000, rel=0.1)


def test_text_that_is_empty_is_not_unknown(model: Path, tmp_path: Path):
    empty = store.write_atomic(tmp_path / "x.txt", "")
    with pytest.raises(DataError, match=r"x\.txt' holds no text"):
        plan.make(small(model, empty), tmp_path / "run")


def test_text_that_is_not_at_hand_is_not_made_up(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", None)  # a plan reads nothing from it
    run = store.Run(tmp_path / "run")
    for source in ("-", "hf:owner/name"):
        made = plan.make(small(model, Path(source)), run.folder)
        assert not made.tokens.is_known
        facts = dict(made.facts())
        assert facts["training text"] == "an unknown number of tokens"
        assert facts["trained on"] == "9,984 activations per SAE"
        assert facts["held-out text"] == "an unknown number of tokens, of which at most 100,000 are scored"
        assert f"how much text '{source}' holds is seen when the run reads it" in " ".join(made.notes)
        assert "each token 1" not in made.text()
    store.write_atomic(run.stdin, "\n".join("abcdefg" * 40 for _ in range(10)))
    known = plan.make(small(model, Path("-")), run.folder).tokens
    assert known.is_known
    assert known.train + known.held_out == (280 * 10 + 9) // 4


def test_counts_are_exact_once_the_text_is_tokenised(model: Path, text: Path, tmp_path: Path):
    run = store.Run(tmp_path / "run")
    for split, tokens in (("train", 20_001), ("held_out", 3_003)):
        store.write_json(run.tokens / split / "contexts.json", {"tokens": tokens})
    made = plan.make(small(model, text), run.folder)
    assert made.tokens == (20_001, 3_003, True, True, 0)
    assert ("training text", "20,001 tokens") in made.facts()
    assert ("trained on", "9,984 activations per SAE: 50 % of the text") in made.facts()


def test_saes_that_are_there_are_counted(model: Path, text: Path, tmp_path: Path):
    study = small(model, text)
    run = store.Run(tmp_path / "run")
    store.write_json(run.at(plan.units(study)[4].key).weights, {})
    made = plan.make(study, run.folder)
    assert made.found == 1
    assert ("SAEs", f"12, of which 1 are in {run.folder}") in made.facts()


def test_several_streams_do_not_train_at_once(model: Path, text: Path, tmp_path: Path):
    one, two = (plan.make(small(model, text, stream={"seed": seeds}), tmp_path) for seeds in ([3], [3, 4]))
    assert two.saes == 2 * one.saes
    assert two.memory_bytes == one.memory_bytes


def test_the_plan_says_what_the_model_computes_in(model: Path, text: Path, tmp_path: Path):
    run = store.Run(tmp_path / "run")

    def said(dtype: str) -> str:
        study = small(model, text, lm={"model": str(model), "context": 32, "batch": 4, "dtype": dtype})
        if dtype == "fast":
            store.write_json(run.precision, {"inputs": decided_for(study), "dtype": "bfloat16"})
        return dict(plan.make(study, run.folder).facts())["model"]

    def decided_for(study: Study) -> str:
        return of_precision(study.lm) if is_decided else "another model"

    is_decided = False
    assert said("float32").endswith("3 blocks of 24 dimensions, in float32")
    assert said("auto").endswith("in the dtype of its weights")
    assert said("fast").endswith("activations in bfloat16 or float32, decided as the run begins")
    is_decided = True
    assert said("fast").endswith("activations in bfloat16")


def test_a_model_that_is_elsewhere_leaves_sizes_open(text: Path, tmp_path: Path):
    made = plan.make(small(Path("nobody/nothing"), text), tmp_path)
    assert made.panels[0].d is made.panels[0].parameters is made.memory_bytes is made.disk_bytes is None
    assert ("model", "nobody/nothing, not on this machine yet: its shape is not known") in made.facts()


def test_the_text_fits_the_terminal_and_json_is_plain(model: Path, text: Path, tmp_path: Path):
    made = plan.make(small(model, text), "runs/small")
    for columns in (60, 80, 120):
        assert max(map(len, made.text(columns).splitlines())) <= columns
    value = json.loads(store.to_json(made.to_json()))
    assert value["saes"] == 12
    assert value["panels"][0]["site"] == "layers.1.mlp"
    assert value["series"] == {"topk": "k = 3, 5", "jumprelu": "l0 = 4"}
    assert value["seconds"] is None


def test_measuring_times_every_part(lm_folder, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine, "kernel_layer", lambda **_: Plain())  # compiling takes longer than the test
    study = small(lm_folder("llama"), text, activations={"sites": ["layers.1.residual"]}, sae={"width": 48})
    seconds = plan.make(study, tmp_path, measure=True).seconds
    assert seconds is not None
    assert min(seconds) > 0
    assert seconds.total == sum(seconds)


def test_activations_on_disk_are_counted_and_compared_with_what_is_free(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    live = small(model, text)
    study = live.model_copy(update={"activations": live.activations.model_copy(update={"origin": "shards"})})
    without = plan.make(live, tmp_path / "run")
    assert without.kept is None
    monkeypatch.setattr(store, "free_bytes", lambda folder: 700_000)
    made = plan.make(study, tmp_path / "run")
    # all that is held out is evaluated on; float32 at 24 and 32 dimensions, and three int32 beside them
    assert made.kept == ((made.tokens.train + made.tokens.held_out) * (56 * 4 + 12), 0, 700_000)
    assert made.kept.bytes > 1_000_000
    assert made.disk_bytes is not None
    assert made.disk_bytes == (without.disk_bytes or 0) + made.kept.bytes
    assert "the activations do not fit on the disk: give it fewer tokens" in " ".join(made.notes)
    store.write_atomic(tmp_path / "run" / "activations" / "shard-00000.safetensors", bytes(made.kept.bytes - 600_000))
    again = plan.make(study, tmp_path / "run")
    assert "do not fit" not in " ".join(again.notes)
    assert f"{size(again.kept.there)} are there; 700 kB are free" in dict(again.facts())["activations"]
    assert json.loads(store.to_json(again.to_json()))["kept"]["free"] == 700_000


def test_the_disk_planned_is_the_disk_used(lm_folder, text: Path, tmp_path: Path):
    """To the byte, headers and indices apart, once the text is tokenised."""
    study = small(lm_folder("neox"), text, activations={"sites": ["layers.1.mlp"], "origin": "shards"})
    study = study.model_copy(update={"evaluate": study.evaluate.model_copy(update={"tokens": 1_000})})
    run = store.Run(tmp_path / "run")
    assert sweep.harvest(study, run, Part(), Silent())
    kept = plan.make(study, run.folder).kept
    assert kept is not None
    data = 0
    for path in run.activations.rglob("shard-*"):
        with Reader(path) as file:
            data += sum(rows * file.columns[key].bytes for key, rows in file.rows.items())
    assert kept.bytes == data
    assert kept.there == sum(path.stat().st_size for path in run.activations.rglob("shard-*"))


def test_a_study_without_a_language_model_is_counted_exactly(text: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(engine, "kernel_layer", lambda **_: Plain())
    options = {"d": 10, "groups": 12, "rows": 200, "features": 30}
    activations = {"origin": "synthetic", "options": options, "block": 32}
    study = small(Path("./gone"), text, activations=activations, sae={"width": 48})
    made = plan.make(study, tmp_path, measure=True)
    assert made.tokens == (2_400, 2_400, True, True, 0)
    assert [(panel.d, panel.saes, panel.parameters) for panel in made.panels] == [(10, 3, 2 * 480 + 3 * 48 + 10)]
    assert made.model == "none: activations from elsewhere"
    facts = dict(made.facts())
    assert facts["training rows"] == "2,400 rows"
    assert facts["trained on"] == "9,984 activations per SAE: each row 4.2 times"
    assert facts["held-out rows"] == "2,400 rows, of which 2,400 are scored"
    assert not re.search(r"(?<!\.)\b(token|text|document)", made.text())
    steps = plan.step_workspace(64, 10, plan.threads(study))
    assert made.memory_bytes == 10 * 3 * (960 + 154) + 2 * 2 * 200 * 10 * 4 + steps
    assert made.disk_bytes == 4 * 3 * (960 + 154) + 3 * 300_000
    assert made.seconds is not None
    assert min(made.seconds) > 0


# ---------------------------------------------------------------------------------------------- the model's shape


def test_outlines_of_several_families(tmp_path: Path):
    def shape_of(raw: dict) -> tuple | None:
        store.write_json(tmp_path / "config.json", raw)
        return outline(LMConfig(model=str(tmp_path)))

    assert shape_of(SHAPE) == (3, 24, 32, 64, 300, None)
    gpt2 = {"n_layer": 2, "n_embd": 12, "n_head": 3, "n_positions": 20, "vocab_size": 50}
    assert shape_of(gpt2) == (2, 12, 12, 20, 50, None)
    assert shape_of({"model_type": "gemma3", "text_config": SHAPE}) == (3, 24, 32, 64, 300, None)
    assert shape_of({"n_layer": 2, "n_embd": 12}) == (2, 12, 12, 1024, 0, None)
    with pytest.raises(StudyError, match="not a language model's config"):
        shape_of({"image_size": 224})
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(StudyError, match=r"config\.json is torn"):
        outline(LMConfig(model=str(tmp_path)))
    bundled = outline(LMConfig())
    assert bundled is not None
    assert bundled.blocks >= 4


def test_a_block_that_the_model_lacks_is_named(model: Path, text: Path, tmp_path: Path):
    study = small(model, text, activations={"sites": ["layers.3.residual"]})
    with pytest.raises(SiteError, match=r"the model has 3 blocks, so layers\.3\.residual does not exist"):
        plan.make(study, tmp_path)


def test_the_outline_agrees_with_the_model(lm_of, lm_folder):
    for family in ("gpt2", "llama", "neox", "gemma2"):
        shape = outline(LMConfig(model=str(lm_folder(family))))
        assert shape is not None
        for kind in ("residual", "mlp", "attention"):
            assert shape.width_at(Site(1, kind)) == lm_of(family).width_at(Site(1, kind))
        assert shape.blocks == len(lm_of(family).blocks)


# ---------------------------------------------------------------------------------------------- init


def test_a_first_study_loads(model: Path, text: Path, tmp_path: Path):
    name, content = template.write(str(model), 2, "attention", str(text))
    study = load(store.write_atomic(tmp_path / "first.toml", content))
    assert name == study.name == "model-2-attention"
    assert study.activations.sites == ("layers.2.attention",)
    assert study.sae.width == (16 * 32,)
    assert {one.architecture for one in study.series} == {"jumprelu", "gated", "topk"}
    assert all(one.l0 == (1, 2, 4) for one in study.series)  # 512 / 128
    assert "column" in content
    assert max(map(len, content.replace(str(text), "").replace(str(model), "").splitlines())) <= 120


@pytest.mark.parametrize("source", ["-", "hf:owner/name:configuration", "x.jsonl", "x.parquet"])
def test_a_first_study_takes_every_source(model: Path, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x.jsonl", "x.parquet"):
        store.write_atomic(tmp_path / name, "not looked into")
    _, content = template.write(str(model), 2, text=source)
    assert load(store.write_atomic(tmp_path / "first.toml", content)).text.source == source


def test_a_first_study_of_the_middle_block_or_of_any_module(model: Path):
    assert 'sites = ["layers.1.residual"]' in template.write(str(model))[1]  # of blocks 0, 1, 2
    name, content = template.write(str(model), kind="model.layers.2.mlp.up_proj.output")
    assert name == "model-model.layers.2.mlp.up_proj.output"
    assert "# what leaves model.layers.2.mlp.up_proj (the model has 3 blocks); one panel per site" in content
    assert 'sites = ["layers.0.mlp"]' in template.write(str(model), kind="blocks.0.hook_mlp_out")[1]
    with pytest.raises(StudyError, match=r"--site layers\.0\.mlp names the whole site: leave --layer out"):
        template.write(str(model), 2, "layers.0.mlp")


def test_a_first_study_fetches_the_config_alone(model: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def download(name: str, file: str, **options: object) -> str:
        asked.append((name, file, options["revision"]))
        return str(model / "config.json")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    name, content = template.write("some-org/some.model-2b")
    assert (name, asked) == ("some.model-2b-1", [("some-org/some.model-2b", "config.json", None)])
    assert "width = [384]" in content  # 16 × 24
    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(StudyError, match=r"'some-org/some\.model-2b' cannot be fetched: no network\. Give"):
        template.write("some-org/some.model-2b")


def unreachable(*_: object, **__: object) -> str:
    raise OSError("no network.")


def test_a_first_study_of_a_model_that_is_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    name, content = template.write("some-org/some.model-2b", 12)
    study = load(store.write_atomic(tmp_path / "first.toml", content))
    assert name == "some.model-2b-12"
    assert study.sae.width == (16_384,)
    assert study.series[0].l0 == (4, 8, 16, 32, 64, 128)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("MODEL", 3), SiteError, "the last is layers.2.residual"),
        (("MODEL", 1, "mpl"), StudyError, "Did you mean 'mlp'?"),
        (("MODEL", 1, "mlp", "no.txt"), StudyError, "--text no.txt, which does not exist"),
        (("MODEL", 1, "mlp", "hf:a/b/c"), StudyError, "--text hf:a/b/c, which is no dataset's name"),
    ],
)
def test_a_first_study_that_cannot_be(model: Path, arguments: tuple, error: type[Exception], message: str):
    with pytest.raises(error) as caught:
        template.write(str(model), *arguments[1:])
    assert message in str(caught.value)


def test_the_plan_says_what_fits_on_the_gpu(model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ten bytes per parameter of the widest: 2·96·32 + 3·96 + 32 = 6,464."""
    study = small(model, text, activations={"sites": ["layers.2.attention"], "block": 8})
    room = plan.gpu_workspace(64, 32, 96) + plan._workspace(study, plan.outline(study.lm))
    monkeypatch.setattr(plan, "gpu", lambda: ("NVIDIA Test", room + 5 * 64_640 + 64_639))
    made = plan.make(study, tmp_path)
    assert made.card is not None
    assert made.card.fits == "5 SAEs of 96 features fit at once"
    assert dict(made.facts())["GPU"].startswith("NVIDIA Test")
    assert made.to_json()["card"]["bytes"] == made.card.bytes
    monkeypatch.setattr(plan, "gpu", lambda: ("NVIDIA Test", 2**20))
    assert "the GPU has" in " ".join(plan.make(study, tmp_path).notes)
    off = small(model, text, train={"tokens": 10_000, "batch": 64, "device": "cpu"})
    assert plan.make(off, tmp_path).card is None


def test_no_driver_no_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    assert plan.gpu() is None
