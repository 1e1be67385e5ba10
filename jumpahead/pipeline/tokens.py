"""The stage that tokenises the training and held-out text and writes the tokens to disk, packed into contexts."""

from __future__ import annotations

import contextlib
from pathlib import Path

from jumpahead.errors import ArtefactError
from jumpahead.pipeline.stage import Stage
from jumpahead.storage.digests import has_inputs
from jumpahead.storage.folders import hard_link_files, remove_path
from jumpahead.storage.json_files import write_json
from jumpahead.text.contexts import SPLITS, Contexts, Split
from jumpahead.text.documents import documents
from jumpahead.text.near_duplicates import MAX_SHARED
from jumpahead.text.tokenize import tokenize_splits


class TokensStage(Stage):
    """Writes tokens/ and tokens/provenance.json; links the token files of a neighbouring run with the same text."""

    name = "tokens"

    def inputs(self) -> str:
        return self.provenance.tokens_digest

    def is_done(self) -> bool:
        if not self.provenance.needs_lm:
            return True
        return self._has_tokens(self.folder.tokens) and self.provenance.is_stored()

    def run(self) -> None:
        if not self._has_tokens(self.folder.tokens):
            self._make_tokens()
        self.provenance.store()

    def _has_tokens(self, folder: Path) -> bool:
        """Return True if `folder` has complete tokens of both splits with this study's input digest."""
        return all(
            has_inputs(folder / split / "source.json", self.inputs()) and Contexts.has_files(folder / split)
            for split in SPLITS
        )

    def _make_tokens(self) -> None:
        """Link the tokens of a neighbouring run with the same text, or tokenise the text."""
        folder = self.folder.tokens
        for split in SPLITS:
            remove_path(folder / split / "source.json")
        shared = self._find_shared_tokens()
        if shared is not None:
            for split in SPLITS:
                remove_path(folder / split)
                hard_link_files(shared / split, folder / split, skip="source.json")
            contexts_by_split = {split: Contexts.load(folder / split) for split in SPLITS}
            self.progress.say(f"tokens: those of {shared.parent.name}, which has the same text")
        else:
            contexts_by_split = self._tokenize(folder)
        for split, contexts in contexts_by_split.items():
            write_json(folder / split / "source.json", {"inputs": self.inputs()})
            if count := contexts.near_duplicates:
                self.progress.say(
                    f"{count:,} held-out document{'s' * (count > 1)} left out: more than {100 * MAX_SHARED:.0f} % of "
                    f"{'their' if count > 1 else 'its'} text is in the training text too"
                )
            self.progress.say(
                f"{split.replace('_', '-')} text: {len(contexts.document_ids):,} documents, "
                f"{contexts.rows:,} tokens to {'train on' if split == 'train' else 'measure on'}"
            )

    def _find_shared_tokens(self) -> Path | None:
        """Return the tokens folder of a neighbouring run with the same inputs; None if missing or damaged."""
        for folder in sorted(self.folder.folder.resolve().parent.glob("*/tokens")):
            if self._has_tokens(folder):
                with contextlib.suppress(ArtefactError):
                    return folder if all(Contexts.load(folder / split) for split in SPLITS) else None
        return None

    def _tokenize(self, folder: Path) -> dict[Split, Contexts]:
        """Tokenise the text into `folder`; return the contexts of each split."""
        config, text, lm = self.study.text, self.resources.open_text(), self.resources.load_lm()
        total = text.total_bytes
        if total is None and config.max_tokens is None:
            self.progress.say(f"text.max_tokens is not given: all of '{config.source}' is read.")
        unit, size = ("bytes", total) if total else ("tokens", config.max_tokens or 0)
        with self.progress.phase("tokenising", size, unit) as phase:
            return tokenize_splits(
                folder, documents(text), lm, self.inputs(), held_out=config.held_out, max_tokens=config.max_tokens,
                packing=self.study.lm.packing, is_streamed=text.is_streamed,
                on_progress=lambda tokens: phase.update(text.bytes_read if total else tokens),
            )  # fmt: skip
