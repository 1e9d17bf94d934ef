"""GPT-2: Conv1D matrices stored (in, out), biases everywhere, learned positions added to the stream."""

from surgery.architecture.table import Architecture

GPT2 = Architecture(
    name="GPT-2",
    model_types=("gpt2",),
    layers="transformer.h",
    embed="transformer.wte",
    positions="transformer.wpe",
    final_norm="transformer.ln_f",
    attention="attn",
    attention_out="attn.c_proj",
    mlp="mlp",
    mlp_out="mlp.c_proj",
    layout="conv1d",
    attention_bias=True,
    mlp_bias=True,
    layers_field="n_layer",
    hidden_field="n_embd",
    optional_prefix="transformer.",
)
