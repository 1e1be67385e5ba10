"""Compare SAEs that go through other libraries with the originals, by outputs; write docs/INTEROP.md.

    python -m tools.interop             in an environment with the libraries of tools/interop-requirements.txt

Each row is a format, a direction and an architecture. `export`: jumpahead writes, the library loads and computes.
`read`: the library writes, jumpahead loads and computes. Features and reconstructions are compared on random
activations, away from boundaries: entries (token, feature) that are active in one alone are counted as excluded, and so
are the reconstructions of their tokens. Exits with 1 if a row fails.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jumpahead.errors import StudyError
from jumpahead.formats import FORMATS, load, save
from jumpahead.sae.architecture import Architecture
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.recipe import Setting, TrainConfig, base_recipe
from jumpahead.sae.saved import SAE

D, WIDTH, K, TOKENS = 24, 160, 6, 4096
TOLERANCE, MAX_EXCLUDED = 1e-5, 1e-4
"""Largest difference, as a share of the largest value, and largest share of excluded entries."""
PAGE = Path(__file__).parents[1] / "docs" / "INTEROP.md"
Outputs = tuple[Tensor, Tensor]
"""Features [n, M] and reconstructions [n, d]."""


class Row(NamedTuple):
    """The result of one comparison."""

    format: str
    direction: str
    """`export` or `read`."""
    architecture: str
    """jumpahead's architecture for `export`, the library's for `read`."""
    verdict: str
    """`same`, `refused` (with the sentence in `note`) or `different`."""
    error: float = 0.0
    """Largest difference, as a share of the largest value."""
    excluded: float = 0.0
    """Share of entries that are active in one alone."""
    note: str = ""


def module(name: str) -> Any:
    """Import a module of another library."""
    return importlib.import_module(name)


def activations() -> Tensor:
    """Return random activations [TOKENS, D] of mean norm about 10, with a mean."""
    generator = torch.Generator().manual_seed(7)
    return 2.0 * torch.randn(TOKENS, D, generator=generator) + torch.randn(D, generator=generator)


def normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """Return normal random numbers."""
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def compare(format_: str, direction: str, architecture: str, ours: Outputs, theirs: Outputs) -> Row:
    """Return the row of two outputs for the same activations."""
    with torch.no_grad():
        (f, x_hat), (g, y_hat) = ((a.double(), b.double()) for a, b in (ours, theirs))
        same = (f > 0) == (g > 0)
        tokens = same.all(1)
        excluded = 1 - same.double().mean().item()
        f_error = ((f - g).abs() * same).max() / g.abs().max()
        x_error = (x_hat - y_hat)[tokens].abs().max() / y_hat.abs().max()
        error = max(f_error.item(), x_error.item())
        is_same = error <= TOLERANCE and excluded <= MAX_EXCLUDED and 0 < (g > 0).double().mean() < 1
    return Row(format_, direction, architecture, "same" if is_same else "different", error, excluded)


# ---------------------------------------------------------------------------------------------- export


def trained_saes() -> Iterator[SAE]:
    """Yield an SAE of every architecture, random, with a mean that is subtracted from activations."""
    x = activations()
    mean = x.mean(0)
    scale = float((x - mean).square().sum(1).mean().sqrt())
    for name in ARCHITECTURES.names():
        kind: type[Architecture] = ARCHITECTURES.get(name)
        setting = Setting("k" if "k" in kind.settings else "l0", float(K))
        arch = kind(kind.Options(), setting, base_recipe(TrainConfig(tokens=100_000)))
        params = arch.initialise(D, WIDTH, torch.Generator().manual_seed(3), (x[:512] - mean) / scale)
        for i, (key, value) in enumerate(sorted(params.items())):
            noise = 0.02 if key in ("W_dec", "W_enc") else 0.05
            params[key] = value + normal(*value.shape, seed=20 + i, scale=noise)
        about = {"lm": {"model": "EleutherAI/pythia-70m", "context": 128, "bos": "auto"}, "site": "layers.3.residual"}
        folded = arch.fold(params, scale)
        yield SAE(arch, folded | {"b_pre": mean, "b_dec": folded["b_dec"] + mean}, about)


def export_rows(format_: str, client: Callable[[Path, Tensor], Outputs]) -> Iterator[Row]:
    """Yield a row per architecture of jumpahead. client: loads an exported folder and computes."""
    x = activations()
    for sae in trained_saes():
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "layers.3"
            try:
                save(sae, format_, target)
            except StudyError as error:
                yield Row(format_, "export", sae.architecture, "refused", note=str(error))
                continue
            f = sae.encode(x)
            yield compare(format_, "export", sae.architecture, (f, sae.decode(f)), client(target, x))


def read_rows(format_: str, written: Iterator[tuple[str, Path, Outputs]]) -> Iterator[Row]:
    """Yield a row per SAE of a library. written: its architecture, its files, and what the library computes."""
    x = activations()
    for architecture, path, theirs in written:
        sae = load(path)
        f = sae.encode(x)
        yield compare(format_, "read", architecture, (f, sae.decode(f)), theirs)


def randomise(model: torch.nn.Module) -> None:
    """Set the parameters of a module to random values like a trained SAE's: similar encoder and decoder rows."""
    with torch.no_grad():
        for i, (name, value) in enumerate(sorted(model.named_parameters())):
            if value.dim() == 2:
                shared = normal(WIDTH, D, seed=1, scale=0.3)
                shared = shared if tuple(value.shape) == (WIDTH, D) else shared.T
                value.copy_(shared + normal(*value.shape, seed=40 + i, scale=0.05))
            elif "threshold" in name and "log" not in name:
                value.copy_(normal(*value.shape, seed=40 + i).abs() + 0.2)
            else:
                value.copy_(normal(*value.shape, seed=40 + i, scale=0.3))


# ---------------------------------------------------------------------------------------------- SAELens


def saelens_outputs(folder: Path, x: Tensor) -> Outputs:
    """Return what SAELens computes with an SAE in its format."""
    sae = module("sae_lens").SAE.load_from_disk(str(folder))
    f = sae.encode(x)
    return f, sae.decode(f)


def saelens_written(root: Path) -> Iterator[tuple[str, Path, Outputs]]:
    """Yield SAEs that SAELens saved: every architecture, and exports of trainings."""
    lens, x = module("sae_lens"), activations()
    common = {"d_in": D, "d_sae": WIDTH, "device": "cpu"}
    hook = module("sae_lens.saes.sae").SAEMetadata(model_name="pythia-70m", hook_name="blocks.3.hook_resid_post")
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "standard": ("Standard", {}),
        "standard, no input bias": ("Standard", {"apply_b_dec_to_input": False}),
        "jumprelu": ("JumpReLU", {}),
        "gated": ("Gated", {}),
        "topk": ("TopK", {"k": K}),
        "topk by decoder norm": ("TopK", {"k": K, "rescale_acts_by_decoder_norm": True}),
    }
    for label, (name, options) in kinds.items():
        config = getattr(lens, f"{name}SAEConfig")(**common, **options, metadata=hook)
        sae = getattr(lens, f"{name}SAE")(config)
        randomise(sae)
        folder = root / label.replace(" ", "_")
        sae.save_model(folder)
        f = sae.encode(x)
        yield label, folder, (f, sae.decode(f))
    trainings: dict[str, tuple[str, dict[str, Any]]] = {
        "jumprelu training": ("JumpReLU", {}),
        "topk training": ("TopK", {"k": K}),
        "batchtopk training": ("BatchTopK", {"k": K}),
        "matryoshka_batchtopk training": ("MatryoshkaBatchTopK", {"k": K, "matryoshka_widths": [20, 60, WIDTH]}),
    }
    for label, (name, options) in trainings.items():
        config = getattr(lens, f"{name}TrainingSAEConfig")(**common, **options, metadata=hook)
        sae = getattr(lens, f"{name}TrainingSAE")(config)
        randomise(sae)
        if hasattr(sae, "topk_threshold"):
            sae.topk_threshold.fill_(1.1)
        folder = root / label.replace(" ", "_")
        sae.save_inference_model(folder)
        yield label, folder, saelens_outputs(folder, x)


# ---------------------------------------------------------------------------------------------- Gemma Scope


def gemma_scope_outputs(version: int) -> Callable[[Path, Tensor], Outputs]:
    """Return a function that computes with a Gemma Scope SAE as SAELens reads it, the hub replaced by the folder."""
    loaders = module("sae_lens.loading.pretrained_sae_loaders")
    lens = module("sae_lens")

    def outputs(folder: Path, x: Tensor) -> Outputs:
        repo, inside = ("google/gemma-scope-2b-pt-res", "layer_3/width_16k/average_l0_82")
        if version == 2:
            repo, inside = "google/gemma-scope-2-1b-pt", "resid_post/layer_3_width_16k_l0_medium"
        kept = loaders.hf_hub_download, loaders.get_safetensors_tensor_shapes
        loaders.hf_hub_download = lambda repo_id, filename, **_: str(folder / Path(filename).name)
        loaders.get_safetensors_tensor_shapes = lambda *_: {"w_enc": [D, WIDTH], "w_dec": [WIDTH, D]}
        try:
            loader = loaders.gemma_3_sae_huggingface_loader if version == 2 else loaders.gemma_2_sae_huggingface_loader
            config, tensors, _ = loader(repo, inside, cfg_overrides={"d_in": D, "d_sae": WIDTH})
        finally:
            loaders.hf_hub_download, loaders.get_safetensors_tensor_shapes = kept
        bias = config["apply_b_dec_to_input"]
        sae = lens.JumpReLUSAE(lens.JumpReLUSAEConfig(d_in=D, d_sae=WIDTH, apply_b_dec_to_input=bias))
        sae.load_state_dict(tensors)
        f = sae.encode(x)
        return f, sae.decode(f)

    return outputs


def qwen_scope_written(root: Path) -> Iterator[tuple[str, Path, Outputs]]:
    """Yield an SAE in the layout of Qwen Scope, and what SAELens computes with it, the hub replaced by the folder."""
    loaders, lens = module("sae_lens.loading.pretrained_sae_loaders"), module("sae_lens")
    repo, file = f"Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_{K}", "layer3.sae.pt"
    folder = root / repo.rpartition("/")[2]
    folder.mkdir()
    w = normal(WIDTH, D, seed=1, scale=0.3)
    tensors = {"W_enc": w + normal(WIDTH, D, seed=2, scale=0.05), "W_dec": w.T.contiguous()}
    tensors |= {"b_enc": normal(WIDTH, seed=3, scale=0.3), "b_dec": normal(D, seed=4, scale=0.3)}
    torch.save(tensors, folder / file)
    kept, loaders.hf_hub_download = loaders.hf_hub_download, lambda **_: str(folder / file)
    try:
        config, state, _ = loaders.qwen_scope_sae_huggingface_loader(repo, file)
    finally:
        loaders.hf_hub_download = kept
    bias, k = config["apply_b_dec_to_input"], config["activation_fn_kwargs"]["k"]
    sae = lens.TopKSAE(lens.TopKSAEConfig(d_in=D, d_sae=WIDTH, k=k, apply_b_dec_to_input=bias))
    sae.load_state_dict(state)
    f = sae.encode(activations())
    yield "topk", folder / file, (f, sae.decode(f))


# ---------------------------------------------------------------------------------------------- dictionary_learning


def dictionary_learning_outputs(folder: Path, x: Tensor) -> Outputs:
    """Return what dictionary_learning computes with a dictionary in its format."""
    dictionary, _ = module("dictionary_learning.utils").load_dictionary(str(folder), "cpu")
    f = dictionary.encode(x)
    return f, dictionary.decode(f)


def dictionary_learning_written(root: Path) -> Iterator[tuple[str, Path, Outputs]]:
    """Yield every class of dictionary, saved as `trainSAE` saves it."""
    plain, trainers = module("dictionary_learning.dictionary"), "dictionary_learning.trainers"
    classes: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "AutoEncoder": (plain.AutoEncoder, ()),
        "AutoEncoderNew": (plain.AutoEncoderNew, ()),
        "GatedAutoEncoder": (plain.GatedAutoEncoder, ()),
        "JumpReluAutoEncoder": (plain.JumpReluAutoEncoder, ()),
        "AutoEncoderTopK": (module(f"{trainers}.top_k").AutoEncoderTopK, (K,)),
        "BatchTopKSAE": (module(f"{trainers}.batch_top_k").BatchTopKSAE, (K,)),
        "MatryoshkaBatchTopKSAE": (
            module(f"{trainers}.matryoshka_batch_top_k").MatryoshkaBatchTopKSAE, (K, [20, 40, WIDTH - 60]),
        ),
    }  # fmt: skip
    for name, (kind, arguments) in classes.items():
        dictionary = kind(D, WIDTH, *arguments)
        randomise(dictionary)
        if name in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
            dictionary.threshold.fill_(1.1)
        folder = root / name
        folder.mkdir()
        trainer: dict[str, Any] = {"dict_class": name, "activation_dim": D, "dict_size": WIDTH, "layer": 3}
        trainer |= {"lm_name": "EleutherAI/pythia-70m", "submodule_name": None, **({"k": K} if arguments else {})}
        torch.save({key: value.cpu() for key, value in dictionary.state_dict().items()}, folder / "ae.pt")
        (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
        yield name, folder, dictionary_learning_outputs(folder, activations())
    yield from dictionary_learning_trained(root / "trained")


def dictionary_learning_trained(root: Path) -> Iterator[tuple[str, Path, Outputs]]:
    """Yield what `trainSAE` saves after a few steps on scaled activations, with the configurations that it writes."""
    folder, training = "dictionary_learning.trainers", module("dictionary_learning.training")
    steps = 40
    common = {"activation_dim": D, "dict_size": WIDTH, "layer": 3, "lm_name": "EleutherAI/pythia-70m", "steps": steps}
    common |= {"device": "cpu", "warmup_steps": 4}
    start = {"threshold_start_step": 5}
    slow = {"sparsity_warmup_steps": 4}
    configs: dict[tuple[str, str], dict[str, Any]] = {
        ("standard", "StandardTrainer"): slow,
        ("gdm", "GatedSAETrainer"): slow,
        ("jumprelu", "JumpReluTrainer"): {**slow, "target_l0": 6.0},
        ("top_k", "TopKTrainer"): {"k": K, **start},
        ("batch_top_k", "BatchTopKTrainer"): {"k": K, **start},
        ("matryoshka_batch_top_k", "MatryoshkaBatchTopKTrainer"): {"k": K, **start, "group_fractions": [0.25, 0.75]},
    }
    found = [
        {"trainer": getattr(module(f"{folder}.{file}"), name), **common, **options}
        for (file, name), options in configs.items()
    ]
    data = itertools.cycle(activations().split(512))
    with torch.enable_grad():
        training.trainSAE(data, found, steps=steps, save_dir=str(root), normalize_activations=True, device="cpu")
    for i, (_, name) in enumerate(configs):
        yield (
            f"{name}, trained",
            root / f"trainer_{i}",
            dictionary_learning_outputs(root / f"trainer_{i}", activations()),
        )


# ---------------------------------------------------------------------------------------------- sparsify


def sparsify_outputs(folder: Path, x: Tensor) -> Outputs:
    """Return what sparsify computes with an SAE in its format."""
    sae = module("sparsify").SparseCoder.load_from_disk(folder)
    found = sae.encode(x)
    f = torch.zeros(len(x), WIDTH).scatter(1, found.top_indices, found.top_acts)
    return f, sae.decode(found.top_acts, found.top_indices)


def sparsify_written(root: Path) -> Iterator[tuple[str, Path, Outputs]]:
    """Yield an SAE that sparsify saved."""
    library = module("sparsify")
    sae = library.SparseCoder(D, module("sparsify.config").SparseCoderConfig(num_latents=WIDTH, k=K))
    randomise(sae)
    sae.save_to_disk(root / "layers.3")
    yield "topk", root / "layers.3", sparsify_outputs(root / "layers.3", activations())


# ---------------------------------------------------------------------------------------------- llamascopium


def llamascopium_outputs(folder: Path, x: Tensor) -> Outputs:
    """Return what llamascopium computes with an SAE in its format, scaled activations included."""
    sae = module("llamascopium.models.sae").SparseAutoEncoder.from_local(str(folder))
    hook = sae.cfg.hook_point_in
    scale = torch.ones(())
    if sae.cfg.norm_activation != "inference":
        scale = sae.compute_norm_factor(x, hook)
    f = sae.encode(scale * x)
    return f / scale, sae.decode(f) / scale


def llamascopium_written(root: Path) -> Iterator[tuple[str, Path, Outputs]]:
    """Yield SAEs that llamascopium saved. Features of topk are compared in units of decoder norms."""
    library, hook = module("llamascopium.models.sae"), "blocks.3.hook_resid_post"
    for activation in ("relu", "jumprelu", "topk"):
        for has_norms in (True, False):
            for norm in ("dataset-wise", "inference"):
                config = library.SAEConfig(
                    hook_point_in=hook, hook_point_out=hook, d_model=D, expansion_factor=WIDTH / D, act_fn=activation,
                    top_k=K, sparsity_include_decoder_norm=has_norms, norm_activation=norm,
                )  # fmt: skip
                sae = library.SparseAutoEncoder(config)
                randomise(sae)
                if norm == "dataset-wise":
                    sae.set_dataset_average_activation_norm({hook: 9.3})
                label = f"{activation}, {norm}{', decoder norms' if has_norms else ''}"
                folder = root / label.replace(", ", "_").replace(" ", "_")
                folder.mkdir()
                config.save_hyperparameters(str(folder))
                sae.save_pretrained(str(folder))
                f, x_hat = llamascopium_outputs(folder, activations())
                yield label, folder, (f * sae.decoder_norm() if activation == "topk" and has_norms else f, x_hat)


# ---------------------------------------------------------------------------------------------- the page

LIBRARIES = {
    "saelens": "sae-lens",
    "gemma_scope": "sae-lens",
    "gemma_scope_2": "sae-lens",
    "dictionary_learning": "dictionary-learning",
    "sparsify": "eai-sparsify",
    "llamascopium": "llamascopium",
    "qwen_scope": "sae-lens",
}
"""The package that computes with each format."""


def all_rows() -> Iterator[Row]:
    """Yield every comparison."""
    clients: dict[str, tuple[Callable[[Path, Tensor], Outputs], Any]] = {
        "saelens": (saelens_outputs, saelens_written),
        "gemma_scope": (gemma_scope_outputs(1), None),
        "gemma_scope_2": (gemma_scope_outputs(2), None),
        "dictionary_learning": (dictionary_learning_outputs, dictionary_learning_written),
        "sparsify": (sparsify_outputs, sparsify_written),
        "llamascopium": (llamascopium_outputs, llamascopium_written),
        "qwen_scope": (saelens_outputs, qwen_scope_written),
    }
    assert {*clients, "jumpahead"} == set(FORMATS.names())
    for name, (outputs, written) in clients.items():
        yield from export_rows(name, outputs)
        if written is not None:
            with tempfile.TemporaryDirectory() as root:
                yield from read_rows(name, written(Path(root)))


def render(rows: list[Row]) -> str:
    """Return the page of the comparisons, in Markdown."""
    versions = {package: metadata.version(package) for package in sorted({*LIBRARIES.values()})}
    listed = ", ".join(f"{package} {version}" for package, version in versions.items())
    lines = [
        "# Interchange with other libraries",
        "",
        "Generated by `make test-interop` with the libraries themselves; do not edit.",
        "",
        f"Libraries: {listed}, torch {torch.__version__.partition('+')[0]}.",
        f"{TOKENS:,} random activations, d = {D}, {WIDTH} features, float32.",
        "Error: the largest difference of features and reconstructions, as a share of the largest value; at most 1e-5.",
        "Excluded: the share of entries (token, feature) that are active in one alone, at a boundary; at most 1e-4.",
        "",
    ]
    for direction, title in (
        ("export", "jumpahead exports, the library computes"),
        ("read", "The library saves, jumpahead reads"),
    ):
        lines += [f"## {title}", "", "| Format | Architecture | Result | Error | Excluded |", "|---|---|---|--:|--:|"]
        for row in rows:
            if row.direction == direction:
                title = FORMATS.get(row.format).title
                numbers = "– | –" if row.verdict == "refused" else f"{row.error:.0e} | {row.excluded:.0e}"
                lines.append(f"| {title} | {row.architecture} | {row.verdict} | {numbers} |")
        lines.append("")
    lines += [
        "Gemma Scope and Qwen Scope are computed by SAELens, whose hub readers are given a folder. Gemma Scope's own",
        "layout is read in `tests/formats`.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Run all comparisons, print them and write the page; return 1 if one fails."""
    rows = []
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        found = all_rows()
        while True:
            with contextlib.redirect_stdout(io.StringIO()):  # dictionary_learning prints
                row = next(found, None)
            if row is None:
                break
            rows.append(row)
            numbers = "" if row.verdict == "refused" else f"error {row.error:.1e}, excluded {row.excluded:.1e}"
            print(f"{row.format:20} {row.direction:7} {row.architecture:40} {row.verdict:10} {numbers}{row.note}")
    PAGE.write_text(render(rows), encoding="utf-8")
    failed = [row for row in rows if row.verdict == "different"]
    print(f"{len(rows)} comparisons, {len(failed)} failed; {PAGE.name} is written.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
