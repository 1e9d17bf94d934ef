"""Looking inside: both engines against each other, the fast trace against a plain one, the pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.directions import Direction
from surgery.errors import SurgeryError
from surgery.model import load, pad, tokenize
from surgery.model.hooks import hooks
from surgery.trace import (
    CausalTrace,
    Site,
    capture,
    causal_trace,
    heat_map_text,
    html,
    logit_lens,
    next_token_log_probs,
    next_tokens,
    next_tokens_compared,
    projection,
    run,
    save_picture,
    surprise,
)
from surgery.trace.restoring import KINDS, embedding_spread
from tests.tiny import tiny_checkpoint

PROMPT, SUBJECT = "the capital city of France is", "France"


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("trace")
    return load(tiny_checkpoint(folder, request.param), dtype=torch.float64, device="cpu")


def _inputs(model: Any, text: str = PROMPT, rows: int = 1) -> dict[str, Any]:
    return {**pad([tokenize(model, text)] * rows, model).inputs(), "use_cache": False}


def _all_sites(model: Any) -> list[Site]:
    return [Site("embedding")] + [
        Site(kind, layer)
        for layer in range(model.n_layers)
        for kind in ("stream_in", "attention", "mlp", "stream")
    ]


# ---------------------------------------------------------------------- engines
def test_engines_read_the_same(model: Any) -> None:
    sites = _all_sites(model)
    one = capture(model, _inputs(model), sites, engine="nnsight")
    other = capture(model, _inputs(model), sites, engine="hooks")
    assert set(one) == set(other) == set(sites)
    for site in sites:
        assert torch.equal(one[site], other[site]), site


def test_what_is_read_adds_up_to_the_stream(model: Any) -> None:
    seen = capture(model, _inputs(model), _all_sites(model))
    for layer in range(model.n_layers):
        total = sum(seen[Site(kind, layer)] for kind in ("stream_in", "attention", "mlp"))
        torch.testing.assert_close(total, seen[Site("stream", layer)], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["embedding", "stream_in", "attention", "mlp", "stream"])
def test_engines_change_the_same(model: Any, kind: Any) -> None:
    site = Site(kind, None if kind == "embedding" else 2)

    def change(hidden: torch.Tensor) -> torch.Tensor:
        changed = hidden.clone()
        changed[1, 2] = 0.5
        return changed

    inputs = _inputs(model, rows=2)
    after = [run(model, inputs, [site], {site: change}, engine=e) for e in ("nnsight", "hooks")]
    assert torch.equal(after[0].logits, after[1].logits)
    assert torch.equal(after[0].hidden[site], after[1].hidden[site])
    plain = run(model, inputs).logits
    assert torch.equal(plain[0], after[0].logits[0])
    assert not torch.allclose(plain[1], after[0].logits[1])


@pytest.mark.parametrize("engine", ["nnsight", "hooks"])
@pytest.mark.parametrize("layer", [0, 2, 4])
def test_beginning_above_is_the_same_as_running_all(model: Any, engine: Any, layer: int) -> None:
    inputs = _inputs(model)
    site = Site("stream_in", layer) if layer < model.n_layers else Site("stream", layer - 1)
    whole = run(model, inputs, [site], engine=engine)
    part = run(model, inputs, begin=(layer, whole.hidden[site]), engine=engine)
    torch.testing.assert_close(part.logits, whole.logits, rtol=0, atol=1e-12)
    other = run(model, inputs, begin=(layer, whole.hidden[site] * 2 + 1), engine=engine)
    assert not torch.allclose(other.logits, whole.logits)


def test_the_model_is_left_as_it_was(model: Any) -> None:
    inputs = _inputs(model)
    width = inputs["input_ids"].shape[1]
    before = model.hf(**inputs).logits
    side = model.tokenizer.padding_side
    for engine in ("nnsight", "hooks"):
        run(model, inputs, [], {Site("mlp", 1): torch.zeros_like}, engine=engine)
        run(model, inputs, begin=(2, torch.ones(1, width, 32, dtype=torch.float64)), engine=engine)
    assert torch.equal(model.hf(**inputs).logits, before)
    assert model.tokenizer.padding_side == side
    with pytest.raises(SurgeryError, match="no engine"):
        run(model, inputs, engine="telepathy")  # type: ignore[arg-type]


# ---------------------------------------------------------------------- causal traces
@torch.no_grad()
def _plain_trace(model: Any, trace: CausalTrace, kind: str, seed: int) -> torch.Tensor:
    """The definition, one whole forward pass a state, no caches."""
    ids = tokenize(model, trace.prompt)
    first, last = trace.subject
    shape = (trace.samples, last + 1 - first, model.hidden_size)
    kick = trace.sigma * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    table = model.architecture
    names = {
        "stream": "",
        "mlp": table.mlp_post_norm or table.mlp,
        "attention": table.attention_post_norm or table.attention,
    }

    def module(layer: int) -> Any:
        return model.module(f"{table.layer(layer)}.{names[kind]}".rstrip("."))

    def value(output: Any) -> torch.Tensor:
        return output if isinstance(output, torch.Tensor) else output[0]

    clean: dict[int, torch.Tensor] = {}
    with hooks() as attach:
        for layer in range(model.n_layers):
            attach.post(
                module(layer), lambda _m, _a, _k, o, n=layer: clean.update({n: value(o).clone()})
            )
        model.hf(**_inputs(model, trace.prompt))

    def probability(layers: range, token: int) -> torch.Tensor:
        def noise(_m: Any, _a: Any, _k: Any, output: torch.Tensor) -> torch.Tensor:
            output = output.clone()
            output[:, first : last + 1] += kick
            return output

        def restore(_m: Any, _a: Any, _k: Any, output: Any, layer: int) -> Any:
            value(output)[:, token] = clean[layer][0, token]
            return output

        with hooks() as attach:
            attach.post(model.embedding, noise)
            for layer in layers:
                attach.post(
                    module(layer), lambda m, a, k, o, layer=layer: restore(m, a, k, o, layer)
                )
            logits = model.hf(**_inputs(model, trace.prompt, trace.samples)).logits[:, -1]
            return logits.float().softmax(-1)[:, trace.answer_id].mean()
        raise AssertionError

    corrupted = probability(range(0), 0)
    torch.testing.assert_close(float(corrupted), trace.corrupted, rtol=1e-6, atol=1e-9)
    effect = torch.zeros(model.n_layers, len(ids))
    for layer in range(model.n_layers):
        low = layer if kind == "stream" else max(0, layer - trace.window // 2)
        size = 1 if kind == "stream" else trace.window - max(0, trace.window // 2 - layer)
        for token in range(len(ids)):
            layers = range(low, min(model.n_layers, low + size))
            effect[layer, token] = probability(layers, token) - corrupted
    return effect


@pytest.mark.parametrize("prompt", [PROMPT, "France is a country where the"])
def test_trace_is_the_plain_definition(model: Any, prompt: str) -> None:
    trace = causal_trace(model, prompt, SUBJECT, samples=3, window=2, seed=5, screen=3)
    for kind in KINDS:
        expected = _plain_trace(model, trace, kind, seed=5)
        assert expected.abs().max() > 1e-4
        torch.testing.assert_close(trace.effects[kind], expected, rtol=1e-4, atol=1e-7)


def test_trace_has_the_ends_it_must_have(model: Any) -> None:
    trace = causal_trace(model, PROMPT, SUBJECT, samples=4)
    assert trace.tokens[trace.subject[1]].strip() == "France"
    assert trace.base != trace.corrupted
    # Before the subject nothing was changed, so nothing can be restored.
    assert all(bool((e[:, : trace.subject[0]] == 0).all()) for e in trace.effects.values())
    # The last state restored is the clean run's own output.
    whole = trace.base - trace.corrupted
    torch.testing.assert_close(float(trace.stream[-1, -1]), whole, rtol=1e-5, atol=1e-7)
    assert trace.as_dict()["best_layer"] == trace.layer
    json.dumps(trace.as_dict())


def test_traces_agree_between_engines_and_batch_sizes(model: Any) -> None:
    one = causal_trace(model, PROMPT, SUBJECT, samples=2)
    other = causal_trace(model, PROMPT, SUBJECT, samples=2, engine="hooks", batch_tokens=8)
    for kind in KINDS:
        torch.testing.assert_close(one.effects[kind], other.effects[kind], rtol=1e-5, atol=1e-8)


def test_screening_leaves_out_only_what_shows_nothing(model: Any) -> None:
    whole = causal_trace(model, PROMPT, SUBJECT, samples=6, screen=6)
    quick = causal_trace(model, PROMPT, SUBJECT, samples=6, screen=2)
    taken = abs(whole.base - whole.corrupted)
    for kind in KINDS:
        off = (whole.effects[kind] - quick.effects[kind]).abs()
        assert bool((off < 1e-7).any())  # those that were noticed had all samples
        assert float(off.max()) < 0.25 * taken
        first = whole.subject[0]
        assert bool((whole.error[kind][:, first:] >= 0).all())


def test_trace_takes_an_answer_and_a_placeholder(model: Any) -> None:
    asked = causal_trace(
        model, "the capital city of {} is", SUBJECT, samples=2, answer="a", kinds=["mlp"]
    )
    assert asked.answer == "a" and asked.prompt == PROMPT and list(asked.effects) == ["mlp"]
    log_probs = next_token_log_probs(model, PROMPT)
    assert abs(asked.base - float(log_probs[asked.answer_id].exp())) < 1e-6


@pytest.mark.parametrize(
    ("prompt", "subject", "options", "says"),
    [
        (PROMPT, "Japan", {}, "does not contain the subject"),
        (PROMPT, " ", {}, "needs the subject"),
        (PROMPT, SUBJECT, {"samples": 0}, "at least one noise sample"),
        (PROMPT, SUBJECT, {"kinds": ["soul"]}, "soul"),
    ],
)
def test_bad_requests_are_told(
    model: Any, prompt: str, subject: str, options: Any, says: str
) -> None:
    with pytest.raises(SurgeryError, match=says):
        causal_trace(model, prompt, subject, **options)


def test_spread_is_that_of_what_the_embedding_writes(model: Any) -> None:
    spread = embedding_spread(model)
    table = model.embedding.weight
    scale = float(getattr(model.embedding, "embed_scale", 1.0))
    assert abs(spread / (scale * float(table.std())) - 1) < 0.1


# ---------------------------------------------------------------------- lens, projection, tokens
def test_the_lens_ends_at_the_models_own_prediction(model: Any) -> None:
    lens = logit_lens(model, PROMPT, k=3, answers=["a"])
    assert lens.top_probability.shape == (model.n_layers, len(lens.tokens), 3)
    log_probs = next_token_log_probs(model, PROMPT)
    best = log_probs.topk(3)
    torch.testing.assert_close(
        lens.top_probability[-1, -1].float(), best.values.exp(), rtol=1e-5, atol=1e-8
    )
    assert lens.top[-1][-1] == [model.tokenizer.decode([i]) for i in best.indices.tolist()]
    (token,) = model.tokenizer(" a")["input_ids"]
    assert abs(float(lens.answers["a"][-1, -1]) - float(log_probs[token].exp())) < 1e-6
    assert lens.top[0][-1] != lens.top[-1][-1]


def test_the_projection_is_on_the_input_of_each_layer(model: Any) -> None:
    vector = torch.randn(model.hidden_size, generator=torch.Generator().manual_seed(0))
    vector /= vector.norm()
    direction = Direction(vector, 3 * vector, -2 * vector, 1, -1, "base")
    found = projection(model, PROMPT, direction)
    states = model.hf(**_inputs(model), output_hidden_states=True).hidden_states
    expected = torch.stack([h[0] @ vector.double() for h in states[:-1]]).float()
    torch.testing.assert_close(found.values, expected)
    assert (round(found.positive, 4), round(found.negative, 4)) == (3.0, -2.0)
    with pytest.raises(SurgeryError, match="numbers"):
        projection(model, PROMPT, Direction(vector[:5], vector, vector, 1, -1, "base"))


def test_next_tokens_before_and_after(model: Any) -> None:
    table = next_tokens(model, PROMPT, k=4)
    assert [row.rank for row in table] == [1, 2, 3, 4]
    assert all(a.probability >= b.probability for a, b in zip(table, table[1:], strict=False))
    before = next_token_log_probs(model, PROMPT)
    after = before.flip(0)
    rows = next_tokens_compared(model.tokenizer, before, after, k=2)
    assert {row.id for row in rows} == {
        *before.topk(2).indices.tolist(),
        *after.topk(2).indices.tolist(),
    }
    for row in rows:
        assert row.change == pytest.approx(float(after[row.id].exp() - before[row.id].exp()))
    assert next(r for r in rows if r.id == table[0].id).rank_before == 1


def test_surprise_is_the_loss(model: Any) -> None:
    found = surprise(model, PROMPT)
    inputs = _inputs(model)
    loss = model.hf(**inputs, labels=inputs["input_ids"]).loss
    assert found.nats[0] is None and len(found.nats) == len(tokenize(model, PROMPT))
    assert found.mean == pytest.approx(float(loss), rel=1e-5)
    assert len(tokenize(model, "x")) == 1 and surprise(model, "x").nats == [None]


# ---------------------------------------------------------------------- pictures
def test_pictures_and_text(model: Any, tmp_path: Path) -> None:
    trace = causal_trace(model, PROMPT, SUBJECT, samples=2)
    assert save_picture(trace, tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in save_picture(trace, tmp_path / "trace.svg").read_text()
    with pytest.raises(SurgeryError, match="a picture ends in"):
        save_picture(trace, tmp_path / "trace.txt")
    page = html(trace)
    assert page.count("<svg") == 1
    # Nothing is fetched when it is opened, and it is the same page every time.
    assert "src=" not in page and 'href="http' not in page and page == html(trace)
    text = heat_map_text(trace)
    assert "France*│" in text and "MLP: strongest at layer" in text


def test_command(tmp_path: Path) -> None:
    from surgery.cli import main

    base = tiny_checkpoint(tmp_path, "llama")
    picture, page = tmp_path / "t.png", tmp_path / "t.html"
    words = ["trace", "--base", str(base), "--prompt", PROMPT, "--subject", SUBJECT]
    words += ["--samples", "2", "-o", str(picture), "--html", str(page)]
    assert main([*words, "--json"]) == 0
    assert picture.exists() and page.exists()
    assert main([*words[:-4], "--subject", "Japan"]) == 1
    assert main([*words[:-4], "-o", str(tmp_path / "t.bmp")]) == 1


# ---------------------------------------------------------------------- beside a web server
_SERVE = """
import sys
from pathlib import Path
from surgery.trace.engine import load_nnsight, capture, Site
from surgery.model import load, pad
model = load(sys.argv[1], device="cpu")
seen = capture(model, pad([[5, 6, 7]], model).inputs(), [Site("mlp", 0)])
assert seen[Site("mlp", 0)].shape == (1, 3, 32)
assert not hasattr(object(), "save"), "nnsight was imported with its defaults"
import gradio
with gradio.Blocks(analytics_enabled=False) as app:
    gradio.Textbox()
app.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
import urllib.request
assert urllib.request.urlopen(app.local_url, timeout=20).status == 200
app.close()
print("served")
"""


def test_a_gradio_app_runs_in_a_process_that_traced(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path, "llama")
    done = subprocess.run(
        [sys.executable, "-c", _SERVE, str(base)],
        capture_output=True,
        text=True,
        timeout=180,
        cwd=Path(__file__).parent.parent,
        env={**__import__("os").environ, "GRADIO_ANALYTICS_ENABLED": "False"},
    )
    assert done.returncode == 0 and "served" in done.stdout, done.stderr[-2000:]


# ---------------------------------------------------------------------- a real model
@pytest.mark.slow
def test_a_real_fact_is_found_at_its_subject(smollm2: Path) -> None:
    model = load(smollm2)
    prompt = "The Eiffel Tower is located in the city of"
    trace = causal_trace(model, prompt, "Eiffel Tower", samples=4, kinds=["mlp"])
    assert trace.answer == "Paris" and trace.base - trace.corrupted > 0.2
    layer, token, effect = trace.best("mlp")
    # Early in the network, at one of the subject's own tokens (here at its most telling one).
    assert trace.subject[0] <= token <= trace.subject[1]
    assert effect > 0.1 and layer < model.n_layers * 2 / 3
