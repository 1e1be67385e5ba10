"""Stages: their order, and that asking for inputs or whether one is done writes nothing."""

from __future__ import annotations

import shutil

import pytest

from jumpahead.pipeline import STAGES
from jumpahead.pipeline.provenance import Provenance
from jumpahead.pipeline.resources import Resources
from jumpahead.pipeline.run import STAGE_CLASSES
from jumpahead.progress import SilentProgress
from jumpahead.storage.run_folder import Run
from jumpahead.study.load import load
from tests.pipeline.test_run import finished, run, stamps, study_file  # noqa: F401 - fixtures


def test_the_stages_of_the_package_are_those_that_run():
    assert tuple(stage.name for stage in STAGE_CLASSES) == STAGES


PAGES = "features.saes=middle"


@pytest.fixture(scope="module")
def with_pages(study_file, finished, tmp_path_factory):  # noqa: F811
    """A finished run with feature pages, so that every stage has a result."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    shutil.copytree(finished, folder)
    run(study_file, folder, PAGES)
    return folder


@pytest.mark.parametrize("kind", STAGE_CLASSES, ids=lambda kind: kind.name)
def test_inputs_and_is_done_write_nothing_and_do_not_change(kind, study_file, with_pages):  # noqa: F811
    before = stamps(with_pages)
    first, second = (kind(Resources(load(study_file, [PAGES]), Run(with_pages), SilentProgress())) for _ in range(2))
    assert first.inputs() == second.inputs()
    assert len(first.inputs()) == 64
    assert first.is_done()
    assert stamps(with_pages) == before


@pytest.mark.parametrize("kind", STAGE_CLASSES[1:], ids=lambda kind: kind.name)
def test_another_text_makes_every_later_stage_stale(kind, study_file, with_pages):  # noqa: F811
    """But for the precision, which is given; activations are live."""
    other = kind(Resources(load(study_file, [PAGES, "text.max_tokens=5_000"]), Run(with_pages), SilentProgress()))
    plain = kind(Resources(load(study_file, [PAGES]), Run(with_pages), SilentProgress()))
    if kind.name == "report":  # the evaluations on disk are those of the other study until they are made again
        assert other.inputs() != plain.inputs()
        return
    assert other.inputs() != plain.inputs()
    assert other.is_done() == (kind.name in ("activations", "targets"))  # no loss is requested


def test_no_property_of_a_stage_or_of_what_stages_share_loads_or_writes():
    """Files are written and models loaded by methods whose names say so."""
    import ast
    import inspect
    import textwrap

    for owner in (Provenance, Resources, *STAGE_CLASSES):
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(owner)))):
            if not isinstance(node, ast.FunctionDef):
                continue
            if not any("property" in ast.unparse(decorator) for decorator in node.decorator_list):
                continue
            called = {ast.unparse(call.func).split(".")[-1] for call in ast.walk(node) if isinstance(call, ast.Call)}
            wrong = {name for name in called if name.startswith(("write", "load", "train", "evaluate", "decide"))}
            assert not wrong, f"{owner.__name__}.{node.name} calls {wrong}"
