"""The page of an explanation: one file, nothing fetched, and it holds what the object holds."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest

import gossamer as gs
from gossamer.insight import Explanation
from tests.insight.test_explain import PEAKS

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or \
    shutil.which("google-chrome")


class Parser(HTMLParser):
    """Elements that load something, and whether every element that opens also closes."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.texts: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.loads += [f"{tag} {k}={v}" for k, v in attrs
                       if k in ("src", "href", "srcset", "action", "data")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts[self.open[-1] if self.open else ""] = data


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Explanation, Path]:
    patch = pytest.MonkeyPatch()
    patch.setattr("gossamer.insight.explanation.peaks", lambda: PEAKS)

    def hostile(x: gs.Tensor) -> gs.Tensor:
        y = gs.softmax(x @ x, dim=1)  # </script><script>alert("<!--")</script> {{data}}
        return (y * 2).sum()

    found = gs.explain(hostile, gs.randn(48, 48))
    path = found.html(tmp_path_factory.mktemp("page") / "page.html")
    patch.undo()
    return found, path


def data_of(text: str) -> dict:
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert block
    return json.loads(block[1])


def test_it_is_one_file_that_loads_nothing(made) -> None:
    text = made[1].read_text()
    parser = Parser()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    assert parser.loads == []
    page = re.sub(r'(?s)id="data">.*?</script>', "", text)
    outside = set(re.findall(r"https?://[^\s\"'`)]+", page))
    assert outside == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert "@import" not in text and "fetch(" not in text and "XMLHttpRequest" not in text
    assert "default-src 'none'" in text


def test_it_holds_every_kernel_with_figures_lines_and_code(made) -> None:
    found, path = made
    data = data_of(path.read_text())
    assert len(data["kernels"]) == len(found.kernels)
    for k, told in zip(found.programs[0].kernels, data["kernels"], strict=True):
        assert (told["name"], told["flops"], told["seconds"]) == (k.name, k.flops, k.seconds)
        snippet = data["snippets"][told["lines"][0]]
        assert k.lines[0].text in snippet["texts"][snippet["number"] - snippet["first"]]
        packed = data["sources"][told["sources"][0]]["texts"]
        texts = json.loads(zlib.decompress(base64.b64decode(packed)))
        assert texts["llvm"] == k.sources[0].text and "ret" in texts["assembly"]
    stages = data["programs"][0]["stages"]
    assert zlib.decompress(base64.b64decode(stages["traced"])).decode() == found.graph()


def test_source_text_cannot_break_out_of_the_data(made) -> None:
    text = made[1].read_text()
    assert text.count("</script>") == 2
    assert any("alert(" in line for s in data_of(text)["snippets"].values() for line in s["texts"])


@pytest.mark.skipif(BROWSER is None, reason="no Chromium to open the page with")
def test_a_browser_draws_it_without_errors(made, tmp_path: Path) -> None:
    found, path = made
    # What the script did is told in the document, and an error in it is written there too.
    page = tmp_path / "page.html"
    page.write_text(path.read_text().replace(
        '<script>\n"use strict";',
        "<script>onerror = m => document.body.setAttribute('data-error', m);</script>\n"
        '<script>\n"use strict";'))
    done = subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=False)
    assert "data-error" not in done.stdout.partition("<body")[2][:400]
    assert done.stdout.count('role="button"') == len(found.kernels)  # tiles of the map
    assert done.stdout.count('class="dot"') >= 1 and "gemm 48x48x48" in done.stdout
