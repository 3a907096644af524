"""A program that reads and writes parameters between steps, as under DDP or DeepSpeed: averages, saving by rank 0,
clamping, freezing.

Nothing in it knows of sherd: parameters_read.py OUTPUT ROWS [bf16]. Prints losses and sums."""
import copy
import json
import pathlib
import sys

import torch
from accelerate import Accelerator
from torch import nn

output, rows, bf16 = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] == ["bf16"]
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(7, 13), nn.GELU(), nn.Linear(13, 13), nn.GELU(), nn.Linear(13, 1))
average = copy.deepcopy(model)
accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no")
x = torch.randn(64, 7, generator=torch.Generator().manual_seed(1))
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True)), batch_size=rows)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
model, optimizer, data = accelerator.prepare(model, optimizer, data)
inner = accelerator.unwrap_model(model)
losses, checks = [], []
for step, (inputs, targets) in enumerate(data):
    loss = nn.functional.mse_loss(model(inputs).float(), targets)
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    losses.append(accelerator.gather(loss.detach()[None]).mean().item())
    with torch.no_grad():
        for mean, p in zip(average.parameters(), inner.parameters()):
            mean.lerp_(p, 0.5)
        if step == 1:
            for p in inner.parameters():
                p.clamp_(-0.2, 0.2)
        if step == 2:
            for p in inner.parameters():
                p.data.mul_(0.9)
        if step == 3:
            inner[0].weight.data = inner[0].weight.data * 0.5 + 0.01
        if step == 4:
            kept = [p.detach().clone() for p in inner.parameters()]
            for mean, p in zip(average.parameters(), inner.parameters()):
                p.data.copy_(mean.data)
            model.eval()
            checks.append(accelerator.gather(model(x[:8]).float().detach()).mean().item())
            for p, before in zip(inner.parameters(), kept):
                p.data.copy_(before)
            model.train()
        if step == 5:
            inner.load_state_dict({name: value * 0.99 for name, value in inner.state_dict().items()})
    if step == 6:
        checks.append(inner[2](torch.ones(2, 13)).sum().item())
checks += [sum(p.double().norm().item() for p in part.parameters()) for part in (average, inner)]
checks.append(float(inner[0].weight.detach().numpy().sum()) if type(inner[0].weight) is nn.Parameter else None)
if accelerator.is_main_process:
    torch.save(inner.state_dict(), output)  # by one rank alone
    saved = torch.load(output)
    print("RESULT",
          json.dumps({"losses": losses, "checks": checks,
                      "saved": {name: value.double().sum().item() for name, value in saved.items()}}))
accelerator.end_training()
