"""The plain way: transformers' Llama on the golden model's tokens, in one process, with torch's own optimizers."""
import dataclasses

import numpy as np
import torch
import transformers

from conftest import GOLDEN

IGNORED = -100


def golden_tokens() -> np.ndarray:
    return np.fromfile(GOLDEN / "tokens.bin", dtype=np.uint16).astype(np.int64)


@dataclasses.dataclass
class Data:
    """Rows of a token stream in "order": "sequential", with the targets that count."""

    tokens: np.ndarray = dataclasses.field(default_factory=golden_tokens)
    mask: np.ndarray | None = None
    separator: int | None = None
    rows: int = 4
    accumulate: int = 1
    context: int = 64
    last: str = "next_epoch"

    def row_starts(self, step: int, accumulation: int) -> list[int]:
        in_epoch = (len(self.tokens) - 1) // self.context
        step_rows = self.rows * self.accumulate
        first = accumulation * self.rows
        if self.last == "next_epoch":
            first += step * step_rows
            return [(first + row) % in_epoch * self.context for row in range(self.rows)]
        steps = in_epoch // step_rows if self.last == "drop" else -(-in_epoch // step_rows)
        first += step % steps * step_rows
        return [row * self.context for row in range(first, min(first + self.rows, in_epoch))]

    def piece(self, step: int, accumulation: int):
        """Inputs and targets of an accumulation step, or None where an epoch's last step has no more rows."""
        starts = self.row_starts(step, accumulation)
        if not starts:
            return None
        inputs = np.stack([self.tokens[start:start + self.context] for start in starts])
        targets = np.stack([self.tokens[start + 1:start + self.context + 1] for start in starts])
        if self.separator is not None:
            targets = np.where(inputs == self.separator, IGNORED, targets)
        if self.mask is not None:
            kept = np.stack([self.mask[start + 1:start + self.context + 1] for start in starts])
            targets = np.where(kept == 0, IGNORED, targets)
        return torch.from_numpy(inputs), torch.from_numpy(targets)


def golden_model():
    return transformers.LlamaForCausalLM.from_pretrained(GOLDEN, torch_dtype=torch.float32)


def loss_sum(model, inputs, targets):
    logits = model(inputs).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED,
                                             reduction="sum")


def train(make_optimizer, steps: int, data: Data | None = None, clip: float = 1.0):
    """Losses, gradient norms and final weights of `steps` steps; a step's loss is the mean over its targets."""
    data = data or Data()
    model = golden_model()
    optimizer = make_optimizer(model.parameters())
    losses, norms = [], []
    for step in range(steps):
        pieces = [data.piece(step, accumulation) for accumulation in range(data.accumulate)]
        pieces = [piece for piece in pieces if piece]
        count = sum(int((targets != IGNORED).sum()) for _, targets in pieces)
        total = 0.0
        for inputs, targets in pieces:
            loss = loss_sum(model, inputs, targets) / max(count, 1)
            loss.backward()
            total += loss.item()
        norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in model.parameters()])).item()
        for parameter in model.parameters():
            parameter.grad *= min(1.0, clip / (norm + 1e-6))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
        norms.append(norm)
    return losses, norms, {name: p.detach().numpy() for name, p in model.named_parameters()}
