"""frontier.json: its contents, its order, its refusals."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from jumpahead.errors import ArtefactError
from jumpahead.frontier import Frontier, build_frontier
from jumpahead.frontier.build import SEED_COVERAGE
from jumpahead.frontier.curve import estimate_with_interval
from jumpahead.frontier.pareto import pareto_flags
from jumpahead.frontier.seeds import seed_weights
from jumpahead.metrics import METRICS, count_key_by_share, curve_metrics
from jumpahead.storage.packed_numbers import pack_numbers, unpack_numbers
from tests.frontiers import Example, evaluation, example, keywords, write


@pytest.fixture(scope="module")
def small() -> Example:
    return example(l0s=(4, 8, 16), replicates=40, clusters=20, width=512, d=8)


def test_schema(small):
    data = build_frontier(small.evaluations, **small.keywords)
    assert list(data) == [
        "schema", "name", "created", "lm", "text", "metrics", "health", "series", "interval", "panels", "study",
        "manifest", "training", "progress",
    ]  # fmt: skip
    assert data["schema"] == "jumpahead.frontier/3"
    undefined = ("f1", "fvu_ordinary", "outlier_variance")  # no true features, no outliers
    assert [metric["key"] for metric in data["metrics"]] == [key for key in METRICS if key not in undefined]
    assert data["interval"] == {"level": 0.95, "covers": "text", "replicates": 40, "narrow": []}
    (panel,) = data["panels"]
    assert (panel["site"], panel["width"], panel["d"], panel["documents"]) == ("layers.1.residual", 512, 8, 20)
    assert panel["ce_zero"] > panel["ce_mean"] > panel["ce_clean"] > 0
    assert len(panel["points"]) == 9
    for point in panel["points"]:
        assert set(point) == {
            "series", "setting", "label", "sae_seed", "stream_seed", "path", "metrics", "standard_errors",
            "intervals", "bootstrap", "sparsity_coefficient", "pareto", "pareto_in", "notes", "training", "histogram",
            "requested", "converged_after", "health", "training_warnings",
        }  # fmt: skip
        assert set(point["intervals"]) == {*curve_metrics(), *count_key_by_share()} - {"f1"}
        assert set(point["metrics"]) == set(METRICS)
        for key, (low, high) in point["intervals"].items():
            assert low <= point["metrics"][key] <= high
        for key, packed in point["bootstrap"].items():
            replicates = unpack_numbers(packed)
            assert len(replicates) == 40
            assert np.mean(replicates) == pytest.approx(point["metrics"][key], rel=1e-5, abs=1e-4)
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_points_are_ordered_whatever_the_order_of_the_evaluations(small):
    expected = build_frontier(small.evaluations, **small.keywords)
    order = np.random.default_rng(1).permutation(len(small.evaluations))
    shuffled = build_frontier([small.evaluations[i] for i in order], **small.keywords)
    assert shuffled["panels"] == expected["panels"]
    found = [(point["series"], point["setting"]["value"]) for point in expected["panels"][0]["points"]]
    assert found[:3] == [("jumprelu", 4), ("jumprelu", 8), ("jumprelu", 16)]
    assert [name for name, _ in found[3:]] == ["gated"] * 3 + ["topk"] * 3


def test_what_is_known_of_a_training_is_carried_and_declared(small):
    health = {"dead": 0.25, "theta_50": 0.0625, "theta_25": 0.05}
    where = {"requested": 4.0, "reached": 4.1, "step": 40, "share": 0.5}
    told = [dict(one) for one in small.evaluations]
    told[0] |= {"health": health, "converged_after": where, "training_warnings": ["Too late."]}
    data = build_frontier(told, **small.keywords)
    assert [one["key"] for one in data["health"]] == ["theta_50", "dead"]  # what pages show, of what there is
    first, *others = data["panels"][0]["points"]
    assert (first["health"], first["converged_after"], first["training_warnings"]) == (health, where, ["Too late."])
    assert all((one["health"], one["converged_after"], one["training_warnings"]) == ({}, {}, []) for one in others)
    asked = {(point["setting"]["kind"], point["requested"]) for point in data["panels"][0]["points"]}
    assert asked == {("l0", 4.0), ("l0", 8.0), ("l0", 16.0), ("k", 4.0), ("k", 8.0), ("k", 16.0), ("lambda", None)}
    assert build_frontier(small.evaluations, **small.keywords)["health"] == []


def test_several_sites_and_widths_are_panels():
    saes = [evaluation(l0=4, loss=0.5, width=width, site=site) for width in (64, 32) for site in ("a", "b")]
    frontier = Frontier(build_frontier(saes, **keywords("jumprelu")))
    assert frontier.panels == ["a/32", "a/64", "b/32", "b/64"]
    assert len(frontier.points(panel="a")) == 2
    assert len(frontier.points(panel=32)) == 2
    assert len(frontier.points(panel="b/64")) == 1


def test_intervals_are_centred_on_the_estimate():
    """Counts of replicates sit higher than the count; deviations are expanded."""
    replicates = {key: [10.0, 12, 14, 20] for key in curve_metrics()}
    point = build_frontier(
        [evaluation(l0=3, loss=0.5, never_fired=2, expansion=1.25, replicates=replicates)], **keywords("jumprelu")
    )["panels"][0]["points"][0]
    found = unpack_numbers(point["bootstrap"]["never_fired"])
    np.testing.assert_allclose(found, 2 + 1.25 * np.array([-4, -2, 0, 6]), atol=1e-4)
    low, high = point["intervals"]["never_fired"]
    assert low == 0  # not below zero
    assert high == pytest.approx(2 + 1.25 * (0 + 6 * 0.925))  # 97.5 %: 2.925 of 3 steps
    assert point["intervals"]["share_never_fired"] == [0, pytest.approx(high / 1000)]


def test_one_cluster_has_no_interval():
    data = build_frontier([evaluation(l0=3, loss=0.5, clusters=1)], **keywords("jumprelu"))
    assert data["panels"][0]["points"][0]["intervals"] == {}
    assert data["interval"]["replicates"] == 0
    assert "no intervals" in Frontier(data).covers


# ---------------------------------------------------------------------------------------------- Pareto


def at(*pairs):
    return [{"metrics": {"l0": l0, "delta_lm_loss": loss}} for l0, loss in pairs]


def test_pareto_by_hand():
    def pareto(points):
        return pareto_flags(points, ("l0", "delta_lm_loss"))

    assert pareto(at((4, 0.5), (5, 0.5), (8, 0.3), (7, 0.3), (9, 0.1), (9, 0.2))) == [
        True, False, False, True, True, False,
    ]  # fmt: skip
    assert pareto(at((4, 0.5), (4, 0.5))) == [True, True]  # neither beats the other
    assert pareto(at((4, None), (5, 0.5), (float("nan"), 0.1))) == [False, True, False]
    assert pareto([]) == []


def test_pareto_is_by_intervals_of_paired_differences():
    def saes(*rows):
        return [
            {
                "metrics": {"l0": l0, "delta_lm_loss": loss},
                "bootstrap": {"delta_lm_loss": pack_numbers(np.array(losses)), "l0": pack_numbers(np.full(4, l0))},
            }
            for l0, loss, losses in rows
        ]

    def pareto(*rows):
        return pareto_flags(saes(*rows), ("l0", "delta_lm_loss"))

    # L0 4.00 is no sparser than 4.03: only the loss counts, and its difference excludes zero although ranges overlap.
    assert pareto((4.0, 0.52, [0.42, 0.52, 0.62, 0.52]), (4.03, 0.50, [0.4, 0.5, 0.6, 0.5])) == [False, True]
    # The losses differ by more than their replicates do: neither is better.
    assert pareto((4.0, 0.52, [0.6, 0.5, 0.5, 0.48]), (4.03, 0.50, [0.4, 0.5, 0.6, 0.5])) == [True, True]
    # 4 % more features for a loss that may be equal.
    assert pareto((4.0, 0.52, [0.6, 0.5, 0.5, 0.48]), (4.16, 0.50, [0.4, 0.5, 0.6, 0.5])) == [True, False]


def test_every_figure_has_its_own_pareto_set():
    saes = [evaluation(l0=4, loss=0.5, above_10=9, fvu=0.3), evaluation(l0=8, loss=0.3, above_10=2, fvu=0.4),
            evaluation("topk", l0=8, loss=0.4, above_10=1, fvu=0.35)]  # fmt: skip
    points = build_frontier(saes, **keywords("jumprelu", "topk"))["panels"][0]["points"]
    assert [point["pareto"] for point in points] == [True, True, False]
    flags = {key: [point["pareto_in"][key] for point in points] for key in points[0]["pareto_in"]}
    assert flags == {
        "delta_lm_loss": [True, True, False], "fvu": [True, False, False],
        "above_10pct": [False, True, True], "above_1pct": [False, True, False],
    }  # fmt: skip


def test_a_loss_that_does_not_rise_when_the_site_is_zero_compares_nothing():
    def saes(zero):
        found = [evaluation(name, l0=l0, loss=1 / l0, fvu=0.9 / l0, error=0.02)
                 for name in ("jumprelu", "topk") for l0 in (4, 8)]  # fmt: skip
        for one in found:
            one["metrics"] |= {"ce_clean": 8.33, "ce_zero": zero}
        return Frontier(build_frontier(found, **keywords("jumprelu", "topk")))

    assert saes(8.31).data["panels"][0]["fidelity"] == "fvu"
    assert saes(8.36).data["panels"][0]["fidelity"] == "fvu"  # 0.03 is less than two standard errors
    assert saes(8.38).data["panels"][0]["fidelity"] == "delta_lm_loss"
    reason = saes(8.31).ask(delta_loss=0.2).panels[0].recommendation.reason
    assert reason.endswith("Setting the site to zero hardly changes the loss: compare by FVU.")
    assert "hardly" not in saes(8.31).ask(fvu=0.2).panels[0].recommendation.reason
    assert "hardly" not in saes(9.0).ask(delta_loss=0.2).panels[0].recommendation.reason


def test_matched_tables_have_paired_differences_to_the_least():
    ups = {"delta_lm_loss": [0.4, 0.5, 0.6, 0.5]}
    saes = [evaluation(l0=4, loss=0.5, above_10=3, replicates=ups), evaluation(l0=16, loss=0.2, above_10=3)]
    other = {"delta_lm_loss": [0.42, 0.52, 0.62, 0.52]}
    saes += [evaluation("topk", l0=4, loss=0.52, above_10=5, replicates=other), evaluation("topk", l0=16, loss=0.3)]
    jumprelu, topk = build_frontier(saes, **keywords("jumprelu", "topk"))["panels"][0]["matched"]["l0"][0]["rows"]
    assert jumprelu["metrics"]["delta_lm_loss"]["high"] > topk["metrics"]["delta_lm_loss"]["low"]
    assert jumprelu["more"] == {}
    assert topk["more"]["delta_lm_loss"] == pytest.approx({"value": 0.02, "low": 0.02, "high": 0.02}, abs=1e-4)
    assert topk["more"]["above_10pct"]["value"] == 2


# ---------------------------------------------------------------------------------------------- matched tables


def test_matched_tables_by_hand():
    saes = [evaluation(l0=l0, loss=1.6 / l0, above_10=l0) for l0 in (2, 20)]
    saes += [evaluation("topk", l0=l0, loss=0.8 / l0) for l0 in (7, 30)]
    (panel,) = build_frontier(saes, **keywords("jumprelu", "topk"))["panels"]
    assert [entry["value"] for entry in panel["matched"]["l0"]] == [2, 4, 8, 16]
    jumprelu, topk = panel["matched"]["l0"][2]["rows"]
    assert jumprelu["metrics"]["delta_lm_loss"]["value"] == pytest.approx(0.2)
    assert jumprelu["metrics"]["above_10pct"]["value"] == pytest.approx(2 + 18 * math.log(4) / math.log(10))
    assert topk["metrics"]["delta_lm_loss"]["value"] == pytest.approx(0.1)
    assert topk["limit"] is None
    low = panel["matched"]["l0"][1]["rows"][1]  # TopK at L0 4
    assert (low["limit"], low["metrics"]) == ("below", {})
    assert low["nearest"]["l0"]["value"] == 7
    assert [entry["value"] for entry in panel["matched"]["delta_lm_loss"]] == [0.05, 0.1, 0.2, 0.5]
    jumprelu, topk = panel["matched"]["delta_lm_loss"][0]["rows"]
    assert jumprelu["limit"] == "below"
    assert topk["metrics"]["l0"]["value"] == pytest.approx(16)


# ---------------------------------------------------------------------------------------------- what covers what


def test_seeds_are_covered_only_where_every_series_has_several():
    def saes(name, seeds):
        return [evaluation(name, l0=l0, loss=1 / l0, sae_seed=seed) for l0 in (4, 8) for seed in seeds]

    both = Frontier(build_frontier(saes("jumprelu", (0, 1)) + saes("topk", (0, 1)), **keywords("jumprelu", "topk")))
    assert both.data["interval"]["covers"] == "text and seeds"
    assert both.covers == (
        "The 95 % intervals cover the held-out text (40 documents) and seeds: 2 initialisations, one data order. "
        "With 2 seeds they are too narrow: where seeds alone differ, they cover the truth in 61 % of cases. "
        "Train more seeds."
    )
    mixed = Frontier(build_frontier(saes("jumprelu", (0, 1)) + saes("topk", (0,)), **keywords("jumprelu", "topk")))
    assert mixed.data["interval"]["covers"] == "text"
    assert mixed.covers.endswith("only, not seeds: some settings have only one.")
    one = Frontier(build_frontier(saes("jumprelu", (0,)), **keywords("jumprelu")))
    assert one.covers.endswith("only, not seeds: one seed per SAE.")


def test_few_documents_are_pointed_out():
    def covers(documents: int, seeds=(0,)) -> str:
        saes = [evaluation(l0=l0, loss=1 / l0, sae_seed=seed) for l0 in (4, 8) for seed in seeds]
        for one in saes:
            one["text"]["documents"] = documents
        return Frontier(build_frontier(saes, **keywords("jumprelu"))).covers

    assert covers(19).endswith(
        "With fewer than 20 documents they may be too narrow: raise evaluate.tokens, or hold out more text."
    )
    assert "narrow" not in covers(20)
    assert "With 3 seeds they are too narrow" in covers(20, (0, 1, 2))
    assert "narrow" not in covers(20, range(8))


def test_the_measured_coverage_of_seeds_is_what_is_said():
    rng = np.random.default_rng(1)
    for seeds, percent in SEED_COVERAGE.items():
        pairs = [(seed, 0) for seed in range(seeds)]
        weights, hits = seed_weights(pairs, pairs, 2_000), 0
        for _ in range(1_000):
            found = estimate_with_interval(weights @ rng.normal(size=seeds))
            assert found.low is not None
            assert found.high is not None
            hits += found.low <= 0 <= found.high
        assert hits / 1_000 == pytest.approx(percent / 100, abs=0.045)


# ---------------------------------------------------------------------------------------------- equal numbers of tokens


def test_features_that_never_fired_are_counted_on_the_same_number_of_tokens():
    """222 features did not fire in 11,000 tokens, 81 of the same SAE did not in 139,000."""
    saes = [evaluation(l0=4, loss=0.5, never_fired=222, rows=11_000)]
    other = evaluation(l0=8, loss=0.3, never_fired=81, rows=139_000)
    with pytest.raises(ArtefactError, match=r"l0-8_seed-0-0 was evaluated on other text than .*l0-4_seed-0-0"):
        build_frontier([*saes, other], **keywords("jumprelu"))
    elsewhere = evaluation(l0=4, loss=0.5, rows=139_000, site="layers.2.residual")
    with pytest.raises(ArtefactError, match="was evaluated on other text"):
        build_frontier([*saes, elsewhere], **keywords("jumprelu"))
    built = build_frontier(saes, **keywords("jumprelu"))
    declared = {one["key"]: one for one in built["metrics"]}
    assert declared["never_fired"]["title"] == "Features that never fired in 11,000 held-out tokens"
    assert declared["never_fired"]["unit"] == "features, in 11,000 tokens"
    assert declared["share_never_fired"]["unit"] == "share of features, in 11,000 tokens"
    assert built["panels"][0]["rows"] == 11_000


# ---------------------------------------------------------------------------------------------- refusals


def test_evaluations_that_do_not_belong_together_are_refused():
    first = evaluation(l0=4, loss=0.5)
    with pytest.raises(ArtefactError, match=r"l0-8_seed-0-0 was evaluated on other text than .*l0-4_seed-0-0"):
        build_frontier([first, evaluation(l0=8, loss=0.3, digest="beef")], **keywords("jumprelu"))
    with pytest.raises(ArtefactError, match="evaluated on other text"):
        build_frontier([first, evaluation(l0=8, loss=0.3, clusters=7)], **keywords("jumprelu"))
    with pytest.raises(ArtefactError, match="are the same SAE"):
        build_frontier([first, evaluation(l0=4, loss=0.3)], **keywords("jumprelu"))
    with pytest.raises(ArtefactError, match="series 'jumprelu', which the study lacks"):
        build_frontier([first], **keywords("topk"))


# ---------------------------------------------------------------------------------------------- reading


def test_a_run_is_loaded_by_folder_or_file(small, tmp_path):
    folder = write(tmp_path / "run", small, build_frontier(small.evaluations, **small.keywords))
    frontier = Frontier.load(folder)
    assert repr(frontier) == "Frontier('example': jumprelu, gated, topk; 9 SAEs at layers.1.residual/512)"
    assert repr(Frontier.load(folder / "frontier.json")) == repr(frontier)
    assert frontier.folder == folder
    assert (folder / frontier.points("topk")[0]["path"] / "evaluation.json").is_file()
    assert frontier.points("topk", panel=512) == frontier.points()[6:]


def test_what_is_no_frontier_is_named(small, tmp_path):
    with pytest.raises(ArtefactError, match="is not a run"):
        Frontier.load(tmp_path)
    folder = write(tmp_path / "run", small, {"schema": "other"})
    with pytest.raises(ArtefactError, match=r"frontier\.json says that it is 'other'"):
        Frontier.load(folder)
    (folder / "frontier.json").unlink()
    with pytest.raises(ArtefactError, match=r"frontier\.json does not exist: `jumpahead run` makes it"):
        Frontier.load(folder)


def test_an_empty_run_has_an_empty_frontier():
    data = build_frontier([], **keywords("jumprelu"))
    assert data["panels"] == []
    assert Frontier(data).points() == []
    assert Frontier(data).ask(l0=3).panels == []
    assert repr(Frontier(data)) == "Frontier('made-up': jumprelu; 0 SAEs at 0 panels)"


def test_a_panel_may_hold_series_of_several_widths(tmp_path):
    """Every series keeps its width: counts become shares, and shares become targets, with it."""
    saes = [evaluation("a", l0=l0, loss=3 / l0, above_10=l0, width=100) for l0 in (4, 8)]
    saes += [evaluation("b", l0=l0, loss=2 / l0, above_10=l0, width=400) for l0 in (4, 8)]
    data = build_frontier(saes, **keywords("a", "b"), by_width=False)
    (panel,) = data["panels"]
    assert (panel["width"], panel["widths"]) == (None, {"a": 100, "b": 400})
    frontier = Frontier(data)
    assert frontier.panels == ["layers.1.residual"]
    assert len(frontier.points(panel="layers.1.residual")) == 4
    answer = frontier.ask(l0=8).panels[0]
    shares = {one.series: one.crossings[0].metrics["share_above_10pct"].value for one in answer.series}
    assert shares == pytest.approx({"a": 8 / 100, "b": 8 / 400})
    by_share = frontier.ask(above_10="1.5%").panels[0]  # 1.5 features of 100, 6 of 400
    assert {one.series: one.reach for one in by_share.series} == {"a": "below", "b": "inside"}
    assert answer.width is None
    assert build_frontier(saes[:2], **keywords("a"), by_width=False)["panels"][0]["width"] == 100
