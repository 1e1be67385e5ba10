"""What benchmarks say is what they measured; here without the libraries that are compared with."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import disk, interleaved_timing, jumpahead_sae, peer_libraries, peers
from benchmarks.batch_channel import BatchChannel
from benchmarks.interleaved_timing import Case, Shape, TimedVariant, speed_ratios
from benchmarks.jumpahead_sae import SETTLED_STEPS, JumpaheadSAE
from benchmarks.library_sae import (
    COMPARED_ARCHITECTURES,
    LibrarySAE,
    ReconstructionStats,
    StartingPoint,
    starting_point,
)
from benchmarks.machine import describe_machine, file_name_of, machine_facts, processor_name
from benchmarks.peer_libraries import missing_reason
from benchmarks.peers import load_results, merge_section, render_case, write_results
from benchmarks.synthetic import MAX_FREQUENCY, make_data, zipf_frequencies
from benchmarks.table import format_digits, render_table
from benchmarks.whole_runs import RunSettings, module_of_block, study_toml
from jumpahead.study.load import parse
from jumpahead.study.schema import sae_specs

SMALL = Shape(24, 160, 96, 5)


class Absent(LibrarySAE):
    """A library that nobody has."""

    title, package, module = "Absent", "no-such-library-of-saes", "no_such_library_of_saes"
    architectures = ("jumprelu",)

    def __init__(self, architecture: str, start: StartingPoint):
        raise AssertionError("an absent library is not asked for a step")

    def step(self, x: Tensor) -> None: ...

    def evaluate(self, x: Tensor) -> ReconstructionStats: ...  # type: ignore[empty-body]


class Failing(Absent):
    """A library that is there, and fails at its second step."""

    title, package = "Failing", "torch"

    def __init__(self, architecture: str, start: StartingPoint):
        self.steps = 0

    def step(self, x: Tensor) -> None:
        self.steps += 1
        if self.steps == 2:
            raise ValueError("the second step")

    def evaluate(self, x: Tensor) -> ReconstructionStats:
        return ReconstructionStats(3.0, 0.5)


# ---------------------------------------------------------------------------------------------- data


def test_the_dictionary_has_unit_rows_and_the_data_unit_scale():
    data = make_data(24, 160, 70, 5.0, count=3, seed=4)
    assert torch.allclose(data.dictionary.norm(dim=1), torch.ones(160), atol=1e-6)
    assert [tuple(x.shape) for x in data.batches] == [(70, 24)] * 3
    assert torch.cat(data.batches).square().sum(1).mean().item() == pytest.approx(1, abs=1e-5)
    assert torch.equal(make_data(24, 160, 70, 5.0, count=3, seed=4).batches[2], data.batches[2])
    assert not torch.equal(make_data(24, 160, 70, 5.0, count=3, seed=5).batches[2], data.batches[2])


@pytest.mark.parametrize("l0", [3.0, 20.0, 60.0])
def test_frequencies_follow_zipf_and_sum_to_l0(l0: float):
    p = zipf_frequencies(160, l0)
    assert p.sum().item() == pytest.approx(l0, rel=1e-5)
    assert p.max() <= MAX_FREQUENCY
    below = p < MAX_FREQUENCY
    ratio = (p[100] / p[150]).item()  # below the cap: ((150 + 20)/(100 + 20))^0.7
    assert ratio == pytest.approx((170 / 120) ** 0.7, rel=1e-5)
    assert bool((p[below].diff() < 0).all())


def test_a_token_has_as_many_features_as_asked():
    """In more dimensions than features the features can be read off."""
    data = make_data(256, 40, 2000, 6.0, count=1, seed=2)
    features = data.batches[0] @ torch.linalg.pinv(data.dictionary)
    smallest = 0.5 / (6 * 13 / 12) ** 0.5  # a ≥ 0.5, C² ≈ L0·E[a²] = 6·13/12
    active = features > 0.5 * smallest
    assert active.sum(1).float().mean().item() == pytest.approx(6, abs=5 * (6 / 2000) ** 0.5)
    spread = (data.frequency * (1 - data.frequency) / 2000).sqrt()
    assert bool(((active.float().mean(0) - data.frequency).abs() < 5 * spread + 1e-3).all())


def test_every_contender_starts_at_the_l0_asked_for():
    data = make_data(SMALL.d, SMALL.width, 500, SMALL.l0, count=1)
    start = starting_point(data.dictionary, data.batches[0], SMALL.tokens, SMALL.l0)
    pre = (data.batches[0] - start.b_dec) @ start.w_enc.T
    assert (pre >= start.threshold).sum().item() / 500 == pytest.approx(5)
    for architecture in COMPARED_ARCHITECTURES:
        assert JumpaheadSAE(architecture, start).evaluate(data.batches[0]).l0 == pytest.approx(5, abs=0.02)


def test_dead_features_do_not_fire_and_are_positive_on_half_of_the_tokens():
    data = make_data(SMALL.d, SMALL.width, 500, SMALL.l0, count=1)
    start = starting_point(data.dictionary, data.batches[0], 500, SMALL.l0, dead=0.1)
    assert start.dead is not None
    assert start.dead.sum() == 16
    pre = (data.batches[0] - start.b_dec) @ start.w_enc.T
    kept = torch.zeros_like(pre).scatter(1, pre.topk(SMALL.l0).indices, 1.0)
    assert kept[:, start.dead].sum() == 0
    assert (pre[:, start.dead] > 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
    one = JumpaheadSAE("topk", start)
    one.prepare()
    one.step(data.batches[0])
    # the kept ones, and of the 16 dead ones the d/2 = 12 largest that are positive
    aux = (pre[:, start.dead] > 0).sum(1).clamp_max(12).float().mean().item()
    assert one.entries == [pytest.approx(5 + aux, abs=0.01)]


def test_our_fresh_state_is_the_recipes_and_learns():
    data = make_data(SMALL.d, SMALL.width, SMALL.tokens, SMALL.l0)
    start = starting_point(data.dictionary, data.batches[0], SMALL.tokens, SMALL.l0)
    one = JumpaheadSAE("jumprelu", start, "fresh")
    assert not torch.equal(one.state.params["W_dec"], start.w_dec)
    before = one.evaluate(data.batches[0]).error
    for i in range(80):
        one.step(data.batches[i % 4])
    assert one.evaluate(data.batches[0]).error < before
    settled = JumpaheadSAE("jumprelu", start, "settled", data=data.batches)
    assert settled.state.steps_done == SETTLED_STEPS
    assert settled.entries == []
    assert settled.evaluate(data.batches[0]).error < before
    narrow = JumpaheadSAE("jumprelu", start, "trained", 0.001)
    narrow.step(data.batches[0])
    wide = JumpaheadSAE("jumprelu", start, "trained")
    wide.step(data.batches[0])
    assert narrow.entries[0] < wide.entries[0]


# ---------------------------------------------------------------------------------------------- timing and tables


def test_a_library_that_is_absent_or_fails_has_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(peer_libraries, "PEERS", (Absent, Failing))
    monkeypatch.setattr(peer_libraries, "load_library", lambda peer: None)
    monkeypatch.setattr(jumpahead_sae, "SETTLED_STEPS", 3)
    monkeypatch.setattr(interleaved_timing, "SECONDS_PER_TURN", 0)
    data = make_data(SMALL.d, SMALL.width, SMALL.tokens, SMALL.l0, count=2)
    found = interleaved_timing.measure(SMALL, Case("jumprelu", 0.0), 2, data, warmup=1)
    assert [len(row["times_ms"]) for row in found["rows"] if "times_ms" in row] == [2] * 10  # 7 of ours, 3 products
    text = render_case(json.loads(json.dumps(found | {"ratios": speed_ratios(found)})))
    assert "Absent: not installed: `make bench-peers` installs no-such-library-of-saes" in text
    assert "Failing: failed: ValueError: the second step" in text
    assert text.count("Failing: failed") == 2  # by default and with `medium`: one SAE
    assert text.count("| jumpahead") == 7
    assert speed_ratios(found)["best_peer"] == {"default": None, "medium": None}


def test_a_turn_goes_on_for_its_time_and_does_not_count_a_first_step_that_others_follow(monkeypatch):
    clock = iter(float(second) for second in range(100))
    monkeypatch.setattr(interleaved_timing.time, "perf_counter", lambda: next(clock) ** 2)
    monkeypatch.setattr(interleaved_timing, "SECONDS_PER_TURN", 10)
    seen: list[str] = []
    variant = TimedVariant("slow at first", seen.append, kind="ours", products="default")
    variant.run_turn(["a", "b"])  # steps of 1, 5 and 9 seconds
    assert seen == ["a", "b", "a"]
    variant.run_turn(["a", "b"])  # one of 13
    assert variant.turns == [[5, 9], [13]]
    assert variant.result(1)["times_ms"] == [13e3]


def test_every_peer_is_named_with_a_reason_or_there():
    for peer in peer_libraries.PEERS:
        why = missing_reason(peer)
        assert why == "" or peer.package in why or "does not import" in why


def test_ratios():
    def row(kind: str, products: str, median: float, **more: Any) -> dict[str, Any]:
        return {"library": f"{kind} {median}", "kind": kind, "products": products, "median_ms": median, **more}

    found = {
        "rows": [
            row("peer", "default", 700.0), row("peer", "default", 650.0), row("peer", "medium", 300.0),
            {"library": "gone", "kind": "peer", "products": "medium", "unavailable": "not installed"},
            row("ours", "default", 26.0, state="trained"),
            row("product", "float32", 40.0), row("product", "bfloat16", 13.0),
        ]
    }  # fmt: skip
    assert speed_ratios(found) == {
        "best_peer": {"default": "peer 650.0", "medium": "peer 300.0"},
        "ours": [
            {
                "products": "default",
                "state": "trained",
                "best_peer_default": 25.0,
                "best_peer_medium": pytest.approx(300 / 26),
                "over_fastest_product": 2.0,
            }
        ],
    }


def test_a_table_is_aligned_markdown():
    assert render_table(("library", "ms"), [("a|b", "1.5"), ("jumpahead", "1,234")]).splitlines() == [
        "| library   |    ms |",
        "|-----------|------:|",
        "| a\\|b      |   1.5 |",
        "| jumpahead | 1,234 |",
    ]
    assert [format_digits(value) for value in (1234.5, 99.96, 12.345, 1.2345, 0.012345, None)] == [
        "1,234", "100.0", "12.3", "1.23", "0.0123", "–",
    ]  # fmt: skip


def test_results_are_merged_and_written(tmp_path: Any):
    out = tmp_path / "cpu_202611_peers"
    runs = {"asked": {"saes": 9, "width": 512, "l0": [8, 16, 32], "tokens": 20_480, "batch": 2048, "block": 1}}
    runs["asked"] |= {"lm": "tiny", "text": "stdlib", "context": 128, "held_out": 700}
    rows = [
        {"library": "SAELens", "stage": "trained", "unavailable": "not installed: here"},
        {"library": "jumpahead", "stage": "trained", "seconds": 61.25, "saes": [{"name": "topk k = 8", "l0": 8.0}]},
    ]
    about = {"date": "2026-11-24", "command": "python -m benchmarks.peers", "machine": machine_facts(("torch", "nix"))}
    write_results(out, {"whole_runs": {**about, **runs, "rows": rows}})
    again = load_results(out)
    memory = {"library": "jumpahead", "case": "TopK", "shape": SMALL._asdict(), "bytes": 3 * 2**20}
    write_results(out, again | {"memory": {**about, "rows": [memory | {"bytes_per_parameter": 409.6}]}})
    page = (tmp_path / "cpu_202611_peers.md").read_text()
    assert "SAELens: not installed: here" in page
    assert "topk k = 8: 8" in page
    assert "nix not installed" in page
    assert "× default" in page  # the legend
    assert page.index("## Memory") < page.index("## Whole runs")
    assert json.loads((tmp_path / "cpu_202611_peers.json").read_text()).keys() == {"whole_runs", "memory", "checksum"}


def test_a_cpus_name_becomes_part_of_a_file_name():
    assert file_name_of("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz") == "intel-xeon-platinum-8481c"
    assert file_name_of("AMD EPYC 9B14 96-Core Processor") == "amd-epyc-9b14"
    assert file_name_of("Apple M4 Pro") == "apple-m4-pro"
    assert file_name_of("@@") == "cpu"
    assert file_name_of(processor_name())
    assert describe_machine(machine_facts())


# ---------------------------------------------------------------------------------------------- other libraries' loops


def test_a_loop_in_a_thread_gets_its_batches_in_order_and_ends():
    channel, seen = BatchChannel(), []

    def loop() -> None:
        while True:
            seen.append(channel.receive().item())

    channel.start(loop)
    for number in (2.5, 3.5):
        channel.send(torch.tensor(number))
    assert seen == [2.5, 3.5]
    channel.stop()
    assert channel.thread is not None
    assert not channel.thread.is_alive()


def test_a_loop_that_fails_or_ends_is_heard_of():
    def fails() -> None:
        channel.receive()
        raise KeyError("inside")

    channel = BatchChannel()
    channel.start(fails)
    with pytest.raises(KeyError, match="inside"):
        channel.send(torch.tensor(1.5))
    with pytest.raises(RuntimeError, match="ended by itself"):
        BatchChannel().start(lambda: None)


def test_the_study_of_a_whole_run(tmp_path: Any):
    asked = RunSettings("tiny", 1, "stdlib", 512, (8, 16, 32), 20_480)
    text = tmp_path / 'a "quoted" name.txt'
    text.write_text("one\n<|endoftext|>\ntwo")
    loaded = parse(tomllib.loads(study_toml(asked, text)))
    assert len(sae_specs(loaded)) == 9
    assert loaded.text.source == str(text)
    assert loaded.train.tokens == 20_480
    assert loaded.lm.context == 128


def test_where_a_site_lies_in_the_hugging_face_model(lm_folder: Any):
    assert module_of_block(lm_folder("llama"), 2) == ("model.layers.2", 24)
    assert module_of_block(lm_folder("neox"), 0) == ("gpt_neox.layers.0", 24)


def test_the_command_line():
    options = peers.parser().parse_args(["--shapes", "24,160,96,5", "--architectures", "topk", "--rounds", "3"])
    assert options.shapes == [SMALL]
    with pytest.raises(SystemExit):
        peers.parser().parse_args(["--shapes", "24,160"])


def test_a_later_call_keeps_the_tables_that_it_does_not_measure_again():
    def section(command, *cases):
        return {"date": "2026-11-24", "command": command, "cases": [
            {"case": case, "shape": {"d": d, "width": 160}, "rows": rows} for case, d, rows in cases
        ]}  # fmt: skip

    first = merge_section(None, section("all", ("Gated", 256, 3), ("TopK", 256, 5), ("TopK", 24, 7)))
    again = merge_section(first, section("topk", ("TopK", 256, 11)))
    found = {(one["case"], one["shape"]["d"]): (one["rows"], one["command"]) for one in again["cases"]}
    assert found == {("Gated", 256): (3, "all"), ("TopK", 256): (11, "topk"), ("TopK", 24): (7, "all")}
    assert [one["shape"]["d"] for one in again["cases"]] == [24, 256, 256]
    assert merge_section(first, {"rows": [13]}) == {"rows": [13]}


# ---------------------------------------------------------------------------------------------- disk


def test_the_disk_benchmark_reads_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    given = ["--quick", "--d", "24", "--folder", str(tmp_path), "--out", str(tmp_path / "cpu_202611_disk")]
    assert disk.main(given) == 0
    results = json.loads((tmp_path / "cpu_202611_disk.json").read_text())
    assert [(one["d"], one["dtype"]) for one in results["cases"]] == [(24, "bfloat16"), (24, "float32")]
    for one, row in zip(results["cases"], (24 * 2 + 12, 24 * 4 + 12), strict=True):
        assert one["rows"] * row < one["bytes"] < 1.1 * one["rows"] * row
        assert abs(one["bytes"] / 3 / 2**20 - 1) < 0.1
        assert one["write_over_copy"] == pytest.approx(one["seconds"]["copy"][0] / one["seconds"]["write"][0])
        assert min(one["mb_per_s"].values()) > 0
    assert capsys.readouterr().out.count("| bfloat16, d = 24 |") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cpu_202611_disk.json", "cpu_202611_disk.md"]
