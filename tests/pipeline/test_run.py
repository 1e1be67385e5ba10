"""A study, end to end, on a random language model and a folder of text: what is done is kept, what is cut goes on."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from typer.testing import CliRunner

import jumpahead
from jumpahead import api, formats
from jumpahead.activations.origins.live import Live
from jumpahead.cli import app
from jumpahead.diagnostics import final_diagnostics, l0_convergence, training_warnings
from jumpahead.engine import kernel_layer
from jumpahead.errors import ArtefactError, DataError, StudyError
from jumpahead.formats import save
from jumpahead.frontier import Frontier
from jumpahead.lm import isolation, precision
from jumpahead.lm.model import LM
from jumpahead.lm.precision import DtypeChoice
from jumpahead.pipeline.evaluation import EvaluationStage
from jumpahead.pipeline.resources import Resources
from jumpahead.pipeline.run import run_study
from jumpahead.pipeline.training import TrainingStage
from jumpahead.progress import SilentProgress
from jumpahead.sae.saved import SAE
from jumpahead.storage.json_files import read_json, read_json_lines
from jumpahead.storage.packed_numbers import packed_length, unpack_numbers
from jumpahead.storage.run_folder import Run
from jumpahead.storage.tensors import read_tensors_info
from jumpahead.study import schema as studies
from jumpahead.study.load import load
from jumpahead.study.save import to_toml
from jumpahead.text.contexts import Contexts
from jumpahead.text.documents import is_held_out
from jumpahead.training import loop as training_loop
from tests.texts import random_words

STUDY = """
name = "small"

[lm]
model = "{model}"
context = 32
batch = 4

[text]
source = "{text}"
held_out = 0.3

[activations]
sites = ["layers.1.residual"]
block = 64
scale_rows = 400

[sae]
width = 64

[train]
tokens = 3_900
batch = 128

[evaluate]
tokens = 900
replicates = 20

[features]
saes = ["none"]

[[series]]
architecture = "jumprelu"
l0 = [3, 7]

[[series]]
architecture = "gated"
lambda = [0.02, 0.1]

[[series]]
architecture = "topk"
k = [3, 7]
"""
STEPS = 30
PAGES = ["reading features", "looking for features in other SAEs", "replacing frequent features by their mean"]
"""Phases of the feature pages."""


class Said:
    """Progress that remembers its sentences."""

    def __init__(self):
        self.sentences, self.phases, self.silent = [], [], SilentProgress()

    def say(self, sentence):
        self.sentences.append(sentence)

    def phase(self, title, total, unit, done=0):
        self.phases.append((title, done))
        return self.silent.phase(title, total, unit, done)

    def __contains__(self, words):
        return any(words in sentence for sentence in self.sentences)


@pytest.fixture(scope="module")
def study_file(tmp_path_factory, lm_folder):
    folder = tmp_path_factory.mktemp("study")
    text = random_words(folder / "text", 30)
    path = folder / "small.toml"
    path.write_text(STUDY.format(model=lm_folder("neox").as_posix(), text=text.as_posix()))
    return path


def run(study_file, folder, *overrides, until=None):
    """As the command line does it; returns what was said."""
    loaded, target, said = load(study_file, overrides), Run(folder), Said()
    with target.lock():
        target.record_study(to_toml(loaded))
        run_study(loaded, target, until, said)
    return said


@pytest.fixture(scope="module")
def finished(study_file, tmp_path_factory):
    """A finished run; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    run(study_file, folder)
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "small"))


def weights(folder):
    return {
        path.parent.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("weights.safetensors")
    }


def stamps(folder):
    """What would change if a file were written again, even with the same bytes."""
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------------------------------------- end to end


def test_a_study_ends_in_a_frontier_a_page_and_answers(finished):
    built = json.loads((finished / "frontier.json").read_text())
    (panel,) = built["panels"]
    assert [(p["series"], p["setting"]["value"]) for p in panel["points"]] == [
        ("jumprelu", 3), ("jumprelu", 7), ("gated", 0.02), ("gated", 0.1), ("topk", 3), ("topk", 7),
    ]  # fmt: skip
    for point in panel["points"]:
        assert (finished / point["path"] / "weights.safetensors").is_file()
        assert point["metrics"]["l0"] > 0
        assert packed_length(point["bootstrap"]["l0"]) == 20
    assert [point["metrics"]["l0"] for point in panel["points"]][4:] == pytest.approx([3, 7], rel=0.2)
    page = (finished / "report.html").read_text()
    assert "JumpReLU" in page
    assert not list(finished.rglob("checkpoint"))
    assert not list(finished.rglob("*.tmp-*"))

    answer = Frontier.load(finished).ask(l0=5.0)
    assert answer.to_json()
    asked = CliRunner().invoke(app, ["ask", str(finished), "--l0", "5"])
    assert asked.exit_code == 0, asked.output
    assert "TopK" in asked.output or "topk" in asked.output
    for path in finished.rglob("train.jsonl"):
        assert [line["step"] for line in read_json_lines(path)] == list(range(1, STEPS + 1))


def test_an_evaluation_says_how_its_training_went(finished):
    points = {point["path"]: point for point in Frontier.load(finished).points()}
    for path, point in points.items():
        lines = read_json_lines(finished / path / "train.jsonl")
        evaluated = read_json(finished / path / "evaluation.json")
        assert sum("health" in line for line in lines) == 5  # of 30 lines every seventh, and the last
        asked = None if point["setting"]["kind"] == "lambda" else point["setting"]["value"]
        where = l0_convergence(lines, asked)
        assert evaluated["converged_after"] == point["converged_after"] == where._asdict()
        assert evaluated["health"] == point["health"] == final_diagnostics(lines)
        assert (
            evaluated["training_warnings"]
            == point["training_warnings"]
            == training_warnings(lines, point["setting"], 64)
        )
        assert set(point["training_warnings"]) <= set(point["notes"])
        assert point["requested"] == asked
    gated = points["saes/layers.1.residual/64/gated/lambda-0.02_seed-0"]
    assert gated["converged_after"]["requested"] is None
    assert "threshold_travel" not in gated["health"]
    assert points["saes/layers.1.residual/64/jumprelu/l0-7_seed-0"]["health"]["threshold_travel"] > 0
    assert "Training diagnostics" in (finished / "report.html").read_text()


def test_a_second_run_has_nothing_to_do_and_writes_no_sae(study_file, copied):
    before = stamps(copied / "saes")
    said = run(study_file, copied)
    assert "Nothing to do" in said
    assert said.phases == []
    assert stamps(copied / "saes") == before
    unchanged = {copied / "frontier.json", copied / "report.html", *(copied / "tokens").rglob("*.safetensors")}
    assert all(path.is_file() for path in unchanged)


def test_a_new_setting_and_a_new_seed_train_alone(study_file, copied):
    before, old = stamps(copied / "saes"), weights(copied)
    said = run(study_file, copied, "series.topk.k=[3, 5, 7]")
    assert "6 of 7 SAEs are trained already" in said
    assert "training 1 SAE" in said
    after = stamps(copied / "saes")
    new = "saes/layers.1.residual/64/topk/k-5_seed-0"
    assert {path for path in after if path not in before} <= set((copied / new).iterdir())
    assert all(after[path] == stamp for path, stamp in before.items())
    points = json.loads((copied / "frontier.json").read_text())["panels"][0]["points"]
    assert [point["path"] for point in points][4:] == [
        f"saes/layers.1.residual/64/topk/k-{k}_seed-0" for k in (3, 5, 7)
    ]

    said = run(study_file, copied, "series.topk.k=[3, 5, 7]", "sae.seed=[0, 1]")
    assert "training 7 SAEs" in said
    found = weights(copied)
    assert len(found) == 14
    assert {key: found[key] for key in old} == old
    assert found[new] != found[new.replace("seed-0", "seed-1")]


def test_what_was_left_out_leaves_the_frontier_and_stays_on_disk(study_file, copied):
    said = run(study_file, copied, "series.gated.lambda=[0.1]")
    assert [title for title, _ in said.phases] == []
    points = json.loads((copied / "frontier.json").read_text())["panels"][0]["points"]
    assert len(points) == 5
    assert len(weights(copied)) == 6
    assert "Nothing to do" not in said
    assert "Nothing to do" in run(study_file, copied, "series.gated.lambda=[0.1]")


def test_the_middle_sae_of_each_series_has_pages(study_file, copied):
    """Measured L0 are near 3 and 7, and λ = 0.02 and 0.1 leave more and fewer: the upper middle is near 7."""
    said = run(study_file, copied, "features.saes=middle")
    assert [title for title, _ in said.phases] == PAGES
    pages = json.loads((copied / "features" / "features.json").read_text())
    names = [pages["points"][one["number"]]["name"] for one in pages["saes"]]
    assert len(names) == 3
    assert "layers.1.residual_64_topk_k-7_seed-0" in names
    assert "layers.1.residual_64_jumprelu_l0-7_seed-0" in names
    assert len(pages["points"]) == 6
    for name in names:
        assert (copied / "features" / name / "list.js").is_file()
    assert (copied / "features" / "index.html").is_file()
    assert not list((copied / "features").glob("*.safetensors"))

    said = run(study_file, copied, "features.saes=topk/k-3")
    assert [title for title, _ in said.phases] == PAGES
    assert [path.parent.name for path in copied.glob("features/*/list.js")] == ["layers.1.residual_64_topk_k-3_seed-0"]


def test_a_study_may_have_no_pages(study_file, finished, tmp_path):
    folder = tmp_path / "small"
    said = run(study_file, folder, "features.saes=none", "series.gated.lambda=0.1", "series.jumprelu.l0=7")
    assert not (folder / "features").exists()
    assert (folder / "report.html").exists()
    assert "reading features" not in [title for title, _ in said.phases]
    made = CliRunner().invoke(app, ["features", str(folder), "--tokens", "300"])
    assert made.exit_code == 0, made.output
    assert made.stdout == f"features: {folder}/features/index.html\n"
    before = stamps(folder / "features")
    again = CliRunner().invoke(app, ["features", str(folder), "--tokens", "300"])
    assert again.exit_code == 0, again.output
    after = stamps(folder / "features")
    assert {path for path in before if before[path] != after[path]} <= {folder / "features" / "index.html"}


def test_an_sae_that_pages_are_asked_for_must_exist(study_file):
    with pytest.raises(StudyError, match=r"'features.saes' names 'topk/k-9', which the study does not train"):
        load(study_file, ["features.saes=topk/k-9"])
    with pytest.raises(StudyError, match="has none and other names"):
        load(study_file, ["features.saes=['none', 'middle']"])


def test_another_study_sets_finished_saes_aside_and_the_first_brings_them_back(study_file, copied):
    old, evaluated = weights(copied / "saes"), stamps(copied / "saes")
    built = read_json(copied / "frontier.json")
    said = run(study_file, copied, "train.tokens=2_000")
    assert "6 of 6 SAEs will be trained from the start: train.tokens is 2,000, was 3,900." in said
    assert f"set aside in {copied / 'set_aside'}; the study that made it brings it back" in said
    assert "training 6 SAEs" in said
    found = weights(copied / "saes")
    assert set(found) == set(old)
    assert all(found[key] != old[key] for key in old)
    said = run(study_file, copied)
    assert "6 of 6 SAEs were trained before and set aside: they come back" in said
    assert [title for title, _ in said.phases] == []
    assert stamps(copied / "saes") == evaluated
    other = dict.fromkeys(("created", "manifest"))
    assert {**read_json(copied / "frontier.json"), **other} == {**built, **other}
    said = run(study_file, copied, "train.tokens=2_000")
    assert [title for title, _ in said.phases] == []
    assert weights(copied / "saes") == found


def test_another_evaluation_sets_the_first_aside(study_file, copied):
    before = stamps(copied / "saes")
    said = run(study_file, copied, "evaluate.tokens=800")
    assert [title for title, _ in said.phases] == ["evaluating"]
    said = run(study_file, copied)
    assert [title for title, _ in said.phases] == []
    assert stamps(copied / "saes") == before


def test_a_checkpoint_outlives_a_study_in_between(study_file, finished, tmp_path, monkeypatch):
    folder, taken, advance = tmp_path / "small", [], training_loop.advance_job

    def stop_after_12_steps(job, *args):
        taken.append(job)
        if len(taken) == 6 * 12:
            os.kill(os.getpid(), signal.SIGINT)
        return advance(job, *args)

    with monkeypatch.context() as patch:
        patch.setattr(training_loop, "advance_job", stop_after_12_steps)
        with pytest.raises(KeyboardInterrupt):
            run(study_file, folder)
    run(study_file, folder, "train.tokens=400", until="train")
    said = run(study_file, folder)
    assert "6 of 6 SAEs continue at step 12." in said
    assert weights(folder / "saes") == weights(finished / "saes")
    logs = [path.relative_to(folder) for path in folder.glob("saes/**/train.jsonl")]
    assert len(logs) == 6
    for log in logs:
        assert [line["fvu"] for line in read_json_lines(folder / log)] == [
            line["fvu"] for line in read_json_lines(finished / log)
        ]


# ---------------------------------------------------------------------------------------------- what an SAE depends on


def pending(study_file, folder, *overrides):
    resources = Resources(load(study_file, overrides), Run(folder), SilentProgress())
    return len(TrainingStage(resources).pending()), len(EvaluationStage(resources).pending())


@pytest.mark.parametrize(
    ("override", "train", "measure"),
    [
        ("name=other", 0, 0),
        ("train.threads=2", 0, 0),
        ("train.checkpoint_minutes=7", 0, 0),
        ("activations.origin=shards", 0, 0),
        ("evaluate.tokens=800", 0, 6),
        ("evaluate.replicates=30", 0, 6),
        ("train.lr=0.001", 6, 6),
        ("train.tokens=3_800", 6, 6),
        ("train.batch=64", 6, 6),
        ("train.recipe=paper", 6, 6),
        ("lm.context=24", 6, 6),
        ("lm.batch=5", 6, 6),
        ("lm.dtype=bfloat16", 6, 6),
        ("text.held_out=0.4", 6, 6),
        ("text.max_tokens=5_000", 6, 6),
        ("activations.dtype=bfloat16", 6, 6),
        ("activations.block=32", 6, 6),
        ("activations.scale_rows=300", 6, 6),
        ("activations.sites=layers.0.residual", 6, 6),
        ("sae.width=65", 6, 6),
        ("sae.seed=3", 6, 6),
        ("stream.seed=3", 6, 6),
        ("series.gated.options.norm=ri-l1", 2, 2),
        ("series.topk.options.aux=0.5", 2, 2),
        ("series.jumprelu.options.frequency_scale=0.1", 2, 2),
        ("series.jumprelu.options.target=batch", 2, 2),
        ("series.topk.k=[3, 8]", 1, 1),
    ],
)
def test_everything_that_changes_an_sae_is_among_its_inputs_and_nothing_else(
    study_file, finished, override, train, measure
):
    assert pending(study_file, finished, override) == (train, measure)


def test_what_is_in_the_text_and_in_the_model_is_among_its_inputs(study_file, finished, tmp_path, lm_folder):
    text = Path(shutil.copytree(load(study_file).text.source, tmp_path / "text"))
    model = Path(shutil.copytree(lm_folder("neox"), tmp_path / "model"))

    def source():
        study = load(study_file, [f"lm.model={model}", f"text.source={text}"])
        return Resources(study, Run(finished), SilentProgress()).provenance.source_digest

    found = [source()]
    (text / "07.txt").write_text("other words")
    found.append(source())
    (text / "new.txt").write_text("one more document")
    found.append(source())
    content = bytearray((model / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (model / "model.safetensors").write_bytes(content)
    found.append(source())
    assert len(set(found)) == 4


# ---------------------------------------------------------------------------------------------- killed

KILLED_AT_CHECKPOINT = """
import os, signal, sys
from jumpahead.training.job import Job
from jumpahead.activations.origins.live import Live
from jumpahead.cli import app
from jumpahead.errors import ArtefactError, DataError, StudyError

written, left = Job.checkpoint, int(sys.argv[1])

def checkpoint(self):
    global left
    written(self)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

Job.checkpoint = checkpoint
app(["run", *sys.argv[2:]])
"""


def test_killed_while_training_it_continues_and_ends_with_the_same_bytes(study_file, finished, tmp_path):
    """Killed between the checkpoints of step 7: four SAEs are at step 7, two at step 6."""
    folder, script = tmp_path / "small", tmp_path / "killed.py"
    script.write_text(KILLED_AT_CHECKPOINT)
    command = [sys.executable, script, str(6 * 6 + 4), study_file, "--out", folder]
    command += ["--set", "train.checkpoint_minutes=1e-9"]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    states = sorted(folder.rglob("state.safetensors"))
    assert sorted(read_tensors_info(path)["steps_done"] for path in states) == [6, 6, 7, 7, 7, 7]
    assert weights(folder) == {}
    said = run(study_file, folder)
    assert ("training", 6 * 128) in said.phases
    assert weights(folder) == weights(finished)
    assert not list(folder.rglob("checkpoint"))
    for path in folder.rglob("train.jsonl"):
        assert [line["step"] for line in read_json_lines(path)] == list(range(1, STEPS + 1))
    one, other = (json.loads((it / "frontier.json").read_text())["panels"][0]["points"] for it in (folder, finished))
    assert [point["metrics"] for point in one] == [point["metrics"] for point in other]


def test_stopped_while_evaluating_it_measures_the_rest(study_file, copied, monkeypatch):
    for path in sorted(copied.rglob("evaluation.json"))[2:]:
        path.unlink()
    (copied / "frontier.json").unlink()
    kept = {path: stamp for path, stamp in stamps(copied).items() if path.name == "evaluation.json"}
    assert len(kept) == 2
    said = run(study_file, copied)
    assert [title for title, _ in said.phases] == ["evaluating"], "the pages are those of the same evaluations"
    after = stamps(copied)
    assert all(after[path] == stamp for path, stamp in kept.items())
    assert len(list(copied.rglob("evaluation.json"))) == 6
    assert (copied / "frontier.json").is_file()


def test_a_torn_result_is_made_again(study_file, copied):
    old = weights(copied)
    first, second = sorted(copied.rglob("config.json"))[:2]
    first.write_bytes(first.read_bytes()[:-30])
    (second.parent / "weights.safetensors").unlink()
    said = run(study_file, copied)
    assert "4 of 6 SAEs are trained already" in said
    assert f"1 of 6 SAEs will be trained again: {first} is damaged." in said
    assert f"1 of 6 SAEs will be trained again: {second.parent / 'weights.safetensors'} does not exist." in said
    assert weights(copied / "saes") == {key.removeprefix("saes/"): value for key, value in old.items()}


def test_stages_stop_where_they_are_asked_to(study_file, finished, tmp_path):
    folder = tmp_path / "small"
    run(study_file, folder, until="tokens")
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"tokens"}
    run(study_file, folder, until="train")
    assert weights(folder) == weights(finished)
    assert not list(folder.rglob("evaluation.json"))
    assert not (folder / "frontier.json").exists()


def test_activations_on_disk_give_the_same_bytes(study_file, finished, tmp_path):
    folder = tmp_path / "small"
    run(study_file, folder, "activations.origin=shards", until="train")
    assert any((folder / "activations").iterdir())
    assert weights(folder) == weights(finished)


def test_fast_is_decided_once_and_measured_in_float32(study_file, finished, tmp_path, monkeypatch):
    """Decided for bfloat16 here; a machine that would decide otherwise goes on as the run began."""
    folder, shift = tmp_path / "small", {"float32": 2.5, "bfloat16": 2.5004}
    found = DtypeChoice("bfloat16", {}, {"float32": 300.0, "bfloat16": 500.0}, shift, 800)
    monkeypatch.setattr(precision, "choose_dtype", lambda *_: found)
    said = run(study_file, folder, "lm.dtype=fast", until="tokens")
    assert "LM: bfloat16 (500 tokens/s in bfloat16, 300 in float32; the loss moves by +0.0004 nats" in said
    monkeypatch.setattr(precision, "choose_dtype", lambda *_: pytest.fail("it was decided before"))
    run(study_file, folder, "lm.dtype=fast")
    assert read_json(folder / "precision.json")["loss"] == shift
    assert weights(folder).keys() == weights(finished).keys()
    assert weights(folder) != weights(finished)
    assert "Nothing to do" in run(study_file, folder, "lm.dtype=fast")

    def clean(folder):
        key = "saes/layers.1.residual/64/topk/k-3_seed-0"
        return read_json(folder / key / "evaluation.json")["metrics"]["ce_clean"]

    assert clean(folder) == clean(finished)
    # The same SAEs as those of an explicit bfloat16 study, which is measured in bfloat16.
    said = run(study_file, folder, "lm.dtype=bfloat16")
    assert [title for title, _ in said.phases] == ["evaluating"]
    assert clean(folder) != clean(finished)
    assert clean(folder) == pytest.approx(clean(finished), rel=0.02)


def test_fast_that_is_float32_is_the_float32_study(study_file, copied, monkeypatch):
    decided = DtypeChoice("float32", {"float32": 2.0, "bfloat16": 3.0}, {}, {}, 0)
    monkeypatch.setattr(precision, "choose_dtype", lambda *_: decided)
    said = run(study_file, copied, "lm.dtype=fast")
    assert "LM: float32 (products in bfloat16 are not faster on this machine)" in said
    assert not said.phases


# ---------------------------------------------------------------------------------------------- text and tokens


def contexts(folder):
    return {split: Contexts.load(folder / "tokens" / split) for split in ("train", "held_out")}


def test_another_layer_of_the_same_run_reuses_the_tokens(study_file, copied):
    before = stamps(copied / "tokens")
    said = run(study_file, copied, "activations.sites=layers.2.mlp", until="train")
    assert [title for title, _ in said.phases] == ["training"]
    assert stamps(copied / "tokens") == before


def test_held_out_documents_that_copy_training_text_are_left_out_and_counted_once(study_file, tmp_path):
    text = Path(shutil.copytree(study_file.parent / "text", tmp_path / "text"))
    names = sorted(path.name for path in text.iterdir())
    ours = next(name for name in names if not is_held_out(name, 0.3))
    copy = next(name for name in (f"copy-{i}.txt" for i in range(99)) if is_held_out(name, 0.3))
    (text / copy).write_text("A new header of the file, which nothing else has.\n" + (text / ours).read_text())
    plain = run(study_file, tmp_path / "plain", until="tokens")
    said = run(study_file, tmp_path / "copy", f"text.source={text}", until="tokens")
    assert not any("left out" in sentence for sentence in plain.sentences)
    (told,) = [sentence for sentence in said.sentences if "left out" in sentence]
    assert told == "1 held-out document left out: more than 80 % of its text is in the training text too"
    found, expected = (Contexts.load(tmp_path / name / "tokens" / "held_out") for name in ("copy", "plain"))
    assert found.document_ids == expected.document_ids
    assert copy not in found.document_ids
    trained = [Contexts.load(tmp_path / name / "tokens" / "train").digest for name in ("copy", "plain")]
    assert trained[0] == trained[1]


def test_runs_beside_one_another_share_tokens_and_neither_needs_the_other(study_file, tmp_path, monkeypatch):
    run(study_file, tmp_path / "one", until="tokens")
    old = contexts(tmp_path / "one")
    said = run(study_file, tmp_path / "two", "lm.dtype=bfloat16", "activations.sites=layers.0.mlp", until="tokens")
    assert "tokens: those of one, which has the same text" in said
    assert not said.phases
    files = [
        folder / "tokens" / "train" / "tokens-00000.safetensors" for folder in (tmp_path / "one", tmp_path / "two")
    ]
    assert files[0].samefile(files[1])
    assert not run(study_file, tmp_path / "two", "lm.dtype=bfloat16", until="tokens").sentences
    said = run(study_file, tmp_path / "three", "lm.context=24", until="tokens")
    assert [title for title, _ in said.phases] == ["tokenising"]
    # What happens to one does not happen to the other.
    shutil.rmtree(tmp_path / "one")
    run(study_file, tmp_path / "three", until="tokens")
    assert {split: c.digest for split, c in contexts(tmp_path / "two").items()} == {s: c.digest for s, c in old.items()}
    assert contexts(tmp_path / "three")["train"].digest == old["train"].digest


def test_where_files_cannot_be_linked_they_are_copied(study_file, tmp_path, monkeypatch):
    def link(*_):
        raise OSError("not on this file system")

    run(study_file, tmp_path / "one", until="tokens")
    monkeypatch.setattr(os, "link", link)
    assert "tokens: those of one" in run(study_file, tmp_path / "two", until="tokens")
    one, two = (folder / "tokens" / "train" / "contexts.safetensors" for folder in (tmp_path / "one", tmp_path / "two"))
    assert not one.samefile(two)
    assert one.read_bytes() == two.read_bytes()


def test_damaged_tokens_are_not_taken_over(study_file, tmp_path):
    run(study_file, tmp_path / "one", until="tokens")
    path = tmp_path / "one" / "tokens" / "held_out" / "tokens-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    said = run(study_file, tmp_path / "two", until="tokens")
    assert [title for title, _ in said.phases] == ["tokenising"]
    assert len(contexts(tmp_path / "two")) == 2


@pytest.mark.parametrize("name", ["tokens-00000.safetensors", "contexts.safetensors", "contexts.json", "source.json"])
def test_damaged_tokens_are_named_and_made_again(study_file, copied, name):
    old, path = contexts(copied)["held_out"].digest, copied / "tokens" / "held_out" / name
    path.write_bytes(path.read_bytes()[:-9])
    said = run(study_file, copied, "evaluate.tokens=800")
    assert "tokenising" in [title for title, _ in said.phases]
    assert contexts(copied)["held_out"].digest == old
    if path.suffix == ".safetensors":
        assert f"{path} is torn or is not a safetensors file: it is set aside" in said
        assert (copied / "set_aside" / "damaged" / "tokens" / "held_out" / name).is_file()


@pytest.fixture(scope="module")
def rows(study_file):
    """The study's documents as rows: the texts, and `text.source` by the way they are written."""
    folder = study_file.parent / "rows"
    folder.mkdir()
    texts = [path.read_text() for path in sorted(Path(load(study_file).text.source).glob("*.txt"))]
    (folder / "x.jsonl").write_text("".join(json.dumps({"story": text}) + "\n" for text in texts))
    (folder / "set").mkdir()
    for name in ("x.parquet", "set/train.parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"story": texts}), folder / name)
    sources = {"jsonl": folder / "x.jsonl", "parquet": folder / "x.parquet", "hub": f"hf:{folder / 'set'}"}
    return texts, {name: str(source) for name, source in sources.items()}


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "hub"])
def test_rows_are_trained_and_measured_on(study_file, rows, kind, tmp_path):
    texts, sources = rows
    folder, overrides = tmp_path / "small", [f"text.source={sources[kind]}", "text.column=story"]
    said = run(study_file, folder, *overrides, "series.gated.lambda=0.1", "series.jumprelu.l0=7")
    assert [title for title, _ in said.phases] == ["tokenising", "training", "evaluating"]
    found = contexts(folder)
    assert sum(len(c.tokens) for c in found.values()) == sum(len(text.encode()) for text in texts)  # a byte is a token
    identities = {hashlib.sha256(text.encode()).hexdigest() for text in texts}
    assert {identity for c in found.values() for identity in c.document_ids} == identities
    assert (folder / "report.html").is_file()
    assert "Nothing to do" in run(study_file, folder, *overrides, "series.gated.lambda=0.1", "series.jumprelu.l0=7")


def test_a_wrong_column_leaves_nothing_behind(study_file, rows, tmp_path):
    command = ["run", str(study_file), "--out", str(tmp_path / "small"), "--set", f"text.source={rows[1]['jsonl']}"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "has no column 'text' (text.column), but story." in done.output
    assert not (tmp_path / "small").exists()


def test_piped_text_is_kept_with_the_run(study_file, rows, tmp_path):
    texts, _ = rows
    command = ["run", str(study_file), "--out", str(tmp_path / "small"), "--until", "tokens"]
    command += ["--set", "text.source=-", "--set", "text.separator='<|x|>'"]
    nothing = CliRunner().invoke(app, command)
    assert nothing.exit_code == 1
    assert "standard input was empty" in nothing.output
    assert not (tmp_path / "small").exists()
    done = CliRunner().invoke(app, command, input="<|x|>".join(texts))
    assert done.exit_code == 0, done.output
    before = stamps(tmp_path / "small" / "tokens")
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0, again.output
    assert stamps(tmp_path / "small" / "tokens") == before
    assert sum(len(c.document_ids) for c in contexts(tmp_path / "small").values()) == len(texts)
    other = CliRunner().invoke(app, command, input="<|x|>".join(texts[:-1]))
    assert other.exit_code == 0, other.output
    assert sum(len(c.document_ids) for c in contexts(tmp_path / "small").values()) == len(texts) - 1


def test_packed_documents_train_and_are_measured_one_by_one(study_file, tmp_path):
    """Documents of 80 words are longer than a context; their ends share contexts."""
    overrides = ["lm.packing=isolated", "lm.context=60", "series.gated.lambda=0.1", "series.jumprelu.l0=7"]
    run(study_file, tmp_path / "packed", *overrides)
    found = contexts(tmp_path / "packed")
    assert all(c.packing == "isolated" and c.chunks_per_context.max() > 1 for c in found.values())
    evaluated = read_json(next((tmp_path / "packed").rglob("evaluation.json")))
    assert evaluated["documents"]["identity"] == list(found["held_out"].document_names)
    assert evaluated["text"]["documents"] == len(found["held_out"].document_names)


def test_a_model_that_cannot_isolate_stops_the_run_before_it_begins(study_file, tmp_path, monkeypatch):
    def check(lm, sites):
        checked.append(tuple(sites))
        raise StudyError("it cannot")

    checked = []
    monkeypatch.setattr(isolation, "check_isolation", check)
    with pytest.raises(StudyError, match="it cannot"):
        run(study_file, tmp_path / "packed", "lm.packing=isolated")
    assert checked == [("layers.1.residual",)]
    run(study_file, tmp_path / "plain", "lm.packing=plain", until="tokens")
    assert len(checked) == 1


@pytest.mark.parametrize("kind", ["folder", "jsonl", "parquet"])
def test_the_shared_model_runs_on_stories(shared, kind, tmp_path):
    model = shared / "models" / "stories260K"
    if not model.is_dir():
        pytest.skip("there is no ../shared/models/stories260K beside the repository")
    stories = (shared / "text" / "tinystories_a.txt").read_text().split("<|endoftext|>")[:150]
    source = tmp_path / "stories"
    if kind == "folder":
        source.mkdir()
        for number, story in enumerate(stories):
            (source / f"{number}.txt").write_text(story)
    elif kind == "jsonl":
        source = source.with_suffix(".jsonl")
        source.write_text("".join(json.dumps({"text": story}) + "\n" for story in stories))
    else:
        source = source.with_suffix(".parquet")
        pyarrow.parquet.write_table(pyarrow.table({"text": stories}), source)
    path = tmp_path / "stories.toml"
    path.write_text(
        STUDY.format(model=model.as_posix(), text=source.as_posix()).replace("context = 32", "context = 64")
    )
    overrides = ["series.gated.lambda=0.1", "series.jumprelu.l0=7"]
    run(path, tmp_path / "one", *overrides)
    assert (tmp_path / "one" / "report.html").is_file()
    said = run(path, tmp_path / "two", *overrides, "activations.sites=layers.3.residual", until="tokens")
    assert "tokens: those of one, which has the same text" in said


def test_a_study_without_a_language_model_has_a_frontier_by_fvu(study_file, tmp_path):
    """It needs neither a model nor a text."""
    options = "{d = 12, features = 30, l0 = 3, groups = 12, rows_per_group = 200}"
    overrides = ["activations.origin=synthetic", f"activations.options={options}", "text.source=nowhere"]
    overrides += ["lm.model=./gone"]
    folder = tmp_path / "toy"
    run(study_file, folder, *overrides)
    assert len(weights(folder)) == 6
    assert not (folder / "tokens").exists()
    frontier = Frontier.load(folder)
    (panel,) = frontier.data["panels"]
    assert panel["fidelity"] == "fvu"
    assert (panel["tokens"], panel["documents"]) == (1_000, 5)  # whole groups of 200, at least 900
    assert {metric["key"] for metric in frontier.data["metrics"]} & {"delta_lm_loss", "kl", "ce_clean"} == set()
    for point in panel["points"]:
        assert point["metrics"]["delta_lm_loss"] is None
        assert 0 < point["metrics"]["fvu"] < 1
        assert 0 < point["metrics"]["f1"] < 1
        assert packed_length(point["bootstrap"]["fvu"]) == packed_length(point["bootstrap"]["f1"]) == 20
        assert "Trained on repeated activations: 1.6 epochs." in point["notes"]
    assert any(point["pareto"] for point in panel["points"])
    best = frontier.ask(l0=5).panels[0].recommendation
    assert best.series == min(("topk", "jumprelu", "gated"), key=lambda name: fvu_at(frontier, name))
    assert "FVU" in best.reason
    with pytest.raises(StudyError, match="No delta LM loss was measured in the run small"):
        frontier.ask(delta_loss=0.2)
    page = (folder / "report.html").read_text()
    assert "Fraction of variance unexplained against L0" in page
    assert "Delta LM loss against L0" not in page
    assert "no LM" in page
    for command in (["show", str(folder)], ["ask", str(folder), "--fvu", "0.5"]):
        shown = CliRunner().invoke(app, command)
        assert shown.exit_code == 0, shown.output
        assert "no LM" in shown.output
        assert ("F1" in shown.output) == (command[0] == "show")
        assert "delta" not in shown.output
    assert os.listdir(tmp_path) == ["toy"]
    assert "Nothing to do" in run(study_file, folder, *overrides)


def fvu_at(frontier, name, l0=5):
    """FVU on a series' curve; infinite where it does not get there."""
    (answer,) = (one for one in frontier.ask(l0=l0).panels[0].series if one.series == name)
    return min((crossing.metrics["fvu"].value for crossing in answer.crossings), default=float("inf"))


# ---------------------------------------------------------------------------------------------- from an existing SAE


def started(study_file, folder, series, *overrides):
    """Return the training stage of a study with one series."""
    study = load(study_file, overrides).model_copy(update={"series": (studies.Series.model_validate(series),)})
    return TrainingStage(Resources(study, Run(folder), SilentProgress()))


@pytest.mark.parametrize("name", ["jumprelu", "gated", "topk"])
def test_no_steps_from_an_existing_sae_leave_it_what_it_is(study_file, copied, name):
    """And one step does not; the first SAE's digest is among the inputs, and its λ goes on."""
    first = next(point for point in Frontier.load(copied).points(name))
    path, setting = str(copied / first["path"]), first["setting"]
    series = {"architecture": name, setting["kind"]: [setting["value"]], "start_from": path}
    stage = started(study_file, copied, series)
    (spec,) = stage.resources.specs
    plain = started(study_file, copied, {**series, "start_from": None})
    assert plain.pending() == []
    assert stage.pending() == [spec]
    job, sae = stage.make_job(spec), SAE.load(path)
    job.folder = None
    x = stage.resources.load_sample()[spec.site][:200]
    torch.testing.assert_close(job.finish()(x), sae(x), rtol=1e-4, atol=1e-4)
    assert float((job.finish().encode(x) > 0).sum()) == pytest.approx(float((sae.encode(x) > 0).sum()), rel=0.01)
    if job.state.controller is not None:
        assert float(job.state.sparsity_coefficient) == pytest.approx(
            sae.about["sparsity_coefficient"]["lambda"], rel=1e-5
        )
    job.step(job.unit.apply(x[:128])[0], 0.01, 1.0, kernel_layer())
    assert not torch.allclose(job.finish()(x), sae(x), rtol=1e-4, atol=1e-4)


def test_an_sae_that_cannot_be_started_from_is_named(study_file, copied, tmp_path):
    path = str(copied / Frontier.load(copied).points("topk")[0]["path"])
    topk = {"architecture": "topk", "k": [3], "start_from": path}

    def refused(says, series, *overrides):
        stage = started(study_file, copied, series, *overrides)
        with pytest.raises(StudyError, match=f"^series '{series['architecture']}' cannot start from .*{says}"):
            stage.make_job(stage.resources.specs[0])

    refused("an SAE.topk, .*: the series is gated", {"architecture": "gated", "l0": [3], "start_from": path})
    refused("sae.width must be 64 alone", topk, "sae.width=[64, 80]")
    refused("does not exist", {**topk, "start_from": str(tmp_path / "nowhere")})
    other = SAE.load(path)
    params = {
        name: tensor[..., :10] if name in ("W_enc", "W_dec", "b_dec", "b_pre") else tensor
        for name, tensor in other.params.items()
    }
    params["W_dec"] = params["W_dec"] / params["W_dec"].norm(dim=1, keepdim=True)
    SAE(other.arch, params).save(tmp_path / "narrow")
    refused("layers.1.residual has d = 24", {**topk, "start_from": str(tmp_path / "narrow")})
    SAE(other.arch, other.params | {"W_dec": other.params["W_dec"] * 1.5}).save(tmp_path / "long")
    refused("rows of W_dec have norms from 1.5 to 1.5", {**topk, "start_from": str(tmp_path / "long")})


@pytest.mark.parametrize(("architecture", "make"), [("jumprelu", "saelens"), ("topk", "dictionary_learning")])
def test_no_steps_from_an_sae_of_another_make_leave_it_what_it_is(study_file, copied, tmp_path, architecture, make):
    """A published SAE: its decoder rows have any norm, it has no recipe, and an input bias that is not the mean."""
    point = Frontier.load(copied).points(architecture)[0]
    trained, setting = SAE.load(copied / point["path"]), point["setting"]
    params = {**trained.params, "b_dec": trained.params["b_dec"] + 0.1, "b_pre": trained.params["b_pre"] * 0.9}
    if architecture == "jumprelu":
        params = trained.arch.rescale_features(params, torch.linspace(0.5, 2.0, 64))
        params["threshold"][3] = 0.0
    save(SAE(trained.arch, params, trained.about), make, tmp_path / "theirs")
    theirs = formats.load(tmp_path / "theirs")
    series = {"architecture": architecture, setting["kind"]: [setting["value"]], "start_from": str(tmp_path / "theirs")}
    stage = started(study_file, copied, series)
    (spec,) = stage.resources.specs
    job = stage.make_job(spec)
    job.folder = None
    x = stage.resources.load_sample()[spec.site][:200]
    begun = job.finish()
    assert torch.allclose(begun.params["W_dec"].norm(dim=1), torch.ones(64), atol=1e-3)
    same = ((begun.encode(x) > 0) == (theirs.encode(x) > 0)).all(1)  # θ_3 is not zero any more
    assert same.double().mean() > 0.9
    torch.testing.assert_close(begun(x)[same], theirs(x)[same], rtol=1e-4, atol=1e-4)
    assert (theirs.encode(x) > 0).any()
    job.step(job.unit.apply(x[:128])[0], 0.01, 1.0, kernel_layer())
    assert not torch.allclose(job.finish()(x), theirs(x), rtol=1e-4, atol=1e-4)
    # The weights are among the inputs: other ones are another SAE.
    before = stage.provenance.sae_digest(spec)
    save(SAE(trained.arch, {**params, "b_dec": params["b_dec"] + 1.0}, trained.about), make, tmp_path / "theirs")
    assert started(study_file, copied, series).provenance.sae_digest(spec) != before


def test_saes_are_done_though_what_they_started_from_is_gone(study_file, copied, tmp_path):
    path = tmp_path / "first"
    shutil.copytree(copied / Frontier.load(copied).points("topk")[0]["path"], path)
    series = {"architecture": "topk", "k": [3], "start_from": str(path)}
    stage = started(study_file, copied, series)
    (spec,) = stage.resources.specs
    before = stage.provenance.sae_digest(spec)
    stage.make_job(spec)
    shutil.rmtree(path)
    assert started(study_file, copied, series).provenance.sae_digest(spec) == before
    other = {**series, "start_from": str(tmp_path / "another")}
    with pytest.raises(StudyError, match="another"):
        started(study_file, copied, other).provenance.sae_digest(
            spec._replace(series=studies.Series.model_validate(other))
        )


# ---------------------------------------------------------------------------------------------- activations on disk


SHARDS = ("activations.origin=shards", "activations.options={shard_mib = 0.1}")


def test_parts_of_a_harvest_and_then_training_without_the_model(study_file, finished, tmp_path, monkeypatch):
    """Two parts from the command line; what is trained from them is what `live` trains, and loads no model."""
    folder, before = tmp_path / "small", os.getcwd()
    command = ["harvest", str(study_file), "--out", str(folder)]
    for override in SHARDS:
        command += ["--set", override]
    for part, words in (("2/2", " (part 2/2 is there, others are missing)"), ("1/2", "")):
        done = CliRunner().invoke(app, [*command, "--shard", part])
        assert done.exit_code == 0, done.output
        assert done.stdout == f"activations: {folder / 'activations'}{words}\n"
    assert os.getcwd() == before
    written = stamps(folder / "activations")
    monkeypatch.setattr(LM, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    run(study_file, folder, *SHARDS, until="train")
    assert weights(folder) == weights(finished)
    assert stamps(folder / "activations") == written
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0, again.output
    wrong = CliRunner().invoke(app, [*command, "--shard", "3/2"])
    assert wrong.exit_code == 1
    assert wrong.stderr.startswith("jumpahead: --shard 3/2: write it as I/N")
    live = CliRunner().invoke(app, ["harvest", str(study_file), "--out", str(folder)])
    assert "activations.origin = 'live' keeps nothing on disk" in live.stderr


def test_a_site_that_comes_later_is_harvested_alone(study_file, tmp_path):
    """Of the held-out text too; what was there is not written again."""
    folder, sites = tmp_path / "small", ["layers.1.residual", "layers.0.mlp"]
    both = f"activations.sites={sites}".replace("'", '"')
    run(study_file, folder, *SHARDS, until="activations")
    before = {path: stamp for path, stamp in stamps(folder / "activations").items() if "shard-" in path.name}
    run(study_file, folder, *SHARDS, both, until="activations")
    after = {path: stamp for path, stamp in stamps(folder / "activations").items() if "shard-" in path.name}
    assert before.items() < after.items()
    assert sum("held_out" in path.parts for path in after.keys() - before.keys()) >= 1
    found = Resources(load(study_file, [*SHARDS, both]), Run(folder), SilentProgress()).open_activations()
    assert list(found.widths) == list(found.held_out.widths) == sites


def test_a_model_and_a_text_that_are_gone_stop_nothing_but_the_loss(study_file, finished, tmp_path, lm_folder):
    model, text = tmp_path / "model", tmp_path / "text"
    shutil.copytree(lm_folder("neox"), model)
    shutil.copytree(load(study_file).text.source, text)
    moved = (f"lm.model={model}", f"text.source={text}", *SHARDS)
    folder = tmp_path / "small"
    with pytest.raises(StudyError, match="is not a folder"):
        run(study_file, tmp_path / "other", *moved[1:], "lm.model=./gone")
    run(study_file, folder, *moved, until="activations")
    shutil.move(model, tmp_path / "away")
    shutil.move(text, tmp_path / "text-away")
    said = run(study_file, folder, *moved)
    assert "Delta LM loss cannot be measured, all that needs no LM is: lm.model = " in said
    here, whole = ({p["path"]: p for p in Frontier.load(f).points()} for f in (folder, finished))
    for path, point in here.items():
        assert point["metrics"]["delta_lm_loss"] is None
        assert any("Delta LM loss was not measured: lm.model = " in note for note in point["notes"])
        for key in ("l0", "fvu", "cosine", "shrinkage", "above_10pct", "never_fired"):
            assert point["metrics"][key] == pytest.approx(whole[path]["metrics"][key], rel=1e-6), key
            if key in point["bootstrap"]:
                ours, theirs = (unpack_numbers(each["bootstrap"][key]) for each in (point, whole[path]))
                assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)  # 16 bits each
    assert "Nothing to do" in run(study_file, folder, *moved)

    with pytest.raises(ArtefactError, match=r"fewer held-out activations than evaluate\.tokens = 40,000"):
        run(study_file, folder, *moved, "evaluate.tokens=40_000")
    said = run(study_file, folder, *moved, "series.topk.k=[3, 5, 7]")  # trained from disk
    assert "training 1 SAE" in said
    shutil.copytree(lm_folder("neox-serial"), model)  # another model in its place is not taken for it
    with pytest.raises(DataError, match=r"text\.source = .* does not exist"):
        run(study_file, folder, *moved)
    shutil.rmtree(model)

    shutil.move(tmp_path / "away", model)
    shutil.move(tmp_path / "text-away", text)
    said = run(study_file, folder, *moved)
    assert [title for title, _ in said.phases] == ["evaluating"]
    back = {point["path"]: point["metrics"] for point in Frontier.load(folder).points()}
    assert all(back[path] == pytest.approx(point["metrics"]) for path, point in whole.items())


def test_a_cut_harvest_goes_on(study_file, finished, tmp_path, monkeypatch):
    """Ctrl-C keeps the files that are done; a file less is written the second time."""
    folder, rows, count = tmp_path / "small", Live.rows, []

    def interrupted(self, group):
        count.append(group)
        if len(count) == 9:
            raise KeyboardInterrupt
        return rows(self, group)

    monkeypatch.setattr(Live, "rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(study_file, folder, *SHARDS, until="activations")
    kept = stamps(folder / "activations")
    assert any(path.name.startswith("shard-") for path in kept)
    said = run(study_file, folder, *SHARDS, until="train")
    after = stamps(folder / "activations")
    assert all(after[path] == stamp for path, stamp in kept.items() if path.name.startswith("shard-"))
    assert any(title == "activations" for title, _ in said.phases)
    assert weights(folder) == weights(finished)


def test_labels_tell_the_saes_of_a_study_apart(tmp_path):
    study = load(
        Path(__file__).parents[2] / "studies" / "demo.toml",
        ["sae.width=[4096, 8192]", "sae.seed=[0, 3]", "stream.seed=[0, 2]"],
    )
    resources = Resources(study, Run(tmp_path / "run"), Said())
    labels = [resources.label(spec) for spec in resources.specs]
    assert len(set(labels)) == len(labels) == 18 * 2 * 2 * 2
    assert "jumprelu l0 = 4, seed 3, stream 2, width 8,192" in labels
    one = Resources(load(Path(__file__).parents[2] / "studies" / "demo.toml"), resources.run, Said())
    assert one.label(one.specs[0]) == "jumprelu l0 = 4"


def test_an_unknown_stage_is_refused_before_anything_is_done(study_file, tmp_path):
    with pytest.raises(StudyError, match=r"no stage 'trian' to stop after\. Did you mean 'train'"):
        jumpahead.run(study_file, out=tmp_path / "run", until="trian", progress=SilentProgress())
    assert not (tmp_path / "run").exists()


def test_tables_are_checked_as_a_file_is(study_file, tmp_path):
    tables = tomllib.loads(Path(study_file).read_text(encoding="utf-8"))
    with pytest.raises(StudyError, match="overrides are for a file"):
        jumpahead.run(tables, out=tmp_path / "run", overrides=["train.lr=3e-4"])
    tables["lm"]["model"] = str(tmp_path)
    with pytest.raises(StudyError, match=r"^run: 'lm.model' names .* a folder without a config.json"):
        jumpahead.run(tables, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------- unfinished runs


def test_a_run_that_is_not_finished_answers_with_what_it_has(study_file, finished, copied, capsys):
    """Two of six SAEs are evaluated: as after Ctrl-C while evaluating."""
    kept = sorted(copied.rglob("evaluation.json"))
    for path in kept[2:]:
        path.unlink()
    for name in ("frontier.json", "report.html"):
        (copied / name).unlink()
    answer = api.ask(copied, fvu=0.9)
    assert answer.covers.startswith("Not finished: of 6 SAEs, 6 are trained and 2 evaluated.")
    api.show(copied)
    shown = capsys.readouterr().out
    assert "6 are trained and 2 evaluated" in shown
    assert "trained so far" in shown
    assert f"`jumpahead run {copied / 'study.toml'} --out {copied}` continues." in shown.replace("\n", " ")
    assert not (copied / "frontier.json").exists()  # asking and showing write nothing
    page = api.report(copied).read_text()
    assert "6 are trained and 2 evaluated" in page
    run(study_file, copied)
    one, other = (json.loads((folder / "frontier.json").read_text()) for folder in (copied, finished))
    assert (one["panels"], one["training"], one["progress"]) == (other["panels"], other["training"], None)
    assert api.ask(copied, fvu=0.9).covers == api.ask(finished, fvu=0.9).covers


def test_an_evaluation_of_another_study_is_not_mixed_in(study_file, copied):
    """The run goes on with other inputs, and nothing of them is evaluated: the last frontier is what there is."""
    loaded = load(study_file, ["evaluate.tokens=800"])
    (copied / "study.toml").write_text(to_toml(loaded))
    assert api.load_frontier(copied).progress is None
    (copied / "frontier.json").unlink()
    with pytest.raises(
        ArtefactError, match=r"no SAE is evaluated yet, 6 of 6 are trained\. `jumpahead run .*continues"
    ):
        api.ask(copied, fvu=0.9)


def test_a_run_stopped_while_training_shows_how_far_it_is(study_file, tmp_path, monkeypatch, capsys):
    folder, steps = tmp_path / "small", []

    def stop(*arguments, **options):
        steps.append(0)
        if len(steps) == 60:
            signal.raise_signal(signal.SIGINT)
        return advance(*arguments, **options)

    advance = training_loop.advance_job
    monkeypatch.setattr(training_loop, "advance_job", stop)
    with pytest.raises(KeyboardInterrupt):
        run(study_file, folder)
    with pytest.raises(ArtefactError, match="no SAE is evaluated yet, 0 of 6 are trained"):
        api.ask(folder, fvu=0.9)
    api.show(folder)
    shown = capsys.readouterr().out
    assert "of 6 SAEs, 0 are trained and 0 evaluated" in shown
    assert re.search(r"TopK, k = 3 +10 +30 +3(\.00)? ", shown)
    assert "0 are trained and 0 evaluated" in api.report(folder).read_text()
