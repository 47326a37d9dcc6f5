"""autocast: the dtypes are PyTorch's, regions nest, gradients keep the parameter's dtype."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pytest
import torch

import gossamer as gs
import gossamer.nn.functional as GF
from gossamer import nn
from gossamer.casting import LISTS


def _both(lib, functional, low):
    """Named results under autocast, written once for both packages."""
    x = lib.from_numpy(np.linspace(0.1, 1, 16, dtype=np.float32).reshape(4, 4))
    b, d = x.to(lib.bfloat16), x.to(lib.float64)
    labels = lib.from_numpy(np.array([0, 1, 2, 3]))
    ones = lib.ones(4)
    image, weight = x.reshape(1, 1, 4, 4), lib.ones(2, 1, 3, 3)
    F = functional
    with lib.autocast("cpu", dtype=low):
        return {
            "mm": lib.mm(x, x), "matmul": x @ x, "method": x.matmul(x), "reverse": b @ b,
            "mixed": x @ b, "double": d @ d, "integers": labels @ labels,
            "bmm": lib.bmm(x[None], x[None]), "addmm": lib.addmm(x, x, x),
            "baddbmm": lib.baddbmm(x[None], x[None], x[None]),
            "einsum": lib.einsum("ij,jk->ik", x, x), "inner": lib.inner(x, x),
            "vecdot": lib.linalg.vecdot(x, x), "multi_dot": lib.linalg.multi_dot([x, x, x]),
            "mv": lib.mv(x, x[0]), "dot": lib.dot(x[0], x[0]), "outer": lib.outer(x[0], x[0]),
            "addmv": lib.addmv(x[0], x, x[0]), "addr": lib.addr(x, x[0], x[0]),
            "linear": F.linear(x, x, ones), "linear double": F.linear(d, d),
            "bilinear": F.bilinear(x, x, lib.ones(3, 4, 4)), "conv2d": F.conv2d(image, weight),
            "conv_transpose2d": F.conv_transpose2d(image, weight.reshape(1, 2, 3, 3)),
            "attention": F.scaled_dot_product_attention(x[None], x[None], x[None]),
            "softmax": F.softmax(b, -1), "softmax 32": F.softmax(x, -1),
            "layer_norm": F.layer_norm(b, (4,), ones, ones), "gelu": F.gelu(b),
            "group_norm": F.group_norm(b, 2, ones, ones), "sum": b.sum(), "exp": b.exp(),
            "prelu": F.prelu(b, lib.ones(1)), "norm": b.norm(), "mul": x * b,
            "cat": lib.cat([x, b]), "stack": lib.stack([x, b]), "prod": b.prod(),
            "trace": lib.trace(b), "cdist": lib.cdist(b, b), "quantile": lib.quantile(b, 0.5),
            "cross_entropy": F.cross_entropy(b, labels),
            "nll_loss": F.nll_loss(b, labels), "mse_loss": F.mse_loss(b, b),
            "l1_loss": F.l1_loss(b, x), "smooth_l1": F.smooth_l1_loss(b, b),
            "huber": F.huber_loss(b, b), "bce": F.binary_cross_entropy(b, b),
            "bce logits": F.binary_cross_entropy_with_logits(b, b), "kl_div": F.kl_div(b, b),
            "inv": lib.linalg.inv(x @ x.t() + lib.eye(4)),
            "reflect": F.pad(b[None], (1, 1), mode="reflect"),
            "replicate": F.pad(b[None], (1, 1), mode="replicate"),
            "circular": F.pad(b[None], (1, 1), mode="circular"),
            "embedding": F.embedding(labels, x), "dropout": F.dropout(b, 0.5),
        }


@pytest.mark.filterwarnings("ignore:reduction")
@pytest.mark.parametrize("low", ["bfloat16", "float16"])
def test_every_result_has_pytorchs_dtype(low: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch: a reduction's name, a fused path not taken
        theirs = _both(torch, torch.nn.functional, getattr(torch, low))
        ours = _both(gs, GF, getattr(gs, low))
    wrong = {name: (value.dtype, theirs[name].dtype) for name, value in ours.items()
             if value.dtype.name != str(theirs[name].dtype).removeprefix("torch.")}
    assert not wrong
    for name in ("mm", "linear", "conv2d", "attention", "cross_entropy", "prod"):
        np.testing.assert_allclose(ours[name].float().numpy(), theirs[name].float().numpy(),
                                   rtol=0.02, err_msg=name)


def test_a_product_under_autocast_is_the_product_of_the_rounded_operands() -> None:
    x, w = gs.randn(5, 7), gs.randn(7, 3)
    with gs.autocast("cpu"):
        made = x @ w
    plain = x.bfloat16() @ w.bfloat16()
    assert made.dtype is gs.bfloat16
    assert (made == plain).all()
    assert not (made.float() == x @ w).all()


def test_regions_nest_and_can_be_off_inside() -> None:
    x = gs.ones(2, 2)
    assert (x @ x).dtype is gs.float32
    with gs.autocast("cpu", dtype=gs.bfloat16):
        assert gs.is_autocast_enabled("cpu") and gs.get_autocast_dtype("cpu") is gs.bfloat16
        with gs.autocast("cpu", enabled=False):
            assert not gs.is_autocast_enabled("cpu")
            assert (x @ x).dtype is gs.float32
        with gs.autocast("cpu", dtype=gs.float16):
            assert (x @ x).dtype is gs.float16
        assert (x @ x).dtype is gs.bfloat16
    assert not gs.is_autocast_enabled("cpu") and (x @ x).dtype is gs.float32
    with pytest.raises(ZeroDivisionError), gs.autocast("cpu"):
        _ = 1 // 0
    assert not gs.is_autocast_enabled("cpu")


def test_one_region_object_may_be_entered_again() -> None:
    x, region = gs.ones(2, 2), gs.amp.autocast("cpu")
    with region, region:
        assert (x @ x).dtype is gs.bfloat16
    assert (x @ x).dtype is gs.float32


def test_it_decorates_functions_methods_and_generators() -> None:
    @gs.autocast("cpu", dtype=gs.bfloat16)
    def product(x):
        return x @ x if x.ndim == 2 else product(x[0])

    @gs.autocast("cpu")
    def several(x):
        yield x @ x
        yield x @ x

    class Net(nn.Module):
        @gs.autocast("cpu")
        def forward(self, x):
            return x @ x

    x = gs.ones(2, 2)
    assert product(x[None]).dtype is gs.bfloat16
    assert Net()(x).dtype is gs.bfloat16
    for made in several(x):
        assert made.dtype is gs.bfloat16 and (x @ x).dtype is gs.float32


def test_other_threads_are_not_affected() -> None:
    seen = []
    with gs.autocast("cpu"):
        worker = threading.Thread(target=lambda: seen.append(gs.is_autocast_enabled("cpu")))
        worker.start()
        worker.join()
    assert seen == [False]


def test_gradients_come_back_in_the_parameters_dtype() -> None:
    layer, x = nn.Linear(6, 4), gs.randn(3, 6, requires_grad=True)
    twin, tx = torch.nn.Linear(6, 4), torch.tensor(x.detach().numpy(), requires_grad=True)
    with torch.no_grad():
        twin.weight.copy_(torch.tensor(layer.weight.detach().numpy()))
        twin.bias.copy_(torch.tensor(layer.bias.detach().numpy()))
    with gs.autocast("cpu"):
        loss = (layer(x) ** 2).mean()
    loss.backward()
    with torch.autocast("cpu"):
        theirs = (twin(tx) ** 2).mean()
    theirs.backward()
    for ours, peer in ((layer.weight, twin.weight), (layer.bias, twin.bias), (x, tx)):
        assert ours.grad.dtype is gs.float32
        np.testing.assert_allclose(ours.grad.numpy(), peer.grad.numpy(), rtol=0.03, atol=0.02)


def test_a_parameters_cast_is_made_once_and_forgotten_at_the_end() -> None:
    from gossamer.modes import MODES

    w, x = nn.Parameter(gs.ones(2, 2)), gs.ones(2, 2)
    with gs.autocast("cpu"):
        first, second = x @ w, x @ w
        assert first._node.inputs[1] is second._node.inputs[1]
        with gs.no_grad():
            w.mul_(2.0)
        third = x @ w
        assert third._node.inputs[1] is not first._node.inputs[1]
        with gs.no_grad():
            assert not (x @ w).requires_grad
        assert (x @ w).requires_grad
        gs.clear_autocast_cache()
        assert not MODES.cast_cache
    assert MODES.cast_cache is None
    assert third.tolist() == [[4.0, 4.0], [4.0, 4.0]]
    with gs.autocast("cpu", cache_enabled=False):
        assert (x @ w)._node.inputs[1] is not (x @ w)._node.inputs[1]


def test_compiled_is_uncompiled_and_the_mode_is_part_of_the_signature() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    x = gs.randn(5, 8)
    compiled = gs.compile(model)
    with gs.no_grad():
        plain = compiled(x)
        with gs.autocast("cpu"):
            low, eager = compiled(x), model(x)
        again = compiled(x)
    assert plain.dtype is again.dtype is gs.float32 and low.dtype is gs.bfloat16
    assert (plain == again).all() and not (plain == low.float()).all()
    np.testing.assert_allclose(low.float().numpy(), eager.float().numpy(), rtol=0.02, atol=0.01)


def test_a_compiled_training_step_learns_as_pytorchs_does() -> None:
    x = np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32)
    y = (x[:, :1] * x[:, 1:2]).astype(np.float32)

    def curve(lib, compiler) -> list[float]:
        model = lib.nn.Sequential(lib.nn.Linear(8, 32), lib.nn.Tanh(), lib.nn.Linear(32, 1))
        rng = np.random.default_rng(1)
        with lib.no_grad():
            for p in model.parameters():
                p.copy_(lib.from_numpy(rng.normal(size=tuple(p.shape)).astype(np.float32) * 0.3))
        optimizer = lib.optim.AdamW(model.parameters(), lr=1e-2)
        a, b = lib.from_numpy(x), lib.from_numpy(y)

        def step():
            optimizer.zero_grad()
            with lib.autocast("cpu", dtype=lib.bfloat16):
                loss = lib.nn.functional.mse_loss(model(a), b)
            loss.backward()
            optimizer.step()
            return loss

        step = compiler(step)
        losses = [float(step().item()) for _ in range(40)]
        assert all(p.dtype is lib.float32 or p.dtype == lib.float32 for p in model.parameters())
        return losses

    import gossamer.optim  # noqa: F401

    ours = curve(gs, gs.compile)
    np.testing.assert_allclose(ours, curve(gs, lambda f: f), rtol=0.02, atol=5e-3)
    np.testing.assert_allclose(ours, curve(torch, lambda f: f), rtol=0.05, atol=5e-3)
    assert ours[-1] < 0.5 * ours[0]


def test_bad_devices_and_dtypes_are_told() -> None:
    with pytest.raises(gs.DeviceError, match="no autocast for 'quantum'"):
        gs.autocast("quantum")
    with pytest.warns(UserWarning, match="bfloat16 or"), gs.autocast("cpu", dtype=gs.float64):
        assert not gs.is_autocast_enabled("cpu")
    with pytest.warns(UserWarning, match="no such device"), gs.autocast("cuda"):
        assert not gs.is_autocast_enabled("cpu")
    with pytest.raises(gs.DTypeError, match="bfloat16 or"):
        gs.set_autocast_dtype("cpu", gs.float64)


def test_the_switches_of_pytorch() -> None:
    assert gs.amp.is_autocast_available("cpu") and not gs.amp.is_autocast_available("meta")
    try:
        gs.set_autocast_dtype("cpu", gs.float16)
        gs.set_autocast_enabled("cpu", True)
        assert (gs.ones(1, 1) @ gs.ones(1, 1)).dtype is gs.float16
        gs.set_autocast_dtype("cpu", gs.bfloat16)
        assert gs.get_autocast_cpu_dtype() is gs.bfloat16 and gs.is_autocast_cpu_enabled()
    finally:
        gs.set_autocast_dtype("cpu", gs.bfloat16)
        gs.set_autocast_enabled("cpu", False)
    assert gs.is_autocast_cache_enabled()


def test_a_function_of_ones_own() -> None:
    class Product(gs.autograd.Function):
        @staticmethod
        @gs.amp.custom_fwd(device_type="cpu", cast_inputs=gs.float32)
        def forward(ctx, a, b):
            ctx.save_for_backward(a, b)
            assert not gs.is_autocast_enabled("cpu")
            return a @ b

        @staticmethod
        @gs.amp.custom_bwd(device_type="cpu")
        def backward(ctx, g):
            a, b = ctx.saved_tensors
            return g @ b.t(), a.t() @ g

    a = gs.ones(2, 2, dtype=gs.bfloat16, requires_grad=True)
    with gs.autocast("cpu"):
        made = Product.apply(a, gs.ones(2, 2))
    assert made.dtype is gs.float32
    made.sum().backward()
    assert a.grad.dtype is gs.bfloat16


def test_the_lists_name_what_they_should() -> None:
    assert {"matmul", "linear", "conv2d", "scaled_dot_product_attention"} <= set(LISTS["lower"])
    assert {"cross_entropy", "mse_loss", "prod", "svd"} <= set(LISTS["full"])
    assert not set(LISTS["lower"]) & set(LISTS["full"])
