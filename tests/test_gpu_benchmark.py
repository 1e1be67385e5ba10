"""The GPU's benchmark, as far as it needs no card: everything runs, nothing is written, nothing else is imported."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_peers
from benchmarks.gpu import GPUBenchmark
from benchmarks.gpu_report import PARTS, mask_digits
from benchmarks.gpu_setup import NARROW_WIDTH, TIMING_LR, TINY
from benchmarks.synthetic import make_data
from jumpahead.engine import initial_state
from jumpahead.sae.architectures import ARCHITECTURES


def test_a_dry_run_runs_every_part_and_writes_nothing(capsys: pytest.CaptureFixture[str], tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path))
    assert gpu.main(["--dry-run"]) == 0
    said = capsys.readouterr().out
    for part in PARTS:
        assert f"## {mask_digits(part)[: len(part)]}" in said
    assert "no figure above was measured on a card" in said
    assert "failed" not in said
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_card_nothing_is_measured(capsys: pytest.CaptureFixture[str]):
    assert gpu.main([]) == 1
    assert "nothing is measured" in capsys.readouterr().err


def test_no_time_left_is_said():
    bench = GPUBenchmark(torch.device("cpu"), [TINY], (4,), minutes=-1)
    row: dict[str, object] = {}
    bench.measure_into(row, lambda: {"ms": 1.0})
    assert row == {"unavailable": "not measured: no time was left"}


def test_torch_numpy_and_triton_are_enough(tmp_path: Path):
    """With everything else hidden: the check and the steps of a dry run."""
    program = """
        import sys
        class Hidden:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {"pydantic", "pydantic_core", "transformers", "safetensors", "numba",
                                              "typer", "rich", "huggingface_hub", "jinja2", "plotly"}:
                    raise ImportError(name)
        sys.meta_path.insert(0, Hidden())
        from benchmarks import gpu
        assert gpu.main(["--dry-run", "--parts", "check", "steps", "breakdown"]) == 0
    """
    program = "\n".join(line[8:] for line in program.splitlines())
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_wide_sae_is_the_narrow_one_but_for_its_matrices():
    """Every parameter has the shape it has when it is drawn at full width."""
    size = TINY._replace(width=3 * NARROW_WIDTH)
    bench = GPUBenchmark(torch.device("cpu"), [size], (), minutes=1)
    for name in ARCHITECTURES.names():
        state, batches = bench.state(name, size)
        drawn = initial_state(state.arch, size.d, size.width, 0, batches[0])
        assert {k: v.shape for k, v in state.params.items()} == {k: v.shape for k, v in drawn.params.items()}, name
        assert torch.equal(state.params["W_enc"], bench.data(size).dictionary)
        l0 = gpu.train_step(state, batches[0], TIMING_LR, 1.0, bench.layer).l0
        assert l0 == pytest.approx(size.l0, rel=0.5), name


def kernels_of_openai():
    """Its four functions that are used, with their signatures and what they assert of layouts, in plain torch."""

    def transposed(sparse_indices, sparse_values, dense, N, BLOCK_SIZE_AK=128):
        assert sparse_indices.is_contiguous()
        assert sparse_values.is_contiguous()
        assert dense.is_contiguous()
        flat = torch.zeros(len(dense), N).scatter_add_(1, sparse_indices, sparse_values)
        return flat.T @ dense

    class Decoder(torch.autograd.Function):
        @staticmethod
        def forward(ctx, sparse_indices, sparse_values, decoder_weight):
            ctx.save_for_backward(sparse_indices, sparse_values, decoder_weight)
            assert decoder_weight.T.is_contiguous()
            rows = decoder_weight.T[sparse_indices]
            return (sparse_values[..., None] * rows).sum(1)

        @staticmethod
        def backward(ctx, grad_output):
            assert grad_output.is_contiguous()
            indices, values, weight = ctx.saved_tensors
            gradient = transposed(indices, values, grad_output, N=weight.shape[1]).T
            return None, (grad_output @ weight).gather(1, indices), gradient

    def add_mul_(x, a, b, c):
        x += a * b * c

    return types.SimpleNamespace(
        TritonDecoderAutograd=Decoder, triton_sparse_transpose_dense_matmul=transposed, triton_add_mul_=add_mul_
    )


def test_the_step_with_openais_kernels_is_a_topk_step(monkeypatch):
    """From the dictionary, its gradient is dense autograd's, and rows stay of unit norm."""
    lib = kernels_of_openai()
    monkeypatch.setattr(gpu_peers.importlib, "import_module", lambda name: lib)
    data = make_data(12, 40, 64, 5.0, count=1)
    peer, x, k = gpu_peers.OpenAI(data.dictionary, 5, 1e-3), data.batches[0], 5
    encoder, decoder = (data.dictionary.clone().requires_grad_() for _ in range(2))
    pre = torch.nn.functional.linear(x.bfloat16(), encoder.bfloat16()).float()
    values, indices = torch.topk(pre, k, dim=1)
    x_hat = (values.relu()[..., None] * decoder[indices]).sum(1)
    (x_hat - x).square().mean().backward()
    seen = {}
    monkeypatch.setattr(peer.adam, "step", lambda: seen.update(encoder=peer.encoder.grad, decoder=peer.decoder.grad))
    peer.step(x)
    wanted = decoder.grad - (decoder.grad * decoder).sum(1, keepdim=True) * decoder
    assert (seen["encoder"] - encoder.grad).norm() < 0.01 * encoder.grad.norm()
    assert (seen["decoder"].T - wanted).norm() < 0.01 * wanted.norm()
    torch.testing.assert_close(peer.decoder.norm(dim=0), torch.ones(40))
    assert peer.features(x)[0].shape == (64, 5)
