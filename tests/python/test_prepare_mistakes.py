"""`sherd data prepare`, what goes wrong: mistakes are named with file and line, and nothing is left behind."""
import json
import os
import resource
import subprocess
import sys
import threading
import time

import pytest

from conftest import ROOT
from preparing import CHAT, SENTENCES, folder, main, prepare, prepared, words, write_lines
from sherd_command import inputs


def expect_mistake(result: tuple[int, str], *said: str):
    code, stderr = result
    assert code == 2, stderr
    assert stderr.startswith("sherd: [data prepare] got ") and stderr.count("\n") == 1, stderr
    for text in (*said, ", expected ", "; try "):
        assert text in stderr, stderr


GOOD = {"role": "user", "content": "Hello"}
LINES = {
    "not JSON": ('{"text": ', ["a.jsonl:2", "not JSON"]),
    "too deep": ("[" * 100_000, ["a.jsonl:2", "not JSON"]),
    "no object": ("[1]", ["a.jsonl:2", "[1]"]),
    "missing key": ({"body": "x"}, ["a.jsonl:2", "['body']", "'text' or 'messages' or 'prompt' and 'completion'"]),
    "two kinds": ({"text": "x", "messages": [GOOD]}, ["a.jsonl:2", "'text' and with 'messages'", "--format"]),
    "no text": ({"text": 5}, ["a.jsonl:2", "5 for 'text'"]),
    "half a pair": ('{"text": "\\ud800"}', ["a.jsonl:2", "U+D800"]),
    "unknown role": ({"messages": [GOOD, {"role": "bot", "content": "x"}]},
                     ["a.jsonl:2", "message 2", "'bot'", "assistant"]),
    "no messages": ({"messages": []}, ["a.jsonl:2", "'messages'"]),
    "no message": ({"messages": ["Hello"]}, ["a.jsonl:2", "message 1"]),
    "no content": ({"messages": [{"role": "user"}]}, ["a.jsonl:2", "message 1", "'content'"]),
    "tools": ({"messages": [GOOD], "tools": "x"}, ["a.jsonl:2", "'tools'"]),
    "no answer": ({"messages": [GOOD]}, ["a.jsonl:2", "the assistant says nothing", "--train-on all"]),
    "pair": ({"prompt": [GOOD], "completion": "x"}, ["a.jsonl:2", "'prompt'"]),
    "not UTF-8": (b'{"text": "\xff"}', ["a.jsonl:2", "0xff", "UTF-8"]),
}


@pytest.mark.parametrize("case", LINES)
def test_a_broken_line_is_named(folder, prepare, tmp_path, case):
    line, said = LINES[case]
    line = line if isinstance(line, bytes) else line.encode() if isinstance(line, str) else json.dumps(line).encode()
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    expect_mistake(prepare(tmp_path / "a.jsonl", "--model", folder()), *said)


TEMPLATES = {
    "none": (None, ["no chat template", "chat_template.jinja", "prompt"]),
    "syntax": ("{% if %}", ["broken chat template", "line 1"]),
    "refuses": ("{{ raise_exception('roles\nmust alternate') }}", ["a.jsonl:1", "roles must alternate"]),
    "fails": ("{{ messages[7].content.x }}", ["a.jsonl:1", "refuses"]),
    "unsafe": ("{{ messages.append(1) }}", ["a.jsonl:1", "refuses"]),
    "no prefix": ("{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}",
                  ["a.jsonl:1", "up to message 3 of 5", "{% generation %}", "--train-on all"]),
    "not a text": (5, ["5 for 'chat_template'"]),
    "no default": ([{"name": "rag", "template": "x"}], ["'rag'", "'default'"]),
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_a_template_that_does_not_do_is_named(folder, prepare, tmp_path, case):
    template, said = TEMPLATES[case]
    file = write_lines(tmp_path / "a.jsonl", {"messages": CHAT})
    expect_mistake(prepare(file, "--model", folder(template=template)), *said)
    if case == "no prefix":
        assert prepare(file, "--model", tmp_path / "model", "--train-on", "all")[0] == 0


def test_broken_files_and_folders_are_named(folder, prepare, tmp_path, monkeypatch):
    model, text = folder(), tmp_path / "a.txt"
    text.write_bytes(b"one\ntwo \xc3\xa9\n\xc3")
    expect_mistake(prepare(text, "--model", model), "a.txt:3", "0xc3", "UTF-8")
    monkeypatch.setattr(inputs, "LONG", 4)
    text.write_bytes(b"one\ntwo\n\xe9 three\n" * 10)
    expect_mistake(prepare(text, "--model", model), "a.txt:3", "0xe9", "UTF-8")
    text.write_text("")
    expect_mistake(prepare(text, "--model", model), "a.txt without any text")
    expect_mistake(prepare(write_lines(tmp_path / "a.jsonl", ""), "--model", model), "a.jsonl without any record")
    expect_mistake(prepare(write_lines(tmp_path / "a.jsonl", {"text": ""}), "--model", model), "without any token")
    expect_mistake(prepare(tmp_path / "none*", "--model", model), "none*', which names no file")
    expect_mistake(prepare(write_lines(tmp_path / "a.csv", "x"), "--model", model), "a.csv", "--format text")
    monkeypatch.setattr(inputs, "LONGEST_LINE", 10)
    expect_mistake(prepare(write_lines(tmp_path / "a.jsonl", "", {"text": "too long"}), "--model", model), "a.jsonl:2")
    text.write_text("Hello")
    expect_mistake(prepare(text, "--model", model, "--format", "chat"), "a.txt with --format chat")
    expect_mistake(prepare(text, "--model", tmp_path), "without a tokenizer.json")
    expect_mistake(prepare(text, "--model", folder(words(9), eos="</s>")), "a.txt", "refuses")
    if os.geteuid():
        text.chmod(0)
        expect_mistake(prepare(text, "--model", model), "a.txt", "can be read")


def test_broken_model_folders_are_named(folder, prepare, tmp_path):
    (tmp_path / "a.txt").write_text("Hello")
    model = folder(eos=None)

    def run(*options):
        return prepare(tmp_path / "a.txt", "--model", model, *options)

    expect_mistake(run(), "tokenizer_config.json", "generation_config.json", "config.json", "--separator")
    expect_mistake(run("--separator", "<none>"), "<none>")
    expect_mistake(run("--separator", "300"), "300")
    folder(eos="<none>")
    expect_mistake(run(), "<none>")
    folder(eos=None, generation_config={"eos_token_id": 300})
    expect_mistake(run(), "300", "generation_config.json")
    (model / "tokenizer_config.json").write_text("{")
    expect_mistake(run(), "tokenizer_config.json", "not JSON")
    (model / "tokenizer_config.json").write_text("[]")
    expect_mistake(run(), "[] in")
    (model / "tokenizer.json").write_text("{}")
    expect_mistake(run(), "tokenizer.json")


def test_what_is_not_installed_is_named(folder, prepare, tmp_path, monkeypatch):
    file, model = write_lines(tmp_path / "a.jsonl", {"messages": CHAT}), folder()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    expect_mistake(prepare(file, "--model", model), "no Python package jinja2", "pip install jinja2")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    expect_mistake(prepare(file, "--model", model), "no Python package tokenizers", "pip install tokenizers")


def test_files_that_cannot_be_what_they_should_are_named(folder, prepare, tmp_path):
    file, model = write_lines(tmp_path / "a.jsonl", {"messages": CHAT, "prompt": "", "completion": ""}), folder()
    expect_mistake(prepare(file, "--model", model), "a.jsonl:1", "'messages' and with 'prompt'", "take the others out")
    write_lines(file, {"messages": CHAT})
    folder(config={"vocab_size": 4})
    expect_mistake(prepare(file, "--model", model), "the separator: the token 4", "vocabulary of 4")
    (model / "config.json").unlink()
    (model / "chat_template.jinja").write_bytes(b"\xff")
    expect_mistake(prepare(file, "--model", model), "chat_template.jinja", "UTF-8")
    (tmp_path / f"out.bin.{os.getpid()}.part").mkdir()
    expect_mistake(prepare(file, "--model", model), "--out", "File exists")


def test_bad_options_are_named(folder, prepare, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("Hello")
    model = folder()
    expect_mistake(prepare(tmp_path / "a.txt"), "--model")
    expect_mistake(prepare(tmp_path / "a.txt", "--model", model, "--format", "csv"), "'csv'")
    expect_mistake(prepare(tmp_path / "a.txt", "--model", model, "--jobs", "0"), "--jobs 0")
    expect_mistake(prepare(tmp_path / "a.txt", "--model", model, "--max-document-tokens", "1"), "1")
    for out in (tmp_path / "no" / "out", tmp_path):
        code = main([str(tmp_path / "a.txt"), "--model", str(model), "--out", str(out)])
        expect_mistake((code, capsys.readouterr().err), str(out))
    assert main(["--help"]) == 0 and "--train-on" in capsys.readouterr().out


# ---- from outside

def command(*arguments, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "sherd_command.prepare", *map(str, arguments)], capture_output=True,
                          text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT / "python")}, **options)


def test_a_full_disk_is_a_fault_that_leaves_the_files_of_before(folder, prepared, tmp_path):
    model = folder()
    prepared(write_lines(tmp_path / "a.jsonl", {"messages": CHAT}), "--model", model)
    before = {path: path.read_bytes() for path in tmp_path.glob("out*")}
    assert len(before) == 3
    (tmp_path / "a.txt").write_text(SENTENCES[0] * 3000)
    done = command(tmp_path / "a.txt", "--model", model, "--out", tmp_path / "out", "--jobs", "1",
                   preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)))
    assert done.returncode == 1 and "out.bin" in done.stderr and "File too large" in done.stderr
    assert {path: path.read_bytes() for path in tmp_path.glob("out*")} == before
    assert command(tmp_path / "a.txt", "--model", model, "--out", tmp_path / "out").returncode == 0
    assert not (tmp_path / "out.mask").exists(), "the mask of other tokens"


def test_an_interrupt_leaves_nothing_and_the_start_is_light(folder, tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    process = subprocess.Popen([sys.executable, "-X", "importtime", "-m", "sherd_command.prepare", tmp_path / "a.txt",
                                "--model", folder(), "--out", tmp_path / "out"], stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": str(ROOT / "python")})
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(process.stderr))
    reader.start()
    with open(tmp_path / "a.txt", "w"):  # opens once the command reads
        assert list(tmp_path.glob("out.bin.*"))
        while list(tmp_path.glob("out.bin.*")):  # one may come between two reads, and more than one does no harm
            process.terminate()
            time.sleep(0.2)
    reader.join()
    stderr = "".join(lines)
    assert process.wait(30) == 130 and "interrupted" in stderr
    assert not list(tmp_path.glob("out*"))
    imported = {line.rsplit("|")[-1].strip().partition(".")[0] for line in stderr.splitlines() if line.count("|") == 2}
    assert "tokenizers" in imported and not imported & {"torch", "transformers", "sherd"}
