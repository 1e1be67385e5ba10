"""The checks of a model before a run uses it, and that each of them can fail."""

import pytest
import torch

from jumpahead.errors import StudyError
from jumpahead.lm import checks
from jumpahead.lm.checks import check_and_truncate
from jumpahead.lm.config import LMConfig
from jumpahead.lm.model import LM
from jumpahead.lm.sites import KINDS, Site

FAMILIES = ("gpt2", "neox", "llama", "mistral", "qwen3", "gemma2", "gemma3", "gemma3-multimodal", "phi", "opt", "gptj")
SITES = ["layers.0.mlp", "layers.1.attention", "layers.1.residual"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes(lm_folder, family):
    lm = LM.load(str(lm_folder(family)))
    passed = check_and_truncate(lm, SITES)
    kinds = [line.partition(":")[0] for line in passed]
    assert kinds == ["site", *["identity"] * 3, "hidden state", "causal", "truncated"]
    assert not list(lm.blocks[2].parameters())


def test_the_last_block_and_modules_outside_are_checked_too(lm_folder):
    lm = LM.load(str(lm_folder("llama")))
    passed = check_and_truncate(
        lm, [*(Site(2, kind).key for kind in KINDS), "model.norm.output", "model.embed_tokens.output"]
    )
    assert not any("hidden" in line for line in passed)  # what transformers reports there is after the final norm
    assert list(lm.blocks[2].parameters())


class Changed:
    """A module's forward method with a change of its output."""

    def __init__(self, module, change):
        self.forward, self.change = module.forward, change

    def __call__(self, *args, **kwargs):
        return self.change(self.forward(*args, **kwargs))


def change_output(module, change):
    module.forward = Changed(module, change)


def test_a_model_that_is_not_causal_is_refused(lm_folder):
    lm = LM.load(str(lm_folder("llama")))
    change_output(lm.blocks[0].mlp, lambda x: x + 0.01 * x.mean(1, keepdim=True))
    with pytest.raises(
        StudyError, match=r"llama\d*' \(LlamaForCausalLM\) cannot be evaluated: layers\.0\.mlp depends on later tokens"
    ):
        check_and_truncate(lm, SITES)


def test_a_model_with_connections_past_a_block_is_refused(lm_folder):
    lm = LM.load(str(lm_folder("llama")))
    outputs = []

    def remember(x):
        outputs.append(x)
        return x

    change_output(lm.blocks[0], remember)  # block 2 also takes the output of block 0, past block 1
    change_output(lm.blocks[2], lambda x: x + 0.1 * outputs[-1] * (1 + len(outputs)))
    with pytest.raises(StudyError, match=r"changes its logits|it gives other logits"):
        check_and_truncate(lm, ["layers.1.residual"])


def test_a_site_without_influence_is_refused(lm_folder):
    lm = LM.load(str(lm_folder("llama")))
    change_output(lm.model.lm_head, torch.zeros_like)
    with pytest.raises(StudyError, match=r"its logits do not depend on layers\.1\.mlp"):
        check_and_truncate(lm, ["layers.1.mlp"])


def test_other_hidden_states_are_refused(lm_folder, monkeypatch):
    lm = LM.load(str(lm_folder("llama")))
    states = checks._hidden_states(lm, checks._test_ids(lm))
    monkeypatch.setattr(checks, "_hidden_states", lambda *_: [1.001 * x for x in states])
    with pytest.raises(StudyError, match=r"layers\.1\.residual is not the hidden state that the model reports"):
        check_and_truncate(lm, ["layers.1.residual"])


def test_a_truncated_model_with_other_activations_is_refused(lm_folder, monkeypatch):
    lm = LM.load(str(lm_folder("llama")))

    def truncate(sites):
        lm.blocks[0].mlp.down_proj.weight *= 1.01

    monkeypatch.setattr(lm, "truncate_after", truncate)
    with pytest.raises(StudyError, match=r"truncated after its last site it gives other activations at layers\.1"):
        check_and_truncate(lm, ["layers.1.residual"])


def test_the_test_tokens_are_ordinary_ones_after_bos(lm_folder):
    ids = checks._test_ids(LM.load(str(lm_folder("gpt2"))))
    assert ids[:, 0].tolist() == [0, 0, 0]
    assert not bool((ids[:, 1:] < 2).any())
    without = checks._test_ids(LM.load(LMConfig(model=str(lm_folder("gpt2")), bos="none", context=5)))
    assert without.shape == (3, 5)
    assert not bool((without < 2).any())
