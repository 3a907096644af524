"""Ranks that make different calls: what others are told, and how soon."""
import logging
import os
import time

import pytest
import torch

from fsdp_models import Net, shard_layers, token_loss, tokens
from ranks import Failure, outcomes, run

TIMEOUT = 20  # seconds, which nothing here takes


def model_after_a_step(transport, timeout=TIMEOUT):
    import sherd
    sherd.init(transport=transport, timeout=timeout)
    model = shard_layers(Net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    token_loss(model, 0, 0).backward()
    optimizer.step()
    optimizer.zero_grad()
    return model


def apart(transport, what):
    """Rank 0 does something alone; what the ranks hear, and after how many seconds."""
    import sherd
    model, rank = model_after_a_step(transport), sherd.world().rank
    start = time.monotonic()
    try:
        if what == "gone":
            if rank == 0:
                sherd.full_state_dict(model)
        elif what == "evaluation":
            if rank == 0:
                with torch.no_grad():
                    model(tokens(0, 0))
        elif what == "error":
            if rank == 1:
                raise ValueError("bad data")
            sherd.full_state_dict(model)
        elif what == "forward":
            sherd.full_state_dict(model) if rank == 0 else model(tokens(0, 0))
        elif what == "backward":
            loss = token_loss(model, 1, rank)
            sherd.full_state_dict(model) if rank == 0 else loss.backward()
        elif what == "save":
            engine = sherd.Engine(model, torch.optim.SGD(model.parameters(), lr=0.1), None,
                                  {"batch": {"accumulate": 1}})
            sherd.clip_grad_norm_(model, 1.0) if rank == 1 else engine.save_checkpoint("/nowhere")
        elif what == "killed":
            if rank == 1:
                os._exit(3)
            sherd.full_state_dict(model)
    except sherd.FaultError as error:
        return str(error), time.monotonic() - start
    return None


@pytest.mark.parametrize("transport", ("host", "gloo"))
def test_ranks_in_different_calls_are_named(transport):
    gone = apart_on(transport, "gone")
    assert "rank 1 has finished" in gone[0][0] and "rank 0 is in full_state_dict" in gone[0][0]
    assert "died" not in gone[0][0]
    evaluation = apart_on(transport, "evaluation")
    assert "rank 1 has finished" in evaluation[0][0] and "rank 0 is in the forward of the root" in evaluation[0][0]
    both = [apart_on(transport, "forward"), apart_on(transport, "backward"), apart_on(transport, "save")]
    for one in (o for outcome in both for o in outcome):
        assert one[1] < 2 if transport == "host" else one[1] < TIMEOUT / 2
    for text, _ in both[0]:
        assert "full_state_dict" in text and ("the forward of the root" in text or "the beginning of a forward" in text)
    for text, _ in both[1]:
        assert "full_state_dict" in text and ("backward" in text or "all_to_all" in text or "all_gather" in text)
    for text, _ in both[2]:
        assert "save_checkpoint" in text and "a gradient norm" in text
    if transport == "host":
        assert "rank 1 is in backward" in both[1][0][0] and max(gone[0][1], evaluation[0][1]) < 2


def apart_on(transport, what):
    result = outcomes(2, apart, transport, what)
    assert not any(isinstance(r, Failure) for r in result), result
    return result


@pytest.mark.parametrize("transport", ("host", "gloo"))
def test_a_rank_that_an_exception_or_a_signal_has_ended_is_named_so(transport):
    killed = outcomes(2, apart, transport, "killed")
    assert "rank 1 died" in killed[0][0] and killed[1].kind == "Died"


def late(transport):
    import sherd
    model, rank = model_after_a_step(transport, timeout=1.5), sherd.world().rank
    if rank == 1:
        time.sleep(4)
    try:
        model(tokens(0, 0))
    except sherd.FaultError as error:
        return str(error)


@pytest.mark.parametrize("transport", ("host", "gloo"))
def test_a_time_out_names_the_argument_as_the_program_knows_it(transport):
    text = run(2, late, transport)[0]
    assert "timeout=" in text and "timeout_s" not in text
    assert "rank 0 is in the forward of the root" in text and "none of sherd's calls" in text


def by_configuration():
    import sherd
    engine, *_ = sherd.initialize(model=Net(), config={"timeout_s": 1.0, "transport": "host"})
    if sherd.world().rank == 1:
        time.sleep(3)
    try:
        engine(tokens(0, 0))
        engine.get_global_grad_norm()
        sherd.full_state_dict(engine.module)
    except sherd.FaultError as error:
        return str(error)


def test_a_time_out_of_a_configuration_is_its_timeout_s():
    text = run(2, by_configuration)[0]
    assert "try a longer timeout_s" in text and "the first use of a sharded model" in text


def waits_a_little():
    """Late by more than a second, but not gone: a line on standard error, no more."""
    import sherd
    model, rank = model_after_a_step("host"), sherd.world().rank
    read, write = os.pipe()
    before = os.dup(2)
    os.dup2(write, 2)
    if rank == 1:
        time.sleep(1.6)
    state = sherd.full_state_dict(model)
    os.dup2(before, 2)
    os.close(write)
    logging.getLogger("sherd").handlers.clear()
    return len(state), os.read(read, 10000).decode() if rank == 0 else ""


def test_who_waits_for_a_call_of_all_ranks_says_so_after_a_second():
    (count, said), _ = run(2, waits_a_little)
    assert count > 0
    assert "rank 0 is in full_state_dict, rank 1 is in none of sherd's calls; all ranks are to make this call" in said


PROGRAM = """
import sys
import torch
import sherd
sherd.init(timeout=20, transport=sys.argv[1])
model = sherd.fully_shard(torch.nn.Linear(3, 4))
model(torch.ones(2, 3)).sum().backward()
if sherd.world().rank == 1:
    if sys.argv[2] == "raise":
        raise ValueError("bad data")
    sys.exit(0)
try:
    sherd.full_state_dict(model)
except sherd.FaultError as error:
    print("HEARD", error, flush=True)
"""


@pytest.mark.parametrize("transport", ("host", "gloo"))
def test_programs_that_end_tell_how(transport, tmp_path):
    import subprocess
    import sys

    from ranks import free_port
    (tmp_path / "program.py").write_text(PROGRAM)
    for how, expected in (("raise", "rank 1 gave up: ValueError: bad data (in "), ("exit", "rank 1 has finished")):
        port = free_port()
        processes = [subprocess.Popen([sys.executable, str(tmp_path / "program.py"), transport, how],
                                      stdout=subprocess.PIPE, text=True,
                                      env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
                                      stderr=subprocess.DEVNULL) for rank in range(2)]
        said = [process.communicate(timeout=60)[0] for process in processes]
        assert "HEARD" in said[0] and expected in said[0], said
        assert how == "exit" or "line 10: raise ValueError" in said[0], said
