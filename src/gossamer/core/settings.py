"""Every environment variable that Gossamer reads, one row each. Layer 0.

Nothing else in the package reads the environment. A row names the variable, its default, how to
parse it and what it does; `docs/reference/settings.md` is generated from this table.

`setting` reads the environment at every call (1.5 us), `kept_setting` at the first: whoever changes
such a variable in a running process calls `refresh`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["SETTINGS", "Setting", "kept_setting", "refresh", "setting"]


def _flag(text: str) -> bool:
    return text.strip().lower() not in ("", "0", "false", "no", "off")


def _cache_folder() -> str:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return str(Path(base) / "gossamer")


def _data_folder() -> str:
    return str(Path(_cache_folder()) / "data")


@dataclass(frozen=True)
class Setting:
    """One environment variable."""

    name: str
    default: Callable[[], Any]
    parse: Callable[[str], Any]
    doc: str


SETTINGS: dict[str, Setting] = {
    row.name: row
    for row in (
        Setting("GOSSAMER_CACHE", _cache_folder, lambda text: text or _cache_folder(),
                "Folder of compiled kernels."),
        Setting("GOSSAMER_NO_CACHE", lambda: False, _flag, "Keep compiled kernels in memory only."),
        Setting("GOSSAMER_DATA", _data_folder, str, "Folder of downloaded data sets."),
        Setting("HF_ENDPOINT", lambda: "https://huggingface.co",
                lambda text: text or "https://huggingface.co",
                "Address of the hub of `hf://` data, https://huggingface.co unless set."),
        Setting("HF_TOKEN", lambda: "", str, "Sent to that hub, for data that is not public."),
        Setting("GOSSAMER_THREADS", lambda: 0, int, "Worker threads; 0 = all usable cores."),
        Setting("GOSSAMER_CPU_FEATURES", lambda: "", str,
                "LLVM features to add or remove, such as '-avx512f' (for tests)."),
        Setting("GOSSAMER_DEBUG", lambda: 0, int,
                "1 prints kernels as they are compiled, 2 also their loops, 3 also LLVM IR."),
        Setting("GOSSAMER_VERIFY", lambda: False, _flag,
                "Verify the IR between any two passes, fill fresh memory with NaN (slow; the tests "
                "turn it on)."),
        Setting("GOSSAMER_REFERENCE", lambda: False, _flag,
                "Evaluate with the NumPy reference instead of compiled code (the slow twin)."),
        Setting("BROWSER", lambda: "", str,
                "The browser that shows the chat page; Python's `webbrowser` reads it too."),
        Setting("DISPLAY", lambda: "", str,
                "Set where windows can be shown (X11); without it, on Linux, no browser opens."),
        Setting("WAYLAND_DISPLAY", lambda: "", str, "The same of Wayland."),
        Setting("SSH_CONNECTION", lambda: "", str,
                "Set at the other end of SSH, where a browser's window would be seen by nobody."),
    )
}


def setting(name: str) -> Any:
    """Value of a row of SETTINGS, from the environment or its default.

    Raises:
        ValueError: the variable is set to something that its row cannot parse.
    """
    row = SETTINGS[name]
    text = os.environ.get(name)
    if text is None:
        return row.default()
    try:
        return row.parse(text)
    except ValueError as error:
        raise ValueError(f"{name}={text!r}: {row.doc} The value cannot be read: {error}.") from None


_kept: dict[str, Any] = {}


def kept_setting(name: str) -> Any:
    """`setting` as it was when first asked for, or at the last `refresh`.

    Cost: 0.05 us; the engine asks at every look.
    """
    try:
        return _kept[name]
    except KeyError:
        value = _kept[name] = setting(name)
        return value


def refresh() -> None:
    """Read the environment anew."""
    _kept.clear()
