"""The Python functions of the verbs; `train_on` trains SAEs on any iterator of tensors, without a language model."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import jumpahead
from jumpahead import api
from jumpahead.activations.origins import ORIGINS
from jumpahead.errors import ArtefactError, DataError, StudyError
from jumpahead.progress import SilentProgress
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.architectures.topk import TopK
from jumpahead.storage.tensors import read_tensors
from jumpahead.study.load import load

DOCS = Path(__file__).resolve().parents[1] / "docs"


def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch, capsys):
    text = (DOCS / "activations.md").read_text(encoding="utf-8")
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "train_on" in block)
    assert len([line for line in example.splitlines() if line]) <= 16
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "activations.md", "exec"), {})
    printed = capsys.readouterr()
    assert printed.out == f"At L0 4, TopK has FVU {reached('runs/vision')}.\n"
    assert "activations  done: " in printed.err
    page = (tmp_path / "runs" / "vision" / "report.html").read_text()
    assert "no LM" in page
    assert "tensors activations" in page


def reached(run, k=4):
    """Return the FVU at that k, as sentences write it."""
    points = jumpahead.Frontier.load(run).points()
    (fvu,) = (point["metrics"]["fvu"] for point in points if point["setting"]["value"] == k)
    return f"{fvu:.3g}"


def low_rank(n, d=12, seed=1):
    """Return rows that a dictionary of 20 directions explains, 2 of them in each row."""
    random = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(20, d, generator=random), dim=1)
    active = torch.rand(n, 20, generator=random).topk(2, dim=1).indices
    return directions[active].sum(1)


def trained(folder, tensors=None, **other):
    given = {"series": [{"architecture": "topk", "k": [1, 2]}], "width": 64, "tokens": 6_000, "group": 100}
    given |= {"train": {"batch": 200}, "evaluate": {"replicates": 20}, "progress": SilentProgress(), **other}
    return jumpahead.train_on(
        tensors if tensors is not None else iter(low_rank(20_000).split(777)), out=folder, **given
    )


def test_a_run_without_a_model_has_a_frontier_and_measures_fvu(tmp_path):
    folder = trained(tmp_path / "run")
    frontier = jumpahead.Frontier.load(folder)
    one, two = frontier.points()
    assert one["metrics"]["fvu"] > 1.2 * two["metrics"]["fvu"]
    assert one["metrics"]["delta_lm_loss"] is two["metrics"]["delta_lm_loss"] is None
    assert one["training"]["epochs"] <= 1
    assert frontier.data["lm"] == {"name": None}
    # The measured FVU, computed again from the saved SAE on the held-out rows.
    sae = jumpahead.SAE.load(folder / two["path"])
    settings = load(folder / "study.toml")
    held_out = ORIGINS.get("tensors").open(settings.activations, folder=folder / "activations").held_out
    x = torch.cat([held_out.rows(group)["tensors"] for group in range(len(held_out.rows_per_group))]).double()
    error = (x - sae.decode(sae.encode(x.float())).double()).square().sum()
    assert two["metrics"]["fvu"] == pytest.approx(float(error / (x - x.mean(0)).square().sum()), rel=1e-5)
    assert frontier.data["panels"][0]["tokens"] == len(x)


def test_training_again_trains_only_what_is_missing(tmp_path):
    folder = trained(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("weights.safetensors")}
    trained(folder, series=[{"architecture": "topk", "k": [1, 2, 3]}])
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("weights.safetensors")}
    assert len(after) == 3
    assert before.items() <= after.items()
    with pytest.raises(ArtefactError, match="holds other activations"):
        trained(folder, iter(low_rank(20_000, seed=2).split(777)))


def test_files_and_iterators_of_the_same_rows_give_the_same_saes(tmp_path):
    np.save(tmp_path / "x.npy", low_rank(9_000))
    from_file = trained(tmp_path / "a", tmp_path / "x.npy")
    given = trained(tmp_path / "b", iter(low_rank(9_000).split(500)), rows=9_000)
    ours, theirs = ({p["path"]: p["metrics"] for p in jumpahead.Frontier.load(f).points()} for f in (from_file, given))
    assert ours == theirs
    for key in ours:
        one, other = (read_tensors(f / key / "weights.safetensors") for f in (from_file, given))
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("other", "error", "says"),
    [
        ({"rows": 30_000}, DataError, "the iterator ended after 20,000 of 30,000 rows: say rows=20000"),
        ({"rows": 0}, StudyError, "rows must be at least 1"),
        ({"width": 1}, StudyError, "train_on: 'sae.width' must be at least 2"),
        ({"series": [{"architecture": "topk"}]}, StudyError, "has no sparsity setting"),
        ({"site": "a/b"}, StudyError, "'activations.sites': .* cannot be a folder's name"),
        ({"train": {"bach": 3}}, StudyError, "there is no key 'train.bach'"),
    ],
)
def test_wrong_arguments_are_a_sentence_and_leave_no_files(tmp_path, other, error, says):
    with pytest.raises(error, match=says):
        trained(tmp_path / "run", **other)
    assert not list(tmp_path.rglob("*.*"))


# ---------------------------------------------------------------------------------------------- other functions

TABLES = {"name": "x", "sae": {"width": 64}, "series": [{"architecture": "topk", "k": [2, 4]}]}


def test_init_writes_a_study_that_can_be_planned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = api.init("tiny", layer=1, width=512)
    assert path == Path("tiny-1.toml")
    planned = api.plan(path, overrides=["series.topk.l0=4", "train.tokens=4_096"])
    assert planned.series["topk"] == "l0 = 4"
    assert planned.train_tokens == 4_096
    with pytest.raises(StudyError, match="exists: remove it, or name another file with --out"):
        api.init("tiny", layer=1)


def test_a_study_may_be_tables(tmp_path):
    planned = api.plan(TABLES, out=tmp_path)
    assert planned.saes == 2
    assert planned.folder == str(tmp_path)
    for function in (api.plan, api.dry_run, api.run, api.harvest):
        with pytest.raises(StudyError, match=f"^{function.__name__}: overrides are for a file"):
            function(TABLES, overrides=["train.lr=3e-4"])


def test_harvest_writes_nothing_for_a_study_that_stores_no_activations(tmp_path):
    with pytest.raises(StudyError, match="keeps nothing on disk"):
        api.harvest(TABLES, out=tmp_path / "run")
    with pytest.raises(StudyError, match="--shard 3/2: write it as I/N"):
        api.harvest(TABLES, out=tmp_path / "run", shard="3/2")
    assert not (tmp_path / "run").exists()


def test_ask_show_and_report_take_the_folder_of_a_run(tmp_path, capsys):
    folder = trained(tmp_path / "run")
    assert [each.series for each in api.ask(folder, l0=1.5).panels[0].series] == ["topk"]
    api.show(folder)
    assert "TopK" in capsys.readouterr().out
    (folder / "report.html").unlink()
    assert api.report(folder) == folder / "report.html"


def test_register_adds_an_architecture_in_this_process(monkeypatch):
    monkeypatch.setattr(ARCHITECTURES, "_registered", {})

    class Mine(TopK):
        name = "mine"

    assert jumpahead.register(Mine) is Mine
    assert ARCHITECTURES.get("mine") is Mine
    assert "mine" in ARCHITECTURES.names()
    with pytest.raises(StudyError, match="'topk' is taken by another architecture"):
        jumpahead.register(Mine, "topk")
    with pytest.raises(StudyError, match="extends neither Architecture, Activations, Source, Format nor Sink"):
        jumpahead.register(dict)
