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

import jumpahead.evaluation.evaluate  # noqa: F401 — takes the real kernels before a test puts others in their place
from jumpahead import engine
from jumpahead.activations.row_files import RowFileReader
from jumpahead.activations.writer_rank import WriterRank
from jumpahead.engine.kernels.torch.layer import TorchKernels
from jumpahead.errors import DataError, SiteError
from jumpahead.formatting import format_bytes
from jumpahead.lm.fingerprint import dtype_choice_digest
from jumpahead.lm.model_shape import read_model_shape
from jumpahead.pipeline.run import harvest_activations
from jumpahead.planning import plan
from jumpahead.planning import tokens as token_counting
from jumpahead.planning.memory import (
    PROCESS_BYTES,
    detect_gpu,
    gpu_workspace,
    max_threads,
    step_workspace,
    workspace_bytes,
)
from jumpahead.planning.plan import make_plan
from jumpahead.progress import SilentProgress
from jumpahead.storage.atomic import write_atomic
from jumpahead.storage.json_files import to_json, write_json
from jumpahead.storage.run_folder import Run
from jumpahead.study.load import parse
from jumpahead.study.schema import Study, sae_specs
from tests.texts import hex_words

SHAPE = {
    "num_hidden_layers": 3, "hidden_size": 24, "num_attention_heads": 4, "head_dim": 8, "vocab_size": 300,
    "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_json(tmp_path / "model" / "config.json", SHAPE)
    return tmp_path / "model"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """40 documents of 700 bytes each."""
    for number in range(40):
        write_atomic(tmp_path / "text" / f"{number}.txt", hex_words(number, 200)[:700])
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
    made = make_plan(study, tmp_path / "run")
    assert [(panel.site, panel.width, panel.d, panel.saes) for panel in made.panels] == [
        ("layers.1.mlp", 48, 24, 3),
        ("layers.1.mlp", 96, 24, 3),
        ("layers.2.attention", 48, 32, 3),  # 4 heads of 8
        ("layers.2.attention", 96, 32, 3),
    ]
    # two matrices, three vectors of the width, one of the site
    assert [panel.parameters for panel in made.panels] == [2 * m * d + 3 * m + d for d in (24, 32) for m in (48, 96)]
    assert made.saes == 12
    assert made.finished_saes == 0
    # 156 steps of 64
    assert made.train_tokens == 9984
    # 28,000 bytes at 4 per token, split into train and held out
    assert made.tokens.train + made.tokens.held_out == pytest.approx(7_000, abs=2)
    assert not made.tokens.is_counted
    assert made.epochs == pytest.approx(9984 / made.tokens.train)
    assert made.scored_tokens == made.tokens.held_out  # 100,000 were asked for
    parameters = 3 * sum(panel.parameters or 0 for panel in made.panels)
    assert made.disk_bytes == 4 * parameters + 12 * 300_000 + 2 * (made.tokens.train + made.tokens.held_out)
    assert made.disk_bytes_training == made.disk_bytes + 12 * parameters
    # 8 contexts of 32 at 24 + 32 dimensions, twice; a step: 2²⁰ floats, five of 64 × 32, 200 entries of 40 bytes on
    # each of 64 tokens; logits of 4 × 32 × 300, twice
    step = max_threads(study) * (2**22 + 20 * 64 * 32 + 40 * 64 * 200)
    rest = 2 * 8 * 32 * 56 * 4 + step + 2 * 4 * 32 * 300 * 4
    # evaluation of the wider site: 10 bytes per weight pair, int32 counts in 256 clusters; then 2,000 replicates of one
    evaluation = 3 * (48 + 96) * (10 * 32 + 4 * 256) + 96 * (8 * 256 + 2 * 8 * 2000)
    assert evaluation > 14 * parameters
    assert made.memory_bytes == PROCESS_BYTES + evaluation + rest


def test_notes_say_what_one_would_want_to_know(model: Path, text: Path, tmp_path: Path):
    notes = " ".join(make_plan(small(model, text), tmp_path).notes)
    assert "each training token is seen 2.0 times" in notes
    assert re.search(r"evaluate\.tokens asks for 100,000, and there are only [0-9,]+ held-out tokens: all are", notes)
    huge = make_plan(small(model, text, sae={"width": 10**8}), tmp_path)
    assert "train fewer SAEs at once" in " ".join(huge.notes)
    single = write_atomic(tmp_path / "one.txt", "abc" * 100)
    alone = make_plan(small(model, single), tmp_path)
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
    whole = make_plan(small(model, path), tmp_path / "run").tokens
    assert whole.train + whole.held_out == pytest.approx(700_000, abs=2)
    monkeypatch.setattr(token_counting, "MAX_BYTES_READ", 1_000_000)
    some = make_plan(small(model, path), tmp_path / "run").tokens
    assert some.is_known
    assert some.train + some.held_out == pytest.approx(700_000, rel=0.1)


def test_text_that_is_empty_is_not_unknown(model: Path, tmp_path: Path):
    empty = write_atomic(tmp_path / "x.txt", "")
    with pytest.raises(DataError, match=r"x\.txt' holds no text"):
        make_plan(small(model, empty), tmp_path / "run")


def test_text_that_is_not_at_hand_is_not_made_up(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", None)  # a plan reads nothing from it
    run = Run(tmp_path / "run")
    for source in ("-", "hf:owner/name"):
        made = make_plan(small(model, Path(source)), run.folder)
        assert not made.tokens.is_known
        facts = dict(made.rows())
        assert facts["training text"] == "an unknown number of tokens"
        assert facts["trained on"] == "9,984 activations per SAE"
        assert facts["held-out text"] == "an unknown number of tokens, of which at most 100,000 are scored"
        assert f"the amount of text in '{source}' is unknown" in " ".join(made.notes)
        assert "each token 1" not in made.text()
    write_atomic(run.stdin, "\n".join("abcdefg" * 40 for _ in range(10)))
    known = make_plan(small(model, Path("-")), run.folder).tokens
    assert known.is_known
    assert known.train + known.held_out == (280 * 10 + 9) // 4


def test_counts_are_exact_once_the_text_is_tokenised(model: Path, text: Path, tmp_path: Path):
    run = Run(tmp_path / "run")
    for split, tokens in (("train", 20_001), ("held_out", 3_003)):
        write_json(run.tokens / split / "contexts.json", {"tokens": tokens})
    made = make_plan(small(model, text), run.folder)
    assert made.tokens == (20_001, 3_003, True, True, 0)
    assert ("training text", "20,001 tokens") in made.rows()
    assert ("trained on", "9,984 activations per SAE: 50 % of the text") in made.rows()


def test_saes_of_other_inputs_are_not_counted(model: Path, text: Path, tmp_path: Path):
    study = small(model, text)
    run = Run.create(tmp_path / "run", "")
    assert make_plan(study, run.folder).todo == []
    write_json(run.sae_folder(sae_specs(study)[4].key).config, {"schema": "jumpahead.sae/2", "inputs": "others"})
    made = make_plan(study, run.folder)
    assert made.finished_saes == 0
    assert f"1 of {made.saes} SAEs will be trained from the start: " in made.todo[1]


def test_several_streams_do_not_train_at_once(model: Path, text: Path, tmp_path: Path):
    one, two = (make_plan(small(model, text, stream={"seed": seeds}), tmp_path) for seeds in ([3], [3, 4]))
    assert two.saes == 2 * one.saes
    while_training = [made.disk_bytes_training - made.disk_bytes for made in (one, two)]
    assert while_training[0] == while_training[1] > 0


def test_the_plan_says_what_the_model_computes_in(model: Path, text: Path, tmp_path: Path):
    run = Run(tmp_path / "run")

    def said(dtype: str) -> str:
        study = small(model, text, lm={"model": str(model), "context": 32, "batch": 4, "dtype": dtype})
        if dtype == "fast":
            write_json(run.precision, {"inputs": decided_for(study), "dtype": "bfloat16"})
        return dict(make_plan(study, run.folder).rows())["model"]

    def decided_for(study: Study) -> str:
        return dtype_choice_digest(study.lm) if is_decided else "another model"

    is_decided = False
    assert said("float32").endswith("3 blocks of 24 dimensions, in float32")
    assert said("auto").endswith("in the dtype of its weights")
    assert said("fast").endswith("activations in bfloat16 or float32, chosen when the run starts")
    is_decided = True
    assert said("fast").endswith("activations in bfloat16")


def test_a_model_that_is_elsewhere_leaves_sizes_open(text: Path, tmp_path: Path):
    made = make_plan(small(Path("nobody/nothing"), text), tmp_path)
    assert made.panels[0].d is made.panels[0].parameters is made.memory_bytes is made.disk_bytes is None
    assert ("model", "nobody/nothing, not on this machine yet: its shape is unknown") in made.rows()


def test_the_text_fits_the_terminal_and_json_is_plain(model: Path, text: Path, tmp_path: Path):
    made = make_plan(small(model, text), "runs/small")
    for columns in (60, 80, 120):
        assert max(map(len, made.text(columns).splitlines())) <= columns
    value = json.loads(to_json(made.to_json()))
    assert value["saes"] == 12
    assert value["panels"][0]["site"] == "layers.1.mlp"
    assert value["series"] == {"topk": "k = 3, 5", "jumprelu": "l0 = 4"}
    assert value["seconds"] is None


def test_measuring_times_every_part(lm_folder, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine, "kernel_layer", lambda **_: TorchKernels())  # compiling takes longer than the test
    study = small(lm_folder("llama"), text, activations={"sites": ["layers.1.residual"]}, sae={"width": 48})
    seconds = make_plan(study, tmp_path, measure=True).seconds
    assert seconds is not None
    assert min(seconds) > 0
    assert seconds.total == sum(seconds)


def test_activations_on_disk_are_counted_and_compared_with_what_is_free(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    live = small(model, text)
    study = live.model_copy(update={"activations": live.activations.model_copy(update={"origin": "shards"})})
    without = make_plan(live, tmp_path / "run")
    assert without.stored_activations is None
    monkeypatch.setattr(plan, "free_disk_bytes", lambda folder: 700_000)
    made = make_plan(study, tmp_path / "run")
    stored = made.stored_activations
    assert stored is not None
    # All held-out text is evaluated on; float32 at 24 and 32 dimensions, and three int32 per row.
    assert stored == ((made.tokens.train + made.tokens.held_out) * (56 * 4 + 12), 0, 700_000)
    assert stored.bytes > 1_000_000
    assert made.disk_bytes is not None
    assert made.disk_bytes == (without.disk_bytes or 0) + stored.bytes
    assert "the activations do not fit on the disk: give it fewer tokens" in " ".join(made.notes)
    write_atomic(tmp_path / "run" / "activations" / "shard-00000.safetensors", bytes(stored.bytes - 600_000))
    again = make_plan(study, tmp_path / "run")
    stored = again.stored_activations
    assert stored is not None
    assert "do not fit" not in " ".join(again.notes)
    assert f"{format_bytes(stored.present)} are there already; 700 kB are free" in dict(again.rows())["activations"]
    assert json.loads(to_json(again.to_json()))["stored_activations"]["free"] == 700_000


def test_the_disk_planned_is_the_disk_used(lm_folder, text: Path, tmp_path: Path):
    """To the byte, headers and indices apart, once the text is tokenised."""
    study = small(lm_folder("neox"), text, activations={"sites": ["layers.1.mlp"], "origin": "shards"})
    study = study.model_copy(update={"evaluate": study.evaluate.model_copy(update={"tokens": 1_000})})
    run = Run(tmp_path / "run")
    assert harvest_activations(study, run, WriterRank(), SilentProgress())
    stored = make_plan(study, run.folder).stored_activations
    assert stored is not None
    data = 0
    for path in run.activations.rglob("shard-*"):
        with RowFileReader(path) as file:
            data += sum(rows * file.columns[key].bytes_per_row for key, rows in file.rows.items())
    assert stored.bytes == data
    assert stored.present == sum(path.stat().st_size for path in run.activations.rglob("shard-*"))


def test_a_study_without_a_language_model_is_counted_exactly(text: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(engine, "kernel_layer", lambda **_: TorchKernels())
    options = {"d": 10, "groups": 12, "rows_per_group": 200, "features": 30}
    activations = {"origin": "synthetic", "options": options, "block": 32}
    study = small(Path("./gone"), text, activations=activations, sae={"width": 48})
    made = make_plan(study, tmp_path, measure=True)
    assert made.tokens == (2_400, 2_400, True, True, 0)
    assert [(panel.d, panel.saes, panel.parameters) for panel in made.panels] == [(10, 3, 2 * 480 + 3 * 48 + 10)]
    assert made.model == "none: activations without a language model"
    facts = dict(made.rows())
    assert facts["training rows"] == "2,400 rows"
    assert facts["trained on"] == "9,984 activations per SAE: each row 4.2 times"
    assert facts["held-out rows"] == "2,400 rows, of which 2,400 are scored"
    assert not re.search(r"(?<!\.)\b(token|text|document)", made.text())
    steps = step_workspace(64, 10, max_threads(study))
    evaluation = 3 * 48 * (10 * 10 + 4 * 256) + 48 * (8 * 256 + 2 * 8 * 2000)
    assert made.memory_bytes == PROCESS_BYTES + evaluation + 2 * 2 * 200 * 10 * 4 + steps
    assert made.disk_bytes == 4 * 3 * (960 + 154) + 3 * 300_000
    assert made.seconds is not None
    assert min(made.seconds) > 0


def test_the_plan_says_what_fits_on_the_gpu(model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fourteen bytes per parameter of the widest: 2·96·32 + 3·96 + 32 = 6,464."""
    study = small(model, text, activations={"sites": ["layers.2.attention"], "block": 8})
    room = gpu_workspace(64, 32, 96) + workspace_bytes(study, read_model_shape(study.lm))
    monkeypatch.setattr(plan, "detect_gpu", lambda: ("NVIDIA Test", room + 5 * 90_496 + 90_495))
    made = make_plan(study, tmp_path)
    assert made.gpu is not None
    assert made.gpu.fits == "5 SAEs of 96 features fit at once"
    assert dict(made.rows())["GPU"].startswith("NVIDIA Test")
    assert made.to_json()["gpu"]["bytes"] == made.gpu.bytes
    monkeypatch.setattr(plan, "detect_gpu", lambda: ("NVIDIA Test", 2**20))
    assert "the GPU has" in " ".join(make_plan(study, tmp_path).notes)
    off = small(model, text, train={"tokens": 10_000, "batch": 64, "device": "cpu"})
    assert make_plan(off, tmp_path).gpu is None


def test_no_driver_no_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    assert detect_gpu() is None


def test_a_block_that_the_model_lacks_is_named(model: Path, text: Path, tmp_path: Path):
    study = small(model, text, activations={"sites": ["layers.3.residual"]})
    with pytest.raises(SiteError, match=r"the model has 3 blocks, so layers\.3\.residual does not exist"):
        make_plan(study, tmp_path)
