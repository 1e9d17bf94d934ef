"""Tiny random models of every architecture, with a tokenizer, as ordinary checkpoint folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = (
    "the a of in is was capital city country language river who what where France Rome Paris Japan "
    "Tokyo Germany Berlin Spain Madrid Italy tower located spoken by people known for and it to red "
    "green blue one two three four five six seven eight nine ten wine tea coffee music piano guitar "
    "north south east west old new small large good bad yes no maybe never always sun moon star sky"
).split()
FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gpt2", "gemma2", "gemma3")


def tiny_tokenizer() -> Any:
    """Whole words and single characters, each word with its leading space, as byte-level BPE has it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1, "<pad>": 2}
    for character in alphabet:
        vocabulary[character] = len(vocabulary)
    merges: list[tuple[str, str]] = []
    for word in (w for base in WORDS for w in (base, "Ġ" + base)):
        joined = word[0]
        for character in word[1:]:
            if joined + character not in vocabulary:
                merges.append((joined, character))
                vocabulary[joined + character] = len(vocabulary)
            joined += character
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def tiny_config(family: str, vocabulary: int, **changes: Any) -> Any:
    import transformers as t

    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    if family == "gpt2":
        fields = {"n_layer": 4, "n_embd": 32, "n_head": 4, "n_positions": 128, "resid_pdrop": 0.0}
        return t.GPT2Config(**{**common, **fields, **changes})
    common |= {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
    }
    if family.startswith("gemma"):
        common |= {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}
    if family == "qwen3":
        common |= {"head_dim": 8}
    classes = {
        "llama": t.LlamaConfig,
        "mistral": t.MistralConfig,
        "qwen2": t.Qwen2Config,
        "qwen3": t.Qwen3Config,
        "gemma2": t.Gemma2Config,
        "gemma3": t.Gemma3TextConfig,
    }
    return classes[family](**{**common, **changes})


def tiny_checkpoint(
    folder: Path,
    family: str = "llama",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    shard_size: str = "1GB",
    **changes: Any,
) -> Path:
    """Write a random model of a family under `folder`; returns the checkpoint's path.

    Weights are larger than at initialisation, and norms are not all ones, so that nothing passes a test
    by being small or symmetric.
    """
    from transformers import AutoModelForCausalLM

    tokenizer = tiny_tokenizer()
    config = tiny_config(family, len(tokenizer), **changes)
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if "norm" in name or "ln_" in name else 0.15
            parameter.add_(torch.randn_like(parameter) * spread)
    torch.random.set_rng_state(state)
    path = folder / f"tiny-{family}-{seed}"
    model.to(dtype).save_pretrained(path, max_shard_size=shard_size)
    tokenizer.save_pretrained(path)
    return path


def random_delta(
    checkpoint: Any, keys: list[str], seed: int = 0, size: float = 0.02, **fields: Any
) -> Any:
    """A delta of rank two on each of the given tensors of a checkpoint, dense on vectors."""
    from surgery.delta import Change, Delta, Dense, LowRank
    from surgery.stack import Lineage

    g = torch.Generator().manual_seed(seed)
    lineage = Lineage.of(checkpoint)
    tensors: dict[str, Change] = {}
    for key in keys:
        shape = checkpoint.tensors[key].shape
        if len(shape) == 1:
            tensors[key] = Dense(torch.randn(shape, generator=g) * size)
        else:
            B = torch.randn(shape[0], 2, generator=g) * size
            tensors[key] = LowRank(A=torch.randn(2, shape[1], generator=g), B=B)
    hashes = {key: lineage.original_hash(key) for key in tensors}
    fields = {"base_id": lineage.base_id, "base_hashes": hashes, **fields}
    return Delta(tensors, **{"metadata": {"spec": {"name": f"random {seed}"}}, **fields})
