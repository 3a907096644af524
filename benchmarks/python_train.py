"""Trains the peers' model under sherd's Python package: peers/train.py with another engine.

    RANK=0 WORLD_SIZE=1 python benchmarks/python_train.py --engine sherd-py-zero3 --model small --tokens FILE \\
      --metrics OUT.jsonl

Options are those of peers/train.py; --chunked-loss is sherd.linear_cross_entropy here.
"""
import json
import pathlib
import sys
import time

import sherd
from engines import SHERD_PYTHON_ENGINES

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "peers"))
import model as m  # noqa: E402
import train  # noqa: E402

PREFIX = "sherd-py-"


def chunked_forward(self, tokens, targets):
    return sherd.linear_cross_entropy(self.model(tokens), self.lm_head.weight, targets)


def main():
    train.ENGINES = SHERD_PYTHON_ENGINES
    args = train.arguments()
    cfg = m.PRESETS[args.model]
    world = sherd.init()
    model = m.build(cfg, train.SEED)
    if args.chunked_loss:
        m.Llama.forward = chunked_forward
    if args.compile:
        for block in model.model.layers:
            block.compile()
    config = {"strategy": args.engine.removeprefix(PREFIX), "clip": args.clip, "units": ["Block"],
              "reshard_after_forward": False if args.keep_unsharded else "auto",
              "optimizer": {**train.adamw(args), "no_decay": []}}
    engine, *_ = sherd.initialize(model=model, config=config)

    lines = open(args.metrics, "w") if world.rank == 0 else None
    data = train.batches(args, cfg, world.rank, world.size)
    for number in range(1, args.steps + 1):
        start = time.perf_counter()
        loss = engine(*next(data))
        engine.backward(loss)
        engine.step()
        value = loss.item()
        seconds = time.perf_counter() - start
        values = world.transport.exchange([value])
        if lines:
            print(json.dumps({"step": number, "loss": sum(values) / world.size, "step_s": seconds}), file=lines,
                  flush=True)


if __name__ == "__main__":
    main()
