"""A program that trains LoRA adapters of a model that is read from a folder: adapters.py FOLDER ROWS.
Prints losses and sizes."""
import json
import sys

import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

accelerator = Accelerator()
torch.manual_seed(0)
model = get_peft_model(AutoModelForCausalLM.from_pretrained(sys.argv[1]),
                       LoraConfig(r=3, target_modules=["q_proj", "v_proj"]))
sizes = {name: list(p.shape) for name, p in model.named_parameters() if p.requires_grad}
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-1)
ids = torch.randint(0, 61, (32, 16), generator=torch.Generator().manual_seed(1))
data = torch.utils.data.DataLoader(ids, batch_size=int(sys.argv[2]))
model, optimizer, data = accelerator.prepare(model, optimizer, data)
losses = []
for rows in data:
    loss = model(input_ids=rows, labels=rows).loss
    with torch.no_grad(), accelerator.unwrap_model(model).disable_adapter():
        before = model(input_ids=rows, labels=rows).loss
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    losses += [accelerator.gather(value.detach()[None]).mean().item() for value in (loss, before)]
accelerator.unwrap_model(model).save_pretrained(sys.argv[3])
accelerator.wait_for_everyone()
if accelerator.is_main_process:
    from safetensors.torch import load_file
    saved = {name: value.double().abs().sum().item()
             for name, value in load_file(f"{sys.argv[3]}/adapter_model.safetensors").items()}
    print("RESULT", json.dumps({"losses": losses, "sizes": sizes, "saved": saved}))
accelerator.end_training()
