"""The detector's contract: losses, detections, other sizes, and what must not make it fall."""

import pytest
import torch
from torchvision.models.detection.roi_heads import project_masks_on_boxes

from detectors import batch, pictures, target, tiny, tiny_config
from lambdanets.data.coco.masks import rasterise
from lambdanets.detection import create_detector
from lambdanets.detection.masks import encode_regions, paste_regions
from lambdanets.train import OptimizerConfig
from lambdanets.train.optim import create_optimizer

LOSSES = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(losses.values())).sum()


@pytest.mark.parametrize(("num_classes", "masks"), [(1, True), (2, True), (80, True), (2, False)])
def test_losses_gradients_and_detections(num_classes: int, masks: bool) -> None:
    detector = tiny(num_classes=num_classes, masks=masks)
    images, targets = batch()
    for each in targets:
        each["labels"].clamp_(max=num_classes)
        if not masks:
            del each["masks"]
    losses = detector(images, targets)
    assert set(losses) == (LOSSES | {"loss_mask"} if masks else LOSSES)
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    total(losses).backward()
    assert [name for name, p in detector.named_parameters() if p.grad is None or not p.grad.any()] == []

    detector.roi_heads.score_thresh = 0.0
    found = detector.eval()(images)
    assert len(found) == 2
    for image, each in zip(images, found, strict=True):
        count, (height, width) = len(each["scores"]), image.shape[-2:]
        assert 0 < count <= 12
        assert each["boxes"].shape == (count, 4)
        assert (each["boxes"] >= 0).all()
        assert (each["boxes"] <= torch.tensor([width, height, width, height])).all()
        assert ((each["labels"] >= 1) & (each["labels"] <= num_classes)).all()
        assert torch.equal(each["scores"], each["scores"].sort(descending=True).values)
        assert ("masks" in each) == masks
        if masks:
            assert each["masks"].shape == (count, 1, height, width)
            assert ((each["masks"] >= 0) & (each["masks"] <= 1)).all()


def test_a_few_steps_lower_the_loss() -> None:
    detector = tiny()
    images, targets = batch()
    optimizer = create_optimizer(detector, OptimizerConfig(name="adamw", lr=3e-3))
    values = []
    for step in range(20):
        torch.manual_seed(step)
        loss = total(detector(images, targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert sum(values[-3:]) < 0.8 * sum(values[:3])


def test_images_are_taken_as_bytes_or_from_0_to_1() -> None:
    detector = tiny().eval()
    images, _ = batch()
    scaled = [image.float() / 255 for image in images]
    for one, other in zip(detector(images), detector(scaled), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


# What must not make it fall


@pytest.mark.parametrize("which", [[0], [0, 1]], ids=["one of two", "all"])
def test_images_without_objects(which: list[int]) -> None:
    detector = tiny()
    images, targets = batch()
    for index in which:
        targets[index] = target(tuple(images[index].shape[-2:]), [], [])
    losses = detector(images, targets)
    assert all(loss.isfinite() for loss in losses.values())
    assert (losses["loss_mask"] == 0) == (which == [0, 1])
    total(losses).backward()
    assert [name for name, p in detector.named_parameters() if p.grad is None] == []
    assert all(value.isfinite().all() for value in detector.state_dict().values())


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (5, 131), (200, 3)])
def test_grey_images_of_few_pixels(size: tuple[int, int]) -> None:
    detector = tiny()
    image = torch.full((3, *size), 128, dtype=torch.uint8)
    for objects in (target(size, [], []), target(size, [[0, 0, size[1], size[0]]], [1])):
        loss = total(detector([image], [objects]))
        assert loss.isfinite()
        loss.backward()
    [found] = detector.eval()([image])
    assert all(value.isfinite().all() for value in found.values())


def test_nothing_found() -> None:
    detector = tiny(box_score_thresh=1.0).eval()
    images, _ = batch()
    detections = detector(images), detector.detect(images, [(11, 13), (300, 200)])
    for found, size in zip(detections[0], [(96, 64), (70, 110)], strict=True):
        assert found["boxes"].shape == (0, 4)
        assert found["masks"].shape == (0, 1, *size)
    assert [found["masks"].shape for found in detections[1]] == [(0, 1, 11, 13), (0, 1, 300, 200)]


def test_the_first_batch_decides_nothing() -> None:
    one, other = tiny().eval(), tiny().eval()
    one([torch.zeros(3, 8, 8)])  # padded to 64: torchvision would infer maps larger than the image, for good
    large = pictures((300, 500), (1024, 1024))
    for found, expected in zip(one(large), other(large), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_anchors_stand_at_exact_strides() -> None:
    detector = tiny().eval()
    seen = []
    detector.rpn.anchor_generator.register_forward_hook(lambda *call: seen.append(call[2][0]))
    detector(pictures((300, 500)))
    steps = (4, 8, 16, 32, 64)
    sides = [(320 // step, 512 // step) for step in steps]
    expected = []
    for step, size, (height, width) in zip(steps, (8, 16, 32, 64, 128), sides, strict=True):
        for row in range(height):
            for column in range(width):
                for ratio in (0.5, 1.0, 2.0):
                    w, h = size / ratio**0.5 / 2, size * ratio**0.5 / 2
                    x, y = column * step, row * step
                    expected.append([x - w, y - h, x + w, y + h])
    assert seen[0].shape == (len(expected), 4)
    assert (seen[0] - torch.tensor(expected)).abs().max() <= 0.5  # torchvision rounds their sides


# Other sizes


def test_detections_at_other_sizes() -> None:
    detector = tiny(box_score_thresh=0.0).eval()
    images, _ = batch()
    with torch.no_grad():
        plain = detector(images)
    sizes = [(192, 128), (35, 77)]
    found = detector.detect(images, sizes)
    for at, before, image, (height, width) in zip(found, plain, images, sizes, strict=True):
        down, across = height / image.shape[-2], width / image.shape[-1]
        torch.testing.assert_close(at["boxes"], before["boxes"] * torch.tensor([across, down] * 2))
        assert torch.equal(at["scores"], before["scores"])
        assert torch.equal(at["labels"], before["labels"])
        assert at["masks"].shape == (12, 1, height, width)
        assert 0 < at["masks"].sum() < at["masks"].numel()


@pytest.mark.parametrize("scale", [1, 2, 0.75])
def test_masks_are_drawn_where_they_are_taught(scale: float) -> None:
    """Discs of 8 to 40 pixels, as torchvision's loss teaches them, are drawn as what they were taken from."""
    generator = torch.Generator().manual_seed(0)
    height, width = 90, 130
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    discs, boxes = [], []
    for diameter in torch.linspace(8, 40, 30).tolist():
        left, top = (
            torch.rand(2, generator=generator) * torch.tensor([width, height]).sub(diameter)
        ).tolist()
        radius = diameter / 2
        disc = (x - left - radius) ** 2 + (y - top - radius) ** 2 < radius**2
        across, down = disc.any(0).nonzero()[:, 0], disc.any(1).nonzero()[:, 0]
        boxes.append([across[0], down[0], across[-1] + 1, down[-1] + 1])
        discs.append(disc)
    truth, corners = torch.stack(discs), torch.tensor(boxes).float()
    size = round(height * scale), round(width * scale)
    seen = torch.nn.functional.interpolate(truth[:, None].float(), size, mode="nearest-exact")[:, 0]
    own = corners * torch.tensor([size[1] / width, size[0] / height] * 2)
    taught = project_masks_on_boxes(seen, own, torch.arange(len(own)), 28)[:, None]
    found = {"boxes": own, "labels": torch.ones(30), "scores": torch.ones(30), "masks": taught}
    drawn = paste_regions(found, size, (height, width))["masks"][:, 0]
    overlap = (drawn & truth).sum((1, 2)) / (drawn | truth).sum((1, 2))
    assert overlap.min() > (0.95 if scale >= 1 else 0.85)
    middles = [
        torch.stack([(x * each).sum((1, 2)), (y * each).sum((1, 2))]) / each.sum((1, 2))
        for each in (drawn, truth)
    ]
    assert (middles[0] - middles[1]).mean(1).abs().max() < 0.15  # of a pixel, to no side


def test_an_object_thinner_than_a_pixel_is_drawn() -> None:
    boxes = torch.tensor([[3.6, 2.0, 3.9, 9.0], [0.0, 0.0, 0.2, 0.2], [11.9, 9.9, 12.0, 10.0]])
    found = {"boxes": boxes, "scores": torch.ones(3), "masks": torch.ones(3, 1, 28, 28)}
    drawn = paste_regions(found, (10, 12), (10, 12))["masks"]
    assert drawn.sum((1, 2, 3)).tolist() == [7, 1, 1]


def test_detections_at_the_same_size_are_those_of_a_call() -> None:
    detector = tiny(box_score_thresh=0.0).eval()
    images, _ = batch()
    sizes = [tuple(image.shape[-2:]) for image in images]
    with torch.no_grad():
        plain = detector(images)
    for found, expected in zip(detector.detect(images, sizes), plain, strict=True):
        assert torch.equal(found["boxes"], expected["boxes"])
        assert torch.equal(found["masks"], expected["masks"] > 0.5)


def test_detect_is_refused_in_training_and_without_sizes() -> None:
    detector = tiny()
    with pytest.raises(RuntimeError, match="eval"):
        detector.detect(pictures((64, 64)), [(64, 64)])
    with pytest.raises(ValueError, match="one size for each of the 1 images, got 2"):
        detector.eval().detect(pictures((64, 64)), [(64, 64)] * 2)


# Precision


def test_under_autocast_boxes_keep_their_digits() -> None:
    detector = tiny(box_score_thresh=0.0)
    images, targets = pictures((64, 1000)), [target((64, 1000), [[900.5, 5, 930.25, 41]], [1])]
    anchors = []
    detector.rpn.anchor_generator.register_forward_hook(lambda *call: anchors.append(call[2][0]))
    torch.manual_seed(0)
    exact = detector(images, targets)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        losses = detector(images, targets)
        total(losses).backward()
        [found] = detector.eval()(images)
    assert torch.equal(anchors[0], anchors[1])
    for name, loss in losses.items():
        assert loss.dtype == torch.float32, name
        torch.testing.assert_close(loss, exact[name], rtol=0.05, atol=0.02)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
    boxes = found["boxes"]
    assert boxes.dtype == found["scores"].dtype == found["masks"].dtype == torch.float32
    assert not torch.equal(boxes, boxes.bfloat16().float())


# The model


def test_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for enable in (False, True):
        detector = tiny().double()
        detector.set_grad_checkpointing(enable)
        images, targets = batch()
        torch.manual_seed(0)
        total(detector([image.double() / 255 for image in images], targets)).backward()
        gradients.append({name: p.grad for name, p in detector.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-10, atol=1e-12)


def test_a_state_dict_goes_round() -> None:
    detector, other = tiny(), tiny(seed=5)
    images, targets = batch()
    detector(images, targets)  # moves the statistics
    assert other.load_state_dict(detector.state_dict()).missing_keys == []
    for found, expected in zip(other.eval()(images), detector.eval()(images), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_weight_decay_spares_norms_biases_and_position_tables() -> None:
    detector = tiny()
    optimizer = create_optimizer(detector, OptimizerConfig(name="adamw", lr=0.1, weight_decay=0.01))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(detector.parameters()))
    tables = 0
    for name, parameter in detector.named_parameters():
        is_table = name.endswith("positions")
        tables += is_table
        assert decay[id(parameter)] == (0.0 if is_table or parameter.ndim < 2 else 0.01), name
    assert tables == 2


def test_layer_decay_follows_the_backbone_and_spares_the_heads() -> None:
    detector = tiny()
    optimizer = create_optimizer(detector, OptimizerConfig(name="adamw", lr=0.1, layer_decay=0.5))
    scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    of = {name: scales[id(p)] for name, p in detector.named_parameters()}
    assert {scale for name, scale in of.items() if not name.startswith("backbone.body.")} == {1.0}
    # stem, c2, c3, c4 (two blocks), c5: the heads are one layer above
    names = (
        "conv1.0.weight",
        "layer1.0.conv1",
        "layer2.0.conv1",
        "layer3.0.conv1",
        "layer3.1.conv1",
        "layer4.0",
    )
    for depth, prefix in enumerate(names):
        found = {scale for name, scale in of.items() if name.startswith(f"backbone.body.{prefix}")}
        assert found == {0.5 ** (6 - depth)}, prefix


def test_momentum_is_that_of_every_batch_norm() -> None:
    detector = tiny(bn_momentum=0.003)
    momenta = [m.momentum for m in detector.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert len(momenta) > 20
    assert set(momenta) == {0.003}


def test_heads_without_norms() -> None:
    detector = tiny(head_norm=None)
    heads = [name for name, _ in detector.named_buffers() if not name.startswith("backbone.body.")]
    assert heads == []
    assert total(detector(*batch())).isfinite()


def test_a_detector_needs_a_class() -> None:
    with pytest.raises(ValueError, match="num_classes is 1 or more, the background not counted; got 0"):
        create_detector(tiny_config(), num_classes=0, masks=True)


def test_heads_of_more_classes_than_the_memory_holds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a detector of 1,000,000,000 classes needs at least .* GiB"):
        create_detector(tiny_config(), num_classes=10**9, masks=True)


def test_masks_as_run_lengths_are_those_that_are_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    corner = 30 * torch.rand(6, 2, generator=generator)
    found = {
        "boxes": torch.cat([corner, corner + 1 + 20 * torch.rand(6, 2, generator=generator)], dim=1),
        "labels": torch.arange(1, 7),
        "scores": torch.linspace(0.9, 0.4, 6),
        "masks": torch.rand(6, 1, 28, 28, generator=generator),
    }
    drawn, runs = (draw(found, (50, 60), (101, 73)) for draw in (paste_regions, encode_regions))
    masks = runs["masks"]
    assert torch.equal(torch.from_numpy(rasterise(masks.segmentations, 101, 73)), drawn["masks"][:, 0].byte())
    assert torch.equal(runs["boxes"], drawn["boxes"])
