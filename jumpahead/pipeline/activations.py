"""The stage that writes activations to disk, for studies with `activations.origin = "shards"`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jumpahead.activations.origins import ORIGINS
from jumpahead.activations.origins.live import Live
from jumpahead.activations.origins.shards import Shards
from jumpahead.activations.shard_folder import HELD_OUT_FOLDER, InputsDigestFunction, missing_sites
from jumpahead.activations.shard_writer import write_missing_sites
from jumpahead.activations.writer_rank import WriterRank
from jumpahead.pipeline.stage import Stage
from jumpahead.text.contexts import Contexts, Split


class ActivationsStage(Stage):
    """Writes the folder activations/: the activations of the training text, and of the held-out text for evaluation.

    Complete sites are not written again, and the LM is loaded only if a site is missing.
    """

    name = "activations"

    def inputs(self) -> str:
        return self.provenance.activations_digest(self.study.activations.sites)

    def is_done(self) -> bool:
        if not ORIGINS.get(self.study.activations.origin).on_disk:
            return True
        return not self._missing_splits() or self._is_everything_trained()

    def run(self) -> None:
        self.write()

    def write(self, rank: WriterRank | None = None) -> bool:
        """Write the missing activations assigned to this process; return True if the activations are now complete.

        rank: this process among the processes that write; None if this process writes all activations.
        """
        config, is_complete = self.study.activations, True
        for split, folder, inputs_digest_of in self._missing_splits():
            contexts = self.resources.load_contexts(split)

            def live(sites: Sequence[str], contexts: Contexts = contexts, split: Split = split) -> Live:
                activations = Live.from_config(config, self.resources.load_lm(), contexts, sites)
                if split == "held_out":
                    groups = self.resources.load_held_out_text().groups
                    activations.rows_per_group = activations.rows_per_group[:groups]
                return activations

            is_complete &= write_missing_sites(
                live, folder, config.sites, inputs_digest_of, shard_mib=Shards.shard_mib(config),
                rank=rank or WriterRank(), progress=self.progress,
            )  # fmt: skip
        return is_complete

    def _missing_splits(self) -> list[tuple[Split, Path, InputsDigestFunction]]:
        """Return each split with missing activations, its folder and the function that returns its input digest."""
        folder, provenance = self.folder.activations, self.provenance
        splits: list[tuple[Split, Path, InputsDigestFunction]] = [
            ("held_out", folder / HELD_OUT_FOLDER, provenance.held_out_activations_digest),
            ("train", folder, provenance.activations_digest),
        ]
        sites = self.study.activations.sites
        return [(split, path, inputs) for split, path, inputs in splits if missing_sites(path, sites, inputs)]

    def _is_everything_trained(self) -> bool:
        """Return True if all SAEs are trained; deleted activations are then not written again."""
        return all(
            self.folder.sae_folder(spec.key).is_done(self.provenance.sae_digest(spec)) for spec in self.resources.specs
        )
