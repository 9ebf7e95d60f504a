"""A loss that became NaN leaves what is needed to study it, and that gives the NaN again."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lambdanets.train import NonFiniteLossError, RunConfig, override
from lambdanets.train.classifier import Classifier
from lambdanets.train.engine import train
from lambdanets.train.nonfinite import BadStep, largest_outputs, locate_nonfinite, reported_step
from lambdanets.train.resume import resolve_config
from lambdanets.train.run import RunFiles


class Log(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.log()


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Sequential(Log(), nn.Linear(4, 2)), nn.ReLU()).train()


def moment(**changes: object) -> BadStep:
    usual = {
        "details": {"what": "the training loss became nan", "step": 7, "learning_rate": math.inf},
        "losses": [(6, 0.5), (7, math.nan)],
        "seed": 3,
        "tensors": (batch := {"images": torch.randn(5, 3), "targets": torch.tensor([0, 1, 1, 0, 1])}),
        "inputs": (batch["images"],),
    }
    return BadStep(**usual | changes)  # pyright: ignore[reportArgumentType]


def test_the_first_module_with_a_bad_output_is_named() -> None:
    model = network()
    with torch.no_grad():
        first, largest = largest_outputs(model, (torch.randn(5, 3),))
    assert first == "1.0"
    assert list(largest) == ["0", "1.0", "1.1", "1", "2", "network"]
    assert math.isfinite(largest["0"])
    assert math.isnan(largest["1.0"])
    assert not any(module._forward_hooks for module in model.modules())
    model[1][0] = nn.Identity()  # pyright: ignore[reportIndexIssue]
    with torch.no_grad():
        first, largest = largest_outputs(model, (torch.ones(1, 3),))
        assert first is None
        assert largest["0"] == pytest.approx(float(model[0](torch.ones(1, 3)).abs().max()))


def test_what_is_written_gives_the_step_again(tmp_path: Path) -> None:
    model, told = network(), moment()
    model(torch.randn(2, 3).abs() + 9).nan_to_num().sum().backward()
    locate_nonfinite(model, told, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert report["first_nonfinite_output"] == "1.0"
    assert report["losses"] == [[6, 0.5], [7, "nan"]]
    assert report["learning_rate"] == "inf"
    assert report["nonfinite_weights"] == report["notes"] == []
    norms = {name: float(p.detach().norm()) for name, p in model.named_parameters()}
    assert report["weight_norms"] == pytest.approx(norms)
    assert report["last_gradient_norms"].keys() == norms.keys()
    batch, weights = (load_file(tmp_path / f"{name}.safetensors") for name in ("batch", "weights"))
    assert told.tensors is not None
    assert all(torch.equal(batch[name], told.tensors[name]) for name in ("images", "targets"))
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    text = (tmp_path / "report.txt").read_text()
    assert text.startswith("the training loss became nan at step 7\n")
    for part in ("first nonfinite output  1.0", "largest activations", "0.weight", "\n         7  nan\n"):
        assert part in text
    assert reported_step(tmp_path) == 7


def test_what_cannot_be_kept_is_said_and_nothing_old_is_left(tmp_path: Path) -> None:
    model = network()
    assert reported_step(tmp_path) == -1
    locate_nonfinite(model, moment(), tmp_path)
    with torch.no_grad():
        model[0].weight[0, 0] = math.inf  # pyright: ignore[reportIndexIssue]
    locate_nonfinite(model, moment(stale="the batch is a later one"), tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["nonfinite_weights"] == ["0.weight"]
    assert "first_nonfinite_output" not in report
    assert report["notes"][0].startswith("weights.safetensors is left out")
    assert report["notes"][1] == "the batch is a later one"
    assert not (tmp_path / "weights.safetensors").exists()
    locate_nonfinite(network(), moment(collective="it is in parts", tensors=None), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.txt"}


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_a_rate_that_diverges_leaves_what_gives_the_loss_again(
    tiny: RunConfig, folder: Path, precision: str
) -> None:
    config = override(
        tiny, "optimizer.lr=1e25", "schedule.warmup_epochs=0", "engine.save_steps=None",
        f"engine.precision={precision}",
    )  # fmt: skip
    with pytest.raises(
        NonFiniteLossError, match=r"the report on this step is in .*nonfinite; there is no"
    ) as caught:
        train(config, run_dir=folder)
    kept = folder / "nonfinite"
    report = json.loads((kept / "report.json").read_text())
    assert report["step"] == caught.value.step == report["batch"]
    assert [step for step, _ in report["losses"]] == list(range(report["step"] + 1))
    assert report["first_nonfinite_output"] in report["largest_activations"]
    assert not math.isfinite(float(report["losses"][-1][1]))
    # From the files alone, as a person would: the same weights, batch, seed and precision.
    model = config.network(10).train()
    model.load_state_dict(load_file(kept / "weights.safetensors"))
    batch = load_file(kept / "batch.safetensors")
    torch.manual_seed(report["seed"])
    with torch.autocast("cpu", torch.bfloat16, enabled=precision != "32"):
        logits = model(batch["images"])
    assert not cross_entropy(logits.float(), batch["targets"]).isfinite()
    # Nothing was saved: the folder is free for the next attempt, which removes what the first left here.
    resolve_config(config, RunFiles(folder), RunConfig, resume=False)
    train(override(tiny, "engine.epochs=1", "engine.max_batches=1"), run_dir=folder)
    assert not list(kept.iterdir())


def test_where_losses_are_looked_at_now_and_then_the_first_bad_one_is_told(
    tiny: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an accelerator, where a look costs a stop; once resumed, the run looks at every step."""
    original, meta = Classifier._record_loss, Classifier.check_finite
    looks: list[int] = []

    def elsewhere(self: Classifier, loss: Tensor) -> None:
        if self.state.batches_done == 5:
            loss = loss * math.nan
        with monkeypatch.context() as patch:
            patch.setattr(Classifier, "device", torch.device("meta"))
            original(self, loss)

    def check(self: Classifier, **options: bool) -> None:
        looks.append(self.state.batches_done)
        meta(self, **options)

    monkeypatch.setattr(Classifier, "_record_loss", elsewhere)
    monkeypatch.setattr(Classifier, "check_finite", check)
    monkeypatch.setattr("lambdanets.train.learner.CHECK_EVERY", 3)
    config = override(tiny, "engine.save_steps=None", "engine.max_batches=5", "engine.epochs=2")
    with pytest.raises(NonFiniteLossError, match=r"became nan at step 5 \(epoch 2"):
        train(config, run_dir=folder)
    report = json.loads((folder / "nonfinite" / "report.json").read_text())
    assert (report["step"], report["batch"]) == (5, 7)
    assert "Resume the run" in report["notes"][-1]
    looks.clear()
    with pytest.raises(NonFiniteLossError, match=r"became nan at step 5 \(epoch 2"):
        train(run_dir=folder, resume=True)
    assert looks == [5]
    assert json.loads((folder / "nonfinite" / "report.json").read_text())["batch"] == 5


def test_a_report_that_cannot_be_written_hides_nothing(
    tiny: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr("lambdanets.train.learner.locate_nonfinite", full)
    config = override(tiny, "optimizer.lr=1e30", "schedule.warmup_epochs=0")
    with pytest.raises(NonFiniteLossError, match=r"could not be written \(no space\)"):
        train(config, run_dir=folder)
