"""`lambdanets eval` on small folders in the forms of ImageNet's test sets."""

import csv
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from timm.data.imagenet_info import ImageNetInfo

from lambdanets.models import save_for_hub
from lambdanets.models.interop.layers import TimmLambdaLayer
from lambdanets.recipes import get_recipe
from lambdanets.train import override
from lambdanets.train.engine import train
from photo_sets import NAME, PLACES, draw, teach

Command = Callable[..., object]
FORM = ("--size", 64, "--crop", 0.875, "--workers", 0)
OUTSIDE = 500


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet's val, -V2 and -C in small, and weights that know two of three pictures of each class."""
    root = tmp_path_factory.mktemp("sets")
    answers: dict[Path, list[int]] = {}
    for wnid, place in PLACES.items():
        for number in range(3):
            name = f"ILSVRC2012_val_{len(answers) + 1:08d}.JPEG"
            path = draw(root / "imagenet" / "val" / wnid / name, len(answers))
            answers[path] = [OUTSIDE, place] if number == 2 else [place]
            for copy in (f"v2/{place}", f"c/fog/2/{wnid}", f"c/fog/4/{wnid}", f"a/{wnid}"):
                (root / copy).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, root / copy)
    teach(root / "model.safetensors", answers)
    shutil.rmtree(root / "c" / "fog" / "4" / "n01440764")
    labels = [[OUTSIDE] if number % 3 == 2 else [] for number in range(len(answers))]
    (root / "real.json").write_text(json.dumps(labels))
    return root


@pytest.fixture(scope="module")
def of_wnids(sets: Path) -> Path:
    """The folder of a run on those classes."""
    config = override(
        get_recipe("digits"),
        f"data.source=folder:{sets / 'a'}",
        "data.image_size=32",
        "data.in_chans=3",
        "data.batch_size=4",
        "data.workers=0",
        "engine.epochs=1",
        "engine.max_batches=1",
        "schedule.warmup_epochs=0",
        "engine.accelerator=cpu",
    )
    return train(config, run_dir=sets / "run").directory


def value(shown: str, measure: str) -> str:
    found = re.search(rf"^\W*{measure}\W+([\d.,]+%?)", shown, re.MULTILINE)
    assert found is not None, shown
    return found[1]


def model(sets: Path, folder: str, *words: object) -> tuple[object, ...]:
    source = ("--data", f"folder:{sets / folder}", "--checkpoint", sets / "model.safetensors")
    return ("eval", NAME, *source, *FORM, *words)


def test_a_model_on_imagenet(command: Command, sets: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("classes.csv", "table.csv", "figures.json")]
    options = ("--per-class", files[0], "--csv", files[1], "--json", files[2])
    done = command(*model(sets, "imagenet", *options))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "(ImageNet, 1,000 classes to choose from)" in done.stdout
    assert value(done.stdout, "accuracy") == "66.67%"
    assert value(done.stdout, "top-5 accuracy") == "100.00%"
    assert value(done.stdout, "images") == "21"
    with files[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    words = ImageNetInfo()
    assert [(row["class"], row["name"]) for row in rows] == [
        (wnid, words.index_to_description(place)) for wnid, place in PLACES.items()
    ]
    assert {(row["images"], row["top1"], row["top5"]) for row in rows} == {("3", "0.666667", "1")}
    assert files[1].read_text().splitlines() == [
        "model,img_size,top1,top1_err,top5,top5_err,param_count,crop_pct,interpolation",
        f"{NAME},64,66.667,33.333,100.000,0.000,0.47,0.875,bilinear",
    ]
    figures = json.loads(files[2].read_text())
    assert figures["top1"] == pytest.approx(2 / 3)
    assert (figures["test_set"], figures["images"], figures["image_size"]) == ("ImageNet", 21, 64)
    assert figures["weights"] == f"weights of {sets / 'model.safetensors'}"


def test_real_labels(inside: Command, sets: Path, tmp_path: Path) -> None:
    done = inside(*model(sets, "imagenet", "--real", sets / "real.json", "--csv", tmp_path / "table.csv"))
    assert done.returncode == 0, done.stderr
    assert value(done.stdout, "accuracy") == "66.67%"
    assert value(done.stdout, "accuracy by ReaL labels") == "100.00%"
    assert value(done.stdout, "images with ReaL labels") == "7"
    assert (tmp_path / "table.csv").read_text().splitlines()[1].startswith(f"{NAME},64,100.000,0.000,")


@pytest.mark.parametrize(
    ("folder", "words", "title", "accuracy"),
    [
        ("v2", (), "ImageNet-V2, 1,000 classes", "66.67%"),
        ("v2", ("--as", "v2"), "ImageNet-V2, 1,000 classes", "66.67%"),
        ("a", (), "ImageNet, 1,000 classes", "66.67%"),
        ("a", ("--as", "a"), "ImageNet-A, 7 classes", "100.00%"),
        ("a", ("--as", "r", "--precision", "64"), "ImageNet-R, 7 classes", "100.00%"),
        ("imagenet/val", ("--as", "sketch"), "ImageNet-Sketch, 1,000 classes", "66.67%"),
    ],
)
def test_test_sets(
    inside: Command, sets: Path, folder: str, words: tuple[str, ...], title: str, accuracy: str
) -> None:
    done = inside(*model(sets, folder, *words))
    assert done.returncode == 0, done.stderr
    assert title in done.stdout
    assert value(done.stdout, "accuracy") == accuracy


def test_corruptions(inside: Command, sets: Path, tmp_path: Path) -> None:
    words = model(sets, "c", "--json", tmp_path / "c.json")
    done = inside(*words[:-6], "--size", 64, "--workers", 0, "--json", tmp_path / "c.json")
    assert done.returncode == 0, done.stderr
    assert re.search(r"fog\s+2 4\s+\d+\.\d\d%", done.stdout)
    assert "needs all 15 corruptions" in done.stderr
    figures = json.loads((tmp_path / "c.json").read_text())
    assert figures["crop_pct"] == 1.0  # they are cut out already
    assert figures["mce"] is None
    assert figures["images"] == 21 + 18
    # Where a crop is named, it counts.
    done = inside(*model(sets, "c", "--json", tmp_path / "c.json"))
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "c.json").read_text())
    assert figures["crop_pct"] == 0.875
    assert figures["corruptions"] == [
        {"name": "fog", "severities": [2, 4], "error": pytest.approx(1 / 3), "normalised": None}
    ]


def test_best_and_worst_classes(inside: Command, sets: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    for place in range(12):  # all pictures are of the first class to the network, by its name
        (root / str(place)).mkdir(parents=True)
        shutil.copy(next((sets / "v2" / "0").iterdir()), root / str(place))
    words = ("--data", f"folder:{root}", "--checkpoint", sets / "model.safetensors", *FORM)
    done = inside("eval", NAME, *words, "--per-class", tmp_path / "classes.csv")
    assert done.returncode == 0, done.stderr
    best, worst = done.stdout.split("best classes")[1].split("worst classes")
    assert re.findall(r"n\d{8}", best)[0] == "n01440764"
    assert len(re.findall(r"n\d{8}", best)) == len(re.findall(r"n\d{8}", worst)) == 5
    assert "100.00%" not in worst


def test_a_run_at_another_size_and_on_test_sets(inside: Command, sets: Path, of_wnids: Path) -> None:
    plain = inside("eval", of_wnids)
    assert plain.returncode == 0, plain.stderr
    assert int(value(plain.stdout, "images")) < 21
    larger = inside("eval", of_wnids, "--size", 48, "--crop", 0.9, "--batch-size", 2)
    assert larger.returncode == 0, larger.stderr
    assert value(larger.stdout, "images") == value(plain.stdout, "images")
    assert value(larger.stdout, "loss") != value(plain.stdout, "loss")
    for folder, name in (("v2", "ImageNet-V2"), ("imagenet", "ImageNet"), ("c", "ImageNet-C")):
        done = inside("eval", of_wnids, "--data", f"folder:{sets / folder}")
        assert done.returncode == 0, done.stderr
        assert f"({name}, 7 classes to choose from)" in done.stdout


def test_all_images_of_a_set_without_val(inside: Command, sets: Path, of_wnids: Path, tmp_path: Path) -> None:
    """Whether they lie in train/ or not, as the help says."""
    shutil.copytree(sets / "a", tmp_path / "photos" / "train")
    losses = []
    for root in (tmp_path / "photos", tmp_path / "photos" / "train"):
        done = inside("eval", of_wnids, "--data", f"folder:{root}")
        assert done.returncode == 0, done.stderr
        assert "(ImageNet, 7 classes to choose from)" in done.stdout
        assert value(done.stdout, "images") == "21"
        losses.append(value(done.stdout, "loss"))
    assert losses[0] == losses[1]


def test_best_and_last_weights_of_a_run(inside: Command, two_minds: Path, tmp_path: Path) -> None:
    right, top1 = {}, {}
    for weights, words in (("best", ()), ("last", ("--weights", "last"))):
        files = [tmp_path / f"{weights}.{suffix}" for suffix in ("csv", "json")]
        done = inside("eval", two_minds, *words, "--per-class", files[0], "--json", files[1])
        assert done.returncode == 0, done.stderr
        assert f"{two_minds}, {weights} weights" in done.stdout.replace("\n", "")
        with files[0].open(newline="") as file:
            right[weights] = {row["class"]: float(row["top1"]) for row in csv.DictReader(file)}
        top1[weights] = json.loads(files[1].read_text())["top1"]
    assert right["best"] == {str(digit): float(digit == 3) for digit in range(10)}
    with (two_minds / "metrics.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert top1["last"] == pytest.approx(float(last["val_top1"]), abs=1e-6)
    assert top1["last"] != pytest.approx(top1["best"], abs=1e-3)


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def test_files_of_single_images_and_figures_of_classes(
    inside: Command, two_minds: Path, tmp_path: Path
) -> None:
    """The network predicts 3 for every image, always with the same probability."""
    names = {name: tmp_path / "new" / f"{name}.csv" for name in ("errors", "predictions", "confusion")}
    words = [word for name, file in names.items() for word in (f"--{name}", file)]
    words += ["--calibration", tmp_path / "c.png", "--json", tmp_path / "f.json", "--device", "cpu"]
    done = inside("eval", two_minds, *words)
    assert done.returncode == 0, done.stderr
    rows, wrong = read(names["predictions"]), read(names["errors"])
    threes, probability = sum(row["truth"] == "3" for row in rows), 1 / (1 + 9 * math.exp(-10))
    assert len(rows) == 90
    assert {row["guess"] for row in rows} == {"3"}
    for name in ("probability", "p(3)"):
        assert all(float(row[name]) == pytest.approx(probability, rel=1e-5) for row in rows)
    assert [row["file"] for row in wrong] == [row["file"] for row in rows if row["truth"] != "3"]
    assert {row["loss"] for row in wrong} == {"10.0004"}
    with names["confusion"].open(newline="") as text:
        heading, *lines = csv.reader(text)
    assert heading == ["truth", *map(str, range(10))]
    assert sum(int(line[4]) for line in lines) == 90
    assert lines[3][4] == str(threes)
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["balanced_accuracy"] == pytest.approx(1 / 10)
    assert figures["macro_precision"] == pytest.approx(threes / 90 / 10)
    assert figures["macro_f1"] == pytest.approx(2 * threes / (90 + threes) / 10)
    assert figures["calibration_error"] == pytest.approx(probability - threes / 90, rel=1e-5)
    assert figures["classes"][3]["f1"] == pytest.approx(2 * threes / (90 + threes))
    assert [each["images"] for each in figures["calibration"]] == [0] * 14 + [90]
    assert value(done.stdout, "mean F1") == f"{figures['macro_f1']:.2%}"
    for picture in (tmp_path / "c.png", tmp_path / "new" / "errors.png"):
        with Image.open(picture) as drawn:
            assert min(drawn.size) > 500
    assert "errors.png" in done.stdout


def test_errors_of_test_sets(inside: Command, sets: Path, tmp_path: Path) -> None:
    file, matrix = tmp_path / "e.csv", tmp_path / "m.csv"
    done = inside(*model(sets, "c", "--errors", file))
    assert done.returncode == 0, done.stderr
    rows = read(file)
    assert len(rows) == 13
    assert {Path(row["file"]).parts[-3] for row in rows} == {"2", "4"}
    assert all(row["truth"] == Path(row["file"]).parent.name != row["guess"] for row in rows)
    losses = [float(row["loss"]) for row in rows]
    assert losses == sorted(losses, reverse=True)
    assert "p(n01440764)" not in rows[0]  # of 1,000 classes
    # Predictions are limited to the classes in the folder, and then correct.
    done = inside(*model(sets, "a", "--as", "a", "--errors", file, "--confusion", matrix))
    assert done.returncode == 0, done.stderr
    assert "there are no errors to draw" in done.stdout
    assert read(file) == []
    assert [list(row.values()) for row in read(matrix)] == [
        [wnid, *("3" if other == wnid else "0" for other in PLACES)] for wnid in PLACES
    ]
    done = inside(*model(sets, "v2", "--confusion", tmp_path / "m.png"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "m.png").exists()


def test_layers_of_timm_in_a_run_on_our_kernels(
    inside: Command, sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (
        "data.image_size=64", "data.in_chans=3", "data.batch_size=4", "data.workers=0",
        "engine.max_batches=1", "schedule.warmup_epochs=0", "engine.channels_last=true",
    )  # fmt: skip
    changes = [word for setting in settings for word in ("--set", setting)]
    run = tmp_path / "run"
    words = ("--model", "lambda_resnet26t", "--data", f"folder:{sets / 'a'}", "--epochs", 1, "--out", run)
    done = inside("train", "digits", *words, *changes)
    assert done.returncode == 0, done.stderr
    forward, calls, losses = TimmLambdaLayer.forward, [], []

    def counted(self: TimmLambdaLayer, x: torch.Tensor) -> torch.Tensor:
        calls[-1] += 1
        return forward(self, x)

    monkeypatch.setattr(TimmLambdaLayer, "forward", counted)
    for accelerated in ((), ("--accelerate",)):
        calls.append(0)
        done = inside("eval", run, *accelerated, "--json", tmp_path / "figures.json")
        assert done.returncode == 0, done.stderr
        losses.append(json.loads((tmp_path / "figures.json").read_text())["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert calls[0] == 0 < calls[1]


def test_layers_of_timm_on_our_kernels(inside: Command, sets: Path, tmp_path: Path) -> None:
    torch.save(timm.create_model("lambda_resnet26t").state_dict(), tmp_path / "weights.pth")
    words = ("eval", "lambda_resnet26t", "--data", f"folder:{sets / 'v2'}")
    options = ("--checkpoint", tmp_path / "weights.pth", *FORM, "--json", tmp_path / "figures.json")
    losses = []
    for accelerated in ((), ("--accelerate",), ("--memory-format", "contiguous")):
        done = inside(*words, *options, *accelerated)
        assert done.returncode == 0, done.stderr
        losses.append(json.loads((tmp_path / "figures.json").read_text())["loss"])
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-4)
    done = inside(*model(sets, "v2", "--accelerate"))
    assert done.returncode != 0
    assert "module must contain a lambda layer that accelerate supports" in done.stderr


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sets: Path) -> Path:
    """What huggingface_hub keeps of what it has fetched, without a line to more."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    network = timm.create_model(NAME, checkpoint_path=str(sets / "model.safetensors"))
    for owner, name in (("timm", "test_resnet.r160_in1k"), ("somebody", "pictures")):
        place = tmp_path / "hub" / f"models--{owner}--{name}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("0" * 40)
        save_for_hub(network, place / "snapshots" / ("0" * 40), images={"crop_pct": 0.875})
    return tmp_path / "hub"


def test_published_weights_and_models_of_the_hub(inside: Command, sets: Path, hub: Path) -> None:
    local = next((hub / "models--somebody--pictures" / "snapshots").iterdir())
    for name in (NAME, f"{NAME}.r160_in1k", "hf-hub:somebody/pictures", f"local-dir:{local}"):
        done = inside("eval", name, "--data", f"folder:{sets / 'v2'}", *FORM)
        assert done.returncode == 0, done.stderr
        assert f"{name}, published weights" in done.stdout
        assert value(done.stdout, "accuracy") == "66.67%"
    for name in ("hf-hub:somebody/else", "resnet18"):
        done = inside("eval", name, "--data", f"folder:{sets / 'v2'}")
        assert done.returncode != 0
        assert f"{name} cannot be created: " in done.stderr
        assert ("give your own weights with --checkpoint FILE" in done.stderr) == (name == "resnet18")


def test_a_folder_of_push_opens_as_a_model(inside: Command, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hub ü"
    pushed = inside("push", trained, "--folder", folder)
    assert pushed.stdout == f"written: {folder}\n"
    assert (
        "takes images of 1 channel: timm and lambdanets open it; the pipeline of transform" in pushed.stderr
    )
    done = inside("eval", folder, "--data", "digits", "--workers", 0)
    assert f"{folder}, weights of the folder, on digits" in done.stdout
    assert value(done.stdout, "images") == "1,797"
    shown = inside("predict", folder, draw(tmp_path / "a.png", 1), "--out", tmp_path / "sheet.png")
    assert shown.returncode == 0, shown.stderr
    assert f"{folder}, weights of the folder" in shown.stdout


def test_the_loss_is_that_of_the_training(inside: Command, tmp_path: Path) -> None:
    settings = ("loss.name=binary", "engine.max_batches=2", "engine.loggers=none", "engine.threads=1")
    words = [word for each in settings for word in ("--set", each)]
    run = tmp_path / "run"
    assert inside("train", "digits", "--epochs", 1, *words, "--out", run).returncode == 0
    with (run / "metrics.csv").open() as file:
        [row] = csv.DictReader(file)
    done = inside("eval", run, "--json", tmp_path / "all.json", "--predictions", tmp_path / "each.csv")
    assert done.returncode == 0, done.stderr
    assert value(done.stdout, "loss") == f"{float(row['val_loss']):.4f}"
    with (tmp_path / "each.csv").open() as file:
        losses = [float(each["loss"]) for each in csv.DictReader(file)]
    assert sum(losses) / len(losses) == pytest.approx(float(row["val_loss"]), rel=1e-4)


def test_a_model_that_names_its_classes(inside: Command, hub: Path, tmp_path: Path) -> None:
    network = timm.create_model("lambda_resnet_digits", num_classes=2, in_chans=3)
    save_for_hub(network, tmp_path / "pets", labels=["cat", "dog"], images={"input_size": (3, 16, 16)})
    for number, name in enumerate(("cat", "dog")):
        draw(tmp_path / "photos" / name / "1.png", number)
    words = ("eval", f"local-dir:{tmp_path / 'pets'}", "--workers", 0)
    done = inside(*words, "--data", f"folder:{tmp_path / 'photos'}")
    assert done.returncode == 0, done.stderr
    assert value(done.stdout, "images") == "2"
    done = inside(*words, "--data", f"folder:{tmp_path / 'photos'}", "--as", "r")
    assert "ImageNet-R is for ImageNet's classes" in done.stderr


WRONG = {
    "eval test_resnet": (2, "test_resnet is a model and has no validation set"),
    "eval test_resnet --data folder:NUMBERED --weights last": (
        2,
        "--weights chooses among those of a run",
    ),
    "eval RUN --checkpoint WEIGHTS": (2, "--checkpoint goes with the name of a model"),
    "eval RUN --as v2": (2, "--as describes the images of --data"),
    "eval RUN --size 0": (2, "data.image_size must be 1 or more"),
    "eval RUN --crop 1.5": (2, "data.crop_pct must be above 0 and at most 1"),
    "eval RUN --precision half": (2, "--precision"),
    "eval RUN --as w": (2, "--as"),
    "eval RUN --real timm": (1, "ReaL labels are for ImageNet's 1,000 classes"),
    "eval RUN --data folder:PETS": (1, "folders that are no classes of ImageNet: 'cat', 'dog'"),
    "eval RUN --csv PER_CLASS": (1, "is no table of timm's results"),
    "eval test_resnet --checkpoint WEIGHTS --data folder:NUMBERED --real timm": (
        2,
        "and this is ImageNet-V2",
    ),
    "eval test_resnet --checkpoint WEIGHTS --data folder:NUMBERED --as a --real timm": (2, "not for --as a"),
    "eval test_resnet --checkpoint WEIGHTS --data folder:GONE": (1, "there is no folder"),
    "eval test_resnet --checkpoint WEIGHTS --data folder:EMPTY": (1, "holds no class folders"),
    "eval test_resnet --checkpoint WEIGHTS --data folder:PETS": (1, "no classes of ImageNet: 'cat', 'dog'"),
    "eval test_resnet --checkpoint WEIGHTS --data folder:NUMBERED --as r": (1, "classes that are not known"),
    "eval test_resnet --checkpoint WEIGHTS --data folder:HOLLOW": (1, "holds no images"),
    "eval test_resnet --checkpoint WEIGHTS --data folder:DAMAGED": (1, "1.JPEG: "),
    "eval test_resnet --checkpoint WEIGHTS --data digits": (1, "'digits' has 10 classes"),
    "eval test_vit --checkpoint WEIGHTS --data folder:NUMBERED": (1, "are not those of test_vit"),
    "eval test_resnet --checkpoint GONE --data folder:NUMBERED": (1, "there are no weights"),
    "eval lambda_resnet50 --data folder:NUMBERED": (1, "no trained weights of lambda_resnet50 are published"),
    "eval RUN --errors PER_CLASS.png": (2, "--errors is a CSV file, whose name ends in .csv"),
    "eval RUN --confusion matrix.txt": (
        2,
        "--confusion is a PNG image or CSV file, whose name ends in .png or",
    ),
    "eval RUN --calibration matrix.csv": (2, "--calibration is a PNG image"),
    "eval RUN --errors PER_CLASS/x.csv": (2, "per_class.csv is not a writable folder"),
    "eval RUN --data wds/photos:PETS --errors e.csv": (
        2,
        "--errors names files, and the samples of wds/photos",
    ),
    "eval RUN --device abacus": (2, "--device takes cpu, cuda or mps, not 'abacus'"),
    "eval RUN --device meta": (2, "there is no meta device here"),
    "eval RUN --device xpu:3": (2, "there is no xpu device here"),
    "eval lambda_resnet5 --data folder:NUMBERED": (1, "lambda_resnet5 is no run: there is no such folder"),
}


@pytest.mark.parametrize("line", WRONG, ids=lambda line: line.removeprefix("eval "))
def test_what_is_wrong_is_one_sentence(
    inside: Command, sets: Path, of_wnids: Path, tmp_path: Path, line: str
) -> None:
    code, sentence = WRONG[line]
    for name in ("pets/cat/1.png", "pets/dog/1.png"):
        draw(tmp_path / name, 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow" / "n01440764").mkdir(parents=True)
    (tmp_path / "damaged" / "n01440764").mkdir(parents=True)
    (tmp_path / "damaged" / "n01440764" / "1.JPEG").write_bytes(b"no picture")
    (tmp_path / "per_class.csv").write_text("class,name,images,top1,top5\n")
    places = {
        "RUN": of_wnids,
        "NUMBERED": sets / "v2",
        "WEIGHTS": sets / "model.safetensors",
        "GONE": tmp_path / "gone",
        "EMPTY": tmp_path / "empty",
        "HOLLOW": tmp_path / "hollow",
        "DAMAGED": tmp_path / "damaged",
        "PETS": tmp_path / "pets",
        "PER_CLASS": tmp_path / "per_class.csv",
    }
    words = [re.sub("[A-Z_]{2,}(?=$|/)", lambda m: str(places[m[0]]), word) for word in line.split()]
    done = inside(*words)
    assert (done.returncode, sentence in done.stderr) == (code, True), done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
