"""The chat page in a real browser: talk, edit, ask again, look inside, stop, small screens."""

from __future__ import annotations

import json
import os
import shutil
import time
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
    page.route("**/v1/chat/completions", lambda route: None)  # an answer that does not come
    page.fill("#text", "hello")
    page.press("#text", "Enter")
    page.wait_for_selector(".typing")
    page.keyboard.press("Escape")
    page.wait_for_function("/Stopped/.test(document.querySelector('#status').textContent)")
    assert page.inner_text("#send") == "Send"
    page.unroute("**/v1/chat/completions")
    say(page, "again")


def calculated(route: Any) -> None:
    """A reply that calls the calculator, as the server streams it."""
    def entry(token: str, forced: bool = False) -> dict[str, Any]:
        top = [{"token": token, "logprob": -0.5}, {"token": "other", "logprob": -2.0}]
        return {"token": token, "logprob": -0.5, "bytes": [], "forced": forced,
                "top_logprobs": [] if forced else top}

    deltas = [({"role": "assistant", "content": ""}, []),
              ({"calculator": [{"type": "call", "text": "6*7"}]}, [entry("6*7")]),
              ({"calculator": [{"type": "output", "text": "42"}]}, [entry("42", forced=True)]),
              ({"content": "It is **42**.\n\n| a | b |\n|---|--:|\n| 1 | `2` |"}, [entry("It")])]
    chunks = [{"choices": [{"index": 0, "delta": delta, "logprobs": {"content": entries},
                            "finish_reason": None}]} for delta, entries in deltas]
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    route.fulfill(status=200, content_type="text/event-stream", body=body)


def test_calls_of_the_calculator_are_shown(page: Any) -> None:
    page.route("**/v1/chat/completions", calculated)
    say(page, "what is 6 x 7?")
    assert page.locator(".call").all_inner_texts() == ["calculator: 6*7", "= 42"]
    assert page.locator(".assistant strong").inner_text() == "42"
    assert page.locator(".assistant td").all_inner_texts() == ["1", "2"]
    # A screen reader is told the whole reply, once.
    told = page.locator("#said[aria-live=polite]").text_content()
    assert told.startswith("6*7= 42 It is **42**.")
    page.click("#inside")
    page.locator(".token.forced").click()
    assert "not chosen" in page.inner_text("#alternatives")


def test_without_a_mouse(page: Any) -> None:
    """Ask, look inside, change what was asked, and stop: with the keyboard alone."""
    keys = page.keyboard
    focus = "document.activeElement.%s"
    page.focus("#text")
    keys.type("hello")
    keys.press("Enter")
    page.wait_for_function("document.querySelector('#status').textContent.includes('a second')")
    assert page.evaluate(focus % "id") == "text"
    page.focus("#inside")
    keys.press("Enter")
    assert page.get_attribute("#inside", "aria-pressed") == "true"
    for _ in range(12):  # past the settings and the tools of the first message
        keys.press("Tab")
        if "token" in page.evaluate(focus % "className"):
            break
    first = page.evaluate(focus % "textContent")
    keys.press("ArrowRight")
    keys.press("ArrowRight")
    assert page.evaluate("[...document.activeElement.parentNode.children]"
                         ".indexOf(document.activeElement)") == 2
    keys.press("Enter")
    assert page.evaluate(focus % "id") == "alternatives"
    keys.press("Escape")
    keys.press("Home")
    assert page.evaluate(focus % "textContent") == first
    keys.press("Shift+Tab")
    keys.press("Shift+Tab")
    assert page.evaluate(focus % "innerText") == "Edit"
    keys.press("Enter")
    keys.press("Control+A")
    keys.type("there")
    keys.press("Enter")
    page.wait_for_function("document.querySelector('#status').textContent.includes('a second')")
    assert [text for who, text in turns(page) if who == "user"] == ["there"]


def test_stop_keeps_what_was_said_and_frees_the_slot(
        page: Any, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = server.served.host.engine
    run = engine._run

    def slowly(*given: Any) -> Any:
        time.sleep(0.1)
        return run(*given)

    monkeypatch.setattr(engine, "_run", slowly)
    page.fill("#text", "hello")
    page.press("#text", "Enter")
    page.wait_for_function("document.querySelector('.assistant .body').innerText.length > 2")
    assert page.get_attribute("#log", "aria-busy") == "true"
    page.click("text=Stop")
    page.wait_for_function("document.querySelector('#status').textContent === 'Stopped.'")
    assert len(turns(page)[1][1]) > 2 and page.get_attribute("#log", "aria-busy") == "false"
    deadline = time.monotonic() + 20
    while server.health()["active"]:
        assert time.monotonic() < deadline


def test_a_finger_on_a_phone(browser: Any, server: Running) -> None:
    """Everything can be touched, nothing is wider than the screen, the system's dark is dark."""
    context = browser.new_context(viewport={"width": 360, "height": 640}, is_mobile=True,
                                  has_touch=True, color_scheme="dark")
    page = context.new_page()
    page.goto(server.url)
    page.wait_for_selector("#log .turn")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.route("**/v1/chat/completions", calculated)
    say(page, "a" * 80)
    page.tap("#inside")
    for number in range(3):
        page.locator(".token").nth(number).tap()
        box = page.locator("#alternatives").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360
        page.tap("h1")
        assert page.locator("#alternatives").count() == 0
    page.tap("#inside")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    small = page.evaluate("""() => [...document.querySelectorAll('button, summary')].filter(n => {
        const box = n.getBoundingClientRect();
        return box.width && (box.width < 24 || box.height < 24);
    }).map(n => n.outerHTML)""")
    assert small == []  # WCAG 2.2, 2.5.8: targets are 24 pixels or more
    page.tap("article.user >> text=Edit")
    page.fill("textarea.edit", "b")
    page.press("textarea.edit", "Enter")
    page.wait_for_function("document.querySelector('.user .body').innerText === 'b'")
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(browser: Any, server: Running, scheme: str) -> None:
    """Text and its background differ by 4.5 to 1 or more (WCAG 2.2, 1.4.3)."""
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    page.goto(server.url)
    page.wait_for_selector("#log .turn")
    page.route("**/v1/chat/completions", calculated)
    say(page, "hello")
    page.click("#inside")
    found = page.evaluate("""() => {
        const light = (c) => {
            const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
                .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
            return .2126 * r + .7152 * g + .0722 * b;
        };
        const style = getComputedStyle(document.documentElement);
        const at = (name) => {
            const box = document.body.appendChild(document.createElement('i'));
            box.style.color = style.getPropertyValue(name);
            const colour = getComputedStyle(box).color;
            box.remove();
            return light(colour);
        };
        const pairs = [['--text', '--back'], ['--soft', '--back'], ['--text', '--mine'],
            ['--text', '--card'], ['--soft', '--card'], ['--accent', '--back'],
            ['--on-accent', '--accent'], ['--wrong', '--back'], ['--text', '--code']];
        return Object.fromEntries(pairs.map(([a, b]) => {
            const [x, y] = [at(a), at(b)].sort((p, q) => q - p);
            return [a + b, (x + .05) / (y + .05)];
        }));
    }""")
    assert min(found.values()) >= 4.5, found
    context.close()


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
