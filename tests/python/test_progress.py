"""What a training run says on the way."""
import io
import logging
import sys

import torch

from fsdp_models import Net, token_loss
from ranks import run


class Terminal(io.StringIO):
    def isatty(self):
        return True


def training(terminal):
    """What rank 0's log and terminal got from six steps, of which every second is told."""
    import sherd
    said, screen = io.StringIO(), Terminal() if terminal else io.StringIO()
    logger = logging.getLogger("sherd")
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.StreamHandler(said))
    before, sys.stderr = sys.stderr, screen
    try:
        torch.manual_seed(0)
        engine, *_ = sherd.initialize(model=Net(), config={"units": ["Block"], "batch": {"rows": 2, "accumulate": 2}})
        losses = []
        for step in engine.progress(range(12), every=2):
            loss = token_loss(engine, step, engine.world.rank)
            engine.backward(loss)
            losses.append(loss.item())
            engine.step()
        state = sherd.full_state_dict(engine.module)
    finally:
        sys.stderr = before
    assert len(state) == (len(list(engine.module.parameters())) if engine.world.rank == 0 else 0)
    return said.getvalue(), screen.getvalue(), losses, engine.memory()


def test_training_is_logged_where_there_is_no_terminal():
    (said, screen, losses, memory), (other, *_) = run(2, training, False)
    lines = said.splitlines()
    assert [line.split(":")[0] for line in lines] == ["step 2", "step 4", "step 6"] and other == "" and screen == ""
    assert f"loss {losses[-1]:.4f}, norm " in lines[-1] and "lr 0.0003" in lines[-1]
    assert memory["parameters"] > 0 and memory["gradients"] > 0


def test_a_terminal_shows_a_bar():
    (said, screen, *_), (_, other, *_) = run(2, training, True)
    assert said == "" and "training" in screen and "step=" in screen and other == ""


def freed_memory_is_kept(malloc):
    """Page faults of a block of 64 MiB that is allocated again: the least of five times, as a small block that another
    thread was given out of the freed one sends the next block elsewhere, once."""
    import resource

    import sherd
    sherd.init(malloc=malloc)
    faults = []
    for _ in range(6):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(16 << 20)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(faults[1:])


def test_malloc_keeps_what_steps_free_unless_told_otherwise():
    assert run(1, freed_memory_is_kept, "keep")[0] < 1000
    assert run(1, freed_memory_is_kept, "system")[0] > 10000
    assert run(1, freed_memory_is_kept, "keep", environment={"MALLOC_TRIM_THRESHOLD_": "131072"})[0] > 10000
