"""Train a small language model: the bundled one, on the Python standard library's own source; or one on any text.

    python tools/train_tiny_lm.py                      # one hour on two cores, writes jumpahead/lm/tiny
    python tools/train_tiny_lm.py --minutes 2 --out scratch/quick
    python tools/train_tiny_lm.py --resume --minutes 40   # goes on from the last checkpoint, decays by minute 40
    python tools/train_tiny_lm.py --text FOLDER --separator "<|endoftext|>" --out scratch/english-lm

Shapes: B sequences, T = 256 positions, d = 256 wide, V = 4,096 tokens, R = scored positions of a batch.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import os
import platform
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from jumpahead.text.config import TextConfig
from jumpahead.text.documents import documents as text_documents
from jumpahead.text.documents import is_held_out
from jumpahead.text.source import Document
from jumpahead.text.sources.stdlib import stdlib_documents

ROOT = Path(__file__).resolve().parent.parent
HELD_OUT_SHARE = 0.10
BOS = 0
END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 4096
CONTEXT = 256
WINDOW = CONTEXT - 1
SEQUENCES_PER_BATCH = 16
SCORED_ROWS_PER_CHUNK = 512
"""The loss makes its logits for this many positions at a time, 8 MiB, so that they stay in the cache."""

# Muon's usual learning rate and momentum for matrices (Keller Jordan's post); the others are Adam's.
MATRIX_RATE, MATRIX_MOMENTUM, MATRIX_DECAY = 0.02, 0.95, 0.1
EMBEDDING_RATE, ADAM_BETAS = 3e-3, (0.9, 0.95)
WARM_UP_SHARE, DECAY_SHARE = 0.02, 0.7

# In the order tried: punctuation up to the line's end with the next line's indentation; a word with one character
# before it; at most three digits; punctuation; white space.
PIECES = (
    r"[^\s\p{L}\p{N}]*(?:\r?\n)+[ \t]*"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"| ?\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+"
    r"|\s+"
)


# Data


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE: every text comes back exactly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[Tensor]:
    return [torch.tensor(e.ids) for e in tokenizer.encode_batch(texts, add_special_tokens=False)]


def epoch_windows(lengths: list[int], seed: int, epoch: int) -> Tensor:
    """(document, start) of every window of one epoch, shuffled; how many there are does not depend on the epoch.

    A document is tiled with windows at a random phase. The outermost are pushed inside, so that its beginning and its
    end are always seen whole.
    """
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    rows = []
    for document, length in enumerate(lengths):
        if length <= WINDOW:
            rows.append(torch.tensor([[document, 0]]))
            continue
        phase = int(torch.randint(WINDOW, (), generator=generator))
        starts = (torch.arange(math.ceil(length / WINDOW) + 1) * WINDOW - phase).clamp(0, length - WINDOW)
        rows.append(torch.stack([torch.full_like(starts, document), starts], 1))
    table = torch.cat(rows)
    return table[torch.randperm(len(table), generator=generator)]


def batches(documents: list[Tensor], seed: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batch `first` and all after it: token ids [B, T] that begin with BOS, and how many of each row are real [B]."""
    lengths = [len(ids) for ids in documents]
    per_epoch = len(epoch_windows(lengths, seed, 0)) // SEQUENCES_PER_BATCH
    epoch, skip = divmod(first, per_epoch)
    while True:
        table = epoch_windows(lengths, seed, epoch)[: per_epoch * SEQUENCES_PER_BATCH]
        for rows in table.view(per_epoch, SEQUENCES_PER_BATCH, 2)[skip:]:
            cut = [documents[d][s : s + WINDOW] for d, s in rows.tolist()]
            ids = torch.stack([pad(c, (1, WINDOW - len(c)), value=BOS) for c in cut])
            yield ids, torch.tensor([1 + len(c) for c in cut])
        epoch, skip = epoch + 1, 0


# Model and optimiser


class Size(NamedTuple):
    """Dimensions of the residual stream, blocks, attention heads."""

    width: int = 256
    layers: int = 4
    heads: int = 4


def new_model(seed: int, size: Size) -> GPTNeoXForCausalLM:
    torch.manual_seed(seed)
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCABULARY,
            hidden_size=size.width,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            intermediate_size=4 * size.width,
            max_position_embeddings=CONTEXT,
            hidden_act="gelu_pytorch_tanh",
            use_parallel_residual=False,
            tie_word_embeddings=True,
            bos_token_id=BOS,
            eos_token_id=BOS,
            pad_token_id=BOS,
        )
    )
    for name, parameter in model.named_parameters():  # every block begins as the identity
        if name.endswith(("attention.dense.weight", "mlp.dense_4h_to_h.weight")):
            torch.nn.init.zeros_(parameter)
    return model


class MeanCrossEntropy(torch.autograd.Function):
    """Mean over R rows of −log softmax(h Wᵀ)[target], with both gradients made chunk by chunk on the way forward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        total = hidden.new_zeros(())
        d_hidden, d_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for start in range(0, len(hidden), SCORED_ROWS_PER_CHUNK):
            part = slice(start, start + SCORED_ROWS_PER_CHUNK)
            log_p = torch.log_softmax(hidden[part] @ weight.T, -1)
            index = target[part, None]
            total -= log_p.gather(1, index).sum()
            error = log_p.exp_().scatter_add_(1, index, torch.full_like(index, -1, dtype=log_p.dtype))
            torch.mm(error, weight, out=d_hidden[part])
            d_weight.addmm_(error.T, hidden[part])
        ctx.save_for_backward(d_hidden.div_(len(hidden)), d_weight.div_(len(hidden)))
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * grad_outputs[0], d_weight * grad_outputs[0], None


def orthogonalise(stack: Tensor) -> Tensor:
    """Nearest semi-orthogonal matrices of a stack [n, rows ≥ columns], roughly: five quintic Newton–Schulz steps.

    As `torch.optim.Muon` does, but in float32 (bfloat16 products are 35 times slower on a CPU without them).
    """
    x = stack / (stack.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x.mT @ x
        x = 3.4445 * x + x @ (-4.7750 * gram + 2.0315 * gram @ gram)
    return x


class Muon(torch.optim.Optimizer):
    """m ← βm + g;  W ← (1 − ηλ)W − η√max(1, rows/columns) · orth(g + βm), for queries, keys and values apart."""

    def __init__(
        self, params: list[torch.nn.Parameter], lr: float, momentum: float, weight_decay: float, heads: int
    ) -> None:
        self.heads = heads
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.mul_(group["momentum"]).add_(weight.grad)
                update = self._direction(weight.grad + group["momentum"] * momentum)
                weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])

    def _direction(self, matrix: Tensor) -> Tensor:
        rows, columns = matrix.shape
        if rows == 3 * columns:  # GPT-NeoX keeps [heads, (q, k, v), d / heads, d] in one matrix
            stack = matrix.view(self.heads, 3, -1, columns).transpose(0, 1).reshape(3, columns, columns)
            return orthogonalise(stack).view(3, self.heads, -1, columns).transpose(0, 1).reshape(rows, columns)
        if rows < columns:
            return orthogonalise(matrix.T[None])[0].T
        return orthogonalise(matrix[None])[0] * math.sqrt(rows / columns)


# Training


class Budget(NamedTuple):
    """Where training ends: whichever comes first."""

    tokens: float
    seconds: float


class Run:
    """A model in training, with what a checkpoint must hold."""

    def __init__(self, seed: int, size: Size) -> None:
        self.model = new_model(seed, size)
        self.names: dict[Tensor, str] = {parameter: name for name, parameter in self.model.named_parameters()}
        matrices = [p for n, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in n]
        others = [p for p in self.model.parameters() if p.ndim == 1 or p.shape[0] == VOCABULARY]
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            Muon(matrices, MATRIX_RATE, MATRIX_MOMENTUM, MATRIX_DECAY, size.heads),
            torch.optim.AdamW(others, EMBEDDING_RATE, ADAM_BETAS, weight_decay=0.0),
        )
        self.peaks = [o.param_groups[0]["lr"] for o in self.optimizers]
        self.steps, self.tokens, self.seconds = 0, 0, 0.0

    def save(self, path: Path) -> None:
        """One file, written beside its place and moved there: never torn."""
        tensors = {f"model/{n}": p.detach() for p, n in self.names.items()}
        for optimizer in self.optimizers:
            for parameter, state in optimizer.state.items():
                tensors |= {f"{key}/{self.names[parameter]}": value for key, value in state.items()}
        counts = {"steps": str(self.steps), "tokens": str(self.tokens), "seconds": str(self.seconds)}
        partial = path.with_suffix(".partial")
        save_file(tensors, partial, counts)
        os.replace(partial, path)

    def load(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            counts = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        of_name = {name: parameter for parameter, name in self.names.items()}
        owner = {p: o for o in self.optimizers for p in o.param_groups[0]["params"]}
        for key, value in tensors.items():
            kind, name = key.split("/", 1)
            if kind == "model":
                of_name[name].data.copy_(value)
            else:
                owner[of_name[name]].state[of_name[name]][kind] = value
        self.steps, self.tokens, self.seconds = int(counts["steps"]), int(counts["tokens"]), float(counts["seconds"])

    def progress(self, budget: Budget) -> float:
        return max(self.tokens / budget.tokens, self.seconds / budget.seconds)

    def step(self, ids: Tensor, real: Tensor, share: float) -> Tensor:
        """One step on ids [B, T], of which the first `real` of each row count; returns the mean loss in nats."""
        factor = max(0.0, min((share + 1e-3) / WARM_UP_SHARE, 1.0, (1 - share) / DECAY_SHARE))
        hidden = self.model.gpt_neox(input_ids=ids, use_cache=False).last_hidden_state  # [B, T, d]
        scored = torch.arange(1, CONTEXT) < real[:, None]  # [B, T − 1]
        weight = self.model.gpt_neox.embed_in.weight
        loss: Tensor = MeanCrossEntropy.apply(hidden[:, :-1][scored], weight, ids[:, 1:][scored])
        loss.backward()
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad()
        self.steps += 1
        self.tokens += int(scored.sum())
        return loss.detach()


def train(run: Run, documents: list[Tensor], budget: Budget, seed: int, checkpoint: Path) -> None:
    """Train to the budget; Ctrl-C, or a kill, saves a checkpoint and leaves."""
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell in the background has turned Ctrl-C off
        signal.signal(number, signal.default_int_handler)
    stream = batches(documents, seed, run.steps)
    said, saved, losses, since = time.monotonic(), time.monotonic(), [], run.tokens
    try:
        while (share := run.progress(budget)) < 1:
            began = time.monotonic()
            losses.append(run.step(*next(stream), share))
            run.seconds += (now := time.monotonic()) - began
            if now - said > 20:
                mean, rate = torch.stack(losses).mean().item(), (run.tokens - since) / (now - said)
                left = run.seconds * (1 / share - 1) / 60 if share else math.inf
                print(
                    f"step {run.steps:5d}  {run.tokens / 1e6:6.2f}M tokens  loss {mean:.3f} nats  "
                    f"{rate:5.0f} tokens/s  {100 * share:4.1f} %  {left:.0f} min left",
                    flush=True,
                )
                said, losses, since = now, [], run.tokens
            if now - saved > 180:
                run.save(checkpoint)
                saved = now
    except KeyboardInterrupt:
        run.save(checkpoint)
        raise SystemExit(f"stopped at step {run.steps}; --resume goes on from {checkpoint}.") from None
    run.save(checkpoint)


# Evaluation


class Score(NamedTuple):
    """How well held-out text is predicted. Every token and so every byte of every document is scored."""

    nats_per_token: float
    bits_per_byte: float
    tokens: int
    bytes: int


@torch.no_grad()
def evaluate(model: torch.nn.Module, documents: list[Tensor], n_bytes: int, stride: int = 64) -> Score:
    """Sliding windows of BOS + 255 tokens of one document; each token is scored in the first window that has it."""
    windows = []
    for ids in documents:
        last = max(0, len(ids) - WINDOW)
        done = 0
        for start in [*range(0, last, stride), last]:
            piece = ids[start : start + WINDOW]
            windows.append((pad(piece, (1, WINDOW - len(piece)), value=BOS), done - start, len(piece)))
            done = start + len(piece)
    nats = 0.0
    for i in range(0, len(windows), 32):
        ids, first, end = zip(*windows[i : i + 32], strict=True)
        inputs = torch.stack(ids)
        at = torch.arange(WINDOW)
        scored = (at >= torch.tensor(first)[:, None]) & (at < torch.tensor(end)[:, None])
        logits = model(input_ids=inputs, use_cache=False).logits[:, :-1][scored].float()
        nats += torch.nn.functional.cross_entropy(logits, inputs[:, 1:][scored], reduction="sum").item()
    tokens = sum(len(ids) for ids in documents)
    return Score(nats / tokens, nats / math.log(2) / n_bytes, tokens, n_bytes)


def xz_bits_per_byte(texts: list[str]) -> float:
    """What `xz -9` needs for the same text in one piece."""
    data = "".join(texts).encode()
    return 8 * len(lzma.compress(data, preset=9)) / len(data)


# The folder


def save_model(run: Run, tokenizer: Tokenizer, folder: Path) -> None:
    """Weights in bfloat16; the config says float32, so that they load as what a CPU is fast at."""
    folder.mkdir(parents=True, exist_ok=True)
    run.model.bfloat16().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


CARD = """\
---
license: mit
library_name: transformers
pipeline_tag: text-generation
---

# {title}

A {parameters:.1f}M-parameter GPT-NeoX {purpose}

| | |
|---|---|
| Held-out loss | **{score.nats_per_token:.4f} nats per token, {score.bits_per_byte:.4f} bits per byte** |
| `xz -9` on the same bytes in one piece | {xz:.3f} bits per byte ({ratio:.2f} × xz) |
| Held-out text | {held_documents} documents, {score.bytes:,} bytes, {score.tokens:,} tokens, all scored |
| Training text | {train_documents} documents, {train_bytes:,} bytes, {train_tokens:,} tokens |
| Tokens seen | {seen:,} ({epochs:.1f} epochs), {steps:,} steps of {sequences} × {context} |
| Shape | {layers} layers, width {width}, {heads} heads, context {context}, sequential residual, tied embeddings |
| Tokens | byte-level BPE, {vocabulary:,} entries; `{end}` (id 0) is BOS, EOS and pad; encoding is lossless |
| Weights | bfloat16 on disk; the config asks for float32 in memory |
| Trained | {minutes:.0f} minutes on {hardware}, Python {python}, torch {torch} |
| Command | `{command}` |

The learning-rate schedule follows the clock. With `--tokens {seen} --seed 0` it follows the number of tokens instead:
the batches are the same on every machine, and the weights differ slightly from these.

**Data.** {data} A document is held out when
the SHA-256 of its identity ({identity}) falls into the lowest tenth (`is_held_out`); held-out
documents were seen neither by the tokenizer nor by the model.

**Form of a context.** BOS, then up to {window} tokens of one document. The model was trained on nothing else: give
it BOS first, and only one document per context. BOS is an input and never a target, so the model does not
end its texts.

**Held-out loss.** Windows of BOS + {window} tokens in strides of 64, each token scored in the first window that has it;
the saved weights, computed in float32.

{licence}
"""


class CardText(NamedTuple):
    """The sentences of a card that depend on the text."""

    title: str
    purpose: str
    data: str
    identity: str
    licence: str


STDLIB_TEXT = CardText(
    "The bundled language model",
    "trained on the source of Python's standard library. It gives\n`jumpahead` a real language model on every machine, "
    "without a download. It writes Python and nothing else.",
    "Every `.py` file of the library except `test`, `encodings`, `lib2to3` and `site-packages`.",
    "a file's relative path",
    "**Licence.** The weights are under the project's MIT licence. They were trained on the Python standard library,\n"
    "© Python Software Foundation, under the PSF licence; its text is not stored here.",
)
OTHER_TEXT = CardText(
    "A small language model",
    "trained with `tools/train_tiny_lm.py` on a text of your own.",
    "The documents of the text named in the command.",
    "a file's relative path, a section's content",
    "**Licence.** That of the text.",
)


def processor() -> str:
    """What the machine calls its processor, as far as it says."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return f"{named[1].strip()} ({platform.machine()})" if named else f"{platform.machine()} processor"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "jumpahead" / "lm" / "tiny", help="folder of the model")
    parser.add_argument("--text", help="file or folder to train on instead of the standard library; needs --out")
    parser.add_argument("--separator", help="text between the documents of a file")
    parser.add_argument("--minutes", type=float, default=math.inf, help="training time (60 if --tokens is not given)")
    parser.add_argument("--tokens", type=float, default=math.inf, help="training tokens")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    for field, value in Size()._asdict().items():
        parser.add_argument(f"--{field}", type=int, default=value, help=f"{field} of the model ({value})")
    parser.add_argument("--scratch", type=Path, default=ROOT / "scratch" / "tiny_lm", help="folder of the checkpoint")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    args = parser.parse_args()
    if math.isinf(args.minutes) and math.isinf(args.tokens):
        args.minutes = 60.0
    if args.text and args.out == parser.get_default("out"):
        parser.error("--text needs --out: the bundled model is the one of the standard library.")
    checkpoint: Path = args.scratch / "checkpoint.safetensors"
    if args.resume and not checkpoint.exists():
        parser.error(f"--resume finds no checkpoint at {checkpoint}.")
    args.scratch.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("medium")  # oneDNN's float32 products: 133 against MKL's 107 GFLOP/s here

    documents = list(read_documents(args))
    held = [d for d in documents if is_held_out(d.identity, HELD_OUT_SHARE)]
    kept = [d for d in documents if not is_held_out(d.identity, HELD_OUT_SHARE)]
    tokenizer = train_tokenizer([d.text for d in kept])
    encoded = encode(tokenizer, [d.text for d in kept])
    print(f"{len(kept)} documents, {sum(map(len, encoded)):,} tokens to train on; {len(held)} held out", flush=True)

    run = Run(args.seed, Size(args.width, args.layers, args.heads))
    if args.resume:
        run.load(checkpoint)
    train(run, encoded, Budget(args.tokens, 60 * args.minutes), args.seed, checkpoint)
    save_model(run, tokenizer, args.out)
    write_card(run, args, tokenizer, kept, held)


def read_documents(args: argparse.Namespace) -> Iterator[Document]:
    """The documents of `--text`, or of the standard library."""
    if args.text is None:
        return stdlib_documents()
    return text_documents(TextConfig(source=args.text, separator=args.separator))


def write_card(
    run: Run, args: argparse.Namespace, tokenizer: Tokenizer, kept: list[Document], held: list[Document]
) -> None:
    """Score the folder that was just written, and say so in its README."""
    model = AutoModelForCausalLM.from_pretrained(args.out)
    texts = [d.text for d in held]
    score = evaluate(model, encode(tokenizer, texts), sum(len(t.encode()) for t in texts))
    xz = xz_bits_per_byte(texts)
    train_tokens = sum(map(len, encode(tokenizer, [d.text for d in kept])))
    limits = {"minutes": args.minutes, "tokens": args.tokens}
    text = {"text": args.text, "separator": args.separator}
    card = CARD.format(
        **(OTHER_TEXT if args.text else STDLIB_TEXT)._asdict(),
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        score=score,
        xz=xz,
        ratio=score.bits_per_byte / xz,
        held_documents=len(held),
        train_documents=len(kept),
        train_bytes=sum(len(d.text.encode()) for d in kept),
        train_tokens=train_tokens,
        seen=run.tokens,
        epochs=run.tokens / train_tokens,
        steps=run.steps,
        sequences=SEQUENCES_PER_BATCH,
        context=CONTEXT,
        window=WINDOW,
        layers=args.layers,
        width=args.width,
        heads=args.heads,
        vocabulary=VOCABULARY,
        end=END_OF_TEXT.replace("|", r"\|"),  # a bar would end the table's cell
        minutes=run.seconds / 60,
        hardware=f"{args.threads} threads of a shared {processor()}",
        python=platform.python_version(),
        torch=torch.__version__,
        command="python tools/train_tiny_lm.py "
        + " ".join(f"--{name} {value:g}" for name, value in limits.items() if math.isfinite(value))
        + "".join(f' --{name} "{value}"' for name, value in text.items() if value)
        + "".join(
            f" --{name} {getattr(args, name)}" for name, was in Size()._asdict().items() if getattr(args, name) != was
        )
        + f" --threads {args.threads} --seed {args.seed}",
    )
    (args.out / "README.md").write_text(card, encoding="utf-8")
    print(f"held-out: {score}; xz {xz:.3f} bits per byte; ratio {score.bits_per_byte / xz:.3f}", flush=True)


if __name__ == "__main__":
    main()
