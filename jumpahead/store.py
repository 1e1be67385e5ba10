"""The only file that knows file names: atomic writes, digests, locks, and "is it done, and from these inputs?"

    runs/NAME/                      Run(folder)
      manifest.json                 versions, hardware, digests of inputs; its presence makes the folder a run
      study.toml                    the resolved study
      precision.json                what `lm.dtype = "fast"` was decided to be, and why
      checks.json                   what the language model was checked for before it was used
      starts.json                   what is known of the SAEs that series started from
      stdin.txt                     the text, where it came from standard input
      tokens/  activations/         shards
      saes/<site>/<width>/<series>/<setting>_seed-<s>[_stream-<t>]/        SAEFolder
        weights.safetensors  config.json  train.jsonl  evaluation.json  checkpoint/
      frontier.json  efficiency.json  report.html  features/

Every file is written to a temporary name in its own folder, fsynced and renamed: a reader sees the old bytes or the
new ones, never a part. Temporaries of a killed process are removed when the run is locked next. Nothing is unpickled,
and every path inside a JSON file is relative.

No torch at import: `jumpahead.cli`, `study`, `frontier` and `report` use this file.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import platform
import shutil
import socket
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from jumpahead.errors import ArtefactError

try:
    import fcntl
except ImportError:  # not on Windows: the lock falls back to process ids
    fcntl = None

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

RUN_SCHEMA = "jumpahead.run/1"
MAKE = "jumpahead run"  # the verb that makes an artefact unless its reader knows better
_TEMPORARY = ".tmp-"
_counter = itertools.count()


# ---------------------------------------------------------------------------------------------- atomic writes


def write_atomic(path: str | os.PathLike[str], content: bytes | str | Callable[[Path], object]) -> Path:
    """Writes `content` to `path` whole or not at all; returns `path`.

    `content` is the bytes, a text (UTF-8), or a function that writes the file whose path it is given.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{_TEMPORARY}{os.getpid()}-{next(_counter)}")
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync_folder(path.parent)
    return path


def _fsync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a power cut (where folders can be opened: not on Windows)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_temporaries(folder: str | os.PathLike[str], but: Path | None = None) -> int:
    """Removes what killed writers left anywhere below `folder`, `but` not below that; returns how many files."""
    found = [path for path in Path(folder).rglob(f".*{_TEMPORARY}*") if path.is_file()]
    found = [path for path in found if but is None or but not in path.parents]
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)


def remove_temporaries_of(path: Path) -> None:
    """Removes what killed writers of one file left. Only for who alone writes that file."""
    for left in path.parent.glob(f".{path.name}{_TEMPORARY}*"):
        left.unlink(missing_ok=True)


def share(folder: str | os.PathLike[str], target: str | os.PathLike[str], *, without: str) -> None:
    """Makes the files of `folder`, but one, appear in `target` too, without taking space twice where that can be.

    Files here are replaced, never written into, so that neither folder can harm the other.
    """
    Path(target).mkdir(parents=True, exist_ok=True)
    for path in sorted(path for path in Path(folder).iterdir() if path.name != without):
        copy = Path(target) / path.name
        copy.unlink(missing_ok=True)
        try:
            os.link(path, copy)
        except OSError:
            shutil.copy2(path, copy)


def remove(path: str | os.PathLike[str]) -> None:
    """Removes a file or a whole folder, silently where there is none."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _missing(path: Path, verb: str) -> ArtefactError:
    return ArtefactError(f"{path} does not exist: `{verb}` makes it.")


def free_bytes(folder: str | os.PathLike[str]) -> int:
    """Of the disk that the folder is on, or will be on."""
    resolved = Path(folder).resolve()
    return shutil.disk_usage(next(path for path in (resolved, *resolved.parents) if path.exists())).free


# ---------------------------------------------------------------------------------------------- JSON


def write_json(path: str | os.PathLike[str], value: Any, *, indent: int | None = 2) -> Path:
    """Writes JSON atomically. numpy and torch values become plain ones; NaN and ±inf, which JSON lacks, become null."""
    return write_atomic(path, to_json(value, indent) + "\n")


def to_json(value: Any, indent: int | None = None) -> str:
    """The text that `write_json` writes."""
    separators = (",", ":") if indent is None else None
    try:
        return json.dumps(
            value, indent=indent, separators=separators, ensure_ascii=False, allow_nan=False, default=_plain
        )
    except ValueError:
        value = _without_nan(json.loads(json.dumps(value, default=_plain)))
        return json.dumps(value, indent=indent, separators=separators, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    """What `json` cannot write: numpy values, NamedTuple-like objects, paths (which must be relative)."""
    if hasattr(value, "tolist"):  # numpy arrays and numbers, torch tensors
        return value.tolist()
    if hasattr(value, "to_json"):
        return value.to_json()
    if isinstance(value, PurePosixPath | Path):
        assert not value.is_absolute(), f"an absolute path in a JSON file: {value}"
        return value.as_posix()
    raise TypeError(f"{type(value).__name__} is not JSON")


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return value


def read_json(path: str | os.PathLike[str], schema: str | None = None, *, verb: str = MAKE) -> dict[str, Any]:
    """The object in a JSON file; ArtefactError where it is missing, torn, or its "schema" is not `schema`."""
    path = Path(path)
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as exc:
        raise _missing(path, verb) from exc
    except IsADirectoryError as exc:
        raise ArtefactError(f"{path} is a folder, not a JSON file.") from exc
    except ValueError as exc:  # JSONDecodeError, UnicodeDecodeError
        raise ArtefactError(f"{path} is torn or is not JSON: remove it, and `{verb}` makes it again.") from exc
    if not isinstance(value, dict):
        raise ArtefactError(
            f"{path} holds a {type(value).__name__}, not an object: `{verb}` makes it again once removed."
        )
    if schema is not None and value.get("schema") != schema:
        found = value.get("schema")
        what = f"says that it is {found!r}" if found else "does not say what it is"
        raise ArtefactError(f"{path} {what}, this version reads {schema!r}: remove it, and `{verb}` makes it again.")
    return value


# ---------------------------------------------------------------------------------------------- JSON lines


def read_lines(path: str | os.PathLike[str], *, verb: str = MAKE) -> list[dict[str, Any]]:
    """All whole records of a JSONL file; a torn last line is passed over, any other is an ArtefactError."""
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError as exc:
        raise _missing(path, verb) from exc
    lines = text.split("\n")
    records = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline was never finished
        try:
            records.append(json.loads(line))
        except ValueError as exc:
            raise ArtefactError(
                f"line {number} of {path} is torn: remove the file, and `{verb}` makes it again."
            ) from exc
    return records


def rewrite_lines(path: str | os.PathLike[str], records: Iterable[Mapping[str, Any]]) -> Path:
    """Replaces a JSONL file atomically — to cut it back to the step of a checkpoint before continuing."""
    return write_atomic(path, "".join(to_json(record) + "\n" for record in records))


# ---------------------------------------------------------------------------------------------- tensors


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor | np.ndarray], info: Mapping[str, Any] | None = None
) -> Path:
    """Writes torch tensors or numpy arrays (not both) as one safetensors file, with a checksum of their bytes inside.

    `info` is small JSON kept in the header (`read_info`). Same tensors and info → same bytes.
    """
    is_numpy = all(type(value).__module__.startswith("numpy") for value in tensors.values())
    if is_numpy:
        import numpy as np
        from safetensors.numpy import save_file

        plain: dict[str, Any] = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
    else:
        from safetensors.torch import save_file

        plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}  # type: ignore[union-attr]
    header = {"crc32": {key: _checksum(plain[key]) for key in sorted(plain)}, "info": dict(info or {})}
    # One key: the library keeps metadata in a hash map, and several keys come out in any order.
    text = {"jumpahead": json.dumps(header, sort_keys=True, allow_nan=False, default=_plain)}
    return write_atomic(path, lambda temporary: save_file(plain, temporary, metadata=text))


def _checksum(value: Any) -> int:
    """crc32 of the bytes of a contiguous array or CPU tensor (4.7 GB/s)."""
    if not type(value).__module__.startswith("numpy"):
        import torch

        value = value.reshape(-1).view(torch.uint8).numpy()
    return zlib.crc32(memoryview(value.reshape(-1)).cast("B") if value.size else b"")


def read_tensors(path: str | os.PathLike[str], *, verb: str = MAKE) -> dict[str, Tensor]:
    """The torch tensors of a safetensors file, each in its own aligned memory, checked against its checksum if any."""
    return dict(_read(Path(path), "pt", verb))


def read_arrays(path: str | os.PathLike[str], *, verb: str = MAKE) -> dict[str, np.ndarray]:
    """`read_tensors` as numpy arrays (no torch)."""
    return dict(_read(Path(path), "numpy", verb))


def read_info(path: str | os.PathLike[str], *, verb: str = MAKE) -> dict[str, Any]:
    """The `info` that was written with the tensors; {} for a file that is not ours."""
    with _open(Path(path), "numpy", verb) as file:
        return _header(file).get("info", {})


def map_array(path: str | os.PathLike[str], key: str, *, verb: str = MAKE) -> np.ndarray:
    """One array of a safetensors file, mapped into memory and not checked: for what is too large to be loaded."""
    import numpy as np

    path = Path(path)
    with _open(path, "numpy", verb) as file:  # refuses a torn file
        dtype = file.get_slice(key)[:0].dtype
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        about = json.loads(file.read(length))[key]
    shape = tuple(about["shape"])
    if 0 in shape:  # cannot be mapped
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", offset=8 + length + about["data_offsets"][0], shape=shape)


def _read(path: Path, framework: str, verb: str) -> Iterator[tuple[str, Any]]:
    with _open(path, framework, verb) as file:
        checksums = _header(file).get("crc32", {})
        for key in sorted(file.keys()):
            value = file.get_tensor(key)
            # The library gives views of the mapped file: unaligned, and gone bad if the file is.
            value = value.clone() if framework == "pt" else value.copy()
            if key in checksums and _checksum(value) != checksums[key]:
                raise ArtefactError(
                    f"{path} is damaged: '{key}' does not match its checksum; remove it, and `{verb}` makes it again."
                )
            yield key, value


@contextlib.contextmanager
def _open(path: Path, framework: str, verb: str) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise _missing(path, verb)
    if path.is_dir():
        raise ArtefactError(f"{path} is a folder, not a safetensors file.")
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except SafetensorError as exc:
        raise ArtefactError(
            f"{path} is torn or is not a safetensors file: remove it, and `{verb}` makes it again."
        ) from exc


def _header(file: Any) -> dict[str, Any]:
    text = (file.metadata() or {}).get("jumpahead")
    return json.loads(text) if text else {}


# ---------------------------------------------------------------------------------------------- digests


def digest_bytes(content: bytes | str) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def digest_json(value: Any) -> str:
    """SHA-256 of canonical JSON: independent of the order of keys; non-finite numbers are refused (ValueError)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain)
    return digest_bytes(text)


def digest_file(path: str | os.PathLike[str], *, verb: str = MAKE) -> str:
    """SHA-256 of a file's bytes."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as exc:
        raise _missing(Path(path), verb) from exc


def has_inputs(path: str | os.PathLike[str], inputs: str) -> bool:
    """True if the JSON object in `path` says `"inputs": inputs`; a missing or a torn file is simply not done."""
    try:
        return read_json(path).get("inputs") == inputs
    except ArtefactError:
        return False


# ---------------------------------------------------------------------------------------------- settings and folders


Setting = Mapping[str, Any] | tuple[str, float]
"""What moves along a series' curve: {"kind", "value"} or (kind, value), e.g. `jumpahead.sae.recipe.Setting`."""


def setting_text(setting: Setting) -> str:
    """`l0-16`, `lambda-0.0006`, `k-32`: part of a folder's name, different for different values."""
    kind, value = (setting["kind"], setting["value"]) if isinstance(setting, Mapping) else setting
    return f"{kind}-{_number(value)}"


def _number(value: float) -> str:
    """The shortest decimal text that reads back as `value`, without `.0`."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))


def sae_key(site: str, width: int, series: str, setting: Setting, sae_seed: int, stream_seed: int = 0) -> str:
    """The folder of an SAE below the run, with `/` between parts."""
    last = f"{setting_text(setting)}_seed-{sae_seed}" + (f"_stream-{stream_seed}" if stream_seed else "")
    return "/".join(("saes", safe_name(site), str(width), safe_name(series), last))


def safe_name(name: str) -> str:
    """`name`, if it can be one folder's name; else ArtefactError."""
    if not name or name.startswith(".") or any(not (c.isalnum() or c in "._-") for c in name) or not name.isascii():
        raise ArtefactError(f"{name!r} cannot be a folder's name: use letters, digits, '.', '_' and '-'.")
    return name


class SAEFolder(NamedTuple):
    """Where one SAE lives. `config.json` is written last: an SAE is done when it is there with the right inputs."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def weights(self) -> Path:
        return self.path / "weights.safetensors"

    @property
    def log(self) -> Path:
        return self.path / "train.jsonl"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def checkpoint(self) -> Path:
        """A folder; empty or absent once training is done."""
        return self.path / "checkpoint"

    def is_done(self, inputs: str) -> bool:
        """Trained and saved, from these inputs (a digest)."""
        return has_inputs(self.config, inputs) and self.weights.is_file()

    def is_evaluated(self, inputs: str) -> bool:
        """Measured, from these inputs (a digest that covers the trained SAE and the evaluation's own settings)."""
        return has_inputs(self.evaluation, inputs)


class Run:
    """A run's folder. `Run.create` makes or continues one, `Run.open` takes one that must exist."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._lock: int | None = None
        self._depth = 0

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Run:
        """A run that exists, finished or not; ArtefactError for anything else."""
        run = cls(folder)
        if not run.folder.exists():
            raise ArtefactError(f"{folder} does not exist: `jumpahead run STUDY --out {folder}` makes it.")
        if not run.folder.is_dir() or not run.manifest.is_file():
            raise ArtefactError(
                f"{folder} is not a run (it has no manifest.json): name the folder that `{MAKE}` printed."
            )
        read_json(run.manifest, RUN_SCHEMA)
        return run

    @classmethod
    def create(cls, folder: str | os.PathLike[str], study: str) -> Run:
        """Makes the run, or takes the one that is there, and saves the resolved study (TOML) with it."""
        run = cls(folder)
        with run.lock():
            run.begin(study)
        return run

    def begin(self, study: str) -> None:
        """Under `lock`: writes the manifest and the resolved study. Versions of earlier sessions are kept."""
        known = read_json(self.manifest, RUN_SCHEMA) if self.manifest.exists() else {}
        now, earlier = provenance(), known.get("earlier", [])
        before = {key: known[key] for key in now if key in known}
        if before and before != now and before not in earlier:
            earlier = [*earlier, before]
        created = known.get("created", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        self.update_manifest(schema=RUN_SCHEMA, created=created, study=digest_bytes(study), **now, earlier=earlier)
        write_atomic(self.study, study)

    @contextlib.contextmanager
    def working(self, study: str) -> Iterator[None]:
        """Locked and begun, and discarded at the end where nothing was made: what work on a study (TOML) stands in."""
        with self.lock():
            self.begin(study)
            try:
                yield
            finally:
                self.discard_if_nothing_was_made()

    def discard_if_nothing_was_made(self) -> None:
        """Under `lock`: removes a run in which nothing but its study has been written, after a failed start."""
        files = (self.manifest, self.study, self.precision, self.checks, self.starts, self.stdin)
        ours = {*(file.name for file in files), ".lock"}
        if self.folder.is_dir() and {path.name for path in self.folder.iterdir()} <= ours:
            shutil.rmtree(self.folder)

    def _has_foreign_files(self) -> bool:
        if not self.folder.is_dir():
            return self.folder.exists()
        return any(not (p.name == ".lock" or _TEMPORARY in p.name) for p in self.folder.iterdir())

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def study(self) -> Path:
        return self.folder / "study.toml"

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.json"

    @property
    def precision(self) -> Path:
        return self.folder / "precision.json"

    @property
    def checks(self) -> Path:
        return self.folder / "checks.json"

    @property
    def made_from(self) -> Path:
        """What the tokens were made from, for when that is gone."""
        return self.tokens / "made_from.json"

    @property
    def starts(self) -> Path:
        """What is known of the SAEs that series started from, for when those are gone."""
        return self.folder / "starts.json"

    @property
    def stdin(self) -> Path:
        return self.folder / "stdin.txt"

    @property
    def tokens(self) -> Path:
        """A folder; `lm/contexts.py` knows what is inside."""
        return self.folder / "tokens"

    @property
    def activations(self) -> Path:
        """A folder; `activations/shards.py` knows what is inside."""
        return self.folder / "activations"

    @property
    def frontier(self) -> Path:
        return self.folder / "frontier.json"

    @property
    def efficiency(self) -> Path:
        """What a training step costs, where somebody has measured it."""
        return self.folder / "efficiency.json"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def features(self) -> Path:
        return self.folder / "features"

    def sae(
        self,
        site: str,
        width: int,
        series: str,
        setting: Setting,
        sae_seed: int,
        stream_seed: int = 0,
    ) -> SAEFolder:
        """The folder of one SAE, whether or not it exists."""
        return self.at(sae_key(site, width, series, setting, sae_seed, stream_seed))

    def at(self, key: str) -> SAEFolder:
        """The folder of the SAE whose `Unit.key` this is."""
        return SAEFolder(self.resolve(key))

    def saes(self) -> list[SAEFolder]:
        """Every SAE that has been saved, in the order of their paths."""
        return [SAEFolder(path.parent) for path in sorted(self.folder.glob("saes/*/*/*/*/config.json"))]

    def relative(self, path: str | os.PathLike[str]) -> str:
        """A path inside the run as it stands in JSON: relative to the run, with `/`."""
        return Path(path).relative_to(self.folder).as_posix()

    def resolve(self, relative: str) -> Path:
        """The opposite of `relative`; absolute paths and `..` are refused."""
        parts = PurePosixPath(relative)
        if parts.is_absolute() or ".." in parts.parts or "\\" in relative or ":" in relative:
            raise ArtefactError(
                f"{self.folder} refers to {relative!r}, which is outside of it: the run is foreign or damaged."
            )
        return self.folder / parts

    def read_manifest(self) -> dict[str, Any]:
        return read_json(self.manifest, RUN_SCHEMA)

    def update_manifest(self, **fields: Any) -> dict[str, Any]:
        """Adds or replaces top-level fields of manifest.json; returns the whole."""
        known = read_json(self.manifest, RUN_SCHEMA) if self.manifest.exists() else {}
        known.update(fields)
        write_json(self.manifest, known)
        return known

    @contextlib.contextmanager
    def lock(self, patience: float = 0, waiting: Callable[[], None] = lambda: None) -> Iterator[Run]:
        """Held while a process writes the run; a second process gets an ArtefactError. May be nested on one object.

        With `patience` the second waits for the first, so many seconds at most, and calls `waiting` when it begins to.

        The operating system releases the lock of a killed process; temporaries it left are removed here.
        """
        if self._depth == 0:
            if not self.manifest.exists() and self._has_foreign_files():
                raise ArtefactError(f"{self.folder} is not empty and is not a run: name another folder with --out.")
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = _acquire_patiently(self.folder / ".lock", self.folder, patience, waiting)
            remove_temporaries(self.folder, but=self.activations)  # other processes may be writing there
        self._depth += 1
        try:
            yield self
        finally:
            self._depth -= 1
            if self._depth == 0 and self._lock is not None:
                _release(self._lock)
                self._lock = None


@contextlib.contextmanager
def locked(path: Path, folder: Path) -> Iterator[None]:
    """Holds the lock file `path`, which stands for a part of `folder`; ArtefactError while another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = _acquire(path, folder)
    try:
        yield
    finally:
        _release(handle)


def is_locked(path: Path) -> bool:
    """Whether another process, or another `locked` of this one, holds it."""
    try:
        _release(_acquire(path, path))
    except ArtefactError:
        return True
    return False


def _release(handle: int) -> None:
    os.ftruncate(handle, 0)
    os.close(handle)


def _acquire(path: Path, folder: Path) -> int:
    """An open, locked file that holds our process id and host; ArtefactError while another living process has it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    owner = os.read(handle, 200).decode(errors="replace").split()
    try:
        if fcntl is None:
            raise OSError
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_free = True
    except BlockingIOError:
        is_free = False
    except OSError:  # a file system without locks
        is_free = not (len(owner) == 2 and owner[1] == socket.gethostname() and _is_alive(owner[0]))
    if not is_free:
        os.close(handle)
        who = f"process {owner[0]} on {owner[1]}" if len(owner) == 2 else "another process"
        raise ArtefactError(f"{folder} is being written by {who}: wait for it, stop it, or name another --out.")
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()} {socket.gethostname()}".encode(), 0)
    return handle


def _acquire_patiently(path: Path, folder: Path, patience: float, waiting: Callable[[], None]) -> int:
    """`_acquire`, again and again for `patience` seconds."""
    until, is_first = time.monotonic() + patience, True
    while True:
        try:
            return _acquire(path, folder)
        except ArtefactError:
            if time.monotonic() >= until:
                raise
        if is_first:
            waiting()
        is_first = False
        time.sleep(0.2)


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True


# ---------------------------------------------------------------------------------------------- provenance


def provenance() -> dict[str, Any]:
    """Versions and hardware, without importing what is named and without the machine's name or paths."""
    versions = {"python": platform.python_version()}
    for package in ("jumpahead", "torch", "transformers", "numpy", "numba", "safetensors"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    hardware = {"system": platform.system(), "machine": platform.machine(), "cores": os.cpu_count()}
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        hardware["processor"] = names[0] if names else platform.processor()
    with contextlib.suppress(OSError, ValueError, AttributeError):
        hardware["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"versions": versions, "hardware": hardware}
