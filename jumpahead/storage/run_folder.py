"""A run's folder: create, open and lock it, and record the study, the versions and the hardware."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jumpahead.errors import ArtefactError
from jumpahead.storage.artefacts import RUN_COMMAND
from jumpahead.storage.atomic import TEMPORARY_MARK, guard_folder, remove_temporary_files, write_atomic
from jumpahead.storage.digests import digest_bytes
from jumpahead.storage.environment import describe_environment
from jumpahead.storage.json_files import read_json, write_json
from jumpahead.storage.layout import RunPaths
from jumpahead.storage.locks import hold_lock, holder_path
from jumpahead.storage.plain_files import require_own_entries

RUN_SCHEMA = "jumpahead.run/1"


class Run(RunPaths):
    """The folder of a run. `Run.create` creates or continues a run; `Run.open` opens an existing run."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__(folder)
        self._held = contextlib.ExitStack()
        self._depth = 0  # number of nested `lock` contexts

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Run:
        """Return an existing run, finished or not. Raises ArtefactError if `folder` is missing or is not a run."""
        run = cls(folder)
        if not run.folder.exists():
            raise ArtefactError(f"{folder} does not exist: `jumpahead run STUDY --out {folder}` makes it.")
        if not run.folder.is_dir() or not run.manifest.is_file():
            raise ArtefactError(
                f"{folder} is not a run (it has no manifest.json): name the folder that `{RUN_COMMAND}` printed."
            )
        require_own_entries(run.folder)
        read_json(run.manifest, RUN_SCHEMA, has_checksum=None)
        return run

    @classmethod
    def create(cls, folder: str | os.PathLike[str], study: str) -> Run:
        """Return the run in `folder`, created if absent, after writing the resolved study into the run.

        study: TOML text.
        """
        run = cls(folder)
        with run.lock():
            run.record_study(study)
        return run

    def record_study(self, study: str) -> None:
        """Write the manifest and the resolved study (TOML text). The caller must hold the run's lock.

        Package versions and hardware of earlier sessions stay in the manifest, under "earlier".
        """
        known = self._known_manifest()
        now, earlier = describe_environment(), known.get("earlier", [])
        before = {key: known[key] for key in now if key in known}
        if before and before != now and before not in earlier:
            earlier = [*earlier, before]
        created = known.get("created", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        self.update_manifest(schema=RUN_SCHEMA, created=created, study=digest_bytes(study), **now, earlier=earlier)
        write_atomic(self.study, study)

    def record_comparison(self, compared: Sequence[str]) -> dict[str, Any]:
        """Write the manifest of a comparison; return its content. The caller must hold the lock.

        compared: addresses of the SAEs and runs.
        """
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return self.update_manifest(
            schema=RUN_SCHEMA, created=created, **describe_environment(), compared=list(compared)
        )

    @contextlib.contextmanager
    def session(self, study: str) -> Iterator[None]:
        """Hold the run's lock and record the study (TOML text).

        At the end of the `with` block, remove the run if nothing but the study was written.
        """
        with self.lock():
            self.record_study(study)
            try:
                yield
            finally:
                self.remove_if_unused()

    def remove_if_unused(self) -> None:
        """Remove the run's folder if it holds only records from the start of a run. The caller must hold the lock."""
        files = (self.manifest, self.study, self.precision, self.checks, self.warm_starts, self.stdin, self.sae_index)
        if self.folder.is_dir() and self._file_names() <= {file.name for file in files}:
            shutil.rmtree(self.folder)

    def _file_names(self) -> set[str]:
        """Return the names of the files and folders in the run's folder, except lock files."""
        locks = {self.lock_file.name, holder_path(self.lock_file).name}
        return {path.name for path in self.folder.iterdir() if path.name not in locks}

    def _has_foreign_files(self) -> bool:
        """Return True if the folder holds files other than locks and temporary files, or if its path is a file."""
        if not self.folder.is_dir():
            return self.folder.exists()
        return any(TEMPORARY_MARK not in name for name in self._file_names())

    def read_manifest(self) -> dict[str, Any]:
        """Return the content of manifest.json."""
        return read_json(self.manifest, RUN_SCHEMA)

    def update_manifest(self, **fields: Any) -> dict[str, Any]:
        """Add or replace top-level fields of manifest.json; return the updated content."""
        known = {**self._known_manifest(), **fields}
        write_json(self.manifest, known)
        return known

    def _known_manifest(self) -> dict[str, Any]:
        """Return the content of manifest.json; {} if it is missing or damaged, since it can be written anew."""
        with contextlib.suppress(ArtefactError):
            return read_json(self.manifest, RUN_SCHEMA)
        return {}

    @contextlib.contextmanager
    def lock(self, wait_s: float = 0, on_wait: Callable[[], None] = lambda: None) -> Iterator[Run]:
        """Hold the run's lock until the `with` block ends. Calls on the same object may be nested.

        While another process holds the lock, wait up to `wait_s` seconds, and call `on_wait` once when the wait begins.
        Raises ArtefactError, naming the holder, if the lock is still held after `wait_s` seconds, or if an entry of the
        folder leads out of it or is no plain file. Remove temporary files that a killed process left. Until the end,
        nothing is written through links, nor after the folder was moved (atomic.py).
        """
        if self._depth == 0:
            if not self.manifest.exists() and self._has_foreign_files():
                raise ArtefactError(f"{self.folder} is not empty and is not a run: name another folder with --out.")
            require_own_entries(self.folder)
            self._held.enter_context(hold_lock(self.lock_file, self.folder, wait_s, on_wait))
            self._held.enter_context(guard_folder(self.folder))
            remove_temporary_files(self.folder, except_below=self.activations)  # other processes may be writing there
        self._depth += 1
        try:
            yield self
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._held.close()
