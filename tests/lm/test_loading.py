"""Loading a model: whole or truncated, with which dtype, device and options, and models that are refused."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from jumpahead.errors import SiteError, StudyError
from jumpahead.lm.config import LMConfig
from jumpahead.lm.model import LM
from jumpahead.lm.model_files import model_dir_digest
from tests.lm.test_model import FAMILIES, ids

__all__ = ["ids"]  # a fixture


def test_models_that_cannot_be_loaded_are_refused(tmp_path, lm_folder):
    with pytest.raises(StudyError, match=r"lm\.model = '/no/such/model' is not a folder"):
        LM.load("/no/such/model")
    (tmp_path / "config.json").write_text('{"model_type": "nothing-known"}')
    with pytest.raises(StudyError, match=r"cannot be loaded: "):
        LM.load(str(tmp_path))
    with pytest.raises(StudyError, match=r"lm\.context = 65 is more than the 64 tokens"):
        LM.load(LMConfig(model=str(lm_folder("llama")), context=65))


def test_a_folder_may_be_a_path_or_a_string(lm_folder):
    assert LM.load(lm_folder("llama")).digest == LM.load(str(lm_folder("llama"))).digest


def test_damaged_weights_are_refused(tmp_path, lm_folder):
    shutil.copytree(lm_folder("llama"), tmp_path / "torn")
    weights = tmp_path / "torn" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StudyError, match=r"torn' cannot be loaded: "):
        LM.load(str(tmp_path / "torn"))
    kept = load_file(lm_folder("llama") / "model.safetensors")
    kept.pop("model.layers.1.mlp.up_proj.weight")
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(StudyError, match=r"weights lack model\.layers\.1\.mlp\.up_proj\.weight"):
        LM.load(str(tmp_path / "torn"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_truncated_model_reads_the_same_activations(lm_folder, lm_of, ids, family):
    whole, part = lm_of(family), LM.load(str(lm_folder(family)), truncate_after=["layers.0.mlp", "layers.1.attention"])
    sites = ["layers.1.attention", "layers.0.residual"]
    for site, x in part.read(ids, sites).items():
        assert torch.equal(x, whole.read(ids, [site])[site])
    assert not list(part.blocks[2].parameters())
    assert sum(p.numel() for p in part.model.parameters()) < sum(p.numel() for p in whole.model.parameters())
    assert part.digest == whole.digest
    with pytest.raises(AssertionError, match="load it without `truncate_after`"):
        part.logits(ids)
    with pytest.raises(SiteError, match=r"has blocks 0 to 2"):
        LM.load(str(lm_folder(family)), truncate_after=["layers.4.mlp"]).read(ids, ["layers.4.mlp"])


def test_fast_means_float32_outside_of_a_run(lm_folder):
    assert LM.load(LMConfig(model=str(lm_folder("llama")), dtype="fast")).dtype == torch.float32


def test_the_digest_is_that_of_the_weights(lm_folder, tmp_path):
    one = LM.load(str(lm_folder("llama")))
    shutil.copytree(lm_folder("llama"), tmp_path / "copy")
    assert LM.load(str(tmp_path / "copy")).digest == one.digest
    assert LM.load(str(lm_folder("neox"))).digest != one.digest
    assert one.context == 64
    assert one.bos_id == 0
    assert LM.load(LMConfig(model=str(lm_folder("llama")), bos="none")).bos_id is None


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_dtype_is_the_studys(lm_folder, dtype):
    lm = LM.load(LMConfig(model=str(lm_folder("llama")), dtype=dtype))
    x = lm.read([[0, 5, 6]], ["layers.0.residual"])["layers.0.residual"]
    assert x.dtype == getattr(torch, dtype)
    resume = lm.run_to_site([[0, 5, 6]], "layers.0.residual")
    assert torch.equal(lm.run_from_site(resume, resume.activation.float()), lm.logits([[0, 5, 6]]))


def test_options_are_passed_to_transformers(lm_folder, monkeypatch):
    import transformers

    asked = {}
    load = transformers.AutoModelForCausalLM.from_pretrained

    def record(where, **options):
        asked.update(options)
        options.pop("quantization_config", None)
        options.pop("device_map", None)
        return load(where, **options)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", record)
    eight = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    folder = str(lm_folder("llama"))
    LM.load(LMConfig(model=folder, quantization=eight, device_map="auto", attn_implementation="eager"))
    assert asked["quantization_config"] == eight
    assert (asked["device_map"], asked["attn_implementation"], asked["dtype"]) == ("auto", "eager", "float32")
    asked.clear()
    assert LM.load(LMConfig(model=folder, device="cpu")).device == torch.device("cpu")
    assert not {"quantization_config", "device_map", "attn_implementation"} & set(asked)
    assert asked["trust_remote_code"] is False


@pytest.mark.parametrize("device", ["xpu:7", "nonsense"])
def test_an_unavailable_device_is_refused(lm_folder, device):
    with pytest.raises(StudyError, match=rf"lm\.device = '{device}' is not available on this machine"):
        LM.load(LMConfig(model=str(lm_folder("llama")), device=device))


def test_attention_implementations_agree(lm_folder, ids):
    eager, own = (
        LM.load(LMConfig(model=str(lm_folder("llama")), attn_implementation=kind)).logits(ids)
        for kind in ("eager", None)
    )
    torch.testing.assert_close(eager, own, rtol=1e-4, atol=1e-4)


def test_a_models_code_is_part_of_its_digest_if_it_is_run(lm_folder, tmp_path):
    folder = shutil.copytree(lm_folder("llama"), tmp_path / "llama")
    before = [model_dir_digest(folder, with_code) for with_code in (False, True)]
    (folder / "modeling.py").write_text("answer = 42\n")
    after = [model_dir_digest(folder, with_code) for with_code in (False, True)]
    assert before[0] == before[1] == after[0] != after[1]
