"""Datasets, loaders, safetensors files and checkpoints. Layer 5."""

# ruff: noqa: F403
from gossamer.data.checkpoint import *
from gossamer.data.collate import *
from gossamer.data.dataset import *
from gossamer.data.loader import *
from gossamer.data.safetensors import (
    load_file as load_file,
    safe_open as safe_open,
    save_file as save_file,
)
from gossamer.data.sampler import *

__all__ = [name for name in dir() if not name.startswith("_")]
