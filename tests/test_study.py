"""The study file: what it says comes back, and what it says wrongly is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jumpahead.errors import SiteError, StudyError
from jumpahead.study import schema as studies
from jumpahead.study.schema import Study, load, parse, to_toml, units

ROOT = Path(__file__).resolve().parents[1]
SMALL = """
[sae]
width = 512

[train]
tokens = 9_000
batch = 300

[[series]]
architecture = "topk"
k = [8, 16]
"""


def written(folder: Path, text: str, name: str = "small.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def error(folder: Path, text: str, *overrides: str) -> str:
    """The sentence, without the folder, of loading `text`."""
    with pytest.raises(StudyError) as caught:
        load(written(folder, text), overrides)
    return str(caught.value).replace(f"{folder}/", "")


# ---------------------------------------------------------------------------------------------- reading and writing


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.toml")), ids=lambda path: path.name)
def test_the_studies_of_this_repository_load_and_round_trip(path: Path, tmp_path: Path):
    study = load(path)
    assert load(written(tmp_path, to_toml(study))) == study


def test_the_demo_is_three_series_at_six_settings():
    found = units(load(ROOT / "studies" / "demo.toml"))
    assert len(found) == 18
    assert {(unit.site, unit.width) for unit in found} == {("layers.1.residual", 8192)}
    assert [unit.key for unit in found[4:7]] == [
        "saes/layers.1.residual/8192/jumprelu/l0-32_seed-0",
        "saes/layers.1.residual/8192/jumprelu/l0-64_seed-0",
        "saes/layers.1.residual/8192/gated/l0-4_seed-0",
    ]


def test_defaults_scalars_and_names(tmp_path: Path):
    study = load(written(tmp_path, SMALL))
    assert study.name == "small"  # the file's
    assert study.sae.width == (512,)
    assert study.sae.seed == study.stream.seed == (0,)
    assert study.lm.model == "tiny"
    assert study.series[0].name == "topk"
    assert study.series[0].settings == [("k", 8), ("k", 16)]
    assert study.evaluate.tokens == 100_000


def test_a_series_recipe_is_kept_as_it_was_given(tmp_path: Path):
    study = load(written(tmp_path, SMALL + "recipe = { lr = 2e-3, resample_every = 50, threshold_form = 'raw' }\n"))
    assert study.series[0].recipe == {"lr": 0.002, "resample_every": 50, "threshold_form": "raw"}
    assert load(written(tmp_path, to_toml(study))) == study


def test_resolving_fills_in_options_and_canonical_sites(tmp_path: Path):
    text = SMALL + "options = { aux = 0.0625 }\n[activations]\nsites = 'blocks.2.hook_resid_post'\n"
    study = load(written(tmp_path, text))
    assert study.series[0].options == {"aux": 0.0625, "k_aux": None}
    assert list(study.activations.sites) == ["layers.2.residual"]
    assert load(written(tmp_path, to_toml(study))) == study


def test_options_that_are_none_round_trip(tmp_path: Path):
    text = SMALL.replace('"topk"\nk', '"jumprelu"\nl0') + "options = { target = 'batch', target_weight = 0.5 }\n"
    study = load(written(tmp_path, text))
    assert study.series[0].options == {"frequency_scale": None, "target": "batch", "target_weight": 0.5}
    assert load(written(tmp_path, to_toml(study))) == study


def test_awkward_text_round_trips(tmp_path: Path):
    study = load(written(tmp_path, SMALL), ["text.separator='<|endoftext|>\\n\"é\"'", "train.lr=1e-7"])
    assert study.text.separator == '<|endoftext|>\\n"é"'
    odd = study.model_copy(update={"text": study.text.model_copy(update={"separator": "\t\x7f\u2028\\ 'x'\n"})})
    again = load(written(tmp_path, to_toml(odd)))
    assert again == odd
    assert again.train.lr == 1e-7


def test_units_are_the_product_and_their_keys_differ(tmp_path: Path):
    overrides = [
        "sae.width=[512,1024]",
        "sae.seed=[0,3]",
        "stream.seed=[0,2]",
        "activations.sites=['layers.0.mlp','layers.1.mlp']",
    ]
    found = units(load(written(tmp_path, SMALL), overrides))
    assert len(found) == 2 * 2 * 2 * 2 * 2  # sites, widths, settings, seeds, streams
    assert len({unit.key for unit in found}) == 32
    assert found[3].key == "saes/layers.0.mlp/512/topk/k-8_seed-3_stream-2"
    assert found[0].label == "topk k = 8"
    assert found[3].label == "topk k = 8, seed 3, stream 2"


# ---------------------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("train.lr=3e-4", lambda s: s.train.lr, 3e-4),
        ("train.tokens=1e6", lambda s: s.train.tokens, 1_000_000),
        ("train.tokens = 2_000_000", lambda s: s.train.tokens, 2_000_000),
        ("lm.bos=none", lambda s: s.lm.bos, "none"),
        ("name=other", lambda s: s.name, "other"),
        ("sae.width=[64,128]", lambda s: s.sae.width, (64, 128)),
        ("series.topk.k=32", lambda s: s.series[0].k, (32,)),
        ("series.0.k=[32]", lambda s: s.series[0].k, (32,)),
        ("series.topk.options.aux=0.5", lambda s: s.series[0].options["aux"], 0.5),
        ("train.batch=", lambda s: s.train.batch, 2048),
    ],
)
def test_overrides(tmp_path: Path, override: str, read: Any, value: Any):
    found = read(load(written(tmp_path, SMALL), [override]))
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr", "--set train.lr: write it as KEY=VALUE, for instance --set train.tokens=2_000_000."),
        ("=3", "--set =3: write it as KEY=VALUE, for instance --set train.tokens=2_000_000."),
        ("train.tokns=9", "small.toml: there is no key 'train.tokns'. Did you mean 'tokens'?"),
        ("tokens=9", "small.toml: there is no key 'tokens'. Did you mean 'train.tokens'?"),
        ("trian.tokens=9", "small.toml: there is no key 'trian'. Did you mean 'train'?"),
        ("train.batch.x=9", "--set train.batch.x=9: train.batch is a value, not a table."),
        ("series.topq.k=9", "--set series.topq.k=9: there is no series 'topq'. Did you mean 'topk'?"),
        ("series.topk=9", "--set series.topk=9: say which key of the series, for instance --set series.topk.l0=16."),
        ("train.batch=abc", "small.toml: 'train.batch' must be a whole number, not \"abc\"."),
        ("train.batch=2.5", "small.toml: 'train.batch' must be a whole number, not 2.5."),
        ("train.batch=true", "small.toml: 'train.batch' must be a whole number, not true."),
    ],
)
def test_wrong_overrides(tmp_path: Path, override: str, message: str):
    assert error(tmp_path, SMALL, override) == message


# ---------------------------------------------------------------------------------------------- errors


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
        ("width = 512", "", "'sae.width' is missing (Features of an SAE; each width is a panel of its own)."),
        ("width = 512", "width = []", "'sae.width' must not be empty."),
        ("width = 512", "width = [512, 512]", "'sae.width' names 512 twice."),
        ("width = 512", "width = -512", "'sae.width' must be at least 2, not -512."),
        ("width = 512", "width = '512'", "'sae.width' must be a whole number, not \"512\"."),
        ("width = 512", "width = 512\nseed = [1, 1]", "'sae.seed' names 1 twice."),
        ("width = 512", "width = 512\nseed = -1", "'sae.seed' must be at least 0, not -1."),
        ("tokens = 9_000", "tokens = 0", "'train.tokens' must be greater than 0, not 0."),
        ("tokens = 9_000", "tokens = 299", "'train.tokens' is 299 and must be at least one batch, 300 (train.batch)."),
        ("tokens = 9_000", "recipe = 'shrt'", "'train.recipe' must be 'short' or 'paper', not \"shrt\"."),
        ("tokens = 9_000", "lr = nan", "'train.lr' must be greater than 0, not NaN."),
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
            "'series.x.architecture' is missing (A file of jumpahead/sae/: jumprelu, gated, topk, batchtopk, relu, …).",
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
            "there is no key 'series.topk.sparsity'. Valid names: architecture, k, l0, lambda, name, options, recipe, "
            "start_from.",
        ),
        ("k = [8, 16]", "k = 8\noptions = { axu = 3 }", "series 'topk' has no option 'axu'. Did you mean 'aux'?"),
        ("k = [8, 16]", "k = 8\noptions = { aux = -3 }", "'series.topk.options.aux' must be at least 0, not -3."),
        (
            "k = [8, 16]",
            "k = 8\nrecipe = { lrr = 0.1 }",
            "series 'topk', recipe: there is no hyper-parameter 'lrr'. Did you mean 'lr'?",
        ),
        (
            "k = [8, 16]",
            "k = 8\nrecipe = { dead_after = 'late' }",
            "series 'topk', recipe: 'dead_after' must be a whole number, not \"late\".",
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
    assert [unit.key for unit in units(study)] == ["saes/layers.1.residual/64/jumprelu/l0-3_seed-0"]
    with pytest.raises(StudyError, match=r"^the study: 'series\.jumprelu\.l0' is 65 and cannot exceed the width, 64"):
        parse({**table, "series": {"architecture": "jumprelu", "l0": 65}})


def test_every_key_has_a_sentence_about_itself():
    """`'sae.width' is missing (Features of an SAE …)` needs them, and so does a reader of the schema."""
    pending: list[Any] = [Study]
    while pending:
        model = pending.pop()
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, studies.BaseModel):
                pending.append(field.annotation)
            else:
                assert field.description, f"{model.__name__}.{name}"
