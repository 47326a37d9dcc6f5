"""Rarer ways to reach one memory twice: views below parameters, shapes changed in place, strides.

Also the idioms of nanochat that break frameworks whose tensors are values: meta devices, state
loaded by assignment, modules swapped, parameters as keys, numbers of several dtypes together.
"""

from __future__ import annotations

from typing import Any

from tests.surface.twin import compare, scenarios


def case_a_view_of_a_parameter_stays_below_it_when_it_is_written(m: Any) -> Any:
    p = m.nn.Parameter(m.zeros(3, 2))
    column, row = p.mT[0], p[1]
    with m.no_grad():
        p.add_(1)
        row.mul_(5)
    (column.sum() + 2 * row.sum()).backward()
    return p, column, row, p.grad


def case_a_view_of_a_parameter_below_numpy_memory(m: Any) -> Any:
    p = m.nn.Parameter(m.zeros(3, 2))
    array, held = p.detach().numpy(), p.data
    view = p.mT
    array += 1
    (view * 3).sum().backward()
    with m.no_grad():
        p.sub_(p.grad)
    return array.copy(), held, view, p, p.grad


def case_training_on_memory_that_numpy_shares(m: Any) -> Any:
    layer = m.nn.Linear(3, 2)
    with m.no_grad():
        layer.weight.copy_(m.arange(6).view(2, 3))
        layer.bias.zero_()
    array = layer.weight.detach().numpy()
    optimizer = m.optim.SGD(layer.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        layer(m.ones(1, 3)).sum().backward()
        optimizer.step()
    return array.copy(), layer.weight, layer.bias


def case_what_is_written_through_a_view_of_a_detached_tensor_is_its_history(m: Any) -> Any:
    x, s = m.arange(4).float(), m.ones(2).requires_grad_()
    d = x.detach()
    d[1:3] = s * 3
    (d * m.arange(4).float()).sum().backward()
    return x, d, d.requires_grad, x.requires_grad, s.grad


def case_a_view_of_a_view_of_a_detached_tensor(m: Any) -> Any:
    x, s = m.arange(6).float().view(2, 3).clone(), m.ones(2).requires_grad_()
    d = x.detach()
    row = d[1]
    row[:2].mul_(s)
    (d * d).sum().backward()
    return x, d, row, d.requires_grad, row.requires_grad, x.requires_grad, s.grad


def case_a_detached_view_is_written(m: Any) -> Any:
    x, s = m.arange(4).float().requires_grad_(), m.full((2,), 5.0).requires_grad_()
    y = x * 1
    d = y[1:3].detach()
    d[:1].copy_(s[:1])
    (d * 2).sum().backward()
    return y, d, d.requires_grad, s.grad, x.grad is None


def case_views_made_before_a_transposition_in_place(m: Any) -> Any:
    x = m.arange(6).float().view(2, 3).clone()
    row, whole = x[0], x.view(6)
    x.t_()
    row.add_(10)
    x[2] = -1
    return x, row, whole, x.stride(), x.is_contiguous()


def case_shapes_changed_in_place(m: Any) -> Any:
    x = m.arange(6).float().view(2, 3).clone()
    y = x.unsqueeze_(0)
    x.transpose_(1, 2)
    z = x[0, 1]
    x.squeeze_()
    x.mul_(2)
    x.swapaxes_(0, 1)
    x.swapdims_(1, 0)
    return y is x, x, z, x.shape


def case_shapes_of_views_changed_in_place(m: Any) -> Any:
    x = m.zeros(2, 3)
    v = x[:, 1:]
    v.t_()
    v[0] = m.tensor([1.0, 2.0])
    v.unsqueeze_(1)
    v += 1
    return x, v, v.shape


def case_gradients_through_shapes_changed_in_place(m: Any) -> Any:
    p = m.arange(6).float().view(2, 3).clone().requires_grad_()
    x = p * 2
    x.t_()
    x[1] *= 3
    (x * m.arange(6).float().view(3, 2)).sum().backward()
    return p.grad


def case_as_strided_shows_the_memory(m: Any) -> Any:
    x = m.arange(12).float()
    windows = x.as_strided((4, 3), (2, 1))
    x[2] = 100
    first = windows.tolist()
    part = x.as_strided((2, 2), (6, 2), 1)
    part.fill_(-1)
    return first, windows, x, part


def case_as_strided_of_a_view_counts_from_the_memory(m: Any) -> Any:
    x = m.arange(12).float().view(3, 4)
    v = x[1:, 1:]
    w = v.as_strided((2, 2), (4, 1))
    z = v.as_strided((2, 2), (4, 1), 0)
    w.mul_(-1)
    z.add_(100)
    return x, v, w, z


def case_as_strided_gradient(m: Any) -> Any:
    x = m.arange(6).float().requires_grad_()
    y = x.as_strided((3, 3), (1, 1))
    (y * m.arange(9).float().view(3, 3)).sum().backward()
    return x.grad


def case_as_strided_write_in_a_graph(m: Any) -> Any:
    p = m.arange(6).float().requires_grad_()
    x = p * 2
    x.as_strided((2,), (3,), 1).mul_(5)
    (x * m.arange(6).float()).sum().backward()
    return x, p.grad


def case_meta_device_then_assigned_state(m: Any) -> Any:
    with m.device("meta"):
        layer = m.nn.Linear(3, 2)
    kinds = [p.device.type for p in layer.parameters()]
    weight, bias = m.ones(2, 3), m.full((2,), 0.5)
    layer.load_state_dict({"weight": weight, "bias": bias}, strict=True, assign=True)
    weight.mul_(2)
    return kinds, layer(m.ones(1, 3)), layer.weight


def case_meta_device_then_empty_then_filled(m: Any) -> Any:
    with m.device("meta"):
        layer = m.nn.Linear(3, 2)
    layer.to_empty(device="cpu")
    with m.no_grad():
        layer.weight.fill_(1)
        layer.bias.zero_()
    return layer.weight.device.type, layer(m.ones(2, 3))


def case_buffers_reassigned_and_not_persistent(m: Any) -> Any:
    module = m.nn.Module()
    module.register_buffer("cos", m.zeros(2), persistent=False)
    module.register_buffer("kept", m.ones(2))
    module.cos = m.full((3,), 2.0)
    return sorted(module.state_dict()), module.cos, [n for n, _ in module.named_buffers()]


def case_modules_swapped_and_parameters_shared(m: Any) -> Any:
    net = m.nn.Sequential(m.nn.Linear(2, 2), m.nn.Linear(2, 2))
    new = m.nn.Linear(2, 2, bias=False)
    setattr(net, "1", new)
    net[0].weight = new.weight
    with m.no_grad():
        new.weight.fill_(0.5)
        net[0].bias.fill_(1)
    net(m.ones(1, 2)).sum().backward()
    names = [n for n, _ in net.named_parameters()]
    return names, net.get_submodule("1") is new, new.weight.grad, len(list(net.parameters()))


def case_parameters_as_keys_and_sorted_shapes(m: Any) -> Any:
    params = [m.nn.Parameter(m.zeros(2, 3)), m.nn.Parameter(m.ones(4)), m.nn.Parameter(m.ones(4))]
    state = {p: i for i, p in enumerate(params)}
    with m.no_grad():
        params[1].add_(1)
    groups = {shape: [p for p in params if p.shape == shape]
              for shape in sorted({p.shape for p in params})}
    return [state[p] for p in params], [(tuple(s), len(g)) for s, g in groups.items()]


def case_stacked_parameters_written_back(m: Any) -> Any:
    params = [m.nn.Parameter(m.full((2, 2), float(i))) for i in range(3)]
    stacked = m.stack([p.detach() for p in params])
    stacked.mul_(2).add_(1)
    with m.no_grad():
        for p, new in zip(params, stacked.unbind(0), strict=True):
            p.copy_(new)
    momentum = m.zeros(4, 2, 2)
    momentum[:3].lerp_(stacked, 0.5)
    return params, stacked, momentum


def case_numbers_of_several_dtypes(m: Any) -> Any:
    p = m.ones(3, dtype=m.bfloat16)
    rate, decay = m.tensor(0.5), m.tensor(0.125)
    p.mul_(1 - rate * decay)
    p.sub_((m.ones(3) * rate).to(m.bfloat16))
    counts = m.tensor([1, 2, 3], dtype=m.int8) + m.tensor(5)
    return p.float(), counts, m.tensor([True, False]) + m.tensor(1, dtype=m.int32)


def case_half_parameter_with_float_values(m: Any) -> Any:
    p = m.nn.Parameter(m.ones(3, dtype=m.bfloat16))
    (p.float() * m.tensor([1.0, 2.0, 3.0])).sum().backward()
    return p.grad.float(), str(p.grad.dtype).split(".")[-1]


def case_every_target_ignored(m: Any) -> Any:
    x = m.zeros(2, 3, requires_grad=True)
    loss = m.nn.functional.cross_entropy(x, m.tensor([-1, -1]), ignore_index=-1)
    loss.backward()
    return bool(loss.isnan()), x.grad.isnan().any()


def case_top_k_threshold_writes_infinity(m: Any) -> Any:
    logits = m.tensor([[1.0, 5.0, 3.0, 2.0], [4.0, 0.0, 7.0, 6.0]])
    v, _ = m.topk(logits, 2)
    logits[logits < v[:, [-1]]] = -float("inf")
    return logits, m.softmax(logits, -1)


def case_targets_under_a_mask(m: Any) -> Any:
    rows = m.arange(10).view(2, 5).clone()
    inputs, targets = rows[:, :-1], rows[:, 1:].clone()
    mask = m.tensor([[1, 0, 1, 0], [0, 0, 1, 1]])
    targets[mask == 0] = -1
    rows[:, 0] = 50
    return inputs, targets


def case_generator_under_inference_mode(m: Any) -> Any:
    @m.inference_mode()
    def numbers() -> Any:
        x = m.zeros(2)
        for _ in range(3):
            x = x + 1
            yield m.is_inference_mode_enabled(), x.sum().item()

    return [(m.is_inference_mode_enabled(), found) for found in numbers()]


def case_cache_slices_of_both_rows(m: Any) -> Any:
    cache = m.zeros(2, 2, 6, 3)
    keys, values = cache[0], cache[1]
    keys[:, 2:4] = m.ones(2, 2, 3)
    values[:, 2:4] = 2 * keys[:, 2:4]
    grown = m.zeros(2, 2, 8, 3)
    grown[:, :, :6] = cache
    cache.zero_()
    return grown.sum(), keys, values


@scenarios(globals())
def test_as_pytorch(scenario: Any) -> None:
    compare(scenario)
