"""From text to nine SAEs: JumpReLU, TopK and Gated at three sparsities, on one stream of one model's activations.

Same text, same language model, same site, width and tokens per SAE for every library; each run is a process of its own,
timed from its start to its end. The others are timed to trained, saved SAEs. Ours is timed to trained SAEs, and to the
end: evaluated in the language model, with the frontier and the page written. How the others are called is in
peer_runs.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import peer_libraries
from benchmarks.interleaved_timing import show_progress
from benchmarks.library_sae import COMPARED_ARCHITECTURES
from benchmarks.peer_libraries import missing_reason
from jumpahead import ENVIRONMENT
from jumpahead.lm import tiny
from jumpahead.text.sources.stdlib import stdlib_documents

BATCH, CONTEXT = 2048, 128
SEPARATOR = "<|endoftext|>"
RUNNERS = (peer_libraries.SAELens, peer_libraries.DictionaryLearning)
"""The libraries that can train many SAEs on one stream."""


class RunSettings(NamedTuple):
    """Model, text and SAEs of a whole run."""

    lm: str
    """A folder in Hugging Face format, or `tiny`."""
    block: int
    """The block whose output is read, from 0."""
    text: str
    """A text file, documents separated by `<|endoftext|>`, or `stdlib`."""
    width: int
    l0: tuple[int, ...]
    """The sparsities; three architectures at each."""
    tokens: int
    """Per SAE."""
    held_out: int = 50_000
    """Held-out tokens that jumpahead evaluates each SAE on."""


def measure(asked: RunSettings) -> dict[str, Any]:
    """Run every library; return {asked, rows}."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = text_file(asked.text, folder)
        rows = run_jumpahead(asked, text, folder)
        for peer in RUNNERS:
            show_progress(f"whole run: {peer.title}")
            if why := missing_reason(peer):
                rows.append({"library": peer.title, "stage": "trained", "unavailable": why})
                continue
            rows.append(run_peer(peer.title, asked, text, folder / peer.title))
    show_progress("")
    shown = asked._asdict() | {"lm": Path(asked.lm).name, "text": Path(asked.text).name}
    return {"asked": shown | {"batch": BATCH, "context": CONTEXT, "saes": 3 * len(asked.l0)}, "rows": rows}


def text_file(text: str, folder: Path) -> Path:
    """Return the text file that every library reads."""
    if text != "stdlib":
        return Path(text).resolve()
    path = folder / "stdlib.txt"
    path.write_text(f"\n{SEPARATOR}\n".join(one.text for one in stdlib_documents()), encoding="utf-8")
    return path


def run_jumpahead(asked: RunSettings, text: Path, folder: Path) -> list[dict[str, Any]]:
    """Time `jumpahead run`: until the SAEs are trained, then the rest; return two rows."""
    show_progress("whole run: jumpahead")
    file, run = folder / "study.toml", folder / "run"
    file.write_text(study_toml(asked, text), encoding="utf-8")
    command = [sys.executable, "-m", "jumpahead.cli", "run", str(file), "--out", str(run)]
    row: dict[str, Any] = {"library": "jumpahead", "stage": "trained"}
    rest: dict[str, Any] = {"library": "jumpahead", "stage": "trained, evaluated, page written"}
    seconds, failed = time_command([*command, "--until", "train"])
    if failed:
        return [row | {"unavailable": failed}]
    more, failed = time_command(command)
    if failed:
        return [row | {"seconds": seconds}, rest | {"unavailable": failed}]
    from jumpahead import Frontier

    points = [point for name in ("jumprelu", "topk", "gated") for point in Frontier.load(run).points(name)]
    saes = [{"name": f"{point['series']} {point['label']}", "l0": point["metrics"]["l0"]} for point in points]
    return [row | {"seconds": seconds}, rest | {"seconds": seconds + more, "saes": saes}]


def study_toml(asked: RunSettings, text: Path) -> str:
    """Return the study as TOML."""
    quoted = json.dumps  # a JSON string is a TOML string
    lm = asked.lm if asked.lm == "tiny" else str(Path(asked.lm).resolve())
    series = "\n".join(f'[[series]]\narchitecture = "{name}"\nl0 = {list(asked.l0)}' for name in COMPARED_ARCHITECTURES)
    return f"""name = "whole"
[lm]
model = {quoted(lm)}
context = {CONTEXT}
[text]
source = {quoted(str(text))}
separator = {quoted(SEPARATOR)}
[activations]
sites = ["layers.{asked.block}.residual"]
[sae]
width = [{asked.width}]
[train]
tokens = {asked.tokens}
batch = {BATCH}
[evaluate]
tokens = {asked.held_out}
{series}
"""


def run_peer(title: str, asked: RunSettings, text: Path, folder: Path) -> dict[str, Any]:
    """Time another library's run in a subprocess; return its row."""
    lm = tiny.PATH if asked.lm == "tiny" else Path(asked.lm).resolve()
    module, d = module_of_block(lm, asked.block)
    spec = asked._asdict() | {"lm": str(lm), "module": module, "d": d, "text": str(text)}
    spec |= {"batch": BATCH, "context": CONTEXT, "separator": SEPARATOR}
    script = Path(__file__).with_name("peer_runs.py")
    folder.mkdir()
    row: dict[str, Any] = {"library": title, "stage": "trained"}
    printed: list[str] = []
    seconds, failed = time_command([sys.executable, str(script), title, json.dumps(spec), str(folder)], printed)
    if failed:
        return row | {"unavailable": failed}
    return row | {"seconds": seconds} | json.loads(printed[-1])


def module_of_block(lm: Path, block: int) -> tuple[str, int]:
    """Return the block's module name in the Hugging Face model, and the width of its output."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(lm)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    stack = next(
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == config.num_hidden_layers
    )
    return f"{stack}.{block}", config.hidden_size


def time_command(command: list[str], printed: list[str] | None = None) -> tuple[float, str]:
    """Return the seconds a command takes, and why it failed; its lines of output are appended to `printed`."""
    environment = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    seconds = time.perf_counter() - begun
    if printed is not None:
        printed += done.stdout.strip().splitlines()
    if done.returncode == 0:
        return seconds, ""
    return seconds, "failed: " + (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
