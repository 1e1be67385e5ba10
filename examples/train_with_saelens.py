"""Train SAEs with SAELens on the training text of a jumpahead run, so that `jumpahead compare` can compare them.

    pip install sae-lens
    python examples/train_with_saelens.py runs/demo --out saelens --k 8 16 32
    jumpahead compare runs/demo saelens/* --out runs/compare

TopK SAEs by SAELens' own trainer with its defaults, on as many activations as the run's SAEs. They are trained on the
run's training text only, so that the held-out text of the comparison is new to them too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import sae_lens
import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata

from jumpahead.lm.model import LM
from jumpahead.lm.sites import parse_site
from jumpahead.storage.run_folder import Run
from jumpahead.study.load import load
from jumpahead.text.contexts import Contexts

GROUPS_PER_BUFFER = 64
"""Groups of contexts whose activations are shuffled together."""


def batches(lm: LM, contexts: Contexts, site: str, size: int) -> Iterator[torch.Tensor]:
    """Yield shuffled batches of activations [size, d] of the training text, again and again."""
    generator = torch.Generator().manual_seed(0)
    while True:
        for first in range(0, contexts.num_groups, GROUPS_PER_BUFFER):
            rows = []
            for group in range(first, min(first + GROUPS_PER_BUFFER, contexts.num_groups)):
                x = lm.read(contexts.ids(group), [site], contexts.position_ids(group))[site]
                rows.append(x[torch.from_numpy(contexts.trained_mask(group)).to(x.device)].float())
            buffer = torch.cat(rows)
            yield from buffer[torch.randperm(len(buffer), generator=generator)].split(size)


def train(k: int, lm: LM, contexts: Contexts, site: str, width: int, tokens: int, batch: int, out: Path) -> Path:
    """Train a TopK SAE and write its inference model into a folder of `out`; return the folder."""
    hook = SAEMetadata(model_name=lm.name, hook_name=parse_site(site).transformer_lens)
    config = sae_lens.TopKTrainingSAEConfig(d_in=lm.width_at(site), d_sae=width, k=k, metadata=hook)
    sae = sae_lens.TopKTrainingSAE(config)
    settings = SAETrainerConfig(total_training_samples=tokens, train_batch_size_samples=batch, lr=3e-4, lr_end=3e-5)
    provider = (x for x in batches(lm, contexts, site, batch) if len(x) == batch)
    sae_lens.SAETrainer(cfg=settings, sae=sae, data_provider=provider).fit()
    folder = out / f"topk-{k}"
    sae.save_inference_model(folder)
    return folder


def main() -> None:
    """Train one SAE for each k."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a jumpahead run")
    parser.add_argument("--out", type=Path, default=Path("saelens"))
    parser.add_argument("--k", type=int, nargs="+", default=[8, 16, 32])
    given = parser.parse_args()
    run = Run.open(given.run)
    study = load(run.study)
    lm, contexts = LM.load(study.lm), Contexts.load(run.tokens / "train")
    site, width = study.activations.sites[0], study.sae.width[0]
    for k in given.k:
        print(train(k, lm, contexts, site, width, study.train.tokens, study.train.batch, given.out))


if __name__ == "__main__":
    main()
