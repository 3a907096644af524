"""The command from outside: bad input ends with code 2 and leaves nothing."""
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess

import numpy as np
import pytest

from conftest import GOLDEN, ROOT


def run(sherd, *arguments, env=None, timeout=120, **options) -> subprocess.CompletedProcess:
    return subprocess.run([str(a) for a in (sherd, *arguments)], capture_output=True, text=True, errors="replace",
                          timeout=timeout, env={**os.environ, **(env or {})}, **options)


def expect_mistake(result: subprocess.CompletedProcess, *said: str):
    """Exit code 2, each text said, once, in one line that tells what to try."""
    assert result.returncode == 2, result.stdout + result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("sherd: [")]
    assert len(lines) == 1, result.stderr
    for text in said:
        assert text in lines[0], lines[0]
    assert "; try " in lines[0], "what to do about it: " + lines[0]
    assert "[rank" not in result.stderr, "found before any rank starts"


@pytest.fixture
def golden_copy(tmp_path) -> pathlib.Path:
    """A copy of the golden model to spoil."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / name, folder / name)
    return folder


def with_header(weights: bytes, change) -> bytes:
    """The same safetensors file with a changed JSON header."""
    size = struct.unpack("<Q", weights[:8])[0]
    header = json.loads(weights[8:8 + size])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + weights[8 + size:]


def first_tensor(header: dict) -> dict:
    return next(value for name, value in header.items() if name != "__metadata__")


def move_first_tensor(header: dict):
    tensor = first_tensor(header)
    tensor["data_offsets"] = [offset + 10**12 for offset in tensor["data_offsets"]]


def grow_first_shape(header: dict):
    first_tensor(header)["shape"][0] += 1


SPOILT_WEIGHTS = {
    "empty": lambda weights: b"",
    "header cut": lambda weights: weights[:100],
    "data cut": lambda weights: weights[:-4],
    "length lies": lambda weights: struct.pack("<Q", 2**60) + weights[8:],
    "not JSON": lambda weights: weights[:8] + b"!" + weights[9:],
    "offsets lie": lambda weights: with_header(weights, move_first_tensor),
    "shape lies": lambda weights: with_header(weights, grow_first_shape),
    "dtype lies": lambda weights: with_header(weights, lambda header: first_tensor(header).update(dtype="F99")),
    "tensor missing": lambda weights: with_header(weights, lambda header: header.pop("lm_head.weight")),
}


@pytest.mark.parametrize("ranks", [1, 2])
class TestMistakesOfTheUser:
    @pytest.fixture(autouse=True)
    def nothing_is_left(self, tmp_path, ranks):
        yield
        assert not (tmp_path / "run").exists() or (tmp_path / "run").is_file()

    @pytest.mark.parametrize("change, said", [
        ({"strategy": "zero4"}, ["strategy", "zero4", "zero3"]),
        ({"optimizer.learning_rate": 1}, ["optimizer.learning_rate", "lr"]),
        ({"stepz": 1}, ["stepz", "steps"]),
        ({"steps": "many"}, ["steps", "many"]),
        ({"optimizer.betas": [0.9, 1.5]}, ["optimizer.betas[1]", "1.5"]),
        ({"mesh": {"replicate": 3}}, ["replicate", "3"]),
        ({"mesh": {"shard": 5}}, ["shard", "5"]),
        ({"model.path": "/no/such/folder"}, ["model.path", "/no/such/folder"]),
        ({"data.tokens": "/no/such/file.bin"}, ["data.tokens", "/no/such/file.bin"]),
        ({"data.context": 65}, ["context", "65", "64"]),
        ({"transport": "pigeon"}, ["transport", "pigeon"]),
        ({"batch.rows": 0}, ["batch.rows", "0"]),
    ], ids=lambda value: str(value)[:40] if isinstance(value, dict) else "")
    def test_configuration(self, sherd, write_config, ranks, change, said):
        expect_mistake(run(sherd, "train", write_config(change), "--ranks", ranks), *said)

    def test_text_for_a_model_whose_vocabulary_is_not_bytes(self, sherd, write_config, ranks):
        config = write_config({"model": {"preset": "tiny", "vocab": 300},
                               "data": {"text": [str(ROOT / "README.md")], "context": 64}})
        expect_mistake(run(sherd, "train", config, "--ranks", ranks), "bytes", "300")

    def test_token_outside_the_vocabulary(self, sherd, write_config, ranks, tmp_path):
        tokens = (np.arange(5000) % 256).astype("<u2")
        tokens[4321] = 256
        tokens.tofile(tmp_path / "tokens.bin")
        config = write_config({"data.tokens": str(tmp_path / "tokens.bin")})
        expect_mistake(run(sherd, "train", config, "--ranks", ranks), "256", "4321", "tokens.bin")

    def test_token_file_of_odd_length(self, sherd, write_config, ranks, tmp_path):
        (tmp_path / "tokens.bin").write_bytes(b"\0" * 4001)
        config = write_config({"data.tokens": str(tmp_path / "tokens.bin")})
        expect_mistake(run(sherd, "train", config, "--ranks", ranks), "tokens.bin", "4001")

    @pytest.mark.parametrize("spoil", SPOILT_WEIGHTS.values(), ids=SPOILT_WEIGHTS.keys())
    def test_safetensors_header(self, sherd, write_config, ranks, golden_copy, spoil):
        weights = golden_copy / "model.safetensors"
        weights.write_bytes(spoil(weights.read_bytes()))
        expect_mistake(run(sherd, "train", write_config({"model.path": str(golden_copy)}), "--ranks", ranks),
                       str(golden_copy))

    def test_model_folder_without_weights(self, sherd, write_config, ranks, golden_copy):
        (golden_copy / "model.safetensors").unlink()
        expect_mistake(run(sherd, "train", write_config({"model.path": str(golden_copy)}), "--ranks", ranks),
                       str(golden_copy))

    def test_a_file_in_the_way_of_the_run_folder(self, sherd, write_config, ranks, tmp_path):
        (tmp_path / "run").write_text("mine")
        for output in (tmp_path / "run", tmp_path / "run" / "below"):
            expect_mistake(run(sherd, "train", write_config({"output": str(output)}), "--ranks", ranks), "output",
                           str(output))
        assert (tmp_path / "run").read_text() == "mine"

    def test_a_place_where_nobody_may_write(self, sherd, write_config, ranks):
        expect_mistake(run(sherd, "train", write_config({"output": "/proc/sherd/run"}), "--ranks", ranks), "output",
                       "/proc/sherd/run")

    @pytest.mark.skipif(os.geteuid() == 0, reason="permission bits do not bind root")
    def test_a_read_only_run_folder(self, sherd, write_config, ranks, tmp_path):
        parent = tmp_path / "read-only"
        parent.mkdir(mode=0o500)
        expect_mistake(run(sherd, "train", write_config({"output": str(parent / "run")}), "--ranks", ranks), "output",
                       str(parent / "run"))

    def test_a_model_folder_as_run_folder(self, sherd, write_config, ranks, golden_copy):
        before = (golden_copy / "config.json").read_bytes()
        config = write_config({"model.path": str(golden_copy), "output": str(golden_copy)})
        expect_mistake(run(sherd, "train", config, "--ranks", ranks), "output", str(golden_copy))
        assert (golden_copy / "config.json").read_bytes() == before
        assert sorted(path.name for path in golden_copy.iterdir()) == ["config.json", "model.safetensors"]


def test_missing_and_malformed_configuration(sherd, tmp_path):
    expect_mistake(run(sherd, "train", tmp_path / "gone.json"), "gone.json")
    (tmp_path / "bad.json").write_text('{"steps": 1,')
    assert run(sherd, "train", tmp_path / "bad.json").returncode == 2


@pytest.mark.parametrize("arguments", [[], ["trian"], ["train"], ["sample"], ["train", "c.json", "--ranks", "0"],
                                       ["train", "c.json", "--ranks", "two"], ["train", "c.json", "--fast"]],
                         ids=lambda arguments: " ".join(arguments) or "nothing")
def test_wrong_usage(sherd, arguments):
    result = run(sherd, *arguments)
    assert result.returncode == 2
    assert "--help" in result.stderr


def test_settings_are_printed_without_a_configuration(sherd):
    said = run(sherd, "train", "--help-config")
    assert said.returncode == 0 and '  batch.micro = "auto"' in said.stdout
    markdown, schema = (run(sherd, "train", f"--help-config={form}") for form in ("markdown", "schema"))
    assert markdown.stdout == (ROOT / "docs/config.md").read_text()
    assert json.loads(schema.stdout)["properties"]["steps"]["default"] == 100
    wrong = run(sherd, "train", "--help-config=pdf")
    assert wrong.returncode == 2 and "markdown" in wrong.stderr


def test_ranks_against_torchrun(sherd, write_config):
    result = run(sherd, "train", write_config(), "--ranks", 2,
                 env={"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"})
    expect_mistake(result, "--ranks", "got 2, expected 3")


def test_help_and_version(sherd):
    assert "train" in run(sherd, "--help").stdout
    version = re.search(r"project\(sherd VERSION ([\d.]+)", (ROOT / "CMakeLists.txt").read_text()).group(1)
    assert run(sherd, "--version").stdout == f"sherd {version}\n"


def test_set_and_shorthands_override_the_file(sherd, write_config, tmp_path):
    result = run(sherd, "train", write_config(), "--set", "steps=1", "--set", "optimizer.lr=0.5", "--strategy", "zero1")
    assert result.returncode == 0, result.stderr
    effective = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (effective["steps"], effective["optimizer"]["lr"], effective["strategy"]) == (1, 0.5, "zero1")
    again = run(sherd, "train", tmp_path / "run" / "config.json", "--set", f"output={tmp_path / 'again'}")
    assert again.returncode == 0, "the effective configuration is one: " + again.stderr


def test_output_of_ranks(sherd, write_config, tmp_path):
    result = run(sherd, "train", write_config({"steps": 3}), "--ranks", 2)
    assert result.returncode == 0, result.stderr
    steps = [line for line in result.stdout.splitlines() if line.startswith("step ")]
    assert [re.match(r"step (\d)/3  loss \d+\.\d+  \S+ tok/s  \d+\.\d+ s/step  memory \d+ MiB", line).group(1)
            for line in steps] == ["1", "2", "3"]
    assert str(tmp_path / "run") in result.stdout
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all({"loss", "grad_norm", "lr", "tokens_per_s", "step_s", "memory_mib"} <= line.keys() for line in lines)
    svg = (tmp_path / "run" / "loss.svg").read_text()
    assert svg.startswith("<svg") and svg.endswith("</svg>\n")


class TestSample:
    def test_bytes(self, sherd):
        first = run(sherd, "sample", GOLDEN, "--prompt", "def ", "--max-tokens", 40, "--seed", 3)
        assert first.returncode == 0, first.stderr
        assert first.stdout.startswith("def ") and first.stdout.endswith("\n") and len(first.stdout) > 40
        again = run(sherd, "sample", GOLDEN, "--prompt", "def ", "--max-tokens", 40, "--seed", 3)
        other = run(sherd, "sample", GOLDEN, "--prompt", "def ", "--max-tokens", 40, "--seed", 4)
        assert first.stdout == again.stdout != other.stdout

    def test_greedy_is_the_likeliest_token_of_transformers(self, sherd):
        torch = pytest.importorskip("torch")
        transformers = pytest.importorskip("transformers")
        model = transformers.LlamaForCausalLM.from_pretrained(GOLDEN)
        tokens = [1, 2, 3]
        with torch.no_grad():
            for _ in range(80):  # beyond the context of 64
                tokens.append(int(model(torch.tensor([tokens[-64:]])).logits[0, -1].argmax()))
        for choice in (["--temperature", "0"], ["--top-k", "1"]):
            result = run(sherd, "sample", GOLDEN, "--tokens", "1,2,3", "--max-tokens", 80, *choice)
            assert result.stdout == ",".join(map(str, tokens)) + "\n", result.stderr

    def test_what_is_not_utf8_is_visible(self, sherd):
        prompt = b"\xc3\xa9\xff\x1b[0m\xe2\x82"
        result = subprocess.run([sherd, "sample", GOLDEN, "--prompt", prompt, "--max-tokens", "0"], capture_output=True)
        assert result.stdout.decode() == "é\\xff\\x1b[0m\\xe2\\x82\n"

    @pytest.mark.parametrize("arguments, said", [
        (["/no/such/run", "--prompt", "x"], ["/no/such/run"]),
        ([GOLDEN], ["--prompt", "--tokens"]),
        ([GOLDEN, "--prompt", ""], ["--prompt"]),
        ([GOLDEN, "--tokens", "1,256"], ["--tokens", "256", "255"]),
        ([GOLDEN, "--tokens", "-1"], ["--tokens", "-1"]),
    ], ids=["no folder", "neither", "empty", "outside", "negative"])
    def test_mistakes(self, sherd, arguments, said):
        expect_mistake(run(sherd, "sample", *arguments), *said)

    def test_text_for_another_vocabulary(self, sherd, write_config, tmp_path):
        config = write_config({"model": {"preset": "tiny", "vocab": 300}, "data": {"synthetic": True, "context": 64},
                               "steps": 1})
        assert run(sherd, "train", config).returncode == 0
        expect_mistake(run(sherd, "sample", tmp_path / "run", "--prompt", "x"), "--prompt", "300", "--tokens")
        result = run(sherd, "sample", tmp_path / "run", "--tokens", "299", "--max-tokens", 4)
        assert re.fullmatch(r"299(,\d+){4}\n", result.stdout)

    def test_a_run_without_a_model(self, sherd, tmp_path):
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "metrics.jsonl").touch()
        expect_mistake(run(sherd, "sample", tmp_path, "--prompt", "x"), "no model yet")
