"""The files of an explanation: arrays, figures, the sheet and the page."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lambdanets import Explanation, LambdaLayer1d, LambdaLayer2d, LambdaLayer3d, explain
from lambdanets.explaining import Approximation, Mark, Scene
from lambdanets.explaining import page as page_module


@pytest.fixture(scope="module")
def explanation() -> Explanation:
    torch.manual_seed(0)
    layers = [LambdaLayer2d(3, 8, scope=5, dim_u=2), LambdaLayer2d(8, 8, grid=6, num_heads=2)]
    scene = Scene(title="cat </script><b>.jpg", model="a model", labels=[("cat", 0.75), ("dog", 0.25)],
                  picture=Image.new("RGB", (40, 30), "gray"))  # fmt: skip
    return explain(nn.Sequential(*layers).eval(), torch.randn(1, 3, 6, 8), scene=scene)


def payload(file: Path) -> dict[str, Any]:
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', file.read_text(), re.DOTALL
    )
    assert found is not None
    return json.loads(found[1])


def decoded(array: dict[str, Any]) -> np.ndarray:
    kind = "f16" if "f16" in array else "f32"
    numbers = np.frombuffer(base64.b64decode(array[kind]), "<f2" if kind == "f16" else "<f4")
    return numbers.astype(np.float64).reshape(array["shape"]) * array["scale"]


def test_the_arrays_are_all_that_the_maps_need(explanation: Explanation, tmp_path: Path) -> None:
    file = explanation.save(tmp_path / "maps.npz")
    with np.load(file) as arrays:
        q, keys, table = (arrays[f"1/{name}"] for name in ("q", "keys", "table"))
        query, head = (2, 3), 1
        row, column = np.mgrid[0:6, 0:8]
        offsets = (row - query[0] + arrays["1/centre"][0], column - query[1] + arrays["1/centre"][1])
        inside = np.all([(i >= 0) & (i < 11) for i in offsets], axis=0)
        e = np.where(inside[..., None], table[tuple(np.clip(i, 0, 10) for i in offsets)][..., 0], 0)
        weights = (keys[0, :, :, 0].reshape(6, 8, -1) + e) @ q[head, query[0] * 8 + query[1]]
        assert tuple(arrays["0/grid"]) == (6, 8)
        assert arrays["0/error"] <= 1e-5
        assert set(arrays) >= {"0/v", "1/share_content", "1/share_position", "1/step"}
    np.testing.assert_allclose(weights, explanation.maps("1", query, head).numpy(), rtol=1e-4, atol=1e-6)


def test_the_figures_have_the_errors_shares_and_reach(explanation: Explanation, tmp_path: Path) -> None:
    plain = json.loads(explanation.save(tmp_path / "figures.json").read_text())
    assert plain["error"] == explanation.error
    assert plain["labels"][0] == {"label": "cat", "probability": 0.75}
    first, second = plain["layers"]
    assert (first["name"], first["grid"], first["dim_u"]) == ("0", [6, 8], 2)
    assert len(second["content_share"]) == second["heads"] == 2
    assert second["reach"]["radius"] > 0
    assert len(second["entropy_bits"]) == 16


def test_the_page_holds_what_the_maps_need_and_asks_for_nothing(
    explanation: Explanation, tmp_path: Path
) -> None:
    file = explanation.save(tmp_path / "page.html", queries=[(0.25, 0.75)])
    text = file.read_text()
    assert "default-src 'none'" in text
    assert "%%" not in text
    assert not re.search(r"(?:src|href)=\"(?!data:)|https?://|url\(|@import|fetch\(", text)
    assert text.count("<script") == 2
    assert "cat &lt;/script&gt;&lt;b&gt;.jpg</h1>" in text
    data = payload(file)
    assert data["title"] == "cat </script><b>.jpg"
    assert data["start"] == [0.25, 0.75]
    for raw, name in zip(data["layers"], explanation.layers, strict=True):
        maps = explanation.layer(name)
        for key, expected in (("q", maps.q), ("keys", maps.keys), ("lengths", maps.v.norm(dim=1))):
            assert expected is not None
            values = expected.numpy()
            np.testing.assert_allclose(decoded(raw[key]), values, atol=1e-3 * np.abs(values).max())
        assert raw["scales"] == maps.scales()
    # (h + 1) n k numbers, the table and the lengths of values, of 2 bytes each, by base64 4/3 of that
    numbers = sum(len(decoded(raw[key]).ravel()) for raw in data["layers"] for key in ("q", "keys", "table"))
    assert len(json.dumps(data["layers"])) < 2 * numbers * 4 / 3 + 8000


def test_a_page_without_scripts_shows_a_still_picture(explanation: Explanation, tmp_path: Path) -> None:
    text = explanation.save(tmp_path / "page.html").read_text()
    still = re.search(r'<noscript>.*?src="data:image/jpeg;base64,(.*?)".*?</noscript>', text, re.DOTALL)
    assert still is not None
    assert base64.b64decode(still[1]).startswith(b"\xff\xd8")


def test_too_large_a_page_is_refused(
    explanation: Explanation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "MAX_BYTES", 1 << 10)
    with pytest.raises(ValueError, match="name fewer layers, or give a smaller input"):
        explanation.save(tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_the_sheet_has_a_row_for_each_layer_and_head(explanation: Explanation, tmp_path: Path) -> None:
    heights = []
    for heads in ([0], [0, 1]):
        with Image.open(explanation.save(tmp_path / "sheet.png", heads=heads, queries=[(0.5, 0.5)])) as image:
            heights.append(image.height)
    assert heights[1] > heights[0]
    with pytest.raises(ValueError, match="1 has the heads 0 to 1, got 3"):
        explanation.save(tmp_path / "other.png", heads=[3])
    with pytest.raises(ValueError, match="a query is 2 fractions from 0 to 1 here"):
        explanation.save(tmp_path / "other.png", queries=[(0.5,)])
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_sequences_volumes_and_objects_have_pages_and_sheets(tmp_path: Path) -> None:
    text = explain(LambdaLayer1d(4, 8, scope=3, causal=True).eval(), torch.randn(1, 4, 6))
    text.scene.tokens = list("lamb\n.")
    volume = explain(LambdaLayer3d(1, 8, scope=3).eval(), torch.randn(1, 1, 3, 4, 5))
    assert len(volume.scene.picture) == 3
    image = explain(LambdaLayer2d(3, 8, scope=3).eval(), torch.randn(1, 3, 4, 5))
    image.scene.marks = [Mark("cell", (1.0, 1.0, 3.0, 3.0), 0.9)]
    image.approximations = [Approximation("occlusion", "cell", torch.randn(4, 5))]
    for number, each in enumerate((text, volume, image)):
        data = payload(each.save(tmp_path / f"{number}.html"))
        each.save(tmp_path / f"{number}.png")
        assert len(data["layers"]) == 1
    assert data["approximations"][0]["target"] == "cell"
    assert data["start"] == [0.5, 0.4]
    assert payload(tmp_path / "0.html")["layers"][0]["logNorm"]["f32"]
