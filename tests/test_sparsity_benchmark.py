"""Tuning and the tables of requested L0: what is trained once, what a score is, what a table says."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from benchmarks.result_lines import load_results, save_results
from benchmarks.sparsity import final, runs, setups
from benchmarks.sparsity.final import render_fixed_lambda, render_matched, render_reached
from benchmarks.sparsity.runs import BOOTSTRAPPED_METRICS, RequestedRun, train_missing
from benchmarks.sparsity.setups import SETUPS, study_tables, text_file
from benchmarks.sparsity.tune import LOSS_SLOPE, load_protocol, protocol_runs, score_line
from jumpahead import versions
from jumpahead.pipeline import run as pipeline_run

ONE = RequestedRun("tiny", "development", 40_960, 2_000, "A1", "jumprelu", ("l0", 8.0))


def line(
    series: str, asked: float, l0: float, delta: float, *, above: float = 3, place: str = "tiny"
) -> dict[str, Any]:
    """A result whose replicates spread by 1 % of each number, the same way for all."""
    spread = np.linspace(0.98, 1.02, 50)
    values = {"l0": l0, "delta_lm_loss": delta, "above_10pct": 3.0}
    return {
        "key": f"{series}-{asked}", "series": series, "place": "tiny", "part": "final", "tokens": 7_000,
        "architecture": series, "setting": ["l0", asked], **values, "se": 0.003, "fvu": 0.11, "dead": 5, "seconds": 6.5,
        "sparsity_coefficient": {"lambda": 0.002 * asked}, "clusters": 40,
        "bootstrap": {name: (value * spread).tolist() for name, value in values.items()},
    }  # fmt: skip


def lines(*found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["key"]: one for one in found}


def test_a_key_follows_all_that_a_result_depends_on_and_no_path(monkeypatch):
    others = [
        ONE._replace(place="stories260K"), ONE._replace(part="final"), ONE._replace(tokens=81_920),
        ONE._replace(held_out=3_000), ONE._replace(architecture="gated"), ONE._replace(setting=("lambda", 8.0)),
        ONE._replace(seed=2), ONE._replace(recipe='{"lr": 0.0123}'), ONE._replace(architecture="topk"),
        ONE._replace(architecture="topk", options='{"aux": 0.5}'),
    ]  # fmt: skip
    keys = [one.key for one in (ONE, *others)]
    assert len(set(keys)) == len(keys)
    assert ONE._replace(series="B7").key == ONE.key, "what it is called in a table does not matter"
    moved = {name: place._replace(model="elsewhere/" + place.model) for name, place in SETUPS.items()}
    monkeypatch.setattr(runs, "SETUPS", moved)
    assert ONE.key == keys[0]
    monkeypatch.setattr(versions, "TRAINING_VERSION", versions.TRAINING_VERSION + 7)
    assert ONE.key != keys[0]


def test_every_round_gives_every_architecture_as_many_configurations():
    rules = load_protocol()
    for one in rules["round"]:
        counts = {name: len(one.get("all", []) + one.get(name, [])) for name in rules["architectures"]}
        assert len(set(counts.values())) == 1, f"round {one['name']}: {counts}"
    assert len({one.key for one in protocol_runs(rules)}) > 0


def test_a_score_makes_up_for_a_missed_l0():
    assert score_line({"delta_lm_loss": 0.3, "l0": 8.0, "setting": ["l0", 8.0]}) == pytest.approx(math.log(0.3))
    on_the_curve = {"delta_lm_loss": 0.3 * 1.5**-LOSS_SLOPE, "l0": 12.0, "setting": ["l0", 8.0]}
    assert score_line(on_the_curve) == pytest.approx(math.log(0.3))


def test_no_document_is_in_both_texts(tmp_path):
    parts = [text_file(SETUPS["tiny"], part, tmp_path) for part in ("development", "final")]
    texts = [path.read_text(encoding="utf-8").split(setups.SEPARATOR) for path in parts]
    documents = [{one.strip() for one in some} - {""} for some in texts]
    assert min(map(len, documents)) > 100
    assert not documents[0] & documents[1]


def test_what_is_there_is_not_trained_again(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline_run, "run_study", lambda *a, **k: pytest.fail("trained"))
    path = tmp_path / "found.jsonl"
    save_results(path, {ONE.key: {"key": ONE.key, "delta_lm_loss": 0.25}})
    train_missing([ONE], path, tmp_path)
    save_results(path, {"0123": {"key": "0123"}})
    assert set(load_results(path)) == {ONE.key, "0123"}, "lines of another process are kept"
    assert [json.loads(one)["key"] for one in path.read_text().splitlines()] == sorted([ONE.key, "0123"])


def test_a_place_that_is_not_on_this_machine_is_named_and_left_out(tmp_path, monkeypatch, capsys):
    gone = SETUPS["stories260K"]._replace(model="no/such/model")
    monkeypatch.setattr(runs, "SETUPS", {"stories260K": gone})
    train_missing([ONE._replace(place="stories260K")], tmp_path / "found.jsonl", tmp_path)
    assert "no/such/model is not here; 1 SAEs are left out" in capsys.readouterr().out


def test_one_sae_from_text_to_its_line(tmp_path, monkeypatch):
    """Tiny in all respects, on the bundled model: two series, one with a recipe of its own."""
    small = SETUPS["tiny"]._replace(width=96)
    monkeypatch.setattr(runs, "SETUPS", {"tiny": small})
    monkeypatch.setattr(setups, "BATCH", 512)
    wanted = [
        ONE._replace(tokens=2_048, part="final"),
        ONE._replace(tokens=2_048, part="final", recipe='{"lr": 0.0021}'),
    ]
    whole = study_tables
    monkeypatch.setattr(
        runs, "study_tables", lambda *a: whole(*a) | {"text": {**whole(*a)["text"], "max_tokens": 4_000}}
    )
    path = tmp_path / "final.jsonl"
    train_missing(wanted, path, tmp_path, threads=1)
    found = load_results(path)
    assert set(found) == {one.key for one in wanted}
    first, second = (found[one.key] for one in wanted)
    assert first["recipe"] == {}
    assert second["recipe"] == {"lr": 0.0021}
    assert first["delta_lm_loss"] != second["delta_lm_loss"]
    assert first["measured_on"] >= 2_000
    assert set(first["bootstrap"]) == set(BOOTSTRAPPED_METRICS)
    assert str(tmp_path) not in path.read_text()


def test_the_table_says_what_was_asked_and_reached_and_marks_a_miss():
    found = lines(line("jumprelu", 8, 8.2, 0.3), line("jumprelu", 16, 17.0, 0.2))
    table = render_reached(found, "tiny", 7_000)
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()[2:]]
    assert [row[:4] for row in rows] == [["jumprelu", "8", "8.2", "+2.5 %"], ["jumprelu", "16", "17", "+6.2 % !"]]
    assert (
        final.summary(lines(line("a", 8, 8.2, 0.3), line("a", 16, 17.0, 0.2)))
        == "1 of 2 requested L0 reached within 3 %"
    )


def test_the_verdict_is_a_ratio_at_the_same_l0():
    """Two power laws: at every L0 the other's loss is 1.2 times JumpReLU's."""
    found = [line("jumprelu", l0, l0, 0.9 * l0**-0.6) for l0 in (4, 8, 16, 32, 64)]
    found += [line("topk", l0, l0 * 1.1, 1.2 * 0.9 * (l0 * 1.1) ** -0.6) for l0 in (3, 7, 15, 31, 63)]
    table = render_matched(lines(*found), "tiny", 7_000)
    ratios = [cell.strip().split(" ")[0] for cell in table.splitlines()[2].split("|")[2:-1]]
    assert ratios == ["1.20"] * 5


def test_the_controller_against_fixed_lambda_in_standard_errors():
    found = [line("jumprelu-fixed", l0, l0, 0.9 * l0**-0.6) for l0 in (4, 8, 16)]
    found += [line("jumprelu", 6, 6.0, 0.9 * 6**-0.6 + 0.02)]
    cells = [
        cell.strip() for cell in render_fixed_lambda(lines(*found), "tiny", 7_000).splitlines()[2].split("|")[1:-1]
    ]
    assert cells[3].startswith("+0.0200 ± ")
    assert float(cells[4]) > 2
