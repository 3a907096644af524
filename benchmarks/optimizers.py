#!/usr/bin/env python3
"""A step of each optimizer beside its peers, on one thread and on all cores; and what each keeps for a parameter.

    benchmarks/optimizers.py                       # 16 million parameters, about 3 minutes
    benchmarks/optimizers.py --millions 32 --rounds 9

One flat parameter; all take turns in one process, the least and the median of the rounds are reported, as ratios of torch's fused
AdamW too. bitsandbytes comes with the test's requirements; torchao runs where it is installed (pip install torchao==0.17.0), else
it is left out. The build is build/python: make test, or ninja -C build sherd_python.
"""
import argparse
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
    def __init__(self, name, make, parameters, dtype=torch.float32, gradient=None):
        self.name, self.parameters = name, parameters
        torch.manual_seed(0)
        self.weight = torch.nn.Parameter((torch.randn(parameters) * 0.02).to(dtype))
        values = torch.randn(parameters) * 1e-3
        self.optimizer = make([self.weight])
        self.weight.grad = values.to(gradient or dtype)
        self.times = []

    def step(self):
        start = time.perf_counter()
        self.optimizer.step()
        self.times.append((time.perf_counter() - start) / self.parameters * 1e9)

    def state_bytes(self):
        held = [self.weight, self.weight.grad, *self.optimizer.state[self.weight].values()]
        return sum(t.nbytes for t in held if isinstance(t, torch.Tensor) and t.numel() > 256) / self.parameters


def contenders(args):
    n = args.millions << 20
    ours = sherd.optim
    yield Contender("torch AdamW, fused", lambda p: torch.optim.AdamW(p, fused=True, **HYPER), n)
    yield Contender("sherd AdamW", lambda p: ours.AdamW(p, **HYPER), n)
    yield Contender("sherd AdamW, bf16, fp32 master", lambda p: ours.AdamW(p, master="fp32", **HYPER), n, torch.bfloat16)
    yield Contender("sherd AdamW, bf16, split master", lambda p: ours.AdamW(p, master="split", **HYPER), n, torch.bfloat16)
    yield Contender("sherd AdamW8bit", lambda p: ours.AdamW8bit(p, **HYPER), n)
    yield Contender("sherd AdamW8bit, bf16, split master", lambda p: ours.AdamW8bit(p, master="split", **HYPER), n, torch.bfloat16)
    yield Contender("sherd AdamW8bit, bf16, no master", lambda p: ours.AdamW8bit(p, master="none", **HYPER), n, torch.bfloat16)
    try:
        import bitsandbytes
        yield Contender("bitsandbytes AdamW8bit", lambda p: bitsandbytes.optim.AdamW8bit(p, **HYPER), n // args.slow)
    except ImportError:
        pass
    try:
        from torchao.optim import AdamW8bit
        yield Contender("torchao AdamW8bit", lambda p: AdamW8bit(p, **HYPER), n // args.slow)
    except ImportError:
        pass


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
    every = list(contenders(args))
    one, cores = (measure(every, threads, args.rounds) for threads in (1, here["cores"]))
    print(f"| optimizer | one thread, ns a parameter: least, median | of torch fused | {here['cores']} threads | of torch fused | bytes a parameter |")
    print("|---|---|---|---|---|---|")
    for contender, (least, middle), (least_all, middle_all) in zip(every, one, cores):
        print(f"| {contender.name} | {least:.2f}, {middle:.2f} | {least / one[0][0]:.2f}, {middle / one[0][1]:.2f} | {least_all:.2f}, {middle_all:.2f} | "
              f"{least_all / cores[0][0]:.2f}, {middle_all / cores[0][1]:.2f} | {contender.state_bytes():.2f} |")


if __name__ == "__main__":
    main()
