"""Layers inside compiled functions: running statistics, dropout, modes, threads that load data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer import nn
from gossamer.data import DataLoader, Dataset
from gossamer.nn import functional as F


def test_running_statistics_move() -> None:
    x = [gs.tensor(np.random.default_rng(i).standard_normal((6, 3)).astype(np.float32))
         for i in range(3)]
    for momentum in (0.1, None):
        plain, traced = nn.BatchNorm1d(3, momentum=momentum), nn.BatchNorm1d(3, momentum=momentum)
        call = gs.compile(lambda t, layer=traced: layer(t))
        for t in x:
            np.testing.assert_allclose(call(t).detach().numpy(), plain(t).detach().numpy(),
                                       atol=1e-5)
        assert traced.num_batches_tracked.item() == 3
        np.testing.assert_allclose(traced.running_mean.numpy(), plain.running_mean.numpy(),
                                   atol=1e-6)
        np.testing.assert_allclose(traced.running_var.numpy(), plain.running_var.numpy(), atol=1e-6)


def test_dropout_advances_and_follows_the_mode() -> None:
    layer = nn.Dropout(0.5)
    call = gs.compile(layer)
    x = gs.ones(400)
    gs.manual_seed(5)
    first, second = call(x).tolist(), call(x).tolist()
    assert first != second
    gs.manual_seed(5)
    assert call(x).tolist() == first
    layer.eval()
    assert call(x).tolist() == x.tolist()
    layer.train()
    assert 0.0 in call(x).tolist()


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_recurrent_training_step(name: str) -> None:
    gs.manual_seed(0)
    layer, head = getattr(nn, name)(3, 5, batch_first=True), nn.Linear(5, 2)
    params = [*layer.parameters(), *head.parameters()]
    optimizer = gs.optim.Adam(params, lr=0.05)
    x = gs.tensor(np.random.default_rng(0).standard_normal((8, 4, 3)).astype(np.float32))
    y = (x.sum((1, 2)) > 0).long()

    @gs.compile
    def step() -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(layer(x)[0][:, -1]), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    losses = [step().item() for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0] and step.traced == 1


def test_loading_in_a_thread_while_training() -> None:
    class Noisy(Dataset):
        """Uses the engine itself, in the loader's thread."""

        def __len__(self) -> int:
            return 60

        def __getitem__(self, i: int) -> Any:
            x = gs.arange(4).float() * i
            return (x - x.mean()) / 60, x.sum() > 150

    model = nn.Linear(4, 2)
    optimizer = gs.optim.SGD(model.parameters(), lr=0.1)

    def run(workers: int) -> list[float]:
        with gs.no_grad():
            model.weight.fill_(0.1)
            model.bias.fill_(0.0)
        losses = []
        for x, y in DataLoader(Noisy(), batch_size=5, shuffle=True, seed=1, num_workers=workers):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y.long())
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    assert run(1) == run(0)
