import pytest
import torch

from lambdanets.models import create_model
from lambdanets.train import OptimizerConfig
from lambdanets.train.optim import create_optimizer


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_spares_norms_biases_and_position_tables(name: str) -> None:
    model = create_model("lambda_resnet_digits", num_classes=10, in_chans=1)
    optimizer = create_optimizer(model, OptimizerConfig(name=name, lr=0.1, weight_decay=0.01))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    tables = 0
    for parameter_name, parameter in model.named_parameters():
        is_table = parameter_name.endswith("positions")
        tables += is_table
        spared = parameter.ndim < 2 or parameter_name.endswith("bias") or is_table
        assert decay[id(parameter)] == (0.0 if spared else 0.01), parameter_name
    assert tables > 0
    assert sum(value > 0 for value in decay.values()) > 10


def test_sgd_is_nesterov_with_the_momentum_asked_for() -> None:
    optimizer = create_optimizer(torch.nn.Linear(2, 2), OptimizerConfig(lr=0.3, momentum=0.8))
    assert isinstance(optimizer, torch.optim.SGD)
    assert all(g["nesterov"] and g["momentum"] == 0.8 and g["lr"] == 0.3 for g in optimizer.param_groups)


def test_options_reach_the_optimiser() -> None:
    config = OptimizerConfig(name="adamw", lr=1e-3, options={"betas": (0.8, 0.95)})
    assert create_optimizer(torch.nn.Linear(2, 2), config).param_groups[0]["betas"] == (0.8, 0.95)


def test_an_unknown_optimiser_is_named_with_its_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean adamw"):
        create_optimizer(torch.nn.Linear(2, 2), OptimizerConfig(name="adamww"))


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"weight_decay": -1.0}])
def test_impossible_numbers_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"optimizer.{next(iter(wrong))}"):
        OptimizerConfig(**wrong)  # pyright: ignore[reportArgumentType]
