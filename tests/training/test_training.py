"""Training: it works, it repeats, it stops anywhere and goes on as if it had not."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import signal
import threading
from dataclasses import replace

import pytest
import torch

from jumpahead.activations.config import ActivationsConfig
from jumpahead.activations.moments import measure_moments
from jumpahead.activations.origins import ORIGINS
from jumpahead.activations.stream import Stream
from jumpahead.diagnostics import training_warnings
from jumpahead.engine import initial_state, kernel_layer
from jumpahead.errors import ArtefactError, DamagedError, DivergedError
from jumpahead.sae.architectures import ARCHITECTURES
from jumpahead.sae.recipe import Setting, TrainConfig, base_recipe
from jumpahead.sae.saved import SAE
from jumpahead.sae.unit import Unit
from jumpahead.storage.json_files import read_json_lines, write_json_lines
from jumpahead.storage.layout import SAEFolder
from jumpahead.training import job as training_job
from jumpahead.training import loop
from jumpahead.training.job import Job
from jumpahead.training.loop import (
    advance_job,
    attribute_shared_time,
    batches_in_units,
    remaining_learning_rate,
    time_breakdown,
    train,
    unit_key,
)
from tests import golden
from tests.engine.cases import CASES, assert_same_bytes

SITES = ("layers.0.residual", "layers.2.mlp")
BATCH, D, WIDTH = 128, 16, 96
SHORT = {
    "jumprelu": ("jumprelu", {}, Setting("l0", 4.0)),
    "gated": ("gated", {}, Setting("lambda", 0.01)),
    "topk": ("topk", {}, Setting("k", 4.0)),
    "jumprelu-token": ("jumprelu", {"target": "token"}, Setting("l0", 4.0)),
    "jumprelu-frequency": ("jumprelu", {"frequency_scale": 0.05}, Setting("l0", 4.0)),
}
FVU = {"relu": (0.4, 0.65)}
"""What is left after 900 steps, at most, and as a share of the first; relu's penalty shrinks what it keeps."""
ALL = [(name, {}, Setting("l0", 4.0)) for name in ARCHITECTURES.names()]


@pytest.fixture(scope="module")
def data():
    options = {"d": D, "features": 40, "l0": 3.0, "groups": 48, "rows_per_group": 128}
    return ORIGINS.get("synthetic").open(ActivationsConfig(sites=SITES, origin="synthetic", options=options))


def config(steps, **changes):
    return TrainConfig(**{"tokens": steps * BATCH + 5, "batch": BATCH, **changes})


def job(data, spec, settings, folder=None, site=SITES[0], inputs="abc"):
    """A fresh job that has looked for its checkpoint."""
    name, options, setting = spec
    kind, recipe = ARCHITECTURES.get(name), base_recipe(settings)
    unit = measure_moments(data, 1000, [recipe.norm_limit])[site].unit(recipe.unit, recipe.norm_limit)
    arch = kind(kind.Options(**options), setting, recipe)
    sample, _ = unit.apply(torch.cat([data.rows(group)[site] for group in range(4)]))
    made = Job(f"{name} {setting.label}", site, unit, initial_state(arch, D, WIDTH, 2, sample), folder, inputs)
    made.resume()
    return made


def stream(data, seed=3):
    return Stream(data, BATCH, groups_per_block=6, seed=seed)


class Killed(Exception):
    """Nothing catches it."""


class Cut:
    """A stream whose process dies before batch `at`."""

    def __init__(self, whole, at):
        self.whole, self.at = whole, at

    def batches(self, start=0):
        for i, batch in enumerate(self.whole.batches(start), start):
            if i == self.at:
                raise Killed
            yield batch


class Bad(Cut):
    """A stream whose batch `at` has a hole at one site."""

    def __init__(self, whole, at, site):
        super().__init__(whole, at)
        self.site = site

    def batches(self, start=0):
        for i, batch in enumerate(self.whole.batches(start), start):
            if i == self.at:
                batch[self.site][3, 1] = float("nan")
            yield batch


def trained(data, spec, settings):
    made = job(data, spec, settings)
    train([made], stream(data), settings, kernel_layer())
    return made


def records(one):
    """train.jsonl without what a clock says."""
    return [{key: value for key, value in line.items() if key != "seconds"} for line in one.records]


# ---------------------------------------------------------------------------------------------- it works


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec[0])
def test_training_lowers_the_unexplained_variance_a_lot(data, spec):
    settings = config(900)
    made = trained(data, spec, settings)
    first, last = made.records[0], made.records[-1]
    assert (first["step"], last["step"], made.state.steps_done) == (5, 900, 900)
    most, share = FVU.get(spec[0], (0.35, 0.5))
    assert last["fvu"] < most
    assert last["fvu"] < share * first["fvu"]
    assert last["l0"] == pytest.approx(4.0, rel=0.25)
    watched = [line.pop("health") for line in made.records if "health" in line]
    assert 20 <= len(watched) <= 40
    assert all(math.isfinite(value) for line in [*made.records, *watched] for value in line.values())


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec[0])
def test_looking_at_its_health_does_not_change_a_training(data, spec, monkeypatch):
    every, never = [], []
    for found, watched in ((every, 1), (never, 10**9)):
        monkeypatch.setattr(loop, "DIAGNOSTICS_EVERY", watched)
        found.append(trained(data, spec, config(40)))
    assert_same_bytes(every[0].state, never[0].state)
    assert ["health" in line for line in every[0].records] == [True] * 40
    assert ["health" in line for line in never[0].records] == [False] * 39 + [True]


def test_the_learning_rate_left_by_hand():
    r = base_recipe(config(100))._replace(lr=0.02, lr_warmup_steps=1, lr_warmup_start=0.1, lr_decay_steps=4)
    # 100 steps: 0.002 in the first, 0.02 up to step 96 (where the decay begins at its full value), then 3/4, 2/4, 1/4.
    assert remaining_learning_rate(r, 0, 100) == pytest.approx(0.002 + 96 * 0.02 + 1.5 * 0.02)
    assert remaining_learning_rate(r, 98, 100) == pytest.approx(0.02 * (2 + 1) / 4)
    assert remaining_learning_rate(r, 100, 100) == 0


SENTENCES = {
    "large": (("jumprelu", {}, Setting("lambda", 30.0)), {}, "outweighs the reconstruction"),
    "small": (("jumprelu", {}, Setting("lambda", 1e-6)), {}, "it has no effect on L0"),
    "paper": (("jumprelu", {}, Setting("lambda", 0.01)), {"recipe": "paper"}, "Thresholds could hardly move"),
    "gated": (("gated", {}, Setting("lambda", 0.01)), {"recipe": "paper"}, "lambda was still warming up"),
    "topk": (("topk", {}, Setting("k", 4.0)), {}, None),
    "healthy": (("jumprelu", {}, Setting("lambda", 0.03)), {}, None),
}


@pytest.mark.parametrize("name", SENTENCES)
def test_the_sentence_comes_when_it_should_and_not_for_a_healthy_run(data, name):
    spec, changes, words = SENTENCES[name]
    made = trained(data, spec, config(200, **changes))
    said = training_warnings(made.records, spec[2]._asdict(), WIDTH)
    said = [one for one in said if "features had not fired" not in one]  # a toy of 40 directions in 96 features
    assert (len(said), all(words in one for one in said)) == (1, True) if words else said == [], said


def test_an_empty_window_is_told(data):
    spec = ("jumprelu", {}, Setting("lambda", 0.02))
    made = job(data, spec, config(200))
    made.state.arch.recipe = made.state.arch.recipe._replace(bandwidth=1e-6)
    train([made], stream(data), config(200), kernel_layer())
    (said,) = training_warnings(made.records, spec[2]._asdict(), WIDTH)
    assert said.startswith("Thresholds get almost no gradient")


def activity(data, one):
    """[rows, M] bool: who is active on rows of the training set."""
    x = torch.cat([data.rows(group)[one.site] for group in range(20)])
    sae_ = SAE(one.state.arch, one.unit.fold(one.state.arch, one.state.params))
    return sae_.encode(x) > 0


def test_a_loss_alone_holds_a_requested_l0_and_per_token_it_narrows_the_spread(data):
    """λ·(L̄0/L0* − 1)² of the batch or of every token: no controller; hardly any λ, and L0 is elsewhere."""
    found = {}
    for options in ({"target": "batch"}, {"target": "token"}, {"target": "batch", "target_weight": 1e-4}):
        made = trained(data, ("jumprelu", options, Setting("l0", 4.0)), config(500))
        assert made.state.controller is None
        assert "lambda" not in made.records[-1]
        assert made.finish().about["sparsity_coefficient"] == {"l0": 4.0}
        l0 = activity(data, made).sum(1).double()
        found[len(found)] = l0.mean().item(), l0.std().item()
    batch, token, idle = found.values()
    assert batch[0] == pytest.approx(4.0, rel=0.15)
    assert token[0] == pytest.approx(4.0, rel=0.15)
    assert token[1] < 0.75 * batch[1]
    assert abs(idle[0] / 4.0 - 1) > 0.5


def test_the_frequency_penalty_lowers_the_highest_frequencies_at_the_same_l0(data):
    found = []
    for options in ({}, {"frequency_scale": 0.01}):
        on = activity(data, trained(data, ("jumprelu", options, Setting("l0", 4.0)), config(900)))
        found.append(on.double().mean(0))
        assert found[-1].sum().item() == pytest.approx(4.0, rel=0.1)
    plain, penalised = found
    assert penalised.max() < 0.75 * plain.max()
    assert penalised.square().sum() < 0.6 * plain.square().sum()
    assert (penalised > 0).sum() > (plain > 0).sum()


def test_a_step_sees_the_batch_in_the_unit_of_its_sae(data):
    """Jobs of one site may have different units; those with the same one share the batch."""
    made = [job(data, SHORT["topk"], config(3), site=site) for site in (*SITES, SITES[0], SITES[0])]
    made[2].unit = made[0].unit
    made[3].unit = Unit(2.0)
    raw = next(iter(stream(data).batches()))
    batches = batches_in_units(raw, made)
    assert len(batches) == 3
    x = [batches[unit_key(one)].x for one in made]
    unit = made[0].unit
    torch.testing.assert_close(x[0], (raw[SITES[0]] - unit.mean) / unit.scale)
    assert x[2] is x[0]
    assert torch.equal(x[3], raw[SITES[0]] * 0.5)
    for one in x[:2]:
        assert float(one.square().sum(1).mean()) == pytest.approx(1.0, rel=0.2)
        assert float(one.mean(0).norm()) < 0.2
    assert batches[unit_key(made[3])].limited is None


def test_rows_that_were_scaled_down_are_counted_across_a_resumption(data, tmp_path):
    """A limit that about half of the rows exceed: the same number, stopped or not."""
    settings, found = config(20), {}
    for name, stops in (("once", (20,)), ("twice", (9, 20))):
        for stop in stops:
            made = job(data, SHORT["topk"], settings, SAEFolder(tmp_path / name))
            made.unit = replace(made.unit, max_norm=1.0)
            with contextlib.closing(stream(data).batches(made.state.steps_done)) as batches:
                for i, batch in zip(range(made.state.steps_done, stop), batches, strict=False):
                    advance_job(made, i, batches_in_units(batch, [made])[unit_key(made)], settings, kernel_layer())
            made.checkpoint()
        found[name] = int(made.limited_rows)
    assert found["once"] == found["twice"]
    assert 0.2 < found["once"] / (20 * BATCH) < 0.8


def test_what_is_saved_takes_the_lms_own_activations(data, tmp_path):
    settings = config(30)
    made = job(data, SHORT["jumprelu"], settings, SAEFolder(tmp_path / "one"))
    train([made], stream(data), settings, kernel_layer())
    made.checkpoint()
    made.finish({"site": SITES[0]})
    again = SAE.load(tmp_path / "one")
    for name, tensor in made.unit.fold(made.state.arch, made.state.params).items():
        assert torch.equal(again.params[name], tensor)
    assert again.about["inputs"] == "abc"
    assert again.about["steps"] == 30
    assert again.about["scale"] == made.unit.scale
    assert again.about["sparsity_coefficient"] == {"lambda": float(made.state.sparsity_coefficient)}
    assert not (tmp_path / "one" / "checkpoint").exists()
    assert SAEFolder(tmp_path / "one").is_done("abc")
    lines = read_json_lines(tmp_path / "one" / "train.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert set(lines[0]) == {
        "step",
        "l0",
        "fvu",
        "error",
        "penalty",
        "entries",
        "dense",
        "dead",
        "lr",
        "seconds",
        "lambda",
    }


# ---------------------------------------------------------------------------------------------- it repeats


def test_saes_trained_together_have_the_bytes_of_each_alone(data, tmp_path):
    """On one stream, at one site and at another."""
    settings = config(40)
    specs = [(SHORT["jumprelu"], SITES[0]), (SHORT["topk"], SITES[0]), (SHORT["gated"], SITES[1])]

    def run(some, folder):
        made = [job(data, spec, settings, SAEFolder(tmp_path / folder / spec[0]), site) for spec, site in some]
        train(made, stream(data), settings, kernel_layer())
        for one in made:
            one.finish()
        return {spec[0]: (tmp_path / folder / spec[0] / "weights.safetensors").read_bytes() for spec, _ in some}

    together = run(specs, "together")
    for spec, site in specs:
        assert run([(spec, site)], "alone")[spec[0]] == together[spec[0]]


@pytest.fixture
def threads():
    """Sets torch's number of threads."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_saes_side_by_side_have_the_bytes_of_one_after_the_other(data, threads):
    settings, found = config(30), []
    for count in (1, 2):
        threads(count)
        made = [job(data, spec, settings) for spec in (*ALL, SHORT["jumprelu-token"])]
        train(made, stream(data), settings, kernel_layer())
        assert torch.get_num_threads() == count
        found.append(made)
    for one, other in zip(*found, strict=True):
        assert_same_bytes(one.state, other.state)
        assert records(one) == records(other)


def test_saes_go_side_by_side_where_few_threads_wait_for_the_last(threads):
    def sides(count, items):
        threads(count)
        seen = set()
        layer = kernel_layer()
        layer.run_concurrently(range(items), lambda _: seen.add(torch.get_num_threads()))
        assert (layer.max_concurrent(items) == 1) == (seen == {count} or count == 1)
        return seen

    assert sides(1, 5) == {1}
    assert sides(2, 3) == {2}  # one after the other, on both: side by side a thread would wait for a third of the time
    assert sides(2, 4) == sides(2, 5) == sides(3, 3) == {1}
    assert sides(3, 4) == {3}


def test_time_that_several_steps_share_is_shared(data, monkeypatch):
    jobs = [job(data, SHORT["topk"], config(10)) for _ in range(3)]
    jobs[0].seconds = 100.0
    clock = iter([20.0, 26.0])
    monkeypatch.setattr(loop.time, "perf_counter", lambda: next(clock))
    with attribute_shared_time(jobs):
        for one, own in zip(jobs, (2.0, 4.0, 6.0), strict=True):
            one.seconds += own  # twelve seconds of steps in six
    assert [one.seconds for one in jobs] == [101.0, 2.0, 3.0]


def test_one_that_diverges_stops_all_that_go_side_by_side(data, threads):
    threads(2)
    settings = config(9)
    jobs = [job(data, SHORT[name], settings, site=site) for name, site in zip(("topk", "gated"), SITES, strict=True)]
    with pytest.raises(DivergedError, match="gated"):
        train(jobs, Bad(stream(data), 4, SITES[1]), settings, kernel_layer())
    assert [one.state.steps_done for one in jobs] == [5, 4]


def test_another_order_of_the_data_gives_another_sae(data):
    settings = config(10)
    one, other = job(data, SHORT["topk"], settings), job(data, SHORT["topk"], settings)
    train([one], stream(data, seed=3), settings, kernel_layer())
    train([other], stream(data, seed=4), settings, kernel_layer())
    assert not torch.equal(one.state.params["W_enc"], other.state.params["W_enc"])


def test_golden_losses():
    """Full precision, in float64: golden.py says how to record intended changes."""
    recorded = golden.recorded_losses()
    for case in CASES:
        if case.label in recorded:
            assert golden.losses(case) == pytest.approx(recorded[case.label], rel=1e-9, abs=1e-12), case.label


# ---------------------------------------------------------------------------------------------- it goes on


@pytest.mark.parametrize("spec", SHORT.values(), ids=SHORT)
@pytest.mark.parametrize("cut", [1, 8, 23])
def test_stopped_anywhere_and_continued_is_bitwise_the_same(data, tmp_path, monkeypatch, spec, cut):
    """Step 23 of 24; blocks end at batches 6, 12, …; a line every third step."""
    monkeypatch.setattr(loop, "LOG_LINES", 7)
    settings, folder = config(24), SAEFolder(tmp_path)
    whole = trained(data, spec, settings)
    first = job(data, spec, settings, folder)
    with pytest.raises(Killed):
        train([first], Cut(stream(data), cut), settings, kernel_layer())
    first.checkpoint()
    second = job(data, spec, settings, folder)
    assert second.state.steps_done == cut
    assert second.checkpoint_step == cut
    assert_same_bytes(second.state, first.state)
    train([second], stream(data), settings, kernel_layer())
    assert_same_bytes(second.state, whole.state)
    assert records(second) == records(whole)


def test_the_log_has_the_mean_l0_of_the_steps_since_its_last_line(data, monkeypatch):
    spec, settings = SHORT["jumprelu"], config(20)
    every = trained(data, spec, settings)
    assert [line["step"] for line in every.records] == list(range(1, 21))
    monkeypatch.setattr(loop, "LOG_LINES", 4)
    some = trained(data, spec, settings)
    seen = [line["l0"] for line in every.records]
    assert len(set(seen)) > 10
    assert [line["step"] for line in some.records] == [5, 10, 15, 20]
    assert [line["l0"] for line in some.records] == pytest.approx([sum(seen[i : i + 5]) / 5 for i in (0, 5, 10, 15)])
    assert [line["fvu"] for line in some.records] == [every.records[i]["fvu"] for i in (4, 9, 14, 19)]


def test_where_the_time_went_in_a_sentence():
    assert time_breakdown(200.0, 150.0, 30.0, False) == (
        "Of 3 min 20 s, SAEs' own steps 2 min 30 s (75 %) and their activations 30 s (15 %)."
    )
    assert "their activations, beside them, 30 s (15 %)" in time_breakdown(200.0, 150.0, 30.0, True)
    assert time_breakdown(0.0, 0.0, 0.0, True).startswith("Of 0 s, "), "every SAE was at its last step already"


def test_killed_between_two_saes_checkpoints(data, tmp_path):
    """One is at step 9, the other still at step 4: each goes on from its own."""
    settings = config(16)
    specs = [SHORT["jumprelu"], SHORT["topk"]]
    wholes = [trained(data, spec, settings) for spec in specs]
    folders = [SAEFolder(tmp_path / spec[0]) for spec in specs]
    first = [job(data, spec, settings, folder) for spec, folder in zip(specs, folders, strict=True)]
    for cut, written in ((4, first), (9, first[:1])):
        with pytest.raises(Killed):
            train(first, Cut(stream(data), cut), settings, kernel_layer())
        for one in written:
            one.checkpoint()
    second = [job(data, spec, settings, folder) for spec, folder in zip(specs, folders, strict=True)]
    assert [one.state.steps_done for one in second] == [9, 4]
    train(second, stream(data), settings, kernel_layer())
    for one, whole in zip(second, wholes, strict=True):
        assert_same_bytes(one.state, whole.state)
        assert records(one) == records(whole)


def test_killed_between_the_state_and_the_log(data, tmp_path, monkeypatch):
    settings, folder = config(16), SAEFolder(tmp_path)
    whole = trained(data, SHORT["gated"], settings)
    first = job(data, SHORT["gated"], settings, folder)
    with pytest.raises(Killed):
        train([first], Cut(stream(data), 5), settings, kernel_layer())
    first.checkpoint()
    with pytest.raises(Killed):
        train([first], Cut(stream(data), 11), settings, kernel_layer())
    with monkeypatch.context() as patch:
        patch.setattr(training_job, "write_json_lines", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            first.checkpoint()
    second = job(data, SHORT["gated"], settings, folder)
    assert second.state.steps_done == 11
    train([second], stream(data), settings, kernel_layer())
    assert_same_bytes(second.state, whole.state)
    assert records(second) == records(whole)  # no line is lost: the state carries its log


def test_a_log_ahead_of_its_state_is_cut_back(data, tmp_path):
    settings, folder = config(16), SAEFolder(tmp_path)
    whole = trained(data, SHORT["topk"], settings)
    first = job(data, SHORT["topk"], settings, folder)
    with pytest.raises(Killed):
        train([first], Cut(stream(data), 5), settings, kernel_layer())
    first.checkpoint()
    with pytest.raises(Killed):
        train([first], Cut(stream(data), 9), settings, kernel_layer())
    write_json_lines(folder.log, first.records)
    second = job(data, SHORT["topk"], settings, folder)
    assert [line["step"] for line in second.records] == [1, 2, 3, 4, 5]
    train([second], stream(data), settings, kernel_layer())
    assert records(second) == records(whole)


def stopped_at_5(data, folder):
    """Write the checkpoint of step 5 of 12 into a folder."""
    first = job(data, SHORT["topk"], config(12), folder)
    with pytest.raises(Killed):
        train([first], Cut(stream(data), 5), config(12), kernel_layer())
    first.checkpoint()


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty"])
def test_a_damaged_checkpoint_is_refused_by_name(data, tmp_path, damage):
    folder = SAEFolder(tmp_path)
    stopped_at_5(data, folder)
    content = bytearray(folder.checkpoint_state.read_bytes())
    if damage == "flipped":
        content[-20] ^= 1
    folder.checkpoint_state.write_bytes({"torn": content[:-100], "flipped": content, "empty": b""}[damage])
    with pytest.raises(DamagedError) as caught:
        job(data, SHORT["topk"], config(12), folder)
    assert caught.value.path == folder.checkpoint_state


def test_a_checkpoint_of_another_study_is_passed_over(data, tmp_path):
    settings, folder = config(12), SAEFolder(tmp_path)
    stopped_at_5(data, folder)
    second = job(data, SHORT["topk"], settings, folder, inputs="another study")
    assert second.state.steps_done == 0
    assert second.records == []
    train([second], stream(data), settings, kernel_layer())
    assert_same_bytes(second.state, trained(data, SHORT["topk"], settings).state)


class Signals:
    """A kernel layer during whose n-th decoding the process gets a signal."""

    def __init__(self, number, at):
        self.kernels, self.number, self.left = kernel_layer(), number, at

    def decode(self, *args):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)
        return self.kernels.decode(*args)

    def __getattr__(self, name):
        return getattr(self.kernels, name)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_the_step_at_hand_saves_all_and_goes_on_bitwise(data, tmp_path, number, threads):
    """During the first SAE's step 7: the second does not take it, and both continue from where they are."""
    threads(1)
    settings = config(15)
    specs = [SHORT["jumprelu"], SHORT["topk"]]
    wholes = [trained(data, spec, settings) for spec in specs]
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def jobs():
        return [job(data, spec, settings, SAEFolder(tmp_path / spec[0])) for spec in specs]

    with pytest.raises(KeyboardInterrupt):
        train(jobs(), stream(data), settings, Signals(number, at=13))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    second = jobs()
    assert [one.state.steps_done for one in second] == [7, 6]
    train(second, stream(data), settings, kernel_layer())
    for one, whole in zip(second, wholes, strict=True):
        assert_same_bytes(one.state, whole.state)
        assert records(one) == records(whole)


def test_a_run_that_was_done_is_not_done_again(data, tmp_path):
    settings, folder = config(6), SAEFolder(tmp_path)
    first = job(data, SHORT["topk"], settings, folder)
    train([first], stream(data), settings, kernel_layer())
    first.checkpoint()
    second = job(data, SHORT["topk"], settings, folder)
    train([second], Cut(stream(data), 0), settings, kernel_layer())
    assert_same_bytes(second.state, first.state)


def test_checkpoints_are_written_on_the_way(data, tmp_path):
    settings, folder = config(6, checkpoint_minutes=1e-9), SAEFolder(tmp_path)
    made = job(data, SHORT["topk"], settings, folder)
    with pytest.raises(Killed):
        train([made], Cut(stream(data), 4), settings, kernel_layer())
    assert made.checkpoint_step == 4
    assert made.folder is not None
    assert not folder.is_done("abc")


# ---------------------------------------------------------------------------------------------- it reads ahead


@pytest.fixture
def early(data):
    """The same activations, made before and read ahead."""
    made = [data.rows(group) for group in range(len(data.rows_per_group))]
    found = copy.copy(data)
    found.rows, found.prefetches_in_thread = made.__getitem__, True
    return found


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_reading_ahead_changes_no_bit_and_leaves_no_thread(data, early):
    settings = config(14)
    made = job(data, SHORT["topk"], settings)
    train([made], stream(early), settings, kernel_layer())
    assert not readers()
    assert_same_bytes(made.state, trained(data, SHORT["topk"], settings).state)


def test_ctrl_c_while_reading_ahead_goes_on_bitwise(data, early, tmp_path):
    settings, folder = config(14), SAEFolder(tmp_path)
    first = job(data, SHORT["topk"], settings, folder)
    with pytest.raises(KeyboardInterrupt):
        train([first], stream(early), settings, Signals(signal.SIGINT, at=5))
    assert not readers()
    second = job(data, SHORT["topk"], settings, folder)
    assert second.state.steps_done == 5
    train([second], stream(early), settings, kernel_layer())
    assert_same_bytes(second.state, trained(data, SHORT["topk"], settings).state)


def test_what_reading_ahead_raises_ends_the_training_and_the_thread(data, early):
    def rows(group):
        if group == torn:
            raise ArtefactError("shard 7 is torn")
        return data.rows(group)

    torn = stream(early)._epoch(0).order[9]  # in the second block of six groups
    early.rows = rows
    made = job(data, SHORT["topk"], config(14))
    with pytest.raises(ArtefactError, match="shard 7 is torn"):
        train([made], stream(early), config(14), kernel_layer())
    assert made.state.steps_done == 6  # the first block was trained on
    assert not readers()


# ---------------------------------------------------------------------------------------------- it diverges


def test_a_bad_batch_names_the_sae_the_step_and_the_last_checkpoint(data, tmp_path):
    settings, folder = config(12), SAEFolder(tmp_path)
    made = job(data, SHORT["gated"], settings, folder)
    with pytest.raises(Killed):
        train([made], Cut(stream(data), 5), settings, kernel_layer())
    made.checkpoint()
    with pytest.raises(DivergedError) as caught:
        train([made], Bad(stream(data), 9, SITES[0]), settings, kernel_layer())
    said = str(caught.value)
    assert made.label in said
    assert SITES[0] in said
    assert "step 9" in said
    assert "checkpoint of step 5" in said
    assert made.state.steps_done == 9
    assert all(tensor.isfinite().all() for tensor in made.state.params.values())
