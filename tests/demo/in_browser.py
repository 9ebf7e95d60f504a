"""The demo page in headless Chromium: `make test-browser`, which builds the page in build/demo.

It computes PyTorch's numbers, and requests nothing from elsewhere.
"""

import io
import re
import shutil
import threading
import wave
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from chromium import browser as browser
from chromium import sync_api
from lambdanets import audio, explain, text, train
from lambdanets.data.audio.features import Features

PAGE = Path(__file__).parents[2] / "build" / "demo"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def serve(folder: Path) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    assert (PAGE / "facts.json").exists(), "there is no page: make demo-page"
    server = serve(PAGE)
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Any]:
    """Return a function that opens the page; at the end it has requested nothing else and logged no error."""
    contexts, requests, errors = [], [], []

    def begin(at: str = address, **options: Any) -> Any:
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options))
        page = contexts[-1].new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(at)
        return page

    yield begin
    for context in contexts:
        context.close()
    allowed = ("data:", "blob:", "http://127.0.0.1:")
    assert [url for url in requests if not url.startswith(allowed)] == []
    assert errors == []


@pytest.fixture(scope="module")
def digits() -> Any:
    return train.load_run("lambda_resnet_digits")


def test_the_class_and_every_map_of_a_picture(open_page: Any, digits: Any) -> None:
    levels = np.random.default_rng(0).random((8, 8), np.float32)
    data = digits.config.data
    images = torch.from_numpy((levels - data.mean[0]) / data.std[0])[None, None].float()
    model = digits.model().eval()
    page = open_page()
    found = page.evaluate("levels => demo.classifyPicture(levels)", levels.ravel().tolist())
    with torch.no_grad():
        np.testing.assert_allclose(found, model(images)[0].numpy(), atol=1e-4)
    explanation = explain(model, images)
    assert page.locator("#layer option").count() == len(explanation.layers)
    for index, name in enumerate(explanation.layers):
        maps = explanation.layer(name)
        for query in (0, maps.q.shape[1] // 2, maps.q.shape[1] - 1):
            for part in ("content", "position", "sum"):
                expected = maps.weights(torch.tensor([query]), part)[:, 0, :, 0]
                for head in range(maps.num_heads):
                    drawn = page.evaluate(f"demo.map({index}, {query}, {head}, '{part}')")
                    atol = 1e-5 * float(expected.abs().max())
                    np.testing.assert_allclose(drawn, expected[head].numpy(), atol=atol)


def test_a_drawn_digit_is_recognised_and_the_pointer_chooses_the_query(open_page: Any) -> None:
    page = open_page()
    draw(page, [(0.35, 0.15), (0.65, 0.15), (0.65, 0.85), (0.35, 0.85), (0.35, 0.15)])
    expect(page, "#pictureResult", "0")
    page.locator("#stage").scroll_into_view_if_needed()
    box = page.locator("#stage").bounding_box()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.1 * box["height"])
    assert page.evaluate("layers[0].query(state.query)") == 7
    page.locator("#stage").press("ArrowDown")
    assert page.evaluate("layers[0].query(state.query)") == 15
    page.click("#clear")
    assert page.inner_text("#pictureResult") == "Nothing drawn yet."


def test_a_picture_of_a_digit_on_light_paper(open_page: Any) -> None:
    picture = Image.new("L", (200, 200), 240)
    ImageDraw.Draw(picture).ellipse((60, 20, 140, 180), outline=10, width=22)
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    page = open_page()
    page.set_input_files("#pictureFile", upload("0.png", "image/png", buffer.getvalue()))
    expect(page, "#pictureResult", "0")
    page.set_input_files("#pictureFile", upload("x.png", "image/png", b"none"))
    expect(page, "#pictureResult", "x.png is not")


def upload(name: str, kind: str, content: bytes) -> dict[str, Any]:
    return {"name": name, "mimeType": kind, "buffer": content}


def expect(page: Any, selector: str, start: str) -> None:
    """Wait until the text of an element begins in this way."""
    sync_api.expect(page.locator(selector)).to_have_text(re.compile("^" + re.escape(start)))


def draw(page: Any, corners: list[tuple[float, float]]) -> None:
    page.locator("#drawing").scroll_into_view_if_needed()
    box = page.locator("#drawing").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=8)
    page.mouse.up()


def recording() -> np.ndarray:
    """Return 16-bit samples: a rising tone in noise."""
    time = np.arange(4321) / 8000
    tone = np.sin(2 * np.pi * (300 + 900 * time) * time) * np.exp(-3 * time)
    noise = np.random.default_rng(0).normal(size=len(time))
    return np.round(8000 * tone + 300 * noise).astype(np.int16)


def test_the_digit_of_a_recording(open_page: Any) -> None:
    run = audio.load_run("lambda_audio")
    samples = recording()
    features = Features(run.config.data)(torch.from_numpy(samples / 32768).float())
    with torch.no_grad():
        expected = run.model().eval()(features[None])[0].numpy()
    page = open_page()
    found = page.evaluate("samples => demo.classifySound(samples)", (samples / 32768).tolist())
    np.testing.assert_allclose(found, expected, atol=1e-4)
    silence = page.evaluate("demo.classifySound(new Float32Array(4000))")
    assert np.isfinite(silence).all()
    # A file goes through the browser's decoder to the same class.
    silent = page.inner_text("#soundClasses")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 8000, len(samples), "NONE", ""))
        file.writeframes(samples.tobytes())
    page.set_input_files("#soundFile", upload("a.wav", "audio/wav", buffer.getvalue()))
    sync_api.expect(page.locator("#soundClasses")).not_to_have_text(silent, use_inner_text=True)
    expect(page, "#soundResult", run.classes[expected.argmax()] + ",")
    page.set_input_files("#soundFile", upload("b.wav", "audio/wav", b"none"))
    expect(page, "#soundResult", "b.wav is not")


def test_a_refused_microphone_is_one_sentence(open_page: Any) -> None:
    page = open_page(permissions=[])
    page.click("#record")
    expect(page, "#soundResult", "The browser gave no microphone")


def test_the_microphone_is_recorded(open_page: Any) -> None:
    """Chromium's artificial microphone beeps: some digit is the answer."""
    page = open_page(permissions=["microphone"])
    page.click("#record")
    expect(page, "#soundResult", "Listening")
    page.wait_for_selector("#soundClasses li")
    assert page.locator("#record").is_enabled()


def test_the_text_is_that_of_generate(open_page: Any) -> None:
    run = text.load_run("lambda_lm_mini")
    tokens = torch.tensor([[run.classes.index(each) for each in "ROMEO:\n"]])
    with torch.no_grad():
        continued = list(run.model().eval().generate(tokens, 20, temperature=0))
    expected = "".join(run.classes[int(token)] for token in continued)
    page = open_page()
    assert page.evaluate("demo.write('ROMEO:\\n', 20)") == expected
    page.fill("#prompt", "ROMEO:\n€")
    page.select_option("#bold", "0")
    page.click("#write")
    expect(page, "#speed", "400 characters")
    assert page.inner_text("#text").startswith("ROMEO:\n" + expected)
    assert "1 characters of the beginning are unknown" in page.inner_text("#speed")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_wide_and_narrow_light_and_dark(open_page: Any, width: int, scheme: str, tmp_path: Path) -> None:
    page = open_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    draw(page, [(0.3, 0.15), (0.7, 0.15), (0.45, 0.85)])
    page.wait_for_selector("#pictureClasses li")
    page.evaluate("samples => demo.classifySound(samples)", (recording() / 32768).tolist())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}[scheme]


def test_without_scripts_there_is_a_sentence(open_page: Any) -> None:
    page = open_page(java_script_enabled=False)
    assert page.locator("#page").is_hidden()
    assert "needs scripts" in page.inner_text("body")


@pytest.mark.parametrize("damage", ["one byte", "half", "missing"])
def test_a_damaged_network_is_one_sentence(browser: Any, tmp_path: Path, damage: str) -> None:
    shutil.copytree(PAGE, tmp_path / "page", ignore=shutil.ignore_patterns("runtime"))
    (tmp_path / "page" / "runtime").symlink_to(PAGE / "runtime")
    file = tmp_path / "page" / "lambda_lm_mini.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content if damage == "one byte" else content[: len(content) // 2])
    if damage == "missing":
        file.unlink()
    server = serve(tmp_path / "page")
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{server.server_port}/")
    page.click("#write")
    page.wait_for_selector("#failure:visible")
    assert "lambda_lm_mini.onnx is missing or damaged" in page.inner_text("#failure")
    page.close()
    server.shutdown()


def test_a_browser_without_wasm_is_one_sentence(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.add_init_script("delete globalThis.WebAssembly")
    page.goto(address)
    page.click("#write")
    page.wait_for_selector("#failure:visible")
    assert "no WebAssembly" in page.inner_text("#failure")
    page.close()
