"""`Module`: registration, the tree, state, hooks, copying, containers, as PyTorch does it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer import nn
from gossamer.core.errors import CheckpointError


class Block(nn.Module):
    """Every kind of member."""

    def __init__(self, shared: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = shared if shared is not None else nn.Linear(4, 2)
        self.gain = nn.Parameter(gs.ones(2))
        self.register_parameter("nothing", None)
        self.register_buffer("count", gs.zeros(()))
        self.register_buffer("scratch", gs.ones(3), persistent=False)
        self.plain = gs.ones(2)

    def forward(self, x: Any, scale: float = 1.0) -> Any:
        return self.second(self.first(x).relu()) * self.gain * scale


def test_names_and_order() -> None:
    block = Block()
    assert [n for n, _ in block.named_parameters()] == [
        "gain", "first.weight", "first.bias", "second.weight", "second.bias"]
    assert [n for n, _ in block.named_buffers()] == ["count", "scratch"]
    assert [n for n, _ in block.named_modules()] == ["", "first", "second"]
    assert [n for n, _ in block.named_children()] == ["first", "second"]
    assert list(block.state_dict()) == ["gain", "count", "first.weight", "first.bias",
                                        "second.weight", "second.bias"]
    assert [n for n, _ in block.named_parameters("net", recurse=False)] == ["net.gain"]
    assert not isinstance(block.plain, nn.Parameter) and "plain" not in block.state_dict()


def test_shared_members_appear_once() -> None:
    one = nn.Linear(2, 2)
    pair = nn.ModuleList([one, one])
    assert len(list(pair.parameters())) == 2
    assert len(list(pair.named_parameters(remove_duplicate=False))) == 4
    assert list(pair.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert len(list(pair.modules())) == 2 and len(list(pair.children())) == 1


def test_assignment_rules() -> None:
    block = Block()
    with pytest.raises(TypeError, match="as parameter 'gain'"):
        block.gain = gs.ones(2)
    with pytest.raises(TypeError, match="as child module 'first'"):
        block.first = 3
    with pytest.raises(TypeError, match="as buffer 'count'"):
        block.count = 3
    block.gain = None
    assert "gain" not in block.state_dict() and block.gain is None
    block.first = nn.Parameter(gs.ones(1))  # another kind under the same name
    assert "first" not in dict(block.named_modules()) and "first" in block.state_dict()
    block.count = gs.ones(())
    assert block.count.item() == 1
    del block.first
    with pytest.raises(AttributeError, match="no attribute 'first'"):
        _ = block.first

    class Late(nn.Module):
        def __init__(self) -> None:
            self.w = nn.Parameter(gs.ones(1))

    with pytest.raises(AttributeError, match=r"before Module.__init__\(\) call"):
        Late()


@pytest.mark.parametrize(("make", "error"), [
    (lambda m: m.register_parameter("a.b", None), KeyError),
    (lambda m: m.register_parameter("", None), KeyError),
    (lambda m: m.register_parameter("first", None), KeyError),
    (lambda m: m.register_parameter("x", gs.ones(1)), TypeError),
    (lambda m: m.register_buffer("x", 3), TypeError),
    (lambda m: m.add_module("x", 3), TypeError),
    (lambda m: m.add_module(3, nn.ReLU()), TypeError),
    (lambda m: m.get_submodule("first.weight"), AttributeError),
    (lambda m: m.get_parameter("first.nothing"), AttributeError),
    (lambda m: m.to(gs.int64), TypeError),
    (lambda m: m.train(1), ValueError),
    (lambda m: nn.Module()(1), NotImplementedError),
])
def test_mistakes(make: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        make(Block())


def test_looking_up() -> None:
    block = Block()
    assert block.get_submodule("first") is block.first and block.get_submodule("") is block
    assert block.get_parameter("first.weight") is block.first.weight
    assert block.get_buffer("count") is block.count


def test_state_round_trip_and_aliasing() -> None:
    a, b = Block(), Block()
    result = b.load_state_dict(a.state_dict())
    assert repr(result) == "<All keys matched successfully>"
    for key, value in a.state_dict().items():
        assert b.state_dict()[key].tolist() == value.tolist()
    a.state_dict()["gain"].fill_(5.0)  # a state dict shares memory
    assert a.gain.tolist() == [5.0, 5.0] and b.gain.tolist() == [1.0, 1.0]
    weight = a.first.weight
    a.load_state_dict(b.state_dict())
    assert a.first.weight is weight
    assert not a.state_dict()["gain"].requires_grad
    assert a.state_dict(keep_vars=True)["gain"] is a.gain


def test_loading_what_does_not_fit() -> None:
    block = Block()
    state = block.state_dict()
    state["extra"], state["first.other"] = gs.ones(1), gs.ones(1)
    del state["gain"]
    state["second.bias"] = gs.ones(3)
    before = block.second.bias.tolist()
    with pytest.raises(CheckpointError) as caught:
        block.load_state_dict(state)
    for part in ("Block", "'gain'", "'extra'", "'first.other'", "second.bias", "(3,)", "(2,)"):
        assert part in str(caught.value)
    with pytest.raises(RuntimeError, match="size mismatch"):
        block.load_state_dict(state, strict=False)
    assert block.second.bias.tolist() == before
    del state["second.bias"]
    result = block.load_state_dict(state, strict=False)
    assert result.missing_keys == ["gain", "second.bias"]
    assert sorted(result.unexpected_keys) == ["extra", "first.other"]
    with pytest.raises(TypeError, match="dict from names"):
        block.load_state_dict(3)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="not a tensor"):
        block.load_state_dict({**block.state_dict(), "gain": 3})


def test_meta_device_and_assign() -> None:
    with gs.device("meta"):
        model = nn.Linear(3, 2)
    assert model.weight.is_meta
    good = nn.Linear(3, 2)
    model.load_state_dict(good.state_dict(), assign=True)
    assert isinstance(model.weight, nn.Parameter) and model.weight.requires_grad
    assert model.weight.tolist() == good.weight.tolist()
    other = nn.Linear(3, 2, device="meta").to_empty(device="cpu")
    assert not other.weight.is_meta and tuple(other.weight.shape) == (2, 3)
    other.load_state_dict(good.state_dict())
    assert other(gs.ones(1, 3)).tolist() == good(gs.ones(1, 3)).tolist()


def test_extra_state_and_state_hooks() -> None:
    class Counting(nn.Linear):
        seen = 0

        def get_extra_state(self) -> Any:
            return {"seen": self.seen}

        def set_extra_state(self, state: Any) -> None:
            self.seen = state["seen"]

    a, b = Counting(2, 2), Counting(2, 2)
    a.seen = 7
    b.load_state_dict(a.state_dict())
    assert b.seen == 7
    with pytest.raises(CheckpointError, match="_extra_state"):
        b.load_state_dict(nn.Linear(2, 2).state_dict())

    net = nn.Sequential(nn.Linear(2, 2))
    net.register_state_dict_post_hook(lambda m, state, prefix, meta: state.update(extra=gs.ones(1)))
    assert "extra" in net.state_dict()

    def rename(module: Any, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        for key in list(state):
            state[key.replace("old.", "0.")] = state.pop(key)

    net.register_load_state_dict_pre_hook(rename)
    net.load_state_dict({"old.weight": gs.ones(2, 2), "old.bias": gs.zeros(2)})
    assert net[0].weight.tolist() == [[1, 1], [1, 1]]
    net.register_load_state_dict_post_hook(lambda m, keys: keys.missing_keys.clear())
    assert net.load_state_dict({}, strict=False).missing_keys == []


def test_forward_hooks() -> None:
    block, log = Block(), []
    x = gs.ones(1, 3)
    plain = block(x).tolist()
    handles = [
        block.register_forward_pre_hook(lambda m, args: log.append("pre")),
        block.register_forward_pre_hook(lambda m, args, kw: (args, {"scale": 2.0}),
                                        with_kwargs=True),
        block.register_forward_hook(lambda m, args, out: log.append("post")),
        block.register_forward_hook(lambda m, args, kw, out: out * kw["scale"], with_kwargs=True),
        block.register_forward_pre_hook(lambda m, args: log.append("first"), prepend=True)]
    assert block(x).tolist() == [[pytest.approx(4 * v, rel=1e-6) for v in plain[0]]]
    assert log == ["first", "pre", "post"]
    for handle in handles:
        handle.remove()
    assert block(x).tolist() == plain
    always = block.register_forward_hook(lambda m, a, out: log.append("always"), always_call=True)
    with always, pytest.raises(ValueError, match="in_features"):
        block(gs.ones(1, 5))
    assert log[-1] == "always" and not block._forward_hooks


def test_backward_hooks_agree_with_pytorch() -> None:
    torch = pytest.importorskip("torch", reason="the values come from PyTorch")
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)

    def run(library: Any, tensor: Any) -> list[Any]:
        layer = library.Linear(3, 2, bias=False)
        layer.load_state_dict({"weight": tensor(weights)})
        log: list[Any] = []
        layer.register_full_backward_pre_hook(lambda m, g: (g[0] * 2,))
        layer.register_full_backward_hook(
            lambda m, gi, go: log.extend([gi[0].tolist(), go[0].tolist()]) or (gi[0] * 10,))
        x = tensor(np.ones((1, 3), np.float32)).requires_grad_()
        (layer(x).sum() + x.sum()).backward()  # the other use of x must not be seen
        return [*log, x.grad.tolist(), layer.weight.grad.tolist()]

    assert run(nn, gs.tensor) == run(torch.nn, torch.tensor)


def test_mode_casting_and_apply() -> None:
    block = Block()
    weight = block.first.weight
    assert block.eval().training is False and block.first.training is False
    block.double()
    assert block.first.weight is weight and weight.dtype is gs.float64
    assert block(gs.ones(1, 3, dtype=gs.float64)).dtype is gs.float64
    block.register_buffer("index", gs.arange(3))
    block.to(gs.bfloat16)
    assert block.index.dtype is gs.int64 and block.count.dtype is gs.bfloat16
    block.to("cpu").to(gs.ones(1)).half().float()
    assert all(p.dtype is gs.float32 and p.is_leaf and p.requires_grad for p in block.parameters())
    names: list[str] = []
    block.apply(lambda m: names.append(type(m).__name__))
    assert names == ["Linear", "Linear", "Block"]
    block.requires_grad_(False)
    assert not any(p.requires_grad for p in block.parameters())


def test_zero_grad() -> None:
    block = Block()
    block(gs.ones(1, 3)).sum().backward()
    block.zero_grad(set_to_none=False)
    assert block.gain.grad.tolist() == [0, 0]
    block.zero_grad()
    assert block.gain.grad is None


def test_copy_and_pickle() -> None:
    block = Block()
    block.register_forward_hook(_twice)
    x = gs.ones(2, 3)
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert other(x).tolist() == block(x).tolist()
        assert other.first.weight is not block.first.weight
        assert isinstance(other.first.weight, nn.Parameter)
        with gs.no_grad():
            other.first.weight.fill_(0)
        assert block.first.weight.abs().sum().item() > 0
    tied = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    tied[1].weight = tied[0].weight
    again = copy.deepcopy(tied)
    assert again[1].weight is again[0].weight


def _twice(module: Any, args: Any, out: Any) -> Any:
    return out * 2


def test_parameters_as_dict_keys() -> None:
    block = Block()
    rates = {p: i for i, p in enumerate(block.parameters())}
    assert [rates[p] for p in block.parameters()] == [0, 1, 2, 3, 4]
    assert block.gain in rates and nn.Parameter(gs.ones(2)) not in rates


def test_containers() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    assert len(net) == 3 and isinstance(net[:2], nn.Sequential) and net[-1] is net[2]
    net.append(nn.Tanh()).insert(1, nn.Identity())
    assert [type(m).__name__ for m in net] == ["Linear", "Identity", "ReLU", "Linear", "Tanh"]
    del net[1]
    assert list(net.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert isinstance(net.pop(3), nn.Tanh)
    named = nn.Sequential({"a": nn.Linear(2, 2), "b": nn.ReLU()})
    assert list(named.state_dict()) == ["a.weight", "a.bias"]
    assert named(gs.ones(1, 2)).shape == (1, 2)
    with pytest.raises(IndexError):
        net[3]
    with pytest.raises(TypeError):
        nn.Sequential(3)
    blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    blocks += [nn.ReLU()]
    assert len(blocks) == 4 and blocks[1] in blocks and len(blocks[1:3]) == 2
    blocks[0] = nn.Tanh()
    table = nn.ModuleDict({"x": nn.Linear(2, 2)})
    table["y"] = nn.ReLU()
    assert list(table) == ["x", "y"] and "x" in table and len(table) == 2
    table.update({"z": nn.Tanh()})
    assert list(table.keys()) == ["x", "y", "z"] and isinstance(table.pop("y"), nn.ReLU)


def test_parameter_containers() -> None:
    listed = nn.ParameterList([gs.ones(2), nn.Parameter(gs.zeros(3))])
    listed.append(gs.ones(1))
    assert len(listed) == 3 and all(isinstance(p, nn.Parameter) for p in listed)
    assert list(listed.state_dict()) == ["0", "1", "2"] and listed[-1].tolist() == [1]
    table = nn.ParameterDict({"a": gs.ones(2)})
    table["b"] = gs.zeros(1)
    assert list(table.state_dict()) == ["a", "b"] and table.get("c") is None
    del table["a"]
    assert list(table.keys()) == ["b"] and len(list(table.parameters())) == 1


def test_printing_runs_of_equal_blocks() -> None:
    torch = pytest.importorskip("torch", reason="the text comes from PyTorch")

    def build(n: Any) -> Any:
        return n.ModuleDict({
            "blocks": n.ModuleList([n.Sequential(n.Linear(2, 2), n.ReLU()) for _ in range(3)]),
            "head": n.Linear(2, 1, bias=False), "empty": n.ModuleList()})

    assert repr(build(nn)) == repr(build(torch.nn))
