"""Live activations: the right positions in the right order, the unit, and what is refused."""

import numpy as np
import pytest
import torch

from jumpahead.activations.config import ActivationsConfig
from jumpahead.activations.origins import ORIGINS
from jumpahead.activations.origins.live import Live
from jumpahead.errors import DataError, SiteError, StudyError
from jumpahead.text.documents import is_held_out
from jumpahead.text.source import Document
from jumpahead.text.tokenize import tokenize

SITES = ["layers.0.attention", "layers.1.residual", "layers.1.mlp"]


def documents(count):
    found = (Document(f"doc {i}", f"This is document {i}, <eos> it says {'more ' * (i % 17)}.") for i in range(10**6))
    return [d for d, _ in zip((d for d in found if not is_held_out(d.identity, 0.1)), range(count), strict=False)]


@pytest.fixture(scope="module")
def contexts(lm_of):
    return tokenize(documents(30), lm_of("llama"), split="train")


@pytest.fixture(scope="module")
def live(lm_of, contexts):
    return Live(lm_of("llama"), contexts, SITES, block=12)


def test_rows_are_the_trained_positions_of_each_context(live, contexts, lm_of):
    assert live.widths == {"layers.0.attention": 32, "layers.1.residual": 24, "layers.1.mlp": 24}
    assert list(live.widths) == SITES
    for group in (0, contexts.num_groups - 1):
        rows = live.rows(group)
        whole = lm_of("llama").read(contexts.ids(group), SITES)
        assert list(rows) == SITES
        for site, x in rows.items():
            expected = [
                whole[site][i, t]
                for i, context in enumerate(contexts.ids(group))
                for t, token in enumerate(context)
                if t and token > 1 and t < 1 + contexts.chunk_length[contexts.context_slice(group)][i]
            ]
            assert torch.equal(x, torch.stack(expected))
            assert len(x) == live.rows_per_group[group]
            assert x.dtype == torch.float32
            assert not x.is_inference()


def test_the_same_group_gives_the_same_bytes_whenever_it_is_asked_for(live):
    first = live.rows(1)
    live.rows(0)
    assert all(torch.equal(x, first[site]) for site, x in live.rows(1).items())


def test_rows_have_the_dtype_of_the_study(lm_of, contexts, live):
    half = Live(lm_of("llama"), contexts, SITES, dtype="bfloat16")
    assert all(x.dtype == torch.bfloat16 for x in half.rows(0).values())
    assert half.digest != live.digest
    assert all(torch.equal(x, live.rows(0)[site].bfloat16()) for site, x in half.rows(0).items())


def test_the_error_for_a_value_that_is_not_finite_names_its_position(lm_of, contexts):
    lm = lm_of("llama")
    group, ids = 2, contexts.ids(2)
    context, position = (int(i) for i in np.argwhere(contexts.trained_mask(group))[20])
    document = contexts.document_names[contexts.chunk_documents(group)[context]]

    def poison(_module, args, output):
        if args[0].shape[:2] == ids.shape:
            output = output.clone()
            output[context, position, 3] = float("nan")
        return output

    handle = lm.blocks[1].register_forward_hook(poison)
    try:
        where = rf"\(group 2, context {context}, position {position}\)"
        says = rf"layers\.1\.residual of {document} has the activation nan {where}: leave the document out"
        with pytest.raises(DataError, match=says):
            Live(lm, contexts, ["layers.1.residual"]).rows(group)
    finally:
        handle.remove()


def test_the_error_for_an_overflow_of_float16_names_the_remedy(lm_of, contexts):
    lm = lm_of("llama")
    handle = lm.blocks[0].register_forward_hook(lambda _m, _a, output: output * 1e6)
    try:
        with pytest.raises(DataError, match=r"has the activation -?inf .* activations\.dtype = 'float32'"):
            Live(lm, contexts, ["layers.0.residual"], dtype="float16").rows(0)
    finally:
        handle.remove()


def test_origins_are_the_files_of_the_folder(lm_of, contexts, tmp_path):
    assert ORIGINS.names() == ["live", "shards", "synthetic", "tensors"]
    config = ActivationsConfig(sites=("blocks.1.hook_mlp_out", "layers.1.mlp"), block=9)
    assert config.sites == ("layers.1.mlp",)
    opened = ORIGINS.get(config.origin).open(config, lm=lm_of("llama"), contexts=contexts, folder=tmp_path)
    assert isinstance(opened, Live)
    assert opened.groups_per_block == 2
    with pytest.raises(StudyError, match=r"no origin of activations 'lives'\. Did you mean 'live'"):
        ORIGINS.get("lives")
    with pytest.raises(SiteError, match=r"Did you mean 'layers\.2\.mlp'"):
        ActivationsConfig(sites=("layer.2.mlp",))
