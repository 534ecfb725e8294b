"""The chat page in a real Chromium, from a real server: the model's words are dictated where a test needs certain ones,
and everything before and behind them (search, routing, modules, citations, the stream) is the real pipeline."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Request, Route, expect, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from hybridqa import HybridQA
from hybridqa.engine.protocol import Delta
from hybridqa.errors import EngineError
from hybridqa.modules.manifest import Manifest
from hybridqa.server.page import PAGE
from hybridqa.types import Usage
from tests.server.conftest import QUESTION, TEXTS

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
TEAPOT = (
    "🫖🫖 A cup and a saucer stand on the table. " * 30
    + "Ida Brandt glazed the Orlen teapot. "
    + "Another cup hangs on the wall 🍵. " * 150
).strip()
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"
WATCH = """
window.violations = [];
addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective));
"""
Dictate = Callable[..., "Dictation"]
Tab = Callable[..., Page]


class Dictation:
    """An engine that writes what it is told to."""

    def __init__(self, text: str, pause_s: float, fails: bool) -> None:
        self.text, self.pause_s, self.fails = text, pause_s, fails
        self.written, self.ended = 0, False

    async def stream(self, prompt_ids: Sequence[int], *_: Any) -> AsyncIterator[Delta]:
        try:
            for word in re.findall(r"\S*\s*", self.text):
                yield Delta(word, logprob=-0.2)
                self.written += 1
                await asyncio.sleep(self.pause_s)
            if self.fails:
                raise EngineError("its memory is full")
            yield Delta("", "stop", Usage(len(prompt_ids), self.written))
        finally:
            self.ended = True


@pytest.fixture
def dictate(store: HybridQA, monkeypatch: pytest.MonkeyPatch) -> Dictate:
    """A function that says what the next answers are."""

    def say(text: str, *, pause_s: float = 0.0, fails: bool = False) -> Dictation:
        engine = Dictation(text, pause_s, fails)

        async def ready() -> Dictation:
            return engine

        monkeypatch.setattr(store, "engine_ready", ready)
        return engine

    return say


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, NAMES)), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except PlaywrightError as error:
            why = str(error).splitlines()[0]
            pytest.skip(f"no Chromium: none of {', '.join(NAMES)} can be had, nor playwright's own ({why})")
        expect.set_options(timeout=20_000)  # a machine that runs other tests too
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium: Browser, url: str) -> Iterator[Tab]:
    """A function that opens the page; no script but its own may have run in it, or failed, when the test is over."""
    contexts: list[BrowserContext] = []
    wrong: list[str] = []

    def opened(address: str = url, **options: Any) -> Page:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        context.set_default_timeout(20_000)
        context.add_init_script(WATCH)
        page = context.new_page()
        page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("console", lambda said: said.type == "error" and wrong.append(said.text))
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        for page in context.pages:
            wrong += page.evaluate("violations")
        context.close()
    assert [said for said in wrong if not said.startswith("Failed to load resource")] == []


@pytest.fixture
def page(tab: Tab) -> Page:
    found = tab()
    expect(found.locator("#documents li").first).to_be_visible()
    return found


def ask(page: Page, question: str = QUESTION) -> Locator:
    """The turn of a question that was typed and sent."""
    page.get_by_label("Question", exact=True).fill(question)
    page.keyboard.press("Enter")
    return page.locator(".turn").last


def answered(page: Page, question: str = QUESTION) -> Locator:
    """The same, when it has been answered."""
    turn = ask(page, question)
    expect(turn.locator("details")).to_be_visible()
    return turn


def row(page: Page, text: str) -> Locator:
    return page.locator("#documents li", has_text=text)


# What the browser is told


def test_the_page_may_run_its_own_script_alone(url: str) -> None:
    done = httpx.get(url)
    assert done.status_code == 200 and done.text == PAGE and done.headers["content-type"].startswith("text/html")
    policy = dict(part.split(" ", 1) for part in done.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["connect-src"] == "'self'" and re.fullmatch(r"'sha256-[\w+/]+='", policy["script-src"])
    assert "unsafe" not in done.headers["content-security-policy"]
    assert done.headers["x-content-type-options"] == "nosniff" and done.headers["referrer-policy"] == "no-referrer"
    assert not re.findall(r"(?:src|href|action|url)\s*[=(]\s*[\"']?(?:https?:)?//", PAGE)  # it loads nothing
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|srcdoc", PAGE)


ATTEMPTS = """() => {
    const script = document.createElement("script"), link = document.createElement("a");
    const attempts = [
        () => { document.querySelector("main").innerHTML = "<img src='data:,broken' onerror='window.ran = 1'>"; },
        () => { script.append("window.ran = 2"); document.body.append(script); },
        () => { link.href = "javascript:window.ran = 3"; document.body.append(link); link.click(); },
        () => { setTimeout("window.ran = 4"); },
    ];
    for (const attempt of attempts) try { attempt(); } catch { /* refused */ }
}"""


@pytest.mark.parametrize("trusted_types", [True, False])
def test_markup_that_slips_in_is_not_run(chromium: Browser, url: str, trusted_types: bool) -> None:
    """Also where the browser knows no trusted types."""

    def older(route: Route) -> None:
        got = route.fetch()
        policy = got.headers["content-security-policy"].partition("; require-trusted-types-for")[0]
        route.fulfill(response=got, headers={**got.headers, "content-security-policy": policy})

    with chromium.new_context() as context:
        context.add_init_script(WATCH)
        page = context.new_page()
        if not trusted_types:
            page.route(f"{url}/", older)
        page.goto(url)
        page.evaluate(ATTEMPTS)
        page.wait_for_timeout(300)
        assert page.evaluate("window.ran") is None
        refused = set(page.evaluate("violations"))
        assert ("require-trusted-types-for" in refused) is trusted_types
        assert any(directive.startswith("script-src") for directive in refused)


# Answers


def test_it_asks_the_real_model_and_shows_what_it_says(page: Page, url: str) -> None:
    turn = answered(page)
    body = {"model": "hybridqa", "messages": [{"role": "user", "content": QUESTION}]}
    said = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
    words = re.findall(r"\w+", said["choices"][0]["message"]["content"].split(" [")[0])
    assert words and re.findall(r"\w+", turn.locator(".prose").inner_text())[: len(words)] == words
    expect(turn.locator("summary")).to_contain_text("Hybrid")
    expect(turn.locator("summary")).to_contain_text("confidence")
    turn.locator("summary").click()
    expect(turn.locator(".facts")).to_contain_text(said["hybridqa"]["reason"])
    expect(turn.locator(".facts")).to_contain_text(f"{said['usage']['prompt_tokens']} read, 8 written")


def test_an_answer_is_shown_as_it_is_written(page: Page, dictate: Dictate) -> None:
    dictate("one two three four five six seven eight nine ten", pause_s=0.25)
    turn = ask(page)
    expect(turn.locator(".waiting")).to_be_visible()
    expect(turn.locator(".prose")).to_contain_text("two")
    assert "ten" not in turn.locator(".prose").inner_text() and turn.locator("[aria-busy]").count() == 1
    expect(turn.locator("details")).to_be_visible()
    assert turn.locator(".prose").inner_text() == "one two three four five six seven eight nine ten"
    expect(page.locator("#heard")).to_have_text("one two three four five six seven eight nine ten")
    assert turn.locator("[aria-busy]").count() == 0


@pytest.mark.parametrize("way", ["button", "escape"])
def test_an_answer_can_be_stopped(page: Page, dictate: Dictate, way: str) -> None:
    engine = dictate("word " * 400, pause_s=0.02)
    turn = ask(page)
    expect(turn.locator(".prose")).to_contain_text("word word")
    if way == "button":
        page.wait_for_timeout(400)  # a double click on Send stops nothing
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    expect(turn).to_contain_text("Stopped.")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    for _ in range(100):
        if engine.ended:
            break
        page.wait_for_timeout(50)
    assert engine.ended and engine.written < 400
    dictate("Another answer.")
    expect(answered(page)).to_contain_text("Another answer.")


def test_a_conversation_goes_on(page: Page, dictate: Dictate) -> None:
    sent: list[Request] = []
    page.on("request", lambda request: request.method == "POST" and sent.append(request))
    dictate("Maren Holt designed it.")
    answered(page)
    dictate("It costs 89 euros.")
    answered(page, "What does the Lumen kettle cost?")
    messages = sent[1].post_data_json["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[1]["content"].startswith("Maren Holt designed it")
    assert messages[2]["content"] == "What does the Lumen kettle cost?"
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".turn")).to_have_count(0)
    expect(page.get_by_role("heading", name="Ask your documents")).to_be_visible()
    expect(page.get_by_label("Question", exact=True)).to_be_focused()
    answered(page)
    assert len(sent[2].post_data_json["messages"]) == 1


def test_mode_and_collection_are_chosen(page: Page, dictate: Dictate) -> None:
    dictate("The vault opens with quillfeather.")
    page.get_by_label("Collection").select_option("vault")
    expect(row(page, "secret")).to_be_visible()
    expect(page.locator("#documents li")).to_have_count(1)
    page.get_by_label("Answer from").select_option("hybridqa-retrieval")
    turn = answered(page, "What opens the vault?")
    expect(turn.locator("summary")).to_contain_text("Passages only")
    turn.locator("summary").click()
    expect(turn.locator(".facts")).to_contain_text("passages, collection vault")
    expect(turn.locator(".source")).to_contain_text("secret")
    page.reload()
    expect(page.get_by_label("Answer from")).to_have_value("hybridqa-retrieval")
    expect(page.get_by_label("Collection")).to_have_value("vault")


def test_an_abstention_is_shown_as_one(page: Page, dictate: Dictate) -> None:
    dictate("I don't know.")
    turn = answered(page)
    expect(turn.locator("summary")).to_contain_text("No answer was found")
    expect(turn.locator(".abstained")).to_have_count(1)
    turn.locator("summary").click()
    expect(turn.locator(".facts")).to_contain_text(f"an answer to '{QUESTION}'")


def test_the_module_behind_an_answer_is_named(
    page: Page, store: HybridQA, dictate: Dictate, tmp_path: Path, make_adapter: Any
) -> None:
    def publish(passed: bool) -> None:
        staged = make_adapter(tmp_path / "staged", store.model)
        [summary] = [one for one in store.documents("default") if one.doc_id == "kettle"]
        manifest = Manifest(
            module_id=store.module_id("kettle"),
            collection="default",
            documents={"kettle": summary.content_hash},
            base_model="tiny",
            base_model_hash=store.model.hash,
            rank=8,
            alpha=16,
            targets=["q_proj"],
        )
        store.registry.publish(staged, manifest, passed)

    def badge() -> Locator:
        page.reload()
        return row(page, "The kettle").locator(".badge")

    expect(badge()).to_have_text("No module")
    publish(passed=False)
    expect(badge()).to_have_text("Module rejected")
    publish(passed=True)
    expect(badge()).to_have_text("Module")
    dictate("Maren Holt designed the Lumen kettle.")
    turn = answered(page)
    expect(turn.locator("summary")).to_contain_text("1 module")
    turn.locator("summary").click()
    expect(turn.locator(".facts li", has_text="evidence")).to_contain_text(f"kettle {store.module_id('kettle')}@2")
    store.add_text("kettle", TEXTS["kettle"] + " It whistles.", title="The kettle")
    expect(badge()).to_have_text("Module outdated")
    store.add_text("kettle", TEXTS["kettle"], title="The kettle")


def test_markdown_is_shown_as_far_as_answers_have_it(page: Page, dictate: Dictate) -> None:
    dictate(
        "# Kettles\n\nA **bold** and an *inclined* word, `a * b * c`, 2 * 3 * 4 and snake_case_name.\n\n"
        "- first\n- second\n  goes on\n\n3. third\n4. fourth\n\n```\nif a < b:\n    **kwargs\n```\n\nThe [end](x)."
    )
    prose = answered(page).locator(".prose")
    assert prose.locator("strong").all_inner_texts() == ["bold"]
    assert prose.locator("em").all_inner_texts() == ["inclined"]
    assert prose.locator("p code").all_inner_texts() == ["a * b * c"]
    assert prose.locator("ul li").all_inner_texts() == ["first", "second\n  goes on"]
    assert prose.locator("ol li").all_inner_texts() == ["third", "fourth"]
    assert prose.locator("ol li").first.get_attribute("value") == "3"
    assert prose.locator("pre").inner_text() == "if a < b:\n    **kwargs"
    expect(prose.locator("p").nth(1)).to_contain_text("2 * 3 * 4 and snake_case_name.")
    expect(prose.locator("p").last).to_contain_text("The [end](x).")
    assert prose.locator("a").count() == 0  # where a model's link leads, nobody knows


# Citations


def test_a_citation_opens_its_passage_behind_emoji(page: Page, store: HybridQA, dictate: Dictate) -> None:
    store.add_text("pots/teapot ä.txt", TEAPOT, title="Pots 🫖 and cups", metadata={"team": "kitchen"})
    dictate("🫖🍵 Ida Brandt glazed the Orlen teapot.")
    turn = answered(page, "Who glazed the Orlen teapot?")
    cite = turn.locator(".prose .cite")
    expect(cite).to_have_count(1)
    assert re.fullmatch(r"🫖🍵 Ida Brandt glazed the Orlen teapot\. \d", turn.locator(".prose").inner_text())
    cite.click()
    reader = page.get_by_role("dialog", name="Pots 🫖 and cups")
    expect(reader.locator("mark")).to_have_text("Ida Brandt glazed the Orlen teapot.")
    expect(reader.locator("mark")).to_be_in_viewport()
    shown = reader.locator(".text").inner_text()
    assert len(shown) < len(TEAPOT) and shown in TEAPOT and shown.count("🫖") > 5
    reader.get_by_role("button", name="Show earlier text").click()
    expect(reader.get_by_role("button", name="Show earlier text")).to_have_count(0)
    expect(reader.locator(".facts")).to_contain_text("kitchen")
    while reader.get_by_role("button", name="Show later text").count():
        size = len(reader.locator(".text").inner_text())
        reader.get_by_role("button", name="Show later text").click()
        page.wait_for_timeout(50)
        assert len(reader.locator(".text").inner_text()) >= size
    assert reader.locator(".text").text_content() == TEAPOT
    assert reader.locator("mark").text_content() == "Ida Brandt glazed the Orlen teapot."
    page.keyboard.press("Escape")
    expect(reader).not_to_be_visible()
    expect(cite).to_be_focused()
    turn.locator(".source").click()  # the same, from the list
    expect(reader.locator("mark")).to_have_text("Ida Brandt glazed the Orlen teapot.")
    page.keyboard.press("Escape")
    store.remove("pots/teapot ä.txt")
    cite.click()  # gone since: the quote is still there to be read
    expect(page.locator("#reader [role=alert]")).to_contain_text("no document 'pots/teapot ä.txt'")
    expect(page.locator("#reader q")).to_have_text("Ida Brandt glazed the Orlen teapot.")


def test_markers_of_several_sources_open_each(page: Page, dictate: Dictate) -> None:
    dictate("The `[1]` stays. Holt made it [1, 2], **see [1]**.")
    turn = answered(page)
    expect(turn.locator(".prose .cites")).to_have_count(2)
    assert turn.locator(".prose .cite").all_inner_texts() == ["1", "2", "1"]
    assert turn.locator(".prose strong .cite").count() == 1 and turn.locator(".prose code").inner_text() == "[1]"
    for place in range(2):
        name = turn.locator(".prose .cite").nth(place).get_attribute("title")
        turn.locator(".prose .cite").nth(place).click()
        expect(page.get_by_role("dialog", name=name)).to_be_visible()
        expect(page.locator("#reader mark")).not_to_be_empty()
        page.get_by_role("button", name="Close", exact=True).click()


def test_a_document_that_changed_since_is_not_marked_wrongly(page: Page, store: HybridQA, dictate: Dictate) -> None:
    store.add_text("clock", "Old words. The Brenn clock was built by Tove Lind in Skagen.", title="The clock")
    dictate("The Brenn clock was built by Tove Lind in Skagen.")
    turn = answered(page, "Who built the Brenn clock?")
    store.add_text("clock", "All of it is new, and of other length, but for Tove Lind.", title="The clock")
    turn.locator(".cite").click()
    expect(page.locator("#reader .note")).to_contain_text("has changed since this answer")
    expect(page.locator("#reader q")).to_have_text("The Brenn clock was built by Tove Lind in Skagen.")
    assert page.locator("#reader mark").count() == 0
    store.remove("clock")


# What goes wrong


def test_a_failure_is_told_in_the_servers_words(page: Page, dictate: Dictate) -> None:
    dictate("Half of it ", fails=True)
    turn = ask(page)
    expect(turn.get_by_role("alert")).to_contain_text("the engine could not answer: its memory is full")
    expect(turn.locator(".prose")).to_contain_text("Half of it")
    dictate("All of it.")
    turn.get_by_role("button", name="Try again").click()
    expect(turn.locator("details")).to_be_visible()
    expect(turn.locator(".prose")).to_contain_text("All of it.")
    expect(turn.get_by_role("alert")).to_have_count(0)
    expect(ask(page, "why " * 2000).get_by_role("alert")).to_contain_text("the question makes a prompt of")
    page.route("**/v1/chat/completions", lambda route: route.abort())
    expect(ask(page).get_by_role("alert")).to_contain_text("cannot be reached")


def test_a_stream_is_read_as_the_standard_has_it(page: Page) -> None:
    """Comments, other line ends, a field without a space, and an event cut off: as proxies may hand them on."""
    body = (
        ': keep-alive\n\ndata: {"choices":[{"delta":{"content":"Of "}}]}\r\n\r\n: more\r\rid: 7\n'
        'data:{"choices":[{"delta":\ndata:{"content":"two 🫖"}}]}\n\n'
    )
    page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    turn = ask(page)
    expect(turn.locator(".prose")).to_have_text("Of two 🫖")
    expect(turn.get_by_role("alert")).to_contain_text("ended before the answer did")
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"))
    expect(ask(page).get_by_role("alert")).to_contain_text("The server answered with status 502.")


def test_what_a_document_brings_stays_text(page: Page, store: HybridQA, dictate: Dictate) -> None:
    name, text = f"{HOSTILE.replace('/', '')}.txt", f"{HOSTILE} The Zorn lamp was made by <b>Per Aas</b>. {HOSTILE}"
    store.add_text(HOSTILE, text, title=HOSTILE, metadata={HOSTILE: HOSTILE})
    page.set_input_files("#files", {"name": name, "mimeType": "text/plain", "buffer": text.encode()})
    expect(page.locator("#uploads")).to_contain_text("Added")
    page.set_input_files("#files", {"name": "<b>.bin", "mimeType": "x/y", "buffer": b"\0\1"})
    expect(page.locator("#uploads .failed")).to_contain_text("<b>.bin")
    dictate(f"{HOSTILE} The Zorn lamp was made by <b>Per Aas</b>. `{HOSTILE}`\n\n```\n{HOSTILE}\n```\n- {HOSTILE}")
    turn = answered(page, f"{HOSTILE} Who made the Zorn lamp?")
    assert turn.locator(".prose").inner_text().count(HOSTILE) == 4
    turn.locator("summary").click()
    turn.locator(".source").first.click()
    expect(page.locator("#reader mark")).not_to_be_empty()
    expect(page.locator("#reader .text")).to_contain_text(HOSTILE)
    page.keyboard.press("Escape")
    row(page, HOSTILE).get_by_role("button").first.click()
    expect(page.locator("#reader .facts")).to_contain_text(HOSTILE)
    page.keyboard.press("Escape")
    store.remove(HOSTILE)
    row(page, HOSTILE).first.get_by_role("button").first.click()
    expect(page.locator("#reader [role=alert]")).to_contain_text("<script>")
    page.keyboard.press("Escape")
    assert page.evaluate("document.querySelectorAll('img, .app b, .app script, dialog script, iframe').length") == 0
    for document in store.documents("default"):
        if "onerror" in document.doc_id:
            store.remove(document.doc_id)


# Documents


def test_files_are_added_by_picker_and_by_drop_and_removed(page: Page, dictate: Dictate) -> None:
    with page.expect_file_chooser() as chosen:
        page.get_by_role("button", name="Add documents").click()
    text = b"# Ladders\n\nThe Holm ladder was built by Siri Moe."
    chosen.value.set_files([{"name": "ladder.md", "mimeType": "text/markdown", "buffer": text}])
    expect(page.locator("#uploads li")).to_have_text(re.compile("ladder.md Added, 1 passage"))
    expect(row(page, "ladder.md")).to_be_visible()
    dictate("The Holm ladder was built by Siri Moe.")
    turn = answered(page, "Who built the Holm ladder?")
    turn.locator(".cite").click()
    expect(page.locator("#reader mark")).to_contain_text("Siri Moe")
    page.keyboard.press("Escape")

    files = """(files) => {
        const data = new DataTransfer();
        for (const [name, text] of files) data.items.add(new File([text], name, {type: "text/plain"}));
        return data;
    }"""
    data = page.evaluate_handle(files, [["ladder.md", text.decode()], ["stool.txt", "A stool."], ["x.bin", "\0"]])
    page.dispatch_event("#talk", "dragover", {"dataTransfer": data})
    expect(page.locator("#drop")).to_have_text("Drop to add to default")
    page.dispatch_event("#talk", "drop", {"dataTransfer": data})
    expect(page.locator("#drop")).to_be_hidden()
    expect(page.locator("#uploads li")).to_have_count(4)
    expect(page.locator("#uploads li").nth(1)).to_contain_text("Already here, unchanged")
    expect(page.locator("#uploads li").nth(2)).to_contain_text("Added, 1 passage")
    expect(page.locator("#uploads .failed")).to_contain_text("'x.bin'")
    page.get_by_role("button", name="Clear this list").click()
    expect(page.locator("#uploads")).to_be_hidden()

    for name in ("ladder.md", "stool.txt"):
        remove = row(page, name).get_by_role("button", name="Remove")
        remove.click()
        expect(page.get_by_role("button", name="Cancel")).to_be_focused()
        page.keyboard.press("Enter")
        expect(remove).to_be_focused()
        remove.click()
        page.get_by_role("dialog").get_by_role("button", name="Remove").click()
        expect(row(page, name)).to_have_count(0)
        expect(page.locator("#toast")).to_contain_text("was removed")


def test_a_long_upload_says_how_far_it_is_and_what_was_wrong(page: Page) -> None:
    session = page.context.new_cdp_session(page)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 400_000}
    session.send("Network.emulateNetworkConditions", slow)
    page.set_input_files("#files", {"name": "picture.png", "mimeType": "image/png", "buffer": b"\x89PNG\0" * 80_000})
    expect(page.locator("#uploads progress")).to_be_visible()
    expect(page.locator("#uploads .state")).to_have_text(re.compile(r"sending, \d+%"))
    expect(page.locator("#uploads .failed .state")).to_contain_text("picture.png")
    expect(page.locator("#uploads progress")).to_have_count(0)


def test_many_documents_are_listed_in_pieces(page: Page, store: HybridQA) -> None:
    for number in range(120):
        store.add_text(f"leaf-{number:03}", f"Leaf {number}.", collection="leaves")
    page.reload()
    page.get_by_label("Collection").select_option("leaves")
    expect(page.locator("#documents li")).to_have_count(100)
    expect(page.locator("#panel-title")).to_have_text("leaves 100+")
    page.get_by_role("button", name="Show more").click()
    expect(page.locator("#documents li")).to_have_count(120)
    expect(page.get_by_role("button", name="Show more")).to_be_hidden()
    assert len(set(page.locator("#documents .title").all_inner_texts())) == 120


# Keys


def test_a_key_is_asked_for_kept_and_forgotten(tab: Tab, keyed: tuple[HybridQA, str]) -> None:
    qa, address = keyed
    token, _ = qa.add_key("reader", "ask", ["vault"])
    page = tab(address)
    dialog = page.get_by_role("dialog", name="Key")
    field = page.get_by_label("Your key for this server")
    expect(dialog).to_contain_text("no key was sent")
    expect(field).to_be_focused()
    for wrong, told in (("hqa-wrong", "not known here"), ("schlüssel", "letters, digits"), ("two words", "no spaces")):
        field.fill(wrong)
        page.keyboard.press("Enter")
        expect(dialog).to_contain_text(told)
    field.fill(f" {token} ")
    dialog.get_by_role("button", name="Use key").click()
    expect(row(page, "secret")).to_be_visible()
    expect(dialog).to_be_hidden()
    assert page.get_by_role("button", name="Add documents").count() == 0  # it may read alone
    assert page.get_by_role("button", name="Remove").count() == 0
    answered(page, "What opens the vault?")
    page.set_input_files("#files", {"name": "a.txt", "mimeType": "text/plain", "buffer": b"A."})
    expect(page.locator("#toast")).to_contain_text("may read, but not add")
    assert token not in page.content() and page.evaluate("Object.keys(localStorage).length") == 0
    page.reload()
    expect(row(page, "secret")).to_be_visible()  # kept while the tab is open
    page.get_by_role("button", name="Key").click()
    dialog.get_by_role("button", name="Forget key").click()
    expect(dialog).to_contain_text("no key was sent")
    assert page.locator("#documents li").count() == 0 and page.locator(".turn").count() == 0
    page.keyboard.press("Escape")
    expect(page.locator("#nothing")).to_contain_text("no key was sent")
    ask(page, "What opens the vault?")
    expect(dialog).to_be_visible()  # a question asks for it again, and goes on with it
    field.fill(token)
    page.keyboard.press("Enter")
    expect(page.locator(".turn details")).to_be_visible()
    expect(row(page, "secret")).to_be_visible()


# Hands and eyes


def test_it_can_be_used_with_the_keyboard_alone(page: Page, dictate: Dictate) -> None:
    dictate("Maren Holt designed the Lumen kettle. [1]")
    page.reload()
    expect(row(page, "The kettle")).to_be_visible()
    question = page.get_by_label("Question", exact=True)
    expect(question).to_be_focused()
    page.evaluate("document.body.tabIndex = -1; document.body.focus(); document.body.removeAttribute('tabindex')")
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the question")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(question).to_be_focused()
    page.keyboard.type("Who designed")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("the Lumen kettle?")
    assert question.input_value() == "Who designed\nthe Lumen kettle?"
    page.keyboard.press("Enter")
    expect(page.locator(".turn details")).to_be_visible()
    assert page.locator(".asked").inner_text() == "Who designed\nthe Lumen kettle?"
    for stop in ("summary", ".source", ".cite"):  # backwards from the question
        page.keyboard.press("Shift+Tab")
        expect(page.locator(f".turn {stop}")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#reader mark")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".turn .cite")).to_be_focused()

    page.evaluate("document.activeElement.blur()")
    page.locator(".skip").focus()
    stops: list[tuple[str, bool]] = []
    for _ in range(60):
        stops.append(
            tuple(
                page.evaluate(
                    """() => {
                        const found = document.activeElement, style = getComputedStyle(found);
                        const box = found.closest(".box:has(textarea:focus)");
                        const ring = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
                        return [found.outerHTML, ring || box !== null];
                    }"""
                )
            )
        )
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body || document.activeElement.className === 'skip'"):
            break
    assert all(ringed for _, ringed in stops), [html[:80] for html, ringed in stops if not ringed]
    reached = {html for html, _ in stops}
    controls = page.locator("button:visible, select:visible, textarea:visible, summary:visible, a:visible")
    assert set(controls.evaluate_all("found => found.map((one) => one.outerHTML)")) <= reached
    nameless = re.findall(r"- (?:button|combobox|textbox|link|dialog)(?: \[.*\])?:?$", page.aria_snapshot(), re.M)
    assert not nameless


CONTRAST = """() => {
    const light = (colour) => {
        const linear = (one) => one <= .04045 ? one / 12.92 : ((one + .055) / 1.055) ** 2.4;
        const [r, g, b] = colour.map((one) => linear(one / 255));
        return .2126 * r + .7152 * g + .0722 * b;
    };
    const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const ground = (node) => {
        for (let at = node; at; at = at.parentElement) {
            const [r, g, b, a = 1] = parts(getComputedStyle(at).backgroundColor);
            if (a > .99) return [r, g, b];
        }
        return [255, 255, 255];
    };
    const poor = [];
    for (const node of document.querySelectorAll("body *")) {
        const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
        if (!own || !node.checkVisibility() || node.closest(".unseen, .skip, script, style")) continue;
        const [a, b] = [light(parts(getComputedStyle(node).color).slice(0, 3)), light(ground(node))];
        const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
        if (ratio < 4.5) poor.push(`${node.className} ${ratio.toFixed(2)} ${node.textContent.slice(0, 30)}`);
    }
    return [light(ground(document.querySelector("main"))), poor];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_light_or_dark_as_the_reader_has_it(tab: Tab, dictate: Dictate, scheme: str) -> None:
    dictate("Maren Holt designed the Lumen kettle [1]. It has `code`.\n\n```\nand more\n```")
    page = tab(color_scheme=scheme, reduced_motion="reduce")
    expect(row(page, "The kettle")).to_be_visible()
    page.set_input_files("#files", {"name": "x.bin", "mimeType": "x/y", "buffer": b"\0"})
    expect(page.locator("#uploads .failed")).to_be_visible()
    answered(page).locator("summary").click()
    dictate("I don't know.")
    answered(page)
    expect(ask(page, "why " * 2000).get_by_role("alert")).to_be_visible()
    lightness, poor = page.evaluate(CONTRAST)
    assert poor == [] and (lightness > 0.8 if scheme == "light" else lightness < 0.05)
    page.locator(".cite").first.click()
    expect(page.locator("#reader mark")).to_be_visible()
    assert page.evaluate(CONTRAST)[1] == []
    moving = "document.getAnimations().filter((one) => one.playState === 'running').length"
    assert page.evaluate(moving) == 0


def test_it_fits_a_phone(tab: Tab, store: HybridQA, dictate: Dictate) -> None:
    long = "a-name-without-any-space-" * 6
    store.add_text(long, "The Lumen kettle of " + "x" * 300, title=long)
    dictate(f"Maren Holt designed the Lumen kettle [1]. {'y' * 200}\n\n```\n{'z ' * 200}\n```")
    page = tab(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True, reduced_motion="reduce")

    def fits() -> None:
        wide = page.evaluate(
            """() => [...document.querySelectorAll("html, body, main, .turn, dialog[open], dialog[open] *")]
                .filter((one) => !one.closest("pre, .unseen") && one.getBoundingClientRect().right > innerWidth + 1)
                .map((one) => one.outerHTML.slice(0, 80))
                .concat(document.documentElement.scrollWidth > innerWidth ? ["the page"] : [])
                .concat(document.querySelector("main").scrollWidth > innerWidth ? ["the conversation"] : [])"""
        )
        small = page.evaluate(
            """() => [...document.querySelectorAll("button, select, summary, textarea, input")]
                .filter((one) => one.checkVisibility() && !one.closest(".unseen") && !one.matches(".cite"))
                .map((one) => [one.getBoundingClientRect(), one.outerHTML.slice(0, 80)])
                .filter(([box]) => box.height < 43.9 || box.width < 43.9).map(([_, html]) => html)"""
        )
        assert (wide, small) == ([], [])

    fits()
    page.tap("#question")
    page.get_by_label("Question", exact=True).fill(QUESTION)
    page.tap("#send")
    turn = page.locator(".turn")
    expect(turn.locator("details")).to_be_visible()
    turn.locator("summary").tap()
    fits()
    box = turn.locator(".cite").first.bounding_box()
    assert box is not None
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] - 8)  # beside it: fingers are wide
    expect(page.locator("#reader mark")).to_be_visible()
    fits()
    page.get_by_role("button", name="Close", exact=True).tap()
    page.get_by_role("button", name="Documents", exact=True).tap()
    sheet = page.get_by_role("dialog", name="Documents")
    expect(sheet.locator("#documents li", has_text="The kettle")).to_be_visible()
    fits()
    sheet.get_by_role("button", name=f"Remove {long}").tap()
    fits()
    page.keyboard.press("Escape")
    sheet.locator("#documents li", has_text=long).locator(".open").tap()
    expect(page.locator("#reader .text")).to_contain_text("xxx")
    fits()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Close documents").tap()
    page.get_by_role("button", name="Key").tap()
    fits()
    page.keyboard.press("Escape")
    page.set_viewport_size({"width": 1200, "height": 700})  # turned, or a window made wide
    expect(page.locator("aside #documents")).to_be_visible()
    store.remove(long)
