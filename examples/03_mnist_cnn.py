"""MNIST with a small convolutional network: 99 % of the 10,000 test digits.

Two convolutions, batch norm, max pooling and dropout; the compiled step moves the running
statistics and the random generator along with the parameters.

Run: .venv/bin/python examples/03_mnist_cnn.py   (downloads 11 MB on first use)
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
EPOCHS, BATCH, PEAK = 3, 100, 4e-3


class Net(nn.Module):
    """(B, 1, 28, 28) -> (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, kernel_size=3)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, kernel_size=3)
        self.norm2 = nn.BatchNorm2d(32)
        self.dropout = nn.Dropout(0.3)
        self.hidden = nn.Linear(32 * 5 * 5, 128)
        self.out = nn.Linear(128, 10)

    def forward(self, x: gs.Tensor) -> gs.Tensor:
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 2)  # (B, 16, 13, 13)
        x = F.max_pool2d(F.relu(self.norm2(self.conv2(x))), 2)  # (B, 32, 5, 5)
        x = F.relu(self.hidden(self.dropout(x.flatten(1))))
        return self.out(x)


def load() -> tuple[gs.Tensor, gs.Tensor, gs.Tensor, gs.Tensor]:
    """Pixels as float32 (N, 1, 28, 28) with mean 0 and deviation 1, labels as int64 (N,)."""
    images, labels, test_images, test_labels = (gs.tensor(a.copy()) for a in mnist(DATA))

    def pixels(x: gs.Tensor) -> gs.Tensor:
        return (x.unsqueeze(1).float() / 255 - 0.1307) / 0.3081  # of the training images
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
    model = Net()
    optimizer = gs.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.02)

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
        for index in gs.randperm(len(train_x)).split(BATCH):
            optimizer.param_groups[0]["lr"] = rate(done, steps)
            loss = train_step(index)
            done += 1
            if done % 100 == 0:
                print(f"  step {done:4}/{steps}  loss {loss.item():.4f}  "
                      f"{time.perf_counter() - start:.1f} s")
        model.eval()
        right = sum(count_right(x, y).item() for x, y in
                    zip(test_x.split(1000), test_y.split(1000), strict=True)) / len(test_x)
        print(f"epoch {epoch + 1}  test {right:.2%}  {time.perf_counter() - start:.1f} s")
    assert right >= 0.990, f"{right:.2%} of the test digits, expected 99.0 %"
    return right


if __name__ == "__main__":
    try:
        main()
    except DataError as error:  # no network, say: what to do, without a traceback
        raise SystemExit(str(error)) from None
