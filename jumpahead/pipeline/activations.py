"""The stage that writes activations to disk, for studies with `activations.origin = "shards"`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jumpahead.activations.origins import ORIGINS
from jumpahead.activations.origins.live import Live
from jumpahead.activations.origins.shards import Shards
from jumpahead.activations.shard_folder import HELD_OUT_FOLDER, InputsOf, missing_sites
from jumpahead.activations.shard_writer import write_missing_sites
from jumpahead.activations.writer_rank import WriterRank
from jumpahead.pipeline.stage import Stage
from jumpahead.text.contexts import Contexts, Split


class ActivationsStage(Stage):
    """Writes activations/: the training text's, and of the held-out text's as many as are evaluated on.

    Sites that are complete are not written again, and nothing is loaded if nothing is missing.
    """

    name = "activations"

    def inputs(self) -> str:
        return self.provenance.activations_digest(self.study.activations.sites)

    def is_done(self) -> bool:
        if not ORIGINS.get(self.study.activations.origin).on_disk:
            return True
        return not self._missing() or self._is_everything_trained()

    def run(self) -> None:
        self.write()

    def write(self, part: WriterRank | None = None) -> bool:
        """Write this process's part of what is missing, by default all of it; return whether all is complete."""
        config, is_complete = self.study.activations, True
        for split, folder, inputs_of in self._missing():
            contexts = self.resources.load_contexts(split)

            def live(sites: Sequence[str], contexts: Contexts = contexts, split: Split = split) -> Live:
                made = Live.at_sites(config, self.resources.load_lm(), contexts, sites)
                if split == "held_out":
                    made.rows_per_group = made.rows_per_group[: self.resources.load_held_out_text().groups]
                return made

            is_complete &= write_missing_sites(
                live, folder, config.sites, inputs_of, shard_mib=Shards.shard_mib(config), rank=part or WriterRank(),
                progress=self.progress,
            )  # fmt: skip
        return is_complete

    def _missing(self) -> list[tuple[Split, Path, InputsOf]]:
        """Return the splits of which activations are missing, with their folder and the digest of their inputs."""
        folder, provenance = self.folder.activations, self.provenance
        splits: list[tuple[Split, Path, InputsOf]] = [
            ("held_out", folder / HELD_OUT_FOLDER, provenance.held_out_activations_digest),
            ("train", folder, provenance.activations_digest),
        ]
        return [one for one in splits if missing_sites(one[1], self.study.activations.sites, one[2])]

    def _is_everything_trained(self) -> bool:
        """Return whether no SAE is left to train: activations that were deleted since are then not made again."""
        return all(
            self.folder.sae_folder(spec.key).is_done(self.provenance.sae_digest(spec)) for spec in self.resources.specs
        )
