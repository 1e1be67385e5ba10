"""The GPU benchmark's results as Markdown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.gpu_setup import Size
from benchmarks.table import format_digits, render_table

PARTS = ("warm", "check", "ceilings", "steps", "breakdown", "frontier", "pair", "dense", "l0", "peers")


def render_page(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    card, parts = results["about"]["card"], []
    memory = f", {card['bytes'] / 2**30:.0f} GiB" if "bytes" in card else ""
    versions = ", ".join(f"{name} {version}" for name, version in results["about"]["versions"].items())
    parts.append(f"# Steps on {card['name']}{memory}\n\n{results['about']['kernels']}. {versions}. `{results['about']['command']}`, {results['about']['date']}.")  # noqa: E501  # fmt: skip
    for name in PARTS:
        if name in results:
            found = results[name]
            text = f"Not available: {found['unavailable']}." if "unavailable" in found else RENDERERS[name](found)
            parts.append(f"## {name}\n\n{text}")
    return "\n\n".join(parts) + "\n"


def render_check(found: dict[str, Any]) -> str:
    rows = [[r["architecture"], f"{r['worst']:.1e}", "yes" if r["repeats"] else "NO", "yes" if r["fine"] else "NO"]
            for r in found["rows"]]  # fmt: skip
    text = render_table(("architecture", "worst ‖error‖/‖value‖", "same bytes twice", "fine"), rows)
    return f"{found['steps']} steps at {Size(**found['size'])}.\n\n{text}"


def render_ceilings(found: dict[str, Any]) -> str:
    product, copy = format_digits(found["product_tflops"]), format_digits(found["copy_gb_per_s"])
    return f"bfloat16 product {product} TFLOP/s, copy {copy} GB/s."


def render_warm_up(found: dict[str, Any]) -> str:
    failed = f", {found['failed']} of them without success" if found["failed"] else ""
    return f"{found['kernels']} steps compiled beside each other in {format_digits(found['seconds'])} s{failed}."


def render_steps(found: dict[str, Any]) -> str:
    head = ("architecture", "size", "way", "ms", "÷ product", "tokens/s", "|S|", "L0", "B/parameter", "hours to 8e9")
    rows = []
    for row in found["rows"]:
        cells = [row["architecture"], str(Size(**row["size"])), row.get("way", "sparse")]
        why = row.get("unavailable") or row.get("absent")
        if why is not None:
            rows.append([cells[0], f"{cells[1]}: {why}", cells[2], *[""] * (len(head) - 3)])
            continue
        numbers = (row["ms"], row["ms"] / row["product_ms"], row["tokens_per_s"], row.get("entries"), row.get("l0"),
                   row.get("bytes_per_parameter"), row.get("hours_to_8e9"))  # fmt: skip
        rows.append([*cells, *map(format_digits, numbers)])
    return render_table(head, rows)


def render_frontier(found: dict[str, Any]) -> str:
    head, rows = ("size", "SAEs", "GiB", "ms per batch", "ms each", "tokens/s"), []
    for row in found["rows"]:
        size = str(Size(**row["size"]))
        if "unavailable" in row:
            rows.append([f"{size}: {row['unavailable']}", *[""] * (len(head) - 1)])
            continue
        gibibytes = row["peak_bytes"] and row["peak_bytes"] / 2**30
        numbers = map(format_digits, (gibibytes, row["ms"], row["ms_each"], row["tokens_per_s"]))
        rows.append([size, f"{row['saes']} of {row['asked']}", *numbers])
    return render_table(head, rows)


def render_breakdown(found: dict[str, Any]) -> str:
    calls = found["calls_ms"] | {"between them": found["step_ms"] - sum(found["calls_ms"].values())}
    rows = [[name, format_digits(value)] for name, value in calls.items()]
    table = render_table(("call", "ms per step"), rows)
    launch = (
        "" if found["launch_ms"] is None else f"\n\nThe host launches a step in {format_digits(found['launch_ms'])} ms."
    )
    return f"{Size(**found['size'])}, {format_digits(found['step_ms'])} ms.\n\n{table}{launch}"


def render_l0(found: dict[str, Any]) -> str:
    rows = [[str(r["asked"]), *(["", r["unavailable"], ""] if "unavailable" in r else map(format_digits, (r["entries"], r["ms"], r["tokens_per_s"])))]  # noqa: E501
            for r in found["rows"]]  # fmt: skip
    dense = found["dense"].get("unavailable") or f"{format_digits(found['dense']['ms'])} ms"
    beyond = [r["asked"] for r in found["rows"] if r.get("ms", 0) > found["dense"].get("ms", float("inf"))]
    crossover = f"slower than dense from L0 {beyond[0]}" if beyond else "no crossover seen"
    return f"{render_table(('L0', '|S|', 'ms', 'tokens/s'), rows)}\n\nDense, bfloat16: {dense}; {crossover}."


def render_pair(found: dict[str, Any]) -> str:
    rows = [
        [key, format_digits(found["tokens_per_s"][key]), format_digits(found["hours_to_8e9"][key])]
        for key in ("lm", "sae", "both")
    ]
    text = render_table(("what", "tokens/s", "hours to 8e9"), rows)
    return f"{Size(**found['size'])}. The LM takes {100 * found['lm_share']:.0f} % of the time of both.\n\n{text}"


RENDERERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "warm": render_warm_up, "check": render_check, "ceilings": render_ceilings, "steps": render_steps,
    "breakdown": render_breakdown, "frontier": render_frontier, "pair": render_pair, "dense": render_steps,
    "l0": render_l0, "peers": render_steps,
}  # fmt: skip


def mask_digits(text: str) -> str:
    """Replace all digits of a dry run's page: its times are meaningless."""
    return "".join("·" if c.isdigit() else c for c in text) + "\nA dry run: no figure above was measured on a card."
