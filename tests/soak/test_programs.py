"""Unmodified programs of TRL, transformers and PEFT under sherd, against the same programs without it, for more than
one version: what `make soak` runs. SOAK_VENVS names folders with virtual environments; tests/soak/setup.sh makes
them."""
import os
import pathlib
import re
import socket
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = ROOT / os.environ.get("SHERD_BUILD", "build")
VENVS = [pathlib.Path(path) for path in os.environ["SOAK_VENVS"].split(":")]
PROGRAMS = ROOT / "tests" / "python" / "programs"
LORA = ["--use_peft", "--lora_r", "4", "--lora_alpha", "8", "--lora_dropout", "0", "--lora_target_modules", "q_proj",
        "v_proj"]
GRPO = ["--reward_funcs", "rewards.letters", "--num_generations", "4", "--max_completion_length", "12", "--beta", "0.1"]
# TRL's script, the model and the data set, and what else it is told.
TRL = {
    "sft": ("sft", "llama", "text", []), "sft_lora": ("sft", "llama", "text", LORA),
    "sft_tied": ("sft", "tied", "text", []),
    "sft_recomputed": ("sft", "llama", "text", ["--gradient_checkpointing", "true"]),
    "dpo": ("dpo", "llama", "preference", []), "dpo_lora": ("dpo", "llama", "preference", LORA),
    "grpo": ("grpo", "llama", "prompts", GRPO), "grpo_lora": ("grpo", "llama", "prompts", GRPO + LORA),
    "reward": ("reward", "reward", "preference", []),
}
STAGES = ["0", "2", "3"]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


@pytest.fixture(scope="session", params=VENVS, ids=[venv.name for venv in VENVS])
def venv(request):
    return request.param


@pytest.fixture(scope="session")
def inputs(venv, tmp_path_factory):
    folder = tmp_path_factory.mktemp(venv.name)
    subprocess.run([venv / "bin" / "python", ROOT / "tests" / "soak" / "make_inputs.py", folder], check=True,
                   timeout=300)
    return folder


def run(venv, folder, *arguments, stage=None, ranks=1, timeout=600, path=(), cwd=ROOT / "tests" / "soak"):
    """What a program printed: by itself, under torchrun alone (stage None, two ranks) or under sherd. It may import
    from the folders `path`."""
    command = [str(venv / "bin" / "python")]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", free_port()]
    if stage is not None:
        command += ["-m", "sherd.as_deepspeed"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [BUILD / "python", *path])),
                   "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
                   "HF_DATASETS_CACHE": str(folder / "cache"), "HF_MODULES_CACHE": str(folder / "modules"),
                   "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage or "0"}
    if stage is None:
        environment["ACCELERATE_USE_CPU"] = "true"
    done = subprocess.run([*command, *map(str, arguments)], env=environment, cwd=cwd, capture_output=True,
                          text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-20000:]
    return done.stdout


def numbers(text, key):
    return [float(value) for value in re.findall(rf"'{key}': '?([-+.0-9e]+)", text)]


def trl(venv, inputs, name, folder, rows, **options):
    script, model, data, more = TRL[name]
    package = next(venv.glob("lib/python*/site-packages/trl"))
    return run(venv, inputs, package / "scripts" / f"{script}.py", "--model_name_or_path", inputs / model,
               "--dataset_name", inputs / data, "--output_dir", folder, "--max_steps", 4, "--logging_steps", 1,
               "--per_device_train_batch_size", rows, "--learning_rate", 1e-2, "--report_to", "none", "--use_cpu",
               "--bf16", "false", "--gradient_checkpointing", "false", "--save_strategy", "no", *more, **options)


@pytest.fixture(scope="session")
def plain(venv, inputs, tmp_path_factory):
    """Outputs without sherd, by name; programs that draw samples on two ranks, as torch's DDP."""
    made = {}

    def of(name):
        if name not in made:
            sampled = name.startswith("grpo")
            made[name] = trl(venv, inputs, name, tmp_path_factory.mktemp("plain"), 4 if sampled else 8,
                             ranks=2 if sampled else 1)
        return made[name]

    return of


@pytest.mark.parametrize("name", TRL)
@pytest.mark.parametrize("stage", STAGES)
def test_trl(venv, inputs, plain, tmp_path, name, stage):
    expected, ours = plain(name), trl(venv, inputs, name, tmp_path, 4, ranks=2, stage=stage)
    for key in ("loss", "grad_norm", "reward"):
        assert numbers(ours, key) == pytest.approx(numbers(expected, key), rel=2e-3, abs=2e-4), key
    assert len(numbers(ours, "loss")) == 4
    weights = "adapter_model.safetensors" if name.endswith("lora") else "model.safetensors"
    assert (tmp_path / weights).is_file()


@pytest.mark.parametrize("program, arguments", [
    ("trainer.py", []), ("parameters_read.py", []), ("encoder_decoder.py", []), ("accelerated.py", [])])
@pytest.mark.parametrize("stage", STAGES)
def test_programs_of_ours(venv, inputs, tmp_path, program, arguments, stage):
    """Those of tests/python, with this environment's versions."""
    import json

    def result(rows, **options):
        folder = [] if program == "accelerated.py" else [tmp_path / str(rows)]
        text = run(venv, inputs, PROGRAMS / program, *folder, rows, *arguments, **options)
        return json.loads(text.split("RESULT")[1])

    # Accelerate's schedule takes a step a rank: beside torch's DDP.
    plain = result(4, ranks=2) if program == "accelerated.py" else result(8)
    ours = result(4, stage=stage, ranks=2)
    if program == "trainer.py":
        for a, b in zip(ours["history"], plain["history"]):
            assert a == pytest.approx(b, rel=1e-3)
        assert ours["evaluated"] == pytest.approx(plain["evaluated"], rel=1e-3)
    elif program == "encoder_decoder.py":
        for name, expected in plain.items():
            assert ours[name]["losses"] == pytest.approx(expected["losses"], rel=1e-4)
            assert ours[name]["tokens"] == expected["tokens"]
            assert ours[name]["read"].keys() == expected["read"].keys()
    else:
        assert ours["losses"] == pytest.approx(plain["losses"], rel=1e-4)
