"""Kinds of text source: which one recognises a source, and what all kinds of rows have in common."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from jumpahead.errors import DataError, StudyError
from jumpahead.text.config import TextConfig
from jumpahead.text.documents import documents
from jumpahead.text.source import Document, Source
from jumpahead.text.sources import SOURCES, source_of

ROWS = ["alpha beta", "  gamma\r\n", "", "delta\0\n", "alpha beta", " \n", "ε ζ \u2028 \U0001f600"]
KEPT = ["alpha beta", "  gamma\r\n", "delta\0\n", "ε ζ \u2028 \U0001f600"]
"""ROWS without empty rows and duplicates."""


def jsonl(path: Path, rows: list[object], column: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"number": i, column: row}) + "\n" for i, row in enumerate(rows))
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wb") as file:
        file.write(lines.encode())
    return path


def parquet(path: Path, rows: list[object], column: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table({"number": range(len(rows)), column: rows})
    pyarrow.parquet.write_table(table, path, row_group_size=2)
    return path


# Each format of rows: the file's name, the function that writes it, and its `text.source`.
KINDS = {
    "jsonl": ("rows.jsonl", jsonl, lambda path: str(path)),
    "jsonl.gz": ("rows.jsonl.gz", jsonl, lambda path: str(path)),
    "parquet": ("rows.parquet", parquet, lambda path: str(path)),
    "hub-jsonl": ("data/train.jsonl", jsonl, lambda path: f"hf:{path.parents[1]}"),
    "hub-parquet": ("data/train.parquet", parquet, lambda path: f"hf:{path.parents[1]}"),
}


@pytest.fixture(params=KINDS)
def written(request, tmp_path):
    """Return a function from rows to a `text.source` that holds them, in one of the formats."""
    name, write, source = KINDS[request.param]
    return lambda rows, column="text": source(write(tmp_path / "set" / name, rows, column))


def read(source: object, **options: object) -> list:
    return list(documents(TextConfig(source=str(source), **options)))


def test_a_document_is_a_row_in_the_order_of_the_rows(written):
    source = written(ROWS)
    found = read(source)
    assert [document.text for document in found] == KEPT
    assert [document.name.rpartition(" ")[2] for document in found] == ["1", "2", "4", "7"]
    assert all("line" in document.name or "row" in document.name for document in found)
    assert found == read(source)


def test_a_row_is_identified_by_its_content_alone(written, tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "a.txt").write_text("ε ζ \u2028 \U0001f600<|x|>alpha beta")
    plain = read(tmp_path / "plain" / "a.txt", separator="<|x|>")
    found = {document.text: document.identity for document in read(written(ROWS))}
    assert {document.text: document.identity for document in plain}.items() <= found.items()


def test_rows_can_be_cut_at_separators(written):
    found = read(written(["one<|x|>two", "three", "two<|x|>"]), separator="<|x|>")
    assert sorted(document.text for document in found) == ["one", "three", "two"]
    assert {d.name.rpartition(", ")[2] for d in found} == {"part 1", "part 2"}


def test_a_wrong_column_lists_those_that_exist(written):
    source = written(["alpha", "beta"], "story")
    assert [document.text for document in read(source, column="story")] == ["alpha", "beta"]
    with pytest.raises(DataError, match=r"has no column 'storey' \(text\.column\), but story, number\."):
        read(source, column="storey")
    with pytest.raises(DataError, match=r"no column 'text'"):
        read(source)


def test_a_column_without_text_is_refused(written):
    source = written(["alpha", "beta"])
    with pytest.raises(DataError, match=r"line 1 has a int|row 1 has a int|'number' \(text\.column\) holds int64"):
        read(source, column="number")


def test_a_row_with_nothing_in_it_is_named(written):
    with pytest.raises(DataError, match=r"(line|row) 2 has nothing in its column 'text'\."):
        read(written(["alpha", None, "beta"]))


def test_empty_rows_are_no_text(written):
    with pytest.raises(DataError, match=r"holds no text"):
        read(written(["", " \n"]))


def test_progress_is_known_if_the_size_is(written):
    """Between start and end only monotony is required."""
    source = source_of(TextConfig(source=written([f"row {i}" for i in range(600)])))
    seen = [source.bytes_read for _ in source.documents()]
    assert seen == sorted(seen)
    if source.total_bytes is None:
        assert source.config.source.startswith("hf:")
    else:
        assert seen[0] <= source.bytes_read == source.total_bytes


def test_the_fingerprint_follows_the_files(written):
    def fingerprint() -> object:
        return source_of(TextConfig(source=source)).fingerprint()

    source = written(["alpha", "beta"])
    first = fingerprint()
    assert fingerprint() == first
    written(["alpha", "beta", "gamma"])
    assert fingerprint() != first


# ---------------------------------------------------------------------------------------------- kinds


def kind(source: object, **options: object) -> str:
    return type(source_of(TextConfig(source=str(source), **options))).__module__.rpartition(".")[2]


def test_every_file_is_a_kind_of_source():
    assert {"files", "hub", "jsonl", "parquet", "stdin", "stdlib"} <= set(SOURCES.names())
    for name in SOURCES.names():
        assert issubclass(__import__(f"jumpahead.text.sources.{name}", fromlist=["SOURCE"]).SOURCE, Source)


def test_a_source_is_of_one_kind(tmp_path):
    assert [kind(source) for source in ("stdlib", "-", "hf:owner/name", "hf:./x.parquet")] == [
        "stdlib",
        "stdin",
        *2 * ["hub"],
    ]
    for name, expected in [
        ("a.jsonl", "jsonl"),
        ("b.NDJSON.gz", "jsonl"),
        ("c.parquet", "parquet"),
        ("d.json", "files"),
    ]:
        (tmp_path / name).write_text("{}")
        assert kind(tmp_path / name) == expected
    assert kind(tmp_path / "nowhere.jsonl") == "files"


def test_a_folder_is_of_the_kind_of_all_its_files(tmp_path):
    jsonl(tmp_path / "a.jsonl", ["alpha"])
    jsonl(tmp_path / "sub" / "b.jsonl.gz", ["beta"])
    (tmp_path / "README.md").write_text("About these files.")
    (tmp_path / ".gitattributes").write_text("hidden")
    assert kind(tmp_path) == "jsonl"
    assert [d.name for d in read(tmp_path)] == ["a.jsonl, line 1", "sub/b.jsonl.gz, line 1"]
    (tmp_path / "c.txt").write_text("gamma")
    assert kind(tmp_path) == "files"  # a folder of several kinds is read as text files
    assert kind(tmp_path, pattern="*.jsonl*") == "jsonl"
    parquet(tmp_path / "d.parquet", ["delta"])
    with pytest.raises(DataError, match=r"d\.parquet is binary.*leave it out with text\.pattern"):
        read(tmp_path, pattern="*t")
    assert [d.text for d in read(tmp_path, pattern="*.parquet")] == ["delta"]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("./nowhere", "which does not exist"),
        ("nowhere.jsonl", "which does not exist"),
        ("hf:./nowhere", "which does not exist"),
        ("hf:", "which is not the name of a dataset: write hf:owner/name"),
        ("hf:a/b/c", "which is not the name of a dataset"),
        ("hf:owner/name:configuration", None),
        ("-", None),
        ("stdlib", None),
    ],
)
def test_problems_are_found_without_reading(source, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = source_of(TextConfig(source=source)).problem()
    assert found is None if says is None else says in str(found)


def test_a_missing_package_is_named_with_its_command(tmp_path, monkeypatch):
    path = parquet(tmp_path / "a.parquet", ["alpha"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for source, package in [(str(path), "pyarrow"), ("hf:owner/name", "datasets")]:
        found = source_of(TextConfig(source=source)).problem()
        assert found == f"which needs the package {package}: pip install 'jumpahead[data]'"
        with pytest.raises(Exception, match=r"pip install 'jumpahead\[data\]'"):
            read(source)


# ---------------------------------------------------------------------------------------------- kinds from outside


class Memory(Source):
    """A kind of source such as another package may define: `memory:TEXT`."""

    @classmethod
    def recognises(cls, source):
        return source.startswith("memory:")

    def documents(self):
        yield Document("memory", self.config.source.removeprefix("memory:"))


class Csv(Source):
    """A kind that is recognised by its files, and would claim an empty set of files too."""

    @classmethod
    def recognises_files(cls, files):
        return all(name.endswith(".csv") for name in files)

    def documents(self):
        yield from ()


@pytest.fixture
def registered(monkeypatch):
    """Return a function that registers kinds until the end of the test."""
    monkeypatch.setattr(SOURCES, "_registered", {})
    return SOURCES.register


def test_registered_kinds_are_recognised(registered, tmp_path):
    registered(Memory, "memory")
    registered(Csv, "csv")
    assert [document.text for document in read("memory:some text")] == ["some text"]
    (tmp_path / "a.csv").write_text("a,b")
    (tmp_path / "a.txt").write_text("a text")
    assert isinstance(source_of(TextConfig(source=str(tmp_path / "a.csv"))), Csv)
    for source, name in [("stdlib", "stdlib"), ("-", "stdin"), (tmp_path / "a.txt", "files"), ("./gone", "files")]:
        assert kind(source) == name


def test_a_source_that_several_kinds_recognise_is_refused(registered):
    registered(type("Other", (Memory,), {}), "other")
    registered(Memory, "memory")
    with pytest.raises(StudyError, match=r"'memory:x' is recognised by several .*, memory and other: uninstall"):
        source_of(TextConfig(source="memory:x"))


def test_a_kind_that_fails_is_named(registered):
    def fail(source):
        raise KeyError(source)

    registered(type("Broken", (Memory,), {"recognises": fail}), "broken")
    with pytest.raises(StudyError, match=r"kind of text source 'broken' failed on text\.source = 'stdlib' \(KeyError"):
        source_of(TextConfig(source="stdlib"))


def test_a_kind_that_cannot_be_loaded_matters_only_to_unknown_sources(registered, tmp_path, monkeypatch):
    class EntryPoint:
        name, value = "gone", "no_such_package:Source"

        def load(self):
            raise ImportError("No module named 'no_such_package'")

    monkeypatch.setattr(SOURCES, "_entry_points", {"gone": EntryPoint()})
    registered(int, "int")  # not a Source
    (tmp_path / "a.txt").write_text("a text")
    assert kind("stdlib") == "stdlib"
    assert kind(tmp_path / "a.txt") == "files"
    with pytest.raises(StudyError, match=r"'gone' is declared by no_such_package|'int' does not extend"):
        source_of(TextConfig(source="gone:x"))
