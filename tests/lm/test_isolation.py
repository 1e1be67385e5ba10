"""Isolated packing: packed documents have the activations that they have alone; other models are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from jumpahead.errors import StudyError
from jumpahead.evaluation.evaluate import evaluate
from jumpahead.evaluation.held_out import HeldOut
from jumpahead.lm import isolation
from jumpahead.lm.config import LMConfig
from jumpahead.lm.isolation import check_isolation
from jumpahead.lm.model import LM
from jumpahead.sae.saved import SAE
from jumpahead.text.documents import is_held_out
from jumpahead.text.source import Document
from jumpahead.text.tokenize import tokenize
from tests.conftest import byte_tokenizer
from tests.engine.cases import CASES, random_state

FAMILIES = ["gpt2", "neox", "llama", "gemma2", "gptj"]
SITES = ["layers.0.attention", "layers.1.residual", "layers.2.mlp"]


def documents(split="train", count=9):
    """Return documents of 4 to 40 letters, for contexts of 32 tokens."""
    random, found, number = np.random.default_rng(6), [], 0
    while len(found) < count:
        number += 1
        if is_held_out(f"{number}", 0.1) == (split == "held_out"):
            text = "".join(random.choice(list("abcdefgh \n"), random.integers(4, 41)))
            found.append(Document(f"{number}", text[:3] + "<eos>" + text[3:] if number % 3 else text))
    return found


def chunks_alone(contexts):
    """Yield the token ids of every chunk as a context of its own, in order."""
    lead = [] if contexts.bos_id is None else [contexts.bos_id]
    for start, length in zip(contexts.chunk_start, contexts.chunk_length, strict=True):
        yield [*lead, *contexts.tokens[start : start + length].tolist()]


@pytest.mark.parametrize("bos", ["auto", "none"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_have_the_activations_that_they_have_alone(lm_folder, family, bos):
    lm = LM.load(LMConfig(model=str(lm_folder(family)), context=32, batch=3, bos=bos))
    check_isolation(lm)
    check_isolation(lm, SITES)
    contexts = tokenize(documents(), lm, split="train", packing="isolated")
    assert max(contexts.chunks_per_context) > 2
    alone = chunks_alone(contexts)
    for group in range(contexts.num_groups):
        ids, positions, chunk = contexts.ids(group), contexts.position_ids(group), contexts.chunk_index(group)
        read, logits = lm.read(ids, SITES, positions), lm.logits(ids, positions)
        for number in range(len(contexts.chunk_documents(group))):
            here = torch.from_numpy(chunk == number)
            wanted = next(alone)
            assert ids[chunk == number].tolist() == wanted
            own = lm.read([wanted], SITES)
            for site in SITES:
                torch.testing.assert_close(read[site][here], own[site][0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(logits[here], lm.logits([wanted])[0], rtol=1e-4, atol=1e-4)
        for site in SITES:  # the three ways to run the model agree
            resume = lm.run_to_site(ids, site, positions)
            assert torch.equal(resume.activation, read[site])
            assert torch.equal(lm.run_from_site(resume), logits)
            spliced = lm.splice(ids, site, lambda x: 0.5 * x, torch.from_numpy(contexts.trained_mask(group)), positions)
            half = torch.where(torch.from_numpy(contexts.trained_mask(group))[..., None], 0.5 * read[site], read[site])
            torch.testing.assert_close(lm.run_from_site(resume, half), spliced, rtol=1e-5, atol=1e-5)
    assert next(alone, None) is None


def test_without_positions_documents_see_each_other(lm_of):
    lm = lm_of("llama")
    contexts = tokenize(documents(), lm, split="train", packing="plain")
    assert contexts.position_ids(0) is None
    isolated = tokenize(documents(), lm, split="train", packing="isolated")
    assert (contexts.ids(0) == isolated.ids(0)).all()
    assert contexts.digest != isolated.digest
    seen, apart = lm.logits(contexts.ids(0)), lm.logits(isolated.ids(0), isolated.position_ids(0))
    first = torch.from_numpy(contexts.chunk_index(0) == 0)
    assert torch.allclose(seen[first], apart[first], atol=1e-4)
    second = torch.from_numpy(contexts.chunk_index(0)[0] == 1)
    assert not torch.allclose(seen[0, second], apart[0, second], atol=1e-2)


def test_sums_per_document_are_those_of_documents_that_are_not_packed(lm_of):
    """Delta LM loss, document by document: isolated documents have the loss that they have alone."""
    lm = lm_of("neox")
    state = random_state(next(case for case in CASES if case.architecture == "jumprelu"), 24, 150, 7, torch.float32)
    sae = SAE(state.arch, state.arch.fold(state.params, 2.5))
    found = {}
    for packing in ("none", "isolated", "plain"):
        contexts = tokenize(documents("held_out"), lm, split="held_out", packing=packing)
        text = HeldOut.first_groups(contexts, 10**9)
        found[packing] = evaluate({"it": sae}, lm, text, "layers.1.residual", torch.zeros(24))["it"]
        assert found[packing].documents["tokens"].sum() == text.tokens
    none, isolated, plain = found.values()
    for name, values in none.documents.items():
        np.testing.assert_allclose(isolated.documents[name], values, rtol=1e-5)
    for name, values in none.sums._asdict().items():
        np.testing.assert_allclose(getattr(isolated.sums, name), values, rtol=1e-4, atol=1e-5)
    assert np.array_equal(plain.documents["tokens"], none.documents["tokens"])
    assert not np.allclose(plain.documents["clean"], none.documents["clean"], rtol=1e-3)


# ---------------------------------------------------------------------------------------------- refused


def loaded(config, **changes):
    with torch.random.fork_rng():
        torch.manual_seed(8)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return LM(model, byte_tokenizer(), name="it", digest="d", config=LMConfig(context=32, **changes))


def test_a_model_that_takes_no_positions_is_refused():
    lm = loaded(transformers.BloomConfig(vocab_size=300, hidden_size=24, n_layer=2, n_head=3))
    with pytest.raises(StudyError, match=r"'it' cannot isolate .* context \(.*BloomForCausalLM.*lm\.packing = 'none'"):
        check_isolation(lm)


def test_a_recurrent_model_is_refused():
    config = transformers.MambaConfig(vocab_size=300, hidden_size=24, num_hidden_layers=2, state_size=4)
    with pytest.raises(StudyError, match=r"'it' cannot isolate"):
        check_isolation(loaded(config))


def change_positions(lm, monkeypatch, change):
    """Let the model take other positions than the caller gives."""
    forward = lm._forward

    def changed(inputs):
        given = inputs.position_ids
        return forward(inputs if given is None else inputs._replace(position_ids=change(given)))

    monkeypatch.setattr(lm, "_forward", changed)


@pytest.mark.parametrize("sites", [(), ("layers.1.residual",)])
@pytest.mark.parametrize(
    "harm",
    [
        lambda positions: None,  # no positions are passed
        lambda positions: positions * 0 + torch.arange(positions.shape[1]),  # passed, but without a mask
    ],
)
def test_documents_that_see_each_other_are_noticed(lm_of, monkeypatch, harm, sites):
    lm = lm_of("llama")
    change_positions(lm, monkeypatch, harm)
    with pytest.raises(StudyError, match=r"tested on its (logits|layers\.1\.residual)"):
        check_isolation(lm, sites)


def test_shifted_positions_are_noticed(lm_of, monkeypatch):
    """Documents are isolated, but at wrong positions, which changes a model with learned positions."""
    lm = lm_of("gpt2")
    change_positions(lm, monkeypatch, lambda positions: positions + 3 * (positions.shape[1] > max(isolation.LENGTHS)))
    with pytest.raises(StudyError, match=r"tested on its logits"):
        check_isolation(lm)
