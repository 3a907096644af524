#!/usr/bin/env python3
"""A step of each optimizer beside its peers, on one thread and on all cores; and what each keeps for a parameter.

    benchmarks/optimizers.py                       # 16 million parameters, about 3 minutes
    benchmarks/optimizers.py --millions 32 --rounds 9

One flat parameter; all take turns in one process, the least and the median of the rounds are reported, as ratios of
torch's fused AdamW too. Muon beside torch's, on the matrices of one block of a Llama of 256 dimensions. bitsandbytes
comes with the test's requirements; torchao runs where it is installed (pip install torchao==0.17.0), else it is left
out. The build is build/python: make test, or ninja -C build sherd_python.
"""
import argparse
import math
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "build" / "python"))

import torch  # noqa: E402

import machine  # noqa: E402
import sherd  # noqa: E402

HYPER = dict(lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)


def arguments():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--millions", type=int, default=16)
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--slow", type=int, default=4, help="bitsandbytes and torchao take so many times less parameters")
    return p.parse_args()


class Contender:
    def __init__(self, name, make, shapes, dtype=torch.float32):
        self.name, self.parameters = name, sum(math.prod(shape) for shape in shapes)
        torch.manual_seed(0)
        self.weights = [torch.nn.Parameter((torch.randn(shape) * 0.02).to(dtype)) for shape in shapes]
        self.optimizer = make(self.weights)
        for weight in self.weights:
            weight.grad = (torch.randn(weight.shape) * 1e-3).to(dtype)
        self.times = []

    def step(self):
        start = time.perf_counter()
        self.optimizer.step()
        self.times.append((time.perf_counter() - start) / self.parameters * 1e9)

    def state_bytes(self):
        held = [t for w in self.weights for t in (w, w.grad, *self.optimizer.state[w].values())]
        return sum(t.nbytes for t in held if isinstance(t, torch.Tensor) and t.numel() > 256) / self.parameters


def contenders(args):
    n, slow = [(args.millions << 20,)], [((args.millions << 20) // args.slow,)]  # shapes
    ours = sherd.optim
    yield Contender("torch AdamW, fused", lambda p: torch.optim.AdamW(p, fused=True, **HYPER), n)
    yield Contender("sherd AdamW", lambda p: ours.AdamW(p, **HYPER), n)
    yield Contender("sherd AdamW, bf16, fp32 master", lambda p: ours.AdamW(p, master="fp32", **HYPER), n,
                    torch.bfloat16)
    yield Contender("sherd AdamW, bf16, split master", lambda p: ours.AdamW(p, master="split", **HYPER), n,
                    torch.bfloat16)
    yield Contender("sherd AdamW8bit", lambda p: ours.AdamW8bit(p, **HYPER), n)
    yield Contender("sherd AdamW8bit, bf16, split master", lambda p: ours.AdamW8bit(p, master="split", **HYPER), n,
                    torch.bfloat16)
    lion = {key: value for key, value in HYPER.items() if key != "eps"}
    yield Contender("sherd Lion", lambda p: ours.Lion(p, **lion), n)
    yield Contender("sherd Lion8bit", lambda p: ours.Lion8bit(p, **lion), n)
    yield Contender("sherd AdamW8bit, bf16, no master", lambda p: ours.AdamW8bit(p, master="none", **HYPER), n,
                    torch.bfloat16)
    try:
        import bitsandbytes
        yield Contender("bitsandbytes AdamW8bit", lambda p: bitsandbytes.optim.AdamW8bit(p, **HYPER), slow)
    except ImportError:
        pass
    try:
        from torchao.optim import AdamW8bit
        yield Contender("torchao AdamW8bit", lambda p: AdamW8bit(p, **HYPER), slow)
    except ImportError:
        pass


def muons():
    """In bf16 torch's iterates in bf16, as always: on a CPU without such products they are emulated."""
    shapes = [(256, 256), (128, 256), (128, 256), (256, 256), (704, 256), (704, 256), (256, 704)]
    yield Contender("torch Muon", torch.optim.Muon, shapes)
    yield Contender("sherd Muon", sherd.optim.Muon, shapes)


def measure(all_of_them, threads, rounds):
    torch.set_num_threads(threads)
    for contender in all_of_them:
        contender.times.clear()
    for turn in range(rounds + 1):
        for contender in all_of_them[turn % len(all_of_them):] + all_of_them[:turn % len(all_of_them)]:
            contender.step()
    return [(min(c.times[1:]), sorted(c.times[1:])[rounds // 2]) for c in all_of_them]


def main():
    args = arguments()
    here = machine.describe()
    print(f"{machine.today()}, {here['cpu']}, {here['cores']} cores, {here['vector'][-1]}; commit {machine.commit()}; "
          f"`benchmarks/optimizers.py --millions {args.millions} --rounds {args.rounds}`\n")
    report(list(contenders(args)), "torch fused", here["cores"], args.rounds)
    print()
    report(list(muons()), "torch's", here["cores"], args.rounds)


def report(every, first, cores_at_work, rounds):
    one, cores = (measure(every, threads, rounds) for threads in (1, cores_at_work))
    print(f"| optimizer | one thread, ns a parameter: least, median | of {first} | {cores_at_work} threads | of "
          f"{first} | bytes a parameter |")
    print("|---|---|---|---|---|---|")
    for contender, (least, middle), (least_all, middle_all) in zip(every, one, cores):
        print(f"| {contender.name} | {least:.2f}, {middle:.2f} | {least / one[0][0]:.2f}, {middle / one[0][1]:.2f} | "
              f"{least_all:.2f}, {middle_all:.2f} | {least_all / cores[0][0]:.2f}, {middle_all / cores[0][1]:.2f} | "
              f"{contender.state_bytes():.2f} |")


if __name__ == "__main__":
    main()
