"""The efficiency measurement: formulas against hand-computed numbers, timers on known work, a whole tiny run."""

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

from jumpahead import efficiency
from jumpahead.efficiency import StepShape, benchmark, cost_model, labels
from jumpahead.efficiency.cases import BenchmarkCase, synthetic_activations
from jumpahead.efficiency.dense_training import (
    DenseTrainer,
    approximate_top_k,
    dense_losses,
    recall,
    top_k_indices,
    topk_loss,
)
from jumpahead.efficiency.implementations import DenseRecipe, SparseEngine
from jumpahead.efficiency.machine_limits import MachineLimits
from jumpahead.efficiency.memory import PeakMemory
from jumpahead.efficiency.profiling import (
    STAGES_OF_METHOD,
    KernelCall,
    OperationTimer,
    TimedKernels,
    TimedOperation,
    dense_forward_stages,
    sparse_step_stages,
)
from jumpahead.engine import Kernels, initial_state, kernel_layer
from jumpahead.engine.kernels.torch.layer import TorchKernels
from jumpahead.errors import StudyError
from jumpahead.report import EFFICIENCY_SCHEMA
from jumpahead.sae.architecture import Architecture
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.auxk import WithAuxK
from jumpahead.sae.gradients import StepInputs
from jumpahead.sae.recipe import Setting, TrainConfig, base_recipe
from jumpahead.storage.json_files import read_json, write_json
from jumpahead.study.load import parse

TINY = StepShape(d=24, width=320, batch=96, l0=5)
SMALL = StepShape(d=48, width=960, batch=384, l0=6)


def architecture(name: str, l0: float = 5) -> Architecture:
    kind = ARCHITECTURES.get(name)
    return kind(kind.Options(), Setting("l0", l0), base_recipe(TrainConfig(batch=96)))


def untrained(name: str, dtype: torch.dtype = torch.float64) -> tuple[Any, torch.Tensor, StepInputs]:
    """Return an SAE, a batch, and step inputs; with dead features if the architecture uses them."""
    x = torch.randn(96, 24, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype) / 24**0.5 + 0.07
    state = initial_state(architecture(name), 24, 320, 0, x)
    dead = torch.zeros(320, dtype=torch.bool)
    dead[5::7] = True
    return state, x, StepInputs(0.013, dead if state.arch.needs_dead_features else None)


# ---------------------------------------------------------------------------------------------- cost model


GATED = cost_model.StepSize(batch=3, d=5, width=7, entries=11, touched=4, reconstructions=2, live=1, unit_norm=True)


def test_flops_and_bytes_by_hand():
    assert cost_model.product_flops(GATED) == 2 * 3 * 5 * 7
    assert cost_model.dense_products(GATED) == 8
    assert cost_model.dense_flops(GATED) == 8 * 210 + 2 * 35 * 13 + 35 * 7
    # eight products of 15, 35 and 21 numbers, five passes over 21 for each reconstruction, Adam, decoder norm
    assert cost_model.dense_bytes(GATED) == 4 * (8 * 71 + 2 * 5 * 21 + 14 * 35 + 6 * 35)
    # per entry π, two decodes, two projections, ∂W_enc, ∂W_dec; per row two Adams, ‖w_enc‖, the decoder's norm
    assert cost_model.engine_flops(GATED) == 210 + 11 * 5 * 2 * 7 + 4 * 5 * (20 + 2 + 7) + 2 * 35
    assert cost_model.engine_bytes(GATED) == 4 * (15 + 35 + 2 * 21 + 11 * 5 * 6 + 8 * 4 * 5 + 35)
    assert cost_model.rows_bytes(GATED) == 4 * 8 * 4 * 5
    assert cost_model.state_bytes(GATED, moments=2) == 4 * 70 * 3
    momentum = GATED._replace(momentum=True)
    assert cost_model.engine_flops(momentum) - cost_model.engine_flops(GATED) == 4 * 5 * 2 * 3
    assert cost_model.engine_bytes(momentum) - cost_model.engine_bytes(GATED) == 4 * 4 * 4 * 5
    assert cost_model.rows_bytes(momentum) == 4 * 12 * 4 * 5
    free = GATED._replace(unit_norm=False)
    assert cost_model.dense_flops(GATED) - cost_model.dense_flops(free) == 35 * 7
    assert cost_model.engine_flops(GATED) - cost_model.engine_flops(free) == 20 * 7


@pytest.mark.parametrize("name", ARCHITECTURES.names())
def test_torch_counts_as_many_products(name: str):
    """torch's FLOP counter agrees, for dense training of every architecture."""
    case, x = BenchmarkCase(TINY, name, MachineLimits([], 1.0), dead=0.1), untrained(name)[1]
    state, _, inputs = case.state_and_losses(x)
    dense = DenseTrainer(state.arch, state.params, list(state.second_moments), state.arch.loss, lr=1e-3)
    with FlopCounterMode(display=False) as counter:
        dense.step(x, inputs)
    assert counter.get_total_flops() == cost_model.dense_products(case.size) * cost_model.product_flops(case.size)


def test_group_size():
    assert cost_model.group_size(32, 4096, 0.95) == 4  # 620 groups are enough; 6 would do, and 4 divides 4096
    assert cost_model.group_size(64, 4096, 0.95) == 2
    assert cost_model.group_size(1, 60, 0.95) == 3
    assert cost_model.group_size(60, 64, 0.95) == 1


# ---------------------------------------------------------------------------------------------- dense training


@pytest.mark.parametrize("name", ARCHITECTURES.names())
def test_one_dense_step_in_closed_form(name: str):
    """With zero moments, Adam with β₁ = 0 changes each parameter by rate·g/(|g| + ε)."""
    state, x, inputs = untrained(name)
    leaves = {key: state.params[key].clone().requires_grad_() for key in state.second_moments}
    found = torch.autograd.grad(state.arch.loss(state.params | leaves, x, inputs), list(leaves.values()))
    g = dict(zip(leaves, found, strict=True))
    w = state.params["W_dec"]
    is_unit = state.arch.decoder_norm == "unit"
    if is_unit:
        g["W_dec"] = g["W_dec"] - (g["W_dec"] * w).sum(1, keepdim=True) * w
    epsilon = state.arch.recipe.adam_epsilon
    rates = {key: 0.002 * state.arch.trained_vectors.get(key, 1.0) for key in g}
    expected = {key: state.params[key] - rates[key] * g[key] / (g[key].abs() + epsilon) for key in g}
    if is_unit:
        expected["W_dec"] = expected["W_dec"] / expected["W_dec"].norm(dim=1, keepdim=True)

    dense = DenseTrainer(state.arch, state.params, list(state.second_moments), state.arch.loss, lr=0.002)
    dense.step(x, inputs)
    for key, value in expected.items():
        torch.testing.assert_close(dense.p[key].detach(), value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "name", [name for name in ARCHITECTURES.names() if issubclass(ARCHITECTURES.get(name), WithAuxK)]
)
@pytest.mark.parametrize("has_dead", [False, True])
def test_top_k_by_torch_is_the_same_loss(name: str, has_dead: bool):
    state, x, inputs = untrained(name)
    inputs = inputs if has_dead else StepInputs()
    gradients = []
    for loss in (state.arch.loss, topk_loss(state.arch, top_k_indices)):
        leaves = {key: state.params[key].clone().requires_grad_() for key in state.second_moments}
        value = loss(state.params | leaves, x, inputs)
        gradients.append([value, *torch.autograd.grad(value, list(leaves.values()))])
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_methods_of_each_architecture():
    for name in ARCHITECTURES.names():
        state, x, inputs = untrained(name)
        found = dense_losses(state.arch, state.params, x[:7], inputs)
        assert list(found) == (["dense", "approximate"] if name == "topk" else ["dense"])
        assert set(found) <= labels.METHODS.keys()


def test_approximate_top_k_keeps_group_maxima_and_its_recall_is_the_closed_form():
    pre, k, width = torch.randn(3000, 2048, generator=torch.Generator().manual_seed(5)), 24, 2048
    size = cost_model.group_size(k, width, 0.95)
    groups = width // size
    assert size == 4
    index = approximate_top_k(pre, k)
    assert index.shape == (3000, k)
    chosen, best = pre.gather(1, index), pre.view(-1, size, groups).amax(1)
    assert torch.equal(chosen, best.gather(1, index % groups))
    assert torch.equal(chosen.sort(1).values, best.topk(k).values.flip(1))
    # the i-th largest is lost if one of the i − 1 larger ones is among the other `size` − 1 of its case
    expected = 1.0
    kept = 1.0
    for i in range(1, k):
        kept *= 1 - (size - 1) / (width - i)
        expected += kept
    assert recall(pre, k) == pytest.approx(expected / k, abs=0.002)
    assert recall(pre, 1200) == 1.0  # groups of one


# ---------------------------------------------------------------------------------------------- profiling


def test_stages_of_a_forward_pass():
    """The operations of Gated in order; durations are distinct powers of two."""
    batch, d, width = 3, 5, 7
    narrow, wide = batch * d, batch * width
    operations = [
        TimedOperation("aten::sub", 1, narrow, narrow),
        TimedOperation("aten::mm", 2, wide, wide),  # encoder
        TimedOperation("aten::relu", 4, wide, wide),
        TimedOperation("aten::mm", 8, narrow, wide),  # decode
        TimedOperation("aten::sub", 16, narrow, narrow),
        TimedOperation("aten::relu", 32, wide, wide),
        TimedOperation("aten::mm", 64, narrow, wide),  # second decode
        TimedOperation("aten::sub", 128, narrow, narrow),
        TimedOperation("aten::sum", 256, batch, wide),  # the penalty
    ]
    found = dense_forward_stages(operations, batch, d, width)
    assert found == {"product": 2, "selection": 1 + 4 + 256, "decode": 8 + 16, "auxiliary": 32 + 64 + 128}
    alone = dense_forward_stages([*operations[:5], operations[8]], batch, d, width)
    assert alone == {"product": 2, "selection": 1 + 4 + 256, "decode": 8 + 16, "auxiliary": 0}


def test_stages_of_kernels_add_up_to_the_step():
    calls = [
        KernelCall("centre_input", 1),
        KernelCall("find_support", 32, 20),
        KernelCall("decode", 2),
        KernelCall("decode", 4),
        KernelCall("fold", 64),
    ]
    found = sparse_step_stages([*calls, KernelCall("update_rows", 8)], step_seconds=128.0)
    assert found == {
        "product": 20, "selection": 1 + 12, "decode": 2, "auxiliary": 4, "fold()": 64, "rows": 8, "rule": 17,
    }  # fmt: skip
    assert sum(found.values()) == 128


def test_timed_kernels_behave_like_the_layer():
    class Layer:
        name = "invented"

        def find_support(self, x: torch.Tensor, *, pause: float) -> torch.Tensor:
            time.sleep(pause)
            return x @ x

        def fold(self) -> str:
            return self.name + str(int((torch.full((2, 2), 3.0) @ torch.full((2, 2), 3.0)).sum()))

    clock = TimedKernels(Layer())
    assert clock.name == "invented"
    assert torch.equal(clock.find_support(torch.full((2, 2), 3.0), pause=0.02), torch.full((2, 2), 18.0))
    assert clock.fold() == "invented72"
    (first, took, products), (second, _, none) = clock.calls
    assert (first, second, none) == ("find_support", "fold", 0)
    assert products > 0
    assert took - products >= 0.02
    with pytest.raises(AttributeError):
        clock.unknown()


def test_operations_are_recorded_with_their_sizes():
    with OperationTimer() as clock:
        torch.mm(torch.ones(3, 5), torch.ones(5, 7), out=torch.empty(3, 7))
        torch.ones(4, 9).sum()
    seen = {one.name: (one.result_numel, one.largest_numel) for one in clock.operations}
    assert seen["aten::mm"] == (21, 35)
    assert seen["aten::sum"] == (1, 36)
    assert all(one.seconds >= 0 for one in clock.operations)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this system keeps no high-water mark")
def test_peak_memory_includes_freed_tensors():
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
    found = efficiency.shape_grid(d=48, widths=[128, 512], l0s=[8, 32])
    assert found == [StepShape(48, width, 2048, l0) for width in (128, 512) for l0 in (8, 32)]
    assert efficiency.shape_grid() == [StepShape(256, 4096, 2048, 32)]
    assert found[1].label == "d = 48, width 128, batch 2,048, L0 = 32"
    with pytest.raises(StudyError, match=r"d = 48, width 128, .* L0 = 128 cannot be measured: --l0 must be"):
        efficiency.shape_grid(d=48, widths=[128], l0s=[128])


def test_a_study_gives_its_shape():
    raw = {
        "name": "small",
        "sae": {"width": [48, 96]},
        "activations": {"origin": "synthetic", "options": {"d": 20}},
        "train": {"tokens": 10_000, "batch": 64, "threads": 2},
        "series": [{"architecture": "topk", "k": [3, 5]}, {"architecture": "jumprelu", "l0": [2, 9]}],
    }
    known = efficiency.defaults_from_study(parse(raw))
    assert known == efficiency.ShapeDefaults(20, (48, 96), 64, [5.0], 2)
    assert efficiency.shape_grid(known, batch=32) == [StepShape(20, width, 32, 5) for width in (48, 96)]
    other = efficiency.defaults_from_study(parse({**raw, "activations": {"origin": "synthetic"},
                                       "series": [{"architecture": "gated", "lambda": [0.1]}]}))  # fmt: skip
    assert other.l0s == efficiency.ShapeDefaults().l0s
    with pytest.raises(StudyError, match=r"is unknown on this machine\. Give it with --d"):
        efficiency.shape_grid(other)
    assert (
        efficiency.defaults_from_study(parse({**raw, "activations": {"sites": ["layers.1.mlp"]}})).d == 256
    )  # the tiny model


@pytest.mark.parametrize("text", ["16,", "4,x", "0", "1e400", "nan", "-3"])
def test_lists_of_numbers_are_checked(text: str):
    with pytest.raises(StudyError, match=r"--l0 .*: give comma-separated numbers"):
        efficiency.parse_numbers(text, "--l0")


def test_lists_of_numbers():
    assert efficiency.parse_numbers("16,32.5", "--l0") == [16, 32.5]
    assert efficiency.parse_integers("4_096,8192", "--width") == [4096, 8192]
    assert efficiency.parse_numbers(None, "--l0") == []
    with pytest.raises(StudyError, match="give integers"):
        efficiency.parse_integers("4096.5", "--width")


# ---------------------------------------------------------------------------------------------- whole measurement


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:  # ample time and few rounds: independent of the machine's load
        patch.setattr(benchmark, "MAX_ROUNDS", 4)
        return benchmark.measure([SMALL, SMALL._replace(width=640)], seconds=120, dead=0.1)


def test_every_architecture_has_a_row_per_method(found: dict[str, Any]):
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
        assert len(shape["limits"]["products"]) == 3


def test_rows_are_consistent(found: dict[str, Any]):
    for shape in found["shapes"]:
        for row in shape["rows"]:
            assert row["lower_quartile_ms"] <= row["ms"] <= row["upper_quartile_ms"]
            assert row["rounds"] == 4
            assert row["tokens_per_s"] == pytest.approx(384e3 / row["ms"])
            assert row["hours_1e9"] == pytest.approx(1e9 / row["tokens_per_s"] / 3600)
            assert row["stages_ms"] == pytest.approx(sum(row["stages"].values()))
            assert row["flops"] > cost_model.product_flops(cost_model.StepSize(384, 48, shape["width"]))
            assert (row["recall"] is not None) == (row["method"] == "approximate")
        engine = {row["architecture"]: row for row in shape["rows"] if row["method"] == "engine"}
        assert engine["topk"]["l0"] <= 6
        assert engine["topk"]["entries"] > 10  # up to 24 dead features per token besides, in every fourth step
        assert engine["gated"]["l0"] == pytest.approx(6, rel=0.2)
        assert engine["jumprelu"]["l0"] == pytest.approx(6, rel=0.2)
        assert engine["jumprelu"]["entries"] > engine["jumprelu"]["l0"]
        assert {"product", "selection", "decode", "backward", "rows", "rule"} <= engine["jumprelu"]["stages"].keys()
        assert "auxiliary" in engine["gated"]["stages"]
        assert "auxiliary" not in engine["jumprelu"]["stages"]
    assert {stage["key"] for stage in found["stages"]} >= labels.STAGES.keys() - {"dense_features"}


@pytest.mark.parametrize("name", ARCHITECTURES.names())
def test_stages_add_up_to_about_the_step(name: str):
    """Interleaved medians, because other tests run at the same time."""
    shape = StepShape(d=64, width=2048, batch=512, l0=8)
    case, x = BenchmarkCase(shape, name, MachineLimits([], 1.0), 0.05), synthetic_activations(shape)
    state, found, inputs = case.state_and_losses(x)
    dense = DenseTrainer(case.arch, state.params, list(state.second_moments), found["dense"], 1e-6)
    for implementation in (
        SparseEngine(state, case.dead, kernel_layer(), 1e-6),
        DenseRecipe(dense, inputs, "highest"),
    ):
        whole, stages = [], []
        for _ in range(12):
            begun = time.perf_counter()
            implementation.step(x[:512])
            whole.append(time.perf_counter() - begun)
            stages.append(sum(implementation.profiled_step(x[:512]).values()))
        assert 0.5 < median(stages[2:]) / median(whole[2:]) < 2


def test_the_json_survives_a_round_trip(found: dict[str, Any], tmp_path: Path):
    path = write_json(tmp_path / "efficiency.json", found)
    assert read_json(path, EFFICIENCY_SCHEMA) == json.loads(json.dumps(found))


def test_methods_that_exceed_memory_are_skipped(monkeypatch: pytest.MonkeyPatch):
    # two matrices with two moments each; 8·batch·width + 5·width·d numbers of dense peak memory
    needed = 4 * (6 * 320 * 24 + 8 * 96 * 320 + 5 * 320 * 24)
    monkeypatch.setattr(benchmark, "available_bytes", lambda: needed - 1)
    monkeypatch.setattr(ARCHITECTURES, "names", lambda: ["gated"])
    monkeypatch.setattr(benchmark, "MAX_ROUNDS", 2)
    (shape,) = benchmark.measure([TINY], seconds=120, layer=TorchKernels)["shapes"]
    engine, dense = shape["rows"]
    assert engine["ms"] > 0
    assert dense["ms"] is None
    assert dense["skipped"] == "skipped: would need 1.3 MB of memory"


def test_methods_that_take_too_long_are_skipped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ARCHITECTURES, "names", lambda: ["gated"])
    (shape,) = benchmark.measure([TINY], seconds=0, layer=TorchKernels)["shapes"]
    assert [row["method"] for row in shape["rows"]] == ["engine", "dense"]
    for row in shape["rows"]:
        assert row["skipped"] == "skipped: would take about 1 s, --seconds leaves 0 s"


def test_ctrl_c_keeps_the_measured_rows(monkeypatch: pytest.MonkeyPatch):
    class Interrupted:
        """Torch kernels that are interrupted in the second architecture."""

        name, made = "interrupted", 0

        def __init__(self) -> None:
            Interrupted.made += 1
            if Interrupted.made == 5:  # 1 for its name, 2 for compilation, 1 measured
                raise KeyboardInterrupt
            self.layer = TorchKernels()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.layer, name)

    monkeypatch.setattr(ARCHITECTURES, "names", lambda: ["gated", "jumprelu"])
    monkeypatch.setattr(benchmark, "MAX_ROUNDS", 2)
    found = benchmark.measure([TINY], seconds=120, layer=Interrupted)
    assert found["is_interrupted"]
    (shape,) = found["shapes"]
    assert len({row["architecture"] for row in shape["rows"]}) == 1
    assert [row["method"] for row in shape["rows"]] == ["engine", "dense"]


def test_an_unlisted_stage_is_titled_by_its_key():
    rows = [{"stages": {"fold": 1.0, "rows": 2.0, "product": 3.0, "auxiliary": 0.0}}]
    assert [stage["key"] for stage in labels.stages_in(rows)] == ["product", "rows", "fold"]
    assert labels.stages_in(rows)[-1]["title"] == "fold"


def test_shapes_and_labels_do_not_import_torch():
    program = "import sys, jumpahead.efficiency, jumpahead.efficiency.labels; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_method_of_a_kernel_layer_has_a_stage() -> None:
    outside_steps = {"max_concurrent", "run_concurrently"}
    methods = {name for name, one in vars(Kernels).items() if callable(one) and name[0] != "_"}
    assert set(STAGES_OF_METHOD) == methods - outside_steps
