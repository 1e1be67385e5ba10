"""A study on a fake GPU (fake_gpu.py): everything that meets is in the same place."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal

import pytest
import torch

import jumpahead
from benchmarks import gpu
from benchmarks.gpu import GPUBenchmark, compile_kernels
from benchmarks.gpu_report import PARTS
from benchmarks.gpu_setup import TINY
from jumpahead.engine import decode, encode
from jumpahead.evaluation import batches, evaluate
from jumpahead.evaluation.batches import GPU_MEMORY_SHARE, encoder_bytes
from jumpahead.frontier import Frontier
from jumpahead.pipeline.run import run_study
from jumpahead.planning.plan import make_plan
from jumpahead.progress import SilentProgress
from jumpahead.sae.saved import SAE
from jumpahead.storage.json_files import read_json
from jumpahead.storage.run_folder import Run
from jumpahead.study.load import load
from jumpahead.study.save import to_toml
from jumpahead.training.job import Job
from tests.fake_gpu import DeviceMismatch, fake_gpu
from tests.texts import random_words


def test_what_a_gpu_refuses_is_refused():
    x = torch.arange(6.0)
    with fake_gpu():
        there = x.to("cuda")
        assert there.is_cuda
        assert there.device.type == "cuda"
        assert not there.cpu().is_cuda
        assert (2 * there + 3).mean().is_cuda
        assert there.new_zeros(4).is_cuda
        assert torch.empty_like(there).is_cuda
        with pytest.raises(DeviceMismatch):
            _ = there + torch.ones(6)
        with pytest.raises(DeviceMismatch):
            there.numpy()
        with pytest.raises(DeviceMismatch):
            _ = x[there > 3]
        assert (there * torch.tensor(7.0)).is_cuda
        assert there[torch.tensor([5, 2])].tolist() == [5.0, 2.0]
        there[torch.tensor([5, 2])] = 0.5
        assert x[5] == 5
        layer = torch.nn.Linear(6, 2).to("cuda")
        assert layer(there).is_cuda
        with pytest.raises(DeviceMismatch):
            layer(x)


STUDY = """
name = "small"

[lm]
model = "{model}"
context = 32
batch = 4
dtype = "float32"

[text]
source = "{text}"
held_out = 0.3

[activations]
sites = ["layers.1.residual"]
block = 16
scale_rows = 200
{more}

[sae]
width = 32

[train]
tokens = {tokens}
batch = 32

[evaluate]
tokens = 300
replicates = 20
"""
SERIES = """
[[series]]
architecture = "{name}"
{kind} = {values}
"""


@pytest.fixture(scope="module")
def write(tmp_path_factory, lm_folder):
    """`write(series, tokens)` is a study file."""
    folder = tmp_path_factory.mktemp("study")
    text = random_words(folder / "text", 20).as_posix()

    def write(series, tokens, more=""):
        path = folder / "small.toml"
        whole = STUDY.format(model=lm_folder("neox").as_posix(), text=text, tokens=tokens, more=more)
        path.write_text(whole + "".join(SERIES.format(name=n, kind=k, values=v) for n, k, v in series))
        return path

    return write


IS_COMPILED = os.environ.get("TRITON_INTERPRET") != "1" or torch.cuda.is_available()
LAYERS = [
    "torch",
    pytest.param("triton", marks=pytest.mark.skipif(IS_COMPILED, reason="Triton's interpreter: make test-gpu")),
]


@pytest.fixture(params=LAYERS)
def layer(request, monkeypatch):
    """The kernel layer of GPU steps: torch if Triton is not installed."""
    if request.param == "torch":
        found = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "triton" else found(name, *a))
    return request.param


def run(study, folder, there, free=10**9):
    """The frontier's points, after a run on the GPU, of which so much is free, or on the CPU."""
    target = Run(folder)
    with contextlib.ExitStack() as stack:
        tracker = stack.enter_context(fake_gpu(free)) if there else None
        with target.lock():
            target.record_study(to_toml(study))
            run_study(study, target)
    return Frontier.load(folder).points(), tracker


def test_a_study_runs_on_the_gpu_and_saes_of_the_cpu_are_measured_there(write, layer, tmp_path):
    study = load(write([("jumprelu", "l0", [3, 5]), ("topk", "k", [4]), ("batchtopk", "k", [4])], 32 * 12))
    wanted, _ = run(study, tmp_path / "here", False)
    found, tracker = run(study, tmp_path / "there", True)
    assert (tracker.launched > 0) == (layer == "triton")
    for one, other in zip(found, wanted, strict=True):
        assert one["metrics"]["l0"] == pytest.approx(other["metrics"]["l0"], rel=0.5)
    for path in (tmp_path / "here").rglob("evaluation.json"):
        path.unlink()
    again, tracker = run(study, tmp_path / "here", True)
    assert (tracker.launched > 0) == (layer == "triton")
    for one, other in zip(again, wanted, strict=True):
        ours, theirs = ({k: v for k, v in each["metrics"].items() if v is not None} for each in (one, other))
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)


def test_saes_are_evaluated_in_parts_where_not_all_fit(write, layer, tmp_path, monkeypatch):
    """Never more on the GPU at once than its memory was found to hold, and the same numbers."""
    study = load(write([("jumprelu", "l0", [3, 5]), ("topk", "k", [4])], 32 * 2))
    wanted, _ = run(study, tmp_path, True)
    size = encoder_bytes(SAE.load(next(tmp_path.rglob("weights.safetensors")).parent))
    most, alive, real = [0], [0], batches.SparseEncoder

    class Counted(real):
        def __init__(self, *args):
            super().__init__(*args)
            alive[0] += 1
            most[0] = max(most[0], alive[0])

        def __del__(self):
            alive[0] -= 1

    monkeypatch.setattr(batches, "SparseEncoder", Counted)
    monkeypatch.setattr(evaluate, "LOGIT_BYTES", 0)
    for free, at_once in ((int(2.5 * size / GPU_MEMORY_SHARE), 2), (0, 1)):
        for path in tmp_path.rglob("evaluation.json"):
            path.unlink()
        most[0] = 0
        found, _ = run(study, tmp_path, True, free)
        assert most[0] == at_once
        assert [one["metrics"] for one in found] == [one["metrics"] for one in wanted]


@pytest.mark.parametrize("more", ["", 'origin = "shards"'])
def test_a_run_goes_on_from_a_checkpoint_on_the_gpu(write, layer, tmp_path, monkeypatch, more):
    """Stopped in the middle, the SAEs have the bytes they have anyway."""
    series = [("jumprelu", "l0", [3])] if layer == "triton" else [("jumprelu", "l0", [3]), ("gated", "lambda", [0.02])]
    study = load(write(series, 32 * 10, more))
    run(study, tmp_path / "whole", True)
    real, count = Job.step, [0]

    def step(self, *args):
        count[0] += 1
        if count[0] == 5:
            signal.raise_signal(signal.SIGINT)
        return real(self, *args)

    monkeypatch.setattr(Job, "step", step)
    with pytest.raises(KeyboardInterrupt):
        run(study, tmp_path / "cut", True)
    assert list((tmp_path / "cut").rglob("state.safetensors"))
    run(study, tmp_path / "cut", True)
    pairs = [[p.read_bytes() for p in sorted((tmp_path / f).rglob("weights.safetensors"))] for f in ("whole", "cut")]
    assert pairs[0] == pairs[1]
    assert pairs[0]


def test_a_plan_measures_on_the_gpu(write, layer, tmp_path):
    study = load(write([("jumprelu", "l0", [3]), ("topk", "k", [4])], 32 * 10))
    with fake_gpu():
        made = make_plan(study, tmp_path, measure=True)
    assert made.seconds is not None
    assert made.seconds.total > 0


def test_saes_are_trained_on_tensors_of_the_gpu(layer, tmp_path):
    """`train_on` with batches that are there already; and a saved SAE is taken there."""
    random = torch.Generator().manual_seed(7)
    rows = torch.randn(40, 12, generator=random)[torch.randint(40, (900, 2), generator=random)].sum(1)
    with fake_gpu():
        jumpahead.train_on(
            iter(rows.to("cuda").split(90)), out=tmp_path / "run", series=[{"architecture": "topk", "k": [2]}],
            width=32, tokens=320, group=50, train={"batch": 32}, evaluate={"replicates": 20}, progress=SilentProgress(),
        )  # fmt: skip
        (sae,) = [SAE.load(path.parent) for path in (tmp_path / "run").rglob("weights.safetensors")]
        there, x = sae.to("cuda"), rows[:17].to("cuda")
        assert there is there.to("cuda")
        assert sae is sae.to("cpu")
        dense, found = there(x), encode(sae, x)
        assert found.value.is_cuda
        torch.testing.assert_close(there.decode(there.encode(x)).cpu(), sae(rows[:17]), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(decode(there, found).cpu(), dense.cpu(), rtol=1e-5, atol=1e-5)


def test_every_part_of_the_benchmark_runs_on_the_gpu(layer, tmp_path, monkeypatch):
    """Figures mean nothing there; they go to the file that is asked for."""
    for name, value in {"CHECKED_SIZE": TINY, "CEILING_SIZES": (16, 64), "SIZES": [TINY], "L0S": (4, 8)}.items():
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    parts = [part for part in PARTS if part != "warm"]  # in processes of its own
    if layer == "triton":
        parts = ["ceilings", "breakdown", "frontier", "pair"]
        monkeypatch.setattr(gpu, "FRONTIER_SAES", (("topk", 1.0),))
    with fake_gpu(free=10**12) as tracker:
        assert compile_kernels("jumprelu", TINY)
        monkeypatch.setattr(GPUBenchmark, "repeats", property(lambda self: 1, lambda self, value: None), raising=False)
        status = gpu.main(["--parts", *parts, "--out", str(tmp_path / "found")])
    found = read_json(tmp_path / "found.json")
    assert [found[part] for part in parts if "unavailable" in found[part]] == []
    assert [row for part in parts for row in found[part].get("rows", ()) if "unavailable" in row] == []
    assert status == 0
    assert (tracker.launched > 0) == (layer == "triton")
    assert (tmp_path / "found.md").read_text().startswith("# Steps on a fake GPU")
