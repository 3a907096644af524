"""A Trainer program as users write them: nothing in it knows of sherd. Prints its losses and gradient norms."""
import json
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, i):
        ids = torch.randint(0, 61, (16,), generator=torch.Generator().manual_seed(i))
        return {"input_ids": ids, "labels": ids}


folder, rows, resume = sys.argv[1], int(sys.argv[2]), sys.argv[3:] == ["resume"]
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                     num_attention_heads=4, num_key_value_heads=2))
arguments = TrainingArguments(folder, max_steps=6, per_device_train_batch_size=rows, gradient_accumulation_steps=2,
                              learning_rate=1e-2, logging_steps=1, save_steps=3, max_grad_norm=0.5,
                              lr_scheduler_type="cosine", seed=1, report_to=[], disable_tqdm=True)
trainer = Trainer(model=model, args=arguments, train_dataset=Rows(),
                  eval_dataset=torch.utils.data.Subset(Rows(), range(8)))
trainer.train(resume_from_checkpoint=f"{folder}/checkpoint-3" if resume else None)
evaluated = trainer.evaluate()["eval_loss"]
trainer.save_model(f"{folder}/final")
if trainer.is_world_process_zero():
    history = [(entry["loss"], float(entry["grad_norm"])) for entry in trainer.state.log_history if "loss" in entry]
    print("RESULT", json.dumps({"history": history, "evaluated": evaluated}))
