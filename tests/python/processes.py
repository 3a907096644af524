"""Watches the processes and the traces of a `sherd` command from outside."""
import os
import pathlib
import signal
import subprocess
import time


class Command:
    """A running command, with what it has written so far in `log`; `ranks()` are its child processes in rank order."""

    def __init__(self, arguments: list, log: pathlib.Path, env: dict | None = None):
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen([str(a) for a in arguments], stdout=out, stderr=subprocess.STDOUT,
                                            start_new_session=True, env={**os.environ, **(env or {})})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def ranks(self) -> list[int]:
        pid = self.process.pid
        try:
            return sorted(int(p) for p in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        except FileNotFoundError:
            return []

    def wait_for(self, condition, timeout: float = 60):
        """Waits until condition() is true; fails with the output when the command ends before, or time is over."""
        end = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.text()}"
            assert time.monotonic() < end, f"nothing within {timeout} s:\n{self.text()}"
            time.sleep(0.02)

    def end(self, timeout: float) -> int:
        """The exit code, within `timeout` seconds."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s:\n{self.text()}") from None


def alive(pids: list[int]) -> list[int]:
    """Those of `pids` that are running (zombies are not)."""
    running = []
    for pid in pids:
        try:
            state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state not in "ZX":
            running.append(pid)
    return running


def shared_memory() -> set[str]:
    """The named segments that a program of ours could have made."""
    return {path.name for path in pathlib.Path("/dev/shm").glob("*")
            if any(word in path.name for word in ("sherd", "torch", "gloo"))}
