"""MNIST with a plain network of three layers: 98 % of the 10,000 test digits.

The whole step (picking the batch, forward, backward, AdamW) is one compiled function. The learning
rate is a number that changes between the calls, and costs no new compilation.

Run: .venv/bin/python examples/02_mnist_mlp.py   (downloads 11 MB on first use)
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import gossamer as gs
from gossamer import nn
from gossamer.core.errors import DataError
from gossamer.data.download import mnist

F = nn.functional
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"  # looked into before a download
EPOCHS, BATCH, PEAK = 8, 250, 2e-3  # 60,000 images: 240 steps an epoch


def load() -> tuple[gs.Tensor, gs.Tensor, gs.Tensor, gs.Tensor]:
    """Pixels as float32 (N, 784) with mean 0 and deviation 1, labels as int64 (N,)."""
    images, labels, test_images, test_labels = (gs.tensor(a.copy()) for a in mnist(DATA))

    def pixels(x: gs.Tensor) -> gs.Tensor:
        return (x.reshape(-1, 784).float() / 255 - 0.1307) / 0.3081  # of the training images
    return pixels(images), labels.long(), pixels(test_images), test_labels.long()


def rate(step: int, steps: int) -> float:
    """Linear warm-up over the first tenth, then half a cosine down to zero."""
    warm = steps // 10
    if step < warm:
        return PEAK * (step + 1) / warm
    return PEAK * (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2


def main() -> float:
    start = time.perf_counter()
    gs.manual_seed(0)
    train_x, train_y, test_x, test_y = load()
    model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Dropout(0.2),
                          nn.Linear(512, 256), nn.ReLU(), nn.Dropout(0.2),
                          nn.Linear(256, 10))
    optimizer = gs.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.01)

    @gs.compile
    def train_step(index: gs.Tensor) -> gs.Tensor:
        loss = F.cross_entropy(model(train_x[index]), train_y[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    @gs.compile
    def count_right(x: gs.Tensor, y: gs.Tensor) -> gs.Tensor:
        with gs.no_grad():
            return (model(x).argmax(dim=1) == y).sum()

    steps = EPOCHS * len(train_x) // BATCH
    done = 0
    for epoch in range(EPOCHS):
        model.train()
        total = 0.0
        for index in gs.randperm(len(train_x)).split(BATCH):
            optimizer.param_groups[0]["lr"] = rate(done, steps)
            loss = train_step(index)
            done += 1
            if done % 40 == 0:  # looking at a value waits for it; not at every step
                total += loss.item()
        model.eval()
        right = count_right(test_x, test_y).item() / len(test_x)
        print(f"epoch {epoch + 1}  loss {total / 6:.4f}  test {right:.2%}  "
              f"{time.perf_counter() - start:.1f} s")
    assert right >= 0.980, f"{right:.2%} of the test digits, expected 98.0 %"
    return right


if __name__ == "__main__":
    try:
        main()
    except DataError as error:  # no network, say: what to do, without a traceback
        raise SystemExit(str(error)) from None
