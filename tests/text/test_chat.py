"""Conversations: which tokens of a rendered conversation are trained on, from the file to the saved contexts."""

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
from jumpahead.lm.config import LMConfig
from jumpahead.lm.fingerprint import chat_template_digests, to_json_values, tokens_digest
from jumpahead.text import contexts as contexts_module
from jumpahead.text import near_duplicates
from jumpahead.text import tokenize as tokenize_module
from jumpahead.text.chat import Conversation
from jumpahead.text.chat_template import ChatTemplate
from jumpahead.text.config import TextConfig
from jumpahead.text.contexts import SPLITS, Contexts
from jumpahead.text.documents import documents
from jumpahead.text.sources import source_of
from jumpahead.text.tokenize import tokenize, tokenize_splits
from tests.conftest import byte_tokenizer

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
)
# The system prompt is folded into the user's turn, turns alternate, and each of the user's turns begins with BOS.
LLAMA2 = (
    "{% set talk = messages[1:] if messages[0].role == 'system' else messages %}{% for m in talk %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token }}[INST] "
    "{% if loop.first and messages[0].role == 'system' %}<<{{ messages[0].content }}>> {% endif %}"
    "{{ m.content | trim }} [/INST]{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
# As in Qwen 3: reasoning is removed from all turns but the last, which has a place for it even without reasoning.
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


def trained_spans(template, messages, roles=("assistant",), bos_id=0, tokens=None):
    """Return the trained spans and the whole rendered text, by a tokenizer of bytes."""
    tokens = tokens or tokenizer(template)
    talk = Conversation(tuple(messages), frozenset(roles))
    ((ids, mask),) = ChatTemplate(tokens, "it").encode([(talk, "row 1")], bos_id)
    assert ids.shape == mask.shape
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
    return [tokens.decode(ids[low:high].tolist()) for low, high in edges.reshape(-1, 2)], tokens.decode(ids.tolist())


# ---------------------------------------------------------------------------------------------- which tokens


def test_a_messages_tokens_are_those_of_its_content():
    """Also where it says what its header says, where two say the same, and where it says nothing."""
    talk = [system("user"), user("assistant"), assistant("assistant\n"), user("é ok"), assistant("é ok"), assistant("")]
    found, whole = trained_spans(CHATML, talk)
    assert found == ["assistant\n", "é ok"]
    assert whole == "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in talk)
    assert trained_spans(CHATML, talk, ["user"])[0] == ["assistant", "é ok"]
    assert trained_spans(CHATML, talk, ["system", "assistant"])[0] == ["user", "assistant\n", "é ok"]
    assert trained_spans(CHATML, talk, ["tool"])[0] == []


def test_a_templates_own_marks_decide_where_only_the_assistant_is_asked_for():
    talk = [user("Hi"), assistant("Hello."), user("assistant"), assistant(" Yes")]
    assert trained_spans(MARKED, talk)[0] == ["Hello.<|im_end|>", " Yes<|im_end|>"]
    assert trained_spans(MARKED, talk, ["assistant", "user"])[0] == ["Hi", "Hello.", "assistant", " Yes"]
    assert trained_spans(MARKED, talk)[1] == trained_spans(CHATML, talk)[1]


def test_templates_that_fold_and_trim_messages():
    """A BOS of the template's is dropped where contexts begin with one, and only the first."""
    talk = [system("Be brief. "), user(" Hi\n"), assistant("  Hello. "), user("Hi"), assistant("Hello.")]
    whole = "[INST] <<Be brief. >> Hi [/INST] Hello. <eos><bos>[INST] Hi [/INST] Hello. <eos>"
    assert trained_spans(LLAMA2, talk) == (["Hello.", "Hello."], whole)
    assert trained_spans(LLAMA2, talk, bos_id=None) == (["Hello.", "Hello."], "<bos>" + whole)
    assert trained_spans(LLAMA2, talk, ["system", "user"])[0] == ["Be brief. ", "Hi", "Hi"]


def test_templates_that_parse_the_content():
    plain = [user("a"), assistant("b"), user("c"), assistant("d")]
    assert trained_spans(THINKING, plain) == (["b", "d"], "<user>a;<assistant>b;<user>c;<assistant><think></think>d;")
    thought = [user("a"), assistant("<think>no</think>b"), user("c"), assistant("<think>yes</think>d")]
    found, whole = trained_spans(THINKING, thought)
    assert whole == "<user>a;<assistant>b;<user>c;<assistant><think>yes</think>d;"
    assert found == ["b", "<think>yes</think>d"]


def test_templates_that_mix_contents_are_refused():
    """The template writes the last content at the top, too."""
    template = "{{ messages[-1].content }}|{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}"
    with pytest.raises(DataError, match=r"^row 1: the chat template of 'it' mixes the contents of several .* {% gen"):
        trained_spans(template, [user("a"), assistant("b")])


def test_the_date_is_fixed():
    template = "\n{% macro day() %}{{ strftime_now('%A') }}{% endmacro %}{{ strftime_now('%d %b %Y') }}, {{ day() }}"
    assert trained_spans(template + CHATML, [user("a"), assistant("b")])[1].startswith(
        "\n26 Jul 2024, Friday<|im_start|>user"
    )


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
    assert trained_spans("", talk, tokens=tokens)[0] == [" hi   hi  "]
    tokens = pieces(trim, ("Ġ", "Ġ"))
    assert trained_spans("", talk, tokens=tokens)[0] == ["hi   hi  "]


# ---------------------------------------------------------------------------------------------- what is wrong


def test_tokenizers_that_cannot_be_used_are_refused(monkeypatch):
    with pytest.raises(StudyError, match=r"the tokenizer of 'it' has none: give .*, or put a chat_template\.jinja in"):
        ChatTemplate(byte_tokenizer(), "it")
    with pytest.raises(StudyError, match=r"each token's position in the text, and that of 'it' does not"):
        ChatTemplate(SimpleNamespace(is_fast=False), "it")
    several = tokenizer({"rag": CHATML, "tool_use": CHATML})
    with pytest.raises(StudyError, match=r"'it' has \['rag', 'tool_use'\] as chat templates and none .* 'default'"):
        ChatTemplate(several, "it")
    several.chat_template = {"rag": LLAMA2, "default": CHATML}
    assert trained_spans("", [user("a"), assistant("b")], tokens=several) == trained_spans(
        CHATML, [user("a"), assistant("b")]
    )

    def broken(*_, **__):
        raise ImportError("apply_chat_template requires jinja2>=3.1.6 to be installed.")

    monkeypatch.setattr(several, "apply_chat_template", broken)
    with pytest.raises(StudyError, match=r"^text\.chat needs jinja2 3\.1\.6 or newer: pip install -U jinja2"):
        trained_spans("", [user("a"), assistant("b")], tokens=several)


@pytest.mark.parametrize("marks", [False, True])
def test_the_conversation_that_a_template_refuses_is_named(marks):
    answer = " {{ m.content | trim }} {{ eos_token }}"
    assert answer in LLAMA2
    template = LLAMA2.replace(answer, "{% generation %}" + answer + "{% endgeneration %}") if marks else LLAMA2
    talks = [[user("a"), assistant("b")], [user("a"), user("b"), assistant("c")]]
    named = [(Conversation(tuple(talk), frozenset({"assistant"})), f"row {n}") for n, talk in enumerate(talks, 1)]
    with pytest.raises(
        DataError, match=r"^row 2 is not a conversation .* 'it' accepts \(roles must alternate\): leave"
    ):
        ChatTemplate(tokenizer(template), "it").encode(named, 0)


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


def content(document):
    return document.identity, document.text, document.conversation


def test_every_format_of_conversations_gives_the_same_documents(tmp_path):
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
    assert [document.conversation.messages for document in found] == [tuple(talk) for talk in TALKS]
    for other in others:
        assert [(d.identity, d.text, d.conversation) for d in other] == [
            (d.identity, d.text, d.conversation) for d in found
        ]
    assert len({document.identity for document in found}) == len(TALKS)
    assert len(read(write(tmp_path / "w.jsonl", [*TALKS, TALKS[3], [user("Anyone?")], []]))) == len(TALKS)


def test_all_keys_of_a_message_reach_the_template():
    message = "{{ m.role }}{{ m.tool_calls | default('') }}:{{ m.content | default('-') }};"
    template = "{% for m in messages %}" + message + "{% endfor %}"
    talk = [user("a"), {"role": "assistant", "tool_calls": "f(3)"}, {"role": "tool", "content": "9"}, assistant("nine")]
    assert trained_spans(template, talk) == (["nine"], "user:a;assistantf(3):-;tool:9;assistant:nine;")


@pytest.mark.parametrize(
    ("column", "options", "says"),
    [
        (TALKS[0], {"chat": None}, r"line 1 has a list in .*'messages', not text\. .* text\.chat = \[\"assistant\"\]"),
        ("Hi", {}, r"x\.jsonl, line 1 has a str in its column 'messages', not the list of messages that text\.chat ne"),
        (None, {}, r"x\.jsonl, line 1 has nothing in its column 'messages'\."),
        (["Hi"], {}, r"x\.jsonl, line 1, message 1 is not a message: it needs a role and a content, or from"),
        ([user("a"), {"from": 3, "value": "b"}], {}, r"line 1, message 2 is not a message"),
        ([user("a"), {"content": "b"}], {}, r"line 1, message 2 is not a message"),
        ([user("a"), assistant(7)], {}, r"line 1, message 2 has 7 as its content, not text\."),
        ([user([{"type": "image", "url": "x"}])], {}, r"message 1 has \[\{\"type\": \"image\", \"url\": \"x\"\}\] as"),
        ([assistant("\ud800")], {}, r"line 1 has half of a character \('\\ud800'\) in its column 'messages'"),
        (TALKS[0], {"chat": ("asistant", "x")}, r"no message by asistant, x \(text\.chat\)\. .* messages: assistant"),
    ],
)  # fmt: skip
def test_rows_that_are_not_conversations_are_named(tmp_path, column, options, says):
    (tmp_path / "x.jsonl").write_text(json.dumps({"messages": column}) + "\n")
    with pytest.raises(DataError, match=says):
        read(tmp_path / "x.jsonl", **options)


def test_parquet_is_refused_by_its_column_type(tmp_path):
    with pytest.raises(DataError, match=r"'messages' \(text\.column\) holds list<.*>, not text\. If .* text\.chat = "):
        read(write(tmp_path / "x.parquet", TALKS), chat=None)
    with pytest.raises(DataError, match=r"'messages' \(text\.column\) holds string, not the lists of messages"):
        read(write(tmp_path / "x.parquet", ["a", "b"]))


def test_sources_without_rows_cannot_have_text_chat(tmp_path):
    (tmp_path / "x.txt").write_text("text")
    for source in (tmp_path / "x.txt", "stdlib", "-"):
        found = source_of(TextConfig(source=str(source), chat=("assistant",))).problem()
        assert found.startswith("which is text: text.chat needs rows of messages, in JSON Lines, Parquet or a Hugging")
    assert source_of(TextConfig(source="./gone", chat=("user",))).problem().startswith("which does not exist")


# ---------------------------------------------------------------------------------------------- contexts


def lm(template=CHATML, bos_id=0, context=48, roles_special=("<|im_start|>", "<|im_end|>")):
    """Return what `tokenize` needs of an LM."""
    tokens = tokenizer(template, roles_special)
    special = np.zeros(300, bool)
    special[tokens.all_special_ids] = True
    special[[id for id, token in tokens.added_tokens_decoder.items() if token.special]] = True
    made = ChatTemplate(tokens, "it")
    return SimpleNamespace(
        bos_id=bos_id, context=context, batch=3, vocab_size=300, name="it", is_special=special, tokenizer=tokens,
        encode=lambda texts: [np.zeros(0)] * len(texts), encode_conversations=lambda talks: made.encode(talks, bos_id),
    )  # fmt: skip


def trained(contexts, model):
    """Return the text of each document's trained tokens, by identity."""
    found = {}
    for group in range(contexts.num_groups):
        labels = contexts.token_labels(group)
        mask, ids = contexts.trained_mask(group), contexts.ids(group)
        assert mask.sum() == contexts.rows_per_group[group] == len(labels["token"]) > 0
        assert contexts.scored_mask(group).sum() == contexts.scored_per_group[group] > 0
        assert not (contexts.scored_mask(group) & ~mask).any()
        assert labels["token"].tolist() == ids[mask].tolist()
        assert labels["position"].tolist() == np.nonzero(mask)[1].tolist()
        chunk = contexts.chunk_index(group)[mask]
        assert labels["document"].tolist() == contexts.chunk_documents(group)[chunk].tolist()
        first = contexts._chunk_offsets[contexts.context_slice(group).start]
        for number, token in zip(chunk.tolist(), labels["token"].tolist(), strict=True):
            found.setdefault(int(contexts.chunk_start[first + number]), []).append(token)
    said = {}
    for start in sorted(found):
        chunk = np.flatnonzero(contexts.chunk_start == start)[0]
        said.setdefault(contexts.document_ids[contexts.chunk_document[chunk]], []).extend(found[start])
    return {identity: model.tokenizer.decode(tokens) for identity, tokens in said.items()}


def answers(talks):
    """Return the assistant's text of each conversation, by identity."""
    found = (Conversation(tuple(talk), frozenset({"assistant"})) for talk in talks)
    return {one.digest.hex(): one.trained_text.replace("\n\n", "") for one in found}


def cut(document, model):
    """Return the text of one document's trained tokens, computed chunk by chunk in a simple loop."""
    ((ids, chosen),) = model.encode_conversations([(document.conversation, "")])
    lead, found = int(model.bos_id is not None), []
    for first in range(0, len(ids), model.context - lead):
        chunk = slice(first, first + model.context - lead)
        usable = [bool(c) and not model.is_special[i] for i, c in zip(ids[chunk], chosen[chunk], strict=True)]
        if not lead:
            usable[0] = False
        if any(usable[:-1]):
            found += [i for i, use in zip(ids[chunk].tolist(), usable, strict=True) if use]
    return model.tokenizer.decode(found)


@pytest.mark.parametrize("bos_id", [0, None])
@pytest.mark.parametrize("packing", ["none", "isolated", "plain"])
def test_only_the_assistant_is_trained_on_in_every_packing(tmp_path, packing, bos_id, monkeypatch):
    monkeypatch.setattr(near_duplicates, "MAX_SHARED", 1.0)  # some of these answers differ in a digit only
    found, model, both = read(write(tmp_path / "x.jsonl", TALKS)), lm(bos_id=bos_id), {}
    made = tokenize_splits(tmp_path, found, model, "inputs", held_out=0.3, packing=packing)
    for split in SPLITS:
        loaded = Contexts.load(tmp_path / split)
        assert (loaded.digest, loaded.packing) == (made[split].digest, packing)
        said = trained(loaded, model)
        assert said.keys() <= set(loaded.document_ids)
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
    for group in range(contexts.num_groups):
        ids, trained, scored = contexts.ids(group), contexts.trained_mask(group), contexts.scored_mask(group)
        for row, is_trained, is_scored in zip(ids, trained, scored, strict=True):
            text = model.tokenizer.decode(row.tolist()).replace("<|im_start|>", "S").replace("<|im_end|>", "E")
            text = text.replace("<bos>", "^").rstrip("^")
            marks = ["".join("x" if m else "." for m in mask)[: len(text)] for mask in (is_trained, is_scored)]
            found[text] = marks
    # S a…h is the user's alone, and what the assistant says in ijklmnESo, o, has no next token there to be scored by.
    assert found == {"^pqrstESuE": [".xxxxx....", ".xxxxx...."], "^SvwE": ["..xx.", "..xx."]}
    assert contexts.rows == 7


def test_the_users_messages_change_no_trained_token(tmp_path):
    model = lm(context=400)
    changed = [[user(m["content"][::-1] + "?!") if m["role"] == "user" else m for m in talk] for talk in TALKS]
    said = []
    for name, talks in (("x", TALKS), ("y", changed)):
        contexts = tokenize(read(write(tmp_path / f"{name}.jsonl", talks)), model, split="train", held_out=1e-9)
        said.append(sorted(trained(contexts, model).values()))
        assert contexts.rows == sum(len(text) for text in answers(TALKS).values())
    assert said[0] == said[1] == sorted(answers(TALKS).values())


def test_end_of_turn_tokens_are_trained_on_if_marked_and_not_special(tmp_path):
    found = read(write(tmp_path / "x.jsonl", TALKS))
    rows = [
        tokenize(found, lm(MARKED, context=400, roles_special=special), split="train", held_out=1e-9).rows
        for special in (("<|im_start|>", "<|im_end|>"), ("<|im_start|>",))
    ]
    assert rows[1] == rows[0] + 2 * len(TALKS)  # each answer ends in one


def test_an_interrupted_call_continues_with_the_role_mask(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenize_module, "TOKENS_PER_SHARD", 300)
    monkeypatch.setattr(tokenize_module, "_CHARACTERS_AT_ONCE", 150)
    monkeypatch.setattr(contexts_module, "_TOKENS_AT_ONCE", 113)
    found, model = read(write(tmp_path / "x.jsonl", TALKS)), lm()
    whole = tokenize_splits(tmp_path / "whole", found, model, "inputs", held_out=0.3)
    encode, left = model.encode_conversations, 9

    def dying(talks):
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return encode(talks)

    model.encode_conversations = dying
    with pytest.raises(KeyboardInterrupt):
        tokenize_splits(tmp_path / "cut", found, model, "inputs", held_out=0.3)
    shards = sorted((tmp_path / "cut").rglob("tokens-*"))
    before, left = [path.stat().st_ino for path in shards], 10**6
    assert len(shards) > 1
    again = tokenize_splits(tmp_path / "cut", found, model, "inputs", held_out=0.3)
    assert [path.stat().st_ino for path in shards] == before
    for split in SPLITS:
        assert again[split].digest == whole[split].digest
        loaded = Contexts.load(tmp_path / "cut" / split)
        assert loaded.rows_per_group.tolist() == whole[split].rows_per_group.tolist()
        assert len(loaded.role_mask) == len(loaded.tokens)
    left = 1  # nothing is left to encode
    done = tokenize_splits(tmp_path / "cut", found, model, "inputs", held_out=0.3)
    assert done["train"].digest == whole["train"].digest


def test_the_role_mask_is_part_of_the_digest(tmp_path):
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


def test_max_tokens_cuts_the_role_mask_too(tmp_path):
    found = read(write(tmp_path / "x.jsonl", TALKS))
    contexts = tokenize(found, lm(), split="train", held_out=1e-9, max_tokens=505)
    assert len(contexts.tokens) == len(contexts.role_mask) == 505
    assert np.array_equal(contexts.role_mask, tokenize(found, lm(), split="train", held_out=1e-9).role_mask[:505])


def test_conversations_without_trainable_tokens_are_refused(tmp_path):
    path = write(tmp_path / "x.jsonl", [[user("a" * 90), assistant("<eos>")]])
    with pytest.raises(DataError, match=r"The training text has no token by a role of text\.chat to train on: give"):
        tokenize(read(path), lm(), split="train", held_out=1e-9)


# ---------------------------------------------------------------------------------------------- digests


def test_roles_and_templates_are_part_of_the_tokens_digest(tmp_path):
    path = write(tmp_path / "x.jsonl", TALKS)
    model = tmp_path / "model"
    byte_tokenizer().save_pretrained(model)
    config = LMConfig(model=str(model))

    def tokens(chat):
        return tokens_digest(config, source_of(TextConfig(source=str(path), chat=chat)))

    plain, roles = tokens(None), tokens(("assistant",))
    assert len({plain, roles, tokens(("assistant", "user"))}) == 3
    (model / "chat_template.jinja").write_text(CHATML)
    assert tokens(None) == plain
    assert tokens(("assistant",)) != roles
    assert chat_template_digests(config).keys() == {"chat_template.jinja"}
    assert json.loads(json.dumps(to_json_values(TextConfig(chat=("user",))))) == to_json_values(
        TextConfig(chat=("user",))
    )
