"""A few steps of a small model, sharded: the example of the README.

    python examples/train.py                              # alone
    torchrun --nproc-per-node 2 examples/train.py         # on two ranks; mpirun -n 2 python ... does it too
"""
import torch
from torch import nn

import sherd

torch.manual_seed(0)
blocks = [nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True) for _ in range(4)]
model = nn.Sequential(nn.Embedding(100, 64), *blocks, nn.Linear(64, 100))

for block in blocks:
    sherd.fully_shard(block)
sherd.fully_shard(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

rank = sherd.world().rank
for step in range(20):
    tokens = (torch.arange(33) + torch.arange(4)[:, None] + rank) % 100
    loss = nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if rank == 0 and step % 5 == 4:
        print(f"step {step + 1}: loss {loss.item():.4f}")
