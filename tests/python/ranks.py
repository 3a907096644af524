"""Ranks for tests of the Python package: processes forked from a server that has torch and sherd loaded."""
import contextlib
import dataclasses
import multiprocessing
import os
import pickle
import socket
import time
import traceback

PRELOADED = ["torch", "torch.distributed.tensor", "transformers", "sherd"]


@dataclasses.dataclass
class Failure:
    """An exception of one rank."""
    kind: str
    message: str
    trace: str


class RanksFailed(AssertionError):
    def __init__(self, failures):
        self.failures = failures
        super().__init__("\n".join(f"rank {rank}: {f.kind}: {f.message}\n{f.trace}" for rank, f in failures.items()))


def server():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def free_port():
    with contextlib.closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def one_rank(pipe, rank, size, port, environment, function, args):
    if size > 1:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1",
                          MASTER_PORT=str(port))
    os.environ.update(environment)
    import torch
    torch.set_num_threads(1)
    try:
        result = function(*args)
    except BaseException as error:
        result = Failure(type(error).__name__, str(error), traceback.format_exc())
    pipe.send_bytes(pickle.dumps(result))  # not send(): torch would pass tensors by descriptors
    pipe.close()


def outcomes(size, function, *args, timeout=90, environment=None):
    """What function(*args) returned in each of `size` ranks, or the Failure of those in which it raised."""
    context, port = server(), free_port()
    processes, pipes = [], []
    for rank in range(size):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=one_rank, args=(theirs, rank, size, port, environment or {}, function, args))
        process.start()
        theirs.close()
        processes.append(process)
        pipes.append(ours)
    deadline = time.monotonic() + timeout
    results = []
    try:
        for rank, pipe in enumerate(pipes):
            try:
                alive = pipe.poll(max(0.0, deadline - time.monotonic()))
                results.append(pickle.loads(pipe.recv_bytes()) if alive
                               else Failure("Timeout", f"no result after {timeout} s", ""))
            except (EOFError, ConnectionResetError):
                processes[rank].join(10)
                results.append(Failure("Died", f"exit code {processes[rank].exitcode}", ""))
        for process in processes:
            process.join(max(1.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()
    return results


def run(size, function, *args, **options):
    """The same, where no rank may raise."""
    results = outcomes(size, function, *args, **options)
    failures = {rank: r for rank, r in enumerate(results) if isinstance(r, Failure)}
    if failures:
        raise RanksFailed(failures)
    return results
