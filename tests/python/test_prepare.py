"""`sherd data prepare`: tokens against the tokenizer's own, masks against hand-made ones and transformers'."""
import json
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from conftest import GOLDEN
from preparing import (
    CHAT,
    CHATML,
    MARKED,
    SENTENCES,
    SEPARATOR,
    byte_level,
    expected_stream,
    folder,
    main,
    metaspace,
    prepare,
    prepared,
    tokenizers,
    words,
    write_lines,
)
from sherd_command import inputs
from sherd_command.encoding import ModelFolder, encode_long


def test_texts_are_the_tokenizers_tokens_each_with_the_separator(folder, prepared, tmp_path):
    texts = tmp_path / "texts"
    (texts / "b" / ".hidden").mkdir(parents=True)
    contents = {"a.txt": "Hello world,\r\nhow are you?\n", "b/c.md": "# É 🙂\n", "b/d.jsonl": None, "z.txt": "\n"}
    for name, content in contents.items():
        if content is not None:
            (texts / name).write_bytes(content.encode())
    write_lines(texts / "b/d.jsonl", {"text": "one"}, "", {"text": ""}, {"text": "two é\n", "other": 1})
    (texts / "b/.hidden/no.txt").write_text("hidden")
    (texts / "no.csv").write_text("other")
    documents = [contents["a.txt"], contents["b/c.md"], "one", "two é\n", "\n"]
    model = folder()
    tokens, mask, facts = prepared(texts, texts / "z.txt", "--model", model)
    assert tokens == expected_stream(byte_level(), documents) and mask is None
    assert facts["documents"] == 5 and facts["empty_documents"] == 1 and facts["vocabulary"] == 300
    assert [(each["path"], each["documents"]) for each in facts["inputs"]] == [
        (str(texts / name), 2 if name == "b/d.jsonl" else 1) for name in contents]
    assert facts["data"] == {"tokens": str(tmp_path / "out.bin"), "token_type": "uint16", "separator": SEPARATOR}
    digest = subprocess.run(["sha256sum", model / "tokenizer.json"], capture_output=True, text=True).stdout.split()[0]
    assert facts["tokenizer_sha256"] == digest
    globbed, _, _ = prepared(tmp_path / "t*" / "**" / "*.md", texts / "a*", "--model", model, "--token-type", "uint32")
    assert globbed == expected_stream(byte_level(), [contents["b/c.md"], contents["a.txt"]])


def test_other_names_are_texts_if_the_format_says_so(folder, prepared, tmp_path):
    (tmp_path / "a.py").write_text("Hello")
    tokens, _, _ = prepared(tmp_path / "*.py", "--format", "text", "--model", folder())
    assert tokens == expected_stream(byte_level(), ["Hello"])


def test_the_tokenizers_own_special_tokens_stay_and_its_separator_is_not_doubled(folder, prepared, tmp_path):
    tokenizer = byte_level()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>",
                                                             special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    (tmp_path / "a.txt").write_text("Hello world, how are you?")
    model = folder(tokenizer, eos="</s>")
    tokens, _, _ = prepared(tmp_path / "a.txt", "--model", model)
    assert tokens == [0, *byte_level().encode("Hello world, how are you?").ids, 1]
    pair = write_lines(tmp_path / "p.jsonl", {"prompt": "Hello", "completion": " world"})
    (model / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    tokens, mask, _ = prepared(pair, "--model", model)
    prompt, completion = (byte_level().encode(text).ids for text in ("Hello", " world"))
    assert tokens == [0, *prompt, *completion, 1]
    assert mask == [0] * (1 + len(prompt)) + [1] * len(completion) + [1]


def test_a_large_vocabulary_takes_uint32_and_a_token_too_large_is_named(folder, prepare, prepared, tmp_path):
    model = folder(words(65537), eos="</s>")
    file = write_lines(tmp_path / "a.jsonl", {"text": "w1 w2"}, {"text": "w65536"})
    tokens, _, facts = prepared(file, "--model", model)
    assert tokens == [1, 2, 0, 65536, 0] and facts["token_type"] == "uint32" and facts["vocabulary"] == 65537
    for name in ("out.bin", "out.json"):
        (tmp_path / name).unlink()
    code, stderr = prepare(file, "--model", model, "--token-type", "uint16")
    assert code == 2 and f"{file}:2: the token 65536 ('w65536'), expected ids that fit into uint16" in stderr
    code, stderr = prepare(file, "--model", folder(words(65537), eos="</s>", config={"vocab_size": 65536}))
    assert code == 2 and "the model's vocabulary of 65536" in stderr
    write_lines(file, {"body": "w1"})
    facts = prepared(file, "--model", folder(words(65536), eos="</s>"), "--field", "body", "--separator", "w5")[2]
    assert facts["token_type"] == "uint16" and facts["separator"] == 5


@pytest.mark.parametrize("make", [byte_level, metaspace])
def test_a_long_text_in_pieces_has_the_tokens_of_the_whole(folder, prepared, tmp_path, monkeypatch, make):
    random = np.random.default_rng(0)
    text = "".join(SENTENCES[i] + "\n" * int(random.integers(0, 3)) + "é🙂 " for i in random.integers(0, 5, 400))
    tokenizer, text = make(), text + "a" * 2000 + text
    (tmp_path / "a.txt").write_text(text)
    write_lines(tmp_path / "b.jsonl", {"text": text})
    ids = tokenizer.encode(text).ids
    model = folder(tokenizer, eos="</s>")
    for long, jobs in ((4096, 1), (4096, 3), (1000, 2), (100, 1)):  # 100: an overlap has no run of 32 tokens
        monkeypatch.setattr(inputs, "LONG", long)
        tokens, _, _ = prepared(tmp_path / "a.txt", tmp_path / "b.jsonl", "--model", model, "--jobs", jobs)
        assert tokens == [*ids, 1, *ids, 1]
    tokens, mask, facts = prepared(tmp_path / "a.txt", "--model", model, "--max-document-tokens", len(ids))
    assert tokens == [*ids[:-1], 1] and facts["cut_documents"] == 1
    assert mask == [1] * (len(ids) - 1) + [0], "a document does not end where it is cut"
    tokens, mask, facts = prepared(tmp_path / "a.txt", "--model", model, "--max-document-tokens", len(ids) + 1)
    assert tokens == [*ids, 1] and mask is None and facts["cut_documents"] == 0


def test_the_windows_of_a_long_text_are_bounded(folder):
    sizes = []
    tokenizer = ModelFolder(str(folder())).tokenizer

    class Watched:
        def encode(self, text, **options):
            sizes.append(len(text))
            return tokenizer.encode(text, **options)

        def encode_batch(self, texts, **options):
            sizes.append(sum(map(len, texts)))
            return tokenizer.encode_batch(texts, **options)

    piece = (SENTENCES[0] + "\n") * 100
    for at_once in (1, 4):
        sizes.clear()
        ids = np.concatenate(list(encode_long(Watched(), iter([piece] * 50), "a.txt", at_once)))
        assert ids.tolist() == tokenizer.encode(piece * 50).ids and max(sizes) < 1.2 * at_once * len(piece)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(), min_size=1, max_size=20), st.booleans())
def test_any_documents_round_trip(tmp_path_factory, documents, as_lines):
    path = tmp_path_factory.mktemp("any")
    tokenizer = byte_level()
    tokenizer.save(str(path / "tokenizer.json"))
    if as_lines:
        write_lines(path / "a.jsonl", *({"text": text} for text in documents))
    else:
        for number, text in enumerate(documents):
            (path / f"{number:03}.txt").write_bytes(text.encode())
    kept = [text.removeprefix("" if as_lines else "\ufeff") for text in documents]  # a file may begin with a BOM
    arguments = [str(path), "--model", str(path), "--out", str(path / "out"), "--separator", "1"]
    # A file or an input without any text is a mistake; an empty text in a line is left out.
    mistake = not any(kept) if as_lines else not all(kept)
    assert main(arguments) == (2 if mistake else 0)
    if mistake:
        assert not (path / "out.bin").exists()
        return
    tokens = np.fromfile(path / "out.bin", dtype="<u2")
    pieces = np.split(tokens, np.flatnonzero(tokens == 1) + 1)
    assert len(pieces.pop()) == 0, "the last token is a separator"
    assert [tokenizer.decode(piece[:-1].tolist()) for piece in pieces] == [text for text in kept if text]


@settings(max_examples=40, deadline=None)
@given(st.text(st.sampled_from("aé🙂 \n.Thequick"), min_size=1, max_size=60), st.integers(1, 900), st.integers(1, 4))
def test_any_pieces_of_a_text_have_the_tokens_of_the_whole(text, size, at_once):
    tokenizer, text = byte_level(), text * 50
    pieces = iter([text[i:i + size] for i in range(0, len(text), size)])
    assert np.concatenate(list(encode_long(tokenizer, pieces, "a", at_once))).tolist() == tokenizer.encode(text).ids


# ---- chats

def assistant_mask_by_hand(tokenizer, messages) -> tuple[list[int], list[int]]:
    """Each part between special tokens tokenized on its own: byte-level words do not cross special tokens."""
    tokens, mask = [], []
    for message in messages:
        ours = message["role"] == "assistant"
        for text, target in ((f"<|im_start|>{message['role']}\n", False), (message["content"] + "<|im_end|>", ours),
                             ("\n", False)):
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            tokens += ids
            mask += [int(target)] * len(ids)
    return tokens, mask


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["prefixes", "marked"])
def test_the_mask_of_a_chat_is_what_the_assistant_says_and_its_end_of_turn(folder, prepared, tmp_path, template):
    file = write_lines(tmp_path / "a.jsonl", {"messages": CHAT}, {"prompt": "Hello", "completion": "Two."})
    pair = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Two."}]
    model = folder(template=template)
    tokens, mask, facts = prepared(file, "--model", model)
    by_hand = [assistant_mask_by_hand(byte_level(), chat) for chat in (CHAT, pair)]
    assert tokens == [id for ids, _ in by_hand for id in [*ids, SEPARATOR]]
    assert mask == [bit for _, bits in by_hand for bit in [*bits, 0]]
    assert facts["targets"] == sum(mask) and facts["chat_template"] == str(model / "tokenizer_config.json")

    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(model / "tokenizer.json"), chat_template=MARKED)
    chat = theirs.apply_chat_template(CHAT, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    assert tokens[:len(chat["input_ids"])] == chat["input_ids"]
    assert mask[:len(chat["input_ids"])] == chat["assistant_masks"]

    tokens, mask, _ = prepared(file, "--model", model, "--train-on", "all")
    assert mask is None and tokens[:len(chat["input_ids"])] == chat["input_ids"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("Thequick é🙂\n.<|>").filter(lambda text: not text[:1].isspace()), min_size=1, max_size=6))
def test_the_targets_of_any_chat_are_its_answers(tmp_path_factory, contents):
    path = tmp_path_factory.mktemp("any")
    tokenizer = byte_level()
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "chat_template.jinja").write_text(CHATML)
    roles = [("user", "assistant")[i % 2] for i in range(len(contents) + 1)]
    messages = [{"role": role, "content": content} for role, content in zip(roles, ["Hello", *contents])]
    write_lines(path / "a.jsonl", {"messages": messages})
    out = str(path / "out")
    assert main([str(path / "a.jsonl"), "--model", str(path), "--out", out, "--separator", str(SEPARATOR)]) == 0
    tokens, mask = np.fromfile(out + ".bin", dtype="<u2"), np.fromfile(out + ".mask", dtype=np.uint8)
    assert tokens[:-1].tolist() == assistant_mask_by_hand(tokenizer, messages)[0]
    said = tokenizer.decode(tokens[mask != 0].tolist(), skip_special_tokens=False)
    assert said == "".join(content + "<|im_end|>" for content in contents[::2])


def test_texts_before_a_chat_are_targets_and_cut_chats_keep_their_mask(folder, prepared, tmp_path):
    (tmp_path / "a.txt").write_text("Hello")
    file = write_lines(tmp_path / "b.jsonl", {"messages": CHAT})
    ids, bits = assistant_mask_by_hand(byte_level(), CHAT)
    text = byte_level().encode("Hello").ids
    keep = len(text) + 12 + bits.index(1)
    tokens, mask, _ = prepared(tmp_path / "a.txt", file, "--model", folder(), "--max-document-tokens", keep)
    assert tokens == [*text, SEPARATOR, *ids[:keep - 1], SEPARATOR]
    assert mask == [1] * (len(text) + 1) + bits[:keep - 1] + [0] and sum(bits[:keep - 1]) > 0


def test_the_separator_ends_an_answer_that_nothing_else_ends(folder, prepared, tmp_path):
    answer = "you quick brown fox"
    file = write_lines(tmp_path / "a.jsonl", {"messages": [CHAT[1], {"role": "assistant", "content": answer}]})
    assert len(byte_level().encode(" you").ids) == 1
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}" \
            "{{ 'assistant: ' if add_generation_prompt }}"
    tokens, mask, _ = prepared(file, "--model", folder(template=plain))
    decoded = byte_level().decode([id for id, bit in zip(tokens, mask) if bit], skip_special_tokens=False)
    assert decoded == f" {answer}<|endoftext|>", "the blank is one token with the word behind it"
    # A template that ends the answer with the separator itself: it is a target, and not doubled.
    tokens, mask, _ = prepared(file, "--model", folder(
        template="{% for m in messages %}{{ m.role }}{{ m.content }}"
                 "{{ eos_token if m.role == 'assistant' }}{% endfor %}{{ 'assistant' if add_generation_prompt }}"))
    assert tokens.count(SEPARATOR) == 1 and mask[-1] == 1 and tokens[-1] == SEPARATOR


def test_blanks_that_a_token_of_the_prompt_swallows_are_no_targets(folder, prepared, tmp_path):
    tokenizer = byte_level()
    tokenizer.add_special_tokens([tokenizers.AddedToken("<|bot|>", rstrip=True)])
    template = "{% for m in messages %}{{ '<|bot|>' if m.role == 'assistant' }}{{ m.content }}{% endfor %}" \
               "{{ '<|bot|>' if add_generation_prompt }}"
    file = write_lines(tmp_path / "a.jsonl", {"messages": [{"role": "user", "content": "Hello"},
                                                           {"role": "assistant", "content": "  Two"}]})
    tokens, mask, _ = prepared(file, "--model", folder(tokenizer, template=template))
    assert [tokenizer.id_to_token(id) for id, bit in zip(tokens, mask) if not bit][-1] == "<|bot|>"
    assert tokenizer.decode([id for id, bit in zip(tokens, mask) if bit]) == "Two"


def test_targets_that_sherd_would_not_count_are_a_warning(folder, prepare, tmp_path):
    file = write_lines(tmp_path / "a.jsonl", {"messages": CHAT[1:3]})
    template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    code, stderr = prepare(file, "--model", folder(template=template))
    assert code == 0 and "warning: 1 tokens of the assistant follow the separator" in stderr


def test_templates_as_hugging_face_finds_them(folder, prepared, tmp_path):
    file = write_lines(tmp_path / "a.jsonl", {"messages": CHAT})
    expected = assistant_mask_by_hand(byte_level(), CHAT)[0] + [SEPARATOR]
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": CHATML}]
    assert prepared(file, "--model", folder(template=several))[0] == expected
    model = folder(template="no")
    (model / "chat_template.jinja").write_text(CHATML)
    tokens, _, facts = prepared(file, "--model", model)
    assert tokens == expected and facts["chat_template"] == str(model / "chat_template.jinja")
    (model / "chat_template.jinja").write_text(
        "{{ strftime_now('%Y')|length }}{{ bos_token }}{{ tools|tojson }}{% for m in messages %}{% if loop.first %}"
        "{% continue %}{% endif %}{{ m.content }}{% endfor %}")
    write_lines(file, {"messages": CHAT, "tools": [{"name": "é<"}]})
    tokens, _, _ = prepared(file, "--model", model, "--train-on", "all")
    text = '4<s>[{"name": "é<"}]' + "".join(message["content"] for message in CHAT[1:])
    assert tokens == expected_stream(byte_level(), [text])


# ---- the separator

@pytest.mark.parametrize("eos, files, option, id", [
    ("</s>", {"generation_config": {"eos_token_id": 2}}, None, 1),
    ({"content": "<|im_end|>"}, {}, None, 3),
    (None, {"generation_config": {"eos_token_id": [4, 3]}, "config": {"eos_token_id": 1}}, None, 4),
    (None, {"generation_config": {}, "config": {"eos_token_id": 2}}, None, 2),
    ("</s>", {}, "<|im_end|>", 3), ("</s>", {}, "17", 17)])
def test_where_the_separator_comes_from(folder, prepared, tmp_path, eos, files, option, id):
    (tmp_path / "a.txt").write_text("Hello")
    options = ["--separator", option] if option else []
    tokens, _, facts = prepared(tmp_path / "a.txt", "--model", folder(eos=eos, **files), *options)
    assert tokens[-1] == id == facts["separator"] == facts["data"]["separator"]


# ---- and trained on

def test_sherd_trains_on_prepared_files(sherd, write_config, folder, prepared, tmp_path):
    """The golden model has 256 tokens; the loss of the first step is that of the targets in PREFIX.json."""
    random = np.random.default_rng(0)

    def say():
        return " ".join(f"w{i}" for i in random.integers(1, 250, 20))

    file = write_lines(tmp_path / "a.jsonl", *({"prompt": say(), "completion": " " + say()} for _ in range(15)))
    model = folder(words(256), eos="</s>", template=None, config=json.loads((GOLDEN / "config.json").read_text()))
    tokens, mask, facts = prepared(file, "--model", model)
    assert len(tokens) == 15 * 41 and sum(mask) == 15 * 21 and facts["targets"] == 15 * 21
    config = write_config({"data": {**facts["data"], "context": 64, "order": "sequential"}, "steps": 2})
    done = subprocess.run([sherd, "train", config], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    tokens, mask = np.array(tokens), np.array(mask)
    counted = (mask[1:] != 0) & (tokens[:-1] != facts["separator"])
    assert [line["targets"] for line in lines] == [int(counted[first:first + 256].sum()) for first in (0, 256)]
