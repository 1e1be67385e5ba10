"""Damaged, foreign and forged files are refused in one sentence that names file and key, and take little memory."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import re
import struct
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from jumpahead.errors import ArtefactError, JumpaheadError
from jumpahead.formats import load
from tests.formats.layouts import FILES, LAYOUTS, WIDTH, layouts, write_weights

first = {layout.format: layout for layout in reversed(LAYOUTS)}
each = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.label)
per_format = pytest.mark.parametrize("layout", first.values(), ids=lambda layout: layout.format)
OPTIONAL = {"threshold": "AutoEncoderTopK", "k": ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE")}
"""Tensors that the configuration or nothing stands for, with the labels of their layouts."""


def labelled(label):
    return next(layout for layout in LAYOUTS if layout.label == label)


def refused(folder, *names):
    """Check that loading fails with one sentence that names all of `names`; return the sentence."""
    with pytest.raises(ArtefactError) as error:
        load(folder)
    sentence = str(error.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    assert len(sentence) < 400
    for name in names:
        assert name in sentence, (name, sentence)
    return sentence


def replaced(layout, tmp_path, **tensors):
    """Return the folder of a layout with some tensors replaced."""
    return layout._replace(tensors=layout.tensors | tensors).write(tmp_path)


# ---------------------------------------------------------------------------------------------- tensors


@each
def test_a_missing_tensor_is_named(layout, tmp_path):
    for name in layout.tensors:
        if layout.label in OPTIONAL.get(name, ()):
            continue
        left = {key: value for key, value in layout.tensors.items() if key != name}
        folder = layout._replace(tensors=left).write(tmp_path / name)
        sentence = refused(folder)
        assert name.lower().removeprefix("log_") in sentence.lower(), sentence


@each
def test_a_tensor_that_does_not_belong_is_named(layout, tmp_path):
    refused(replaced(layout, tmp_path, W_skip=torch.zeros(3)), FILES[layout.format][1], "'W_skip'")


@each
def test_nan_and_infinity_are_named(layout, tmp_path):
    for name, value in layout.tensors.items():
        if not value.is_floating_point() or layout.label in OPTIONAL.get(name, ()):
            continue
        spoilt = value.clone().contiguous()
        spoilt.view(-1)[-1] = float("nan") if value.dim() == 2 else float("inf")
        sentence = refused(replaced(layout, tmp_path / name, **{name: spoilt}), FILES[layout.format][1], f"'{name}'")
        assert "NaN" in sentence


@each
def test_transposed_and_shortened_tensors_are_named(layout, tmp_path):
    for name, value in layout.tensors.items():
        if value.dim() == 0:
            continue
        wrong = value.T if value.dim() == 2 else value[:-1]
        sentence = refused(replaced(layout, tmp_path / name, **{name: wrong}))
        assert any(f"{file}: '" in sentence for file in FILES[layout.format] if file), sentence


def test_transposed_square_matrices_are_found(tmp_path):
    for layout in layouts(width=24, d=24):
        for name, value in layout.tensors.items():
            if value.dim() == 2:
                folder = replaced(layout, tmp_path / layout.label / name, **{name: value.T})
                assert "is transposed" in refused(folder, FILES[layout.format][1])


def test_integers_in_the_place_of_weights_are_refused(tmp_path):
    layout = labelled("saelens-standard")
    refused(replaced(layout, tmp_path, W_enc=torch.ones(10, WIDTH, dtype=torch.int32)), "'W_enc'", "int32")


# ---------------------------------------------------------------------------------------------- files


@per_format
def test_torn_files_are_named(layout, tmp_path):
    config, weights = FILES[layout.format]
    for name in filter(None, (config, weights)):
        for cut in (0, 1, 9, 60, -3):
            folder = layout.write(tmp_path / f"{name}{cut}")
            (folder / name).write_bytes((folder / name).read_bytes()[:cut])
            refused(folder, name)


@per_format
def test_missing_files_are_named(layout, tmp_path):
    config, weights = FILES[layout.format]
    if config:
        folder = layout.write(tmp_path / "config")
        (folder / config).unlink()
        refused(folder, "cfg.json" if "sae_weights" in weights else config, "does not exist")
    folder = layout.write(tmp_path / "weights")
    (folder / weights).unlink()
    refused(folder, "no SAE in a known format", weights)
    with pytest.raises(ArtefactError, match="does not exist"):
        load(folder / "nowhere")


def test_two_saes_in_one_folder_are_told_apart_by_name(tmp_path):
    folder = labelled("gemma-scope-2").write(tmp_path)
    write_weights(folder / "params.npz", labelled("gemma-scope").tensors)
    refused(folder, "several formats", "params.npz", "params.safetensors")
    assert load(folder / "params.npz").about["source"]["format"] == "gemma_scope"


def test_a_run_names_one_of_its_saes(tmp_path):
    folder = tmp_path / "saes" / "layers.1.residual" / "37" / "jumprelu" / "l0-4_seed-0"
    load(labelled("gemma-scope").write(tmp_path / "other")).save(folder)
    refused(tmp_path, "is a run: name one of its 1 SAEs, such as", str(folder))


@pytest.mark.parametrize("text", ["[]", "3", '"text"', "[" * 100_000, '{"a": ' * 100_000, "\xff", "{"])
def test_configurations_that_are_no_objects(text, tmp_path):
    folder = labelled("saelens-standard").write(tmp_path)
    (folder / "cfg.json").write_text(text, encoding="latin-1")
    refused(folder, "cfg.json")


def test_a_huge_configuration_is_not_read(tmp_path):
    folder = labelled("saelens-standard").write(tmp_path)
    (folder / "cfg.json").write_bytes(b" " * (16 * 2**20 + 1))
    refused(folder, "cfg.json", "larger than 16 MiB")


# ---------------------------------------------------------------------------------------------- configurations

CONFIGS = [
    ("saelens-standard", {"architecture": "temporal"}, "'temporal'"),
    ("saelens-standard", {"architecture": "transcoder"}, "'transcoder'"),
    ("saelens-standard", {"architecture": "batchtopk"}, "save_inference_model"),
    ("saelens-standard", {"architecture": None}, "'architecture' is missing"),
    ("saelens-standard", {"d_in": 11}, "'d_in' is 11, but W_enc has 10"),
    ("saelens-standard", {"d_sae": 2**70}, "'d_sae'"),
    ("saelens-standard", {"d_sae": "37"}, "'d_sae' must be a whole number"),
    ("saelens-standard", {"d_sae": True}, "'d_sae' must be a whole number"),
    ("saelens-standard", {"normalize_activations": "layer_norm"}, "'layer_norm'"),
    ("saelens-standard", {"normalize_activations": "constant_norm_rescale"}, "'constant_norm_rescale'"),
    ("saelens-standard", {"normalize_activations": "expected_average_only_in"}, "activation_scaler.json"),
    ("saelens-standard", {"reshape_activations": "other"}, "'reshape_activations'"),
    ("saelens-standard", {"apply_b_dec_to_input": "no"}, "'apply_b_dec_to_input' must be true or false"),
    ("saelens-standard", {"metadata": {"sae_lens_version": "7.0.1"}}, "'7.0.1'"),
    ("saelens-standard", {"metadata": {"sae_lens_version": "six"}}, "'six'"),
    ("saelens-standard", {"metadata": [3]}, "'metadata'"),
    ("saelens-standard", {"metadata": {"sae_lens_version": "6.1", "hook_head_index": 3}}, "hook_head_index"),
    ("saelens-topk", {"k": None}, "'k' is missing"),
    ("saelens-topk", {"k": 0}, "'k'"),
    ("saelens-topk", {"k": 2.5}, "'k'"),
    ("saelens-topk", {"k": float("nan")}, "'k'"),
    ("saelens-topk", {"k": float("inf")}, "'k'"),
    ("saelens-topk", {"k": 38}, "'k' is 38"),
    ("saelens-version-5", {"finetuning_scaling_factor": True}, "'finetuning_scaling_factor'"),
    ("saelens-version-5", {"activation_fn_str": "tanh-relu"}, "'tanh-relu'"),
    ("gemma-scope-2", {"architecture": "topk"}, "'architecture'"),
    ("gemma-scope-2", {"affine_connection": True}, "a transcoder"),
    ("gemma-scope-2", {"hf_hook_point_out": "model.layers.3.mlp.output"}, "'hf_hook_point_out'"),
    ("sparsify", {"activation": "groupmax"}, "'groupmax'"),
    ("sparsify", {"transcode": True}, "a transcoder"),
    ("sparsify", {"skip_connection": True}, "a skip connection"),
    ("sparsify", {"k": None}, "'k' is missing"),
    ("sparsify", {"num_latents": 38}, "'num_latents' is 38, but encoder.weight has 37"),
    ("sparsify", {"d_in": 9}, "'d_in' is 9"),
    ("llamascopium-relu", {"sae_type": "crosscoder"}, "'sae_type'"),
    ("llamascopium-relu", {"act_fn": "batchtopk"}, "'act_fn'"),
    ("llamascopium-relu", {"norm_activation": "token-wise"}, "'norm_activation'"),
    ("llamascopium-relu", {"hook_point_out": "blocks.3.hook_mlp_out"}, "'hook_point_out'"),
    ("llamascopium-relu", {"hook_point_in": "b", "hook_point_out": "b"}, "'dataset_average_activation_norm.b'"),
    ("llamascopium-relu", {"use_glu_encoder": True}, "'use_glu_encoder'"),
    ("llamascopium-relu", {"expansion_factor": 4}, "'expansion_factor'"),
    ("llamascopium-topk", {"top_k": None}, "'top_k' is missing"),
]


@pytest.mark.parametrize(("label", "changes", "names"), CONFIGS, ids=[f"{one[0]}-{one[1]}"[:70] for one in CONFIGS])
def test_configurations_that_would_compute_something_else(label, changes, names, tmp_path):
    layout = labelled(label)
    refused(layout._replace(config={**layout.config, **changes}).write(tmp_path), FILES[layout.format][0], names)


TRAINERS = [
    ("AutoEncoderTopK", {"k": 6}, "'trainer.k' is 6, but the weights have 5"),
    ("BatchTopKSAE", {"k": 6}, "'trainer.k' is 6, but the weights have 5"),
    ("AutoEncoder", {"dict_class": "CrossCoder"}, "'trainer.dict_class'"),
    ("AutoEncoder", {"dict_class": "AutoEncoderNew"}, "'decoder.bias'"),
    ("JumpReluAutoEncoder", {"dict_class": "BatchTopKSAE"}, "'encoder.weight'"),
    ("AutoEncoder", {"dict_size": 12}, "'trainer.dict_size' is 12"),
    ("AutoEncoder", {"activation_dim": 12}, "'trainer.activation_dim' is 12"),
    ("AutoEncoder", {"lm_name": 3}, "'trainer.lm_name'"),
]


@pytest.mark.parametrize(("label", "changes", "names"), TRAINERS, ids=[f"{one[0]}-{one[1]}" for one in TRAINERS])
def test_configurations_of_dictionary_learning(label, changes, names, tmp_path):
    layout = labelled(label)
    config = {**layout.config, "trainer": {**layout.config["trainer"], **changes}}
    refused(layout._replace(config=config).write(tmp_path), names)


def test_thresholds_and_groups_of_dictionary_learning(tmp_path):
    batch, nested = labelled("BatchTopKSAE"), labelled("MatryoshkaBatchTopKSAE")
    refused(replaced(batch, tmp_path / "a", threshold=torch.tensor(-1.0)), "ae.pt", "'threshold' is -1")
    refused(replaced(nested, tmp_path / "b", group_sizes=torch.tensor([3, 9])), "ae.pt", "'group_sizes'")
    lost = {key: value for key, value in labelled("AutoEncoderTopK").tensors.items() if key != "k"}
    layout = labelled("AutoEncoderTopK")._replace(tensors=lost)
    trainer = {key: value for key, value in layout.config["trainer"].items() if key != "k"}
    refused(layout._replace(config={"trainer": trainer}).write(tmp_path / "c"), "'trainer.k' is missing")


def test_a_scale_of_gemma_scope_is_refused_unless_one(tmp_path):
    layout = labelled("gemma-scope")
    load(replaced(layout, tmp_path / "a", scaling_factor=torch.ones(WIDTH)))
    refused(replaced(layout, tmp_path / "b", scaling_factor=torch.full((WIDTH,), 1.3)), "'scaling_factor'")
    refused(layout._replace(folder="gemma-scope-2b-pt-transcoders/layer_3").write(tmp_path), "transcoder")


def test_a_lost_threshold_is_no_plausible_nonsense(tmp_path):
    layout = labelled("saelens-standard")
    jumprelu = layout._replace(config=layout.config | {"architecture": "jumprelu"}).write(tmp_path / "a")
    refused(jumprelu, "sae_weights.safetensors has no 'threshold'")
    layout = labelled("saelens-jumprelu")
    standard = layout._replace(config=layout.config | {"architecture": "standard"}).write(tmp_path / "b")
    refused(standard, "sae_weights.safetensors", "'threshold' does not belong")


def test_qwen_scope_without_the_name_that_says_k_is_refused(tmp_path):
    layout = labelled("qwen-scope")
    refused(layout._replace(folder="renamed").write(tmp_path), "layer0.sae.pt", "does not say k")
    refused(layout._replace(folder="SAE-Res-X-W32K-L0_38").write(tmp_path), "layer0.sae.pt", "L0_38")


# ---------------------------------------------------------------------------------------------- pickles


class Runs:
    """Pickles to a call of a function."""

    def __reduce__(self):
        return (print, ("this was executed",))


@pytest.mark.parametrize(
    "content",
    [Runs(), {"bias": Runs()}, {"bias": {"x": torch.zeros(3)}}, {"bias": "text"}, [torch.zeros(3)],
     torch.nn.Linear(2, 2), {"bias": torch.zeros(4).to_sparse()}, {3: torch.zeros(2)}, {"bias": 2**80}],
    ids=["code", "code-inside", "nested", "text", "list", "module", "sparse", "number-as-name", "long"],
)  # fmt: skip
def test_pickles_with_more_than_tensors_are_refused(content, tmp_path, capfd):
    folder = labelled("AutoEncoder").write(tmp_path)
    torch.save(content, folder / "ae.pt")
    refused(folder, "ae.pt")
    assert "executed" not in capfd.readouterr().out


def test_plain_pickles_and_old_torch_files_are_refused(tmp_path):
    layout = labelled("AutoEncoder")
    folder = layout.write(tmp_path)
    (folder / "ae.pt").write_bytes(pickle.dumps({"bias": 3}))
    refused(folder, "ae.pt", "older than 1.6")
    torch.save(layout.tensors, folder / "ae.pt", _use_new_zipfile_serialization=False)
    refused(folder, "ae.pt", "older than 1.6")


def test_tensors_that_claim_more_than_they_hold_are_refused(tmp_path):
    layout = labelled("AutoEncoder")
    folder = layout.write(tmp_path)
    torch.save({**layout.tensors, "bias": torch.zeros(1).expand(2**45)}, folder / "ae.pt")
    refused(folder, "ae.pt", "'bias'")


def test_a_compressed_torch_file_is_refused(tmp_path):
    folder = labelled("AutoEncoder").write(tmp_path)
    content = (folder / "ae.pt").read_bytes()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(folder / "ae.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    refused(folder, "ae.pt", "is compressed")


# ---------------------------------------------------------------------------------------------- forged headers


def forged_safetensors(entry):
    header = json.dumps({"W_enc": entry}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0" * 64


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**62) + b"{}",
        forged_safetensors({"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 64]}),
        forged_safetensors({"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 2**50]}),
        forged_safetensors({"dtype": "F32", "shape": [-4, 4], "data_offsets": [0, 64]}),
        forged_safetensors({"dtype": "F7", "shape": [4, 4], "data_offsets": [0, 64]}),
    ],
)
def test_forged_safetensors(content, tmp_path):
    folder = labelled("saelens-standard").write(tmp_path)
    (folder / "sae_weights.safetensors").write_bytes(content)
    refused(folder, "sae_weights.safetensors")


def npz_of(member, size=None, compression=zipfile.ZIP_STORED):
    """Return an .npz file with W_enc.npy: the given header, followed by `size` zero bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive, archive.open("W_enc.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, member)
        for _ in range((size or 64) // 2**20):
            file.write(b"\0" * 2**20)
        file.write(b"\0" * ((size or 64) % 2**20))
    return out.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        npz_of({"descr": "<f4", "fortran_order": False, "shape": (2**40, 2**20)}),
        npz_of({"descr": "|O", "fortran_order": False, "shape": (8,)}),
        npz_of({"descr": "<f4", "fortran_order": False, "shape": (2**13, 2**13)}, 2**28, zipfile.ZIP_DEFLATED),
        b"PK\3\4" + b"\0" * 60,
    ],
    ids=["shape", "objects", "bomb", "no-directory"],
)
def test_forged_npz_takes_little_memory(content, tmp_path):
    folder = labelled("gemma-scope").write(tmp_path)
    (folder / "params.npz").write_bytes(content)
    tracemalloc.start()
    refused(folder, "params.npz")
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_refusing_a_wrong_shape_reads_no_weights(tmp_path):
    """2 GiB of zeros on a sparse file, with a configuration of another SAE: refused in 600 MB of address space more."""
    folder = labelled("saelens-standard").write(tmp_path)
    header = {
        "W_enc": {"dtype": "F32", "shape": [2**14, 2**14], "data_offsets": [0, 2**30]},
        "W_dec": {"dtype": "F32", "shape": [2**14, 2**14], "data_offsets": [2**30, 2**31]},
    }
    text = json.dumps(header).encode()
    with open(folder / "sae_weights.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + 2**31)
    program = (
        "import resource, sys, torch; from jumpahead.formats import load; from jumpahead.errors import ArtefactError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: load(sys.argv[1])\nexcept ArtefactError as error: print(error)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True)
    sentence, grown = done.stdout.strip().split("\n")
    assert re.search(r"'d_in' is 10, but W_enc has 16384\.$", sentence)
    assert int(grown) < 600


# ---------------------------------------------------------------------------------------------- every byte


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_no_flipped_byte_is_a_traceback(tmp_path):
    """Half a hundred bytes of every file: the SAE is read or refused, and nothing else happens."""
    for layout in first.values():
        folder = layout.write(tmp_path / layout.format)
        for name in filter(None, FILES[layout.format]):
            content = (folder / name).read_bytes()
            for position in range(0, min(len(content), 600), 13):
                spoilt = bytearray(content)
                spoilt[position] ^= 0x11
                (folder / name).write_bytes(spoilt)
                with contextlib.suppress(JumpaheadError):
                    load(folder)
            (folder / name).write_bytes(content)


def test_names_of_tensors_cannot_lead_elsewhere(tmp_path):
    """A file of weights is read by name and never written to a path of its own."""
    layout = labelled("saelens-standard")
    folder = layout.write(tmp_path)
    save_file({**{k: v.contiguous() for k, v in layout.tensors.items()}, "../../x": torch.zeros(2)},
              folder / "sae_weights.safetensors")  # fmt: skip
    refused(folder, "'../../x'")
