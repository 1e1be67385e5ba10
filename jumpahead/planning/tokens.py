"""The number of tokens of a study's text: counted if the run has tokenised it, else estimated from its bytes."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from jumpahead.errors import ArtefactError
from jumpahead.lm.config import LMConfig
from jumpahead.lm.model_files import cached_config_dir
from jumpahead.planning.table import TokenCounts
from jumpahead.storage.json_files import read_json
from jumpahead.storage.run_folder import Run
from jumpahead.study.schema import Study

if TYPE_CHECKING:
    from jumpahead.text.source import Source

DEFAULT_BYTES_PER_TOKEN = 4.0
"""Of English or code with tens of thousands of token ids; used if the tokenizer is not on this machine."""
MAX_BYTES_READ = 50_000_000
"""Bytes of text that are read for the estimate; the rest is assumed to be similar."""


def count_or_estimate_tokens(study: Study, run: Run, source: Source) -> TokenCounts:
    """Return the numbers of tokens: counted if the run has tokenised its text, else estimated from its bytes."""
    try:
        heads = [read_json(run.tokens / split / "contexts.json") for split in ("train", "held_out")]
        train, held_out = (head.get("role_tokens", head["tokens"]) for head in heads)
        context = sum(head["tokens"] for head in heads) - train - held_out
        return TokenCounts(train, held_out, is_counted=True, context=context)
    except (ArtefactError, KeyError):
        pass
    most = study.text.max_tokens or float("inf")
    if source.total_bytes is None:
        return TokenCounts(
            int(min(most, study.train.tokens)), int(min(most, study.evaluate.tokens)), False, is_known=False
        )
    train, held_out, chosen, sample = _count_bytes(source, source.total_bytes)
    per_token = _bytes_per_token(study.lm, sample)
    train, held_out = min(most, train / per_token), held_out / per_token
    context = int((1 - chosen) * (train + held_out))
    return TokenCounts(int(chosen * train), int(chosen * held_out), is_counted=False, context=context)


def _count_bytes(source: Source, total: int) -> tuple[float, float, float, str]:
    """Return the bytes of training and of held-out text, the share of them that is trained on or scored, and a sample.

    total: bytes of the whole text. Only conversations have a share below 1: other roles are context.
    """
    from jumpahead.text.documents import documents, is_held_out

    count = {False: 0, True: 0}
    chosen = 0
    sample: list[str] = []
    more = 1.0
    for document in documents(source):
        chosen += len(document.conversation.trained_text.encode()) if document.conversation else 0
        for text in itertools.chain([document.text], document.continuation):
            count[is_held_out(document.identity, source.config.held_out)] += len(text.encode("utf-8", "surrogatepass"))
            if sum(map(len, sample)) < 300_000:
                sample.append(text[:50_000])
            if sum(count.values()) > MAX_BYTES_READ:
                break
        if sum(count.values()) > MAX_BYTES_READ:
            more = max(1.0, total / max(1, source.bytes_read))
            break
    share = chosen / max(1, sum(count.values())) if source.config.chat else 1.0
    return count[False] * more, count[True] * more, share, "\n".join(sample)


def _bytes_per_token(config: LMConfig, sample: str) -> float:
    """Return the bytes per token of a sample, by the model's tokenizer.json; a default if it is not on this machine."""
    folder = cached_config_dir(config)
    file = folder / "tokenizer.json" if folder else None
    if file is None or not file.exists() or not sample:
        return DEFAULT_BYTES_PER_TOKEN
    from tokenizers import Tokenizer

    tokens = len(Tokenizer.from_file(str(file)).encode(sample, add_special_tokens=False).ids)
    return len(sample.encode("utf-8", "surrogatepass")) / max(1, tokens)
