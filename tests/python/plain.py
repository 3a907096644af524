"""The plain way: transformers' Llama on the golden model's tokens, in one process, with torch's own optimizers."""
import numpy as np
import torch
import transformers

from conftest import GOLDEN

IGNORED = -100


def rows_of(step: int, accumulation: int, rows: int, accumulate: int, context: int, tokens: np.ndarray) -> list[int]:
    """Where the rows of "order": "sequential" start."""
    in_epoch = (len(tokens) - 1) // context
    first = (step * accumulate + accumulation) * rows
    return [(first + row) % in_epoch * context for row in range(rows)]


def train(make_optimizer, steps: int, rows: int = 4, accumulate: int = 1, context: int = 64, clip: float = 1.0):
    """Losses, gradient norms and final weights of `steps` steps; a step's loss is the mean over its targets."""
    torch.manual_seed(0)
    tokens = np.fromfile(GOLDEN / "tokens.bin", dtype=np.uint16).astype(np.int64)
    model = transformers.LlamaForCausalLM.from_pretrained(GOLDEN, torch_dtype=torch.float32)
    optimizer = make_optimizer(model.parameters())
    losses, norms = [], []
    for step in range(steps):
        pieces = []
        for accumulation in range(accumulate):
            starts = rows_of(step, accumulation, rows, accumulate, context, tokens)
            taken = torch.from_numpy(np.stack([tokens[start:start + context + 1] for start in starts]))
            pieces.append((taken[:, :-1], taken[:, 1:]))
        count = sum(int((targets != IGNORED).sum()) for _, targets in pieces)
        total = 0.0
        for inputs, targets in pieces:
            logits = model(inputs).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED,
                                                     reduction="sum") / max(count, 1)
            loss.backward()
            total += loss.item()
        norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in model.parameters()]))
        for parameter in model.parameters():
            parameter.grad *= min(1.0, clip / (norm.item() + 1e-6))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
        norms.append(norm.item())
    return losses, norms, {name: p.detach().numpy() for name, p in model.named_parameters()}
