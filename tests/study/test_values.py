"""Values that cannot work are refused by key, before any work."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from jumpahead.errors import StudyError
from jumpahead.study.load import apply_override, load
from tests.study.test_load import SMALL, error, written

SERIES = "series.topk"
RECIPE = [
    ("lr", "nan", "must be a finite number, not NaN"),
    ("lr", "inf", "must be a finite number, not Infinity"),
    ("lr", "5.0", "must be at most 1, not 5.0"),
    ("lr_warmup_start", "-0.5", "must be at least 0, not -0.5"),
    ("lr_warmup_steps", "-5", "must be at least 0, not -5"),
    ("lr_decay_steps", "-5", "must be at least 0, not -5"),
    ("sparsity_warmup_steps", "0", "must be greater than 0, not 0"),
    ("beta1", "1.0", "must be less than 1, not 1.0"),
    ("beta2", "1.0", "must be less than 1, not 1.0"),
    ("beta2", "2.0", "must be less than 1, not 2.0"),
    ("beta2", "-1.0", "must be at least 0, not -1.0"),
    ("adam_epsilon", "0.0", "must be greater than 0, not 0.0"),
    ("adam_epsilon", "-1.0", "must be greater than 0, not -1.0"),
    ("initial_threshold", "inf", "must be a finite number, not Infinity"),
    ("initial_threshold", "-0.5", "must be greater than 0, not -0.5"),
    ("bandwidth", "0.0", "must be greater than 0, not 0.0"),
    ("bandwidth_share", "nan", "must be a finite number, not NaN"),
    ("bandwidth_share", "-1.0", "must be greater than 0, not -1.0"),
    ("threshold_lr_multiplier", "nan", "must be a finite number, not NaN"),
    ("dead_after_tokens", "0", "must be greater than 0, not 0"),
    ("dead_threshold_factor", "0.0", "must be greater than 0, not 0.0"),
    ("resample_every", "-2", "must be at least 0, not -2"),
    ("integral_gain", "-0.5", "must be at least 0, not -0.5"),
    ("norm_limit", "inf", "must be a finite number, not Infinity"),
]


@pytest.mark.parametrize(("name", "value", "message"), RECIPE)
def test_hyper_parameters_that_cannot_work(tmp_path: Path, name: str, value: str, message: str):
    said = error(tmp_path, SMALL.replace("k = [8, 16]", f"k = 8\nrecipe = {{ {name} = {value} }}"))
    assert said == f"small.toml: '{SERIES}.recipe.{name}' {message}."


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr=5.0", "'train.lr' must be at most 1, not 5.0."),
        ("train.checkpoint_minutes=inf", "'train.checkpoint_minutes' must be a finite number, not Infinity."),
        ("train.threads=1_000_000_000", "'train.threads' must be at most 4096, not 1000000000."),
        ("train.tokens=1_000_000_000_000_000_000", "'train.tokens' must be at most 10^15, not 1000000000000000000."),
        ("sae.seed=18446744073709551616", "'sae.seed' must be less than 2^63, not a number of 65 bits."),
        ("stream.seed=-1", "'stream.seed' must be at least 0, not -1."),
        ("sae.width=1_000_000_000_000", "'sae.width' must be at most 100,000,000, not 1000000000000."),
        (
            "evaluate.replicates=1_000_000_000_000",
            "'evaluate.replicates' must be at most 1,000,000, not 1000000000000.",
        ),
        ("activations.block=1180591620717411303424", "'activations.block' must be less than 2^63"),
        ("activations.block=4_000_000_000_000", "'activations.block' must be at most 10^9"),
        ("lm.device=meta", "'lm.device' must be auto, cpu, cuda, cuda:N or mps, not \"meta\"."),
        ("lm.device=cuda:x", "'lm.device' must be auto, cpu, cuda, cuda:N or mps, not \"cuda:x\"."),
        ('text.separator=""', "'text.separator' must not be empty."),
        ('text.source="a\\u0000b"', "'text.source' holds a NUL character"),
        ("text.source=~nosuchuser/text", "'text.source' names ~nosuchuser/text, and there is no such user"),
        ("lm.model=~nosuchuser", "'lm.model' names ~nosuchuser, and there is no such user"),
        ("series.topk.start_from=~nosuchuser/x", "'series.start_from' names ~nosuchuser/x, and there is no such user"),
        ("lm.quantization.since=2024-01-01", "'lm.quantization.since' must be a number, text or a table, not the date"),
        ("lm.quantization.at=07:32:00", "'lm.quantization.at' must be a number, text or a table, not the date or time"),
        (f"train.tokens={'9' * 400}", "'train.tokens' must be less than 2^63, not a number of 1329 bits."),
        (f"train.tokens={'9' * 5000}", "'train.tokens' must be a whole number"),
        (f"lm.quantization.x={'[' * 30}{']' * 30}", "'lm' holds tables or lists nested more than 16 deep."),
        (f"lm.quantization.x={'[' * 5000}{']' * 5000}", "--set: [[[[[[[[[[[[[[[[[[[[… is nested too deep."),
        ("series.topk.k=inf", "'series.topk.k' must be a whole number, not Infinity."),
        ("series.topk.l0=nan", "'series.topk.l0' must be a finite number, not NaN."),
        ("text.held_out=nan", "'text.held_out' must be a finite number, not NaN."),
    ],
)
def test_values_that_cannot_work(tmp_path: Path, override: str, message: str):
    assert message in error(tmp_path, SMALL, override)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = " + "[" * 5000 + "]" * 5000, "holds tables or lists nested too deep."),
        ("x" + ".y" * 3000 + " = 1", "nested"),
        ("[sae]\nwidth = " + "9" * 5000, "holds a number with thousands of digits."),
    ],
)
def test_study_files_that_cannot_be_read(tmp_path: Path, text: str, message: str):
    assert message in error(tmp_path, text)


def test_a_pipe_or_a_device_in_place_of_a_study(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(StudyError, match=r"pipe\.toml is a named pipe in the place of a file"):
        load(tmp_path / "pipe.toml")
    with pytest.raises(StudyError, match="/dev/zero is a device in the place of a file"):
        load("/dev/zero")


def test_twenty_thousand_settings_take_no_minute(tmp_path: Path):
    raw: dict = {"series": {}}
    apply_override(raw, "series.k=3")
    values = ", ".join(map(str, range(1, 20_001)))
    path = written(tmp_path, SMALL.replace("width = 512", "width = 32768").replace("[8, 16]", f"[{values}]"))
    begun = time.perf_counter()
    study = load(path)
    assert len(study.series[0].k) == 20_000
    assert time.perf_counter() - begun < 10
