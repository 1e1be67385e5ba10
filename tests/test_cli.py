"""The command line: exit codes, one sentence per error, the paths of results, and no partial files."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from jumpahead import cli, frontier
from jumpahead.efficiency import StepShape, benchmark
from jumpahead.errors import ArtefactError, DataError
from jumpahead.pipeline import run as pipeline_run
from jumpahead.report import EFFICIENCY_SCHEMA
from jumpahead.storage.atomic import write_atomic
from jumpahead.storage.json_files import read_json, write_json
from jumpahead.storage.run_folder import Run
from tests import efficiency_json
from tests.frontiers import example

STUDY = """
[sae]
width = 512
[train]
tokens = 9_000
batch = 300
[[series]]
architecture = "topk"
k = [8, 16]
"""


def jumpahead(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def sentence(result: Result) -> str:
    """Return the sentence of an error: one line on standard error, nothing on standard output, no traceback."""
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("jumpahead: ")
    return result.stderr.removeprefix("jumpahead: ").strip()


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study in an empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return write_atomic(tmp_path / "small.toml", STUDY).relative_to(tmp_path)


@pytest.fixture(scope="module")
def built() -> dict:
    """A frontier of three series."""
    made = example(width=512, d=16, clusters=8, replicates=40)
    return frontier.build_frontier(made.evaluations, **made.keywords)


@pytest.fixture
def run(tmp_path: Path, built: dict) -> Path:
    """A run with a frontier and no SAEs."""
    run = Run.create(tmp_path / "runs" / "demo", "name = 'demo'\n")
    write_json(run.frontier, built)
    return run.folder


# ---------------------------------------------------------------------------------------------- help


def test_help_names_every_verb_and_loads_no_torch():
    program = (
        "import sys; sys.argv = ['jumpahead', '--help']\n"
        "from jumpahead.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    assert not {'torch', 'numpy', 'pydantic', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb in ("init", "plan", "run", "ask", "show", "report", "efficiency"):
        assert f"\n  {verb} " in done.stdout
    assert "...\n" not in done.stdout.partition("Commands:")[2]  # every verb is described on one line


def test_version():
    assert jumpahead("--version").stdout.startswith("jumpahead ")


def test_a_wrong_option_is_a_usage_error():
    result = jumpahead("ask", "runs/x", "--delta-los", "0.2")
    assert result.exit_code == 2
    assert "--delta-loss" in result.stderr


# ---------------------------------------------------------------------------------------------- run


@pytest.mark.parametrize(("fidelity", "question"), [("delta_lm_loss", "--delta-loss 0.2"), ("fvu", "--fvu 0.2")])
def test_run_creates_the_folder_and_prints_the_paths(
    study: Path, built: dict, fidelity: str, question: str, monkeypatch: pytest.MonkeyPatch
):
    """The question is one that the run can be asked: by FVU if it has no language model."""
    calls = []
    panels = [{**panel, "fidelity": fidelity} for panel in built["panels"]]

    def pretend(study, run: Run, until: str | None, progress: object) -> None:
        calls.append((study, run.folder, until))
        with pytest.raises(ArtefactError, match="is being written by process"), Run(run.folder).lock():
            pass
        write_json(run.frontier, {**built, "panels": panels, "study": run.study.read_text()})
        write_atomic(run.report, "<html>")

    monkeypatch.setattr(pipeline_run, "run_study", pretend)
    result = jumpahead("run", study, "--set", "train.lr=3e-4", "--set", "series.topk.k=4")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == (
        f"run:    runs/small\nreport: runs/small/report.html\nask:    jumpahead ask runs/small {question}\n"
    )
    ((resolved, folder, until),) = calls
    assert (resolved.train.lr, resolved.series[0].k, until) == (3e-4, (4,), None)
    assert folder == Path("runs/small")
    saved = (folder / "study.toml").read_text()
    assert "lr = 0.0003" in saved
    assert "k = [4]" in saved
    assert str(Path.cwd()) not in saved + (folder / "manifest.json").read_text()


def test_run_until_and_out(study: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(
        pipeline_run, "run_study", lambda study, run, until, progress: (calls.append(until), run.tokens.mkdir())
    )
    result = jumpahead("run", study, "--until", "tokens", "--out", "elsewhere")
    assert result.stdout == "run:    elsewhere (stopped after tokens)\n"
    assert calls == ["tokens"]


def test_run_until_an_unknown_stage(study: Path):
    assert "there is no stage 'tokns' to stop after. Did you mean 'tokens'?" in sentence(
        jumpahead("run", study, "--until", "tokns")
    )
    assert not Path("runs/small").exists()


def test_errors_before_any_work_leave_nothing(study: Path, monkeypatch: pytest.MonkeyPatch):
    assert sentence(jumpahead("run", study, "--set", "train.tokns=3")) == (
        "small.toml: there is no key 'train.tokns'. Did you mean 'tokens'?"
    )
    assert "does not exist" in sentence(jumpahead("run", "none.toml"))

    def fail(*_: object) -> None:
        raise DataError("letters.txt is empty: leave it out.")

    monkeypatch.setattr(pipeline_run, "run_study", fail)
    assert sentence(jumpahead("run", study)) == "letters.txt is empty: leave it out."
    assert [path.name for path in Path().iterdir() if path.name != "runs"] == ["small.toml"]
    assert not Path("runs/small").exists()


def test_a_failure_keeps_what_was_done(study: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(study, run: Run, until: str | None, progress: object) -> None:
        write_json(run.tokens / "x.json", {})
        raise DataError("too short.")

    monkeypatch.setattr(pipeline_run, "run_study", fail)
    assert sentence(jumpahead("run", study)) == "too short."
    assert Path("runs/small/tokens/x.json").exists()
    assert Path("runs/small/manifest.json").exists()


def test_a_folder_that_is_not_a_run_is_not_written_to(study: Path):
    write_atomic(Path("letters/mum.txt"), "hello")
    assert "letters is not empty and is not a run" in sentence(jumpahead("run", study, "--out", "letters"))
    for verb in (["ask", "letters", "--l0", "8"], ["show", "letters"], ["report", "letters"]):
        assert "letters is not a run" in sentence(jumpahead(*verb))
    assert [path.name for path in Path("letters").iterdir()] == ["mum.txt"]


def test_a_full_disk_is_one_sentence(study: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", "weights.safetensors")

    monkeypatch.setattr(pipeline_run, "run_study", fail)
    assert sentence(jumpahead("run", study)) == "The system refused: weights.safetensors: No space left on device."


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_a_scheduler_stop_with_one_sentence(study: Path, number: signal.Signals):
    # A suite in a script's background inherits an ignored SIGINT, and Python then leaves it ignored in the child.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import time, sys; from jumpahead import cli; from jumpahead.pipeline import run as pipeline_run\n"
        "def work(study, run, until, progress):\n    run.tokens.mkdir(); print('working', flush=True); time.sleep(60)\n"
        "pipeline_run.run_study = work; sys.argv = ['jumpahead', 'run', 'small.toml']; cli.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    time.sleep(0.05)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "jumpahead: Stopped. The same command continues.\n"


# ---------------------------------------------------------------------------------------------- verbs that take a run


def test_ask_prints_an_answer_and_json(run: Path):
    result = jumpahead("ask", run, "--delta-loss", "0.3")
    assert result.exit_code == 0, result.stderr
    assert "jumprelu" in result.stdout.lower()
    result = jumpahead(
        "ask", run, "--delta-loss", 0.3, "--series", "jumprelu", "--series", "topk", "--max-above-10%", "2%",
        "--max-l0", 30, "--max-never-fired", 400, "--json",
    )  # fmt: skip
    answer = json.loads(result.stdout)
    assert answer["target"] == "delta_lm_loss"
    assert answer["value"] == 0.3
    assert answer["limits"] == {"share_above_10pct": 0.02, "l0": 30.0, "never_fired": 400.0}
    assert [each["series"] for each in answer["panels"][0]["series"]] == ["jumprelu", "topk"]


@pytest.mark.parametrize(
    ("option", "value", "target"),
    [
        ("--l0", "16", "l0"),
        ("--fvu", "0.2", "fvu"),
        ("--above-10%", "12", "above_10pct"),
        ("--above-10%", "0.5%", "share_above_10pct"),
        ("--above-1%", "5%", "share_above_1pct"),
    ],
)
def test_every_way_of_asking(run: Path, option: str, value: str, target: str):
    assert json.loads(jumpahead("ask", run, option, value, "--json").stdout)["target"] == target


def test_wrong_questions(run: Path):
    assert "exactly one of" in sentence(jumpahead("ask", run))
    assert "exactly one of" in sentence(jumpahead("ask", run, "--l0", 8, "--fvu", 0.2))
    assert "Did you mean 'topk'?" in sentence(jumpahead("ask", run, "--l0", 8, "--series", "topq"))
    assert "not 'many'" in sentence(jumpahead("ask", run, "--above-10%", "many"))


def test_show_and_report(run: Path):
    result = jumpahead("show", run)
    assert result.exit_code == 0, result.stderr
    assert "layers." in result.stdout
    result = jumpahead("report", run)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"report: {run / 'report.html'}\n"
    result = jumpahead("report", run, "--pdf")
    assert result.stdout == f"report: {run / 'report.html'}\nfigures: {run / 'figures'}\n"
    assert len(list((run / "figures").glob("*.pdf"))) == 4
    rows = list(csv.DictReader(jumpahead("show", run, "--csv").stdout.splitlines()))
    assert len(rows) == 18
    assert {"series", "l0", "delta_lm_loss_low", "path"} <= set(rows[0])


def test_torn_artefacts_are_named(run: Path):
    (run / "frontier.json").write_text('{"schema": "jumpahead.fron')
    for verb in (["ask", run, "--l0", "8"], ["show", run], ["report", run]):
        assert "frontier.json is torn" in sentence(jumpahead(*verb))
    (run / "frontier.json").unlink()
    for verb in (["ask", run, "--l0", "8"], ["show", run], ["report", run]):
        assert "frontier.json does not exist: `jumpahead run" in sentence(jumpahead(*verb))
    (run / "manifest.json").write_text("{}")
    assert "does not say what it is" in sentence(jumpahead("show", run))


# ---------------------------------------------------------------------------------------------- plan, init


def test_plan_prints_and_writes_nothing(study: Path):
    result = jumpahead("plan", study)
    assert result.exit_code == 0, result.stderr
    assert "2 SAEs of 512 features" in " ".join(result.stdout.split())
    assert json.loads(jumpahead("plan", study, "--json").stdout)["saes"] == 2
    assert [path.name for path in Path().iterdir()] == ["small.toml"]


def test_init_writes_a_study_that_plans(study: Path):
    result = jumpahead("init", "tiny", "--layer", "1", "--width", "512")
    assert result.stdout == "study: tiny-1.toml\nnext:  jumpahead plan tiny-1.toml\n"
    assert jumpahead("plan", "tiny-1.toml").exit_code == 0
    assert "tiny-1.toml exists" in sentence(jumpahead("init", "tiny", "--layer", "1"))
    assert "layers.9.residual does not exist" in sentence(jumpahead("init", "tiny", "--layer", "9"))


# ---------------------------------------------------------------------------------------------- efficiency


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[list[StepShape]]:
    """Shapes that were asked for; the result is invented."""
    asked: list[list[StepShape]] = []

    def pretend(shapes: list[StepShape], **_: object) -> dict:
        asked.append(shapes)
        return efficiency_json.example()

    monkeypatch.setattr(benchmark, "measure", pretend)
    return asked


def test_efficiency_prints_and_writes(study: Path, measured: list[list[StepShape]]):
    result = jumpahead(
        "efficiency", "--d", 48, "--width", "96,192", "--batch", 64, "--l0", "4,8", "--out", "found.json"
    )
    assert result.exit_code == 0, result.stderr
    assert measured == [[StepShape(48, width, 64, l0) for width in (96, 192) for l0 in (4, 8)]]
    assert "Dense recipe: 8.33 x as long" in result.stdout
    assert result.stdout.endswith("saved: found.json\n")
    assert read_json(Path("found.json"), EFFICIENCY_SCHEMA)["threads"] == 2
    result = jumpahead("efficiency", "--study", study, "--json")
    assert json.loads(result.stdout)["schema"] == EFFICIENCY_SCHEMA
    assert measured[1] == [StepShape(256, 512, 300, 16)]  # the bundled model's width; the middle one of k = 8, 16
    assert sorted(path.name for path in Path().iterdir()) == ["found.json", "small.toml"]


def test_efficiency_goes_on_the_page_of_a_run(study: Path, run: Path, measured: list[list[StepShape]]):
    (run / "study.toml").write_text(study.read_text())
    result = jumpahead("efficiency", "--run", run, "--batch", 32)
    assert result.exit_code == 0, result.stderr
    assert measured == [[StepShape(256, 512, 32, 16)]]
    assert result.stdout.endswith(f"saved: {run / 'efficiency.json'}\nsaved: {run / 'report.html'}\n")
    assert "What a training step costs" in (run / "report.html").read_text()
    (run / "efficiency.json").write_text('{"schema": "jumpahead.eff')
    expected = (
        f"efficiency.json is torn or is not JSON: remove it, and `jumpahead efficiency --run {run}` makes it again."
    )
    assert sentence(jumpahead("report", run)).endswith(expected)


def test_efficiency_says_what_is_wrong_before_measuring(study: Path, measured: list[list[StepShape]]):
    assert "give comma-separated numbers of at least 1" in sentence(jumpahead("efficiency", "--l0", "8,x"))
    assert "--l0 must be at least 1 and less than --width" in sentence(jumpahead("efficiency", "--l0", 4096))
    assert "runs/none does not exist" in sentence(jumpahead("efficiency", "--run", "runs/none"))
    assert jumpahead("efficiency", "--seconds", 0).exit_code == 2
    assert measured == []


def test_an_interrupted_efficiency_prints_what_there_is_and_saves_nothing(study: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(benchmark, "measure", lambda shapes, **_: efficiency_json.example(is_interrupted=True))
    result = jumpahead("efficiency", "--out", "found.json")
    assert result.exit_code == 130
    assert "Dense recipe: 8.33 x as long" in result.stdout
    assert result.stderr == "jumpahead: Stopped: nothing was saved.\n"
    assert not Path("found.json").exists()
    monkeypatch.setattr(
        benchmark, "measure", lambda shapes, **_: efficiency_json.example(is_interrupted=True, shapes=[])
    )
    result = jumpahead("efficiency")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "jumpahead: Stopped before anything was measured.\n"
