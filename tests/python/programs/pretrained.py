"""An Accelerate program that fine-tunes a folder's model.
Prints its losses, whether the model was whole at first, and what is drawn after it was read."""
import json
import sys

import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM

accelerator = Accelerator()
torch.manual_seed(3)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
drawn = torch.rand(1).item()
plain = all(type(p) is torch.nn.Parameter for p in model.parameters())
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
ids = torch.randint(0, 61, (8, 16), generator=torch.Generator().manual_seed(1))
data = torch.utils.data.DataLoader(ids, batch_size=8 // accelerator.num_processes)
model, optimizer, data = accelerator.prepare(model, optimizer, data)
losses = []
for _ in range(4):
    for rows in data:
        loss = model(input_ids=rows, labels=rows).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(accelerator.gather(loss.detach()[None]).mean().item())
if accelerator.is_main_process:
    print("RESULT", json.dumps({"losses": losses, "plain": plain, "drawn": drawn}))
accelerator.end_training()
