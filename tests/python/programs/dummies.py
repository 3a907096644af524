"""An Accelerate program whose optimizer and schedule are its DeepSpeed configuration's. Prints its losses and rates,
and the weights' sums.

Under DeepSpeed 0.19.8 with accelerate 1.15 it recorded tests/python/data/deepspeed_accelerate.json.
"""
import json
import sys

import torch
from accelerate import Accelerator, DeepSpeedPlugin
from accelerate.state import PartialState
from accelerate.utils import DummyOptim, DummyScheduler
from torch import nn


def ask_gloo():
    """Accelerate takes a machine without accelerators for one process, with DeepSpeed."""
    ask = PartialState._prepare_backend

    def _prepare_backend(self, cpu=False, *args, **kwargs):
        backend, kind = ask(self, cpu, *args, **kwargs)
        return backend or ("gloo" if not cpu else None), kind

    PartialState._prepare_backend = _prepare_backend


stage, what = int(sys.argv[1]), sys.argv[2]
if "sherd" not in sys.modules:
    ask_gloo()
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 1))
x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True)), batch_size=4)
document = {
    "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": 2,
    "zero_optimization": {"stage": stage},
    "optimizer": {"type": "Adam", "params": {"lr": "auto", "weight_decay": "auto", "torch_adam": True}},
    "scheduler": {"type": "WarmupDecayLR", "params": {key: "auto" for key in (
        "warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "total_num_steps")}}}
accelerator = Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=document))
trained = {"everything": model.parameters(), "part": model[2].parameters(), "groups": [
    {"params": [model[0].weight, model[2].weight], "weight_decay": 0.3},
    {"params": [model[0].bias, model[2].bias], "weight_decay": 0.0}]}
optimizer = DummyOptim(trained[what], lr=1e-2, weight_decay=0.1)
schedule = DummyScheduler(optimizer, total_num_steps=16, warmup_num_steps=2)
model, optimizer, data, schedule = accelerator.prepare(model, optimizer, data, schedule)
losses, rates = [], []
for _ in range(2):
    for inputs, targets in data:
        with accelerator.accumulate(model):
            loss = nn.functional.mse_loss(model(inputs), targets)
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        losses.append(accelerator.gather(loss.detach()[None]).mean().item())
        rates.append(schedule.get_last_lr())
if accelerator.is_main_process:
    print("RESULT", json.dumps({"losses": losses, "rates": rates, "skipped": optimizer.step_was_skipped}))
