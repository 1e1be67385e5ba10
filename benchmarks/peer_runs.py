"""A whole run of another library, from text to trained SAEs: a script that whole_runs.py starts in a subprocess.

    python benchmarks/peer_runs.py LIBRARY SETTINGS FOLDER      SETTINGS is JSON; prints one line of JSON

What each library needs to run without a network, from a local Hugging Face folder:

    SAELens               MultiSAETrainingRunner with model_class_name="AutoModelForCausalLM" and the folder as the
                          model's name: TransformerLens is not asked for the model. The text is a `datasets.Dataset`
                          handed over as override_dataset, wandb is off. Its buffer is its tutorial's, 64 contexts.
                          JumpReLU takes the requested L0 (`quadratic`); Gated takes coefficients of an L1 penalty.
    dictionary_learning   nnsight's LanguageModel around a loaded model and tokenizer (by its path, nnsight 0.3 fails on
                          Llama configurations of today's transformers), then ActivationBuffer and trainSAE with a list
                          of trainers. The buffer reads the first tokens of each text only, so documents are cut into
                          pieces about as long as a context; it holds 512 contexts (30,000 by default, more than a short
                          run needs). JumpReLU takes the requested L0, Gated coefficients of an L1 penalty.

Everything else is at the libraries' defaults.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

PENALTIES = (0.03, 0.1, 0.3)
"""Gated's L1 coefficients, one per requested sparsity; the resulting L0 is printed."""


def saelens(asked: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`MultiSAETrainingRunner`: one forward pass, many SAEs."""
    lib, datasets = importlib.import_module("sae_lens"), importlib.import_module("datasets")
    imported = time.perf_counter()
    common = {"d_in": asked["d"], "d_sae": asked["width"]}
    saes: dict[str, Any] = {}
    for l0, penalty in zip(asked["l0"], PENALTIES, strict=False):
        saes[f"jumprelu_{l0}"] = lib.JumpReLUTrainingSAEConfig(
            **common, jumprelu_sparsity_loss_mode="quadratic", target_l0=float(l0)
        )
        saes[f"topk_{l0}"] = lib.TopKTrainingSAEConfig(**common, k=l0)
        saes[f"gated_{penalty}"] = lib.GatedTrainingSAEConfig(**common, l1_coefficient=penalty)
    config = lib.MultiSAETrainingRunnerConfig(
        saes=saes,
        hook_names=asked["module"],
        model_name=asked["lm"],
        model_class_name="AutoModelForCausalLM",
        context_size=asked["context"],
        training_tokens=asked["tokens"],
        train_batch_size_tokens=asked["batch"],
        n_batches_in_buffer=64,
        logger=lib.LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=str(folder),
    )
    texts = datasets.Dataset.from_dict({"text": documents(asked)})
    made = lib.MultiSAETrainingRunner(config, override_dataset=texts).run()
    done = time.perf_counter()
    found = [{"name": name, "l0": one.cfg.metadata.l0} for name, one in made.items()]
    return {"imported": imported, "done": done, "saes": found}


def dictionary_learning(asked: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`trainSAE` with a list of trainers."""
    lib = importlib.import_module("dictionary_learning")
    trainers = importlib.import_module("dictionary_learning.trainers")
    training = importlib.import_module("dictionary_learning.training")
    nnsight, transformers = importlib.import_module("nnsight"), importlib.import_module("transformers")
    imported = time.perf_counter()
    model = transformers.AutoModelForCausalLM.from_pretrained(asked["lm"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(asked["lm"], padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    traced = nnsight.LanguageModel(model, tokenizer=tokenizer)
    site = traced
    for part in asked["module"].split("."):
        site = site[int(part)] if part.isdigit() else getattr(site, part)
    data = lib.ActivationBuffer(
        pieces(documents(asked), 4 * asked["context"]), traced, site, d_submodule=asked["d"],
        n_ctxs=512, ctx_len=asked["context"], refresh_batch_size=32, out_batch_size=asked["batch"], device="cpu",
    )  # fmt: skip
    steps = asked["tokens"] // asked["batch"]
    common = {"activation_dim": asked["d"], "dict_size": asked["width"], "layer": 0, "lm_name": "local"}
    # Its warm-ups, 1,000 and 2,000 steps, must fit into the run.
    common |= {"steps": steps, "device": "cpu", "warmup_steps": min(1000, steps // 2)}
    slow = {"sparsity_warmup_steps": min(2000, steps // 2)}
    configs = []
    for l0, penalty in zip(asked["l0"], PENALTIES, strict=False):
        configs.append({"trainer": trainers.JumpReluTrainer, "target_l0": float(l0), **common, **slow})
        configs.append({"trainer": trainers.TopKTrainer, "k": l0, **common})
        configs.append({"trainer": trainers.GatedSAETrainer, "l1_penalty": penalty, **common, **slow})
    names = [
        f"{one['trainer'].__name__} {one.get('target_l0', one.get('k', one.get('l1_penalty')))}" for one in configs
    ]
    training.trainSAE(data, configs, steps=steps, save_dir=str(folder), device="cpu")
    done = time.perf_counter()
    x = next(data)
    load = importlib.import_module("dictionary_learning.utils").load_dictionary
    found = []
    for i, name in enumerate(names):
        features = load(str(folder / f"trainer_{i}"), "cpu")[0].encode(x)
        found.append({"name": name, "l0": (features != 0).sum().item() / len(x)})
    return {"imported": imported, "done": done, "saes": found}


LIBRARIES = {"SAELens": saelens, "dictionary_learning": dictionary_learning}


def documents(asked: dict[str, Any]) -> list[str]:
    """Return the documents of the text."""
    text = Path(asked["text"]).read_text(encoding="utf-8")
    return [part.strip("\n") for part in text.split(asked["separator"]) if part.strip()]


def pieces(texts: list[str], size: int) -> itertools.cycle[str]:
    """Yield the documents in pieces of `size` characters, repeated forever."""
    cut = [text[start : start + size] for text in texts for start in range(0, len(text), size)]
    return itertools.cycle(piece for piece in cut if piece.strip())


def main(library: str, asked: str, folder: str) -> None:
    begun = time.perf_counter()
    os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    found = LIBRARIES[library](json.loads(asked), Path(folder))
    times = {"import_seconds": found["imported"] - begun, "work_seconds": found["done"] - found["imported"]}
    print(json.dumps(times | {"saes": found["saes"]}))


if __name__ == "__main__":
    main(*sys.argv[1:4])
