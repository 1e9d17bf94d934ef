"""Gemma-2 and Gemma-3 (text): a norm *after* each writer, and embeddings scaled by sqrt(d).

h <- h + N(o_proj(...));  h <- h + N(down_proj(...)),  N(y) = (1 + gamma) * y / rms(y).
"""

from surgery.architecture.table import Architecture

GEMMA = Architecture(
    name="Gemma-2 and Gemma-3",
    model_types=("gemma2", "gemma3_text"),
    layers="model.layers",
    embed="model.embed_tokens",
    final_norm="model.norm",
    attention="self_attn",
    attention_out="self_attn.o_proj",
    mlp="mlp",
    mlp_out="mlp.down_proj",
    layout="linear",
    attention_bias="attention_bias",
    attention_post_norm="post_attention_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
    norm_offset=1.0,
    optional_prefix="model.",
)
