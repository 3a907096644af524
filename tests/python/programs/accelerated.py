"""An Accelerate program as users write them: nothing in it knows of sherd. Prints its losses and final weights."""
import json
import sys

import torch
from accelerate import Accelerator
from torch import nn

rows = int(sys.argv[1])
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 1))
x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True)), batch_size=rows)
accelerator = Accelerator(gradient_accumulation_steps=2)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 10)
model, optimizer, data, schedule = accelerator.prepare(model, optimizer, data, schedule)
losses = []
for _ in range(2):
    for inputs, targets in data:
        with accelerator.accumulate(model):
            loss = nn.functional.mse_loss(model(inputs), targets)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        losses.append(accelerator.gather(loss.detach()[None]).mean().item())
state = accelerator.get_state_dict(model)
if accelerator.is_main_process:
    print("RESULT", json.dumps({"losses": losses, "state": {name: value.tolist() for name, value in state.items()}}))
accelerator.end_training()
