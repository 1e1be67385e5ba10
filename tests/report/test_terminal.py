"""What the terminal shows: every number that matters, within 80 columns, as plain ASCII when piped."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from jumpahead.formatting import format_aligned, format_range
from jumpahead.frontier import Frontier, build_frontier
from jumpahead.report import terminal
from tests import efficiency_json
from tests.frontiers import evaluation, example, keywords


def printed(function, *arguments, width=80, **options) -> str:
    file = io.StringIO()
    function(*arguments, Console(file=file, width=width, **options))
    return file.getvalue()


def words(text: str) -> str:
    """One line, so that sentences can be found wherever they were wrapped."""
    return re.sub(r"\s+", " ", text)


def frontier(*evaluations) -> Frontier:
    names = dict.fromkeys(each["sae"]["series"] for each in evaluations)
    return Frontier(build_frontier(evaluations, **keywords(*names)))


@pytest.fixture(scope="module")
def demo() -> Frontier:
    made = example(l0s=(4, 12, 37, 64), replicates=100, clusters=30, width=4096, d=8)
    return Frontier(build_frontier(made.evaluations, **made.keywords))


@pytest.fixture
def two() -> Frontier:
    laws = (("jumprelu", 1.6), ("topk", 2.4))
    return frontier(
        *(evaluation(name, l0=l0, loss=a / l0, above_10=l0 / 2) for name, a in laws for l0 in (4.0, 16.0, 64.0))
    )


# ---------------------------------------------------------------------------------------------- ask


def test_an_answer_word_for_word(two):
    text = printed(terminal.print_answer, two.ask(delta_loss=0.03, limits={"above_10": "3%"}))
    assert (
        [line.rstrip() for line in text.splitlines()]
        == """\
What does each series cost at delta LM loss 0.03, with at most 3% of features
above 10%?
Run made-up, LM tiny. The 95% intervals cover the held-out text (40 documents)
only, not seeds: one seed per SAE.

layers.1.residual, width 1,000
                                                    never
series           L0          FVU       >10%    >1%  fired  train with
JumpReLU       53.3        0.100       28.8     50      7  l0 = 53.3
          53.3-53.3  0.100-0.100      2.88%     5%   0.7%
                                  28.8-28.8  50-50    7-7
>10%: features active on more than 10% of tokens; >1%: features active on more
than 1% of tokens; never fired: features that never fired in 50,040 held-out
tokens

Nearest trained SAE
  JumpReLU, l0 = 64: L0 64, delta LM loss 0.025
    saes/layers.1.residual/1000/jumprelu/l0-64_seed-0-0

Out of range
  TopK: delta LM loss 0.03 is below the measured range, 0.0375 to 0.6. Its
  nearest end, l0 = 64, has delta LM loss 0.0375 and L0 64.
    saes/layers.1.residual/1000/topk/l0-64_seed-0-0

Recommended: jumprelu, l0 = 53.3. At delta LM loss 0.03 and within the limits,
only JumpReLU qualifies, with 53.3 active features per token. Left out: TopK was
measured only from 0.0375 to 0.6.""".splitlines()
    )


@pytest.mark.parametrize(
    "question",
    [
        {"delta_loss": 0.2},
        {"delta_loss": 0.12, "limits": {"above_10": "0.06%", "never_fired": 3, "share_above_1pct": 0.001}},
        {"delta_loss": 1e-5},
        {"l0": 21.5},
        {"fvu": 0.2},
        {"above_10": "0.1%"},
        {"above_1": 400},
    ],
)
def test_an_answer_fits_into_80_columns_of_ascii(demo, question):
    text = printed(terminal.print_answer, demo.ask(**question))
    assert text.isascii()
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "intervals cover the held-out text (30 documents) only, not seeds: one seed per SAE." in words(text)
    assert "Recommended: " in text


def test_an_answer_shows_every_metric_of_every_series(demo):
    answer = demo.ask(delta_loss=0.2)
    text = printed(terminal.print_answer, answer)
    for series in answer.panels[0].series:
        (crossing,) = series.crossings
        row = next(line for line in text.splitlines() if line.startswith(f"{series.title} "))
        for key in ("l0", "fvu", "above_10pct", "above_1pct", "never_fired"):
            assert format_aligned(crossing.metrics[key].value) in row.split()
            low, high = crossing.metrics[key][1:]
            assert format_range(low, high) in text
        assert crossing.nearest["path"] in text.replace("\n", "")
        assert crossing.setting["kind"] in row


def test_no_series_qualifies(two):
    text = words(printed(terminal.print_answer, two.ask(delta_loss=9)))
    assert "Recommended: none. No series qualifies at delta LM loss 9: JumpReLU was measured only from" in text
    assert "train with" not in text


def test_notes_panels_seeds_and_crossings_are_told():
    losses = {2.0: 0.8, 4.0: 0.25, 8.0: 0.4, 16.0: 0.1}
    saes = [
        evaluation(name, l0=l0, loss=loss, error=0.1 * loss, width=width, sae_seed=seed)
        for width in (64, 32)
        for name, seeds in (("jumprelu", (0, 1)), ("a-series-with-a-long-name", (0,)))
        for seed in seeds
        for l0, loss in losses.items()
    ]
    text = printed(terminal.print_answer, frontier(*saes).ask(delta_loss=0.3))
    assert max(map(len, text.splitlines())) <= 80
    assert text.index("layers.1.residual, width 32") < text.index("layers.1.residual, width 64")
    flat = words(text)
    assert "only, not seeds: some settings have only one. Those of JumpReLU cover seeds too." in flat
    assert flat.count("JumpReLU: its curve is there 3 times; the smallest L0 comes first.") == 2
    assert flat.count("JumpReLU: the standard error of the loss is 10% of it here: evaluate on more text.") == 2


def test_without_intervals_there_are_only_numbers():
    bare = frontier(*(evaluation(l0=l0, loss=1.6 / l0, clusters=1) for l0 in (4.0, 16.0)))
    text = printed(terminal.print_answer, bare.ask(l0=8))
    assert "There are no intervals: the evaluations hold no resamples." in words(text)
    assert not re.search(r"\d-\d.*\d-\d", text.split("Nearest")[0])


def test_a_path_is_never_broken(two):
    text = printed(terminal.print_answer, two.ask(l0=8), width=40)
    assert "    saes/layers.1.residual/1000/jumprelu/l0-4_seed-0-0\n" in text


def test_colour_only_in_a_terminal(two):
    answer = two.ask(l0=8)
    plain = printed(terminal.print_answer, answer)
    styled = printed(terminal.print_answer, answer, force_terminal=True)
    assert "\x1b[" in styled
    assert re.sub(r"\x1b\[[0-9;]*m", "", styled) == plain


# ---------------------------------------------------------------------------------------------- show


def test_show_lists_every_sae_and_both_tables(demo):
    text = printed(terminal.print_frontier, demo)
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 80
    rows = [line for line in text.splitlines() if re.match(r"\*?\s+(l0|k|lambda) = ", line)]
    assert len(rows) == 12
    best = [point for point in demo.points() if point["pareto"]]
    assert sum(line.startswith("*") for line in rows) == len(best) > 3
    for heading in ("Delta LM loss at matched L0", "L0 at matched delta LM loss"):
        assert heading in text
    found = demo.data["panels"][0]["matched"]["l0"][0]["rows"][0]["metrics"]["delta_lm_loss"]
    assert f"{format_aligned(found['value'])} [{format_range(found['low'], found['high'])}]" in text
    assert "below its range" in text or "above its range" in text


def test_show_tells_seeds_apart_and_orders_by_l0():
    saes = [
        evaluation(l0=l0 + seed / 10, loss=1 / l0, sae_seed=seed, setting={"kind": "lambda", "value": 1 / l0})
        for l0 in (4.0, 16.0)
        for seed in (3, 5)
    ]
    text = printed(terminal.print_frontier, frontier(*saes))
    labels = re.findall(r"lambda = \S+ seed \d", text)
    assert labels == [
        "lambda = 0.25, seed 3", "lambda = 0.25, seed 5", "lambda = 0.0625, seed 3", "lambda = 0.0625, seed 5",
    ]  # fmt: skip
    assert "and seeds: 2 initialisations, one data order." in words(text)


def test_show_lists_the_requested_l0_and_training_warnings():
    saes = [evaluation(l0=4.4, loss=0.5, setting={"kind": "l0", "value": 4}), evaluation(l0=16.1, loss=0.2),
            evaluation("topk", l0=8.0, loss=0.3, setting={"kind": "lambda", "value": 0.25})]  # fmt: skip
    saes[0]["training_warnings"] = ["L0 = 4 was requested and 4.4 reached, 10 % above: raise train.tokens."]
    saes[2]["training_warnings"] = saes[0]["training_warnings"]
    text = printed(terminal.print_frontier, frontier(*saes))
    assert text.isascii()
    assert re.search(r"l0 = 4 +4 +4\.40 +0\.500", text)
    assert re.search(r"lambda = 0\.25 +- +8 +0\.300", text)
    said = "Notes JumpReLU, l0 = 4; TopK, lambda = 0.25: L0 = 4 was requested"
    assert said in words(text)
    assert "Notes" not in printed(terminal.print_frontier, frontier(saes[1]))


def test_show_splits_many_series_and_survives_what_is_missing():
    saes = [evaluation(f"series-{i}", l0=l0, loss=(i + 1) / l0) for i in range(7) for l0 in (4.0, 16.0)]
    saes[0]["metrics"] |= {"delta_lm_loss": None, "fvu": None}
    saes[1]["standard_errors"] = {}
    text = printed(terminal.print_frontier, frontier(*saes))
    assert max(map(len, text.splitlines())) <= 80
    assert all(f"series-{i}" in text for i in range(7))


def test_show_breaks_no_number_at_80_columns():
    """Wide dictionaries, fixed coefficients, several seeds: columns move to a second table instead."""
    law = {"kind": "lambda", "value": 0.000625}
    saes = [
        evaluation(name, l0=12.34 * l0, loss=-0.000123 * l0, error=0.000213, fvu=1.234, above_10=1234, above_1=123_456,
                   never_fired=98_765, width=1_048_576, sae_seed=seed, setting={**law, "value": law["value"] / l0},
                   replicates={"delta_lm_loss": [-0.00123, -0.00234, 0.00345, 0.00012]})
        for name in ("jumprelu", "gated", "topk") for l0 in (1.0, 2.0) for seed in (0, 1)
    ]  # fmt: skip
    shown = frontier(*saes)
    text = printed(terminal.print_frontier, shown)
    assert max(map(len, text.splitlines())) <= 80
    cells = text.split()
    for number in ("123,456", "98,765", "1,234", "0.000213", "-0.000123", "-0.000246"):
        assert number in cells, number
    assert len(re.findall(r"^\*? +setting", text, re.MULTILINE)) == 2
    assert "…" not in text


def test_matched_tables_mark_the_least_and_what_may_be_as_low(two):
    lines = printed(terminal.print_frontier, two).splitlines()
    row = next(line for line in lines if line.startswith("8 "))
    assert re.fullmatch(r"8 +0\.200 \[0\.200-0\.200\] < +0\.300 \[0\.300-0\.300\]\s*", row)
    ups = {"delta_lm_loss": [0.4, 0.6, 0.5, 0.5]}
    close = frontier(
        *(evaluation("jumprelu", l0=l0, loss=2 / l0, replicates=ups) for l0 in (4, 4.5)),
        *(evaluation("topk", l0=l0, loss=2.01 / l0) for l0 in (4, 4.5)),
    )
    row = next(line for line in printed(terminal.print_frontier, close).splitlines() if line.startswith("4 "))
    assert re.search(r"0\.500 \[.*\] < +0\.502 \[.*\] ~", row)


def test_notes_in_show_are_grouped():
    saes = [evaluation(l0=l0, loss=1 / l0) for l0 in (4.0, 8.0)]
    for i, one in enumerate(saes):
        one["training_warnings"] = [f"L0 stayed within 3 % of the requested one only from {80 + i} % of training on."]
    said = words(printed(terminal.print_frontier, frontier(*saes)))
    assert said.endswith(
        "Notes JumpReLU, l0 = 4, 8: L0 stayed within 3% of the requested one only from 80 to 81% of training on. "
    )


def test_an_empty_run_says_so():
    assert "0 SAEs" in printed(terminal.print_frontier, Frontier(build_frontier([], **keywords("jumprelu"))))


# ---------------------------------------------------------------------------------------------- efficiency


def test_costs_word_for_word():
    found = efficiency_json.example(notes=["How it was measured."])
    text = printed(terminal.print_efficiency, found)
    lines = [line.rstrip() for line in text.splitlines()]
    assert max(map(len, lines)) <= 80
    assert text.isascii()
    until = lines.index("Where the time goes, ms")
    assert (
        lines[: until - 1]
        == """\
What a training step costs: 2 threads, Invented CPU
Kernels: numba (fastest at 1024x256x2048).

d = 256, width 4,096, batch 2,048, L0 = 32
Lower bound: one encoder product, bfloat16 10 ms (430 GFLOP/s); float32 (oneDNN)
30 ms (143 GFLOP/s). A copy moves 28.5 GB/s.
                       ms                            GB    MB   hours   hours
                 per step  tokens/s   |S|  GFLOP  moved  peak  to 1e9  to 8e9
JumpReLU
  jumpahead            24    85,333  71.5      5  0.400    53    3.26    26.0
  dense recipe        200    10,240           26  0.600   220    27.1     217
TopK
  jumpahead            24    85,333  71.5      5  0.400    53    3.26    26.0
  dense recipe        200    10,240           26  0.600   220    27.1     217
  approx. top-k       200    10,240           26  0.600   220    27.1     217
  JumpReLU: 2 x the lower bound. Dense recipe: 8.33 x as long.
  TopK: 2 x the lower bound. Dense recipe: 8.33 x as long. Dense, approximate
  top-k: 8.33 x as long, finds 98.1% of the exact top-k.
""".splitlines()
    )
    assert lines[until + 1 : until + 5] == [
        "                enc sel dec back Adam rows rule  fold  sum step",
        "JumpReLU",
        "  jumpahead      12   4   1              6    2 0.500 25.5   24",
        "  dense recipe   13  30  11  140    5                  199  200",
    ]
    assert "enc: encoder product; sel: elementwise and selection" in words(text)
    assert "JumpReLU, dense recipe: skipped: would need 21 GB of memory." in words(text)
    assert lines[-1] == "How it was measured."
