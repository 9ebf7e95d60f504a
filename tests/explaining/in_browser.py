"""The page of an explanation in headless Chromium: `make test-browser`.

It shows the numbers that Python computes, by pointer, keyboard and touch, and uses no network.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from chromium import browser as browser
from lambdanets import Explanation, LambdaLayer1d, LambdaLayer2d, LambdaLayer3d, explain
from lambdanets.explaining import Approximation, Mark, Scene

TOLERANCE = 2e-3  # of the end of the colour scale: the page has 11 bits of each number
TIMES = "\N{MULTIPLICATION SIGN}"


def image() -> Explanation:
    layers = [
        LambdaLayer2d(3, 8, scope=(3, 5), dim_u=2, num_heads=2),
        LambdaLayer2d(8, 8, grid=6, position_bias=True),
        LambdaLayer2d(8, 8, scope=3, dilation=2, normalize="l2"),
        nn.AvgPool2d(2),
        LambdaLayer2d(8, 8, position=False),
    ]
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    scene = Scene(
        title="cat.jpg", model="a model", picture=Image.fromarray(pixels),
        labels=[("cat", 0.9), ("dog", 0.1)],
        marks=[Mark("cat", (10.0, 10.0, 30.0, 30.0), 0.9), Mark("dog", (60.0, 40.0, 78.0, 58.0), 0.8)],
    )  # fmt: skip
    found = explain(nn.Sequential(*layers).eval(), torch.randn(1, 3, 6, 8), scene=scene)
    found.approximations.append(Approximation("occlusion", "cat", torch.randn(12, 16)))
    return found


def text() -> Explanation:
    options: dict[str, Any] = {"scope": 4, "causal": True, "norm": "rms", "num_heads": 4}
    layers = [
        LambdaLayer1d(6, 8, **options, key_heads=2, decay=True, short_conv=2, gate=True, out_norm=True),
        LambdaLayer1d(8, 8, **options, normalize="l2", dilation=2),
        LambdaLayer1d(8, 8, **options, normalize="none", decay=True, dim_u=2),
        LambdaLayer1d(8, 8, causal=True, position=False),
    ]
    words = list("A lambda\nlayer sums up.")
    scene = Scene(title="Text", model="a model", tokens=words)
    return explain(nn.Sequential(*layers).eval(), torch.randn(1, 6, len(words)), scene=scene)


def sound() -> Explanation:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = LambdaLayer1d(6, 8, scope=5, norm="rms")

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.layer(x, mask=mask)

    scene = Scene(title="yes.wav", seconds=1.5, picture=Image.new("RGB", (20, 8), "gray"))
    return explain(Masked().eval(), (torch.randn(1, 6, 20), torch.arange(20)[None] < 17), scene=scene)


def volume() -> Explanation:
    return explain(LambdaLayer3d(1, 8, scope=3).eval(), torch.randn(1, 1, 4, 5, 6))


KINDS = {"image": image, "text": text, "sound": sound, "volume": volume}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Explanation, Path]]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pages")
    made = {kind: make() for kind, make in KINDS.items()}
    return {kind: (each, each.save(folder / f"{kind}.html")) for kind, each in made.items()}


class Opened:
    """A page in the browser, with the requests that it makes and the errors that it logs."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", self._log)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(file.as_uri())

    def _log(self, message: Any) -> None:
        # Chromium's advice on the tests' own reading of the pixels.
        if "getImageData" not in message.text:
            self.errors.append(message.text)

    def settle(self) -> None:
        """Wait until the page has drawn what was chosen."""
        self.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def point(self, y: float, x: float, *, click: bool = False) -> None:
        """Move the pointer to fractions of the stage."""
        self.page.locator("#stage").scroll_into_view_if_needed()
        box = self.page.locator("#stage").bounding_box()
        place = (box["x"] + x * box["width"], box["y"] + y * box["height"])
        self.page.mouse.move(*place)
        if click:
            self.page.mouse.click(*place)
        self.settle()

    def shown(self) -> np.ndarray:
        """The weights that are drawn."""
        return np.array(self.page.evaluate("Array.from(window.explanation.current())"))

    @property
    def query(self) -> int:
        return self.page.evaluate("window.explanation.query()")


@pytest.fixture
def open_page(browser: Any, pages: dict[str, tuple[Explanation, Path]]) -> Iterator[Any]:
    opened: list[Opened] = []

    def begin(kind: str, **options: Any) -> Opened:
        opened.append(Opened(browser, pages[kind][1], **options))
        return opened[-1]

    yield begin
    for each in opened:
        urls = [url for url in each.requests if not url.startswith("data:")]
        each.context.close()
        assert len(urls) == 1, "the page itself is the only request"
        assert urls[0].startswith("file:")
        assert each.errors == []


def assert_shown(numbers: np.ndarray, expected: torch.Tensor, scale: float = 0.0) -> None:
    exact = expected.double().numpy().ravel()
    np.testing.assert_allclose(numbers, exact, rtol=0, atol=TOLERANCE * max(np.abs(exact).max(), scale))


@pytest.mark.parametrize("kind", KINDS)
def test_the_browser_computes_the_maps_of_python(kind: str, open_page: Any, pages: Any) -> None:
    """Every layer, part, head and column, at several queries."""
    opened, explanation = open_page(kind), pages[kind][0]
    for index, name in enumerate(explanation.layers):
        maps = explanation.layer(name)
        n, scales = maps.q.shape[1], maps.scales()
        for query in sorted({0, n // 3, n - 1}):
            for part in ("content", "position", "sum"):
                expected = maps.weights(torch.tensor([query]), part)[:, 0]
                for head in range(maps.num_heads):
                    for column in range(maps.dim_u):
                        call = f"window.explanation.weights({index}, {query}, {head}, '{part}', {column})"
                        numbers = np.array(opened.page.evaluate(call))
                        assert_shown(numbers, expected[head, :, column], scales[part][head])


def test_the_pointer_chooses_the_query_and_a_click_keeps_it(open_page: Any, pages: Any) -> None:
    opened, explanation = open_page("image"), pages["image"][0]
    page = opened.page
    page.select_option("#layer", "1")
    page.locator("label", has_text="position").click()
    page.select_option("#head", "2")
    for y, x in ((0.05, 0.05), (0.6, 0.3), (0.95, 0.95)):
        opened.point(y, x)
        query = (int(y * 6), int(x * 8))
        expected = explanation.maps(1, query, 2, "position")
        assert_shown(opened.shown(), expected)
        # The drawing: the colour says the sign, the opacity the size.
        scale = explanation.layer(1).scales()["position"][2]
        pixels = page.evaluate(
            "(() => { const map = document.getElementById('map');"
            "return Array.from(map.getContext('2d').getImageData(0, 0, map.width, map.height).data); })()"
        )
        rgba = np.array(pixels).reshape(6, 8, 4)
        opacity = (expected.numpy() / scale).clip(-1, 1)
        np.testing.assert_allclose(rgba[..., 3], 255 * 0.85 * np.abs(opacity), atol=2)
        strong = np.abs(opacity) > 0.2
        assert ((rgba[..., 0] > rgba[..., 2]) == (opacity > 0))[strong].all()
        assert f"row {query[0]}, column {query[1]}, of 6 {TIMES} 8" in page.inner_text("#readout")
    opened.point(0.3, 0.3, click=True)
    kept = opened.query
    opened.point(0.9, 0.9)
    assert opened.query == kept == 1 * 8 + 2
    assert "Under the pointer" in page.inner_text("#readout")
    page.locator("#stage").press("Escape")
    opened.point(0.9, 0.8)
    assert opened.query == 5 * 8 + 6


def test_the_keyboard_moves_the_query(open_page: Any, pages: Any) -> None:
    opened, explanation = open_page("image"), pages["image"][0]
    opened.page.select_option("#layer", "0")
    opened.page.locator("#stage").focus()
    start = opened.query
    for key, change in (
        ("ArrowRight", 1),
        ("ArrowDown", 8),
        ("ArrowLeft", -1),
        ("ArrowUp", -8),
        ("ArrowUp", -8),
    ):
        opened.page.keyboard.press(key)
        opened.settle()
        start += change
        assert opened.query == start
    expected = explanation.maps(0, start, 0)
    assert_shown(opened.shown(), expected[..., 0])
    opened.page.select_option("#column", "1")
    assert_shown(opened.shown(), expected[..., 1])


def test_scales_switches_and_objects(open_page: Any, pages: Any) -> None:
    opened, explanation = open_page("image"), pages["image"][0]
    page = opened.page
    page.select_option("#layer", "1")
    opened.settle()
    scale = explanation.layer(1).scales()["sum"][0]
    high = float(page.inner_text("#high"))
    assert high == pytest.approx(scale, rel=0.06)
    opened.point(0.5, 0.5)
    assert float(page.inner_text("#high")) == high, "one scale for all queries"
    assert "2 % of the weights" in page.inner_text("#clipping")
    page.check("#own")
    opened.settle()
    largest = float(explanation.maps(1, (3, 4), 0).abs().max())
    assert float(page.inner_text("#high")) == pytest.approx(largest, rel=0.06)
    page.check("#weighted")
    assert_shown(opened.shown(), explanation.maps(1, (3, 4), 0, weighted=True))
    page.select_option("#object", "1")
    opened.settle()
    assert opened.query == (49 * 6 // 60) * 8 + 69 * 8 // 80
    # The last layer has no position part. Layers have other grids: the place in the picture stays.
    page.select_option("#layer", "3")
    opened.settle()
    assert f"of 3 {TIMES} 4" in page.inner_text("#readout")
    assert page.is_disabled("input[value=position]")
    assert not page.is_disabled("input[value=content]")
    page.select_option("#layer", "4")
    opened.settle()
    assert "approximation" in page.inner_text("#clipping")
    assert "approximate" in page.inner_text("#layer option:checked")
    assert_shown(opened.shown(), explanation.approximations[0].values)


def test_a_text_is_coloured_up_to_the_query(open_page: Any, pages: Any) -> None:
    opened, explanation = open_page("text"), pages["text"][0]
    page, words = opened.page, explanation.scene.tokens
    page.select_option("#layer", "0")
    page.locator("#stage span[data-index='12']").hover()
    opened.settle()
    assert opened.query == 12
    assert_shown(opened.shown(), explanation.maps(0, 12, 0))
    assert page.locator("#stage span.query").inner_text() == words[12]
    assert page.locator("#stage span.later").count() == len(words) - 13
    assert page.locator("#stage").inner_text().replace("↵", "") == "".join(words)


def test_slices_of_a_volume(open_page: Any, pages: Any) -> None:
    opened, explanation = open_page("volume"), pages["volume"][0]
    opened.page.locator("#stage").focus()
    opened.page.keyboard.press("PageUp")
    opened.settle()
    assert opened.page.input_value("#slice") == "1"
    assert_shown(opened.shown(), explanation.maps(0, opened.query, 0))
    opened.page.keyboard.press("Escape")
    opened.page.evaluate("document.getElementById('slice').value = 3")
    opened.page.dispatch_event("#slice", "input")
    opened.point(0.1, 0.1)
    assert opened.query == 3 * 30


@pytest.mark.parametrize("kind", KINDS)
def test_a_phone_has_no_sideways_scrolling_and_takes_taps(kind: str, open_page: Any) -> None:
    opened = open_page(kind, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    page = opened.page
    width, inner = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width <= inner == 360
    assert page.inner_text("#hint").startswith("Tap a position")
    before = opened.query
    box = page.locator("#stage").bounding_box()
    page.touchscreen.tap(box["x"] + 30, box["y"] + 22)
    opened.settle()
    assert opened.query != before
    sizes = page.evaluate(
        "[...document.querySelectorAll('p, select, label')]"
        ".map(each => parseFloat(getComputedStyle(each).fontSize))"
    )
    assert min(sizes) >= 13


def test_light_and_dark(open_page: Any) -> None:
    colours = []
    for scheme in ("light", "dark"):
        page = open_page("image", color_scheme=scheme).page
        style = "getComputedStyle(document.body)"
        colours.append(page.evaluate(f"[{style}.backgroundColor, {style}.color]"))
    assert colours == [
        ["rgb(255, 255, 255)", "rgb(32, 36, 43)"],
        ["rgb(20, 23, 28)", "rgb(232, 235, 239)"],
    ]


def test_without_scripts_there_is_a_still_picture(open_page: Any) -> None:
    page = open_page("image", java_script_enabled=False).page
    assert page.locator("#page").is_hidden()
    still = page.locator("img.still")
    assert still.is_visible()
    assert still.bounding_box()["width"] > 300
    assert "cat.jpg" in page.inner_text("h1 >> visible=true")
