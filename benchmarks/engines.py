"""What can be compared: sherd's strategies and the peers, each as the processes that one run starts."""
import dataclasses
import json
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
PEERS = ROOT / "benchmarks" / "peers"
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
SHERD = ROOT / "build" / "sherd"
PYTHON = ROOT / ".venv" / "bin" / "python"

SHERD_STRATEGIES = ("zero3", "zero2", "zero1", "ddp", "hsdp")
TORCH_ENGINES = ("fsdp2", "fsdp1", "ddp", "zero1-torch")
DEEPSPEED_ENGINES = ("deepspeed-zero1", "deepspeed-zero2", "deepspeed-zero3")
SHERD_PYTHON_ENGINES = tuple(f"sherd-py-{s}" for s in ("zero3", "zero2", "zero1", "ddp"))
NAMES = (*(f"sherd-{s}" for s in SHERD_STRATEGIES), *SHERD_PYTHON_ENGINES, "single", *TORCH_ENGINES, *DEEPSPEED_ENGINES)

# FSDP2 is compared in its fastest form. The way of the loss is chosen first, with the form that is torch's default.
FSDP2_LOSSES = ((), ("--chunked-loss",))
FSDP2_FORMS = ((), ("--keep-unsharded",), ("--compile",), ("--compile", "--keep-unsharded"))


@dataclasses.dataclass(frozen=True)
class Workload:
    """The work of one run, the same for all engines. `init` is a Hugging Face folder, `tokens` a uint16 file. sherd
    alone can also have sizes of a Llama in place of `init`, then with random weights, and no tokens: synthetic ones."""
    model: str
    rows: int
    context: int
    steps: int
    lr: float
    init: pathlib.Path | dict
    tokens: pathlib.Path | None


@dataclasses.dataclass(frozen=True)
class Process:
    command: tuple[str, ...]
    environment: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Engine:
    """`name` is one of NAMES, `options` are train.py's, `cpus` those that all ranks share evenly."""
    name: str
    ranks: int
    cpus: tuple[int, ...]
    options: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return " ".join((self.name, *(o.removeprefix("--") for o in self.options)))

    @property
    def is_sherd(self) -> bool:
        """The command's training, by a configuration file."""
        return self.name.startswith("sherd-") and not self.is_python

    @property
    def is_python(self) -> bool:
        """The Python package's, by a script like the peers'."""
        return self.name.startswith("sherd-py-")

    def metrics(self, folder: pathlib.Path) -> pathlib.Path:
        return folder / ("run/metrics.jsonl" if self.is_sherd else "metrics.jsonl")

    def processes(self, work: Workload, folder: pathlib.Path, port: int) -> list[Process]:
        return [self._sherd(work, folder)] if self.is_sherd else self._peers(work, folder, port)

    def _sherd(self, work: Workload, folder: pathlib.Path) -> Process:
        strategy = self.name.removeprefix("sherd-")
        tokens = {"tokens": str(work.tokens)} if work.tokens else {"synthetic": True}
        config = {
            "model": work.init if isinstance(work.init, dict) else {"path": str(work.init)},
            "data": {**tokens, "context": work.context, "order": "sequential"},
            "batch": {"rows": work.rows},
            "optimizer": {"lr": work.lr, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "no_decay": []},
            "clip": 1.0,
            "strategy": strategy,
            "steps": work.steps,
            "output": str(folder / "run"),
        }
        if strategy == "hsdp":
            config["mesh"] = {"replicate": 2, "shard": "auto"}
        file = folder / "config.json"
        file.write_text(json.dumps(config, indent=2))
        cpus = ",".join(map(str, self.cpus))
        # sherd's launcher gives each rank its share of these cores, and as many threads.
        command = ("taskset", "-c", cpus, str(SHERD), "train", str(file), "--ranks", str(self.ranks))
        return Process(command, _environment({}))

    def _peers(self, work: Workload, folder: pathlib.Path, port: int) -> list[Process]:
        share = len(self.cpus) // self.ranks
        processes = []
        for rank in range(self.ranks):
            cpus = ",".join(map(str, self.cpus[rank * share : (rank + 1) * share]))
            program = (str(PYTHON), str(ROOT / "benchmarks" / "python_train.py")) if self.is_python else \
                (str(PEERS_PYTHON), str(PEERS / "train.py"))
            command = ("taskset", "-c", cpus, *program, "--engine", self.name,
                       "--model", work.model, "--tokens", str(work.tokens), "--rows", str(work.rows),
                       "--steps", str(work.steps), "--lr", str(work.lr),
                       "--metrics", str(self.metrics(folder)), *self.options)
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.ranks, "LOCAL_WORLD_SIZE": self.ranks,
                     "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": share}
            if self.is_python:
                place["PYTHONPATH"] = ROOT / "build" / "python"
            processes.append(Process(command, _environment(place)))
        return processes


def _environment(place: dict) -> dict[str, str]:
    """Ours without what would set threads or ranks, and with `place`."""
    mine = {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"}
    environment = {k: v for k, v in os.environ.items() if k not in mine}
    # Compiled code is kept between runs, and no compiler workers stay beside the ranks.
    environment |= {"TORCHINDUCTOR_CACHE_DIR": str(ROOT / ".cache" / "inductor"), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    return environment | {k: str(v) for k, v in place.items()}


def trained_steps(example: str, settings: dict, folder: pathlib.Path) -> list[dict]:
    """What each step of a training of examples/`example` by two ranks measured; `settings` change its configuration."""
    command = [SHERD, "train", ROOT / "examples" / example, "--ranks", "2"]
    for key, value in {"output": folder, **settings}.items():
        command += ["--set", f"{key}={value}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
