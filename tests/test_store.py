"""What is on disk is old or new, never a part; what is torn, foreign, stale or locked is named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from jumpahead import store
from jumpahead.errors import ArtefactError
from jumpahead.sae.recipe import Setting


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob("*") if ".tmp-" in p.name]


# ---------------------------------------------------------------------------------------------- atomicity


def test_a_write_that_fails_leaves_the_old_bytes_and_no_temporary(tmp_path: Path):
    path = store.write_atomic(tmp_path / "a.bin", b"old")

    def half(temporary: Path) -> None:
        temporary.write_bytes(b"ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.write_atomic(path, half)
    assert path.read_bytes() == b"old"
    assert leftovers(tmp_path) == []


def test_a_crash_between_write_and_rename_leaves_the_old_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = store.write_atomic(tmp_path / "a.bin", b"old")
    events = []

    def crash(source: str, target: str) -> None:
        events.append(Path(source).read_bytes())
        raise OSError("power cut")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="power cut"):
        store.write_atomic(path, b"new")
    assert events == [b"new"]  # all of it was there before the rename was tried
    assert path.read_bytes() == b"old"


def test_the_bytes_are_synced_before_the_rename_and_the_folder_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    events, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), replace(a, b))[1])
    store.write_atomic(tmp_path / "a.bin", b"x")
    assert events == ["fsync", "rename", "fsync"]


def test_kill_9_while_writing_and_the_next_lock_cleans_up(tmp_path: Path):
    store.Run.create(tmp_path / "run", "name = 'old'\n")
    program = """
        import os, signal, sys
        from jumpahead import store
        run = store.Run(sys.argv[1])
        with run.lock():
            def die(temporary):
                temporary.write_text("name = 'ne")
                os.kill(os.getpid(), signal.SIGKILL)
            store.write_atomic(run.study, die)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program), tmp_path / "run"], check=False)
    assert done.returncode == -signal.SIGKILL
    run = store.Run.open(tmp_path / "run")
    assert run.study.read_text() == "name = 'old'\n"
    assert len(leftovers(run.folder)) == 1
    with run.lock():  # the dead process's lock is gone with it
        assert leftovers(run.folder) == []


def test_one_process_at_a_time(tmp_path: Path):
    run = store.Run.create(tmp_path / "run", "")
    program = "import sys; from jumpahead import store; store.Run(sys.argv[1]).lock().__enter__()"
    command = [sys.executable, "-c", program, str(run.folder)]
    with run.lock(), run.lock():  # nests on one object
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert f"is being written by process {os.getpid()} on " in done.stderr
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_where_there_are_no_file_locks_a_stale_process_id_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = store.Run.create(tmp_path / "run", "")
    monkeypatch.setattr(store, "fcntl", None)
    lock = run.folder / ".lock"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = store.socket.gethostname()
    lock.write_text(f"{dead.pid} {host}")
    with run.lock():
        assert lock.read_text() == f"{os.getpid()} {host}"
    lock.write_text(f"{os.getppid()} {host}")
    with pytest.raises(ArtefactError, match=f"process {os.getppid()} on"), run.lock():
        pass


# ---------------------------------------------------------------------------------------------- JSON


def test_json_takes_numpy_and_writes_null_for_what_is_not_finite(tmp_path: Path):
    value = {
        "a": np.float64(2.5),
        "b": np.arange(3),
        "c": float("nan"),
        "d": [np.inf, 7],
        "e": Setting("k", 3)._asdict(),
    }
    path = store.write_json(tmp_path / "a.json", value)
    assert store.read_json(path) == {
        "a": 2.5,
        "b": [0, 1, 2],
        "c": None,
        "d": [None, 7],
        "e": {"kind": "k", "value": 3},
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"a\.json does not exist: `jumpahead run` makes it"),
        (b'{"schema": "x/1", "list": [1, 2', r"a\.json is torn"),
        (b"", r"a\.json is torn"),
        (b"\xff\xfe{}", r"a\.json is torn"),
        (b"[1]", r"a\.json holds a list"),
        (b"{}", r"a\.json does not say what it is, this version reads 'x/1'"),
        (b'{"schema": "x/2"}', r"a\.json says that it is 'x/2', this version reads 'x/1'"),
    ],
)
def test_json_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, message: str):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtefactError, match=message):
        store.read_json(path, "x/1")


def test_lines_survive_a_torn_end_but_not_a_torn_middle(tmp_path: Path):
    path = tmp_path / "train.jsonl"
    store.rewrite_lines(path, [{"step": 10}, {"step": 20}])
    with open(path, "a") as file:
        file.write('{"step": 3')
    assert store.read_lines(path) == [{"step": 10}, {"step": 20}]
    store.rewrite_lines(path, [store.read_lines(path)[0], {"step": 20, "fvu": float("nan")}])
    assert store.read_lines(path) == [{"step": 10}, {"step": 20, "fvu": None}]
    path.write_text('{"step": 10}\n{"st\n{"step": 30}\n')
    with pytest.raises(ArtefactError, match=r"line 2 of .*train\.jsonl is torn"):
        store.read_lines(path)


# ---------------------------------------------------------------------------------------------- tensors


def test_tensors_come_back_bitwise_and_the_file_is_a_function_of_its_content(tmp_path: Path):
    generator = torch.Generator().manual_seed(3)
    tensors = {
        "w": torch.randn(5, 3, generator=generator).T,  # not contiguous
        "half": torch.randn(7, generator=generator).to(torch.bfloat16),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
    }
    info = {"architecture": "jumprelu", "width": 48, "nested": {"b": [1, 2], "a": None}}
    path = store.write_tensors(tmp_path / "w.safetensors", tensors, info)
    back = store.read_tensors(path)
    assert back.keys() == tensors.keys()
    for key, value in tensors.items():
        assert back[key].dtype == value.dtype
        assert back[key].shape == value.shape
        assert torch.equal(back[key], value)
        assert back[key].data_ptr() % 16 == 0
    assert store.read_info(path) == info
    again = store.write_tensors(tmp_path / "again.safetensors", dict(reversed(tensors.items())), info)
    assert again.read_bytes() == path.read_bytes()


def test_arrays_come_back_bitwise(tmp_path: Path):
    arrays = {
        "ids": np.arange(9, dtype=np.uint16)[::2],
        "start": np.array([2**40], np.int64),
        "trained": np.bool_([1, 0]),
    }
    back = store.read_arrays(store.write_tensors(tmp_path / "t.safetensors", arrays))
    for key, value in arrays.items():
        assert back[key].dtype == value.dtype
        assert np.array_equal(back[key], value)


def test_torn_tensors_are_named_at_every_length(tmp_path: Path):
    path = store.write_tensors(tmp_path / "w.safetensors", {"w": torch.arange(12.0)})
    whole = path.read_bytes()
    for length in (0, 5, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtefactError, match=r"w\.safetensors is torn .*`jumpahead run` makes it again"):
            store.read_tensors(path)
    path.unlink()
    with pytest.raises(ArtefactError, match=r"w\.safetensors does not exist"):
        store.read_tensors(path)


def test_one_flipped_bit_is_seen(tmp_path: Path):
    path = store.write_tensors(tmp_path / "w.safetensors", {"b": torch.arange(3.0), "w": torch.arange(12.0)})
    content = bytearray(path.read_bytes())
    content[-1] ^= 4
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"damaged: 'w' does not match its checksum"):
        store.read_tensors(path)


def test_a_foreign_file_has_no_checksum_and_is_read(tmp_path: Path):
    from safetensors.torch import save_file

    save_file({"W": torch.arange(6.0)}, tmp_path / "x.safetensors", metadata={"format": "pt"})
    assert torch.equal(store.read_tensors(tmp_path / "x.safetensors")["W"], torch.arange(6.0))
    assert store.read_info(tmp_path / "x.safetensors") == {}


# ---------------------------------------------------------------------------------------------- digests


def test_digests(tmp_path: Path):
    # sha256("abc"), from FIPS 180-2
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert store.digest_bytes(b"abc") == known
    path = store.write_atomic(tmp_path / "a", "abc")
    assert store.digest_file(path) == known
    with pytest.raises(ArtefactError, match="does not exist"):
        store.digest_file(tmp_path / "b")
    assert store.digest_json({"a": 1, "b": [2.5]}) == store.digest_json({"b": [2.5], "a": 1})
    assert store.digest_json({"a": 1}) != store.digest_json({"a": 2})
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.digest_json({"a": float("nan")})


def test_done_means_saved_and_from_these_inputs(tmp_path: Path):
    sae = store.Run(tmp_path).sae("layers.1.residual", 4096, "topk", {"kind": "k", "value": 32}, 0)
    assert not sae.is_done("abc")
    store.write_json(sae.config, {"inputs": "abc"})
    assert not sae.is_done("abc")  # config without weights: someone removed them
    store.write_tensors(sae.weights, {"w": torch.zeros(2)})
    assert sae.is_done("abc")
    assert not sae.is_done("abd")
    sae.config.write_text('{"inputs": "ab')
    assert not sae.is_done("abc")


# ---------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        (("l0", 16.0), "l0-16"),
        (("l0", 16), "l0-16"),
        (("l0", 2.5), "l0-2.5"),
        (("lambda", 6e-4), "lambda-0.0006"),
        (("lambda", 1.234567890123e-7), "lambda-1.234567890123e-07"),
        (("k", 32), "k-32"),
    ],
)
def test_setting_text(setting: tuple[str, float], text: str):
    assert store.setting_text(setting) == text
    assert float(text.partition("-")[2]) == setting[1]


def test_sae_folder(tmp_path: Path):
    run = store.Run(tmp_path)
    sae = run.sae("layers.1.residual", 4096, "jumprelu", Setting("l0", 16.0), 3)
    assert run.relative(sae.weights) == "saes/layers.1.residual/4096/jumprelu/l0-16_seed-3/weights.safetensors"
    other = run.sae("layers.1.residual", 4096, "jumprelu", {"kind": "l0", "value": 16.0}, 3, stream_seed=2)
    assert other.path.name == "l0-16_seed-3_stream-2"
    with pytest.raises(ArtefactError, match="cannot be a folder's name"):
        run.sae("layers.1.residual", 4096, "../x", Setting("l0", 16.0), 3)


def test_saes_lists_what_was_saved(tmp_path: Path):
    run = store.Run(tmp_path)
    saved, unfinished = (run.sae("layers.1.mlp", 64, "topk", Setting("k", k), 0) for k in (2, 4))
    store.write_json(saved.config, {})
    store.write_json(unfinished.checkpoint / "state.json", {})
    assert run.saes() == [saved]


@pytest.mark.parametrize("path", ["../other", "a/../../b", "/etc/passwd", "C:/x", "a\\b"])
def test_paths_out_of_the_run_are_refused(tmp_path: Path, path: str):
    with pytest.raises(ArtefactError, match="outside of it"):
        store.Run(tmp_path).resolve(path)


def test_only_a_run_is_a_run(tmp_path: Path):
    with pytest.raises(ArtefactError, match="jumpahead run STUDY --out"):
        store.Run.open(tmp_path / "none")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mum.txt").write_text("hello")
    with pytest.raises(ArtefactError, match="is not a run"):
        store.Run.open(tmp_path / "letters")
    with pytest.raises(ArtefactError, match="is not empty and is not a run"):
        store.Run.create(tmp_path / "letters", "")
    with pytest.raises(ArtefactError, match="is not a run"):
        store.Run.open(tmp_path / "letters" / "mum.txt")
    with pytest.raises(ArtefactError, match="is not empty and is not a run"):
        store.Run.create(tmp_path / "letters" / "mum.txt", "")
    assert [p.name for p in tmp_path.rglob("*")] == ["letters", "mum.txt"]


def test_a_run_remembers_when_it_began_and_with_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = store.Run.create(tmp_path / "run", "name = 'a'\n")
    first = run.read_manifest()
    assert first["schema"] == "jumpahead.run/1"
    assert first["versions"]["torch"] == torch.__version__
    assert first["earlier"] == []
    run.update_manifest(tokens={"digest": "abc"})
    monkeypatch.setattr(store, "provenance", lambda: {"versions": {"torch": "99"}, "hardware": {"cores": 3}})
    second = store.Run.create(tmp_path / "run", "name = 'b'\n").read_manifest()
    assert second["created"] == first["created"]
    assert second["tokens"] == {"digest": "abc"}
    assert second["versions"] == {"torch": "99"}
    assert second["earlier"] == [{"versions": first["versions"], "hardware": first["hardware"]}]
    assert store.Run.open(tmp_path / "run").study.read_text() == "name = 'b'\n"
    assert str(tmp_path) not in json.dumps(second)
