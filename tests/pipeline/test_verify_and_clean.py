"""`verify`, `clean`, `plan` and `show` on a run that held several studies, and on damaged runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jumpahead import api
from jumpahead.cli import app
from jumpahead.storage.json_files import read_json
from jumpahead.storage.layout import RunPaths
from jumpahead.storage.run_folder import Run
from jumpahead.study.load import parse
from jumpahead.study.save import to_toml

STUDY = {
    "name": "rows",
    "activations": {
        "origin": "synthetic",
        "sites": ["rows"],
        "options": {"d": 12, "features": 40, "groups": 24, "rows_per_group": 256, "l0": 3},
    },
    "sae": {"width": 24},
    "train": {"tokens": 2560, "batch": 128, "threads": 1},
    "evaluate": {"tokens": 500, "replicates": 20},
    "series": [{"architecture": "topk", "k": [2, 4]}],
}


def study(**train):
    return {**STUDY, "train": {**STUDY["train"], **train}}


def jumpahead(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return api.run(study(), out=tmp_path_factory.mktemp("runs") / "rows")


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "rows"))


def test_a_finished_run_is_as_it_was_written(run):
    found = api.verify(run)
    assert found.problems == []
    assert found.files == len([path for path in run.rglob("*") if path.suffix in (".json", ".jsonl", ".safetensors")])
    done = jumpahead("verify", run)
    assert done.exit_code == 0
    assert done.output.endswith("all are as they were written.\n")


@pytest.mark.parametrize("pattern", ["*.json", "saes/**/*.json*", "saes/**/*.safetensors"])
def test_verify_names_every_file_that_changed(run, pattern):
    for path in sorted(run.glob(pattern)):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 2
        path.write_bytes(content)
        if path.name == "manifest.json":
            assert f"{path} is" in jumpahead("verify", run).output
        else:
            assert any(problem.startswith(f"{path} is") for problem in api.verify(run).problems), path
            assert jumpahead("verify", run).exit_code == 1
        content[len(content) // 2] ^= 2
        path.write_bytes(content)
    assert api.verify(run).problems == []


def test_verify_names_saes_that_miss(run):
    first, second = sorted(run.glob("saes/*/*/*/*"))
    shutil.rmtree(first)
    (second / "config.json").unlink()
    assert [problem.partition(" does not")[0] for problem in api.verify(run).problems] == [str(first), str(second)]


def test_plan_says_what_will_be_trained_and_why(run):
    made = api.plan(study(tokens=5120), out=run)
    assert made.finished_saes == 0
    assert made.todo == [
        "2 of 2 SAEs will be trained from the start: train.tokens is 5,120, was 2,560.",
        f"What is there of them is set aside in {run / 'set_aside'}; the study that made it brings it back.",
    ]
    assert "train.tokens is 5,120, was 2,560" in made.text(200)
    assert json.loads(json.dumps(made.to_json()))["todo"] == made.todo
    same = api.plan(study(), out=run)
    assert (same.finished_saes, same.todo) == (2, [])
    more = api.plan({**STUDY, "series": [{"architecture": "topk", "k": [2, 3, 4]}]}, out=run)
    assert more.todo == ["2 of 3 SAEs are trained already.", "1 of 3 SAEs are new and will be trained."]
    rate = api.plan({**STUDY, "series": [{"architecture": "topk", "k": [2, 4], "recipe": {"lr": 0.002}}]}, out=run)
    assert rate.todo[0].startswith("1 of 2 SAEs will be trained from the start: recipe.lr is 0.002, was ")
    weights = next(run.glob("saes/*/*/*/*/weights.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-3])
    assert api.plan(study(), out=run).todo == [
        "1 of 2 SAEs are trained already.",
        f"1 of 2 SAEs will be trained again: {weights} is torn or is not a safetensors file.",
    ]


def test_show_and_ask_say_whose_numbers_they_are(run):
    assert "earlier study" not in jumpahead("show", run).output
    target = Run(run)
    with target.lock():  # as a run that is stopped before it has results
        target.record_study(to_toml(parse(study(tokens=5120))))
    for arguments in (["show", run], ["ask", run, "--l0", "3"]):
        said = " ".join(jumpahead(*arguments).output.split())
        assert "of an earlier study of this run, with train.tokens = 2560 (now 5120)" in said
    with target.lock():
        target.record_study("# another comment\n" + to_toml(parse(study())))
    assert "earlier study" not in jumpahead("show", run).output


def test_clean_removes_what_the_study_does_not_refer_to_and_nothing_else(run):
    assert jumpahead("clean", run).output == "Nothing to remove: the study refers to everything.\n"
    api.run(study(tokens=2048), out=run)
    api.run({**study(tokens=2048), "series": [{"architecture": "topk", "k": [4]}]}, out=run)
    before = {path for path in run.rglob("*") if path.is_file()}
    done = jumpahead("clean", run, "--dry-run")
    assert "SAEs and evaluations of other studies" in done.output
    assert "an SAE that the study does not name" in done.output
    assert done.output.endswith("would be removed.\n")
    assert {path for path in run.rglob("*") if path.is_file()} == before
    assert jumpahead("clean", run).output.endswith("were removed.\n")
    assert not (run / "set_aside").exists()
    assert [path.name for path in run.glob("saes/*/*/*/*")] == ["k-4_seed-0"]
    assert api.verify(run).problems == []
    assert read_json(RunPaths(run).sae_index)["saes"].keys() == {"saes/rows/24/topk/k-4_seed-0"}
