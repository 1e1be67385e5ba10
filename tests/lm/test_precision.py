"""`lm.dtype = "fast"`: the choice from given measurements, and the measurements."""

import pytest
import torch

from jumpahead.lm import precision
from jumpahead.lm.config import LMConfig
from jumpahead.lm.model import LM
from jumpahead.lm.precision import MAX_LOSS_SHIFT, MIN_SPEEDUP, choose_dtype
from jumpahead.storage.atomic import write_atomic
from jumpahead.text.config import TextConfig
from jumpahead.text.documents import documents
from jumpahead.text.tokenize import tokenize

SITES = ["layers.1.residual"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for number in range(12):
        write_atomic(folder / f"{number}.txt", f"Text {number}: " + "the quick brown fox " * (3 + number))
    return TextConfig(source=str(folder), held_out=0.3)


@pytest.fixture(scope="module")
def config(lm_folder):
    return LMConfig(model=str(lm_folder("llama")), dtype="fast", context=32, batch=4)


FASTER = {"float32": 3.0, "bfloat16": 2.0}


@pytest.mark.parametrize(
    ("products", "rates", "loss", "dtype", "says"),
    [
        ({"float32": 2.0, "bfloat16": 2.0}, None, None, "float32", "products in bfloat16 are not faster"),
        (FASTER, {"float32": 500.0, "bfloat16": 600.0}, None, "float32", "600 tokens/s in bfloat16, 500 in float32"),
        (FASTER, {"float32": 500.0, "bfloat16": 700.0}, {"float32": 2.5, "bfloat16": 2.5011}, "float32", "+0.0011"),
        (FASTER, {"float32": 500.0, "bfloat16": 700.0}, {"float32": 2.5, "bfloat16": 2.4989}, "float32", "-0.0011"),
        (FASTER, {"float32": 500.0, "bfloat16": 700.0}, {"float32": 2.5, "bfloat16": float("nan")}, "float32", "nan"),
        (FASTER, {"float32": 500.0, "bfloat16": 700.0}, {"float32": 2.5, "bfloat16": 2.4991}, "bfloat16", "-0.0009"),
    ],
)
def test_the_choice_follows_from_the_measurements(monkeypatch, config, text, products, rates, loss, dtype, says):
    """Nothing is measured that cannot change the choice."""
    measured = []

    def note(kind, value):
        measured.append(kind)
        assert value is not None, f"{kind} was measured without need"
        return value

    monkeypatch.setattr(precision, "_product_seconds", lambda _, d: note("product", products[str(d)[6:]]))
    monkeypatch.setattr(precision, "_tokens_per_second", lambda *_: note("rates", rates))
    monkeypatch.setattr(precision, "_mean_loss", lambda lm, _: note("loss", loss and loss[str(lm.dtype)[6:]]))
    found = choose_dtype(config, text, SITES)
    assert found.dtype == dtype
    assert str(found).startswith(dtype)
    assert says in str(found)
    assert found.tokens_per_second == (rates or {})
    assert len(measured) == 2 + bool(rates) + 2 * bool(loss)


def test_measurements_are_of_the_two_models(config, text):
    exact, fast = (LM.load(config.model_copy(update={"dtype": dtype})) for dtype in ("float32", "bfloat16"))
    contexts = tokenize(documents(text), exact, split="train", held_out=0.3)
    total = 0.0
    for start, length in zip(contexts.chunk_start, contexts.chunk_length, strict=True):
        row = torch.tensor([[0, *contexts.tokens[start : start + length].tolist()]])
        log_p = exact.logits(row)[0].double().log_softmax(-1)
        total -= float(log_p[1:-1].gather(1, row[0, 2:, None]).sum())  # position 0 is not scored
    wanted = total / contexts.scored_per_group.sum()
    assert precision._mean_loss(exact, contexts) == pytest.approx(wanted, rel=1e-6)
    assert precision._mean_loss(fast, contexts) != precision._mean_loss(exact, contexts)
    assert precision._mean_loss(fast, contexts) == pytest.approx(wanted, rel=0.02)
    rates = precision._tokens_per_second({"float32": exact, "bfloat16": fast}, contexts, SITES)
    assert set(rates) == {"float32", "bfloat16"}
    assert min(rates.values()) > 0


def test_a_dtype_is_chosen_on_this_machine(config, text):
    found = choose_dtype(config, text, SITES)
    assert found.dtype in ("float32", "bfloat16")
    assert found.dtype == "float32" or (
        found.tokens_per_second["bfloat16"] >= MIN_SPEEDUP * found.tokens_per_second["float32"]
        and abs(found.loss_shift) < MAX_LOSS_SHIFT
    )
