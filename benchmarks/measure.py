"""Runs one engine once: its losses and step times, or the memory of its ranks while they train."""
import dataclasses
import json
import os
import pathlib
import resource
import socket
import statistics
import subprocess
import tempfile
import time

from engines import Engine, Workload

SAMPLE_S = 0.05
TIMEOUT_S = 900


class RunFailed(Exception):
    pass


@dataclasses.dataclass(frozen=True)
class Run:
    losses: list[float]
    step_s: list[float]
    peak_mib: float  # most proportional memory of all ranks after the first step; 0 when not asked for
    others: float  # cores that other processes kept busy meanwhile

    def median_s(self, warmup: int) -> float:
        return statistics.median(self.step_s[warmup:])


def run(engine: Engine, work: Workload, sample_memory=False) -> Run:
    """Raises RunFailed with the end of the engine's output. Sampling slows the ranks: not for timing."""
    with tempfile.TemporaryDirectory(prefix="sherd-bench-") as temporary:
        folder = pathlib.Path(temporary)
        log, metrics = folder / "log", engine.metrics(folder)
        started = []
        wall, busy = time.monotonic(), _busy_s()
        try:
            with log.open("wb") as output:
                for process in engine.processes(work, folder, _free_port()):
                    started.append(subprocess.Popen(process.command, env=process.environment, stdout=output,
                                                    stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=folder))
            peak = _wait(engine, work, started, metrics, sample_memory)
        except RunFailed as failure:
            raise RunFailed(f"{engine.label} {failure}:\n{log.read_text(errors='replace')[-4000:]}") from None
        finally:
            for process in started:
                process.terminate()  # sherd's launcher ends its ranks
            for process in started:
                process.wait()
        others = max(0.0, (_busy_s() - busy) / (time.monotonic() - wall))
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    if len(lines) != work.steps:
        raise RunFailed(f"{engine.label} wrote {len(lines)} steps, expected {work.steps}")
    return Run([line["loss"] for line in lines], [line["step_s"] for line in lines], peak, others)


def _wait(engine, work, started, metrics, sample_memory) -> float:
    deadline = time.monotonic() + TIMEOUT_S
    peak = 0.0
    while any(process.poll() is None for process in started):
        if any(process.poll() for process in started):
            raise RunFailed("failed")
        if time.monotonic() > deadline:
            raise RunFailed(f"did not end in {TIMEOUT_S} s")
        if sample_memory and 0 < _count_lines(metrics) < work.steps:
            peak = max(peak, sum(map(proportional_mib, _ranks(engine, started))))
        time.sleep(SAMPLE_S)
    if any(process.returncode for process in started):
        raise RunFailed("failed")
    return peak


def _ranks(engine: Engine, started: list[subprocess.Popen]) -> list[int]:
    if not engine.is_sherd or engine.ranks == 1:  # One rank needs no launcher.
        return [process.pid for process in started]
    launcher = started[0].pid
    children = pathlib.Path(f"/proc/{launcher}/task/{launcher}/children")
    try:
        return [int(pid) for pid in children.read_text().split()]
    except FileNotFoundError:
        return []


def proportional_mib(pid: int) -> float:
    """Pages shared by n processes count 1/n here, so that the sum over ranks counts each once. 0 for an ended one."""
    try:
        for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0.0


def _busy_s() -> float:
    """CPU time of this machine that went neither to our ended children nor to nobody."""
    user, nice, system, _, _, irq, softirq, steal = map(int, pathlib.Path("/proc/stat").read_text().split()[1:9])
    ours = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - ours.ru_utime - ours.ru_stime


def _count_lines(file: pathlib.Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
