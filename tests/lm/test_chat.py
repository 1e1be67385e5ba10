"""Conversations: which tokens of what a chat template writes are chosen, and that the choice survives all the way."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tokenizers
import transformers

from jumpahead.errors import ArtefactError, DataError, StudyError
from jumpahead.lm import fingerprint
from jumpahead.lm.config import LMConfig
from jumpahead.text import contexts as module
from jumpahead.text.chat import Conversation, Template
from jumpahead.text.config import TextConfig
from jumpahead.text.contexts import SPLITS, Contexts, tokenize, tokenize_into
from jumpahead.text.documents import documents
from jumpahead.text.sources import source_of
from tests.conftest import byte_tokenizer

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
)
# What is said first is folded into the user's turn, turns alternate, and every turn of the user's begins a sequence.
LLAMA2 = (
    "{% set talk = messages[1:] if messages[0].role == 'system' else messages %}{% for m in talk %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token }}[INST] "
    "{% if loop.first and messages[0].role == 'system' %}<<{{ messages[0].content }}>> {% endif %}"
    "{{ m.content | trim }} [/INST]{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
# As in Qwen 3: reasoning is taken out of all turns but the last, which has a place for it even where there is none.
THINKING = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}"
    "{% set parts = m.content.split('</think>') %}"
    "{% if loop.last %}<think>{{ parts[0].replace('<think>', '') if parts | length > 1 else '' }}</think>{% endif %}"
    "{{ parts[-1] }}{% else %}{{ m.content }}{% endif %};{% endfor %}"
)


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def system(content):
    return {"role": "system", "content": content}


def tokenizer(template, special=()):
    """Bytes, with the marks of ChatML as tokens of their own, of which some are special."""
    made = byte_tokenizer()
    for mark in ("<|im_start|>", "<|im_end|>"):
        made.add_tokens([tokenizers.AddedToken(mark, normalized=False)], special_tokens=mark in special)
    made.chat_template = template
    return made


def chosen(template, messages, roles=("assistant",), bos_id=0, tokens=None):
    """What is chosen, stretch by stretch, and the whole text, as a tokenizer of bytes has it."""
    tokens = tokens or tokenizer(template)
    talk = Conversation(tuple(messages), frozenset(roles))
    ((ids, mask),) = Template(tokens, "it").encode([(talk, "row 1")], bos_id)
    assert ids.shape == mask.shape
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
    return [tokens.decode(ids[low:high].tolist()) for low, high in edges.reshape(-1, 2)], tokens.decode(ids.tolist())


# ---------------------------------------------------------------------------------------------- which tokens


def test_a_messages_tokens_are_those_of_its_content():
    """Also where it says what its header says, where two say the same, and where it says nothing."""
    talk = [system("user"), user("assistant"), assistant("assistant\n"), user("é ok"), assistant("é ok"), assistant("")]
    found, whole = chosen(CHATML, talk)
    assert found == ["assistant\n", "é ok"]
    assert whole == "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in talk)
    assert chosen(CHATML, talk, ["user"])[0] == ["assistant", "é ok"]
    assert chosen(CHATML, talk, ["system", "assistant"])[0] == ["user", "assistant\n", "é ok"]
    assert chosen(CHATML, talk, ["tool"])[0] == []


def test_a_templates_own_marks_decide_where_only_the_assistant_is_asked_for():
    talk = [user("Hi"), assistant("Hello."), user("assistant"), assistant(" Yes")]
    assert chosen(MARKED, talk)[0] == ["Hello.<|im_end|>", " Yes<|im_end|>"]
    assert chosen(MARKED, talk, ["assistant", "user"])[0] == ["Hi", "Hello.", "assistant", " Yes"]
    assert chosen(MARKED, talk)[1] == chosen(CHATML, talk)[1]


def test_folded_trimmed_and_begun_again():
    """A BOS of the template's is dropped where contexts begin with one, and only the first."""
    talk = [system("Be brief. "), user(" Hi\n"), assistant("  Hello. "), user("Hi"), assistant("Hello.")]
    whole = "[INST] <<Be brief. >> Hi [/INST] Hello. <eos><bos>[INST] Hi [/INST] Hello. <eos>"
    assert chosen(LLAMA2, talk) == (["Hello.", "Hello."], whole)
    assert chosen(LLAMA2, talk, bos_id=None) == (["Hello.", "Hello."], "<bos>" + whole)
    assert chosen(LLAMA2, talk, ["system", "user"])[0] == ["Be brief. ", "Hi", "Hi"]


def test_templates_that_look_into_what_is_said():
    plain = [user("a"), assistant("b"), user("c"), assistant("d")]
    assert chosen(THINKING, plain) == (["b", "d"], "<user>a;<assistant>b;<user>c;<assistant><think></think>d;")
    thought = [user("a"), assistant("<think>no</think>b"), user("c"), assistant("<think>yes</think>d")]
    found, whole = chosen(THINKING, thought)
    assert whole == "<user>a;<assistant>b;<user>c;<assistant><think>yes</think>d;"
    assert found == ["b", "<think>yes</think>d"]


def test_what_cannot_be_told_apart_is_said():
    """A template that writes what the last message says at the top, too."""
    template = "{{ messages[-1].content }}|{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}"
    with pytest.raises(DataError, match=r"^row 1: which part of what the chat template of 'it' makes of it .* {% gen"):
        chosen(template, [user("a"), assistant("b")])


def test_every_day_is_the_same_day():
    template = "\n{% macro day() %}{{ strftime_now('%A') }}{% endmacro %}{{ strftime_now('%d %b %Y') }}, {{ day() }}"
    assert chosen(template + CHATML, [user("a"), assistant("b")])[1].startswith("\n26 Jul 2024, Friday<|im_start|>user")


def pieces(trim, *merges):
    """A tokenizer of bytes and these merges; with `trim`, offsets leave white space out, as GPT-2's do."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<bos>", *letters, *("".join(pair) for pair in merges)]
    made = tokenizers.Tokenizer(tokenizers.models.BPE({token: id for id, token in enumerate(tokens)}, list(merges)))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.post_processor = tokenizers.processors.ByteLevel(trim_offsets=trim)
    found = transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<bos>")
    found.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    return found


@pytest.mark.parametrize("trim", [False, True])
def test_a_token_that_lies_partly_in_a_message_is_one_of_it(trim):
    """` h` holds the header's space and the message's first letter; white space within a message is the message's."""
    talk = [user("hi"), assistant("hi   hi  ")]
    tokens = pieces(trim, ("Ġ", "h"), ("Ġ", "Ġ"))
    assert chosen("", talk, tokens=tokens)[0] == [" hi   hi  "]
    tokens = pieces(trim, ("Ġ", "Ġ"))
    assert chosen("", talk, tokens=tokens)[0] == ["hi   hi  "]


# ---------------------------------------------------------------------------------------------- what is wrong


def test_a_tokenizer_that_cannot_do_it_says_what_to_do(monkeypatch):
    with pytest.raises(StudyError, match=r"the tokenizer of 'it' has none: give .*, or put a chat_template\.jinja in"):
        Template(byte_tokenizer(), "it")
    with pytest.raises(StudyError, match=r"where in the text each token stands, and that of 'it' does not"):
        Template(SimpleNamespace(is_fast=False), "it")
    several = tokenizer({"rag": CHATML, "tool_use": CHATML})
    with pytest.raises(StudyError, match=r"'it' has \['rag', 'tool_use'\] as chat templates and none .* 'default'"):
        Template(several, "it")
    several.chat_template = {"rag": LLAMA2, "default": CHATML}
    assert chosen("", [user("a"), assistant("b")], tokens=several) == chosen(CHATML, [user("a"), assistant("b")])

    def broken(*_, **__):
        raise ImportError("apply_chat_template requires jinja2>=3.1.6 to be installed.")

    monkeypatch.setattr(several, "apply_chat_template", broken)
    with pytest.raises(StudyError, match=r"^text\.chat needs jinja2 3\.1\.6 or newer: pip install -U jinja2"):
        chosen("", [user("a"), assistant("b")], tokens=several)


@pytest.mark.parametrize("marks", [False, True])
def test_what_a_template_refuses_is_named(marks):
    answer = " {{ m.content | trim }} {{ eos_token }}"
    assert answer in LLAMA2
    template = LLAMA2.replace(answer, "{% generation %}" + answer + "{% endgeneration %}") if marks else LLAMA2
    talks = [[user("a"), assistant("b")], [user("a"), user("b"), assistant("c")]]
    named = [(Conversation(tuple(talk), frozenset({"assistant"})), f"row {n}") for n, talk in enumerate(talks, 1)]
    with pytest.raises(DataError, match=r"^row 2 is no conversation to .* 'it' \(roles must alternate\): leave the"):
        Template(tokenizer(template), "it").encode(named, 0)


# ---------------------------------------------------------------------------------------------- rows

TALKS = [
    [user(f"What is {n}?"), assistant(f"{n} is one{'.' * (n % 23)}"), user("Sure?" * (n % 7)), assistant(f"Yes, {n}!")]
    for n in range(40)
]


def write(path, talks, column="messages"):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({column: talks}), path)
    else:
        path.write_text("".join(json.dumps({"n": n, column: talk}) + "\n" for n, talk in enumerate(talks)))
    return path


def read(path, **options):
    return list(documents(TextConfig(source=str(path), **{"column": "messages", "chat": ("assistant",), **options})))


def test_every_way_to_write_conversations_down_gives_the_same_documents(tmp_path):
    found = read(write(tmp_path / "x.jsonl", TALKS))
    share = {"user": "human", "assistant": "gpt"}
    spelled = [[{"from": share[m["role"]], "value": m["content"]} for m in talk] for talk in TALKS]
    in_parts = [[{**m, "content": [{"type": "text", "text": m["content"]}]} for m in talk] for talk in TALKS]
    others = [
        read(write(tmp_path / "y.jsonl", spelled, "conversations"), column="conversations", chat=("gpt",)),
        read(write(tmp_path / "z.jsonl", in_parts)),
        read(write(tmp_path / "x.parquet", TALKS)),
        read(write(tmp_path / "y.parquet", [[{"name": None, **m} for m in talk] for talk in TALKS])),
        read(f"hf:{write(tmp_path / 'set' / 'train.jsonl', TALKS).parent}"),
    ]
    assert [document.chat.messages for document in found] == [tuple(talk) for talk in TALKS]
    for other in others:
        assert [(d.identity, d.text, d.chat) for d in other] == [(d.identity, d.text, d.chat) for d in found]
    assert len({document.identity for document in found}) == len(TALKS)
    assert len(read(write(tmp_path / "w.jsonl", [*TALKS, TALKS[3], [user("Anyone?")], []]))) == len(TALKS)


def test_tools_and_whatever_else_a_message_has_reach_the_template():
    message = "{{ m.role }}{{ m.tool_calls | default('') }}:{{ m.content | default('-') }};"
    template = "{% for m in messages %}" + message + "{% endfor %}"
    talk = [user("a"), {"role": "assistant", "tool_calls": "f(3)"}, {"role": "tool", "content": "9"}, assistant("nine")]
    assert chosen(template, talk) == (["nine"], "user:a;assistantf(3):-;tool:9;assistant:nine;")


@pytest.mark.parametrize(
    ("column", "options", "says"),
    [
        (TALKS[0], {"chat": None}, r"line 1 has a list in .*'messages', not text: .* text\.chat = \[\"assistant\"\]"),
        ("Hi", {}, r"x\.jsonl, line 1 has a str in its column 'messages', not the list of messages that text\.chat as"),
        (None, {}, r"x\.jsonl, line 1 has nothing in its column 'messages'\."),
        (["Hi"], {}, r"x\.jsonl, line 1, message 1 is none: it needs a role and a content, or from and value\."),
        ([user("a"), {"from": 3, "value": "b"}], {}, r"line 1, message 2 is none"),
        ([user("a"), {"content": "b"}], {}, r"line 1, message 2 is none"),
        ([user("a"), assistant(7)], {}, r"line 1, message 2 has 7 as its content, not text\."),
        ([user([{"type": "image", "url": "x"}])], {}, r"message 1 has \[\{\"type\": \"image\", \"url\": \"x\"\}\] as"),
        ([assistant("\ud800")], {}, r"line 1 has half of a character \('\\ud800'\) in its column 'messages'"),
        (TALKS[0], {"chat": ("asistant", "x")}, r"nothing that is said by asistant, x \(text\.chat\): .* by assistant"),
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_named(tmp_path, column, options, says):
    (tmp_path / "x.jsonl").write_text(json.dumps({"messages": column}) + "\n")
    with pytest.raises(DataError, match=says):
        read(tmp_path / "x.jsonl", **options)


def test_parquet_knows_before_it_reads(tmp_path):
    with pytest.raises(DataError, match=r"'messages' \(text\.column\) holds list<.*>, not text: if .* text\.chat = "):
        read(write(tmp_path / "x.parquet", TALKS), chat=None)
    with pytest.raises(DataError, match=r"'messages' \(text\.column\) holds string, not the lists of messages"):
        read(write(tmp_path / "x.parquet", ["a", "b"]))


def test_text_has_no_roles(tmp_path):
    (tmp_path / "x.txt").write_text("text")
    for source in (tmp_path / "x.txt", "stdlib", "-"):
        found = source_of(TextConfig(source=str(source), chat=("assistant",))).objection()
        assert found.startswith("which is text: text.chat needs rows of messages, in JSON Lines, Parquet or a Hugging")
    assert source_of(TextConfig(source="./gone", chat=("user",))).objection().startswith("which does not exist")


# ---------------------------------------------------------------------------------------------- contexts


def lm(template=CHATML, bos_id=0, context=48, roles_special=("<|im_start|>", "<|im_end|>")):
    """An LM as `tokenize` sees it."""
    tokens = tokenizer(template, roles_special)
    special = np.zeros(300, bool)
    special[tokens.all_special_ids] = True
    special[[id for id, token in tokens.added_tokens_decoder.items() if token.special]] = True
    made = Template(tokens, "it")
    return SimpleNamespace(
        bos_id=bos_id, context=context, batch=3, vocabulary=300, name="it", special=special, tokenizer=tokens,
        encode=lambda texts: [np.zeros(0)] * len(texts), encode_conversations=lambda talks: made.encode(talks, bos_id),
    )  # fmt: skip


def trained(contexts, model):
    """What each document's trained tokens say, one after the other, whichever contexts they stand in."""
    found = {}
    for group in range(contexts.groups):
        labels = contexts.labels(group)
        mask, ids = contexts.trained(group), contexts.ids(group)
        assert mask.sum() == contexts.rows_per_group[group] == len(labels["token"]) > 0
        assert contexts.scored(group).sum() == contexts.scored_per_group[group] > 0
        assert not (contexts.scored(group) & ~mask).any()
        assert labels["token"].tolist() == ids[mask].tolist()
        assert labels["position"].tolist() == np.nonzero(mask)[1].tolist()
        chunk = contexts.chunk(group)[mask]
        assert labels["document"].tolist() == contexts.document(group)[chunk].tolist()
        first = contexts._first[contexts.of(group).start]
        for number, token in zip(chunk.tolist(), labels["token"].tolist(), strict=True):
            found.setdefault(int(contexts.start[first + number]), []).append(token)
    said = {}
    for start in sorted(found):
        chunk = np.flatnonzero(contexts.start == start)[0]
        said.setdefault(contexts.identities[contexts.owner[chunk]], []).extend(found[start])
    return {identity: model.tokenizer.decode(tokens) for identity, tokens in said.items()}


def answers(talks):
    """By identity, what an assistant says in all."""
    found = (Conversation(tuple(talk), frozenset({"assistant"})) for talk in talks)
    return {one.digest.hex(): one.chosen.replace("\n\n", "") for one in found}


def cut(document, model):
    """What is trained of one document, worked out chunk by chunk in the plainest way."""
    ((ids, chosen),) = model.encode_conversations([(document.chat, "")])
    lead, found = int(model.bos_id is not None), []
    for first in range(0, len(ids), model.context - lead):
        chunk = slice(first, first + model.context - lead)
        usable = [bool(c) and not model.special[i] for i, c in zip(ids[chunk], chosen[chunk], strict=True)]
        if not lead:
            usable[0] = False
        if any(usable[:-1]):
            found += [i for i, use in zip(ids[chunk].tolist(), usable, strict=True) if use]
    return model.tokenizer.decode(found)


@pytest.mark.parametrize("bos_id", [0, None])
@pytest.mark.parametrize("packing", ["none", "isolated", "plain"])
def test_only_the_assistant_is_trained_on_in_every_packing(tmp_path, packing, bos_id):
    found, model, both = read(write(tmp_path / "x.jsonl", TALKS)), lm(bos_id=bos_id), {}
    made = tokenize_into(tmp_path, found, model, "inputs", held_out=0.3, packing=packing)
    for split in SPLITS:
        loaded = Contexts.load(tmp_path / split)
        assert (loaded.digest, loaded.packing) == (made[split].digest, packing)
        said = trained(loaded, model)
        assert said.keys() <= set(loaded.identities)
        assert not said.keys() & both.keys()
        both |= said
    by_hand = {document.identity: cut(document, model) for document in found}
    assert both == {identity: said for identity, said in by_hand.items() if said}
    assert sum(map(len, both.values())) > 0.9 * sum(map(len, answers(TALKS).values()))


def test_by_hand_chunk_by_chunk(tmp_path):
    """One conversation in contexts of 1 + 9: every token a byte, `S` and `E` special."""
    talk = [user("abcdefghijklmn"), assistant("opqrst"), user("u"), assistant("vw")]
    template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    model = lm(template, context=10)
    contexts = tokenize(read(write(tmp_path / "x.jsonl", [talk])), model, split="train", held_out=1e-9)
    found = {}
    for group in range(contexts.groups):
        ids, trained, scored = contexts.ids(group), contexts.trained(group), contexts.scored(group)
        for row, is_trained, is_scored in zip(ids, trained, scored, strict=True):
            text = model.tokenizer.decode(row.tolist()).replace("<|im_start|>", "S").replace("<|im_end|>", "E")
            text = text.replace("<bos>", "^").rstrip("^")
            marks = ["".join("x" if m else "." for m in mask)[: len(text)] for mask in (is_trained, is_scored)]
            found[text] = marks
    # S a…h is the user's alone, and what the assistant says in ijklmnESo, o, has no next token there to be scored by.
    assert found == {"^pqrstESuE": [".xxxxx....", ".xxxxx...."], "^SvwE": ["..xx.", "..xx."]}
    assert contexts.rows == 7


def test_what_a_user_says_changes_no_trained_token(tmp_path):
    model = lm(context=400)
    changed = [[user(m["content"][::-1] + "?!") if m["role"] == "user" else m for m in talk] for talk in TALKS]
    said = []
    for name, talks in (("x", TALKS), ("y", changed)):
        contexts = tokenize(read(write(tmp_path / f"{name}.jsonl", talks)), model, split="train", held_out=1e-9)
        said.append(sorted(trained(contexts, model).values()))
        assert contexts.rows == sum(len(text) for text in answers(TALKS).values())
    assert said[0] == said[1] == sorted(answers(TALKS).values())


def test_marks_that_are_not_special_are_trained_on_where_the_template_says_so(tmp_path):
    found = read(write(tmp_path / "x.jsonl", TALKS))
    rows = [
        tokenize(found, lm(MARKED, context=400, roles_special=special), split="train", held_out=1e-9).rows
        for special in (("<|im_start|>", "<|im_end|>"), ("<|im_start|>",))
    ]
    assert rows[1] == rows[0] + 2 * len(TALKS)  # each answer ends in one


def test_a_killed_call_goes_on_with_what_is_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD", 300)
    monkeypatch.setattr(module, "_CHARACTERS", 150)
    monkeypatch.setattr(module, "_AT_ONCE", 113)
    found, model = read(write(tmp_path / "x.jsonl", TALKS)), lm()
    whole = tokenize_into(tmp_path / "whole", found, model, "inputs", held_out=0.3)
    encode, left = model.encode_conversations, 9

    def dying(talks):
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return encode(talks)

    model.encode_conversations = dying
    with pytest.raises(KeyboardInterrupt):
        tokenize_into(tmp_path / "cut", found, model, "inputs", held_out=0.3)
    shards = sorted((tmp_path / "cut").rglob("tokens-*"))
    before, left = [path.stat().st_ino for path in shards], 10**6
    assert len(shards) > 1
    again = tokenize_into(tmp_path / "cut", found, model, "inputs", held_out=0.3)
    assert [path.stat().st_ino for path in shards] == before
    for split in SPLITS:
        assert again[split].digest == whole[split].digest
        loaded = Contexts.load(tmp_path / "cut" / split)
        assert loaded.rows_per_group.tolist() == whole[split].rows_per_group.tolist()
        assert len(loaded.chosen) == len(loaded.tokens)
    left = 1  # nothing is left to encode
    done = tokenize_into(tmp_path / "cut", found, model, "inputs", held_out=0.3)
    assert done["train"].digest == whole["train"].digest


def test_what_is_chosen_is_part_of_the_digest_and_checked(tmp_path):
    contexts = tokenize(read(write(tmp_path / "x.jsonl", TALKS)), lm(), split="train", held_out=1e-9)
    contexts.save(tmp_path / "a")
    loaded = Contexts.load(tmp_path / "a")
    assert loaded.digest == contexts.digest
    assert trained(loaded, lm()) == trained(contexts, lm())
    both = read(tmp_path / "x.jsonl", chat=("assistant", "user"))
    other = tokenize(both, lm(), split="train", held_out=1e-9)
    assert np.array_equal(other.tokens, contexts.tokens)
    assert other.digest != contexts.digest
    other.save(tmp_path / "b")
    (tmp_path / "b" / "tokens-00000.safetensors").replace(tmp_path / "a" / "tokens-00000.safetensors")
    with pytest.raises(ArtefactError, match="tokens of another text"):
        Contexts.load(tmp_path / "a")


def test_max_tokens_cuts_what_is_chosen_too(tmp_path):
    found = read(write(tmp_path / "x.jsonl", TALKS))
    contexts = tokenize(found, lm(), split="train", held_out=1e-9, max_tokens=505)
    assert len(contexts.tokens) == len(contexts.chosen) == 505
    assert np.array_equal(contexts.chosen, tokenize(found, lm(), split="train", held_out=1e-9).chosen[:505])


def test_conversations_in_which_nothing_can_be_trained_on_are_said(tmp_path):
    path = write(tmp_path / "x.jsonl", [[user("a" * 90), assistant("<eos>")]])
    with pytest.raises(DataError, match=r"the training text has no token by a role of text\.chat to train on: give"):
        tokenize(read(path), lm(), split="train", held_out=1e-9)


# ---------------------------------------------------------------------------------------------- digests


def test_roles_and_templates_are_part_of_what_tokens_are(tmp_path):
    path = write(tmp_path / "x.jsonl", TALKS)
    model = tmp_path / "model"
    byte_tokenizer().save_pretrained(model)
    config = LMConfig(model=str(model))

    def tokens(chat):
        return fingerprint.of_tokens(config, source_of(TextConfig(source=str(path), chat=chat)))

    plain, roles = tokens(None), tokens(("assistant",))
    assert len({plain, roles, tokens(("assistant", "user"))}) == 3
    (model / "chat_template.jinja").write_text(CHATML)
    assert tokens(None) == plain  # as before there were conversations
    assert tokens(("assistant",)) != roles
    assert fingerprint.of_template(config).keys() == {"chat_template.jinja"}
    assert json.loads(json.dumps(fingerprint.settings(TextConfig(chat=("user",))))) == fingerprint.settings(
        TextConfig(chat=("user",))
    )
