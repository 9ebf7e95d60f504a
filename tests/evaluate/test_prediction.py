"""Predictions of a run folder that was written by hand, against the network called directly."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lambdanets.data import DataWarning
from lambdanets.data.sources.digits import read_digits
from lambdanets.evaluate.prediction import predict, predict_samples, prepare_network
from lambdanets.models import create_model
from lambdanets.recipes import get_recipe
from lambdanets.train import Run, load_run, to_json

CLASSES = tuple("0123456789")
INK = np.round(read_digits()[0] * (255 / 16)).astype(np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of the digits recipe with random weights and running statistics that are not the initial ones."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("run")
    network = create_model("lambda_resnet_digits", num_classes=10, in_chans=1)
    network.train()(torch.randn(32, 1, 8, 8))
    config = get_recipe("digits")
    (folder / "config.json").write_text(to_json(config))
    (folder / "classes.json").write_text(str(list(CLASSES)).replace("'", '"'))
    save_file(network.state_dict(), folder / "weights.safetensors")
    return load_run(folder)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Seven digits as PNG files in nested folders, and two files that are no images."""
    for index in range(7):
        path = tmp_path / ("deep/er" if index % 2 else "flat") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(INK[index]).save(path)
    (tmp_path / "flat" / "broken.PNG").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (tmp_path / "flat" / "notes.txt").write_text("no image")
    return tmp_path


def expected(run: Run, *pictures: np.ndarray) -> torch.Tensor:
    """Probabilities of digits, normalised here by hand."""
    pixels = torch.from_numpy(np.stack(pictures)).float()[:, None] / 255
    with torch.no_grad():
        return run.model()((pixels - 0.305) / 0.376).softmax(-1)


def test_the_probabilities_are_those_of_the_network(run: Run, photos: Path) -> None:
    answers = predict(run, [photos / "flat" / f"{index}.png" for index in (0, 2, 4)], top=10)
    for answer, row in zip(answers, expected(run, INK[0], INK[2], INK[4]), strict=True):
        order = row.argsort(descending=True)
        assert answer.labels == tuple(CLASSES[index] for index in order)
        assert answer.probabilities == pytest.approx(row[order].tolist(), abs=1e-6)
        assert sum(answer.probabilities) == pytest.approx(1)
        assert answer.error is None
        assert answer.right is None


def test_a_channels_last_run_predicts_in_its_format(run: Run, photos: Path) -> None:
    engine = replace(run.config.engine, channels_last=True)
    other = replace(run, config=replace(run.config, engine=engine))
    network, device = prepare_network(other.model(), engine)
    formats = [
        module.weight.is_contiguous(memory_format=torch.channels_last)
        for module in network.modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    assert all(formats) == (device.type == "cpu")
    paths = [photos / "flat" / f"{index}.png" for index in (0, 2, 4)]
    for one, two in zip(predict(run, paths, top=10), predict(other, paths, top=10), strict=True):
        assert one.labels == two.labels
        assert one.probabilities == pytest.approx(two.probabilities, abs=1e-5)


def test_top_keeps_the_likeliest(run: Run, photos: Path) -> None:
    path = photos / "flat" / "0.png"
    (whole,), (three,), (many,) = (predict(run, [path], top=top) for top in (10, 3, 99))
    assert three.labels == whole.labels[:3]
    assert three.probabilities == whole.probabilities[:3]
    assert many == whole


def test_folders_are_searched_with_all_inside_in_order_of_names(run: Run, photos: Path) -> None:
    (photos / "flat" / ".hidden.png").write_bytes(b"")
    with pytest.warns(DataWarning, match=r"left out 1 file \(1 \.txt\) and hidden files .*'\.hidden\.png'"):
        answers = predict(run, [photos])
    names = [Path(answer.path).relative_to(photos).as_posix() for answer in answers]
    inside = [f"deep/er/{index}.png" for index in (1, 3, 5)] + [f"flat/{index}.png" for index in (0, 2, 4, 6)]
    assert names == [*inside, "flat/broken.PNG"]


def test_a_broken_image_stops_nobody(run: Run, photos: Path) -> None:
    files = ["flat/0.png", "flat/broken.PNG", "flat/notes.txt", "gone.png", "deep/er/1.png"]
    answers = predict(run, [photos / name for name in files], batch_size=2)
    assert [answer.error is None for answer in answers] == [True, False, False, False, True]
    for answer in answers[1:4]:
        assert answer.labels == ()
        assert answer.path not in (answer.error or "")  # it stands beside the sentence
    assert "no such file" in (answers[3].error or "")
    assert answers[4].probabilities == pytest.approx(
        expected(run, INK[1])[0].topk(5).values.tolist(), abs=1e-6
    )


def test_an_image_with_too_many_pixels(run: Run, tmp_path: Path) -> None:
    Image.fromarray(INK[0]).save(tmp_path / "0.png")
    (answer,) = predict(run, [tmp_path], max_pixels=63)
    assert "its 8 x 8 = 64 pixels are more than the limit of 63" in (answer.error or "")
    (answer,) = predict(run, [tmp_path], max_pixels=64)
    assert answer.error is None
    with pytest.raises(ValueError, match="max_pixels"):
        predict(run, [tmp_path], max_pixels=0)


def test_a_folder_without_images_is_reported(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    (answer,) = predict(run, [tmp_path])
    assert answer.path == str(tmp_path)
    assert "no images" in (answer.error or "")


@pytest.mark.parametrize("batch_size", [1, 2, 7, 100])
def test_the_batch_size_changes_nothing(run: Run, photos: Path, batch_size: int) -> None:
    reference = predict(run, [photos], batch_size=3)
    for answer, other in zip(predict(run, [photos], batch_size=batch_size), reference, strict=True):
        assert answer.path == other.path
        assert answer.labels == other.labels
        assert answer.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def test_one_picture_in_many_forms_is_one_picture(run: Run, tmp_path: Path) -> None:
    grey = Image.fromarray(INK[3])
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned by a quarter to the right, so stored turned to the left
    forms = {
        "grey": (grey, {}),
        "rgb": (grey.convert("RGB"), {}),
        "rgba": (grey.convert("RGBA"), {}),
        "palette": (grey.convert("P"), {}),
        "deep": (Image.fromarray(INK[3].astype(np.uint16) * 257), {}),
        "turned": (grey.transpose(Image.Transpose.ROTATE_90), {"exif": turned}),
    }
    for name, (image, options) in forms.items():
        image.save(tmp_path / f"{name}.png", **options)
    wanted = expected(run, INK[3])[0].topk(5).values.tolist()
    for answer in predict(run, [tmp_path]):
        assert answer.error is None, answer
        assert answer.probabilities == pytest.approx(wanted, abs=1e-6), answer.path


def test_samples_are_held_out_images_with_their_true_class(run: Run) -> None:
    answers = predict_samples(run, 24)
    _, labels = read_digits()
    indices = [int(answer.path.removeprefix("digits#")) for answer in answers]
    assert len(set(indices)) == 24
    assert [answer.truth for answer in answers] == [str(labels[index]) for index in indices]
    for answer, row in zip(answers, expected(run, *INK[indices]), strict=True):
        assert answer.probabilities == pytest.approx(row.topk(5).values.tolist(), abs=1e-6)
        assert answer.right == (answer.labels[0] == answer.truth)
        assert answer.image is not None
        assert np.array_equal(np.asarray(answer.image.convert("L")), INK[int(answer.path[-4:])])


def test_asking_for_too_many_samples_gives_the_whole_set(run: Run) -> None:
    answers = predict_samples(run, 10_000, top=1, batch_size=512)
    assert len(answers) == len({answer.path for answer in answers})
    assert len(answers) == pytest.approx(0.2 * 1797, abs=6)


@pytest.mark.parametrize(("name", "value"), [("top", 0), ("batch_size", -1)])
def test_sizes_must_be_positive(run: Run, name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got {value}"):
        predict(run, [], **{name: value})
    with pytest.raises(ValueError, match="count must be at least 1"):
        predict_samples(run, 0)
