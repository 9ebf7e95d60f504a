"""Models on ImageNet's sets, against timm's own transform and network and loops over the images."""

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from lambdanets.data import DataError, DataWarning
from lambdanets.evaluate.corruptions import ALEXNET
from lambdanets.evaluate.measurement import Evaluation, guess_test_set, measure
from lambdanets.evaluate.target import EvalTarget, target_from_model
from lambdanets.evaluate.test_sets import TEST_SETS, ImageNetSet
from lambdanets.models import WeightsError, save_for_hub
from lambdanets.train import RunError
from photo_sets import CROP, NAME, PLACES, SIZE, draw, logits_of, teach

OUTSIDE = 500  # a class that no folder holds


@dataclass
class Photos:
    """Six pictures of each of seven classes, and what the network takes them for."""

    files: dict[Path, int]  # true places
    answers: dict[Path, list[int]]
    weights: Path
    logits: np.ndarray


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    root = tmp_path_factory.mktemp("photos")
    files: dict[Path, int] = {}
    answers: dict[Path, list[int]] = {}
    outside = list(range(OUTSIDE, OUTSIDE + 6))
    for wnid, place in PLACES.items():
        for number in range(6):
            path = draw(root / "val" / wnid / f"ILSVRC2012_val_{len(files) + 1:08d}.JPEG", len(files))
            files[path] = place
            # Right; then after a class that no folder holds, after one of them, after six.
            other = PLACES["n01443537"] if wnid != "n01443537" else PLACES["n15075141"]
            answers[path] = [[], [], [], [OUTSIDE], [other], outside][number] + [place]
    weights = teach(root / "model.safetensors", answers)
    logits = logits_of(weights, list(files)).double().numpy()
    return Photos(files, answers, weights, logits)


def target(photos: Photos, root: Path) -> EvalTarget:
    made = target_from_model(NAME, f"folder:{root}", checkpoint=photos.weights)
    form = replace(made.data, image_size=SIZE, crop_pct=CROP, batch_size=5, workers=0)
    return replace(made, data=form, engine=replace(made.engine, accelerator="cpu"))


def as_set(photos: Photos, root: Path, key: str) -> Path:
    """The pictures again under the names of another set."""
    for file, place in photos.files.items():
        name = str(place) if key == "v2" else file.parent.name
        (root / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, root / name / f"{'sketch_' if key == 'sketch' else ''}{file.name}")
    return root


def by_hand(photos: Photos, choices: list[int]) -> dict[int, list[int]]:
    """Images, right ones and right ones among five, of each class."""
    counts = {place: [0, 0, 0] for place in PLACES.values()}
    for row, place in zip(photos.logits, photos.files.values(), strict=True):
        ranked = sorted(choices, key=lambda index: -row[index])
        counts[place][0] += 1
        counts[place][1] += ranked[0] == place
        counts[place][2] += place in ranked[:5]
    return counts


def counts_of(found: Evaluation) -> dict[int, list[int]]:
    rows = zip(found.scores.images, found.scores.top1, found.scores.top5, strict=True)
    return {place: [int(n) for n in row] for place, row in enumerate(rows) if row[0]}


def test_the_pictures_are_taken_for_what_the_test_says(photos: Photos) -> None:
    for row, ranked in zip(photos.logits, photos.answers.values(), strict=True):
        assert np.argsort(-row)[: len(ranked)].tolist() == ranked


@pytest.mark.parametrize("key", ["imagenet", "v2", "sketch", "a", "r"])
def test_a_model_on_a_test_set(photos: Photos, tmp_path: Path, key: str) -> None:
    root = as_set(photos, tmp_path / "set", key)
    found = measure(target(photos, root), test_set=TEST_SETS[key])
    choices = list(PLACES.values()) if key in ("a", "r") else list(range(1000))
    assert counts_of(found) == by_hand(photos, choices)
    assert found.choices == len(choices)
    logits = torch.from_numpy(photos.logits)
    chosen = logits if key not in ("a", "r") else logits[:, choices]
    truth = torch.tensor([choices.index(place) for place in photos.files.values()])
    loss = torch.nn.functional.cross_entropy(chosen, truth)
    assert found.scores.figures()["loss"] == pytest.approx(float(loss), rel=1e-3)


def test_restricting_changes_what_it_should(photos: Photos) -> None:
    assert all(row == [6, 3, 5] for row in by_hand(photos, list(range(1000))).values())
    assert all(row == [6, 5, 6] for row in by_hand(photos, list(PLACES.values())).values())


def test_sets_are_guessed_from_the_folder(photos: Photos, tmp_path: Path) -> None:
    assert guess_test_set(target(photos, as_set(photos, tmp_path / "v2", "v2"))) is TEST_SETS["v2"]
    assert guess_test_set(target(photos, as_set(photos, tmp_path / "s", "sketch"))) is TEST_SETS["sketch"]
    mine = target(photos, photos.weights.parent)
    assert guess_test_set(mine) is TEST_SETS["imagenet"]
    assert guess_test_set(replace(mine, classes=("cat", "dog"))) is None
    assert guess_test_set(replace(mine, data=replace(mine.data, source="digits"))) is None


def test_networks_of_some_classes_and_of_numbers(photos: Photos, tmp_path: Path) -> None:
    """A run on some of ImageNet's classes, in an order of its own, and one on shards without names."""
    order = list(reversed(PLACES))
    mine = target(photos, as_set(photos, tmp_path, "v2"))
    numbers = replace(mine, classes=tuple(map(str, range(1000))))
    assert counts_of(measure(numbers, test_set=TEST_SETS["v2"])) == by_hand(photos, list(range(1000)))

    class Some(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole = mine.network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.whole(images)[:, [PLACES[wnid] for wnid in order]]

    found = measure(replace(mine, network=Some(), classes=tuple(order)), test_set=TEST_SETS["v2"])
    expected = by_hand(photos, list(PLACES.values()))
    assert {PLACES[order[place]]: row for place, row in counts_of(found).items()} == expected


def test_real_labels(photos: Photos, tmp_path: Path) -> None:
    answers = [ranked[0] for ranked in photos.answers.values()]
    places = list(photos.files.values())
    # Several labels, none, the truth, and one that is wrong: in the order of the files' numbers.
    labels = [
        [[place, OUTSIDE], [], [place], [7], [answer, 3]][number % 5]
        for number, (place, answer) in enumerate(zip(places, answers, strict=True))
    ]
    (tmp_path / "real.json").write_text(json.dumps(labels))
    mine = target(photos, photos.weights.parent)
    found = measure(mine, test_set=TEST_SETS["imagenet"], real=tmp_path / "real.json")
    judged = [(row, given) for row, given in zip(photos.logits, labels, strict=True) if given]
    top1 = [int(row.argmax()) in given for row, given in judged]
    top5 = [bool(set(np.argsort(-row)[:5].tolist()) & set(given)) for row, given in judged]
    assert found.real == {
        "top1": pytest.approx(np.mean(top1)),
        "top5": pytest.approx(np.mean(top5)),
        "images": len(judged),
    }
    assert 0 < sum(top1) < sum(top5) < len(judged)
    assert counts_of(found) == by_hand(photos, list(range(1000)))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[[1]]", "the ReaL labels are those of 1 images and there are 42"),
        ("{}", "expected a list with a list of numbers per image"),
        ("[1, 2]", "expected a list with a list of numbers per image"),
        ("[[1", "it is not valid JSON"),
        (json.dumps([[]] * 42), "has no label for any image"),
        (None, "the ReaL labels are those of 50,000 images and there are 42"),
    ],
)
def test_real_labels_that_do_not_fit(photos: Photos, tmp_path: Path, text: str | None, sentence: str) -> None:
    file = tmp_path / "real.json"
    if text is not None:
        file.write_text(text)
    mine = target(photos, photos.weights.parent)
    with pytest.raises(DataError, match=re.escape(sentence)):
        measure(mine, test_set=TEST_SETS["imagenet"], real=file if text is not None else "timm")


def test_real_labels_go_by_the_names_of_files(photos: Photos, tmp_path: Path) -> None:
    root = as_set(photos, tmp_path / "set", "sketch")
    (tmp_path / "real.json").write_text(json.dumps([[1]] * 42))
    with pytest.raises(DataError, match=r"no ReaL labels for .*sketch_.*; expected ILSVRC2012_val"):
        measure(target(photos, root), test_set=TEST_SETS["imagenet"], real=tmp_path / "real.json")


def test_corruptions(photos: Photos, tmp_path: Path) -> None:
    """All 75 parts, of one picture each but for one: the mean over severities is none over images."""
    files = list(photos.files)
    wrong = next(path for path in files if photos.answers[path][0] != photos.files[path])
    right = files[0]
    errors = {}
    for index, name in enumerate(ALEXNET):
        bad = 0
        for level in range(1, 6):
            picture = wrong if level <= index % 6 else right
            bad += picture is wrong
            place = tmp_path / name / str(level) / picture.parent.name
            place.mkdir(parents=True)
            shutil.copy(picture, place)
        errors[name] = bad / 5
    more = tmp_path / "fog" / "1" / right.parent.name  # three more that are right beside the one that is not
    more.mkdir(exist_ok=True)
    for path in files[:3]:
        shutil.copy(path, more)
    errors["fog"] -= 3 / 4 / 5
    found = measure(target(photos, tmp_path), test_set=TEST_SETS["c"])
    assert {each.name: each.error for each in found.corruptions} == pytest.approx(errors)
    mean = sum(errors[name] / ALEXNET[name] for name in ALEXNET) / 15
    assert found.mce == pytest.approx(mean)
    assert found.scores.figures()["images"] == 78


def test_what_cannot_be_measured_is_refused(photos: Photos, tmp_path: Path) -> None:
    mine = target(photos, tmp_path / "gone")
    with pytest.raises(DataError, match="there is no folder"):
        measure(mine, test_set=TEST_SETS["c"])
    others = replace(mine, classes=("cat", "dog"))
    with pytest.raises(DataError, match=r"ImageNet-A is for ImageNet's classes, and .* has others \('cat"):
        measure(others, test_set=TEST_SETS["a"])
    with pytest.raises(DataError, match="ReaL labels are for ImageNet's classes"):
        measure(others, real="timm")
    with pytest.raises(DataError, match=r"for ImageNet's 1,000 classes, and .* has 7"):
        measure(replace(mine, classes=tuple(PLACES)), real="timm")
    for name in ("resnet50.a_tag", "no_model"):
        with pytest.raises(RunError, match=f"{name} cannot be created: "):
            target_from_model(name, "digits", checkpoint=photos.weights)
    with pytest.raises(RunError, match=r"lambda_resnet50 are published; give your own with --checkpoint"):
        target_from_model("lambda_resnet50", "digits")
    torch.save(timm.create_model("lambda_resnet_digits").state_dict(), tmp_path / "digits.pt")
    with pytest.raises(RunError, match=r"lambda_resnet_digits has 10 classes, whose names are unknown"):
        target_from_model("lambda_resnet_digits", "digits", checkpoint=tmp_path / "digits.pt")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").touch()
    torch.save(
        timm.create_model("lambda_resnet_digits", num_classes=7).state_dict(), run / "pytorch_model.bin"
    )
    says = (
        r"are for 7 classes and the model is for 10; name the run itself in place of lambda_resnet_digits: "
    )
    with pytest.raises(WeightsError, match=f"{says}{run}$"):
        target_from_model("lambda_resnet_digits", "digits", checkpoint=run)


def test_a_vit_is_brought_to_another_size_and_back(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pt")
    draw(tmp_path / "set" / "0" / "1.jpeg", 1)
    made = target_from_model("test_vit", f"folder:{tmp_path / 'set'}", checkpoint=tmp_path / "vit.pt")
    fixed = timm.create_model("test_vit", dynamic_img_size=False).eval()
    made = replace(made, network=fixed, data=replace(made.data, workers=0))
    assert made.built_for == 160
    with pytest.raises(RunError, match="test_vit cannot take images of 3x96x96: "):
        measure(replace(made, data=replace(made.data, image_size=96)), test_set=TEST_SETS["v2"])
    losses = []
    for size in (160, 96, 160):
        made = made.at_size(size)
        assert made.data.image_size == size
        losses.append(measure(made, test_set=TEST_SETS["v2"]).scores.loss_sum)
    assert losses[2] == pytest.approx(losses[0], rel=0.01)  # its position table was resampled twice
    assert losses[1] != losses[0]

    class Picky(torch.nn.Module):
        def set_input_size(self, img_size: int) -> None:
            assert img_size % 7 == 0, "a multiple of 7"

    with pytest.raises(RunError, match="test_vit cannot take images of 100x100: a multiple of 7"):
        replace(made, network=Picky()).at_size(100)


def test_the_form_of_the_images_is_the_models_for_tests(tmp_path: Path) -> None:
    images = {
        "input_size": (3, 64, 64),
        "test_input_size": (3, 96, 96),
        "crop_pct": 0.8,
        "test_crop_pct": 0.9,
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "interpolation": "bicubic",
        "crop_mode": "squash",
    }
    save_for_hub(timm.create_model(NAME), tmp_path / "hub", images=images)
    with pytest.warns(DataWarning, match="with crop_mode 'squash'; here they are centre-cropped"):
        data = target_from_model(f"local-dir:{tmp_path / 'hub'}", "folder:x").data
    assert (data.image_size, data.crop_pct, data.mean, data.std) == (96, 0.9, images["mean"], images["std"])
    assert data.interpolation == "bicubic"


def test_every_set_says_where_it_is_from() -> None:
    assert all(isinstance(each, ImageNetSet) and "arXiv:" in each.reference for each in TEST_SETS.values())
    assert [key for key, each in TEST_SETS.items() if each.restricted] == ["a", "r"]
    assert [key for key, each in TEST_SETS.items() if each.numbered] == ["v2"]
