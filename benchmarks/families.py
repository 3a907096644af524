#!/usr/bin/env python3
"""Which causal language models of transformers train under sherd: each family, built tiny, three steps under zero3 on two
ranks, beside the same model unsharded. Prints a line a family and a count.

    PYTHONPATH=build/python .venv/bin/python benchmarks/families.py [NAME ...]      # about 5 minutes for all
"""
import multiprocessing
import os
import socket
import sys
import traceback

import torch

STEPS, RANKS, TOKENS = 3, 2, 12

# What configurations call their sizes. A family has some of them.
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "embed_dim": 32, "ffn_dim": 48,
    "word_embed_proj_dim": 32, "intermediate_size": 48, "ffn_hidden_size": 48, "d_ff": 48, "n_inner": 48, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "expert_hidden_size": 16, "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2,
    "num_layers": 2, "decoder_layers": 2, "encoder_layers": 2, "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4,
    "decoder_attention_heads": 4, "encoder_attention_heads": 4, "decoder_ffn_dim": 48, "encoder_ffn_dim": 48,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64,
    "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "state_size": 8,
    "rotary_dim": 8, "attention_hidden_size": 32, "context_length": 64, "sliding_window": 32, "attn_window_size": 32,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "kv_channels": 8, "num_codebooks": 1, "mamba_d_state": 8,
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_expand": 2, "time_step_rank": 4, "expert_layer_period": 2, "attn_layer_period": 2,
}
SWITCHES = {"is_decoder": True, "use_cache": False}


def families() -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny(name: str) -> torch.nn.Module:
    """A model of this family with random weights of seed 0."""
    from transformers import AutoConfig, AutoModelForCausalLM
    plain = AutoConfig.for_model(name)
    changes = {key: value for key, value in {**SIZES, **SWITCHES}.items()
               if getattr(plain, key, None) is not None and not isinstance(getattr(type(plain), key, None), property)}
    if "kv_lora_rank" in changes:
        changes["num_key_value_heads"] = 4  # latent attention has as many as queries
    changes |= {key: 0.0 for key, value in plain.to_dict().items() if isinstance(value, float) and "drop" in key}
    config = AutoConfig.for_model(name, **changes)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def loss_of(model: torch.nn.Module, step: int, rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * step + rank)
    ids = torch.randint(3, 60, (2, TOKENS), generator=generator)
    return model(input_ids=ids, labels=ids).loss


def compare(name: str) -> tuple[str, float]:
    """What became of a family on this rank: ok, differs, or why not; and the largest relative difference of a loss."""
    import sherd
    try:
        plain, model = tiny(name).train(), tiny(name).train()
        reference = [loss_of(plain, 0, rank) for rank in range(RANKS)]
    except Exception as error:
        return f"not built: {type(error).__name__}: {str(error).splitlines()[0][:90]}", 0.0
    world = sherd.world()
    sherd.shard(model)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05) for m in (plain, model)]
    worst = 0.0
    for step in range(STEPS):
        reference = [loss_of(plain, step, rank) for rank in range(world.size)]
        (sum(reference) / world.size).backward()
        loss = loss_of(model, step, world.rank)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        expected = reference[world.rank].item()
        worst = max(worst, abs(loss.item() - expected) / abs(expected))
    return ("ok" if worst < 1e-4 else "differs"), worst


def one_rank(rank: int, port: int, name: str, results) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(RANKS), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=str(port))
    torch.set_num_threads(1)
    try:
        results.put((rank, *compare(name)))
    except BaseException as error:
        trace = traceback.extract_tb(error.__traceback__)[-1]
        results.put((rank, f"{type(error).__name__}: {str(error).splitlines()[0][:150]} ({trace.filename}:{trace.lineno})", 0.0))


def family(name: str, timeout: float = 120) -> tuple[str, float]:
    """The first complaint of a rank, or ok."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed.tensor", "transformers", "sherd"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = context.Queue()
    processes = [context.Process(target=one_rank, args=(rank, port, name, results)) for rank in range(RANKS)]
    for process in processes:
        process.start()
    try:
        answers = [results.get(timeout=timeout) for _ in processes]
    except Exception:
        answers = [(0, "no answer", 0.0)]
    for process in processes:
        process.join(5)
        process.kill()
    wrong = [a for a in answers if a[1] != "ok"]
    return (wrong or answers)[0][1], max(a[2] for a in answers)


def main() -> None:
    counts: dict[str, int] = {}
    for name in sys.argv[1:] or families():
        answer, worst = family(name)
        counts[answer.partition(":")[0]] = counts.get(answer.partition(":")[0], 0) + 1
        print(f"{name:28} {answer} ({worst:.1e})", flush=True)
    print(counts)


if __name__ == "__main__":
    main()
