"""The speedrun written for PyTorch: the published baseline of "minutes to 0.95".

    python -m benchmarks.speedrun_torch --steps 20 [--threads 2] [--dtype bfloat16] [--no-compile]
    python -m benchmarks.speedrun_torch --minutes 10 --peer compile

The model, its optimizer and its step are PyTorch as one writes it: `nn.Module`, SDPA, autocast,
fused AdamW, `torch.compile`. Everything around the step is the same code as ours: `TorchTrainer` is
the speedrun's `Trainer` with the step replaced, so tokenizer, batches and their order, schedule,
stages and quizzes are the same. The first weights are ours, handed over as a safetensors file.

Without --minutes both take the same steps in turn: the losses must agree at steps 1 and 20, and the
ratio of step times is the ratio of the minutes in which both see equally many tokens. With
--minutes PyTorch trains the whole run by the clock, and is examined as ours is.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

import gossamer as gs
from benchmarks.adapters.torchmuon import MuonAdamW
from gossamer.chat.curriculum import Curriculum, tokenizer_corpus
from gossamer.chat.dial import turn
from gossamer.chat.evaluate import Score, evaluate, mean_score, question_set
from gossamer.chat.packing import Batch
from gossamer.chat.progress import Display
from gossamer.chat.tasks import TASKS
from gossamer.chat.tokenizer import Tokenizer
from gossamer.chat.train import Trainer, TrainSettings
from gossamer.data import safetensors
from gossamer.models import gpt

__all__ = ["GPT", "TorchTrainer", "compare", "main"]

CHECKED = (1, 20)  # steps at which the losses are compared
# Of the losses there. Muon's steps have the size of the matrix whatever the gradient's, so rounding
# of small singular values reaches the loss (benchmarks/workloads/nanochat.py has measured it).
TOLERANCE = {"float32": (1e-5, 2e-3), "bfloat16": (1e-3, 2e-2)}
EXAM = 250  # held-out questions a task
LEVEL = 0.95  # mean of the quizzes, and of the exam, whose time is told


# the model ----------------------------------------------------------------------------------------
def norm(x: torch.Tensor) -> torch.Tensor:
    """x / rms(x)."""
    return F.rms_norm(x, (x.shape[-1],))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """(B, H, T, K), its halves turned by the positions' angles."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Block(nn.Module):
    """Attention and feed-forward, parameters named as ours."""

    def __init__(self, config: gpt.GPTConfig, layer: int) -> None:
        super().__init__()
        d, self.heads = config.n_embd, config.n_head
        self.attn = nn.ModuleDict({name: nn.Linear(d, d, bias=False)
                                   for name in ("q", "k", "v", "proj")})
        if (config.n_layer - 1 - layer) % 2 == 0:
            self.attn["table"] = nn.Embedding(config.vocab_size, d)
            self.attn["gate"] = nn.Linear(gpt.GATE_INPUTS, config.n_head, bias=False)
        self.mlp = nn.ModuleDict({"fc": nn.Linear(d, 4 * d, bias=False),
                                  "proj": nn.Linear(4 * d, d, bias=False)})

    def forward(self, x: torch.Tensor, ids: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor,
                mask: torch.Tensor | None) -> torch.Tensor:
        B, T, D = x.shape
        y = norm(x)
        q, k, v = (self.attn[name](y).view(B, T, self.heads, -1) for name in ("q", "k", "v"))
        if "table" in self.attn:
            gate = gpt.GATE_RANGE * torch.sigmoid(self.attn["gate"](y[..., :gpt.GATE_INPUTS]))
            v = v + gate[..., None] * self.attn["table"](ids).view(B, T, self.heads, -1)
        q, k = (norm(rotate(z.transpose(1, 2), cos, sin)) * gpt.SHARPNESS for z in (q, k))
        v = v.transpose(1, 2).to(q.dtype)
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)
        x = x + self.attn["proj"](y.transpose(1, 2).reshape(B, T, D))
        return x + self.mlp["proj"](F.relu(self.mlp["fc"](norm(x))).square())


class GPT(nn.Module):
    """`gossamer.models.gpt.GPT` with its features as they are by default.

    Args:
        config: of our model.
    """

    def __init__(self, config: gpt.GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.smear = nn.Parameter(torch.zeros(gpt.SMEAR, config.n_embd))
        self.blocks = nn.ModuleList([Block(config, i) for i in range(config.n_layer)])
        self.head = nn.Linear(config.n_embd, config.padded_vocab, bias=False)
        half = config.head_dim // 2
        rates = gpt.ROTARY_BASE ** (-torch.arange(half) / half)
        angles = torch.arange(config.sequence_len)[:, None] * rates
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, ids: torch.Tensor, targets: torch.Tensor,
                begins: torch.Tensor | None) -> torch.Tensor:
        """The loss: mean cross-entropy over targets that are not -1."""
        T = ids.shape[1]
        places = torch.arange(T)
        mask = None
        if begins is not None:  # (B, 1, T, T): what is behind, and of one's own text
            mask = (places[None] <= places[:, None]) & (places >= begins[..., None])
            mask = mask[:, None]
        x = e = norm(self.wte(ids))
        for back in range(1, gpt.SMEAR + 1):
            past = self.smear[back - 1] * F.pad(e, (0, 0, back, 0))[:, :T]
            if begins is not None:
                past = past * (places - back >= begins)[..., None]
            x = x + past
        for block in self.blocks:
            x = block(x, ids, self.cos[:T], self.sin[:T], mask)
        logits = self.head(norm(x))[..., : self.config.vocab_size].float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


# the run ------------------------------------------------------------------------------------------
class TorchTrainer(Trainer):
    """The speedrun's loop with PyTorch's step.

    Args:
        peer: "eager", or "compile" for `torch.compile` of model and Muon.
        model, curriculum, settings, folder, display: as for `Trainer`; `model` gives the first
            weights, and gets the trained ones where it is asked questions or saved.
    """

    def __init__(self, peer: str, model: gpt.GPT, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        self.twin = GPT(model.config)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "first.safetensors"
            safetensors.save_file(model.state_dict(), path)
            self.twin.load_state_dict(load_file(path))
        low = torch.bfloat16 if self.settings.dtype == "bfloat16" else None
        self.low = low
        fast: Callable[..., Any] = torch.compile if peer == "compile" else lambda f: f
        self.loss = fast(self.twin)
        muon, adamw = self.optimizers
        names = {id(p): name for name, p in model.named_parameters()}
        theirs = dict(self.twin.named_parameters())

        def twins(group: dict[str, Any]) -> list[nn.Parameter]:
            return [theirs[names[id(p)]] for p in group["params"]]

        groups = [{"kind": "muon", "params": twins(g), "ns_dtype": low,
                   **{k: g[k] for k in ("lr", "momentum", "beta2", "weight_decay")}}
                  for g in muon.param_groups]
        groups += [{"kind": "adamw", "params": twins(g), "lr": g["lr"], "betas": g["betas"],
                    "weight_decay": 0.0} for g in adamw.param_groups]
        self.steps = MuonAdamW(torch, groups, fast)
        for *_, constants in self.steps.stacks:
            constants["lr"] = torch.tensor(constants["lr"])  # a number would compile it anew

    def _set_rates(self, progress: float) -> None:
        super()._set_rates(progress)
        muon, adamw = self.optimizers
        for *_, constants in self.steps.stacks:
            constants["lr"].fill_(muon.param_groups[0]["lr"])
        for mine, theirs in zip(adamw.param_groups, self.steps.adamw.param_groups, strict=True):
            theirs["lr"] = mine["lr"]

    def _learn(self, batches: Sequence[Batch]) -> float:
        (batch,) = batches
        ids, targets = torch.from_numpy(batch.ids), torch.from_numpy(batch.targets)
        begins = torch.from_numpy(batch.begins) if self.settings.borders else None
        with torch.autocast("cpu", torch.bfloat16, enabled=self.low is not None):
            loss = self.loss(ids, targets, begins)
        loss.backward()
        self.steps.step()
        self.steps.zero_grad()
        return float(loss.item())

    def _give_back(self) -> None:
        """The trained weights, to the model that is asked and saved."""
        theirs = self.twin.state_dict()
        with gs.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(gs.from_numpy(theirs[name].detach().numpy()))

    def _quiz(self, *args: Any) -> None:
        self._give_back()
        super()._quiz(*args)

    def examine(self, *args: Any) -> None:
        self._give_back()
        super().examine(*args)

    def _save(self, *args: Any) -> Path:
        self._give_back()
        return super()._save(*args)


def trainer(peer: str, minutes: float, options: argparse.Namespace, folder: Path) -> Trainer:
    """Ours for "gossamer", else PyTorch's, as the speedrun makes one from the same options."""
    dial = turn(minutes, options.depth, dtype=options.dtype)
    tokenizer = Tokenizer.train(tokenizer_corpus(TASKS, options.seed), dial.vocabulary)
    gs.manual_seed(options.seed)
    model = gpt.GPT(dial.config(tokenizer.vocab_size))
    base = TrainSettings(seconds=60.0 * minutes, seed=options.seed, borders=options.borders,
                         checkpoint_seconds=1e9)
    curriculum = Curriculum(TASKS, tokenizer, {"training": f"{minutes:g} minutes",
                                               "parameters": f"{model.count_parameters():,}"})
    settings = dial.settings(base, model.config)
    quiet = Display(Console(quiet=True))
    if peer == "gossamer":
        return Trainer(model, curriculum, settings, folder, quiet)
    return TorchTrainer(peer, model, curriculum, settings, folder, quiet)


# side by side -------------------------------------------------------------------------------------
def compare(peers: Sequence[str], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """`steps` steps of each on the same batches, in turn.

    Returns:
        By peer: "losses" of each step, "wall" and "cpu" seconds of each step.
    """
    with tempfile.TemporaryDirectory() as folder:
        runs = {peer: trainer(peer, 10.0, options, Path(folder)) for peer in peers}
    packer = runs[peers[0]]._make_packer()
    found: dict[str, dict[str, Any]] = {p: {"losses": [], "wall": [], "cpu": []} for p in peers}
    for step in range(options.steps):
        batch = packer.next()
        for peer, run in runs.items():
            run.step = step
            run._set_rates(step / options.steps)
            wall, cpu = time.perf_counter(), time.process_time()
            found[peer]["losses"].append(run._learn([batch]))
            found[peer]["cpu"].append(time.process_time() - cpu)
            found[peer]["wall"].append(time.perf_counter() - wall)
    return found


def disagreements(found: dict[str, dict[str, Any]], dtype: str) -> list[str]:
    """Where a peer's loss is not ours, in words."""
    told = []
    ours = found["gossamer"]["losses"]
    for step, limit in zip(CHECKED, TOLERANCE[dtype], strict=True):
        for peer, row in found.items():
            if step <= len(ours):
                error = abs(row["losses"][step - 1] - ours[step - 1]) / abs(ours[step - 1])
                if not error <= limit:
                    told.append(f"{peer}: loss {row['losses'][step - 1]:.5f} at step {step}, ours "
                                f"{ours[step - 1]:.5f}; they may differ by {limit:g} of it.")
    return told


def _print_comparison(found: dict[str, dict[str, Any]]) -> None:
    ours = found["gossamer"]
    for peer, row in found.items():
        later = slice(min(3, len(row["wall"]) - 1), None)  # the first steps compile
        wall, cpu = (statistics.median(row[clock][later]) for clock in ("wall", "cpu"))
        ratio = statistics.median(a / b for a, b in zip(row["cpu"][later], ours["cpu"][later],
                                                        strict=True))
        losses = ", ".join(f"{row['losses'][s - 1]:.5f} at step {s}" for s in CHECKED
                           if s <= len(row["losses"]))
        print(f"{peer:9s} {1 / wall:6.2f} steps/s, {1e3 * wall:5.0f} ms a step, {1e3 * cpu:5.0f} "
              f"ms of CPU, {ratio:.2f} times ours; loss {losses}; first step "
              f"{row['wall'][0]:.1f} s")


def _full_run(options: argparse.Namespace) -> list[Score]:
    """The whole run by the clock, and its exam."""
    run = trainer(options.peer, options.minutes, options, Path(options.folder))
    history = run.run()
    seconds = history.steps[-1][1]
    print(f"{options.peer}: {len(history.steps):,} steps in {seconds:.0f} s, "
          f"{len(history.steps) / seconds:.2f} steps/s")
    for step, when, mean, *_ in history.quizzes:
        print(f"  quiz at step {step:,}, {when:.0f} s: {mean:.3f}")
    scores = evaluate(run.model, run.tokenizer, question_set(TASKS, EXAM, seed=options.seed))
    points = [(when, mean) for _, when, mean, *_ in history.quizzes]
    at = reached([*points, (seconds, mean_score(scores)[0])], LEVEL)
    print(f"mean {LEVEL} " + (f"after {at / 60:.2f} minutes of training" if at else "not reached"))
    return scores


def reached(points: Sequence[tuple[float, float]], level: float) -> float:
    """When a curve of (seconds, mean) first comes to `level`, on straight lines between its points;
    0 if it does not.

    >>> reached([(60.0, 0.5), (120.0, 0.9), (180.0, 1.0)], 0.95)
    150.0
    """
    before = (0.0, 0.0)
    for point in points:
        if point[1] >= level:
            share = (level - before[1]) / (point[1] - before[1])
            return before[0] + share * (point[0] - before[0])
        before = point
    return 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare steps, or train the whole run; 1 if the losses disagree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speedrun_torch",
                                     description="The speedrun in PyTorch, beside ours.")
    parser.add_argument("--steps", type=int, default=20, help="of each, in turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--depth", type=int, default=0, help="layers; 0 = the speedrun's")
    parser.add_argument("--borders", action=argparse.BooleanOptionalAction, default=True,
                        help="attention ends where an example ends")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True,
                        help="torch.compile beside eager PyTorch")
    parser.add_argument("--minutes", type=float, default=0.0, help="train the whole run instead")
    parser.add_argument("--peer", choices=["gossamer", "eager", "compile"], default="compile",
                        help="that trains the whole run")
    parser.add_argument("--folder", default="runs/torch", help="of the whole run")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    gs.set_num_threads(options.threads)
    if options.minutes:
        mean, error = mean_score(_full_run(options))
        print(f"mean exact match {mean:.3f} ± {error:.3f}")
        return 0
    peers = ["gossamer", "eager", *(["compile"] if options.compile else [])]
    found = compare(peers, options)
    _print_comparison(found)
    told = disagreements(found, options.dtype)
    print("\n".join(told) or "the losses agree")
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
