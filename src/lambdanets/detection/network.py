"""Mask R-CNN, composed of torchvision's parts."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import initLevelMapper

from lambdanets.data.coco_masks import Masks
from lambdanets.ops.hardware import available_memory

from .backbone import Backbone
from .config import DetectorConfig
from .results import INSIDE, Objects, as_runs

Found = dict[str, Tensor]
MASK_SIDE = 28  # pixels of a mask as the mask head gives it


def create_detector(
    config: DetectorConfig, *, num_classes: int, masks: bool, loads_weights: bool = False
) -> Detector:
    """Return a detector before its first step: its backbone as the configuration says, its heads at random.

    Args:
        config: backbone, heads and numbers.
        num_classes: classes of objects, without the background; labels run from 1 to `num_classes`.
        masks: whether it has a mask head, or finds boxes alone.
        loads_weights: weights of the whole detector follow: those that the backbone would start from are not
            read.

    Raises:
        ValueError: the network cannot be a backbone, has not what the configuration asks for, or has heads of
            so many classes that they, and what they give for one image, need more memory than there is.
        WeightsError: the weights cannot be found or read, or are of another network.

    Example:
        >>> config = DetectorConfig(name="lambda_resnet50", weights="runs/imagenet", norms="frozen")
        >>> detector = create_detector(config, num_classes=80, masks=True)
    """
    if num_classes < 1:
        raise ValueError(f"num_classes is 1 or more, the background not counted; got {num_classes}")
    needed = num_classes * _bytes_per_class(config, masks=masks)
    if needed > (available := available_memory("cpu") or needed):
        raise ValueError(
            f"a detector of {num_classes:,} classes needs at least {needed / 2**30:,.1f} GiB for its heads "
            f"and the scores and masks of one image, and there are {available / 2**30:,.1f}: train it on "
            "fewer categories"
        )
    return Detector(
        config, Backbone(config, loads_weights=loads_weights), num_classes=num_classes, masks=masks
    )


def _bytes_per_class(config: DetectorConfig, *, masks: bool) -> int:
    """What a class takes, in float32, of the last layers' weights and of their outputs for one image."""
    boxes = 5 * (config.box_dim + config.rpn_post_nms_top_n_test)
    return 4 * (boxes + masks * (config.mask_dim + MASK_SIDE**2 * config.box_detections_per_img))


class Detector(GeneralizedRCNN):
    """Finds objects: their boxes, classes and masks. Called as torchvision's detectors are.

    In training `detector(images, targets)` gives a dict of losses. In evaluation `detector(images)` gives for
    each image a dict: `boxes` of shape (n, 4), left, top, right and bottom in its pixels; `labels` of shape
    (n,), from 1 on; `scores` of shape (n,), the best first; `masks` of shape (n, 1, height, width),
    probabilities.

    Images are RGB of shape (3, height, width), of any sizes, uint8 or from 0 to 1. They are not resized, but
    normalised, and padded at the right and at the bottom to a batch whose sides all strides divide. Targets
    are as from `CocoSet`: `boxes`, `labels` and, with a mask head, `masks`; an image may have no objects.

    Under autocast convolutions and fully connected layers run in low precision; boxes, scores and losses are
    computed in float32, as bfloat16 does not tell pixel 513 from 515.

    Args:
        config: heads and numbers.
        backbone: gives the feature maps.
        num_classes: without the background.
        masks: whether there is a mask head.
    """

    backbone: Backbone
    rpn: Any
    roi_heads: Any
    transform: Any

    def __init__(self, config: DetectorConfig, backbone: Backbone, *, num_classes: int, masks: bool) -> None:
        transform = _ToBatch(
            0, 0, list(config.image_mean), list(config.image_std), size_divisible=backbone.strides[-1]
        )
        super().__init__(backbone, _proposing(config), _heads(config, num_classes, masks=masks), transform)
        for part in (self.backbone, self.rpn.head, self.roi_heads.box_predictor):
            part.register_forward_hook(_in_float32)
        if masks:
            self.roi_heads.mask_predictor.register_forward_hook(_in_float32)
        if config.bn_momentum is not None:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.momentum = config.bn_momentum

    @torch.no_grad()
    def detect(
        self, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]], *, threshold: float = 0.0
    ) -> list[Found]:
        """Return what is in images, in the pixels of other sizes of them, such as those they are stored in.

        Args:
            images: as for a call in evaluation.
            sizes: (height, width) for each.
            threshold: least score of what is returned.

        Returns:
            As a call does, but `masks` are of the sizes asked for, and boolean: a hundred probabilities for
            each pixel of a photo are gigabytes; `regions` and `outlined` give masks as run lengths.

        Raises:
            RuntimeError: the detector is in training mode.
            ValueError: there is not one size for each image.
        """
        if self.training:
            raise RuntimeError("detect() needs evaluation mode: call eval() first")
        if len(sizes) != len(images):
            raise ValueError(f"there must be one size for each of the {len(images)} images, got {len(sizes)}")
        found = []
        for each, image, wanted in zip(self.regions(images), images, sizes, strict=True):
            kept = each["scores"] >= threshold
            likely = {name: value[kept] for name, value in each.items()}
            found.append(placed(likely, image.shape[-2:], wanted))
        return found

    def regions(self, images: Sequence[Tensor]) -> list[Found]:
        """Return what is in images as a call in evaluation does, but masks as the mask head gives them.

        They are probabilities of shape (n, 1, 28, 28), spread over the boxes.
        """
        batch, _ = self.transform(list(images))
        features = self.backbone(batch.tensors)
        proposals, _ = self.rpn(batch, features)
        return self.roi_heads(features, proposals, batch.image_sizes)[0]

    def compile(self, **options: Any) -> None:
        """Compile the backbone in place: in what follows, sizes are other ones with every image."""
        self.backbone.compile(**options)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: the backbone's activations are computed again in the backward pass."""
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that weight decay should spare: those of the backbone."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> Any:
        """Return a function that orders parameters by depth: the backbone's layers, and then all the rest."""
        layers = {f"backbone.{name}": depth for name, depth in self.backbone.layers(coarse).items()}
        return lambda name: layers.get(name, float("inf"))


class _ToBatch(GeneralizedRCNNTransform):
    """Normalises and pads; torchvision's own resizes too, in evaluation even where it is told not to.

    Sizes are whole and positive numbers throughout, which a graph can follow: torchvision's pass through
    floats, and ONNX divides towards zero.
    """

    def normalize(self, image: Tensor) -> Tensor:
        return super().normalize(image / 255 if image.dtype == torch.uint8 else image)

    def resize(self, image: Tensor, target: Found | None = None) -> tuple[Tensor, Found | None]:
        return image, target

    def postprocess(
        self, result: list[Found], image_shapes: list[tuple[int, int]], original_image_sizes: Any
    ) -> list[Found]:
        if self.training:
            return result
        sizes = zip(result, image_shapes, original_image_sizes, strict=True)
        return [placed(found, size, wanted, binary=False) for found, size, wanted in sizes]

    def batch_images(self, images: list[Tensor], size_divisible: int = 32) -> Tensor:
        step = size_divisible
        height, width = (
            (max(image.shape[axis] for image in images) + step - 1) // step * step for axis in (1, 2)
        )
        return torch.stack(
            [F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images]
        )


class RegionPool(MultiScaleRoIAlign):
    """Pools regions from the map that fits their size, as torchvision's `MultiScaleRoIAlign` does.

    That one infers the scale of the maps from the first batch, and keeps it for good: a wrong one where that
    batch was padded much. And it cannot be traced where the number of regions depends on the image.

    Args:
        reductions: side of the image over that of each map.
        size: side of what is pooled.
    """

    def __init__(self, reductions: Sequence[int], size: int) -> None:
        super().__init__([str(level) for level in range(len(reductions))], size, sampling_ratio=2)
        self.scales = [1 / step for step in reductions]
        self.map_levels = initLevelMapper(reductions[0].bit_length() - 1, reductions[-1].bit_length() - 1)

    def forward(self, x: Found, boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Return what is pooled, of shape (regions of all images, channels, size, size)."""
        maps = [x[name] for name in self.featmap_names]
        rois = torch.cat([F.pad(each, (1, 0), value=float(image)) for image, each in enumerate(boxes)])
        levels = self.map_levels(boxes)
        pooled = maps[0].new_zeros(rois.shape[0], maps[0].shape[1], *self.output_size)
        for level, (features, scale) in enumerate(zip(maps, self.scales, strict=True)):
            own = torch.where(levels == level)[0]
            pooled[own] = roi_align(features, rois[own], self.output_size, scale, self.sampling_ratio)
        return pooled


def _proposing(config: DetectorConfig) -> RegionProposalNetwork:
    ratios = (config.aspect_ratios,) * len(config.anchor_sizes)
    anchors = AnchorGenerator(tuple((size,) for size in config.anchor_sizes), ratios)
    return RegionProposalNetwork(
        anchors,
        RPNHead(config.fpn_channels, len(config.aspect_ratios)),
        config.rpn_fg_iou_thresh,
        config.rpn_bg_iou_thresh,
        config.rpn_batch_size_per_image,
        config.rpn_positive_fraction,
        {"training": config.rpn_pre_nms_top_n_train, "testing": config.rpn_pre_nms_top_n_test},
        {"training": config.rpn_post_nms_top_n_train, "testing": config.rpn_post_nms_top_n_test},
        config.rpn_nms_thresh,
    )


def _heads(config: DetectorConfig, num_classes: int, *, masks: bool) -> RoIHeads:
    mask: dict[str, nn.Module] = {}
    if masks:
        layers = (config.mask_dim,) * config.mask_convs
        norm = nn.BatchNorm2d if config.head_norm else None
        mask = {
            "mask_roi_pool": RegionPool(config.reductions, 14),
            "mask_head": MaskRCNNHeads(config.fpn_channels, layers, 1, norm_layer=norm),
            "mask_predictor": MaskRCNNPredictor(config.mask_dim, config.mask_dim, num_classes + 1),
        }
    return RoIHeads(
        RegionPool(config.reductions, 7),
        _box_head(config, config.fpn_channels * 7 * 7),
        FastRCNNPredictor(config.box_dim, num_classes + 1),
        config.box_fg_iou_thresh,
        config.box_bg_iou_thresh,
        config.box_batch_size_per_image,
        config.box_positive_fraction,
        None,
        config.box_score_thresh,
        config.box_nms_thresh,
        config.box_detections_per_img,
        **mask,
    )


def _box_head(config: DetectorConfig, dim: int) -> nn.Sequential:
    """torchvision's `TwoMLPHead`, with a norm after each layer where the heads have norms."""
    layers: list[tuple[str, nn.Module]] = [("flatten", nn.Flatten())]
    for number in (6, 7):
        layers.append((f"fc{number}", nn.Linear(dim, config.box_dim, bias=not config.head_norm)))
        if config.head_norm:
            layers.append((f"norm{number}", nn.BatchNorm1d(config.box_dim)))
        layers.append((f"act{number}", nn.ReLU(inplace=True)))
        dim = config.box_dim
    return nn.Sequential(OrderedDict(layers))


def _in_float32(module: nn.Module, args: Any, output: Any) -> Any:
    """A forward hook that gives what a part computes in low precision as float32."""
    if isinstance(output, Tensor):
        return output.to(torch.promote_types(output.dtype, torch.float32))
    if isinstance(output, dict):
        return type(output)((name, _in_float32(module, args, each)) for name, each in output.items())
    return type(output)(_in_float32(module, args, each) for each in output)


def placed(found: Found, size: Sequence[int], wanted: Sequence[int], *, binary: bool = True) -> Found:
    """Return regions of an image in the pixels of another size of it, with masks drawn there.

    Args:
        found: of an image, as from `Detector.regions`.
        size: its (height, width).
        wanted: the other (height, width).
        binary: whether masks say where objects are, or how likely.

    Returns:
        The same, and `masks`, where there are such, boolean or probabilities of shape (n, 1, *wanted).
    """
    moved = found | {"boxes": resize_boxes(found["boxes"], list(size), list(wanted))}
    if "masks" in found:
        masks = found["masks"]
        dtype = torch.bool if binary else masks.dtype
        moved["masks"] = masks.new_zeros((len(masks), 1, *wanted), dtype=dtype)
        for whole, (top, left, part) in zip(moved["masks"][:, 0], _parts(found, size, wanted), strict=True):
            whole[top : top + part.shape[0], left : left + part.shape[1]] = part > INSIDE if binary else part
    return moved


def outlined(found: Found, size: Sequence[int], wanted: Sequence[int]) -> Objects:
    """Return regions of an image as `placed` does, on the CPU, with masks as run lengths.

    Whole masks of all objects at once would take n times the memory of the image.

    Args:
        found: of an image, as from `Detector.regions`.
        size: its (height, width).
        wanted: the other (height, width).
    """
    boxes = resize_boxes(found["boxes"], list(size), list(wanted))
    moved: Objects = {name: value.cpu() for name, value in (found | {"boxes": boxes}).items()}
    if "masks" in found:
        height, width = wanted
        runs = [
            as_runs((part > INSIDE).cpu().numpy(), top, left, height, width)
            for top, left, part in _parts(found, size, wanted)
        ]
        moved["masks"] = Masks(runs, height, width)
    return moved


@torch.no_grad()
def _parts(found: Found, size: Sequence[int], wanted: Sequence[int]) -> Iterator[tuple[int, int, Tensor]]:
    """Draw the masks of regions over their boxes, pixel by pixel: top, left and probabilities of each.

    What masks are taught is pooled by RoIAlign as torchvision has it, which takes a pixel to be at its upper
    left corner: the object is half a pixel of the network's image further down and to the right. torchvision
    draws masks where they were not taught, and over boxes that are cut to whole pixels; of perfect masks on
    small objects that leaves an AP of about 0.7 (benchmarks/detection/masks.csv).

    Args:
        found: of an image, as from `Detector.regions`.
        size: its (height, width).
        wanted: the (height, width) in which the masks are drawn.
    """
    shift = [side / (2 * before) for side, before in zip(wanted, size, strict=True)]
    boxes = resize_boxes(found["boxes"], list(size), list(wanted)).tolist()
    for mask, (left, top, right, bottom) in zip(found["masks"], boxes, strict=True):
        corner, places = [], []
        for side, begin, end, half in zip(wanted, (top, left), (bottom, right), shift, strict=True):
            first = min(max(math.ceil(begin - 0.5), 0), side - 1)
            last = max(min(math.ceil(end - 0.5), side), first + 1)  # the middles of these are in the box
            middles = torch.arange(first, last, dtype=mask.dtype, device=mask.device) + 0.5
            places.append(2 * (middles - half - begin) / max(end - begin, 1e-6) - 1)
            corner.append(first)
        down, across = places
        grid = torch.stack(torch.broadcast_tensors(across[None, :], down[:, None]), dim=-1)
        drawn = F.grid_sample(mask[None], grid[None], padding_mode="border", align_corners=False)[0, 0]
        yield corner[0], corner[1], drawn
