"""Conventions of model families that differ from Llama's: each is measured on a tiny random model, not assumed."""

from __future__ import annotations

import pytest
import torch

from jumpahead.errors import DataError, SiteError, StudyError
from jumpahead.lm.checks import check_and_truncate
from jumpahead.lm.loading import RemovedWeights
from jumpahead.lm.tokens import ordinary_ids
from tools.model_families import random_lm

ROWS, LENGTH = 4, 14


@pytest.fixture(scope="module")
def lm_named():
    """`lm_named("bloom")` is the family's tiny model, made once."""
    made = {}

    def get(family):
        if family not in made:
            made[family] = random_lm(family)
        return made[family]

    return get


def ids_of(lm):
    return torch.from_numpy(ordinary_ids(lm.is_special, lm.bos_id, ROWS, LENGTH))


MLPS = {
    # the residual is added inside the MLP
    "bloom": ".mlp.dense_4h_to_h.output",
    "mpt": ".ffn.down_proj.output",
    # the block multiplies the MLP's output by a number
    "granite": ".mlp.output × 0.22",
    "granite_swa": ".mlp.output × 0.22",
    "granitemoe": ".block_sparse_moe.output × 0.22",
    "minicpm3": f".mlp.output × {1.4 / 3**0.5:g}",
    "hyperclovax": ".post_norm2.output × 0.22",
    # a norm after the MLP
    "lfm3": ".post_ffn_norm.output",
    "gemma2": ".post_feedforward_layernorm.output",
    # attention is added into the tensor that the MLP returns
    "falcon": ".mlp.output",
    "rwkv": ".feed_forward.output",
    "modernbert-decoder": ".mlp.output",
    "llama": ".mlp.output",
}

MIXERS = {"rwkv": "attention.output", "lfm3": "conv.out_proj"}
"""The last product of what mixes positions in block 1, where that is no attention."""


@pytest.mark.parametrize("family", MLPS)
def test_an_mlp_site_is_what_the_mlp_adds(lm_named, family):
    """With attention silenced by its weights, block input + site = block output; and a run's checks pass."""
    lm = lm_named(family)
    assert lm.describe_site("layers.1.mlp").endswith(f".1{MLPS[family]}")
    if family in MIXERS:
        projection = lm.blocks[1].get_submodule(MIXERS[family])
    else:
        projection = lm.model.get_submodule(lm.describe_site("layers.1.attention").rpartition(".")[0])
    kept = {name: parameter.clone() for name, parameter in projection.named_parameters()}
    try:
        for parameter in projection.parameters():
            parameter.zero_()
        x = lm.read(ids_of(lm), ["layers.0.residual", "layers.1.mlp", "layers.1.residual"])
    finally:
        for name, parameter in projection.named_parameters():
            parameter.copy_(kept[name])
    added = x["layers.1.residual"] - x["layers.0.residual"]
    assert float(added.norm()) > 0.1
    torch.testing.assert_close(x["layers.1.mlp"], added, rtol=1e-4, atol=1e-4 * float(added.abs().max()))


@pytest.mark.parametrize("family", [*MLPS, "mamba", "mamba2", "falcon_mamba"])
def test_a_run_can_use_the_residual_and_the_mlp(family):
    lm = random_lm(family)
    sites = ["layers.1.residual", *(["layers.1.mlp"] if family in MLPS else [])]
    passed = check_and_truncate(lm, sites)
    assert "hidden state: layers.1.residual" in passed
    assert passed[-1] == f"truncated: {len(sites)} sites unchanged"


@pytest.mark.parametrize("family", ["granite", "bloom", "falcon"])
def test_zeroing_a_scaled_or_nested_site_takes_the_mlp_away(lm_named, family):
    lm = lm_named(family)
    ids = ids_of(lm)
    everywhere = torch.ones(ids.shape, dtype=torch.bool)
    point = lm.run_to_site(ids, "layers.1.mlp")
    zeroed = lm.run_from_site(point, torch.zeros_like(point.activation))
    assert torch.equal(lm.run_from_site(point), lm.logits(ids))
    assert torch.equal(lm.run_from_site(point), lm.logits(ids)), "a second time: the model may change its tensors"
    torch.testing.assert_close(lm.splice(ids, "layers.1.mlp", torch.zeros_like, everywhere), zeroed)
    module = lm.model.get_submodule(lm.describe_site("layers.1.mlp").rpartition(".output")[0])
    handle = module.register_forward_hook(lambda _module, _args, output: torch.zeros_like(output))
    try:
        torch.testing.assert_close(lm.logits(ids), zeroed)
    finally:
        handle.remove()


def test_a_paths_output_is_that_modules_output(lm_named):
    lm = lm_named("gemma2")
    ids, seen = ids_of(lm), []
    handle = lm.blocks[1].mlp.register_forward_hook(lambda _module, _args, output: seen.append(output.clone()))
    try:
        x = lm.read(ids, ["model.layers.1.mlp.output", "layers.1.residual"])
    finally:
        handle.remove()
    assert torch.equal(x["model.layers.1.mlp.output"], seen[-1])
    site = lm.read(ids, ["layers.1.mlp"])["layers.1.mlp"]
    assert torch.equal(site, lm.blocks[1].post_feedforward_layernorm(seen[-1]))


@pytest.mark.parametrize(
    ("family", "refused", "right"),
    [
        ("granitemoeshared", "layers.1.mlp", "layers.1.attention, model.layers.1.block_sparse_moe.output"),
        ("inkling_text", "layers.1.mlp", "layers.1.attention, model.layers.1.mlp.output"),
        ("gemma4_text", "layers.1.mlp", "layers.1.attention, model.layers.1.post_feedforward_layernorm.output"),
        ("bart", "layers.1.mlp", "layers.1.attention, model.decoder.layers.1.fc2.output"),
        ("mamba", "layers.1.mlp", "backbone.layers.1.norm.output"),
        ("longcat_flash", "layers.1.attention", "model.layers.1.mlp.output"),
    ],
)  # fmt: skip
def test_a_site_that_is_not_what_it_says_is_refused_with_those_that_are(lm_named, family, refused, right):
    lm = lm_named(family)
    with pytest.raises(SiteError, match=rf"has no {refused}: .*\. Try layers\.1\.residual, {right}"):
        lm.read(ids_of(lm), [refused])
    x = lm.read(ids_of(lm), ["layers.1.residual"])["layers.1.residual"]
    assert x.shape == (ROWS, LENGTH, 32)


@pytest.mark.parametrize(
    ("family", "shape"),
    [("deepseek_v4", "3, 2, 4, 32"), ("gemma3n_text", "4, 3, 2, 32"), ("qwen4_exp_text", "3, 2, 128")],
)
@pytest.mark.parametrize(
    "site", ["layers.1.residual", "layers.1.mlp", "layers.1.attention", "model.layers.1.mlp.output"]
)
def test_several_residual_streams_are_refused_at_every_site(lm_named, family, shape, site):
    lm = lm_named(family)
    for use in (lambda: lm.read(ids_of(lm), [site]), lambda: lm.run_to_site(ids_of(lm), site)):
        with pytest.raises(SiteError, match=rf"passes \[{shape}\] between blocks, not \[3, 2, 32\]: it has no single"):
            use()


def test_a_block_in_a_loop_is_refused_whatever_else_is_read(lm_named):
    lm = lm_named("dory")
    for sites in (["layers.1.residual"], ["layers.1.mlp", "layers.0.residual"], ["model.layers.1.mlp.output"]):
        with pytest.raises(
            SiteError, match=r"layers\.1.* cannot be a site of 'dory': block 1 runs 2 times .* \(a loop\)"
        ):
            lm.read(ids_of(lm), sites)
    outside = lm.read(ids_of(lm), ["model.embed_tokens.output"])["model.embed_tokens.output"]
    assert outside.shape == (ROWS, LENGTH, 32)


@pytest.mark.parametrize("site", ["layers.1.residual", "layers.2.attention", "model.layers.2.mlp.output"])
def test_blocks_that_share_keys_and_values_run_whole(lm_named, site):
    """Blocks 2 and 3 of this Gemma 4 take the keys and values of blocks 0 and 1: without those, it cannot go on."""
    lm = lm_named("gemma4_text")
    ids = ids_of(lm)
    assert not lm.can_resume(site)
    point = lm.run_to_site(ids, site)
    assert torch.equal(lm.run_from_site(point), lm.logits(ids))
    everywhere = torch.ones(ids.shape, dtype=torch.bool)
    expected = lm.splice(ids, site, lambda x: 0.5 * x, everywhere)
    assert torch.equal(lm.run_from_site(point, 0.5 * point.activation), expected)
    assert lm_named("llama").can_resume("layers.1.residual")


@pytest.mark.parametrize("family", ["bert", "bart"])
def test_a_truncated_model_keeps_the_attributes_that_its_code_reads(family, tmp_path):
    lm = random_lm(family)
    ids = ids_of(lm)
    before = lm.read(ids, ["layers.0.residual"])["layers.0.residual"]
    lm.truncate_after(["layers.0.residual"])
    assert torch.equal(lm.read(ids, ["layers.0.residual"])["layers.0.residual"], before)
    assert not list(lm.blocks[2].parameters())
    with pytest.raises(RemovedWeights):
        lm.logits(ids)


def test_the_longest_context_of_mpt(lm_named):
    from jumpahead.lm.model_shape import max_context

    lm = lm_named("mpt")
    assert max_context(lm.model.config) == 64
    lm.model.config.max_seq_len = 48
    assert max_context(lm.model.config) == 48


# ------------------------------------------------------------------------------------------ padding


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "opt", "gemma2", "mpt"])
def test_left_padded_rows_are_right_with_a_mask(lm_named, family):
    lm = lm_named(family)
    ids = ids_of(lm)
    padding = torch.full((ROWS, 5), 9)
    padded, mask = torch.cat([padding, ids], 1), torch.cat([torch.zeros_like(padding), torch.ones_like(ids)], 1)
    sites = ["layers.1.residual", "layers.1.mlp"]
    alone, beside = lm.read(ids, sites), lm.read(padded, sites, attention_mask=mask)
    for site in sites:
        torch.testing.assert_close(beside[site][:, 5:], alone[site], rtol=1e-3, atol=1e-4)
        wrong = lm.read(padded, [site])[site][:, 5:]
        assert float((wrong - alone[site]).norm() / alone[site].norm()) > 0.01
    torch.testing.assert_close(lm.logits(padded, None, mask)[:, 5:], lm.logits(ids), rtol=1e-3, atol=1e-3)
    spliced = lm.splice(padded, "layers.1.mlp", torch.zeros_like, attention_mask=mask)
    torch.testing.assert_close(spliced[:, 5:], lm.splice(ids, "layers.1.mlp", torch.zeros_like), rtol=1e-3, atol=1e-3)
    assert torch.equal(lm.spliceable(padded, mask)[:, 5:], lm.spliceable(ids))
    assert not lm.spliceable(padded, mask)[:, :5].any()


def test_a_model_that_ignores_the_mask_is_refused(lm_named):
    lm = lm_named("rwkv")
    ids = ids_of(lm)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    for use in (
        lambda: lm.read(ids, ["layers.1.residual"], attention_mask=mask),
        lambda: lm.logits(ids, attention_mask=mask),
        lambda: lm.splice(ids, "layers.1.residual", torch.zeros_like, attention_mask=mask),
    ):
        with pytest.raises(DataError, match=r"A RwkvForCausalLM ignores attention_mask .*: pad on the right"):
            use()
    assert lm.read(ids, ["layers.1.residual"], attention_mask=torch.ones_like(ids))  # no padding: nothing to ignore


def test_padding_on_the_left_without_a_mask_is_refused(lm_named):
    lm = random_lm("llama")
    ids = torch.tensor([[0, 5, 6, 7], [63, 63, 5, 6]])
    lm.read(ids, ["layers.1.residual"])  # the tokenizer has no padding token
    lm.tokenizer.add_special_tokens({"pad_token": "w63"})
    for use in (lm.logits, lambda ids: lm.read(ids, ["layers.1.mlp"]), lambda ids: lm.splice(ids, "layers.1.mlp", abs)):
        with pytest.raises(DataError, match=r"Row 1 begins with 2 padding tokens: pass attention_mask, or pad on"):
            use(ids)
    lm.logits([[0, 5, 63, 63], [63, 63, 63, 63]])  # on the right, or nothing else
    lm.tokenizer.pad_token = "<bos>"
    lm.logits([[0, 5, 6]])  # one BOS is a BOS
    with pytest.raises(DataError, match=r"Row 0 begins with 2 padding tokens"):
        lm.logits([[0, 0, 6]])


# ------------------------------------------------------------------------------------------ numbers that are not finite


def test_weights_that_are_not_finite_are_named():
    lm = random_lm("llama")
    lm.model.model.embed_tokens.weight[60] = float("nan")  # a row that no test token uses
    lm.model.lm_head.weight[60] = float("nan")
    with pytest.raises(StudyError, match=r"not finite in float32: the weights .*\.weight are not in row 60 of 64"):
        check_and_truncate(lm, ["layers.1.residual"])


def test_an_overflow_of_float16_is_named():
    lm = random_lm("llama")
    lm.model.half()
    lm.dtype = torch.float16
    lm.blocks[1].mlp.down_proj.weight *= 1e5
    lm.blocks[1].mlp.down_proj.weight.clamp_(-6e4, 6e4)
    with pytest.raises(StudyError, match=r"not finite in float16: .*layers\.1\.mlp\.\w+ overflows\. Set lm\.dtype"):
        check_and_truncate(lm, ["layers.1.residual"])


# ------------------------------------------------------------------------------------------ losses, before training


def test_a_model_that_predicts_nothing_and_a_site_that_does_nothing_are_said(tmp_path):
    import numpy as np

    from jumpahead.lm.loss_notes import loss_notes
    from jumpahead.text.config import TextConfig
    from jumpahead.text.sources import source_of

    numbers = np.random.default_rng(3).integers(2, 64, 3_000)
    for name, part in zip("abc", np.split(numbers, 3), strict=True):
        (tmp_path / f"{name}.txt").write_text(" ".join(f"w{number}" for number in part))
    source = source_of(TextConfig(source=str(tmp_path), held_out=0.3))
    lm = random_lm("llama")
    for parameter in lm.model.parameters():
        parameter *= 0.1
    notes = loss_notes(lm, source, ["layers.1.mlp"])
    assert len(notes) == 2
    assert "nats, near ln V = 4.16: it predicts little; check weights, tokenizer and text." in notes[0]
    assert notes[1].startswith("zeroing layers.1.mlp moves the loss by ")
    assert notes[1].endswith(" nats: delta LM loss can hardly tell SAEs apart there.")
    lm = random_lm("llama")
    lm.model.lm_head.weight.zero_()
    lm.model.lm_head.weight[5] = 1.0  # a loss that depends on the stream
    lm.model.model.norm.weight *= 5
    assert not any("zeroing" in note for note in loss_notes(lm, source, ["layers.1.mlp", "layers.2.residual"]))


def test_a_text_that_begins_with_bos_gets_one():
    import numpy as np

    from jumpahead.text.packing import drop_leading_bos

    tokens = np.array([0, 5, 6, 7, 0, 0, 8, 9, 4, 0, 3])
    start, length = drop_leading_bos(tokens, np.array([0, 4, 8]), np.array([4, 4, 3]), 0)
    assert (start.tolist(), length.tolist()) == ([1, 6, 8], [3, 2, 3])
    start, length = drop_leading_bos(np.zeros(6, np.uint16), np.array([0, 3]), np.array([3, 3]), 0)
    assert length.tolist() == [0, 0]
