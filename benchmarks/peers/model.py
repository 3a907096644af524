"""The decoder that every peer trains: a Llama in plain PyTorch, with Hugging Face's parameter names.

Each peer wraps the very same module tree, and its saved weights are those of a Hugging Face `LlamaForCausalLM`, which
sherd loads too.
"""
import dataclasses

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclasses.dataclass(frozen=True)
class Config:
    dim: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    context: int
    rope_base: float = 10000.0
    norm_eps: float = 1e-5

    def hugging_face(self) -> dict:
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": self.dim, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "intermediate_size": self.ffn, "vocab_size": self.vocab,
            "max_position_embeddings": self.context, "rope_theta": self.rope_base, "rms_norm_eps": self.norm_eps,
            "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False, "torch_dtype": "float32",
        }


PRESETS = {
    "tiny": Config(dim=64, layers=2, heads=4, kv_heads=2, ffn=176, vocab=256, context=64),
    "small": Config(dim=512, layers=8, heads=8, kv_heads=8, ffn=1408, vocab=8192, context=256),
    "base": Config(dim=768, layers=12, heads=12, kv_heads=12, ffn=2048, vocab=32000, context=256),
    "1b": Config(dim=2048, layers=16, heads=16, kv_heads=16, ffn=5632, vocab=32000, context=512),
}


def rotary_table(cfg: Config) -> torch.Tensor:
    """[2, context, head_dim/2]: cosines and sines."""
    half = cfg.dim // cfg.heads // 2
    freq = cfg.rope_base ** (-torch.arange(half, dtype=torch.float32) / half)
    angle = torch.outer(torch.arange(cfg.context, dtype=torch.float32), freq)
    return torch.stack((angle.cos(), angle.sin()))


def rotate(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rotates the two halves of each head: x is [batch, heads, time, head_dim]."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = table[:, : x.size(-2)].to(x.dtype)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.heads, self.kv_heads, head = cfg.heads, cfg.kv_heads, cfg.dim // cfg.heads
        self.q_proj = nn.Linear(cfg.dim, cfg.heads * head, bias=False)
        self.k_proj = nn.Linear(cfg.dim, cfg.kv_heads * head, bias=False)
        self.v_proj = nn.Linear(cfg.dim, cfg.kv_heads * head, bias=False)
        self.o_proj = nn.Linear(cfg.heads * head, cfg.dim, bias=False)

    def forward(self, x, table):
        batch, time, dim = x.shape
        q = rotate(self.q_proj(x).view(batch, time, self.heads, -1).transpose(1, 2), table)
        k = rotate(self.k_proj(x).view(batch, time, self.kv_heads, -1).transpose(1, 2), table)
        v = self.v_proj(x).view(batch, time, self.kv_heads, -1).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.kv_heads)
        return self.o_proj(y.transpose(1, 2).reshape(batch, time, dim))


class Mlp(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.gate_proj = nn.Linear(cfg.dim, cfg.ffn, bias=False)
        self.up_proj = nn.Linear(cfg.dim, cfg.ffn, bias=False)
        self.down_proj = nn.Linear(cfg.ffn, cfg.dim, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(cfg.dim, eps=cfg.norm_eps)
        self.self_attn = Attention(cfg)
        self.post_attention_layernorm = nn.RMSNorm(cfg.dim, eps=cfg.norm_eps)
        self.mlp = Mlp(cfg)

    def forward(self, x, table):
        x = x + self.self_attn(self.input_layernorm(x), table)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.embed_tokens = nn.Embedding(cfg.vocab, cfg.dim)
        self.layers = nn.ModuleList(Block(cfg) for _ in range(cfg.layers))
        self.norm = nn.RMSNorm(cfg.dim, eps=cfg.norm_eps)
        self.register_buffer("table", rotary_table(cfg), persistent=False)

    def forward(self, tokens):
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, self.table)
        return self.norm(x)


class Llama(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.model = Decoder(cfg)
        self.lm_head = nn.Linear(cfg.dim, cfg.vocab, bias=False)
        self.chunked_loss = False

    def forward(self, tokens, targets):
        x = self.model(tokens)
        if self.chunked_loss:
            return F.linear_cross_entropy(x.flatten(0, 1), self.lm_head.weight, targets.flatten())
        logits = self.lm_head(x)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def build(cfg: Config, seed: int = 0) -> Llama:
    """A model with normal(0, 0.02) matrices and unit norms, the same on every rank."""
    torch.manual_seed(seed)
    model = Llama(cfg)
    for p in model.parameters():
        if p.dim() > 1:
            nn.init.normal_(p, std=0.02)
    return model
