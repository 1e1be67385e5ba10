"""What is published of an SAE and of a run, and how it goes to the hub: a local server speaks its protocol."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from typer.testing import CliRunner

import jumpahead
from jumpahead import api
from jumpahead.cli import app
from jumpahead.errors import ArtefactError, StudyError
from jumpahead.metrics import METRICS
from jumpahead.progress import SilentProgress
from jumpahead.publishing.folder import public_name
from jumpahead.storage.tensors import read_tensors
from tests.publishing.hub_server import Hub, serve
from tests.texts import random_words

SITE = "layers.1.residual"


@pytest.fixture(scope="module")
def run(tmp_path_factory, lm_folder):
    folder = tmp_path_factory.mktemp("pushed")
    study = {
        "name": "small", "lm": {"model": str(lm_folder("neox")), "context": 32, "batch": 4},
        "text": {"source": str(random_words(folder / "my text", 30)), "held_out": 0.3},
        "activations": {"sites": [SITE], "block": 64, "scale_rows": 400}, "sae": {"width": [64, 96]},
        "train": {"tokens": 1_280, "batch": 128}, "evaluate": {"tokens": 600, "replicates": 40},
        "series": [{"architecture": "jumprelu", "l0": [3, 7]}, {"architecture": "topk", "k": [3]}],
    }  # fmt: skip
    return jumpahead.run(study, out=folder / "small", progress=SilentProgress())


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Return a hub on this machine; huggingface_hub reads and writes there and nowhere else."""
    from huggingface_hub import constants

    with serve(Hub()) as hub:
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # another server's protocol
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield hub


def test_a_run_is_pushed_and_read_back(run, hub):
    done = api.push(run, "someone/saes", private=True, endpoint=hub.url)
    assert done.url == f"{hub.url}/someone/saes"
    assert hub.is_private == {"someone/saes": True}
    stored = hub.files["someone/saes"]
    assert {file.path: file.bytes for file in done.files} == {name: len(content) for name, content in stored.items()}
    points = jumpahead.Frontier.load(run).points()
    assert len(points) == 6
    for point in points:
        name = point["path"].removeprefix("saes/")
        assert {f"{name}/cfg.json", f"{name}/sae_weights.safetensors"} <= stored.keys()
        again, sae = jumpahead.load(f"hf://someone/saes/{name}"), jumpahead.load(run / point["path"])
        x = torch.randn(50, 24, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(again(x), sae(x), rtol=1e-5, atol=1e-5)
        assert again.location.site == SITE
    assert stored["README.md"].decode() == done.card
    assert [path for _, path in hub.seen if path.endswith("/commit/main")] == ["/api/models/someone/saes/commit/main"]


def test_the_model_card_says_what_was_measured(run, tmp_path):
    done = api.push(run, "someone/saes", dry_run=True, licence="apache-2.0", out=tmp_path / "files")
    assert done.url is None
    head, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", done.card, re.S).groups()
    assert "license: apache-2.0\nlibrary_name: saelens\n" in head
    assert {"- saelens", "- jumprelu", "- topk"} <= set(head.split("\n"))
    frontier = jumpahead.Frontier.load(run)
    rows = [line.strip("| ").split(" | ") for line in body.split("\n") if line.startswith("| ")]
    assert len([row for row in rows if row[0] in ("JumpReLU", "TopK")]) == len(frontier.points())
    for point in frontier.points():
        (row,) = (row for row in rows if row[-1] == f"`{point['path'].removeprefix('saes/')}`")
        assert row[1] == point["label"]
        assert float(row[2]) == pytest.approx(point["metrics"]["l0"], rel=5e-3)
        assert float(row[3].split(" ± ")[0]) == pytest.approx(point["metrics"]["delta_lm_loss"], rel=5e-3)
        assert float(row[3].split(" ± ")[1]) == pytest.approx(point["standard_errors"]["delta_lm_loss"], rel=5e-3)
    assert 'SAE.from_pretrained("someone/saes", "' in body
    names = [METRICS[panel["fidelity"]].name for panel in frontier.data["panels"]]
    figures = zip(names, ["frontier.svg", "frontier-2.svg"], strict=True)
    assert re.findall(r"!\[.*\]\(.*\)", body) == [f"![{name} against L0]({file})" for name, file in figures]


def test_no_folder_of_this_machine_is_published(run, tmp_path):
    """The model and the text of this run are folders; their names are said, and not where they lie."""
    api.push(run, "someone/saes", dry_run=True, out=tmp_path / "files")
    for path in (tmp_path / "files").rglob("*"):
        if path.suffix in (".md", ".svg", ".json"):
            assert str(run.parent) not in path.read_text()
            assert "/tmp" not in path.read_text()
    assert "Trained on my text." in (tmp_path / "files" / "README.md").read_text()
    assert public_name("google/gemma-2-2b") == "google/gemma-2-2b"
    assert public_name("hf:owner/name:configuration") == "hf:owner/name:configuration"
    assert public_name("stdlib") == "stdlib"
    assert public_name("~/models/mine/") == "mine"
    assert public_name("/srv/x/mine") == "mine"
    assert public_name(None) is None


def test_the_figure_shows_every_sae(run, tmp_path):
    api.push(run, "someone/saes", dry_run=True, out=tmp_path / "files")
    tree = ElementTree.fromstring((tmp_path / "files" / "frontier.svg").read_text())
    space = {"svg": "http://www.w3.org/2000/svg"}
    words = [text.text for text in tree.findall(".//svg:text", space)]
    panel = jumpahead.Frontier.load(run).data["panels"][0]
    assert {"JumpReLU", "TopK"} <= set(words)
    assert any(str(word).startswith(METRICS[panel["fidelity"]].name) for word in words)
    marks = [path for path in tree.findall("svg:path", space) if path.get("transform")]
    assert len(marks) == 3 + 2  # SAEs of the first width, and the legend


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.02), ("float16", 0.003)])
def test_weights_of_half_the_size(run, tmp_path, dtype, tolerance):
    path = run / "saes" / SITE / "64" / "jumprelu" / "l0-7_seed-0"
    done = api.push(path, "someone/one", dtype=dtype, dry_run=True, out=tmp_path / "files")
    folder = tmp_path / "files" / SITE / "64" / "jumprelu"
    assert [file.path for file in done.files] == [
        "README.md", f"{SITE}/64/jumprelu/cfg.json", f"{SITE}/64/jumprelu/sae_weights.safetensors",
    ]  # fmt: skip
    tensors = read_tensors(folder / "sae_weights.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {f"torch.{dtype}"}
    assert json.loads((folder / "cfg.json").read_text())["dtype"] == dtype
    sae, x = jumpahead.load(path), torch.randn(200, 24, generator=torch.Generator().manual_seed(1))
    ours, theirs = sae.encode(x), jumpahead.load(folder).encode(x)
    same = (ours > 0) == (theirs > 0)
    assert same.double().mean() > 0.98
    assert ((ours - theirs) * same).abs().max() < tolerance * ours.max()


def test_what_cannot_be_pushed_is_a_sentence(run, hub, tmp_path):
    def refused(says, source=run, repo="someone/saes", error=StudyError, **options):
        with pytest.raises(error, match=says):
            api.push(source, repo, endpoint=hub.url, **options)

    refused("'saes' is no name of a repository: write user/repo", repo="saes")
    refused("'a/b/c' is no name", repo="a/b/c")
    refused("dtype is 'int8': give one of float32, bfloat16, float16", dtype="int8")
    refused("does not exist", source=tmp_path / "none", error=ArtefactError)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    refused("exists: name an empty or new folder", out=tmp_path / "full")
    api.compare([run], out=tmp_path / "comparison", progress=SilentProgress())
    refused("is a comparison: push the runs", source=tmp_path / "comparison", error=ArtefactError)
    assert hub.seen == []
    hub.fail = 403
    refused("someone/saes could not be written: .*`hf auth login` stores a token")


def test_push_on_the_command_line(run, hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    dry = CliRunner().invoke(app, ["push", str(run), "someone/saes", "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert f"{SITE}/64/topk/k-3_seed-0/cfg.json" in dry.stdout
    assert "# saes" in dry.stdout
    assert hub.seen == []
    done = CliRunner().invoke(app, ["push", str(run), "someone/saes", "--license", "mit", "--dtype", "bfloat16"])
    assert done.exit_code == 0, done.output
    assert f"pushed: {hub.url}/someone/saes" in done.stdout
    assert len(hub.files["someone/saes"]) == 3 + 2 * 6
