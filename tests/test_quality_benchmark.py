"""The comparison of libraries' SAEs: the evaluator, what is trained once, rates and penalties, the table.

Without the other libraries, except the last test, which is skipped where they are not installed.
"""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.quality import __main__ as program
from benchmarks.quality import places, plan, runs, trainers
from benchmarks.quality.evaluator import (
    ExportedSAE,
    clean_groups,
    evaluate_on_rows,
    evaluate_on_text,
    gated_activation,
    relative_difference,
    threshold_activation,
    topk_activation,
)
from benchmarks.quality.page import render_best, render_page
from benchmarks.quality.places import DICTIONARY, PLACES, Batches, Budget
from benchmarks.quality.runs import QualityRun, export, make_missing
from benchmarks.result_lines import load_results, save_results
from jumpahead import metrics, versions
from jumpahead.activations.config import ActivationsConfig
from jumpahead.activations.origins import ORIGINS
from jumpahead.activations.stream import Stream
from jumpahead.evaluation.evaluate import evaluate
from jumpahead.evaluation.held_out import HeldOutRows
from jumpahead.evaluation.reconstruct import reconstruct
from jumpahead.lm.config import LMConfig
from jumpahead.lm.model import LM
from jumpahead.resampling import ratio_standard_error
from jumpahead.sae.saved import SAE
from jumpahead.sae.unit import Unit
from tests.engine.cases import CASES, activations, random_state
from tests.evaluation.test_evaluate import SITE, hand_made, held_out, random_sae

ONE = QualityRun("tiny", "final", 2_000_000, "SAELens", "topk", 8, "default", 3e-4)
ROOT = Path(__file__).resolve().parent.parent
PEER_PYTHON = ROOT / ".venv-peers" / "bin" / "python"


# ---------------------------------------------------------------------------------------------- the evaluator


def test_activations_by_hand():
    pre = torch.tensor([[-2.0, 0.5, 3.0, 1.5]])
    assert threshold_activation(torch.tensor([-3.0, 0.5, 1.0, 2.0]))(pre).tolist() == [[0, 0, 3.0, 0]]
    assert topk_activation(2)(pre).tolist() == [[0, 0, 3.0, 1.5]]
    assert topk_activation(4)(pre).tolist() == [[0, 0.5, 3.0, 1.5]]
    gate, scale, mag = torch.tensor([3.0, -1.0, -1.0, -1.0]), torch.full((4,), 2.0), torch.tensor([0.0, 0.0, 0.5, -4.0])
    assert gated_activation(gate, scale, mag)(pre).tolist() == [[0, 0, 6.5, 0]]


def test_an_exported_sae_subtracts_its_bias_before_the_encoder():
    made = ExportedSAE(
        torch.eye(2), torch.tensor([0.5, 0.25]), torch.tensor([0.0, 2.0]), 3 * torch.eye(2), torch.tensor([7.0, 0.0]),
        threshold_activation(torch.zeros(2)),
    )  # fmt: skip
    assert made(torch.tensor([[1.0, 0.25]])).tolist() == [[3 * 0.5 + 7, 3 * 2.0]]
    assert relative_difference(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0])) == 0.1


def test_it_agrees_with_jumpaheads_own_evaluation_on_text(lm_folder):
    lm = LM.load(LMConfig(model=str(lm_folder("neox")), context=32, batch=3))
    text, sae = held_out(lm), random_sae(LM.load(LMConfig(model=str(lm_folder("neox")), context=32)), SITE)
    measured = evaluate({"it": sae}, lm, text, SITE, torch.zeros(sae.d))["it"]
    documents = measured.documents
    error = ratio_standard_error(documents["spliced"] - documents["clean"], documents["tokens"])
    expected = metrics.measure(measured.sums, keys=("delta_lm_loss", "fvu", "l0", "never_fired")) | {"se": error}
    expected["dead"] = expected.pop("never_fired")
    with torch.no_grad():
        groups = clean_groups(lm, text, SITE)
    found = evaluate_on_text(export(sae), lm, groups)
    assert found.pop("measured_on") == measured.sums.rows.sum()
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    both, zero, zeros = torch.cat([torch.eye(sae.d), -torch.eye(sae.d)]), torch.zeros(sae.d), torch.zeros(2 * sae.d)
    same = ExportedSAE(both, zero, zeros, both, zero, threshold_activation(zeros))
    assert evaluate_on_text(same, lm, groups)["delta_lm_loss"] == 0


def test_it_agrees_with_jumpaheads_own_evaluation_on_synthetic_rows():
    options = DICTIONARY | {"groups": 3, "rows_per_group": 700, "seed": 2}
    data = ORIGINS.get("synthetic").open(ActivationsConfig(sites=("s",), origin="synthetic", options=options))
    directions, bias = data.dictionary["s"], data.bias["s"]  # type: ignore[attr-defined]
    sae = hand_made(directions, directions, bias, 0.7)
    sae.params["b_enc"] -= directions @ bias
    rows = HeldOutRows.first_groups(data.held_out, 2_100)  # type: ignore[arg-type]
    expected = metrics.measure(reconstruct({"it": sae}, rows, "s")["it"].sums, keys=("fvu", "l0", "never_fired", "f1"))
    expected["dead"] = expected.pop("never_fired")
    found = evaluate_on_rows(export(sae), rows, "s")
    assert found.pop("measured_on") == 2_100
    assert found == pytest.approx(expected, rel=1e-4)
    assert 0.2 < found["f1"] < 0.9


# ---------------------------------------------------------------------------------------------- the batches


@pytest.mark.parametrize("limit", [0, 2**30])
def test_batches_begin_anew_and_are_the_callers_to_change(monkeypatch, limit):
    monkeypatch.setattr(places, "MEMORY_LIMIT", limit)
    options = {"d": 6, "features": 12, "groups": 20, "rows_per_group": 50}
    data = ORIGINS.get("synthetic").open(ActivationsConfig(sites=("s",), origin="synthetic", options=options))
    batches = Batches(Stream(data, 100, seed=0), "s", 4, 6)
    first = [x.clone().mul_(1) for x in batches]
    for x in batches:
        x /= 7.5  # as dictionary_learning does
    assert [x.tolist() for x in batches] == [x.tolist() for x in first]
    assert len(first) == 4
    assert batches.seconds > 0


# ---------------------------------------------------------------------------------------------- what is trained once


def test_a_key_follows_all_that_a_result_depends_on(monkeypatch):
    others = [
        ONE._replace(place="dictionary"), ONE._replace(part="development"), ONE._replace(tokens=8_000_000),
        ONE._replace(library="sparsify"), ONE._replace(architecture="batchtopk"), ONE._replace(requested_l0=32),
        ONE._replace(lr=1e-2), ONE._replace(penalty=0.3), ONE._replace(seed=2),
        ONE._replace(library="jumpahead", lr=None),
    ]  # fmt: skip
    keys = [one.key("text") for one in (ONE, *others)] + [ONE.key("other text")]
    assert len(set(keys)) == len(keys)
    assert ONE._replace(rate="tuned").key("text") == keys[0], "a rate's name does not matter"
    ours = ONE._replace(library="jumpahead", lr=None)
    monkeypatch.setattr(versions, "TRAINING_VERSION", versions.TRAINING_VERSION + 7)
    assert ONE.key("text") == keys[0]
    assert ours.key("text") != keys[10]
    monkeypatch.setattr(runs, "library_version", lambda library: "another")
    assert ONE.key("text") != keys[0]


def test_what_is_there_is_not_trained_again_and_the_rest_is_saved_one_by_one(tmp_path, monkeypatch):
    trained: list[QualityRun] = []

    class Opened:
        def __init__(self, place, part, tokens, folder, threads):
            self.place = place

    def train_peer(one, opened):
        trained.append(one)
        if one.seed == 3:
            raise KeyboardInterrupt
        return {"l0": 8.123456, "fvu": math.nan, "dead": 7.0, "delta_lm_loss": 0.25, "se": 0.01, "seconds": 3.14,
                "measured_on": 9}  # fmt: skip

    monkeypatch.setattr(runs, "OpenPlace", Opened)
    monkeypatch.setattr(runs, "train_peer", train_peer)
    monkeypatch.setattr(runs, "unavailable", lambda library: "")
    path, said = tmp_path / "final.jsonl", []
    wanted = [ONE._replace(seed=seed) for seed in (0, 2, 3, 4)]
    with pytest.raises(KeyboardInterrupt):
        make_missing(wanted, path, tmp_path, say=said.append)
    assert sorted(one["seed"] for one in load_results(path).values()) == [0, 2]
    monkeypatch.setattr(runs, "train_peer", lambda one, opened: train_peer(one._replace(seed=10 + one.seed), opened))
    found = make_missing(wanted, path, tmp_path, say=said.append)
    assert [one.seed for one in trained] == [0, 2, 3, 13, 14]
    assert len(found) == 4
    line = next(one for one in found.values() if one["seed"] == 2)
    assert (line["l0"], line["fvu"], line["seconds"]) == (8.1235, None, 3.1)
    assert json.loads(path.read_text().splitlines()[0])["requested_l0"] == 8
    make_missing(wanted, path, tmp_path, say=lambda text: pytest.fail(text))


def test_what_cannot_be_made_here_is_named(tmp_path, monkeypatch):
    said: list[str] = []
    gone = PLACES["stories260K"]._replace(setup=PLACES["tiny"].setup._replace(model="no/such/model"))  # type: ignore[union-attr]
    monkeypatch.setitem(PLACES, "stories260K", gone)
    monkeypatch.setattr(trainers.SAELens.library, "package", "no-such-library-of-saes")
    monkeypatch.setattr(runs, "OpenPlace", lambda *a: pytest.fail("opened"))
    runs.library_version.cache_clear()
    trainers.peer_libraries.missing_reason.cache_clear()
    make_missing([ONE._replace(place="stories260K"), ONE._replace(place="dictionary")], tmp_path / "x", tmp_path,
                 say=said.append)  # fmt: skip
    runs.library_version.cache_clear()
    trainers.peer_libraries.missing_reason.cache_clear()
    assert said[0] == "stories260K: no/such/model is not here; 1 SAEs are left out."
    assert said[1].startswith("dictionary: SAELens is left out: not installed")


def test_a_wrong_export_is_an_error():
    class Wrong(trainers.PeerTrainer):
        library, architectures = trainers.SAELens.library, ("topk",)

        @classmethod
        def default_lr(cls, architecture, width):
            return 0.5

        def train(self, asked, batches):
            zero = torch.zeros(3)
            sae = ExportedSAE(torch.eye(3), zero, zero, torch.eye(3), zero, topk_activation(3))
            return trainers.TrainedSAE(sae, lambda x: 1.0001 * x.relu(), 2.5)

    asked = trainers.TrainingRequest("topk", 3, 3, 3, 0.5, None, 0)
    with pytest.raises(RuntimeError, match=r"SAELens topk: the exported weights differ by 1\.0e-04"):
        trainers.train_checked(Wrong(), asked, [torch.rand(5, 3)])  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------- rates and penalties


def tuned_line(lr: float, l0: float, loss: float | None, requested: int = 8, penalty: float | None = None):
    return {"place": "tiny", "library": "SAELens", "architecture": "topk", "lr": lr, "requested_l0": requested,
            "l0": l0, "delta_lm_loss": loss, "fvu": 0.5, "penalty": penalty}  # fmt: skip


def test_the_tuned_rate_has_the_lowest_score_and_needs_every_rate(monkeypatch):
    place = PLACES["tiny"]._replace(tuning_l0=(8,))
    own = trainers.SAELens.default_lr("topk", place.width)
    lrs = [plan.round_rate(factor * own) for factor in plan.RATE_FACTORS]
    losses = [0.5, 0.4, 0.21, 0.2, 0.3, math.inf]
    lines = [tuned_line(lr, 8.0, loss if loss < 9 else None) for lr, loss in zip(lrs, losses, strict=True)]
    lines[2]["l0"] = 4.0  # 0.21·(1/2)^0.65 is better than 0.2
    lines[5]["fvu"] = None
    assert plan.rates(lines, place, "SAELens", "topk") == [("default", 3e-4), ("tuned", lrs[2])]
    assert plan.rates(lines[1:], place, "SAELens", "topk") == [("default", 3e-4)]
    assert plan.rate_score([lines[5]], (8,)) == math.inf


def test_a_penalty_is_interpolated_in_the_logarithm():
    lines = [tuned_line(1e-3, l0, 0.2, 0, penalty) for l0, penalty in ((64.0, 0.01), (4.0, 1.0), (16.0, 0.1))]
    assert plan.penalty_for(lines, 16) == 0.1
    assert plan.penalty_for(lines, 8) == pytest.approx(10**-0.5, rel=0.002)
    assert plan.penalty_for(lines, 999) == 0.01
    assert plan.penalty_for(lines[:1], 16) is None


def test_the_plan_holds_what_the_comparison_is_of():
    found = list(plan.table_runs([]))
    ours = {one.architecture for one in found if one.library == "jumpahead"}
    assert ours == set(runs.ARCHITECTURES.names())
    rows = {(one.place, one.tokens, one.requested_l0, one.seed) for one in found}
    assert {row[2] for row in rows if row[:2] == ("stories260K", 2_000_000)} == {4, 8, 16, 32}
    assert {row[3] for row in rows if row[:2] == ("stories260K", 2_000_000)} == {0, 1, 2}
    assert {row[2:] for row in rows if row[0] == "tiny"} == {(8, 0), (32, 0), (128, 0)}
    assert ("dictionary", 2_000_000, 11, 0) in rows
    gated = plan.Selection(libraries=("SAELens",), architectures=("gated",))
    assert not any(map(gated.has, found)), "its penalties are not known yet"
    tuning = [one for one in plan.tuning_runs() if gated.has(one) and one.place == "tiny"]
    assert len(tuning) == len(plan.RATE_FACTORS) * len(trainers.SAELens.penalties)
    known = [one._asdict() | {"l0": 3 / one.penalty, "delta_lm_loss": 0.3, "fvu": 0.4} for one in tuning if one.penalty]
    assert {(one.rate, one.penalty) for one in plan.table_runs(known) if gated.has(one) and one.requested_l0 == 8} == {
        ("default", 0.375), ("tuned", 0.375),
    }  # fmt: skip


def test_the_plan_counts_what_is_there_and_names_what_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "library_version", lambda library: "0.1" * (library == "jumpahead"))
    chosen = plan.Selection(places=("dictionary",))
    one = QualityRun("dictionary", "final", 2_000_000, "jumpahead", "gated", 11, "recipe", None)
    key = one.key(PLACES["dictionary"].data_digest("final", tmp_path))
    save_results(tmp_path / "final.jsonl", {key: {"key": key}})
    said = program.describe_plan(chosen, tmp_path / "development.jsonl", tmp_path / "final.jsonl", tmp_path)
    assert f"final: dictionary, jumpahead: 1 of {len(runs.ARCHITECTURES.names())} SAEs" in said
    assert "SAELens: not on this machine" in said


# ---------------------------------------------------------------------------------------------- the table


def table_line(library, architecture, l0, delta, rate="default", seed=0, asked=8):
    one = ONE._replace(library=library, architecture=architecture, rate=rate, seed=seed, requested_l0=asked)
    values = {"l0": l0, "delta_lm_loss": delta, "se": 0.002, "fvu": 0.1, "dead": 13.0, "seconds": 21.0}
    return {"key": f"{one}", **one._asdict(), "width": 2048, "measured_on": 1234, **values}


def test_the_best_of_both_sides_is_compared_at_a_reached_l0():
    members = [
        table_line("jumpahead", "jumprelu", 8.1, 0.22, "recipe"), table_line("jumpahead", "topk", 8.0, 0.2, "recipe"),
        table_line("SAELens", "topk", 8.0, 0.24, "tuned", 0), table_line("SAELens", "topk", 8.0, 0.26, "tuned", 1),
        table_line("SAELens", "batchtopk", 9.5, 0.1, "tuned"), table_line("sparsify", "topk", 8.0, None, "tuned"),
    ]  # fmt: skip
    row = render_best(members).splitlines()[-1]
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "8", "topk 0.2000", "SAELens topk tuned 0.2500", "0.800", "1.100",
    ]  # fmt: skip
    page = render_page({one["key"]: one for one in members})
    assert "## tiny, 2e6 tokens" in page
    assert "0.2500 (0.2400–0.2600)" in page
    assert "0.2200 ± 0.0020" in page
    assert "F1" not in page.partition("##")[2]
    table = page.partition("##")[2]
    assert table.index("| jumpahead") < table.index("| SAELens")


def test_the_committed_page_is_made_from_the_committed_lines():
    lines = load_results(program.RESULTS / "final.jsonl")
    assert lines
    assert (program.RESULTS / "quality.md").read_text(encoding="utf-8") == render_page(lines)


def test_an_sae_with_an_input_bias_is_exported_with_it():
    case = next(case for case in CASES if case.label == "jumprelu-l0")
    state, mean = random_state(case, 6, 30, seed=3, dtype=torch.float32), torch.linspace(40.0, 55.0, 6)
    sae = SAE(state.arch, Unit(2.5, mean).fold(state.arch, state.params))
    x = mean + 2.5 * activations(50, 6, 4, torch.float32)
    torch.testing.assert_close(export(sae)(x), sae(x))
    assert (sae.encode(x) > 0).any()


def test_an_sae_of_ours_from_data_to_its_line(tmp_path, monkeypatch):
    small = PLACES["dictionary"]._replace(width=96, held_out=2_000, budgets=(Budget(4_096, (0,)),))
    monkeypatch.setitem(PLACES, "dictionary", small)
    monkeypatch.setattr(places, "DICTIONARY", DICTIONARY | {"groups": 40})
    monkeypatch.setattr(places, "BATCH", 512)
    one = QualityRun("dictionary", "final", 4_096, "jumpahead", "topk", 11, "recipe", None)
    (line,) = make_missing([one], tmp_path / "final.jsonl", tmp_path / "runs", 1, say=lambda text: None).values()
    assert line["l0"] == pytest.approx(11, rel=0.02)  # fewer than 11 features are positive at some tokens
    assert 0 < line["f1"] < 1
    assert np.isfinite([line["fvu"], line["dead"], line["seconds"]]).all()
    save_results(tmp_path / "final.jsonl", {})


@pytest.mark.skipif(not PEER_PYTHON.exists(), reason="the other libraries are not installed: make bench-quality")
def test_every_library_trains_and_is_exported_exactly():
    command = [str(PEER_PYTHON), "-W", "ignore", "-m", "benchmarks.quality", "--quick", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    for library, architecture in plan.peer_series():
        assert f"\n{library} {architecture} L0 " in done.stdout
