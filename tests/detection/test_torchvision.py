"""torchvision's own Mask R-CNN as the oracle: same weights, features, losses, gradients and detections."""

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import (
    FasterRCNN_ResNet50_FPN_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
    maskrcnn_resnet50_fpn,
)

from closeness import assert_close_by_name
from detectors import target
from lambdanets.detection import Detector, DetectorConfig, create_detector

SIZES = (
    (64, 128),
    (64, 64),
)  # torchvision keeps them where its limits are 64 and 128, and pads none of the sides
CLASSES = 3
FEW = {"box_detections_per_img": 9, "box_batch_size_per_image": 24, "rpn_post_nms_top_n_test": 50}


@pytest.fixture(scope="module")
def networks() -> tuple[torch.nn.Module, Detector]:
    """torchvision's, its statistics those of a batch, and ours with the same weights; in float64."""
    torch.manual_seed(0)
    theirs = maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES + 1,
        min_size=64,
        max_size=128,
        size_divisible=64,
        _skip_resize=True,  # in training, where it would draw a size at random
        **FEW,
    ).double()
    norms = [module for module in theirs.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    theirs(*data())
    for norm in norms:
        norm.momentum = 0.1
    config = DetectorConfig(name="resnet50_conv", head_norm=None, **FEW)
    ours = create_detector(config, num_classes=CLASSES, masks=True).double()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def data() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, *size, generator=generator, dtype=torch.float64) for size in SIZES]
    targets = [
        target(SIZES[0], [[5.5, 4, 30, 50], [60, 10, 120, 45]], [1, 3]),
        target(SIZES[1], [[15, 20, 50, 45.25]], [2]),
    ]
    for each in targets:
        each["boxes"] = each["boxes"].double()
    return images, targets


def test_features_and_detections(networks: tuple[torch.nn.Module, Detector]) -> None:
    theirs, ours = (network.eval() for network in networks)
    images, _ = data()
    with torch.no_grad():
        stacked = torch.rand(1, 3, 64, 128, dtype=torch.float64)
        assert_close_by_name(ours.backbone(stacked), theirs.backbone(stacked))
        expected: list[dict[str, Tensor]] = []
        handle = theirs.roi_heads.register_forward_hook(lambda *call: expected.extend(map(dict, call[2][0])))
        theirs(images)
        handle.remove()
        found = ours.regions(images)  # masks are drawn otherwise
    for one, other in zip(found, expected, strict=True):
        assert len(other["scores"]) == 9
        assert torch.equal(one.pop("labels"), other.pop("labels"))
        assert_close_by_name(one, other)


def test_losses_and_gradients(networks: tuple[torch.nn.Module, Detector]) -> None:
    results = []
    for network in networks:
        network.train().zero_grad()
        torch.manual_seed(7)  # of the sampling
        losses = network(*data())
        torch.stack(list(losses.values())).sum().backward()
        results.append((losses, {name: p.grad for name, p in network.named_parameters()}))
    (their_losses, their_gradients), (losses, gradients) = results
    # torchvision computes the loss of the RPN's scores in float32, whatever the network is in
    torch.testing.assert_close(losses, their_losses)
    torch.testing.assert_close(gradients, their_gradients)


@pytest.mark.parametrize(
    ("masks", "weights"),
    [(True, MaskRCNN_ResNet50_FPN_Weights.COCO_V1), (False, FasterRCNN_ResNet50_FPN_Weights.COCO_V1)],
)
def test_the_published_number_of_parameters(masks: bool, weights: torch.nn.Module) -> None:
    with torch.device("meta"):
        config = DetectorConfig(name="resnet50_conv", head_norm=None)
        detector = create_detector(config, num_classes=90, masks=masks)
    # Published networks have the backbone's batch norms fixed, and do not count them.
    norms = [m for m in detector.backbone.body.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    fixed = sum(parameter.numel() for norm in norms for parameter in norm.parameters())
    assert sum(p.numel() for p in detector.parameters()) - fixed == weights.meta["num_params"]
