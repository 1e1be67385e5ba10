"""A study on conversations, end to end: which rows its SAEs are trained and evaluated on, and what is stored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from jumpahead.activations.origins.shards import Shards
from jumpahead.activations.shard_folder import HELD_OUT_FOLDER
from jumpahead.errors import DataError, StudyError
from jumpahead.frontier import Frontier
from jumpahead.lm.config import LMConfig
from jumpahead.lm.model import LM
from jumpahead.pipeline.resources import Resources
from jumpahead.pipeline.training import TrainingStage
from jumpahead.planning.plan import make_plan
from jumpahead.progress import SilentProgress
from jumpahead.storage.json_files import read_json
from jumpahead.storage.run_folder import Run
from jumpahead.study.load import load
from jumpahead.study.save import to_toml
from jumpahead.text.config import TextConfig
from jumpahead.text.contexts import Contexts
from jumpahead.text.documents import documents
from tests.pipeline.test_run import run
from tests.text.test_chat import CHATML, answers, assistant, tokenizer, user

SITE = "layers.1.residual"
TALKS = [[user("ab" * (n % 4) + f"{n}?"), assistant(f"It is {n}" + "." * (n % 5))] for n in range(60)]
"""Each fits into a context of 64."""
STUDY = """
name = "talk"
[lm]
model = "{model}"
batch = 4
[text]
source = "{text}"
column = "messages"
chat = "assistant"
held_out = 0.3
[activations]
sites = ["layers.1.residual"]
origin = "shards"
block = 16
scale_rows = 100
[sae]
width = 48
[train]
tokens = 256
batch = 32
[evaluate]
tokens = 100
replicates = 20
[[series]]
architecture = "topk"
k = 3
"""


@pytest.fixture(scope="module")
def study_file(tmp_path_factory, lm_folder):
    folder = tmp_path_factory.mktemp("talk")
    shutil.copytree(lm_folder("neox"), folder / "model")
    tokenizer(CHATML, ("<|im_start|>", "<|im_end|>")).save_pretrained(folder / "model")
    assert (folder / "model" / "chat_template.jinja").is_file()
    (folder / "x.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in TALKS))
    (folder / "talk.toml").write_text(STUDY.format(model=folder / "model", text=folder / "x.jsonl"))
    return folder / "talk.toml"


@pytest.fixture(scope="module")
def finished(study_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "talk"
    run(study_file, folder)
    return folder


def stored(folder: Path, split: str) -> tuple[Shards, Contexts]:
    below = {"train": folder / "activations", "held_out": folder / "activations" / HELD_OUT_FOLDER}[split]
    return Shards(below), Contexts.load(folder / "tokens" / split)


def test_saes_are_trained_on_the_assistants_tokens_alone(study_file, finished):
    """Labels, counts, and the activations themselves, against the model run on one conversation at a time."""
    config = load(study_file)
    lm, said = LM.load(LMConfig(model=config.lm.model)), answers(TALKS)
    chats = {document.identity: document.conversation for document in documents(config.text)}
    contexts = {split: stored(finished, split)[1] for split in ("train", "held_out")}
    assert sum(one.rows for one in contexts.values()) == sum(map(len, said.values()))
    for split in contexts:
        shards, here = stored(finished, split)
        assert len(shards.rows_per_group) > 1
        for group in (0, len(shards.rows_per_group) - 1):
            labels, rows = shards.labels(group), shards.rows(group)[SITE]
            assert len(rows) == here.rows_per_group[group]
            for document in np.unique(labels["document"]):
                mine = np.flatnonzero(labels["document"] == document)
                identity = here.document_ids[document]
                assert lm.tokenizer.decode(labels["token"][mine].tolist()) == said[identity]
                ((ids, _),) = lm.encode_conversations([(chats[identity], "")])
                x = lm.read([[lm.bos_id, *ids.tolist()]], [SITE])[SITE][0, labels["position"][mine].tolist()]
                torch.testing.assert_close(rows[mine.tolist()].float(), x, rtol=1e-4, atol=1e-4)


def test_only_the_assistants_tokens_are_scored(finished):
    (point,) = Frontier.load(finished).points()
    held_out = Contexts.load(finished / "tokens" / "held_out")
    found = read_json(finished / point["path"] / "evaluation.json")
    groups = int(np.searchsorted(np.cumsum(held_out.scored_per_group), 100)) + 1
    assert found["text"]["tokens"] == held_out.scored_per_group[:groups].sum()
    assert point["metrics"]["delta_lm_loss"] is not None


def test_the_plan_counts_trained_tokens(study_file, finished, tmp_path):
    before, after = (make_plan(load(study_file), folder) for folder in (tmp_path / "new", finished))
    found = {split: Contexts.load(finished / "tokens" / split) for split in ("train", "held_out")}
    rows, tokens = sum(one.rows for one in found.values()), sum(len(one.tokens) for one in found.values())
    assert after.tokens == (found["train"].rows, found["held_out"].rows, True, True, tokens - rows)
    assert rows == sum(map(len, answers(TALKS).values()))
    # Estimated at 1 byte per token from the messages' contents, by role; without headers and end-of-turn tokens.
    assert before.tokens.train + before.tokens.held_out == pytest.approx(rows, rel=0.03)
    asked = sum(len(talk[0]["content"]) for talk in TALKS)
    assert before.tokens.context == pytest.approx(asked + 2 * len(TALKS), rel=0.03)
    assert ("other roles", f"{tokens - rows:,} tokens, read as context") in after.rows()
    assert after.stored_activations.bytes == (24 * 4 + 12) * sum(
        int(stored(finished, split)[0].rows_per_group.sum()) for split in ("train", "held_out")
    )


def test_tokens_of_the_same_text_are_reused(study_file, finished, tmp_path):
    """By the same run, by another run, and after the text is removed; not with other roles or another template."""
    runs, home, both = tmp_path / "runs", tmp_path / "home", 'text.chat=["user", "assistant"]'
    shutil.copytree(study_file.parent, home)
    shutil.copytree(finished, runs / "first")
    moved = (f"text.source={home / 'x.jsonl'}", f"lm.model={home / 'model'}")
    said = run(study_file, runs / "second", *moved, "activations.origin=live", until="tokens")
    assert "tokenising" in [title for title, _ in said.phases]
    said = run(study_file, runs / "third", *moved, until="train")
    assert "tokens: those of second, which has the same text" in said
    said = run(study_file, runs / "fourth", *moved, both, until="tokens")
    assert "tokenising" in [title for title, _ in said.phases]
    assert Contexts.load(runs / "fourth/tokens/train").rows > Contexts.load(runs / "third/tokens/train").rows

    shutil.move(home / "x.jsonl", home / "away.jsonl")
    said = run(study_file, runs / "third", *moved, "train.tokens=320", until="train")
    assert "training 1 SAE" in said
    template = home / "model" / "chat_template.jinja"
    template.write_text(CHATML + " ")
    with pytest.raises((StudyError, DataError), match=r"x\.jsonl"):
        run(study_file, runs / "third", *moved, "train.tokens=320", until="train")
    shutil.move(home / "away.jsonl", home / "x.jsonl")
    loaded = load(study_file, [*moved, "train.tokens=320"])
    assert len(TrainingStage(Resources(loaded, Run(runs / "third"), SilentProgress())).pending()) == 1
    template.unlink()
    with pytest.raises(StudyError, match=r"^text\.chat needs a chat template, and the tokenizer of .* has none"):
        run(study_file, runs / "fifth", *moved)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('chat = []', "'text.chat' must not be empty."),
        ('chat = ["user", "user"]', "'text.chat' names \"user\" twice."),
        ('chat = [3]', "'text.chat' must be text in quotes, not 3."),
        ('chat = "user"\nseparator = "x"', "'text.separator' cuts text, and with 'text.chat' documents are conv"),
        ('chats = "user"', "there is no key 'text.chats'. Did you mean 'chat'?"),
    ],
)  # fmt: skip
def test_wrong_values_of_chat_are_refused(study_file, tmp_path, lines, says):
    path = tmp_path / "wrong.toml"
    path.write_text(study_file.read_text().replace('chat = "assistant"', lines))
    with pytest.raises(StudyError) as caught:
        load(path)
    assert says in str(caught.value)


def test_a_saved_study_has_its_roles(study_file, tmp_path):
    loaded = load(study_file)
    assert loaded.text == TextConfig(source=loaded.text.source, column="messages", chat=("assistant",), held_out=0.3)
    (tmp_path / "again.toml").write_text(to_toml(loaded))
    assert load(tmp_path / "again.toml") == loaded
    assert "chat" not in to_toml(load(study_file, ["text.chat="])).split("[activations]")[0]
