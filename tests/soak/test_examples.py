"""Hugging Face's examples run_clm.py and run_clm_no_trainer.py, unmodified, under sherd, against the same scripts
without it.

They are no part of this project: SOAK_EXAMPLES names a folder with them, which also has a folder `site` with what
run_clm.py imports beyond the environments (pip install --target FOLDER/site --no-deps evaluate requests urllib3
charset-normalizer idna certifi). run_clm_no_trainer.py is to be of transformers 5: the one of 4.57 asks for
DistributedType.TPU, which Accelerate 1 does not have."""
import json
import os
import pathlib
import shutil

import pytest
from safetensors.torch import load_file
from test_programs import STAGES, inputs, run, venv  # noqa: F401 inputs venv: fixtures

EXAMPLES = os.environ.get("SOAK_EXAMPLES")
SCRIPTS = ("run_clm", "run_clm_no_trainer")
# The script, the model, and the stage; GPT-2's Conv1D and learned positions once.
CASES = [*((script, model, stage) for script in SCRIPTS for model in ("llama", "tied") for stage in STAGES),
         *((script, "gpt2", "3") for script in SCRIPTS)]
# What run_clm.py's --do_eval computes; evaluate reads it from the current folder where the hub is out of reach.
ACCURACY = '''
import datasets
import evaluate
import numpy


class Accuracy(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int32"), "references": datasets.Value("int32")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"accuracy": float(numpy.mean(numpy.equal(predictions, references)))}
'''


@pytest.fixture(scope="session")
def examples():
    if not EXAMPLES:
        pytest.skip("SOAK_EXAMPLES names no folder with run_clm.py and run_clm_no_trainer.py of transformers' "
                    "examples/pytorch/language-modeling")
    return pathlib.Path(EXAMPLES).resolve()


@pytest.fixture(scope="session")
def corpus(inputs):  # noqa: F811
    """A folder with train.txt and validation.txt, a metric, and the models (GPT-2 without dropout, which one rank and
    two draw otherwise)."""
    folder = inputs / "corpus"
    (folder / "accuracy").mkdir(parents=True)
    (folder / "accuracy" / "accuracy.py").write_text(ACCURACY)
    lines = [json.loads(line)["text"] + "\n" for line in (inputs / "text" / "train.jsonl").read_text().splitlines()]
    (folder / "train.txt").write_text("".join(lines[:64]))
    (folder / "validation.txt").write_text("".join(lines[64:]))
    for model in ("llama", "tied", "gpt2"):
        shutil.copytree(inputs / model, folder / model)
    config = folder / "gpt2" / "config.json"
    dropout = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    config.write_text(json.dumps({**json.loads(config.read_text()), **dropout}))
    return folder


def clm(venv, examples, corpus, script, model, folder, rows, **options):  # noqa: F811
    """What the script left: its metrics, a list each, and its weights. `model` are the arguments that name it."""
    trainer = script == "run_clm"
    # Whole batches on one rank and on two: the Trainer weighs the last one by its rows, and fills it up on several.
    more = ["--do_train", "--do_eval", "--max_eval_samples", 16, "--max_steps", 4, "--logging_steps", 1, "--report_to",
            "none", "--use_cpu", "--save_strategy", "no"] if trainer else ["--max_train_steps", 4, "--seed", 1]
    with pytest.MonkeyPatch.context() as patch:
        if not trainer:  # clips nowhere; DeepSpeed does at 1.0 where it is not told, and Accelerate does not tell a 0
            patch.setenv("ACCELERATE_GRADIENT_CLIPPING", "1e9")
        run(venv, corpus.parent, examples / f"{script}.py", *model, "--train_file", corpus / "train.txt",
            "--validation_file", corpus / "validation.txt", "--block_size", 32, "--per_device_train_batch_size", rows,
            "--per_device_eval_batch_size", rows, "--learning_rate", 1e-2, "--output_dir", folder, *more,
            path=[examples / "site"], cwd=corpus, **options)
    results = {name: [value] for name, value in json.loads((folder / "all_results.json").read_text()).items()
               if name in ("train_loss", "eval_loss", "eval_accuracy", "perplexity")}
    if trainer:
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        for key in ("loss", "grad_norm"):
            results[key] = [entry[key] for entry in history if key in entry]
            assert len(results[key]) == 4
    return results, load_file(folder / "model.safetensors")


@pytest.fixture(scope="session")
def plain(venv, examples, corpus, tmp_path_factory):  # noqa: F811
    """Without sherd, by script and model: the Trainer on one rank, the script without it on two, as torch's DDP, for
    the same order of rows."""
    made = {}

    def of(script, *model):
        if (script, model) not in made:
            rows, ranks = (8, 1) if script == "run_clm" else (4, 2)
            made[script, model] = clm(venv, examples, corpus, script, model, tmp_path_factory.mktemp("plain"), rows,
                                      ranks=ranks)
        return made[script, model]

    return of


@pytest.mark.parametrize("script, model, stage", CASES)
def test_clm(venv, examples, corpus, plain, tmp_path, record_property, script, model, stage):  # noqa: F811
    named = ("--model_name_or_path", corpus / model)
    expected, weights = plain(script, *named)
    ours, written = clm(venv, examples, corpus, script, named, tmp_path, 4, ranks=2, stage=stage)
    assert ours.keys() == expected.keys() and written.keys() == weights.keys()
    apart = max((written[name] - weights[name]).abs().max().item() for name in weights)
    for key, values in expected.items():
        record_property(key, max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(ours[key], values, strict=True)))
    record_property("weights", apart)
    for key, values in expected.items():
        assert ours[key] == pytest.approx(values, rel=1e-4), key  # transformers 4 rounds losses to four digits
    assert apart < 1e-4  # a step moves them by 1e-2


@pytest.mark.parametrize("stage", STAGES)
def test_clm_from_scratch(venv, examples, corpus, plain, tmp_path, stage):  # noqa: F811
    """A model of a configuration. transformers 5 draws it otherwise at stage 3: once, on rank 0."""
    size = json.loads((corpus / "gpt2" / "config.json").read_text())["vocab_size"]
    overrides = f"n_embd=32,n_layer=2,n_head=4,vocab_size={size},attn_pdrop=0.0,embd_pdrop=0.0,resid_pdrop=0.0"
    model = ("--model_type", "gpt2", "--config_overrides", overrides, "--tokenizer_name", corpus / "gpt2")
    expected, _ = plain("run_clm", *model)
    ours, _ = clm(venv, examples, corpus, "run_clm", model, tmp_path, 4, ranks=2, stage=stage)
    otherwise = stage == "3" and "-5." in venv.name
    assert ours["loss"] == pytest.approx(expected["loss"], rel=2e-2 if otherwise else 1e-4)
