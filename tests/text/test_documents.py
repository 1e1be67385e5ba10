"""Documents: their parts, order and duplicates, and texts that are refused."""

import pytest

from jumpahead.errors import DataError
from jumpahead.text.config import TextConfig
from jumpahead.text.documents import documents, is_held_out
from jumpahead.text.sources.stdlib import stdlib_documents


def write(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def read(source, **options):
    return list(documents(TextConfig(source=str(source), **options)))


def test_stdlib_is_read_without_duplicates():
    found = read("stdlib")
    assert len(found) > 400
    assert len({document.text for document in found}) == len(found)
    assert {document.text for document in found} == {document.text for document in stdlib_documents()}
    assert all(document.name == document.identity and document.identity.endswith(".py") for document in found)


def test_the_order_is_fixed_and_not_alphabetical(tmp_path):
    files = {f"{name}_txt": f"text of {name}" for name in "abcdefghij"}
    first = read(write(tmp_path / "one", **files))
    again = read(write(tmp_path / "two", **dict(reversed(files.items()))))
    assert first == again
    assert [d.identity for d in first] != sorted(d.identity for d in first)
    more = read(write(tmp_path / "two", z_txt="one more"))
    assert [d for d in more if d.identity != "z.txt"] == first


def test_folders_are_walked_and_hidden_files_left_out(tmp_path):
    write(tmp_path, a_txt="alpha", sub__b_txt="beta", _git__c_txt="hidden", _d="hidden", e_md="other", f_txt=" \n ")
    assert {d.identity: d.text for d in read(tmp_path, pattern="*.txt")} == {"a.txt": "alpha", "sub/b.txt": "beta"}
    assert {d.identity for d in read(tmp_path)} == {"a.txt", "sub/b.txt", "e.md"}


def test_parts_are_known_by_their_content(tmp_path):
    write(tmp_path, a_txt="first\n<|x|>\n  second\n<|x|>\n\n<|x|>\nfirst\n<|x|>\nthird")
    found = read(tmp_path / "a.txt", separator="<|x|>")
    assert sorted(d.text for d in found) == ["  second", "first", "third"]
    assert {d.name for d in found} == {"a.txt, part 1", "a.txt, part 2", "a.txt, part 5"}
    moved = read(write(tmp_path / "moved", b_txt="third<|x|>  second<|x|>first"), separator="<|x|>")
    assert {d.identity for d in moved} == {d.identity for d in found}  # so they stay in their split


def test_exact_duplicates_are_dropped_across_files(tmp_path):
    assert len(read(write(tmp_path, a_txt="same", b_txt="same", c_txt="same\n"))) == 2


def test_byte_order_mark_and_line_ends_are_normalised(tmp_path):
    write(tmp_path, a_txt=b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert [d.text for d in read(tmp_path)] == ["one\ntwo\nthree\n"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"caf\xe9 au lait", r"b\.txt is not UTF-8 \(byte 0xe9 at 3\): convert"),
        (b"\x89PNG\0\0\xff\xfe", r"b\.txt is binary: "),
        (b"abc\0def", r"b\.txt is binary \(it holds a zero byte\)"),
        ("text".encode("utf-16"), r"b\.txt is UTF-16"),
    ],
)
def test_files_that_are_not_text_are_named(tmp_path, content, says):
    write(tmp_path, a_txt="fine", b_txt=content)
    with pytest.raises(DataError, match=says):
        read(tmp_path)


def test_a_folder_without_text_or_files_is_named(tmp_path):
    with pytest.raises(DataError, match=r"holds no text"):
        read(write(tmp_path, a_txt="", b_txt="\n\n"))
    with pytest.raises(DataError, match=r"folder without files named \*\.md"):
        read(tmp_path, pattern="*.md")
    with pytest.raises(DataError, match=r"nowhere.* does not exist"):
        read(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"a\.txt.* holds no text"):
        read(tmp_path / "a.txt")


def test_the_held_out_share_is_near_the_requested_one():
    names = [f"document {i}" for i in range(4000)]
    held_out = [name for name in names if is_held_out(name, 0.25)]
    assert 0.22 < len(held_out) / len(names) < 0.28
    assert set(held_out) < {name for name in names if is_held_out(name, 0.4)}  # a larger share only adds
