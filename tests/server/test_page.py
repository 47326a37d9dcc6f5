"""The chat page in a real browser: talk, edit, ask again, look inside, stop, small screens."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.conftest import Running

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield made
        made.close()


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    made = context.new_page()
    made.set_default_timeout(30_000)
    errors: list[str] = []
    made.on("pageerror", lambda error: errors.append(str(error)))
    made.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    made.goto(server.url)
    made.wait_for_selector("#log .turn")
    yield made
    context.close()
    assert not errors


def say(page: Any, text: str) -> None:
    page.fill("#text", text)
    page.press("#text", "Enter")
    page.wait_for_function("document.querySelector('#status').textContent.includes('a second')")


def turns(page: Any) -> list[tuple[str, str]]:
    return page.eval_on_selector_all(
        "article.turn", "all => all.map(t => [t.classList[1], t.querySelector('.body').innerText])")


def test_a_conversation(page: Any) -> None:
    assert "tiny" in page.inner_text("#model")
    say(page, "hello")
    say(page, "how are you")
    assert [who for who, _ in turns(page)] == ["user", "assistant"] * 2
    assert turns(page)[0][1] == "hello" and turns(page)[1][1]
    page.reload()
    page.wait_for_selector("article.turn")
    assert len(turns(page)) == 4  # it is kept
    page.click("#new")
    assert turns(page) == []


def test_edit_and_again(page: Any) -> None:
    say(page, "hello")
    first = turns(page)
    page.hover("article.user")
    page.click("article.user >> text=Edit")
    page.fill("textarea.edit", "there")
    page.press("textarea.edit", "Enter")
    page.wait_for_function("document.querySelector('#status').textContent.includes('a second')")
    assert turns(page)[0][1] == "there" and turns(page)[1] != first[1] and len(turns(page)) == 2
    before = turns(page)
    page.hover("article.assistant")
    page.click("article.assistant >> text=Again")
    page.wait_for_function("document.querySelector('#status').textContent.includes('a second')")
    assert turns(page) == before  # temperature 0: the same answer
    page.press("#text", "ArrowUp")
    page.wait_for_selector("textarea.edit")
    page.press("textarea.edit", "Escape")
    assert turns(page) == before


def test_look_inside(page: Any) -> None:
    say(page, "hello")
    text = turns(page)[1][1]
    page.click("#inside")
    tokens = page.locator(".token")
    assert tokens.count() > 3
    joined = "".join(tokens.nth(i).text_content() for i in range(tokens.count()))
    assert len(joined) >= len(text.strip()) // 2
    assert "probability" in tokens.first.get_attribute("aria-label")
    tokens.nth(1).click()
    rows = page.locator("#alternatives tr")
    assert rows.count() >= 8 and page.locator("#alternatives tr.taken").count() == 1
    page.keyboard.press("Escape")
    assert page.locator("#alternatives").count() == 0


def test_stop(page: Any, server: Running) -> None:
    page.fill("#text", "hello")
    page.press("#text", "Enter")
    page.wait_for_selector(".typing")
    page.keyboard.press("Escape")
    page.wait_for_function("/Stopped|a second/.test(document.querySelector('#status').textContent)")
    assert page.inner_text("#send") == "Send"
    say(page, "again")


def test_markup_is_text(page: Any) -> None:
    say(page, "<img src=x onerror=alert(1)> **no**")
    assert page.locator("#log img").count() == 0
    assert turns(page)[0][1] == "<img src=x onerror=alert(1)> **no**"


def test_markdown(page: Any) -> None:
    html = page.evaluate("""async () => {
        const { render } = await import('/static/markdown.js');
        const box = document.createElement('div');
        box.append(render('# T\\n\\na **b** *c* `d<e` 2*3*4 [x](https://e.org/a) [y](javascript:1)'
            + '\\n- one\\n- two\\n\\n3. three\\n\\n> q\\n\\n```py\\n1 < 2\\n```\\n<b>raw</b>'));
        return box.innerHTML;
    }""")
    for part in ("<h3>T</h3>", "<strong>b</strong>", "<em>c</em>", "<code>d&lt;e</code>", "2*3*4",
                 'href="https://e.org/a"', "[y](javascript:1)", "<ul><li>one</li><li>two</li></ul>",
                 '<ol start="3">', "<blockquote><p>q</p></blockquote>",
                 "<pre><code>1 &lt; 2</code></pre>", "&lt;b&gt;raw&lt;/b&gt;"):
        assert part in html, (part, html)


def test_a_phone_and_the_dark(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    say(page, "hello")
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 360
    light = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    page.click("#theme")
    dark = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert light != dark
    page.click("summary")
    box = page.locator(".panel").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 360


def test_every_control_has_a_name(page: Any) -> None:
    say(page, "hello")
    unnamed = page.evaluate("""() => [...document.querySelectorAll('button,input,textarea')]
        .filter(n => !(n.innerText || n.getAttribute('aria-label') || n.labels?.length))
        .map(n => n.outerHTML)""")
    assert unnamed == []


def test_a_server_that_is_gone(browser: Any) -> None:
    from tests.server.conftest import build

    running = Running(build(rows=1))
    context = browser.new_context()
    page = context.new_page()
    page.goto(running.url)
    page.wait_for_selector("#log .turn")
    running.stop()
    page.fill("#text", "hello")
    page.press("#text", "Enter")
    page.wait_for_selector(".wrong")
    assert "cannot be reached" in page.inner_text(".wrong")
    context.close()
