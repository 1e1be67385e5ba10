"""What a model is checked for before a run trusts it, and that each check can fail."""

import pytest
import torch

from jumpahead.errors import StudyError
from jumpahead.lm import checks
from jumpahead.lm.config import LMConfig
from jumpahead.lm.model import LM
from jumpahead.lm.sites import KINDS, Site

FAMILIES = ("gpt2", "neox", "llama", "mistral", "qwen3", "gemma2", "gemma3", "gemma3-multimodal", "phi", "opt", "gptj")
SITES = ["layers.0.mlp", "layers.1.attention", "layers.1.residual"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes(lm_folder, family):
    lm = LM.load(str(lm_folder(family)))
    passed = checks.examine(lm, SITES)
    assert [line.partition(":")[0] for line in passed] == ["identity"] * 3 + ["hidden state", "causal", "truncated"]
    assert not list(lm.blocks[2].parameters())


def test_the_last_block_and_modules_outside_are_checked_too(lm_folder):
    lm = LM.load(str(lm_folder("llama")))
    passed = checks.examine(
        lm, [*(Site(2, kind).key for kind in KINDS), "model.norm.output", "model.embed_tokens.output"]
    )
    assert not any("hidden" in line for line in passed)  # what transformers reports there is after the final norm
    assert list(lm.blocks[2].parameters())


class Spoilt:
    """A forward method of a module with something done to what it returns."""

    def __init__(self, module, change):
        self.forward, self.change = module.forward, change

    def __call__(self, *args, **kwargs):
        return self.change(self.forward(*args, **kwargs))


def spoil(module, change):
    module.forward = Spoilt(module, change)


def test_a_model_that_looks_ahead_is_refused(lm_folder):
    lm = LM.load(str(lm_folder("llama")))
    spoil(lm.blocks[0].mlp, lambda x: x + 0.01 * x.mean(1, keepdim=True))
    with pytest.raises(
        StudyError, match=r"llama\d*' \(LlamaForCausalLM\) cannot be measured: layers\.0\.mlp depends on later tokens"
    ):
        checks.examine(lm, SITES)


def test_a_model_whose_blocks_do_more_than_pass_on_is_refused(lm_folder):
    lm = LM.load(str(lm_folder("llama")))
    kept = []

    def remember(x):
        kept.append(x)
        return x

    spoil(lm.blocks[0], remember)  # block 2 takes a share of what block 0 made, past block 1
    spoil(lm.blocks[2], lambda x: x + 0.1 * kept[-1] * (1 + len(kept)))
    with pytest.raises(StudyError, match=r"changes its logits|it gives other logits"):
        checks.examine(lm, ["layers.1.residual"])


def test_a_site_that_nothing_reads_is_refused(lm_folder):
    lm = LM.load(str(lm_folder("llama")))
    spoil(lm.model.lm_head, torch.zeros_like)
    with pytest.raises(StudyError, match=r"its logits do not depend on layers\.1\.mlp"):
        checks.examine(lm, ["layers.1.mlp"])


def test_other_hidden_states_are_refused(lm_folder, monkeypatch):
    lm = LM.load(str(lm_folder("llama")))
    states = checks._hidden_states(lm, checks._tokens(lm))
    monkeypatch.setattr(checks, "_hidden_states", lambda *_: {block: 1.001 * x for block, x in states.items()})
    with pytest.raises(StudyError, match=r"layers\.1\.residual is not the hidden state that the model reports"):
        checks.examine(lm, ["layers.1.residual"])


def test_a_cut_model_that_reads_otherwise_is_refused(lm_folder, monkeypatch):
    lm = LM.load(str(lm_folder("llama")))

    def cut(sites):
        lm.blocks[0].mlp.down_proj.weight *= 1.01

    monkeypatch.setattr(lm, "keep_only", cut)
    with pytest.raises(StudyError, match=r"cut after its last site it reads other activations at layers\.1\.residual"):
        checks.examine(lm, ["layers.1.residual"])


def test_tokens_are_ordinary_ones_behind_bos(lm_folder):
    ids = checks._tokens(LM.load(str(lm_folder("gpt2"))))
    assert ids[:, 0].tolist() == [0, 0, 0]
    assert not bool((ids[:, 1:] < 2).any())
    without = checks._tokens(LM.load(LMConfig(model=str(lm_folder("gpt2")), bos="none", context=5)))
    assert without.shape == (3, 5)
    assert not bool((without < 2).any())
