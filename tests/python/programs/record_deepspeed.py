"""A small training by many DeepSpeed configurations: what it computes, as JSON.

Under DeepSpeed 0.19.8 (in an environment of its own: benchmarks/peers/setup.sh) this records
tests/python/data/deepspeed.json:

    DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 python -m torch.distributed.run --nproc-per-node 2 \\
        tests/python/programs/record_deepspeed.py tests/python/data/deepspeed.json

Under `-m sherd.as_deepspeed` it computes the same; test_deepspeed.py compares.
"""
import json
import sys

import deepspeed
import torch
import torch.distributed as dist
from torch import nn

STEPS, ROWS = 8, 4


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(9, 33), nn.GELU(), nn.Linear(33, 17, bias=False), nn.Tanh(), nn.Linear(17, 3))


def everything(model):
    return None


def head(model):
    return list(model[4].parameters())


def by_decay(model):
    return [{"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.5, "lr": 3e-3},
            {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0}]


def rate(number):
    return {"lr": number}


def adam(**params):
    return {"optimizer": {"type": "Adam", "params": {"lr": 1e-2, **params}}}


def torchs(**params):
    """By torch's own Adam, whose bits are torch's."""
    return adam(torch_adam=True, **params)


def stage(number):
    return {"zero_optimization": {"stage": number}}


def schedule(kind, **params):
    return {"scheduler": {"type": kind, "params": params}}


MICRO, OFF = {"train_micro_batch_size_per_gpu": ROWS}, {"gradient_clipping": 0.0}
# Name: document, what is trained. Losses are multiplied by 10, so that gradients are clipped where they are.
CONFIGURATIONS = {
    "torch_adam": (MICRO | OFF | stage(2) | torchs(), everything),
    "torch_adam, stage 0": (MICRO | OFF | stage(0) | torchs(), everything),
    "torch_adam, stage 1, groups": (MICRO | OFF | stage(1) | torchs(), by_decay),
    "torch_adam, stage 3, accumulation": (MICRO | OFF | stage(3) | torchs() | {"gradient_accumulation_steps": 3},
                                          everything),
    "torch_adam, stage 1, accumulation": (MICRO | OFF | stage(1) | torchs() | {"gradient_accumulation_steps": 3},
                                          everything),
    "torch_adam, L2": (MICRO | OFF | stage(2) | torchs(adam_w_mode=False, weight_decay=0.1, betas=[0.8, 0.9]),
                       everything),
    "SGD, train_batch_size": ({"train_batch_size": 8 * ROWS, **MICRO, **OFF, **stage(2),
                               "zero_allow_untested_optimizer": True,
                               "optimizer": {"type": "SGD", "params": {"lr": 1e-3, "momentum": 0.9}}}, everything),
    "train_batch_size alone": ({"train_batch_size": 2 * ROWS} | OFF | stage(3) | torchs(), everything),
    "Adam": (MICRO | stage(2) | adam(), everything),
    "Adam, no clipping": (MICRO | OFF | stage(3) | adam(), everything),
    "Adam, L2": (MICRO | stage(3) | adam(adam_w_mode=False, weight_decay=0.1), everything),
    "AdamW, groups": (MICRO | stage(3) | {"optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "eps": 1e-6}}},
                      by_decay),
    "clipping of stage 0": (MICRO | stage(0) | torchs() | {"gradient_clipping": 0.5}, everything),
    "a part, stage 0": (MICRO | stage(0) | torchs(), head),
    "a part, stage 2": (MICRO | stage(2) | torchs(), head),
    "a part, stage 3": (MICRO | stage(3) | torchs(), head),
    "WarmupLR": (MICRO | OFF | stage(2) | torchs() | schedule("WarmupLR", warmup_min_lr=1e-4, warmup_num_steps=4),
                 by_decay),
    "WarmupDecayLR": (MICRO | OFF | stage(3) | torchs()
                      | schedule("WarmupDecayLR", total_num_steps=8, warmup_num_steps=3,
                                 warmup_max_lr=2e-2, warmup_type="linear"), everything),
    "WarmupCosineLR": (MICRO | OFF | stage(1) | torchs()
                       | schedule("WarmupCosineLR", total_num_steps=7, warmup_num_steps=2), by_decay),
    "OneCycle": (MICRO | OFF | stage(0) | torchs()
                 | schedule("OneCycle", cycle_min_lr=1e-3, cycle_max_lr=1e-2, cycle_first_step_size=2,
                            decay_step_size=1, decay_lr_rate=0.5), everything),
    "fp16, loss scale": (MICRO | stage(2) | adam() | {"fp16": {"enabled": True, "loss_scale": 128, "auto_cast": True}},
                         everything),
    "fp16, overflow": (MICRO | stage(3) | adam()
                       | {"fp16": {"enabled": True, "initial_scale_power": 16, "hysteresis": 2, "auto_cast": True}},
                       everything),
    "bf16": (MICRO | stage(3) | adam() | {"bf16": {"enabled": True}}, everything),
    "bf16, stage 1, fp32 sums": (MICRO | stage(1) | adam()
                                 | {"bf16": {"enabled": True}, "communication_data_type": "fp32"}, everything),
}


def sums(engine):
    """Of each parameter, in float64: so many that no change is lost."""
    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        values = [parameter.detach().double().flatten() for parameter in engine.module.parameters()]
        return [[v.sum().item(), (v * torch.arange(1, v.numel() + 1)).sum().item(), v.square().sum().item()]
                for v in values]


def trained(document, choose):
    kind = next((kind for kind, section in ((torch.float16, "fp16"), (torch.bfloat16, "bf16")) if section in document),
                torch.float32)
    model = net().to(kind).float()  # DeepSpeed's masters start as the rounded weights, sherd's as the given ones
    document = json.loads(json.dumps(document))
    engine, optimizer, _, scheduler = deepspeed.initialize(model=model, model_parameters=choose(model), config=document)
    torch.set_num_threads(1)  # initialize() may change it
    rank, size = dist.get_rank(), dist.get_world_size()
    draw = torch.Generator().manual_seed(1)
    facts = {"losses": [], "rates": [], "norms": [], "scales": [], "samples": [], "returned": []}
    for _ in range(STEPS):
        facts["rates"].append(engine.get_lr())
        for _ in range(engine.gradient_accumulation_steps()):
            x = torch.randn(ROWS * size, 9, generator=draw)[ROWS * rank:ROWS * (rank + 1)]
            loss = 10 * (engine(x.to(kind)) - x[:, :3].to(kind)).float().square().mean()
            facts["losses"].append(loss.item())
            facts["returned"].append(engine.backward(loss).item())
            engine.step()
        norm = engine.get_global_grad_norm()
        facts["norms"].append(None if norm is None else float(norm))
        facts["scales"].append(float(getattr(engine.optimizer, "cur_scale", 1.0)))
        facts["samples"].append([engine.global_samples, engine.global_steps, engine.skipped_steps, engine.micro_steps])
    facts["sums"] = sums(engine)
    facts["schedule"] = None if scheduler is None else scheduler.state_dict()
    facts["batch"] = [engine.train_batch_size(), engine.train_micro_batch_size_per_gpu(),
                      engine.gradient_accumulation_steps()]
    return facts


def fingerprint():
    """Losses of a plain training: a processor on which they have the recorded bits computes as the recording one."""
    model, draw = net(), torch.Generator().manual_seed(2)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for _ in range(STEPS):
        x = torch.randn(ROWS, 9, generator=draw)
        loss = 10 * (model(x) - x[:, :3]).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def allow_fp16():
    """DeepSpeed takes a CPU for one without fp16 where its instructions are missing; torch computes it all the same."""
    if "sherd" not in sys.modules:
        from deepspeed.accelerator import get_accelerator
        type(get_accelerator()).is_fp16_supported = lambda _: True


def main():
    deepspeed.init_distributed("gloo")
    allow_fp16()
    torch.set_num_threads(1)
    results = {name: trained(*chosen) for name, chosen in CONFIGURATIONS.items()}
    if dist.get_rank() == 0:
        lines = [f" {json.dumps(name)}: {json.dumps(facts)}" for name, facts in results.items()]
        with open(sys.argv[1], "w") as out:
            out.write(f'{{"version": "{deepspeed.__version__}",\n"fingerprint": {fingerprint()},\n"results": {{\n'
                      + ",\n".join(lines) + "}}\n")
    dist.barrier()


if __name__ == "__main__":
    main()
