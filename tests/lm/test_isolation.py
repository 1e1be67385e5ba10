"""Isolation: packed documents are what they are alone, and a model that mixes them is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from jumpahead.errors import StudyError
from jumpahead.evaluation import HeldOut, evaluate
from jumpahead.lm import isolation
from jumpahead.lm.config import LMConfig
from jumpahead.lm.model import LM
from jumpahead.sae.base import SAE
from jumpahead.text.contexts import tokenize
from jumpahead.text.documents import is_held_out
from jumpahead.text.source import Document
from tests.conftest import byte_tokenizer
from tests.engine.cases import CASES, scrambled

FAMILIES = ["gpt2", "neox", "llama", "gemma2", "gptj"]
SITES = ["layers.0.attention", "layers.1.residual", "layers.2.mlp"]


def documents(split="train", count=9):
    """Of 4 to 40 letters, contexts being of 32 tokens."""
    random, found, number = np.random.default_rng(6), [], 0
    while len(found) < count:
        number += 1
        if is_held_out(f"{number}", 0.1) == (split == "held_out"):
            text = "".join(random.choice(list("abcdefgh \n"), random.integers(4, 41)))
            found.append(Document(f"{number}", text[:3] + "<eos>" + text[3:] if number % 3 else text))
    return found


def chunks_alone(contexts):
    """The token ids of every chunk as a context of its own, in order."""
    lead = [] if contexts.bos_id is None else [contexts.bos_id]
    for start, length in zip(contexts.start, contexts.length, strict=True):
        yield [*lead, *contexts.tokens[start : start + length].tolist()]


@pytest.mark.parametrize("bos", ["auto", "none"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_are_what_they_are_alone(lm_folder, family, bos):
    lm = LM.load(LMConfig(model=str(lm_folder(family)), context=32, batch=3, bos=bos))
    isolation.check(lm)
    isolation.check(lm, SITES)
    contexts = tokenize(documents(), lm, split="train", packing="isolated")
    assert max(contexts.count) > 2
    alone = chunks_alone(contexts)
    for group in range(contexts.groups):
        ids, positions, chunk = contexts.ids(group), contexts.positions(group), contexts.chunk(group)
        read, logits = lm.read(ids, SITES, positions), lm.logits(ids, positions)
        for number in range(len(contexts.document(group))):
            here = torch.from_numpy(chunk == number)
            wanted = next(alone)
            assert ids[chunk == number].tolist() == wanted
            own = lm.read([wanted], SITES)
            for site in SITES:
                torch.testing.assert_close(read[site][here], own[site][0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(logits[here], lm.logits([wanted])[0], rtol=1e-4, atol=1e-4)
        for site in SITES:  # the three ways through the model are one
            resume = lm.resume_point(ids, site, positions)
            assert torch.equal(resume.activation, read[site])
            assert torch.equal(lm.finish(resume), logits)
            spliced = lm.splice(ids, site, lambda x: 0.5 * x, torch.from_numpy(contexts.trained(group)), positions)
            half = torch.where(torch.from_numpy(contexts.trained(group))[..., None], 0.5 * read[site], read[site])
            torch.testing.assert_close(lm.finish(resume, half), spliced, rtol=1e-5, atol=1e-5)
    assert next(alone, None) is None


def test_without_positions_documents_see_each_other(lm_of):
    lm = lm_of("llama")
    contexts = tokenize(documents(), lm, split="train", packing="plain")
    assert contexts.positions(0) is None
    isolated = tokenize(documents(), lm, split="train", packing="isolated")
    assert (contexts.ids(0) == isolated.ids(0)).all()
    assert contexts.digest != isolated.digest
    seen, apart = lm.logits(contexts.ids(0)), lm.logits(isolated.ids(0), isolated.positions(0))
    first = torch.from_numpy(contexts.chunk(0) == 0)
    assert torch.allclose(seen[first], apart[first], atol=1e-4)
    second = torch.from_numpy(contexts.chunk(0)[0] == 1)
    assert not torch.allclose(seen[0, second], apart[0, second], atol=1e-2)


def test_sums_per_document_are_those_of_documents_that_are_not_packed(lm_of):
    """Delta LM loss, document by document: isolated documents cost what they cost alone."""
    lm = lm_of("neox")
    state = scrambled(next(case for case in CASES if case.architecture == "jumprelu"), 24, 150, 7, torch.float32)
    sae = SAE(state.arch, state.arch.fold(state.p, 2.5))
    found = {}
    for packing in ("none", "isolated", "plain"):
        contexts = tokenize(documents("held_out"), lm, split="held_out", packing=packing)
        text = HeldOut.of(contexts, 10**9)
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
    with pytest.raises(StudyError, match=r"'it' cannot keep .* apart \(.*BloomForCausalLM.*use lm\.packing = 'none'"):
        isolation.check(lm)


def test_a_model_that_carries_state_along_is_refused():
    config = transformers.MambaConfig(vocab_size=300, hidden_size=24, num_hidden_layers=2, state_size=4)
    with pytest.raises(StudyError, match=r"'it' cannot keep"):
        isolation.check(loaded(config))


@pytest.mark.parametrize("sites", [(), ("layers.1.residual",)])
@pytest.mark.parametrize(
    "harm",
    [
        lambda positions: None,  # not told
        lambda positions: positions * 0 + torch.arange(positions.shape[1]),  # told, and no mask made
    ],
)
def test_documents_that_see_each_other_are_noticed(lm_of, monkeypatch, harm, sites):
    lm = lm_of("llama")
    forward = lm._forward
    monkeypatch.setattr(lm, "_forward", lambda ids, positions: forward(ids, harm(positions)))
    with pytest.raises(StudyError, match=r"tried on its (logits|layers\.1\.residual)"):
        isolation.check(lm, sites)


def test_positions_that_do_not_begin_again_are_noticed(lm_of, monkeypatch):
    """Kept apart, but at the wrong positions, which a model of learned positions feels."""
    lm = lm_of("gpt2")
    forward = lm._forward

    def shifted(ids, positions):
        return forward(ids, positions + 3 * (positions.shape[1] > max(isolation.LENGTHS)))

    monkeypatch.setattr(lm, "_forward", shifted)
    with pytest.raises(StudyError, match=r"tried on its logits"):
        isolation.check(lm)
