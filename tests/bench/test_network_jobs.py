"""What is timed is what a user would run, and whole."""

import copy

import pytest
import torch
from torch import nn

from lambdanets.bench import NetworkSpec, networks
from lambdanets.bench.memory import CLEAR, peak_mib
from lambdanets.bench.networks import LEARNING_RATE, MOMENTUM, NetworkJob
from lambdanets.models import create_model

NETWORK = NetworkSpec(model="lambda_resnet_digits", size=(8, 8))


def step(which: str, dtype: torch.dtype = torch.float32) -> NetworkJob:
    return NetworkJob(network=NETWORK, which=which, batch=5, dtype=dtype, device="cpu", threads=1, channels=1)  # type: ignore[arg-type]


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    made = create_model(NETWORK.model)
    monkeypatch.setattr(networks, "create_model", lambda name: made)
    return made


def test_inference_is_that_of_the_network(network: nn.Module) -> None:
    run = step("eval").prepare()
    assert run().shape == (5, 10)
    assert run().is_inference()
    assert not network.training
    assert torch.equal(run(), run())


def test_a_training_step_is_a_step_of_sgd(network: nn.Module) -> None:
    """Weights after two steps against momentum written out; batch norm sees the same batch."""
    other = copy.deepcopy(network).train()
    run = step("train").prepare()
    torch.manual_seed(0)
    images = torch.randn(5, 1, 8, 8)
    labels = torch.tensor([0, 1, 2, 3, 4])
    velocity = {name: torch.zeros_like(weight) for name, weight in other.named_parameters()}
    for _ in range(2):
        loss = -other(images).log_softmax(1)[torch.arange(5), labels].mean()
        gradients = torch.autograd.grad(loss, list(other.parameters()))
        with torch.no_grad():
            for (name, weight), gradient in zip(other.named_parameters(), gradients, strict=True):
                velocity[name] = MOMENTUM * velocity[name] + gradient
                weight -= LEARNING_RATE * velocity[name]
        assert torch.allclose(run(), loss, rtol=1e-4)
    for name, weight in network.named_parameters():
        assert torch.allclose(weight, other.get_parameter(name), atol=1e-5), name


def test_bfloat16(network: nn.Module) -> None:
    assert step("eval", torch.bfloat16).prepare()().dtype == torch.bfloat16
    network.float()
    assert torch.isfinite(step("train", torch.bfloat16).prepare()())
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}


@pytest.mark.skipif(not CLEAR.exists(), reason="this system does not report peaks")
def test_the_peak_in_bfloat16_is_not_that_of_weights_in_float32() -> None:
    """Eleven million weights and one small image: what the network was built from weighs twice as much."""
    found = peak_mib(
        NetworkJob(
            network=NetworkSpec(model="resnet18", size=(32, 32)),
            which="eval",
            batch=1,
            dtype=torch.bfloat16,
            device="cpu",
            threads=1,
            channels=3,
        )
    )
    weights = 2 * 11_689_512 / 2**20
    assert isinstance(found, float)
    assert weights < found < 1.8 * weights
