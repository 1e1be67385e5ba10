"""Addresses on the hub, and what is downloaded; the hub itself is replaced by a folder."""

from __future__ import annotations

import fnmatch
import shutil

import huggingface_hub
import pytest

import jumpahead
from jumpahead.errors import ArtefactError, StudyError
from jumpahead.interchange.fetch import HubAddress
from tests.formats.layouts import LAYOUTS


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Return a folder of repositories; downloads copy what the patterns allow, and are recorded."""
    calls = []

    def snapshot_download(repo, *, revision, allow_patterns):
        if not (tmp_path / "hub" / repo).is_dir():
            raise OSError(f"404 Client Error.\nRepository {repo} not found.")
        target = tmp_path / "cache" / repo.replace("/", "--")
        files = [path for path in (tmp_path / "hub" / repo).rglob("*") if path.is_file()]
        names = {path.relative_to(tmp_path / "hub" / repo).as_posix() for path in files}
        wanted = {name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns)}
        for name in wanted:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tmp_path / "hub" / repo / name, target / name)
        target.mkdir(parents=True, exist_ok=True)
        calls.append((repo, revision, sorted(wanted)))
        return str(target)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    (tmp_path / "hub").mkdir()
    return tmp_path / "hub", calls


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("hf://user/repo", ("user/repo", "", None)),
        ("hf://user/repo/", ("user/repo", "", None)),
        (
            "hf://google/gemma-scope-2b-pt-res/layer_3/width_16k",
            ("google/gemma-scope-2b-pt-res", "layer_3/width_16k", None),
        ),
        ("hf://user/repo/a/b@v1.2", ("user/repo", "a/b", "v1.2")),
        ("hf://user/repo@refs/pr/3", ("user/repo", "", "refs/pr/3")),
    ],
)
def test_addresses(address, parts):
    assert HubAddress.parse(address) == parts


@pytest.mark.parametrize(
    "address",
    ["hf://", "hf://user", "hf:///repo", "hf://user/..", "hf://../repo/x", "hf://user/repo/../x", "hf://user/repo//x",
     "hf://user/repo/a\\..\\b", "hf://-user/repo", "hf://user/repo/./x"],
)  # fmt: skip
def test_addresses_that_are_refused(address):
    with pytest.raises(StudyError, match="is no SAE on the hub: write hf://user/repo/path"):
        jumpahead.load(address)


@pytest.mark.parametrize("label", ["saelens-standard", "gemma-scope", "gemma-scope-2", "sparsify", "AutoEncoderTopK"])
def test_only_the_files_of_one_sae_are_downloaded(label, hub, tmp_path):
    layout = next(layout for layout in LAYOUTS if layout.label == label)
    root, calls = hub
    layout.write(root / "user" / "repo")
    layout._replace(folder="other").write(root / "user" / "repo")
    (root / "user" / "repo" / layout.folder / "optimizer.pt").write_bytes(b"x")
    (root / "user" / "repo" / "README.md").write_text("x")
    sae = jumpahead.load(f"hf://user/repo/{layout.folder}@v2")
    ((repo, revision, names),) = calls
    assert (repo, revision) == ("user/repo", "v2")
    assert all(name.startswith(f"{layout.folder}/") and "optimizer" not in name for name in names)
    assert sae.about["source"] == {"format": layout.format, "address": f"hf://user/repo/{layout.folder}@v2"}
    assert sae.location.site == layout.site


def test_a_checkpoint_is_downloaded_with_the_configuration_above_it(hub):
    layout = next(layout for layout in LAYOUTS if layout.label == "BatchTopKSAE")
    root, calls = hub
    folder = layout.write(root / "user" / "repo")
    (folder / "checkpoints").mkdir()
    shutil.move(folder / "ae.pt", folder / "checkpoints" / "ae_200.pt")
    assert jumpahead.load(f"hf://user/repo/{layout.folder}/checkpoints/ae_200.pt").architecture == "batchtopk"
    assert calls[0][2] == [f"{layout.folder}/checkpoints/ae_200.pt", f"{layout.folder}/config.json"]


def test_what_the_hub_does_not_have(hub):
    root, _ = hub
    with pytest.raises(ArtefactError, match=r"hf://user/none/x cannot be downloaded: 404 Client Error\.$"):
        jumpahead.load("hf://user/none/x")
    (root / "user" / "repo").mkdir(parents=True)
    with pytest.raises(ArtefactError, match="hf://user/repo/x holds no SAE in a known format"):
        jumpahead.load("hf://user/repo/x")
    with pytest.raises(ArtefactError, match="holds no SAE in a known format"):
        jumpahead.load("hf://user/repo")
