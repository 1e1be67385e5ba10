"""What a step costs: counts worked out by hand, clocks on known work, and a whole measurement at a tiny shape."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from jumpahead import efficiency, store
from jumpahead.efficiency import Shape, counts, session, words
from jumpahead.efficiency.clock import (
    STAGES_OF,
    Call,
    KernelClock,
    Operation,
    OperationClock,
    PeakMemory,
    forward_stages,
    kernel_stages,
)
from jumpahead.efficiency.dense import Dense, approximate_top_k, largest_loss, losses, recall, top_k
from jumpahead.engine import Kernels, fresh_state, kernel_layer
from jumpahead.engine.kernels.torch.layer import Plain
from jumpahead.errors import StudyError
from jumpahead.report import EFFICIENCY_SCHEMA
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.auxk import WithAuxK
from jumpahead.sae.base import Architecture, Knobs
from jumpahead.sae.recipe import Setting, TrainConfig, recipe
from jumpahead.study.schema import parse

TINY = Shape(d=24, width=320, batch=96, l0=5)
SMALL = Shape(d=48, width=960, batch=384, l0=6)


def architecture(name: str, l0: float = 5) -> Architecture:
    kind = ARCHITECTURES.get(name)
    return kind(kind.Options(), Setting("l0", l0), recipe(TrainConfig.model_validate({"batch": 96})))


def untrained(name: str, dtype: torch.dtype = torch.float64) -> tuple[Any, torch.Tensor, Knobs]:
    """An SAE, a batch, and knobs with dead features for whoever asks for them."""
    x = torch.randn(96, 24, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype) / 24**0.5 + 0.07
    state = fresh_state(architecture(name), 24, 320, 0, x)
    dead = torch.zeros(320, dtype=torch.bool)
    dead[5::7] = True
    return state, x, Knobs(0.013, dead if state.arch.uses_dead else None)


# ---------------------------------------------------------------------------------------------- counts


GATED = counts.Step(batch=3, d=5, width=7, entries=11, touched=4, reconstructions=2, live=1, is_unit=True)


def test_flops_and_bytes_by_hand():
    assert counts.product_flops(GATED) == 2 * 3 * 5 * 7
    assert counts.dense_products(GATED) == 8
    assert counts.dense_flops(GATED) == 8 * 210 + 2 * 35 * 13 + 35 * 7
    # eight products of 15, 35 and 21 numbers, five passes over 21 for each reconstruction, Adam, decoder norm
    assert counts.dense_bytes(GATED) == 4 * (8 * 71 + 2 * 5 * 21 + 14 * 35 + 6 * 35)
    # per entry π, two decodes, two projections, ∂W_enc, ∂W_dec; per row two Adams, ‖w_enc‖, the decoder's norm
    assert counts.engine_flops(GATED) == 210 + 11 * 5 * 2 * 7 + 4 * 5 * (20 + 2 + 7) + 2 * 35
    assert counts.engine_bytes(GATED) == 4 * (15 + 35 + 2 * 21 + 11 * 5 * 6 + 8 * 4 * 5 + 35)
    assert counts.rows_bytes(GATED) == 4 * 8 * 4 * 5
    assert counts.state_bytes(GATED, moments=2) == 4 * 70 * 3
    free = GATED._replace(is_unit=False)
    assert counts.dense_flops(GATED) - counts.dense_flops(free) == 35 * 7
    assert counts.engine_flops(GATED) - counts.engine_flops(free) == 20 * 7


@pytest.mark.parametrize("name", ARCHITECTURES.names())
def test_torch_counts_as_many_products(name: str):
    """Its own counter, on the dense recipe of every architecture."""
    state, x, knobs = untrained(name)
    dense = Dense(state.arch, state.p, list(state.v), state.arch.loss, lr=1e-3)
    with FlopCounterMode(display=False) as counter:
        dense.step(x, knobs)
    group = session.Group(TINY, name, session.Floor([], 1.0), dead=0.1)
    assert counter.get_total_flops() == counts.dense_products(group.counted) * counts.product_flops(group.counted)


def test_members_of_a_group():
    assert counts.members(32, 4096, 0.95) == 4  # 620 groups are enough; 6 would do, and 4 divides 4096
    assert counts.members(64, 4096, 0.95) == 2
    assert counts.members(1, 60, 0.95) == 3
    assert counts.members(60, 64, 0.95) == 1


# ---------------------------------------------------------------------------------------------- the dense recipe


@pytest.mark.parametrize("name", ARCHITECTURES.names())
def test_one_dense_step_in_closed_form(name: str):
    """From fresh moments Adam with β₁ = 0 moves each parameter by rate·g/(|g| + ε)."""
    state, x, knobs = untrained(name)
    leaves = {key: state.p[key].clone().requires_grad_() for key in state.v}
    found = torch.autograd.grad(state.arch.loss(state.p | leaves, x, knobs), list(leaves.values()))
    g = dict(zip(leaves, found, strict=True))
    w = state.p["W_dec"]
    is_unit = state.arch.decoder_norm == "unit"
    if is_unit:
        g["W_dec"] = g["W_dec"] - (g["W_dec"] * w).sum(1, keepdim=True) * w
    epsilon = state.arch.recipe.adam_epsilon
    rates = {key: 0.002 * state.arch.trained.get(key, 1.0) for key in g}
    expected = {key: state.p[key] - rates[key] * g[key] / (g[key].abs() + epsilon) for key in g}
    if is_unit:
        expected["W_dec"] = expected["W_dec"] / expected["W_dec"].norm(dim=1, keepdim=True)

    dense = Dense(state.arch, state.p, list(state.v), state.arch.loss, lr=0.002)
    dense.step(x, knobs)
    for key, value in expected.items():
        torch.testing.assert_close(dense.p[key].detach(), value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "name", [name for name in ARCHITECTURES.names() if issubclass(ARCHITECTURES.get(name), WithAuxK)]
)
@pytest.mark.parametrize("has_dead", [False, True])
def test_top_k_by_torch_is_the_same_loss(name: str, has_dead: bool):
    state, x, knobs = untrained(name)
    knobs = knobs if has_dead else Knobs()
    gradients = []
    for loss in (state.arch.loss, largest_loss(state.arch, top_k)):
        leaves = {key: state.p[key].clone().requires_grad_() for key in state.v}
        value = loss(state.p | leaves, x, knobs)
        gradients.append([value, *torch.autograd.grad(value, list(leaves.values()))])
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_methods_of_each_architecture():
    for name in ARCHITECTURES.names():
        state, x, knobs = untrained(name)
        found = losses(state.arch, state.p, x[:7], knobs)
        assert list(found) == (["dense", "approximate"] if name == "topk" else ["dense"])
        assert set(found) <= words.METHODS.keys()


def test_approximate_top_k_keeps_group_maxima_and_its_recall_is_the_closed_form():
    pre, k, width = torch.randn(3000, 2048, generator=torch.Generator().manual_seed(5)), 24, 2048
    size = counts.members(k, width, 0.95)
    groups = width // size
    assert size == 4
    index = approximate_top_k(pre, k)
    assert index.shape == (3000, k)
    chosen, best = pre.gather(1, index), pre.view(-1, size, groups).amax(1)
    assert torch.equal(chosen, best.gather(1, index % groups))
    assert torch.equal(chosen.sort(1).values, best.topk(k).values.flip(1))
    # the i-th largest is lost if one of the i − 1 larger ones is among the other `size` − 1 of its group
    expected = 1.0
    kept = 1.0
    for i in range(1, k):
        kept *= 1 - (size - 1) / (width - i)
        expected += kept
    assert recall(pre, k) == pytest.approx(expected / k, abs=0.002)
    assert recall(pre, 1200) == 1.0  # groups of one


# ---------------------------------------------------------------------------------------------- clocks


def test_stages_of_a_forward_pass():
    """Gated's order of operations, with seconds that add up to a different power of two per operation."""
    batch, d, width = 3, 5, 7
    narrow, wide = batch * d, batch * width
    operations = [
        Operation("aten::sub", 1, narrow, narrow),
        Operation("aten::mm", 2, wide, wide),  # encoder
        Operation("aten::relu", 4, wide, wide),
        Operation("aten::mm", 8, narrow, wide),  # decode
        Operation("aten::sub", 16, narrow, narrow),
        Operation("aten::relu", 32, wide, wide),
        Operation("aten::mm", 64, narrow, wide),  # second decode
        Operation("aten::sub", 128, narrow, narrow),
        Operation("aten::sum", 256, batch, wide),  # the penalty
    ]
    found = forward_stages(operations, batch, d, width)
    assert found == {"product": 2, "selection": 1 + 4 + 256, "decode": 8 + 16, "auxiliary": 32 + 64 + 128}
    alone = forward_stages([*operations[:5], operations[8]], batch, d, width)
    assert alone == {"product": 2, "selection": 1 + 4 + 256, "decode": 8 + 16, "auxiliary": 0}


def test_stages_of_kernels_add_up_to_the_step():
    calls = [Call("centre", 1), Call("support", 32, 20), Call("decode", 2), Call("decode", 4), Call("fold", 64)]
    found = kernel_stages([*calls, Call("rows", 8)], whole=128.0)
    assert found == {
        "product": 20, "selection": 1 + 12, "decode": 2, "auxiliary": 4, "fold()": 64, "rows": 8, "rule": 17,
    }  # fmt: skip
    assert sum(found.values()) == 128


def test_a_kernel_clock_is_a_kernel_layer():
    class Layer:
        name = "invented"

        def support(self, x: torch.Tensor, *, pause: float) -> torch.Tensor:
            time.sleep(pause)
            return x @ x

        def fold(self) -> str:
            return self.name + str(int((torch.full((2, 2), 3.0) @ torch.full((2, 2), 3.0)).sum()))

    clock = KernelClock(Layer())
    assert clock.name == "invented"
    assert torch.equal(clock.support(torch.full((2, 2), 3.0), pause=0.02), torch.full((2, 2), 18.0))
    assert clock.fold() == "invented72"
    (first, took, products), (second, _, none) = clock.calls
    assert (first, second, none) == ("support", "fold", 0)
    assert products > 0
    assert took - products >= 0.02
    with pytest.raises(AttributeError):
        clock.unknown()


def test_operations_are_seen_with_their_sizes():
    with OperationClock() as clock:
        torch.mm(torch.ones(3, 5), torch.ones(5, 7), out=torch.empty(3, 7))
        torch.ones(4, 9).sum()
    seen = {one.name: (one.result, one.largest) for one in clock.operations}
    assert seen["aten::mm"] == (21, 35)
    assert seen["aten::sum"] == (1, 36)
    assert all(one.seconds >= 0 for one in clock.operations)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this system keeps no high-water mark")
def test_peak_memory_is_what_a_step_takes_and_gives_back():
    with PeakMemory() as memory:
        torch.ones(12, 2**20).sum()  # 48 MiB
    assert memory.bytes is not None
    assert 46 * 2**20 < memory.bytes < 62 * 2**20
    with PeakMemory() as memory:
        pass
    assert memory.bytes is not None
    assert memory.bytes < 4 * 2**20


# ---------------------------------------------------------------------------------------------- shapes


def test_shapes_are_every_width_with_every_l0():
    found = efficiency.shapes(d=48, widths=[128, 512], l0s=[8, 32])
    assert found == [Shape(48, width, 2048, l0) for width in (128, 512) for l0 in (8, 32)]
    assert efficiency.shapes() == [Shape(256, 4096, 2048, 32)]
    assert found[1].label == "d = 48, width 128, batch 2,048, L0 = 32"
    with pytest.raises(StudyError, match=r"d = 48, width 128, .* L0 = 128 cannot be measured: --l0 must be"):
        efficiency.shapes(d=48, widths=[128], l0s=[128])


def test_a_study_gives_its_shape():
    raw = {
        "name": "small",
        "sae": {"width": [48, 96]},
        "activations": {"origin": "synthetic", "options": {"d": 20}},
        "train": {"tokens": 10_000, "batch": 64, "threads": 2},
        "series": [{"architecture": "topk", "k": [3, 5]}, {"architecture": "jumprelu", "l0": [2, 9]}],
    }
    known = efficiency.of_study(parse(raw))
    assert known == efficiency.Known(20, (48, 96), 64, [5.0], 2)
    assert efficiency.shapes(known, batch=32) == [Shape(20, width, 32, 5) for width in (48, 96)]
    other = efficiency.of_study(parse({**raw, "activations": {"origin": "synthetic"},
                                       "series": [{"architecture": "gated", "lambda": [0.1]}]}))  # fmt: skip
    assert other.l0s == efficiency.Known().l0s
    with pytest.raises(StudyError, match="is not known on this machine: give it with --d"):
        efficiency.shapes(other)
    assert efficiency.of_study(parse({**raw, "activations": {"sites": ["layers.1.mlp"]}})).d == 256  # the tiny model


@pytest.mark.parametrize("text", ["16,", "4,x", "0", "1e400", "nan", "-3"])
def test_lists_of_numbers_are_checked(text: str):
    with pytest.raises(StudyError, match=r"--l0 .*: give numbers with commas between them"):
        efficiency.numbers(text, "--l0")


def test_lists_of_numbers():
    assert efficiency.numbers("16,32.5", "--l0") == [16, 32.5]
    assert efficiency.whole_numbers("4_096,8192", "--width") == [4096, 8192]
    assert efficiency.numbers(None, "--l0") == []
    with pytest.raises(StudyError, match="give whole numbers"):
        efficiency.whole_numbers("4096.5", "--width")


# ---------------------------------------------------------------------------------------------- all of it


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:  # time enough, and few rounds: nothing depends on how busy we are
        patch.setattr(session, "MOST", 4)
        return session.measure([SMALL, SMALL._replace(width=640)], seconds=120, dead=0.1)


def test_every_architecture_is_there_by_every_method(found: dict[str, Any]):
    assert found["schema"] == EFFICIENCY_SCHEMA
    assert not found["is_interrupted"]
    assert [shape["width"] for shape in found["shapes"]] == [960, 640]
    for shape in found["shapes"]:
        by_name: dict[str, list[str]] = {}
        for row in shape["rows"]:
            assert row["skipped"] is None
            by_name.setdefault(row["architecture"], []).append(row["method"])
        assert sorted(by_name) == ARCHITECTURES.names()
        assert all(methods[:2] == ["engine", "dense"] for methods in by_name.values())
        assert by_name["topk"][2:] == ["approximate"]
        assert len(shape["floor"]["products"]) == 3


def test_rows_are_consistent(found: dict[str, Any]):
    for shape in found["shapes"]:
        for row in shape["rows"]:
            assert row["low_ms"] <= row["ms"] <= row["high_ms"]
            assert row["rounds"] == 4
            assert row["tokens_per_s"] == pytest.approx(384e3 / row["ms"])
            assert row["hours_1e9"] == pytest.approx(1e9 / row["tokens_per_s"] / 3600)
            assert row["stages_ms"] == pytest.approx(sum(row["stages"].values()))
            assert row["flops"] > counts.product_flops(counts.Step(384, 48, shape["width"]))
            assert (row["recall"] is not None) == (row["method"] == "approximate")
        engine = {row["architecture"]: row for row in shape["rows"] if row["method"] == "engine"}
        assert engine["topk"]["l0"] <= 6
        assert engine["topk"]["entries"] > 20  # up to 24 dead features per token besides
        assert engine["gated"]["l0"] == pytest.approx(6, rel=0.2)
        assert engine["jumprelu"]["l0"] == pytest.approx(6, rel=0.2)
        assert engine["jumprelu"]["entries"] > engine["jumprelu"]["l0"]
        assert {"product", "selection", "decode", "backward", "rows", "rule"} <= engine["jumprelu"]["stages"].keys()
        assert "auxiliary" in engine["gated"]["stages"]
        assert "auxiliary" not in engine["jumprelu"]["stages"]
    assert {stage["key"] for stage in found["stages"]} >= words.STAGES.keys() - {"popular"}


@pytest.mark.parametrize("name", ARCHITECTURES.names())
def test_stages_add_up_to_about_the_step(name: str):
    """Medians by turns, because other tests run beside: now and then a step has the machine to itself."""
    shape = Shape(d=64, width=2048, batch=512, l0=8)
    group, x = session.Group(shape, name, session.Floor([], 1.0), 0.05), session.data(shape)
    state, found, knobs = group.state_and_losses(x)
    dense = Dense(group.arch, state.p, list(state.v), found["dense"], 1e-6)
    for contender in (
        session.Engine(state, group.dead, kernel_layer(), 1e-6),
        session.DenseContender(dense, knobs, "highest"),
    ):
        whole, stages = [], []
        for _ in range(12):
            begun = time.perf_counter()
            contender.step(x[:512])
            whole.append(time.perf_counter() - begun)
            stages.append(sum(contender.clocked(x[:512]).values()))
        assert 0.5 < median(stages[2:]) / median(whole[2:]) < 2


def test_the_json_comes_back_as_it_was(found: dict[str, Any], tmp_path: Path):
    path = store.write_json(tmp_path / "efficiency.json", found)
    assert store.read_json(path, EFFICIENCY_SCHEMA) == json.loads(json.dumps(found))


def test_what_does_not_fit_into_memory_is_skipped(monkeypatch: pytest.MonkeyPatch):
    # two matrices, two moments of each; eight times batch × width, five times width × d
    needed = 4 * (6 * 320 * 24 + 8 * 96 * 320 + 5 * 320 * 24)
    monkeypatch.setattr(session, "available_bytes", lambda: needed - 1)
    monkeypatch.setattr(session.sae, "names", lambda: ["gated"])
    monkeypatch.setattr(session, "MOST", 2)
    (shape,) = session.measure([TINY], seconds=120, layer=Plain)["shapes"]
    engine, dense = shape["rows"]
    assert engine["ms"] > 0
    assert dense["ms"] is None
    assert dense["skipped"] == "skipped: would need 1.3 MB of memory"


def test_what_would_take_too_long_is_skipped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session.sae, "names", lambda: ["gated"])
    (shape,) = session.measure([TINY], seconds=0, layer=Plain)["shapes"]
    assert [row["method"] for row in shape["rows"]] == ["engine", "dense"]
    for row in shape["rows"]:
        assert row["skipped"] == "skipped: would take about 1 s, --seconds leaves 0 s"


def test_ctrl_c_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch):
    class Interrupted:
        """Plain kernels that are interrupted in the second architecture."""

        name, made = "interrupted", 0

        def __init__(self) -> None:
            Interrupted.made += 1
            if Interrupted.made == 5:  # the first is asked for its name, two are warmed up, one is measured
                raise KeyboardInterrupt
            self.layer = Plain()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.layer, name)

    monkeypatch.setattr(session.sae, "names", lambda: ["gated", "jumprelu"])
    monkeypatch.setattr(session, "MOST", 2)
    found = session.measure([TINY], seconds=120, layer=Interrupted)
    assert found["is_interrupted"]
    (shape,) = found["shapes"]
    assert len({row["architecture"] for row in shape["rows"]}) == 1
    assert [row["method"] for row in shape["rows"]] == ["engine", "dense"]


def test_a_stage_that_nobody_knows_keeps_its_name():
    rows = [{"stages": {"fold": 1.0, "rows": 2.0, "product": 3.0, "auxiliary": 0.0}}]
    assert [stage["key"] for stage in words.stages_found(rows)] == ["product", "rows", "fold"]
    assert words.stages_found(rows)[-1]["title"] == "fold"


def test_shapes_need_no_torch():
    program = "import sys, jumpahead.efficiency, jumpahead.efficiency.words; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_method_of_a_kernel_layer_has_its_stage_and_no_other() -> None:
    around_steps = {"at_once", "side_by_side"}
    methods = {name for name, one in vars(Kernels).items() if callable(one) and name[0] != "_"}
    assert set(STAGES_OF) == methods - around_steps
