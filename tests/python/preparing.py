"""What the tests of `sherd data prepare` share: small tokenizers, a model folder, the command run in this process."""
import json
import pathlib
import sys

import numpy as np
import pytest

from conftest import ROOT

sys.path.append(str(ROOT / "python"))
tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers  # noqa: E402

from sherd_command.prepare import main  # noqa: E402

SENTENCES = ["The quick brown fox jumps over the lazy dog.", "Hello world, how are you today?", "I am fine, thank you.",
             "system user assistant tool", "Two plus two is four; what is twenty?"]
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
SEPARATOR = SPECIAL.index("<|endoftext|>")

MARKED = """{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\n' }}
    {%- if message['role'] == 'assistant' %}
{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}
    {%- else %}
{{- message['content'] + '<|im_end|>' }}
    {%- endif %}
{{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
CHATML = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello 🙂!"},
        {"role": "assistant", "content": "I am fine, é.\n\nThank you.  "}, {"role": "user", "content": "  What?"},
        {"role": "assistant", "content": "Four 🙂"}]


def byte_level(vocabulary=300, special=SPECIAL) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(SENTENCES, trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    return tokenizer


def metaspace() -> tokenizers.Tokenizer:
    """As Llama 2's: no words, "▁" for a blank and one in front, characters that are not known as bytes."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(SENTENCES, trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False))
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def words(count: int) -> tokenizers.Tokenizer:
    vocabulary = {"</s>": 0, **{f"w{i}": i for i in range(1, count)}}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


@pytest.fixture
def folder(tmp_path):
    """Writes a model folder and tells its path."""

    def write(tokenizer=None, template=CHATML, eos="<|endoftext|>", **files) -> pathlib.Path:
        path = tmp_path / "model"
        path.mkdir(exist_ok=True)
        (tokenizer or byte_level()).save(str(path / "tokenizer.json"))
        config = {"eos_token": eos, "bos_token": {"content": "<s>"}, "chat_template": template}
        config = {key: value for key, value in config.items() if value is not None}
        (path / "tokenizer_config.json").write_text(json.dumps(config))
        for name, value in files.items():
            (path / (name + ".json")).write_text(json.dumps(value))
        return path

    return write


@pytest.fixture
def prepare(tmp_path, capsys):
    """Runs the command with --out tmp_path/out; the exit code, and stderr. A failure leaves nothing."""

    def run(*arguments) -> tuple[int, str]:
        before = sorted(tmp_path.rglob("*"))
        code = main([str(each) for each in (*arguments, "--out", tmp_path / "out")])
        stderr = capsys.readouterr().err
        if code:
            assert sorted(tmp_path.rglob("*")) == before, "nothing is left behind"
        else:
            assert not list(tmp_path.glob("out*.part"))
        return code, stderr

    return run


@pytest.fixture
def prepared(prepare, tmp_path):
    """Runs the command, which must succeed: tokens, mask (None without one), facts."""

    def run(*arguments):
        code, stderr = prepare(*arguments)
        assert code == 0, stderr
        facts = json.loads((tmp_path / "out.json").read_text())
        tokens = np.fromfile(tmp_path / "out.bin", dtype="<u2" if facts["token_type"] == "uint16" else "<u4")
        mask = np.fromfile(tmp_path / "out.mask", dtype=np.uint8) if "mask" in facts["data"] else None
        assert (tmp_path / "out.mask").exists() == (mask is not None)
        assert len(tokens) == facts["tokens"]
        targets = np.ones(len(tokens), dtype=np.uint8) if mask is None else mask.copy()
        targets[0] = 0  # as tests/python/plain.py counts them
        targets[1:][tokens[:-1] == facts["separator"]] = 0
        assert facts["targets"] == targets.sum()
        return tokens.tolist(), None if mask is None else mask.tolist(), facts

    return run


def write_lines(path: pathlib.Path, *records) -> pathlib.Path:
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in records))
    return path


def expected_stream(tokenizer, documents, separator=SEPARATOR) -> list[int]:
    return [id for text in documents for id in [*tokenizer.encode(text).ids, separator]]
