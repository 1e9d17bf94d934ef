"""Llama and the models built like it: Mistral, Qwen2, Qwen3, SmolLM2.

h <- h + o_proj(attention(norm(h)));  h <- h + down_proj(act(gate_proj x) * up_proj x), x = norm(h).
"""

from surgery.architecture.table import Architecture

LLAMA = Architecture(
    name="Llama family",
    model_types=("llama", "mistral", "qwen2", "qwen3"),
    layers="model.layers",
    embed="model.embed_tokens",
    final_norm="model.norm",
    attention="self_attn",
    attention_out="self_attn.o_proj",
    mlp="mlp",
    mlp_out="mlp.down_proj",
    layout="linear",
    attention_bias="attention_bias",
    mlp_bias="mlp_bias",
    optional_prefix="model.",
)
