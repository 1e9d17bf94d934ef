"""Directions and their algebra in closed form, the difference of means, and the direction file."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from surgery.directions import Direction, difference_of_means
from surgery.directions.algebra import (
    ablation,
    ablation_keeping_columns,
    ablation_of_bias,
    behind_norm,
    behind_norm_read,
    dual,
    leak,
    orthonormal,
    unit,
    without,
)
from surgery.directions.reader import reader
from surgery.errors import SurgeryError

D = 8
LAYOUTS = ("linear", "conv1d", "embedding")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(k=st.integers(1, 5), seed=st.integers(0, 999))
def test_orthonormal_spans_the_same_and_keeps_the_first(k, seed):
    vectors = random(k, D, seed=seed)
    R = orthonormal(vectors)
    torch.testing.assert_close(R @ R.T, torch.eye(k, dtype=torch.float64))
    torch.testing.assert_close(vectors @ R.T @ R, vectors)
    torch.testing.assert_close(R[0], unit(vectors[0]))
    assert (torch.einsum("kd,kd->k", R, vectors) > 0).all()


@settings(max_examples=40, deadline=None)
@given(
    layout=st.sampled_from(LAYOUTS),
    strength=st.floats(-2, 2),
    k=st.integers(1, 3),
    columns=st.sampled_from([3, D, 12]),  # square ones too: no shape gives the orientation away
    seed=st.integers(0, 99),
)
def test_what_ablation_does_to_what_is_written(layout, strength, k, columns, seed):
    """R y' = (1 - strength) R y for every input, and nothing else of y changes."""
    R = orthonormal(random(k, D, seed=seed))
    W = random(D, columns, seed=seed + 1)  # y = W x
    stored = W if layout == "linear" else W.T
    B, A = ablation(stored, R, strength, layout)
    changed = stored + B @ A
    after = changed if layout == "linear" else changed.T
    torch.testing.assert_close(R @ after, (1 - strength) * R @ W)
    rest = torch.eye(D, dtype=torch.float64) - R.T @ R
    torch.testing.assert_close(rest @ after, rest @ W)
    assert leak(stored, changed, R, layout) == pytest.approx(abs(1 - strength), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    layout=st.sampled_from(LAYOUTS),
    strength=st.floats(-2, 2),
    k=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_a_reader_says_how_much_and_the_direction_says_where(layout, strength, k, seed):
    """A y' = (1 - strength) A y, and the change of y lies in the span of the directions."""
    near = orthonormal(random(k, D, seed=seed))
    V = near + 0.1 * random(k, D, seed=seed + 100)
    Q = dual(V, near + 0.1 * random(k, D, seed=seed + 200))
    torch.testing.assert_close(Q @ V.T, torch.eye(k, dtype=torch.float64))
    W = random(D, D, seed=seed + 1)
    stored = W if layout == "linear" else W.T
    B, A = ablation(stored, V, strength, layout, Q)
    after = stored + B @ A if layout == "linear" else (stored + B @ A).T
    tolerance = 1e-5

    def alike(x: torch.Tensor, y: torch.Tensor) -> None:
        torch.testing.assert_close(x, y, atol=tolerance, rtol=tolerance)

    alike(Q @ after, (1 - strength) * Q @ W)
    R = orthonormal(V)
    rest = torch.eye(D, dtype=torch.float64) - R.T @ R
    alike(rest @ after, rest @ W)
    b = random(D, seed=seed + 2)
    alike(Q @ (b + ablation_of_bias(b, V, strength, Q)), (1 - strength) * Q @ b)


def test_readers_behind_a_norm():
    """What is read of gain * y, after the change before the norm, is what is left; the change is along V."""
    V, gain = random(2, D), random(D, seed=3)
    Q = dual(V, random(2, D, seed=4))
    rows, reads = behind_norm_read(V, Q, gain)
    y = random(D, seed=5)
    changed = y - 0.7 * rows.T @ (reads @ y)
    torch.testing.assert_close(Q @ (gain * changed), 0.3 * Q @ (gain * y))
    torch.testing.assert_close(gain * (y - changed), 0.7 * V.T @ (Q @ (gain * y)))


def test_a_reader_is_blind_to_what_varies():
    """The reader that solves min E (a.h)^2 with a.r = 1: blinder than r, and than r with anything added."""
    r, loud = unit(random(D)), unit(random(D, seed=1))
    h = random(500, D, seed=2) * 0.1 + 5 * random(500, 1, seed=3) * loud + 2 * loud
    moment = h.T @ h / len(h)
    a = reader(r, moment, ridge=1e-9)
    assert float(a @ r) == pytest.approx(1)
    read = float((h @ a).square().mean())
    assert read < 1e-2 * float((h @ r).square().mean())
    for seed in range(20):
        step = random(D, seed=10 + seed)
        other = a + 0.05 * (step - (step @ r) * r)
        assert float((h @ other).square().mean()) > read
    # The mean is among what is not read: nothing constant is taken away.
    assert abs(float(h.mean(0) @ a)) < 0.05 * abs(float(h.mean(0) @ r))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_keeping_columns_keeps_lengths_and_the_projection(layout):
    R = orthonormal(random(2, D))
    W = random(D, D, seed=1)
    stored = W if layout == "linear" else W.T
    changed = stored + ablation_keeping_columns(stored, R, 1.0, layout)
    after = changed if layout == "linear" else changed.T
    torch.testing.assert_close(after.norm(dim=0), W.norm(dim=0))
    assert float((R @ after).norm()) < 1e-12
    assert float((after - W).norm()) > 0.1


def test_biases():
    R, b = orthonormal(random(2, D)), random(D, seed=1)
    torch.testing.assert_close(R @ (b + ablation_of_bias(b, R, 0.7)), 0.3 * R @ b)


def test_behind_a_norm_with_a_gain():
    """Projected before gain * y / rms(y), nothing of R is left after it; plain R would leave some."""
    R, gain, y = orthonormal(random(2, D)), random(D, seed=1), random(D, seed=2)

    def norm(v: torch.Tensor) -> torch.Tensor:
        return gain * v / v.pow(2).mean().sqrt()

    Q = behind_norm(R, gain)
    assert float((R @ norm(y - Q.T @ Q @ y)).norm()) < 1e-12
    assert float((R @ norm(y - R.T @ R @ y)).norm()) > 0.1


def test_without_is_orthogonal_and_closest():
    others = orthonormal(random(2, D))
    vector = random(D, seed=3)
    rest = without(vector, others)
    assert float((others @ rest).norm()) < 1e-12 and float(rest.norm()) == pytest.approx(1)
    assert float(rest @ vector) == pytest.approx(
        float((vector - others.T @ others @ vector).norm())
    )


# ---------------------------------------------------------------------- difference of means
RED = ["the river is red", "red music", "old red wine for the people", "a small red star"]
OTHER = ["the sun is", "no wine", "green tea and coffee", "a bad city"]


def plain_mean(model, prompts: list[str], layer: int, position: int) -> torch.Tensor:
    """Input of a layer at a token from the end, one unpadded prompt after the other."""
    found = []
    for prompt in prompts:
        ids = torch.tensor([model.tokenizer(prompt)["input_ids"]])
        with torch.no_grad():
            states = model.hf(ids, output_hidden_states=True).hidden_states
        found.append(states[layer][0, position].double())
    return torch.stack(found).mean(0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("position", [-1, -2])
def test_difference_of_means(tiny_model, family, position):
    model = tiny_model(family)
    found = difference_of_means(model, RED, OTHER, layer=2, position=position)
    plus = plain_mean(model, RED, 2, position)
    minus = plain_mean(model, OTHER, 2, position)
    torch.testing.assert_close(found.vector.double(), unit(plus - minus), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.positive.double(), plus, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.negative.double(), minus, rtol=1e-4, atol=1e-5)


def test_what_tells_the_spared_prompts_stays(tiny_model):
    model = tiny_model("llama")
    spare = ["the piano music", "a good river", "yes and no"]
    found = difference_of_means(model, RED, OTHER, layer=2, spare=spare)
    kept = plain_mean(model, spare, 2, -1) - plain_mean(model, OTHER, 2, -1)
    plain = difference_of_means(model, RED, OTHER, layer=2)
    assert abs(float(unit(kept) @ found.vector.double())) < 1e-5
    assert abs(float(unit(kept) @ plain.vector.double())) > 1e-2


def test_sets_without_a_difference_are_refused(tiny_model):
    model = tiny_model("llama")
    with pytest.raises(SurgeryError, match="positive has 1 prompt"):
        difference_of_means(model, RED[:1], OTHER)
    with pytest.raises(SurgeryError, match="same mean"):
        difference_of_means(model, RED, RED[::-1])
    with pytest.raises(SurgeryError, match="layer 4 is outside"):
        difference_of_means(model, RED, OTHER, layer=4)


# ---------------------------------------------------------------------- the file
def saved(tmp_path):
    vectors = [random(D, seed=seed).float() for seed in range(3)]
    metadata = {"positive": {"count": 4, "hash": "x"}}
    direction = Direction(*vectors, layer=2, position=-1, base_id="base", metadata=metadata)
    return direction, direction.save(tmp_path / "one.safetensors")


def test_round_trip(tmp_path):
    direction, path = saved(tmp_path)
    back = Direction.load(path)
    for name in ("vector", "positive", "negative"):
        assert torch.equal(getattr(back, name), getattr(direction, name))
    for name in ("layer", "position", "base_id", "metadata"):
        assert getattr(back, name) == getattr(direction, name)
    first = path.read_bytes()
    assert direction.save(path).read_bytes() == first


def test_files_that_are_no_directions(tmp_path):
    from safetensors import safe_open

    _, path = saved(tmp_path)
    with safe_open(str(path), framework="pt") as file:
        head = file.metadata()
    tensors = load_file(path)
    for broken, metadata, word in (
        ({**tensors, "vector": tensors["vector"] * torch.nan}, head, "not a finite vector"),
        ({"vector": tensors["vector"]}, head, "not a direction file"),
        (tensors, {}, "not a direction file"),
        (tensors, {"surgery": "[]"}, "not a direction file"),
        (tensors, {"surgery": head["surgery"].replace("direction/1", "other/1")}, "other/1"),
    ):
        save_file(broken, path, metadata=metadata)
        with pytest.raises(SurgeryError, match=word):
            Direction.load(path)
    with pytest.raises(SurgeryError, match="no direction"):
        Direction.load(tmp_path / "nowhere")
