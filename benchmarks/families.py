#!/usr/bin/env python3
"""Which causal language models of transformers train under sherd: each family, built tiny, three steps under zero3 on
two ranks, beside the same model unsharded. Prints a line a family and a count.

    PYTHONPATH=build/python .venv/bin/python benchmarks/families.py [NAME ...]      # about 4 minutes for all
"""
import pathlib
import sys

import torch

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "tests" / "python"))
import ranks  # noqa: E402

STEPS, RANKS, TOKENS = 3, 2, 12

# What configurations call their sizes. A family has some of them.
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "hidden_size_global": 32, "d_model": 32, "n_embd": 32, "dim": 32,
    "embed_dim": 32, "word_embed_proj_dim": 32, "intermediate_size": 48, "ffn_hidden_size": 48, "ffn_dim": 48,
    "d_ff": 48, "dff": 48, "d_inner": 48, "n_inner": 48,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "expert_hidden_size": 16,
    "expert_ffn_hidden_size": 16, "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2,
    "decoder_layers": 2, "encoder_layers": 2, "num_decoder_layers": 2, "num_encoder_layers": 2,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "decoder_attention_heads": 4,
    "encoder_attention_heads": 4, "num_decoder_attention_heads": 4, "decoder_ffn_dim": 48, "encoder_ffn_dim": 48,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64,
    "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "state_size": 8, "rotary_dim": 8, "attention_hidden_size": 32,
    "context_length": 64, "sliding_window": 32, "attn_window_size": 32, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0, "kv_channels": 8, "num_codebooks": 1, "mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8,
    "mamba_d_ssm": 64, "mamba_expand": 2, "mamba_chunk_size": 16, "time_step_rank": 4, "expert_layer_period": 2,
    "attn_layer_period": 2, "image_size": 28, "patch_size": 14,
}
SWITCHES = {"is_decoder": True, "use_cache": False, "use_mamba_kernels": False}

# What single families need beside those: lists of a length, heads of state spaces, what stands at None or would leave
# the kind of layer out that the family is known for.
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
          "image_size": 28}
OWN = {
    "bamba": {"attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 16, **{f"{part}_config": {"num_key_value_heads": 4} for part in
                                                    ("patcher", "encoder", "decoder", "global")}},
    "cpmant": {"dim_head": 8, "dim_ff": 48, "prompt_length": 4},
    "dbrx": {"attn_config": {"clip_qkv": 8.0, "kv_n_heads": 2}, "ffn_config": {"moe_top_k": 2}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "num_key_value_heads": 4},
    "gemma3n_text": {"layer_types": ["sliding_attention", "full_attention"], "num_kv_shared_layers": 0,
                     "laurel_rank": 8, "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "num_local_experts": 4, "shared_intermediate_size": 16},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "moe_topk": 2},
    "jamba": {"attn_layer_offset": 1},
    "lfm2": {"full_attn_idxs": [1]},
    "mamba2": {"num_heads": 8, "n_groups": 1, "chunk_size": 16},
    "ministral": {"head_dim": 8},
    "mllama": {"cross_attention_layers": [1], "rope_scaling": {"rope_type": "default"}},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "phi4_multimodal": {"vision_config": {**VISION, "crop_size": 28},
                        "audio_config": {"hidden_size": 32, "intermediate_size": 48, "num_blocks": 2,
                                         "num_attention_heads": 4, "ext_pw_out_channel": 32,
                                         "depthwise_separable_out_channel": 32, "nemo_conv_channels": 32}},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4,
                   "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 32, "use_cache": True},
    "reformer": {"attn_layers": ["local", "lsh"], "attention_head_size": 8, "feed_forward_size": 48, "hash_seed": 0,
                 "axial_pos_shape": [3, 4], "axial_pos_embds_dim": [16, 16], "num_buckets": 2,
                 "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 32},
    "roc_bert": {"pronunciation_vocab_size": 64, "pronunciation_embed_dim": 8, "shape_vocab_size": 64,
                 "shape_embed_dim": 8},
    "transfo-xl": {"cutoffs": [20, 40], "d_embed": 32, "d_head": 8, "div_val": 1, "mem_len": 8},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 6, "attn_layer_offset": 0, "attention_hidden_size": 64, "num_key_value_heads": 4},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
               "num_key_value_heads": 4, "chunk_size": 16, "adapter_rank": 8},
}
METHODS = {"reformer": "backward_pass"}  # by which blocks are run beside their forward


def families() -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def changes(plain, own: dict) -> dict:
    """What makes a configuration, and those inside of it, tiny. plain: one with its defaults."""
    from transformers import PretrainedConfig
    made = {}
    for key in {**vars(plain), **plain.attribute_map}:
        value = getattr(plain, key)
        if isinstance(value, PretrainedConfig):
            made[key] = changes(value, own.get(key, {}))
        elif value is not None and key in SIZES:
            made[key] = SIZES[key]
        elif isinstance(value, float) and "drop" in key:
            made[key] = 0.0
    if "kv_lora_rank" in made:
        made["num_key_value_heads"] = 4  # latent attention has as many as queries
    return made | {key: value for key, value in own.items() if not isinstance(made.get(key), dict)}


def tiny(name: str) -> torch.nn.Module:
    """A model of this family with random weights of seed 0."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[name]]
    plain = model_class.config_class()  # of a family with images, the text's
    switches = {key: value for key, value in SWITCHES.items() if hasattr(plain, key)}
    config = model_class.config_class(**switches | changes(plain, OWN.get(name, {})))
    torch.manual_seed(0)
    return model_class._from_config(config, attn_implementation="eager")


def loss_of(model: torch.nn.Module, step: int, rank: int) -> torch.Tensor:
    """Of a rank's rows of a step; what is random in the forward is the same for both models."""
    torch.manual_seed(100 * step + rank)
    ids = torch.randint(3, 60, (2, TOKENS))
    inputs = {"input_ids": ids, "labels": ids}
    if model.config.model_type.startswith("musicgen"):
        inputs["labels"] = ids[..., None]  # of its one codebook
    if model.config.model_type == "git":
        inputs["pixel_values"] = torch.randn(2, 3, 28, 28)
    return model(**inputs).loss


def compare(name: str) -> tuple[str, float]:
    """What became of a family on this rank: ok, differs, or why not; and the largest relative difference of a loss, or
    of what training has changed in a parameter."""
    import sherd
    try:
        plain, model = tiny(name).train(), tiny(name).train()
        loss_of(plain, 0, 0).backward()
        plain.zero_grad()
    except Exception as error:
        return f"not built: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:90]}", 0.0
    world = sherd.world()
    first = [p.detach().clone() for p in plain.parameters()]
    sherd.shard(model)
    for module in model.modules():
        if hasattr(module, METHODS.get(name, "-")):
            sherd.register_forward_method(module, METHODS[name])
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05) for m in (plain, model)]
    differences = []
    for step in range(STEPS):
        reference = [loss_of(plain, step, rank) for rank in range(world.size)]
        (sum(reference) / world.size).backward()
        loss = loss_of(model, step, world.rank)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        expected = reference[world.rank].item()
        differences.append(abs(loss.item() - expected) / abs(expected))
    moved = [(p.detach() - before).norm().item() for p, before in zip(plain.parameters(), first)]
    apart = [(p.detach() - q.detach().full_tensor()).norm().item() - torch.finfo().eps * p.detach().norm().item()
             for p, q in zip(plain.parameters(), model.parameters(), strict=True)]
    least = 1e-5 * max(moved)  # some gradients are 0 but for rounding
    if not least > 0:
        return "nothing has changed", 0.0
    differences += [a / max(m, least) for a, m in zip(apart, moved)]
    return ("ok" if all(d < 1e-4 for d in differences) else "differs"), max(differences)


def family(name: str) -> tuple[str, float]:
    """The first complaint of a rank, or ok; and the largest relative difference."""
    answers = [(f"{a.kind}: {a.message[:150]}", 0.0) if isinstance(a, ranks.Failure) else a
               for a in ranks.outcomes(RANKS, compare, name, timeout=120)]
    wrong = [answer for answer, _ in answers if answer != "ok"]
    return (wrong or ["ok"])[0], max(worst for _, worst in answers)


def compare_each(names: tuple[str, ...]) -> dict[str, str]:
    return {name: compare(name)[0] for name in names}


def together(names: tuple[str, ...]) -> dict[str, str]:
    """What became of several families, one after the other in the same two ranks."""
    first, *others = ranks.run(RANKS, compare_each, names, timeout=300)
    return {name: next((o[name] for o in others if o[name] != "ok"), answer) for name, answer in first.items()}


def main() -> None:
    counts: dict[str, int] = {}
    for name in sys.argv[1:] or families():
        answer, worst = family(name)
        counts[answer.partition(":")[0]] = counts.get(answer.partition(":")[0], 0) + 1
        print(f"{name:28} {answer} ({worst:.1e})", flush=True)
    print(counts)


if __name__ == "__main__":
    main()
