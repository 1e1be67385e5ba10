"""Tiny language models of several families, with random weights and a byte-level tokenizer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported; tests run two at a time on two cores

if os.environ.get("TRITON_INTERPRET") == "1":  # `make test-gpu` where there is no GPU
    from tools.interpreter import prepare

    prepare()

# Small, but with every width different: d 24, MLP 40, heads concatenated 24 or 32, vocabulary 300.
VOCABULARY = 300
CONTEXT = 64
SHARED = Path(__file__).resolve().parents[2] / "shared"
BROWSER_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


def _configs():
    import transformers

    ids = {"bos_token_id": 0, "eos_token_id": 1}
    common = {"vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "hidden_size": 24, **ids}
    llama = {**common, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 8}
    pictures = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    return {
        "gpt2": transformers.GPT2Config(
            vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=24, n_layer=3, n_head=3, **ids
        ),
        "neox": transformers.GPTNeoXConfig(
            **common, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3, use_parallel_residual=True
        ),
        "neox-serial": transformers.GPTNeoXConfig(
            **common, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3, use_parallel_residual=False
        ),
        "llama": transformers.LlamaConfig(**llama, num_key_value_heads=2),
        "mistral": transformers.MistralConfig(**llama, num_key_value_heads=2, sliding_window=8),
        "qwen3": transformers.Qwen3Config(**llama, num_key_value_heads=2),
        "gemma2": transformers.Gemma2Config(**llama, num_key_value_heads=2, sliding_window=8),
        "gemma3": transformers.Gemma3TextConfig(**llama, num_key_value_heads=2, sliding_window=8),
        "gemma3-multimodal": transformers.Gemma3Config(
            text_config={**llama, "num_key_value_heads": 2, "sliding_window": 8},
            vision_config={**pictures, "image_size": 28, "patch_size": 14},
            **ids,
        ),
        # Attention and MLP beside each other, on one norm.
        "phi": transformers.PhiConfig(
            **common, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3, partial_rotary_factor=0.5
        ),
        # Its blocks flatten contexts before the MLP, which is no module of its own.
        "opt": transformers.OPTConfig(
            **common, ffn_dim=40, num_hidden_layers=3, num_attention_heads=3, word_embed_proj_dim=24, pad_token_id=1
        ),
        # The classes and the depths that studies/ are written for.
        "pythia-70m": transformers.GPTNeoXConfig(
            **common, intermediate_size=40, num_hidden_layers=6, num_attention_heads=3
        ),
        "gemma-2-2b": transformers.Gemma2Config(**{**llama, "num_hidden_layers": 26}, num_key_value_heads=2),
        # Its blocks return tuples, its attention's projection is called `out_proj`.
        "gptj": transformers.GPTJConfig(
            vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=24, n_layer=3, n_head=3, rotary_dim=4, **ids
        ),
    }


def byte_tokenizer():
    """256 bytes after `<bos>` and `<eos>`; ids 0 and 1 are special."""
    import tokenizers
    import transformers

    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: id for id, token in enumerate(["<bos>", "<eos>", *letters])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", model_max_length=CONTEXT
    )


@pytest.fixture(scope="session")
def lm_folder(tmp_path_factory):
    """`lm_folder("llama")` is the folder of a random model of that family in Hugging Face format."""
    import torch
    import transformers

    made = {}

    def make(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            with torch.random.fork_rng():
                torch.manual_seed(5)
                model = transformers.AutoModelForCausalLM.from_config(_configs()[family])
                for parameter in model.parameters():  # large enough that every part of the model matters
                    torch.nn.init.normal_(parameter, std=0.2)
            model.save_pretrained(folder)
            byte_tokenizer().save_pretrained(folder)
            made[family] = folder
        return made[family]

    return make


@pytest.fixture(scope="session")
def lm_of(lm_folder):
    """`lm_of("llama")` is that model, loaded once."""
    from jumpahead.lm.config import LMConfig
    from jumpahead.lm.model import LM

    loaded = {}

    def load(family: str) -> LM:
        if family not in loaded:
            loaded[family] = LM.load(LMConfig(model=str(lm_folder(family)), context=32, batch=4))
        return loaded[family]

    return load


@pytest.fixture(scope="session")
def shared():
    """The folder of large shared material beside the repository; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("there is no ../shared beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless chromium; where there is none, the tests that need it are skipped, or fail with BROWSER=required."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="the page's behaviour is not tested: no playwright")
    path = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
    if path is None and os.environ.get("BROWSER") == "required":
        pytest.fail("BROWSER=required, and there is no chromium (Debian: apt-get install chromium)")
    if path is None:
        pytest.skip("the page's behaviour is not tested: no chromium (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(BROWSER_FLAGS))
        yield browser
        browser.close()
