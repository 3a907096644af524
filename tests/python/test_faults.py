"""Ranks that die, and interrupts: everybody ends in time, the dead rank is named, and nothing is left."""
import json
import os
import pathlib
import random
import re
import signal
import time

import pytest

from conftest import GOLDEN
from processes import Command, alive, shared_memory

LONG = {"steps": 100000, "timeout_s": 30}


@pytest.fixture
def start(sherd, write_config, tmp_path):
    """Starts a long training: start(ranks, changes)."""
    segments = shared_memory()
    temporary = tmp_path / "tmp"
    temporary.mkdir()

    def start(ranks: int, changes: dict | None = None) -> Command:
        config = write_config({**LONG, **(changes or {})})
        return Command([sherd, "train", config, "--ranks", ranks], tmp_path / "log", {"TMPDIR": str(temporary)})

    yield start
    assert shared_memory() <= segments
    assert list(temporary.iterdir()) == []


def trains(command: Command, tmp_path):
    metrics = tmp_path / "run" / "metrics.jsonl"
    return lambda: metrics.exists() and metrics.stat().st_size > 0


def expect_weights(folder: pathlib.Path):
    """The folder holds weights that are whole, and other than those that training began with."""
    from safetensors.numpy import load_file
    began, ended = load_file(GOLDEN / "model.safetensors"), load_file(folder / "model.safetensors")
    assert began.keys() == ended.keys()
    assert any((began[name] != ended[name]).any() for name in began)


@pytest.mark.parametrize("transport", ["host", "gloo"])
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("moment", ["starting", "training", "later"])
def test_a_killed_rank_ends_all_and_is_named(start, tmp_path, transport, ranks, moment):
    chance = random.Random(f"{transport} {ranks} {moment}")
    victim = chance.randrange(ranks)
    with start(ranks, {"transport": transport}) as command:
        command.wait_for(lambda: len(command.ranks()) == ranks)
        if moment != "starting":
            command.wait_for(trains(command, tmp_path))
        if moment != "training":
            time.sleep(chance.uniform(0, 1.5))
        pids = command.ranks()
        os.kill(pids[victim], signal.SIGKILL)
        assert command.end(timeout=5) == 1
        text = command.text()
    assert f"rank {victim} was killed by signal 9 (Killed)" in text
    assert alive(pids) == []
    if moment != "starting":
        told = [line for line in text.splitlines() if line.startswith("[rank ") and f"rank {victim}" in line[9:]]
        assert told, f"no other rank names the dead one:\n{text}"


def test_ranks_die_with_the_launcher(start, tmp_path):
    with start(2) as command:
        command.wait_for(trains(command, tmp_path))
        pids = command.ranks()
        os.kill(command.process.pid, signal.SIGKILL)
        command.end(timeout=5)
        end = time.monotonic() + 5
        while alive(pids) and time.monotonic() < end:
            time.sleep(0.02)
        assert alive(pids) == []


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("whom", [os.kill, os.killpg], ids=["process", "group"])
def test_an_interrupt_saves_and_ends(start, tmp_path, ranks, number, whom):
    with start(ranks) as command:
        command.wait_for(trains(command, tmp_path))
        pids = command.ranks()
        whom(command.process.pid, number)
        assert command.end(timeout=20) == 0, command.text()
        text = command.text()
    assert alive(pids) == []
    stopped = re.search(r"stopped after (\d+) steps", text)
    assert stopped, text
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == int(stopped.group(1))
    assert json.loads(lines[-1])["step"] == int(stopped.group(1))
    expect_weights(tmp_path / "run" / "model")
    assert not list((tmp_path / "run").glob("**/*.partial"))


def test_a_second_interrupt_ends_ranks_that_do_not_answer(start, tmp_path):
    with start(2) as command:
        command.wait_for(trains(command, tmp_path))
        pids = command.ranks()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        os.kill(command.process.pid, signal.SIGINT)
        time.sleep(0.7)
        assert command.process.poll() is None
        os.kill(command.process.pid, signal.SIGINT)
        assert command.end(timeout=5) == 130
    assert alive(pids) == []


def test_cores_are_divided(start, tmp_path):
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        pytest.skip("one core")
    with start(2) as command:
        command.wait_for(trains(command, tmp_path))
        first, second = (os.sched_getaffinity(pid) for pid in command.ranks())
        assert first | second == cores and not first & second
        threads = {dict(entry.split("=", 1) for entry in
                        pathlib.Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in entry)["OMP_NUM_THREADS"]
                   for pid in command.ranks()}
        assert threads == {os.environ.get("OMP_NUM_THREADS", str(len(cores) // 2))}
        os.killpg(command.process.pid, signal.SIGTERM)
        assert command.end(timeout=20) == 0
