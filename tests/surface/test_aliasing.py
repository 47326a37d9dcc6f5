"""Views and in-place writes alias as PyTorch's do (design §3; nanochat's idioms)."""

from __future__ import annotations

from typing import Any

from tests.surface.twin import compare, scenarios


def case_write_through_slice(m: Any) -> Any:
    x = m.zeros(4, 3)
    row = x[1]
    row += 1
    x[:, 2] = m.arange(4).float()
    return x, row


def case_write_to_the_root_is_seen_by_a_view(m: Any) -> Any:
    x = m.arange(6).float()
    v = x.view(2, 3)
    w = v.t()
    before = w.tolist()
    x.mul_(2)
    return before, v, w


def case_chain_of_views(m: Any) -> Any:
    x = m.arange(24).float()
    v = x.view(2, 3, 4).transpose(0, 2)[1:3, :, 0]
    v.mul_(-1)
    v[0, 1] = 100
    return x, v


def case_diagonal_is_a_view(m: Any) -> Any:
    x = m.zeros(3, 4)
    x.diagonal().fill_(5)
    x.diagonal(1)[0] = 7
    x.diagonal(-1).add_(1)
    return x


def case_unfold_reads_later_writes(m: Any) -> Any:
    x = m.arange(6).float()
    w = x.unfold(0, 3, 2)
    x[2] = 50
    return w


def case_expand_reads_later_writes(m: Any) -> Any:
    x = m.zeros(3, 1)
    e = x.expand(3, 4)
    x[1] = 2
    return e


def case_flip_is_a_copy(m: Any) -> Any:
    x = m.arange(3).float()
    f = x.flip(0)
    x[0] = 9
    return f


def case_reshape_copies_only_when_it_must(m: Any) -> Any:
    x = m.arange(6).float().view(2, 3)
    a = x.reshape(3, 2)
    b = x.t().reshape(6)
    x[0, 0] = -1
    return a, b


def case_contiguous_and_clone(m: Any) -> Any:
    x = m.arange(6).float().view(2, 3)
    same = x.contiguous()
    other = x.t().contiguous()
    copy = x.clone()
    x.zero_()
    return same, other, copy


def case_strides(m: Any) -> Any:
    x = m.zeros(2, 3, 4)
    views = [x, x.transpose(0, 2), x[:, 1], x[..., ::2], x.permute(1, 2, 0)[1], x.view(6, 4).t(),
             x.unsqueeze(1), x[:, :1].expand(2, 5, 4), x.unfold(2, 2, 1), x.diagonal(0, 1, 2)]
    return [(list(v.stride()), v.storage_offset(), v.is_contiguous()) for v in views]


def case_view_refuses_what_reshape_copies(m: Any) -> Any:
    x = m.zeros(2, 3).t()
    try:
        x.view(6)
    except RuntimeError:
        return "refused", tuple(x.reshape(6).shape)
    return "allowed"


def case_detach_shares_memory(m: Any) -> Any:
    x = m.ones(3, requires_grad=True)
    d = x.detach()
    d[0] = 5
    return x.tolist(), d, x.requires_grad


def case_data_write_keeps_the_graph(m: Any) -> Any:
    w = m.ones(2, requires_grad=True)
    y = w * 3
    y.data[0] = 100
    y.sum().backward()
    return y.tolist(), w.grad


def case_data_item_assignment_on_a_leaf(m: Any) -> Any:
    w = m.zeros(2, 3, requires_grad=True)
    w.data[1] = m.arange(3).float()
    (w * w).sum().backward()
    return w, w.grad, w.is_leaf


def case_leaf_written_under_no_grad(m: Any) -> Any:
    w = m.ones(2, requires_grad=True)
    (w * 2).sum().backward()
    with m.no_grad():
        w -= 0.5 * w.grad
    w.grad = None
    (w * w).sum().backward()
    return w, w.grad


def case_kv_cache(m: Any) -> Any:
    cache = m.zeros(2, 6, 2)
    for p in range(0, 6, 2):
        cache[:, p:p + 2] = m.full((2, 2, 2), float(p + 1))
        seen = cache[:, :p + 2].sum()
    return cache, seen


def case_lerp_on_a_slice_passed_to_a_function(m: Any) -> Any:
    momentum = m.zeros(4, 2)

    def update(buffer: Any) -> None:
        buffer.lerp_(m.ones(2, 2), 0.25)
    update(momentum[:2])
    update(momentum[1:3])
    return momentum


def case_row_buffer(m: Any) -> Any:
    buffer = m.zeros(2, 6, dtype=m.long)
    view = buffer[:, 1:]
    buffer[0, 1:4] = m.tensor([7, 8, 9])
    view[1].copy_(m.arange(5))
    return buffer, view


def case_mask_assignment(m: Any) -> Any:
    logits = m.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])
    v, _ = m.topk(logits, 2)
    logits[logits < v[:, [-1]]] = -float("inf")
    targets = m.arange(6).view(2, 3)
    mask = m.tensor([[1, 0, 1], [0, 0, 1]])
    targets[mask == 0] = -1
    return logits, targets


def case_mask_assignment_through_a_view(m: Any) -> Any:
    x = m.arange(12).float().view(3, 4)
    part = x[1:]
    part[part > 8] = 0
    x[0][x[0] < 2] = 77
    return x


def case_mask_rows(m: Any) -> Any:
    x = m.arange(12).float().view(3, 4)
    x[m.tensor([True, False, True])] = m.tensor([1.0, 2.0, 3.0, 4.0])
    y = m.zeros(3, 4)
    y[m.tensor([True, False, True])] = m.arange(8).float().view(2, 4)
    y[m.tensor([False, True, False]), 1:3] = 9.0
    return x, y


def case_fancy_assignment(m: Any) -> Any:
    x = m.zeros(4, 5)
    x[[0, 2], [1, 3]] = m.tensor([1.0, 2.0])
    x[m.tensor([3]), :] = m.arange(5).float()
    x[:, m.tensor([4, 0])] = 8
    x[1, m.tensor([[2, 3]])] += 0.5
    return x


def case_index_put_accumulate(m: Any) -> Any:
    x = m.zeros(4)
    x.index_put_((m.tensor([1, 1, 3]),), m.tensor([1.0, 2.0, 3.0]), accumulate=True)
    return x


def case_gradient_through_item_assignment(m: Any) -> Any:
    w = m.tensor([1.0, 2.0], requires_grad=True)
    buffer = m.zeros(4)
    buffer[1:3] = w * 3
    buffer[0] = w[0] * w[1]
    (buffer * m.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    return buffer, w.grad


def case_gradient_of_an_overwritten_value_is_lost(m: Any) -> Any:
    w = m.tensor([1.0, 2.0], requires_grad=True)
    y = w * 2
    y[0] = 5.0
    y.mul_(3)
    y.sum().backward()
    return y, w.grad


def case_view_taken_before_an_inplace_operation_has_its_gradient(m: Any) -> Any:
    w = m.tensor([1.0, 2.0, 3.0], requires_grad=True)
    y = w * 1
    v = y[1:]
    y.mul_(w)
    v.sum().backward()
    return v, w.grad


def case_inplace_on_a_view_changes_the_base_gradient(m: Any) -> Any:
    w = m.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    y = w * 2 + 1
    y[0].mul_(w[1])
    y.sum().backward()
    return y, w.grad


def case_detached_view_written_with_a_graph(m: Any) -> Any:
    x = m.ones(2)
    w = m.ones(2, requires_grad=True)
    y = x.detach()
    y.mul_(w * 4)
    y.sum().backward()
    return x, y, w.grad


def case_requires_grad_on_a_detached_part(m: Any) -> Any:
    x = m.arange(4).float()
    part = x[1:3].detach().requires_grad_()
    (part * part).sum().backward()
    return part.grad, part.is_leaf, x.requires_grad


def case_parameter_shares_memory_with_its_data(m: Any) -> Any:
    make = m.nn.Parameter
    x = m.zeros(3)
    p = make(x)
    x[0] = 4
    with m.no_grad():
        p[1] = 6
    (p * p).sum().backward()
    return x, p, p.grad, p.is_leaf


def case_data_setter(m: Any) -> Any:
    p = m.ones(2, requires_grad=True)
    fresh = m.tensor([3.0, 4.0])
    p.data = fresh
    fresh[0] = 9
    (p * p).sum().backward()
    return p, p.grad


def case_tensors_as_keys(m: Any) -> Any:
    a, b = m.ones(2), m.ones(2)
    table = {a: "a", b: "b"}
    return table[a], table[b], len(table), (a == b).all().item(), a in [a]


def case_iadd_on_attribute_and_item(m: Any) -> Any:
    x = m.zeros(3)
    alias = x
    x += 1
    x[0] -= 5
    x[1:] *= 3
    x[2] /= 2
    x **= 2
    return alias


def case_copy_broadcasts_and_casts(m: Any) -> Any:
    x = m.zeros(2, 3, dtype=m.int32)
    x.copy_(m.tensor([1.9, -1.9, 2.0]))
    x[0].copy_(m.tensor(7))
    return x


def case_chunks_and_splits_are_views(m: Any) -> Any:
    x = m.zeros(7)
    for i, part in enumerate(x.chunk(3)):
        part.fill_(i + 1)
    for part in x.split([2, 5]):
        part[0] = -1
    a, b = x.view(7, 1)[:6].view(2, 3).unbind(0)
    a.add_(10)
    return x, b


def case_swap_through_clones(m: Any) -> Any:
    x = m.arange(4).float()
    x[:2], x[2:] = x[2:].clone(), x[:2].clone()
    y = m.arange(4).float()
    y[1:] = y[:-1].clone()
    return x, y


def case_scalar_views(m: Any) -> Any:
    x = m.arange(3).float()
    s = x[1]
    s += 10
    t = x.sum()
    t += 1
    return x, s, t


def case_many_writes(m: Any) -> Any:
    x = m.zeros(3)
    for i in range(150):
        x[i % 3] += i
        x.mul_(0.9)
    return x


def case_squeeze_and_unsqueeze_write_through(m: Any) -> Any:
    x = m.zeros(2, 1, 3)
    x.squeeze(1)[0] = 1
    x.unsqueeze(0)[0, 1] = 2
    x.squeeze().t()[2] = 3
    return x


def case_movedim_and_unflatten_write_through(m: Any) -> Any:
    x = m.zeros(2, 6)
    x.unflatten(1, (2, 3)).movedim(0, 2)[1, 2] = m.tensor([4.0, 5.0])
    x.flatten()[3] = 1
    return x


def case_none_and_ellipsis(m: Any) -> Any:
    x = m.arange(24).view(2, 3, 4)
    x[..., None, 1][0] = 0
    return x, x[None, 1, ..., -1], x[1, None, :, 2:], x[:, -1:, [0]]


@scenarios(globals())
def test_as_pytorch(scenario: Any) -> None:
    compare(scenario)
