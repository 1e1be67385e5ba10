"""The bundled language model is what its card says: small, complete, offline, and better than a compressor."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from jumpahead.lm.tiny import PATH
from jumpahead.text.documents import is_held_out
from jumpahead.text.sources.stdlib import stdlib_documents

CONTEXT = 256
SCORED = 128
"""Tokens scored of each window: the last ones, which have the longest context."""


@pytest.fixture(scope="module")
def loaded() -> Iterator[tuple[Any, Any]]:
    """Yield model and tokenizer, loaded while every connection is refused."""

    def refuse(*_: object) -> None:
        raise AssertionError("loading the bundled model must not touch the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        yield AutoModelForCausalLM.from_pretrained(PATH), AutoTokenizer.from_pretrained(PATH)


def card_number(pattern: str) -> float:
    found = re.search(pattern, (PATH / "README.md").read_text(encoding="utf-8"))
    assert found, f"the card has no {pattern}"
    return float(found[1])


def test_the_model_has_the_shape_of_the_card(loaded: tuple[Any, Any]) -> None:
    config = loaded[0].config
    assert config.model_type == "gpt_neox"
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (4, 256, 4096)
    assert config.max_position_embeddings == CONTEXT


def test_embeddings_are_tied_in_memory_and_stored_once(loaded: tuple[Any, Any]) -> None:
    model = loaded[0]
    assert model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    with safe_open(PATH / "model.safetensors", "pt") as file:
        assert not [key for key in file.keys() if "embed_out" in key or "lm_head" in key]  # noqa: SIM118


def test_weights_are_bfloat16_on_disk_and_float32_in_memory(loaded: tuple[Any, Any]) -> None:
    with safe_open(PATH / "model.safetensors", "pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"BF16"}  # noqa: SIM118
    assert {p.dtype for p in loaded[0].parameters()} == {torch.float32}


def test_the_folder_is_at_most_ten_megabytes() -> None:
    assert sum(p.stat().st_size for p in PATH.iterdir() if p.is_file()) <= 10_000_000


@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n\treturn x  # tabs\n\n\n",
        "one\r\ntwo\r\n\r\n\tthree\r",
        "  leading and trailing  ",
        "naïve Ωμέγα 漢字 🦘🏳️‍🌈",
        "NUL \x00 and \x1b[0m and \ufeff",
        "1234567890 0x7fff_ffff 1e-05",
        "don't 'clean' up , this . please ?",
        "",
    ],
)
def test_tokens_decode_to_the_same_text(loaded: tuple[Any, Any], text: str) -> None:
    tokenizer = loaded[1]
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_one_special_token_serves_as_bos_eos_and_pad(loaded: tuple[Any, Any]) -> None:
    tokenizer = loaded[1]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0, 0)
    assert tokenizer.all_special_ids == [0]
    assert tokenizer.encode("<|endoftext|>", add_special_tokens=False) == [0]
    assert len(tokenizer) == 4096


def held_out_windows(tokenizer: Any) -> torch.Tensor:
    """Return about one in eight of the windows, BOS + 255 tokens, that tile the held-out documents."""
    windows = []
    for document in stdlib_documents():
        if is_held_out(document.identity, 0.10):
            ids = torch.tensor(tokenizer.encode(document.text, add_special_tokens=False))
            windows += [ids[i : i + CONTEXT - 1] for i in range(0, len(ids) - CONTEXT + 2, 8 * (CONTEXT - 1))]
    return torch.nn.functional.pad(torch.stack(windows), (1, 0), value=0)


def test_the_held_out_loss_is_the_cards_and_better_than_xz(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    windows = held_out_windows(tokenizer)
    nats = 0.0
    with torch.no_grad():
        for ids in windows.split(16):
            logits = model(input_ids=ids, use_cache=False).logits[:, -SCORED - 1 : -1]
            nats += torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), ids[:, -SCORED:].flatten(), reduction="sum"
            ).item()
    tokens = tokenizer.convert_ids_to_tokens(windows[:, -SCORED:].flatten().tolist())
    n_bytes = sum(map(len, tokens))  # a byte-level token is written with one character per byte
    bits_per_byte = nats / torch.tensor(2.0).log().item() / n_bytes

    stated = card_number(r"([\d.]+) bits per byte\*\*")
    bar = 0.85 * card_number(r"xz -9.*\| ([\d.]+) bits per byte")
    assert stated <= bar
    assert bits_per_byte <= bar
    # A sample of one in sixteen tokens, and another Python's library may differ by some files: 8 % either way.
    assert bits_per_byte == pytest.approx(stated, rel=0.08)
