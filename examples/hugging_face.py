"""Fine-tunes small Hugging Face models, sharded: all parameters, then LoRA adapters on a frozen base; then generates.

    python examples/hugging_face.py                             # alone
    torchrun --nproc-per-node 2 examples/hugging_face.py        # on two ranks

Random weights and a text of its own: nothing is downloaded. With a model of yours, only `from_config` becomes
`from_pretrained`.
"""
import argparse

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

import sherd

TEXT = "the quick brown fox jumps over the lazy dog. " * 40
CONTEXT = 64

CONFIGS = {
    "llama": LlamaConfig(vocab_size=256, hidden_size=128, intermediate_size=256, num_hidden_layers=4,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT, bos_token_id=0,
                         eos_token_id=0),
    "gpt2": GPT2Config(vocab_size=256, n_embd=128, n_layer=4, n_head=4, n_positions=CONTEXT, bos_token_id=0,
                       eos_token_id=0),
}


def rows(step: int, rank: int, count: int = 4) -> torch.Tensor:
    """Bytes of the text: other rows in each step and on each rank."""
    stream = torch.tensor(list(TEXT.encode()))
    generator = torch.Generator().manual_seed(1000 * step + rank)
    starts = torch.randint(0, len(stream) - CONTEXT, (count,), generator=generator)
    return torch.stack([stream[start:start + CONTEXT] for start in starts])


def train(model: torch.nn.Module, steps: int, lr: float) -> list[float]:
    optimizer = sherd.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    world, losses = sherd.world(), []
    for step in range(steps):
        batch = rows(step, world.rank)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        sherd.clip_grad_norm_(model, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(sum(world.transport.exchange([loss.item()])) / world.size)
    return losses


def with_adapters(model: torch.nn.Module, kind: str) -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model
    targets = {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"]}[kind]
    return get_peft_model(model,
                          LoraConfig(r=8, target_modules=targets, task_type="CAUSAL_LM", fan_in_fan_out=kind == "gpt2"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    steps = parser.parse_args().steps
    say = print if sherd.world().rank == 0 else lambda *_: None
    for kind, config in CONFIGS.items():
        torch.manual_seed(0)
        model = sherd.shard(AutoModelForCausalLM.from_config(config))
        losses = train(model, steps, 3e-3)
        say(f"{kind}: loss {losses[0]:.3f} to {losses[-1]:.3f}")

        torch.manual_seed(1)
        base = AutoModelForCausalLM.from_config(config)
        weights = sherd.full_state_dict(model, all_ranks=True)
        base.load_state_dict(weights)
        adapted = sherd.shard(with_adapters(base, kind))
        losses = train(adapted, steps // 2, 1e-3)
        trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        say(f"{kind} with LoRA, {trained} trained parameters: loss {losses[0]:.3f} to {losses[-1]:.3f}")

        model.eval()
        prompt = torch.tensor([list(b"the quick ")])
        written = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False,
                                 pad_token_id=0)
        say(f"{kind} writes: {bytes(written[0].tolist()).decode(errors='replace')!r}")


if __name__ == "__main__":
    main()
