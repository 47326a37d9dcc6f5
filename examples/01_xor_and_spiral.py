"""Two problems that no straight line solves, learned by small networks and drawn as text.

Run: .venv/bin/python examples/01_xor_and_spiral.py
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import gossamer as gs
from gossamer import nn

F = nn.functional


def trainer(model: nn.Module, optimizer: gs.optim.Optimizer) -> Callable[..., gs.Tensor]:
    """One whole training step as one compiled function."""
    @gs.compile
    def step(x: gs.Tensor, y: gs.Tensor) -> gs.Tensor:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss
    return step


def xor() -> None:
    """The smallest problem with a hidden layer: 2 -> 8 -> 2."""
    x = gs.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    y = gs.tensor([0, 1, 1, 0])
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
    step = trainer(model, gs.optim.Adam(model.parameters(), lr=0.05))
    for i in range(201):
        loss = step(x, y)
        if i % 100 == 0:
            print(f"xor    step {i:4}  loss {loss.item():.4f}")
    with gs.no_grad():
        answers = model(x).argmax(dim=1).tolist()
    print(f"xor    (0,0) (0,1) (1,0) (1,1) -> {answers}")
    assert answers == [0, 1, 1, 0]


def spiral(points: int, arms: int) -> tuple[gs.Tensor, gs.Tensor]:
    """`points` (x, y) on each of `arms` noisy arms: (arms * points, 2), and the arm of each."""
    xs, ys = [], []
    for arm in range(arms):
        radius = gs.linspace(0.05, 1.0, points)
        angle = (radius * 4.5 + arm * 2 * math.pi / arms) + gs.randn(points) * 0.12
        xs.append(gs.stack([radius * gs.sin(angle), radius * gs.cos(angle)], dim=1))
        ys.append(gs.full((points,), arm, dtype=gs.int64))
    return gs.cat(xs), gs.cat(ys)


def picture(model: nn.Module, x: gs.Tensor, y: gs.Tensor, width: int = 56, height: int = 24) -> str:
    """The plane coloured by the model's answer (. : -), with the data on top (a b c)."""
    across, down = gs.linspace(-1.1, 1.1, width), gs.linspace(1.1, -1.1, height)
    rows, columns = gs.meshgrid(down, across, indexing="ij")
    with gs.no_grad():
        answer = model(gs.stack([columns.flatten(), rows.flatten()], dim=1)).argmax(dim=1)
    canvas = [[".:-"[k] for k in line] for line in answer.reshape(height, width).tolist()]
    for (px, py), arm in zip(x.tolist(), y.tolist(), strict=True):
        column, row = round((px + 1.1) / 2.2 * (width - 1)), round((1.1 - py) / 2.2 * (height - 1))
        if 0 <= row < height and 0 <= column < width:
            canvas[row][column] = "abc"[arm]
    return "\n".join("".join(line) for line in canvas)


def three_arms() -> None:
    """2 -> 64 -> 64 -> 3 on the spiral; every fifth point is kept for the test."""
    x, y = spiral(200, 3)
    held_out = gs.arange(len(x)) % 5 == 0
    train_x, train_y, test_x, test_y = x[~held_out], y[~held_out], x[held_out], y[held_out]

    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
                          nn.Linear(64, 3))
    step = trainer(model, gs.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-3))
    for i in range(401):
        loss = step(train_x, train_y)
        if i % 100 == 0:
            print(f"spiral step {i:4}  loss {loss.item():.4f}")

    with gs.no_grad():
        right = (model(test_x).argmax(dim=1) == test_y).float().mean().item()
    print("the plane in the model's colours (. : -), and on it the three arms (a b c):")
    print(picture(model, train_x, train_y))
    print(f"spiral {right:.1%} of {len(test_x)} points that it has not seen")
    assert right >= 0.95


if __name__ == "__main__":
    start = time.perf_counter()
    gs.manual_seed(1)
    xor()
    three_arms()
    print(f"{time.perf_counter() - start:.1f} s")
