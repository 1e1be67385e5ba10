"""Another package adds an architecture, a kind of text source and an origin of activations, without a change here."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

from jumpahead.storage.json_files import read_json

MODULE = '''
"""A package of its own, with one extension of each kind."""

from jumpahead.activations.origins.synthetic import Synthetic
from jumpahead.sae.architectures.topk import TopK
from jumpahead.text.source import Document, Source


class Mine(TopK):
    """TopK under another name."""

    name, title = "mine", "Mine"


class Letters(Source):
    """Documents of made-up words."""

    @classmethod
    def recognises(cls, source):
        return source.startswith("letters:")

    @property
    def total_bytes(self):
        return None

    def documents(self):
        for i in range(int(self.config.source.removeprefix("letters:"))):
            text = " ".join(f"word{(i * 31 + j * j) % 97}" for j in range(60))
            yield Document(f"letter {i}", text)

    def fingerprint(self):
        return self.config.source


class Elsewhere(Synthetic):
    """Synthetic activations under another name."""
'''
ENTRY_POINTS = """
[jumpahead.architectures]
mine = extension:Mine

[jumpahead.text_sources]
letters = extension:Letters

[jumpahead.activation_origins]
elsewhere = extension:Elsewhere
"""
SERIES = [{"architecture": "mine", "k": [3]}]


def install(folder: Path) -> None:
    """Write a package with entry points into a folder, as an installation would."""
    (folder / "extension.py").write_text(MODULE)
    info = folder / "extension-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: extension\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)


def run_program(program: str, folder: Path) -> str:
    """Return the output of a Python program that sees the package in `folder`; the folder is the working directory."""
    program = f"import sys\nsys.path.insert(0, {str(folder)!r})\n" + textwrap.dedent(program)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_entry_points_of_another_package_take_part_in_a_study(tmp_path: Path):
    install(tmp_path)
    study = {
        "name": "x", "activations": {"origin": "elsewhere", "sites": ["a"], "options": {"d": 12, "groups": 24}},
        "sae": {"width": 48}, "train": {"tokens": 4096, "batch": 512, "device": "cpu"}, "series": SERIES,
    }  # fmt: skip
    program = f"""
        import json
        import jumpahead
        from jumpahead.activations.origins import ORIGINS
        from jumpahead.sae.architectures import ARCHITECTURES
        from jumpahead.text.config import TextConfig
        from jumpahead.text.sources import SOURCES, source_of

        assert "mine" in ARCHITECTURES.names() and "letters" in SOURCES.names() and "elsewhere" in ORIGINS.names()
        assert not {{"torch", "extension"}} & set(sys.modules), "listing imports nothing"
        assert len(list(source_of(TextConfig(source="letters:7")).documents())) == 7
        run = jumpahead.run(json.loads({json.dumps(json.dumps(study))}), out="run")
        sae = jumpahead.SAE.load(run / "saes/a/48/mine/k-3_seed-0")
        assert (sae.architecture, sae.width, sae.d) == ("mine", 48, 12)
        assert "Mine" in (run / "report.html").read_text()
    """
    run_program(program, tmp_path)
    assert read_json(tmp_path / "run/saes/a/48/mine/k-3_seed-0/config.json")["architecture"] == "mine"


def test_a_text_source_of_another_package_feeds_the_language_model(tmp_path: Path):
    install(tmp_path)
    study = {
        "name": "x", "text": {"source": "letters:400"}, "lm": {"model": "tiny", "context": 64},
        "sae": {"width": 128}, "train": {"tokens": 2048, "batch": 512, "device": "cpu"},
        "series": SERIES, "evaluate": {"tokens": 500, "replicates": 20},
    }  # fmt: skip
    program = f"""
        import json
        import jumpahead
        run = jumpahead.run(json.loads({json.dumps(json.dumps(study))}), out="run", until="train")
        assert list((run / "saes").rglob("weights.safetensors"))
    """
    run_program(program, tmp_path)


def test_a_name_that_another_package_declares_is_taken(tmp_path: Path):
    """A class may be registered under its own entry point's name, and no other class may."""
    install(tmp_path)
    program = """
        import jumpahead
        from extension import Mine
        from jumpahead.errors import StudyError
        from jumpahead.sae.architectures import ARCHITECTURES

        class Other(Mine):
            pass

        try:
            jumpahead.register(Other, "mine")
        except StudyError as error:
            print(error)
        assert jumpahead.register(Mine) is ARCHITECTURES.get("mine") is Mine
    """
    assert "'mine' is taken by another architecture" in run_program(program, tmp_path)


def test_register_is_enough_in_one_process(tmp_path: Path):
    """Without entry points: classes that are registered before the study is read."""
    (tmp_path / "extension.py").write_text(MODULE)
    program = f"""
        import jumpahead
        from extension import Elsewhere, Letters, Mine
        from jumpahead.text.config import TextConfig
        from jumpahead.text.sources import source_of

        for member in (Elsewhere, Letters, Mine):
            assert jumpahead.register(member) is member
        assert type(source_of(TextConfig(source="letters:7"))) is Letters
        study = {{
            "name": "x", "activations": {{"origin": "elsewhere", "sites": ["a"], "options": {{"d": 12, "groups": 24}}}},
            "sae": {{"width": 48}}, "train": {{"tokens": 2048, "batch": 512, "device": "cpu"}}, "series": {SERIES!r},
        }}
        run = jumpahead.run(study, out="run")
        assert jumpahead.SAE.load(run / "saes/a/48/mine/k-3_seed-0").architecture == "mine"
    """
    run_program(program, tmp_path)
