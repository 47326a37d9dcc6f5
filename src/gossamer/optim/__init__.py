"""Optimizers and learning-rate schedules with torch.optim's names. Layer 5."""

# ruff: noqa: F403
from gossamer.optim import schedule as lr_scheduler
from gossamer.optim.adam import Adam, Adamax, AdamW, NAdam, RAdam
from gossamer.optim.adaptive import Adadelta, Adafactor, Adagrad, RMSprop, Rprop
from gossamer.optim.base import Optimizer
from gossamer.optim.layerwise import LAMB, NovoGrad
from gossamer.optim.lion import Lion
from gossamer.optim.muon import Muon, MuonAdamW
from gossamer.optim.schedule import *
from gossamer.optim.sgd import ASGD, SGD

__all__ = [
    "ASGD", "LAMB", "SGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "Lion",
    "Muon", "MuonAdamW", "NAdam", "NovoGrad", "Optimizer", "RAdam", "RMSprop", "Rprop",
    "lr_scheduler",
]
__all__ += lr_scheduler.__all__
