"""Reading and splicing on several model families: bitwise, or against an independent hook."""

import pytest
import torch

from jumpahead.errors import DataError, SiteError
from jumpahead.lm.losses import next_token_nats
from jumpahead.lm.model import LM
from jumpahead.lm.sites import KINDS, Site

FAMILIES = (
    "gpt2", "neox", "neox-serial", "llama", "mistral", "qwen3", "gemma2", "gemma3", "gemma3-multimodal", "phi", "opt",
    "gptj",
)  # fmt: skip
SITES = [Site(layer, kind) for layer in (0, 1, 2) for kind in KINDS]


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request, lm_of):
    return lm_of(request.param)


@pytest.fixture(scope="module")
def ids():
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(2, 258, (3, 21), generator=generator)
    ids[:, 0] = 0
    ids[1, 9] = 1  # a special token in the middle
    return ids


def raw(lm, ids, **options):
    """Run the model with transformers alone."""
    with torch.no_grad():
        return lm.model(input_ids=ids, use_cache=False, **options)


# By model class, independently of hook_points.py: the list of blocks, the MLP's last module, the projection.
PARTS = {
    "GPT2LMHeadModel": ("transformer.h", "mlp", "attn.c_proj"),
    "GPTJForCausalLM": ("transformer.h", "mlp", "attn.out_proj"),
    "GPTNeoXForCausalLM": ("gpt_neox.layers", "mlp", "attention.dense"),
    "Gemma2ForCausalLM": ("model.layers", "post_feedforward_layernorm", "self_attn.o_proj"),
    "Gemma3ForCausalLM": ("model.layers", "post_feedforward_layernorm", "self_attn.o_proj"),
    "Gemma3ForConditionalGeneration": (
        "model.language_model.layers", "post_feedforward_layernorm", "self_attn.o_proj",
    ),
    "PhiForCausalLM": ("model.layers", "mlp", "self_attn.dense"),
    "OPTForCausalLM": ("model.decoder.layers", "fc2", "self_attn.out_proj"),
}  # fmt: skip


def parts_of(lm):
    return PARTS.get(type(lm.model).__name__, ("model.layers", "mlp", "self_attn.o_proj"))


def module_of(lm, site):
    if site.layer is None:
        return lm.model.get_submodule(site.path)
    blocks, mlp, projection = parts_of(lm)
    block = lm.model.get_submodule(blocks)[site.layer]
    return block if site.kind == "residual" else block.get_submodule(mlp if site.kind == "mlp" else projection)


def with_hook(lm, ids, site, change):
    """Return the logits with `change` applied at the site by an independent hook."""
    module = module_of(lm, site)

    def at(value):  # OPT's MLP takes [b·t, d]
        return change(value.view(*ids.shape, -1)).reshape(value.shape)

    def before(_module, args, kwargs):
        return (
            ((at(args[0]), *args[1:]), kwargs)
            if args
            else ((), {k: at(x) if k == "hidden_states" else x for k, x in kwargs.items()})
        )

    def after(_module, _args, output):
        return (at(output[0]), *output[1:]) if isinstance(output, tuple) else at(output)

    if site.kind in ("attention", "input"):
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = module.register_forward_hook(after)
    try:
        return raw(lm, ids).logits
    finally:
        handle.remove()


def is_untouched(lm):
    modules = list(lm.model.modules())
    return all("forward" not in vars(m) and not m._forward_pre_hooks for m in modules) and all(
        len(m._forward_hooks) == 0 or all("capturing" in h.__qualname__ for h in m._forward_hooks.values())
        for m in modules
    )


def test_residuals_are_the_hidden_states(lm, ids):
    states = raw(lm, ids, output_hidden_states=True).hidden_states
    found = lm.read(ids, ["layers.0.residual", "layers.1.residual"])
    assert torch.equal(found["layers.0.residual"], states[1])
    assert torch.equal(found["layers.1.residual"], states[2])
    # The last one of transformers is after the final norm; the block's own output is not.
    assert not torch.equal(lm.read(ids, ["layers.2.residual"])["layers.2.residual"], states[3])


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.key)
def test_every_site_reads_what_an_independent_hook_reads(lm, ids, site):
    seen = []
    with_hook(lm, ids, site, lambda x: seen.append(x.clone()) or x)
    found = lm.read(ids, [site])[site.key]
    assert torch.equal(found, seen[0])
    assert found.shape == (*ids.shape, lm.width_at(site))
    assert lm.width_at(site) == (32 if site.kind == "attention" and "o_proj" in parts_of(lm)[2] else 24)


def modules_of(lm):
    """Return sites at modules of all kinds: before, inside and after the blocks."""
    name_of = {module: path for path, module in lm.model.named_modules()}
    block = lm.blocks[1]
    leaves = [m for m in block.modules() if not [*m.children()] and m is not module_of(lm, Site(1, "attention"))]
    products = [m for m in leaves if m.__class__.__name__ in ("Linear", "Conv1D")]
    attention = next(m for path, m in block.named_children() if "att" in path and [*m.children()])
    norm = [m for m in lm.model.get_decoder().children() if "norm" in m.__class__.__name__.lower()][-1:]
    pairs = [(products[0], "input"), (products[-1], "output"), (products[-1], "input"), (attention, "input")]
    pairs += [(attention, "output"), (lm.model.get_input_embeddings(), "output"), (lm.blocks[0], "input")]
    pairs += [(lm.model.get_output_embeddings(), "input"), *((m, side) for m in norm for side in ("input", "output"))]
    return [Site(None, side, name_of[module]) for module, side in pairs]


def test_any_module_is_a_site(lm, ids):
    clean = raw(lm, ids).logits
    where = torch.zeros(ids.shape, dtype=torch.bool)
    where[0, 3:7] = where[2, 20] = True
    generator = torch.Generator().manual_seed(7)
    for site in modules_of(lm):
        seen = []
        with_hook(lm, ids, site, lambda x, seen=seen: seen.append(x.clone()) or x)
        assert torch.equal(lm.read(ids, [site])[site.key], seen[0]), site
        assert torch.equal(lm.read(ids, [site.key, "layers.1.mlp"])[site.key], seen[0]), site
        point = lm.run_to_site(ids, site)
        assert torch.equal(lm.run_from_site(point), clean), site
        assert torch.equal(lm.splice(ids, site, lambda x: x), clean), site
        noise = 0.3 * torch.randn(point.activation.shape, generator=generator)
        changed = with_hook(lm, ids, site, lambda x, noise=noise: x + noise)
        assert not torch.allclose(changed, clean, atol=1e-3), site
        assert torch.equal(lm.run_from_site(point, point.activation + noise), changed), site
        some = lm.run_from_site(point, point.activation + noise, where)
        torch.testing.assert_close(some, changed[where], rtol=1e-5, atol=1e-5)
    assert is_untouched(lm)


def test_resuming_after_all_blocks_runs_none_of_them(lm, ids):
    ran = []
    point = lm.run_to_site(ids, Site(None, "input", name_of_head(lm)))
    inner = [part for block in lm.blocks for part in block.modules() if not [*part.children()]]
    handles = [part.register_forward_pre_hook(lambda *_: ran.append(1)) for part in inner]
    try:
        lm.run_from_site(point)
    finally:
        for handle in handles:
            handle.remove()
    assert not ran


def name_of_head(lm):
    head = lm.model.get_output_embeddings()
    return next(path for path, module in lm.model.named_modules() if module is head)


def test_the_logits_themselves_can_be_spliced(lm, ids):
    where = torch.zeros(ids.shape, dtype=torch.bool)
    where[1, 4:8] = True
    point = lm.run_to_site(ids, f"{name_of_head(lm)}.output")
    new = torch.randn(point.activation.shape, generator=torch.Generator().manual_seed(2))
    spliced = lm.run_from_site(point, new)
    assert torch.equal(lm.run_from_site(point, new, where), spliced[where])
    assert torch.equal(point.activation.argmax(-1), raw(lm, ids).logits.argmax(-1))


def test_modules_that_cannot_be_sites(lm_of, ids):
    lm = lm_of("llama")
    with pytest.raises(
        SiteError,
        match=r"no module 'model\.layers\.1\.mlp\.up_prj'\. Did you mean 'model\.layers\.1\.mlp\.up_proj\.output'",
    ):
        lm.read(ids, ["model.layers.1.mlp.up_prj.output"])
    with pytest.raises(SiteError, match=r"no module 'zzz'\. Modules of the model are, for instance, model\."):
        lm.read(ids, ["zzz.output"])
    with pytest.raises(
        SiteError, match=r"no module 'up_proj'\. 3 modules end like that, for instance model\.layers\.0"
    ):
        lm.read(ids, ["up_proj.output"])
    with pytest.raises(SiteError, match=r"its module passes \[1, 21, 8\] of torch\.float32, not one"):
        lm.read(ids, ["model.rotary_emb.output"])
    with pytest.raises(SiteError, match=r"its module passes \[3, 21\] of torch\.int64"):
        lm.read(ids, ["model.embed_tokens.input"])
    with pytest.raises(
        SiteError, match=r"model\.layers\.output cannot be a site of .*: its module is not run in a forward pass"
    ):
        lm.run_to_site(ids, "model.layers.output")
    whole, end = "model.layers.1.mlp.up_proj.output", "layers.1.mlp.up_proj.output"
    assert torch.equal(lm.read(ids, [end])[end], lm.read(ids, [whole])[whole])
    assert is_untouched(lm)


def test_several_sites_in_one_pass_in_any_order(lm, ids):
    keys = [site.key for site in reversed(SITES)]
    together = lm.read(ids, keys)
    assert list(together) == keys
    for key in keys:
        assert torch.equal(together[key], lm.read(ids, [key])[key])


def test_reading_stops_after_the_last_site(lm, ids):
    ran = []
    handles = [block.register_forward_pre_hook(lambda *_, i=i: ran.append(i)) for i, block in enumerate(lm.blocks)]
    try:
        lm.read(ids, ["layers.1.residual", "layers.0.mlp"])
    finally:
        for handle in handles:
            handle.remove()
    assert ran == [0, 1]


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.key)
def test_identity_splice_is_bitwise_the_clean_model(lm, ids, site):
    clean = raw(lm, ids).logits
    point = lm.run_to_site(ids, site)
    assert torch.equal(point.activation, lm.read(ids, [site])[site.key])
    assert torch.equal(lm.splice(ids, site, lambda x: x), clean)
    assert torch.equal(lm.run_from_site(point), clean)
    assert torch.equal(lm.run_from_site(point, point.activation.clone()), clean)
    assert (
        float((next_token_nats(lm.run_from_site(point, point.activation), ids) - next_token_nats(clean, ids)).sum())
        == 0.0
    )
    assert is_untouched(lm)


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.key)
def test_zero_splice_is_zero_ablation(lm, ids, site):
    clean = raw(lm, ids).logits
    mask = torch.ones(ids.shape, dtype=torch.bool)
    mask[:, 0] = False
    mask[1, 9] = False
    expected = with_hook(lm, ids, site, lambda x: torch.where(mask[..., None], torch.zeros_like(x), x))
    assert not torch.allclose(expected, clean, atol=1e-3)
    point = lm.run_to_site(ids, site)
    kept = torch.where(mask[..., None], 0.0, point.activation)
    assert torch.equal(lm.run_from_site(point, kept), expected)
    assert torch.equal(lm.splice(ids, site, torch.zeros_like(point.activation)), expected)
    assert torch.equal(lm.splice(ids, site, torch.zeros_like), expected)
    everywhere = with_hook(lm, ids, site, torch.zeros_like)
    assert torch.equal(lm.splice(ids, site, torch.zeros_like, mask=torch.ones_like(mask)), everywhere)


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.key)
def test_resuming_equals_a_whole_forward_pass(lm, ids, site):
    generator = torch.Generator().manual_seed(11)
    noise = torch.randn(*ids.shape, lm.width_at(site), generator=generator)
    point = lm.run_to_site(ids, site)
    expected = with_hook(lm, ids, site, lambda x: x + 0.3 * noise)
    assert torch.equal(lm.run_from_site(point, point.activation + 0.3 * noise), expected)
    assert torch.equal(lm.run_from_site(point), raw(lm, ids).logits)  # a splice removes its hooks


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.key)
def test_a_logit_mask_gives_the_logits_of_its_positions(lm, ids, site):
    where = torch.zeros(ids.shape, dtype=torch.bool)
    where[0, 3:7] = where[2, 20] = True
    point = lm.run_to_site(ids, site)
    for activation in (None, 0.5 * point.activation):
        some = lm.run_from_site(point, activation, where)
        assert some.shape == (5, lm.vocab_size)
        torch.testing.assert_close(some, lm.run_from_site(point, activation)[where], rtol=1e-5, atol=1e-5)
    assert torch.equal(lm.run_from_site(point, None, where), lm.run_from_site(point, point.activation, where))
    assert is_untouched(lm)


def test_a_logit_mask_works_without_an_output_embedding(lm, ids, monkeypatch):
    where = torch.zeros(ids.shape, dtype=torch.bool)
    where[1, 4:9] = True
    point = lm.run_to_site(ids, "layers.0.mlp")
    monkeypatch.setattr(lm.model, "get_output_embeddings", lambda: None)
    assert torch.equal(lm.run_from_site(point, logit_mask=where), lm.run_from_site(point)[where])


@pytest.mark.parametrize("kind", KINDS)
def test_resuming_runs_nothing_before_the_site(lm, ids, kind):
    point = lm.run_to_site(ids, Site(1, kind))
    ran = []
    parts = {
        f"{i}.{n}": p for i, block in enumerate(lm.blocks) for n, p in block.named_modules() if not [*p.children()]
    }
    handles = [part.register_forward_pre_hook(lambda *_, n=name: ran.append(n)) for name, part in parts.items()]
    try:
        lm.run_from_site(point)
    finally:
        for handle in handles:
            handle.remove()
    assert any(name.startswith("2.") for name in ran)
    assert not any(name.startswith("0.") for name in ran)
    assert kind != "residual" or not any(name.startswith("1.") for name in ran)
    if kind == "mlp" and parts_of(lm)[1] == "mlp":  # Gemma's site is the norm after the MLP, OPT's the last product
        assert not any(name.startswith("1.mlp") for name in ran)
    assert kind == "residual" or any(name.startswith("1.") for name in ran)


def test_modules_are_restored_after_an_exception(lm, ids):
    class Broken(Exception):
        pass

    def fail(*_):
        raise Broken

    points = [lm.run_to_site(ids, Site(1, kind)) for kind in KINDS]
    clean = raw(lm, ids).logits
    with pytest.raises(Broken):
        lm.splice(ids, "layers.1.mlp", fail)
    handle = lm.blocks[2].register_forward_pre_hook(fail)
    for point in points:
        with pytest.raises(Broken):
            lm.run_from_site(point)
    with pytest.raises(Broken):
        lm.run_to_site(ids, "layers.2.mlp")
    with pytest.raises(Broken):
        lm.read(ids, ["layers.2.attention"])
    handle.remove()
    assert is_untouched(lm)
    assert torch.equal(lm.logits(ids), clean)


def test_autograd_accepts_what_is_returned(lm, ids):
    weight = torch.nn.Parameter(torch.ones(24, 5))
    point = lm.run_to_site(ids, "layers.1.residual")
    for x in (lm.read(ids, ["layers.0.mlp"])["layers.0.mlp"], point.activation, lm.logits(ids)[..., :24]):
        (x @ weight).sum().backward()
    seen = []
    lm.splice(ids, "layers.0.mlp", lambda x: seen.append((x @ weight.detach()).sum()) or x)
    assert weight.grad is not None
    assert len(seen) == 1


def test_padding_changes_nothing_before_it(lm, ids):
    padded = torch.cat([ids, torch.zeros(3, 6, dtype=torch.int64)], dim=1)
    key = "layers.2.residual"
    torch.testing.assert_close(lm.read(padded, [key])[key][:, :21], lm.read(ids, [key])[key], rtol=1e-4, atol=1e-4)


def test_the_global_random_state_is_left_alone(lm, ids):
    state = torch.get_rng_state()
    first = lm.read(ids, ["layers.2.residual"])["layers.2.residual"]
    torch.manual_seed(99)
    second = lm.read(ids, ["layers.2.residual"])["layers.2.residual"]
    torch.set_rng_state(state)
    lm.run_to_site(ids, "layers.1.mlp")
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_special_ids_and_position_0_are_not_spliceable(lm, ids):
    assert lm.is_special.tolist() == [True, True] + [False] * 298
    mask = lm.spliceable(ids)
    assert not mask[:, 0].any()
    assert not mask[1, 9]
    assert int(mask.sum()) == 3 * 20 - 1


def test_unknown_sites_are_refused(lm, ids):
    with pytest.raises(
        SiteError, match=r"has blocks 0 to 2, there is no layers\.7\.mlp: the closest is layers\.2\.mlp"
    ):
        lm.read(ids, ["layers.7.mlp"])
    with pytest.raises(SiteError):
        lm.run_to_site(ids, "layers.3.residual")
    with pytest.raises(DataError, match=r"layers\.1\.mlp takes activations of shape \[3, 21, 24\], not \[3, 21, 7\]"):
        lm.splice(ids, "layers.1.mlp", torch.zeros(3, 21, 7))


def test_nats_are_the_mean_loss_of_transformers(lm, ids):
    out = raw(lm, ids, labels=ids)
    torch.testing.assert_close(next_token_nats(out.logits, ids).mean(), out.loss)


def test_the_tokenizers_own_truncation_is_ignored(lm_folder, monkeypatch):
    lm = LM.load(str(lm_folder("llama")))
    text = "some text <bos> that is longer " * 9
    lm.tokenizer.backend_tokenizer.enable_truncation(5)
    lm.tokenizer.backend_tokenizer.enable_padding(length=700)
    ids = lm.encode([text, "b"])
    assert [len(one) for one in ids] == [9 * 27, 1]
    monkeypatch.setattr(type(lm.tokenizer), "is_fast", False)
    assert [one.tolist() for one in lm.encode([text, "b"])] == [one.tolist() for one in ids]
    assert lm.encode([]) == []
