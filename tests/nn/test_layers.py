"""Layers and losses against PyTorch's: keys, printing, values, every gradient, initialisation."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer import nn
from tests.nn.layers import LAYERS, LOSSES, Case

torch = pytest.importorskip("torch", reason="the values come from PyTorch")

TOLERANCE = {"rtol": 2e-4, "atol": 2e-5}


def _array(t: Any) -> np.ndarray:
    return np.asarray(t.detach().numpy())


def _tensors(value: Any) -> list[Any]:
    if isinstance(value, (tuple, list)):
        return [t for part in value for t in _tensors(part)]
    return [value]


def _same(a: Any, b: Any, what: str = "") -> None:
    np.testing.assert_allclose(_array(a), _array(b), err_msg=what, **TOLERANCE)


def _pair(case: Case) -> tuple[Any, Any]:
    """The layer in both libraries, with PyTorch's weights."""
    name, args, kwargs, _ = case
    theirs = getattr(torch.nn, name)(*args, **kwargs)
    ours = getattr(nn, name)(*args, **kwargs)
    ours.load_state_dict({k: gs.tensor(v.numpy()) for k, v in theirs.state_dict().items()})
    return ours, theirs


def _name(case: Any) -> str:
    return f"{case[0]}{case[1]}{case[2]}".replace(" ", "")


@pytest.mark.parametrize("case", LAYERS, ids=_name)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_values_and_gradients(case: Case, training: bool, rng: np.random.Generator) -> None:
    ours, theirs = _pair(case)
    if not training and not any("orm" in type(m).__name__ for m in ours.modules()):
        pytest.skip("nothing depends on the mode")
    ours.train(training)
    theirs.train(training)
    inputs = [rng.standard_normal(s).astype(np.float32) for s in case[3]]
    if case[0].startswith("LPPool"):
        inputs = [np.abs(x) + 0.5 for x in inputs]
    a = [gs.tensor(x).requires_grad_(True) for x in inputs]
    b = [torch.tensor(x).requires_grad_(True) for x in inputs]
    for _ in range(2):  # twice: running statistics move
        ya, yb = _tensors(ours(*a)), _tensors(theirs(*b))
    assert len(ya) == len(yb)
    cotangents = [rng.standard_normal(tuple(t.shape)).astype(np.float32) for t in yb]
    sum((t * gs.tensor(c)).sum() for t, c in zip(ya, cotangents, strict=True)).backward()
    sum((t * torch.tensor(c)).sum() for t, c in zip(yb, cotangents, strict=True)).backward()
    for i, (t, u) in enumerate(zip(ya, yb, strict=True)):
        assert tuple(t.shape) == tuple(u.shape)
        _same(t, u, f"result {i}")
    for i, (t, u) in enumerate(zip(a, b, strict=True)):
        _same(t.grad, u.grad, f"gradient of input {i}")
    mine = dict(ours.named_parameters())
    for key, p in theirs.named_parameters():
        _same(mine[key].grad, p.grad, f"gradient of {key}")
    for key, buffer in theirs.named_buffers():
        _same(dict(ours.named_buffers())[key], buffer, key)


@pytest.mark.parametrize("case", LAYERS, ids=_name)
def test_keys_printing_and_initialisation(case: Case) -> None:
    name, args, kwargs, _ = case
    ours, theirs = getattr(nn, name)(*args, **kwargs), getattr(torch.nn, name)(*args, **kwargs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert repr(ours) == repr(theirs).replace("NonDynamicallyQuantizableLinear", "Linear")
    for key, value in theirs.state_dict().items():
        mine = ours.state_dict()[key]
        assert tuple(mine.shape) == tuple(value.shape), key
        assert str(mine.dtype).split(".")[1] == str(value.dtype).split(".")[1], key
        if value.numel() >= 32:  # the same distribution: compare the spread
            assert _array(mine).std() == pytest.approx(_array(value).std(), rel=0.5, abs=1e-3), key
        if float(value.float().std(correction=0)) == 0:
            _same(mine, value, key)


def _target(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if kind == "class":
        rest = shape[:1] + shape[2:] if len(shape) > 1 else ()
        return np.asarray(rng.integers(0, shape[1] if len(shape) > 1 else shape[0], rest))
    if kind == "labels":
        return np.array([[1, 3, -1, 0], [2, -1, 0, 0], [0, 1, 2, 3]])
    x = rng.standard_normal(shape).astype(np.float32)
    makers = {"like": lambda: x, "unit": lambda: (x > 0).astype(np.float32),
              "sign": lambda: np.where(x > 0, 1, -1).astype(np.float32),
              "count": lambda: np.floor(np.abs(3 * x)).astype(np.float32),
              "probability": lambda: np.exp(x) / np.exp(x).sum(1, keepdims=True)}
    return makers[kind]()


@pytest.mark.parametrize("case", LOSSES, ids=str)
def test_losses(case: Any, rng: np.random.Generator) -> None:
    name, settings, shape, kind = case
    settings = dict(settings)
    x = rng.standard_normal(shape).astype(np.float32)
    if settings.pop("probabilities", False):
        x = (1 / (1 + np.exp(-x))).astype(np.float32)
    y = _target(kind, shape, rng)
    classes = shape[1] if len(shape) > 1 else shape[0]
    weights = {k: rng.uniform(0.5, 2, classes).astype(np.float32)
               for k in ("weight", "pos_weight") if settings.pop(k, False)}
    ours = getattr(nn, name)(**settings, **{k: gs.tensor(w) for k, w in weights.items()})
    theirs = getattr(torch.nn, name)(**settings, **{k: torch.tensor(w) for k, w in weights.items()})
    assert list(ours.state_dict()) == list(theirs.state_dict())
    a, b = gs.tensor(x).requires_grad_(True), torch.tensor(x).requires_grad_(True)
    la, lb = ours(a, gs.tensor(y)), theirs(b, torch.tensor(y))
    assert tuple(la.shape) == tuple(lb.shape)
    _same(la, lb)
    la.sum().backward()
    lb.sum().backward()
    _same(a.grad, b.grad)


@pytest.mark.parametrize(("name", "settings", "count"), [
    ("CosineEmbeddingLoss", {"margin": 0.2}, 2), ("MarginRankingLoss", {"margin": 0.5}, 2),
    ("TripletMarginLoss", {"swap": True, "p": 1.0}, 3), ("TripletMarginWithDistanceLoss", {}, 3),
    ("GaussianNLLLoss", {"full": True}, 3),
])
def test_losses_of_several_inputs(name: str, settings: Any, count: int,
                                  rng: np.random.Generator) -> None:
    shape = (4,) if name == "MarginRankingLoss" else (4, 5)
    inputs = [np.abs(rng.standard_normal(shape)).astype(np.float32) for _ in range(count)]
    sign = [np.array([1, -1, -1, 1], np.float32)] if count == 2 else []
    a = [gs.tensor(x).requires_grad_(True) for x in inputs]
    b = [torch.tensor(x).requires_grad_(True) for x in inputs]
    la = getattr(nn, name)(**settings)(*a, *map(gs.tensor, sign))
    lb = getattr(torch.nn, name)(**settings)(*b, *map(torch.tensor, sign))
    _same(la, lb)
    la.backward()
    lb.backward()
    for t, u in zip(a, b, strict=True):
        _same(t.grad, u.grad)


def test_ctc(rng: np.random.Generator) -> None:
    x = rng.standard_normal((12, 3, 5)).astype(np.float32)
    targets, lengths, frames = rng.integers(1, 5, (3, 4)), [4, 2, 3], [12, 10, 11]
    a, b = gs.tensor(x).requires_grad_(True), torch.tensor(x).requires_grad_(True)
    la = nn.CTCLoss()(a.log_softmax(2), gs.tensor(targets), gs.tensor(frames), gs.tensor(lengths))
    lb = torch.nn.CTCLoss()(b.log_softmax(2), torch.tensor(targets), torch.tensor(frames),
                            torch.tensor(lengths))
    _same(la, lb)
    la.backward()
    lb.backward()
    _same(a.grad, b.grad)


@pytest.mark.parametrize("settings", [
    {}, {"kdim": 3, "vdim": 5}, {"add_bias_kv": True, "add_zero_attn": True}, {"bias": False},
    {"batch_first": True}])
@pytest.mark.parametrize("call", ["plain", "weights", "padding", "mask", "causal", "unbatched"])
def test_attention(settings: dict[str, Any], call: str, rng: np.random.Generator) -> None:
    ours = nn.MultiheadAttention(8, 2, **settings)
    theirs = torch.nn.MultiheadAttention(8, 2, **settings)
    ours.load_state_dict({k: gs.tensor(v.numpy()) for k, v in theirs.state_dict().items()})
    t = s = 4
    lead = () if call == "unbatched" else (3,)
    shapes = [(n, *lead, d) for n, d in ((t, 8), (s, ours.kdim), (s, ours.vdim))]
    if settings.get("batch_first") and lead:
        shapes = [(b, n, d) for n, b, d in shapes]
    arrays = [rng.standard_normal(x).astype(np.float32) for x in shapes]
    masks: dict[str, np.ndarray] = {}
    flags: dict[str, Any] = {"need_weights": call in ("weights", "unbatched")}
    if call == "padding":
        masks["key_padding_mask"] = np.array([[0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]], bool)
    if call == "mask":
        masks["attn_mask"] = rng.standard_normal((6, t, s)).astype(np.float32)
        flags["average_attn_weights"] = False
    if call == "causal" and settings.get("add_bias_kv"):
        pytest.skip("with is_causal PyTorch hides the added positions, without it does not")
    if call == "causal":
        masks["attn_mask"] = np.triu(np.ones((t, s), bool), 1)
        flags["is_causal"] = True
    a = [gs.tensor(x).requires_grad_(True) for x in arrays]
    b = [torch.tensor(x).requires_grad_(True) for x in arrays]
    ya, wa = ours(*a, **{k: gs.tensor(m) for k, m in masks.items()}, **flags)
    yb, wb = theirs(*b, **{k: torch.tensor(m) for k, m in masks.items()}, **flags)
    _same(ya, yb)
    assert (wa is None) == (wb is None)
    if wa is not None:
        _same(wa, wb)
    ya.square().sum().backward()
    yb.square().sum().backward()
    for u, v in zip([*a, *ours.parameters()], [*b, *theirs.parameters()], strict=True):
        _same(u.grad, v.grad)


def test_one_tensor_for_query_key_and_value(rng: np.random.Generator) -> None:
    ours, theirs = nn.MultiheadAttention(6, 3), torch.nn.MultiheadAttention(6, 3)
    ours.load_state_dict({k: gs.tensor(v.numpy()) for k, v in theirs.state_dict().items()})
    x = rng.standard_normal((4, 2, 6)).astype(np.float32)
    a, b = gs.tensor(x), torch.tensor(x)
    _same(ours(a, a, a)[0], theirs(b, b, b)[0])


@pytest.mark.parametrize("settings", [
    {}, {"padding_idx": 2}, {"padding_idx": -1, "scale_grad_by_freq": True}, {"max_norm": 1.0}])
def test_embedding(settings: dict[str, Any], rng: np.random.Generator) -> None:
    ours, theirs = nn.Embedding(7, 3, **settings), torch.nn.Embedding(7, 3, **settings)
    assert repr(ours) == repr(theirs)
    weight = theirs.weight.detach().numpy().copy()
    ours.load_state_dict({"weight": gs.tensor(weight)})
    index = np.array([[2, 1, 2], [6, 0, 6]])
    ya, yb = ours(gs.tensor(index)), theirs(torch.tensor(index))
    _same(ya, yb)
    ya.square().sum().backward()
    yb.square().sum().backward()
    _same(ours.weight.grad, theirs.weight.grad)
    _same(ours.weight, theirs.weight)
    if ours.padding_idx is not None:
        assert nn.Embedding(7, 3, **settings).weight[ours.padding_idx].tolist() == [0, 0, 0]


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("flat", [False, True])
def test_embedding_bag(mode: str, flat: bool, rng: np.random.Generator) -> None:
    settings: dict[str, Any] = {"mode": mode, "padding_idx": 1}
    ours, theirs = nn.EmbeddingBag(7, 3, **settings), torch.nn.EmbeddingBag(7, 3, **settings)
    assert repr(ours) == repr(theirs)
    ours.load_state_dict({"weight": gs.tensor(theirs.weight.detach().numpy())})
    index = np.array([4, 1, 5, 4, 3, 1]) if flat else np.array([[4, 1, 5], [4, 3, 1]])
    extra = [np.array([0, 2, 2, 5])] if flat else []
    ya = ours(gs.tensor(index), *map(gs.tensor, extra))
    yb = theirs(torch.tensor(index), *map(torch.tensor, extra))
    _same(ya, yb)
    ya.square().sum().backward()
    yb.square().sum().backward()
    _same(ours.weight.grad, theirs.weight.grad)


def test_dropout_statistics_and_seed() -> None:
    x = gs.ones(200, 50)
    for name, settings in (("Dropout", {}), ("AlphaDropout", {}), ("Dropout1d", {}),
                           ("Dropout2d", {}), ("FeatureAlphaDropout", {})):
        layer = getattr(nn, name)(0.3, **settings)
        shaped = x.reshape(200, 50, 1, 1) if "2d" in name else (
            x.reshape(200, 50, 1) if "1d" in name else x)
        gs.manual_seed(1)
        first = layer(shaped)
        gs.manual_seed(1)
        assert layer(shaped).tolist() == first.tolist(), name
        assert layer(shaped).tolist() != first.tolist(), name
        values = _array(first)
        dropped = (values == values.min()).mean()
        assert dropped == pytest.approx(0.3, abs=0.02), name
        layer.eval()
        assert layer(shaped).tolist() == shaped.tolist()
    y = nn.Dropout2d(0.5)(gs.ones(4, 8, 3, 3))
    assert set(_array(y).reshape(32, 9).sum(1)) == {0.0, 18.0}
    assert nn.Dropout(1.0)(gs.ones(3)).tolist() == [0, 0, 0]


def test_all_ignored_is_nan_and_targets_are_checked() -> None:
    x = gs.randn(3, 4)
    loss = nn.functional.cross_entropy(x, gs.full((3,), -100))
    assert np.isnan(loss.item())
    assert nn.functional.cross_entropy(x, gs.full((3,), -100), reduction="sum").item() == 0
    for bad in ([0, 1, 4], [0, -1, 2]):
        with pytest.raises(IndexError):
            nn.functional.cross_entropy(x, gs.tensor(bad)).item()
    with pytest.raises(IndexError):
        nn.functional.embedding(gs.tensor([-1]), gs.ones(3, 2)).tolist()
    with pytest.raises(IndexError):
        nn.functional.one_hot(gs.tensor([3]), 3).tolist()


@pytest.mark.parametrize(("make", "error", "text"), [
    (lambda: nn.Linear(8, 2)(gs.ones(3, 4)), ValueError, r"in_features=8.*\(3, 4\)"),
    (lambda: nn.Conv2d(3, 5, 3, groups=2), ValueError, "groups=2"),
    (lambda: nn.Conv2d(3, 3, 3, padding="some"), ValueError, "some"),
    (lambda: nn.Conv2d(3, 3, 3, 2, padding="same"), ValueError, "strided"),
    (lambda: nn.MaxPool2d(2)(gs.ones(4)), ValueError, r"\(4,\)"),
    (lambda: nn.MaxPool2d(5)(gs.ones(1, 1, 3, 3)), ValueError, "too small"),
    (lambda: nn.MaxPool2d(2, padding=2)(gs.ones(1, 1, 4, 4)), ValueError, "half"),
    (lambda: nn.BatchNorm2d(3)(gs.ones(2, 3)), ValueError, "expected 4D"),
    (lambda: nn.BatchNorm1d(3)(gs.ones(1, 3)), ValueError, "more than 1 value per channel"),
    (lambda: nn.BatchNorm1d(4)(gs.ones(2, 3)), ValueError, "3 elements"),
    (lambda: nn.LayerNorm(4)(gs.ones(2, 3)), ValueError, r"normalized_shape=\(4,\)"),
    (lambda: nn.GroupNorm(4, 6), ValueError, "num_groups=4"),
    (lambda: nn.Embedding(3, 2, padding_idx=3), ValueError, "padding_idx=3"),
    (lambda: nn.Embedding(3, 2)(gs.ones(2)), TypeError, "int64"),
    (lambda: nn.MultiheadAttention(7, 2), ValueError, "embed_dim=7"),
    (lambda: nn.MultiheadAttention(6, 2)(gs.ones(1, 2, 5), gs.ones(1, 2, 6), gs.ones(1, 2, 6)),
     ValueError, "embed_dim=6"),
    (lambda: nn.LSTM(3, 4)(gs.ones(5, 2, 2)), ValueError, "input_size=3"),
    (lambda: nn.GRU(3, 4)(gs.ones(5, 2, 3), gs.ones(2, 2, 4)), ValueError, "initial state"),
    (lambda: nn.RNN(3, 4, nonlinearity="gelu"), ValueError, "gelu"),
    (lambda: nn.Dropout(1.5), ValueError, "1.5"),
    (lambda: nn.CrossEntropyLoss()(gs.ones(3, 4), gs.ones(3)), TypeError, "int64"),
    (lambda: nn.CrossEntropyLoss()(gs.ones(3, 4), gs.zeros(2, dtype=gs.int64)), ValueError,
     r"\(3, 4\).*\(2,\)"),
    (lambda: nn.CrossEntropyLoss(label_smoothing=2.0)(gs.ones(1, 2), gs.tensor([0])), ValueError,
     "label_smoothing=2.0"),
    (lambda: nn.CrossEntropyLoss(weight=gs.ones(3))(gs.ones(1, 2), gs.tensor([0])), ValueError,
     "weight"),
    (lambda: nn.MSELoss(reduction="man")(gs.ones(2), gs.ones(2)), ValueError, "man"),
    (lambda: nn.BCELoss()(gs.ones(2), gs.ones(3)), ValueError, r"\(3,\)"),
    (lambda: nn.GLU()(gs.ones(3)), ValueError, "even"),
    (lambda: nn.ReflectionPad1d(3)(gs.ones(1, 3)), ValueError, "at most 2"),
    (lambda: nn.PixelShuffle(2)(gs.ones(1, 3, 2, 2)), ValueError, "divisible"),
    (lambda: nn.Upsample(size=3)(gs.ones(2, 2)), NotImplementedError, r"\(2, 2\)"),
    (lambda: nn.MaxPool2d(), TypeError, "kernel_size"),
    (lambda: nn.ReLU(slope=1), TypeError, "slope"),
])
def test_mistakes(make: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()


def test_broadcasting_targets_warn() -> None:
    with pytest.warns(UserWarning, match=r"\(3, 1\)"):
        nn.MSELoss()(gs.ones(3), gs.ones(3, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nn.MSELoss()(gs.ones(3), gs.ones(3))
