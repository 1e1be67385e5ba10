"""A study that is wrong is rejected with one sentence that names the key, the limit or the nearest name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jumpahead.errors import SiteError, StudyError
from jumpahead.study.load import load, parse
from jumpahead.study.schema import Study, sae_specs
from jumpahead.study.tables import model_of
from tests.study.test_load import SMALL, error, written


def test_a_missing_or_foreign_file(tmp_path: Path):
    with pytest.raises(StudyError, match=r"none\.toml does not exist: `jumpahead init MODEL"):
        load(tmp_path / "none.toml")
    with pytest.raises(StudyError, match="is a folder, not a study"):
        load(tmp_path)
    (tmp_path / "study.toml").write_text(SMALL)
    with pytest.raises(StudyError, match=r"is a folder: name .*study\.toml"):
        load(tmp_path)
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StudyError, match=r"x\.toml is not UTF-8 text"):
        load(tmp_path / "x.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[sae]\nwidth = [4096\n\n[train]\n", "small.toml, line 4: "),
        ("[sae]\nwidth 512\n", "small.toml, line 2: expected '=' after a key"),
        ("[sae]\nwidth = 1\nwidth = 2\n", "small.toml, line 3: cannot overwrite a value"),
        ("[sae]\nwidth = ", "small.toml, end of document: "),
    ],
)
def test_toml_errors_name_the_line(tmp_path: Path, text: str, message: str):
    assert error(tmp_path, text).startswith(message)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("width = 512", "widht = 512", "there is no key 'sae.widht'. Did you mean 'width'?"),
        ("[train]", "[[train]]", '\'train\' must be a table, not [{"tokens": 9000, "batch": 300}].'),
        ("[sae]\nwidth = 512", "", "'sae' is missing."),
        ("width = 512", "", "'sae.width' is missing (Number of features per SAE. Each width is a panel of its own)."),
        ("width = 512", "width = []", "'sae.width' must not be empty."),
        ("width = 512", "width = [512, 512]", "'sae.width' names 512 twice."),
        ("width = 512", "width = -512", "'sae.width' must be at least 2, not -512."),
        ("width = 512", "width = '512'", "'sae.width' must be a whole number, not \"512\"."),
        ("width = 512", "width = 512\nseed = [1, 1]", "'sae.seed' names 1 twice."),
        ("width = 512", "width = 512\nseed = -1", "'sae.seed' must be at least 0, not -1."),
        ("tokens = 9_000", "tokens = 0", "'train.tokens' must be greater than 0, not 0."),
        ("tokens = 9_000", "tokens = 299", "'train.tokens' is 299 and must be at least one batch, 300 (train.batch)."),
        ("tokens = 9_000", "recipe = 'shrt'", "'train.recipe' must be 'short' or 'paper', not \"shrt\"."),
        ("tokens = 9_000", "lr = nan", "'train.lr' must be a finite number, not NaN."),
        ("[sae]", "[lm]\ncontext = 1\n[sae]", "'lm.context' must be at least 4, not 1."),
        ("[sae]", "[lm]\nmodel = 3\n[sae]", "'lm.model' must be text in quotes, not 3."),
        (
            "[sae]",
            "[lm]\ntrust_remote_code = 'yes'\n[sae]",
            "'lm.trust_remote_code' must be true or false, not \"yes\".",
        ),
        (
            "[sae]",
            "name = '../x'\n[sae]",
            "'name': '../x' cannot be a folder's name: use letters, digits, '.', '_' and '-'.",
        ),
        (
            "[sae]",
            "[activations]\nsites = ['layers.1.residue']\n[sae]",
            "'activations.sites': there is no site 'layers.1.residue'. Did you mean 'layers.1.residual'?",
        ),
        (
            "[sae]",
            "[activations]\nsites = ['layers.1.residual', 'blocks.1.hook_resid_post']\n[sae]",
            "'activations.sites' names \"layers.1.residual\" twice.",
        ),
        (
            "[sae]",
            "[activations]\norigin = 'lives'\n[sae]",
            "'activations.origin' is 'lives', and there is no such origin. Did you mean 'live'?",
        ),
        # series
        (
            '[[series]]\narchitecture = "topk"\nk = [8, 16]\n',
            "series = []\n",
            "there is no key 'train.series'. Did you mean 'series'?",
        ),
        (
            '"topk"',
            '"topq"',
            "series 'topq' asks for the architecture 'topq', which does not exist. Did you mean 'topk'?",
        ),
        (
            'architecture = "topk"',
            "name = 'x'",
            "'series.x.architecture' is missing (The SAE architecture, such as `jumprelu`, `gated` or `topk`).",
        ),
        ("k = [8, 16]", "", "series 'topk' has no sparsity setting: give it l0 = […] or k = […]."),
        ("k = [8, 16]", "k = []", "series 'topk' has no sparsity setting: give it l0 = […] or k = […]."),
        ("k = [8, 16]", "lambda = 3e-4", "series 'topk' has no setting 'lambda': topk takes l0 or k."),
        ("k = [8, 16]", "k = 8\nl0 = 8", "series 'topk' has l0 and k: give it exactly one of them."),
        ("k = [8, 16]", "k = [8, 8]", "'series.topk.k' names 8 twice."),
        ("k = [8, 16]", "k = [8, 0]", "'series.topk.k' must be positive, not 0."),
        ("k = [8, 16]", "k = [8, 2.5]", "'series.topk.k' must be a whole number, not 2.5."),
        ("k = [8, 16]", "l0 = [2.5]", "'series.topk.l0' must be whole numbers, not 2.5: topk keeps whole features."),
        ("k = [8, 16]", "l0 = [-3]", "'series.topk.l0' must be positive, not -3.0."),
        ("k = [8, 16]", "k = [8, 513]", "'series.topk.k' is 513 and cannot exceed the width, 512 (sae.width)."),
        (
            "k = [8, 16]",
            "k = 8\nsparsity = 3",
            "there is no key 'series.topk.sparsity'. Valid names: architecture, delta_loss, k, l0, lambda, name, "
            "options, recipe, start_from.",
        ),
        (
            "k = [8, 16]",
            "k = 8\noptions = { axu = 3 }",
            "there is no key 'series.topk.options.axu'. Did you mean 'aux'?",
        ),
        ("k = [8, 16]", "k = 8\noptions = { aux = -3 }", "'series.topk.options.aux' must be at least 0, not -3."),
        (
            "k = [8, 16]",
            "k = 8\nrecipe = { lrr = 0.1 }",
            "there is no key 'series.topk.recipe.lrr'. Did you mean 'lr'?",
        ),
        (
            "k = [8, 16]",
            "k = 8\nrecipe = { dead_after_tokens = 'late' }",
            "'series.topk.recipe.dead_after_tokens' must be a whole number, not \"late\".",
        ),
        ("k = [8, 16]", "k = 8\noptions = 3", "'series.topk.options' must be a table, not 3."),
        (
            "k = [8, 16]",
            'k = 8\n[[series]]\narchitecture = "topk"\nk = 16',
            "two series are called 'topk': give each a name = \"…\" of its own.",
        ),
        # files
        (
            "[sae]",
            "[text]\nsource = './no.txt'\n[sae]",
            "'text.source' names ./no.txt, which does not exist (seen from the current folder).",
        ),
        (
            "[sae]",
            "[text]\nsource = 'hf:./no'\n[sae]",
            "'text.source' names hf:./no, which does not exist (seen from the current folder).",
        ),
        ("[sae]", "[text]\ncolum = 'x'\n[sae]", "there is no key 'text.colum'. Did you mean 'column'?"),
        (
            "[sae]",
            "[lm]\npacking = 'all'\n[sae]",
            "'lm.packing' must be 'none', 'isolated' or 'plain', not \"all\".",
        ),
        (
            "[sae]",
            "[lm]\nmodel = './no'\n[sae]",
            "'lm.model' names ./no, which does not exist (seen from the current folder).",
        ),
    ],
)
def test_one_sentence_names_the_key_and_the_limit(tmp_path: Path, before: str, after: str, message: str):
    assert before in SMALL
    found = error(tmp_path, SMALL.replace(before, after))
    assert found == f"small.toml: {message}"


@pytest.mark.parametrize(
    ("setting", "options", "message"),
    [
        (
            "lambda = 0.01",
            "target = 'batch'",
            "series 'j': target = \"batch\" is a loss of a requested L0: give it l0 = […] instead of lambda.",
        ),
        (
            "l0 = 8",
            "target = 'token', frequency_scale = 0.1",
            "series 'j': frequency_scale and target = \"token\" do not go together: leave one of them out.",
        ),
        ("l0 = 8", "target_weight = 0.5", 'series \'j\': target_weight goes with target = "batch" or "token".'),
        (
            "l0 = 8",
            "target = 'mean'",
            "'series.j.options.target' must be 'controller', 'batch' or 'token', not \"mean\".",
        ),
        ("l0 = 8", "frequency_scale = 0", "'series.j.options.frequency_scale' must be greater than 0, not 0."),
        (
            "l0 = 8",
            "frequency_scale = inf",
            "'series.j.options.frequency_scale' must be a finite number, not Infinity.",
        ),
        (
            "l0 = 8",
            "target = 'batch', target_weight = -2",
            "'series.j.options.target_weight' must be greater than 0, not -2.",
        ),
    ],
)
def test_options_that_do_not_go_together_are_named(tmp_path: Path, setting: str, options: str, message: str):
    series = f"name = 'j'\narchitecture = 'jumprelu'\n{setting}\noptions = {{ {options} }}\n"
    text = SMALL.replace('architecture = "topk"\nk = [8, 16]\n', series)
    assert error(tmp_path, text) == f"small.toml: {message}"


def test_a_folder_that_is_no_model_is_named(tmp_path: Path):
    (tmp_path / "letters").mkdir()
    assert "a folder without a config.json: not a model" in error(tmp_path, SMALL, f"lm.model='{tmp_path / 'letters'}'")


def test_a_block_that_the_model_lacks_is_named_before_any_work(tmp_path: Path):
    path = written(tmp_path, SMALL)
    with pytest.raises(
        SiteError, match=r"'activations\.sites': the model has 4 blocks, so layers\.4\.mlp does not exist"
    ):
        load(path, ["activations.sites=layers.4.mlp"])
    load(path, ["activations.sites=layers.4.mlp", "activations.origin=synthetic"])


def test_a_study_made_in_python_is_checked_too():
    table = {"name": "x", "sae": {"width": 64}, "series": {"architecture": "jumprelu", "l0": 3}}
    study = parse(table)
    assert isinstance(study, Study)
    assert [unit.key for unit in sae_specs(study)] == ["saes/layers.1.residual/64/jumprelu/l0-3_seed-0"]
    with pytest.raises(StudyError, match=r"^the study: 'series\.jumprelu\.l0' is 65 and cannot exceed the width, 64"):
        parse({**table, "series": {"architecture": "jumprelu", "l0": 65}})


def test_every_key_has_a_description():
    """`'sae.width' is missing (Number of features per SAE …)` needs them, and so does a reader of the schema."""
    pending: list[Any] = [Study]
    while pending:
        model = pending.pop()
        for name, field in model.model_fields.items():
            if table := model_of(field.annotation):
                pending.append(table)
            else:
                assert field.description, f"{model.__name__}.{name}"


@pytest.mark.parametrize(
    ("origin", "options", "message"),
    [
        ("shards", "shard_mb = 3", "there is no key 'activations.options.shard_mb'. Did you mean 'shard_mib'?"),
        ("live", "x = 3", "there is no key 'activations.options.x'. There are no options."),
        ("synthetic", "l0 = -2", "'activations.options.l0' must be greater than 0, not -2."),
        (
            "synthetic",
            "features = 10, child_probability = [0.1, 0.4]",
            "'activations.options.child_probability': features must be a multiple of 3, a parent and its children.",
        ),
    ],
)
def test_wrong_options_of_an_origin_are_named(tmp_path: Path, origin: str, options: str, message: str):
    text = f"{SMALL}\n[activations]\norigin = '{origin}'\noptions = {{ {options} }}\n"
    assert error(tmp_path, text) == f"small.toml: {message}"
