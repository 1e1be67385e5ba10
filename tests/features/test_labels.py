"""Labels: rules with a known score, from tokens that were placed by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from jumpahead.features.collect import SAMPLE, Collected, FeatureActivity
from jumpahead.features.labels import CLASSES, Labeller, quoted

WORDS = [" the", " cat", "7", "\n", "Paris", "🎉", ";", "ing"]


class Words:
    """Stands for the tokens of a vocabulary of `WORDS`."""

    def text(self, id):
        return WORDS[id]


def labelled(fires, text):
    """Return the label of one feature that fires at some places of a text, a list of token ids in one chunk."""
    text = np.array(text)
    contexts = SimpleNamespace(tokens=text, chunk_start=np.array([0]), chunk_length=np.array([len(text)]))
    activity = FeatureActivity(2)
    random = np.random.default_rng(1)
    places = random.permutation(np.flatnonzero(fires))[:SAMPLE].astype(np.int32)
    activity.count[0] = np.count_nonzero(fires)
    for examples in (activity.sample, activity.top):
        n = min(len(places), examples.value.shape[1])
        examples.value[0, :n], examples.offset[0, :n] = 1, places[:n]
    pool = np.arange(len(text), dtype=np.int32)
    activity.pool_index = pool[np.asarray(fires)]
    activity.pool_feature = np.zeros(len(activity.pool_index), np.int32)
    counts = np.bincount(text, minlength=len(WORDS))
    collected = Collected({"x": activity}, len(text), counts, np.zeros_like(pool), pool)
    return Labeller(collected, contexts, Words()).label(activity)


@pytest.fixture(scope="module")
def text():
    return np.random.default_rng(0).integers(0, len(WORDS), 400)


def test_a_feature_of_one_token_has_score_one(text):
    label, dead = labelled(text == 1, text)
    assert label.text == "“ cat”"
    assert label.rule == "token"
    assert label.score == 1
    assert label.words == [" cat"]
    assert dead.text == "never fires"
    assert dead.score is None


def test_a_feature_of_the_token_before(text):
    label, _ = labelled(np.concatenate([[False], text[:-1] == 4]), text)
    assert (label.text, label.rule, label.score) == ("after “Paris”", "before", 1)


def test_a_feature_of_a_class_is_named_by_it():
    text = np.arange(400) % 8
    label, _ = labelled(text == 3, text)
    assert label.score == 1
    assert label.text in ("“⏎”", "line breaks")


def test_the_score_is_the_mean_of_what_holds_and_what_does_not(text):
    """It fires on half of all digits: the rule finds every example, and the other half are wrongly found."""
    digits = np.flatnonzero(text == 2)
    fires = np.zeros(len(text), bool)
    fires[digits[::2]] = True
    label, _ = labelled(fires, text)
    wrong = len(digits) - fires.sum()
    assert label.score == pytest.approx((1 + 1 - wrong / (len(text) - fires.sum())) / 2)


def test_random_firing_has_no_rule(text):
    label, _ = labelled(np.random.default_rng(5).random(len(text)) < 0.2, text)
    assert label.rule == "none"
    assert label.text.startswith("strongest at “")
    assert label.score is not None
    assert 0.3 < label.score < 0.65


def test_too_few_examples_have_no_score(text):
    fires = np.zeros(len(text), bool)
    fires[5] = True
    label, _ = labelled(fires, text)
    assert label.score is None


def test_labels_are_the_same_every_time(text):
    fires = np.random.default_rng(5).random(len(text)) < 0.2
    assert labelled(fires, text) == labelled(fires, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n    ", "line breaks"), ("   ", "spaces and indentation"), (" 42", "digits"), ("Paris", "capitalised words"),
        (" the", "words after a space"), ("ing", "parts of words"), ("();", "punctuation"),
        ("日本", "text that is not ASCII"),
    ],
)  # fmt: skip
def test_classes_hold_what_they_are_called(text, expected):
    assert CLASSES[expected](text)
    assert not any(belongs("") for belongs in CLASSES.values())


def test_long_tokens_are_cut_and_line_breaks_are_visible():
    assert quoted("\n\ta") == "“⏎⇥a”"
    assert quoted("\n            x  y") == "“⏎␣×12x  y”"
    assert quoted("x" * 99) == f"“{'x' * 23}…”"
