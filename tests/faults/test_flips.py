"""A damaged byte in any file of a run is never used: it is made again, or one sentence names the file."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from jumpahead import api
from jumpahead.errors import DamagedError, JumpaheadError
from jumpahead.progress import SilentProgress
from jumpahead.sae.saved import SAE
from tests.faults.small_run import IS_COMPLETE, STUDY
from tests.faults.test_kills import results

MORE = {**STUDY, "evaluate": {**STUDY["evaluate"], "tokens": 800}}
SUFFIXES = (".json", ".jsonl", ".safetensors")
PER_FILE = 70 if IS_COMPLETE else 1


def damages(content: bytes, count: int, seed: int) -> list[tuple[str, bytes]]:
    """Return damaged versions of a file: single bits, zeroed blocks and torn ends."""
    rng, found = random.Random(seed), []
    for number in range(count):
        changed, position = bytearray(content), rng.randrange(len(content))
        if number % 10 == 8:
            changed[position : position + 16] = bytes(len(changed[position : position + 16]))
            name = f"zeros at {position}"
        elif number % 10 == 9:
            changed, name = changed[:position], f"torn at {position}"
        else:
            changed[position] ^= 1 << rng.randrange(8)
            name = f"flip at {position}"
        if bytes(changed) != content:
            found.append((name, bytes(changed)))
    return found


def test_no_damage_of_a_finished_run_is_used(finished: Path, tmp_path: Path):
    expected, folder, tried = results(finished), tmp_path / "rows", 0
    shutil.copytree(finished, folder)
    names = [path.relative_to(finished) for path in sorted(finished.rglob("*")) if path.suffix in SUFFIXES]
    assert len(names) >= 15
    for seed, name in enumerate(names):
        for what, content in damages((finished / name).read_bytes(), PER_FILE, seed):
            (folder / name).write_bytes(content)
            assert any(str(folder / name) in problem for problem in verify(folder)) or name.suffix != ".json", what
            said = run_again(folder, name)
            assert not said or str(folder / name) in said, (name, what)
            assert said or results(folder) == expected, (name, what)
            assert verify(folder) == [], (name, what)
            tried += 1
            shutil.rmtree(folder)
            shutil.copytree(finished, folder)
    assert tried >= (1000 if IS_COMPLETE else 15)


def run_again(folder: Path, name: Path) -> str:
    """Run the study on a damaged run; return the sentence of the error, if it is refused."""
    try:
        api.run(STUDY, out=folder, progress=SilentProgress())
        if name.name == "weights.safetensors" and verify(folder):  # its values were not needed
            with pytest.raises(DamagedError, match=r"weights\.safetensors is damaged"):
                SAE.load((folder / name).parent)
            api.run(MORE, out=folder, progress=SilentProgress())
            api.run(STUDY, out=folder, progress=SilentProgress())
    except JumpaheadError as exc:
        return str(exc)
    return ""


def verify(folder: Path) -> list[str]:
    """Return what `jumpahead verify` finds."""
    try:
        return api.verify(folder).problems
    except JumpaheadError as exc:
        return [str(exc)]


@pytest.mark.parametrize("seed", range(20 if IS_COMPLETE else 1))
def test_a_damaged_checkpoint_is_not_continued(finished: Path, tmp_path: Path, seed: int):
    from tests.faults.test_kills import OFTEN, killed_run

    folder = tmp_path / "rows"
    killed_run(OFTEN, folder, 60, is_after=True)
    states = sorted(folder.rglob("state.safetensors"))
    assert states
    for state in states:
        ((_, content),) = damages(state.read_bytes(), 1, seed)
        state.write_bytes(content)
    api.run(OFTEN, out=folder, progress=SilentProgress())
    assert results(folder) == results(finished)
