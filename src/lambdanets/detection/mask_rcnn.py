"""Mask R-CNN, composed of torchvision's modules."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
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
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import initLevelMapper

from lambdanets.detection.backbone import Backbone
from lambdanets.detection.config import DetectorConfig, holds_detector
from lambdanets.detection.masks import Regions, paste_regions
from lambdanets.models import load_weights
from lambdanets.models.weight_files import PRETRAINED
from lambdanets.ops.hardware import available_memory

# Pixels of the mask head's output.
MASK_SIDE = 28
# The layers whose size depends on the number of classes.
CLASSIFIERS = ("roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred")
MASK_CLASSIFIER = ("roi_heads.mask_predictor.mask_fcn_logits",)


def create_detector(
    config: DetectorConfig, *, num_classes: int, masks: bool, loads_weights: bool = False
) -> Detector:
    """Return a detector with the configured initial weights.

    Those of a classifier are the backbone's, and the heads are random; those of a detector are loaded as a
    whole, except for heads of another number of classes.

    Args:
        config: Backbone, heads and options.
        num_classes: Classes of objects, without the background; labels run from 1 to `num_classes`.
        masks: Add a mask head; without it only boxes are found.
        loads_weights: The caller loads weights of the whole detector later: the backbone's initial weights
            are not read.

    Raises:
        ValueError: The network cannot be a backbone or does not fit the configuration, parts of it would be
            frozen without initial weights, or the heads of so many classes and their outputs for one image
            need more memory than available.
        WeightsError: The weights cannot be found or read, or belong to another network.

    Example:
        >>> config = DetectorConfig(name="lambda_resnet50", weights="runs/imagenet", norms="frozen")
        >>> detector = create_detector(config, num_classes=80, masks=True)
    """
    if num_classes < 1:
        raise ValueError(f"num_classes is 1 or more, the background not counted; got {num_classes}")
    required = num_classes * _bytes_per_class(config, masks=masks)
    if required > (available := available_memory("cpu") or required):
        raise ValueError(
            f"a detector of {num_classes:,} classes needs at least {required / 2**30:,.1f} GiB for its heads "
            f"and the scores and masks of one image, and there are {available / 2**30:,.1f}: train it on "
            "fewer categories"
        )
    if not loads_weights:
        config.check_start()
    weights = None if loads_weights or config.weights == PRETRAINED else config.weights
    whole = weights is not None and holds_detector(weights)
    backbone = Backbone(config, loads_weights=loads_weights or whole)
    detector = Detector(config, backbone, num_classes=num_classes, masks=masks)
    if weights is not None and whole:
        load_weights(detector, weights, head="replace")
    return detector


def _bytes_per_class(config: DetectorConfig, *, masks: bool) -> int:
    """Return the float32 bytes per class of the last layers' weights and of their outputs for one image."""
    boxes = 5 * (config.box_dim + config.rpn_post_nms_top_n_test)
    return 4 * (boxes + masks * (config.mask_dim + MASK_SIDE**2 * config.box_detections_per_img))


class Detector(GeneralizedRCNN):
    """Detects objects: boxes, classes and masks. It is called like torchvision's detectors.

    In training `detector(images, targets)` returns a dict of losses. In evaluation `detector(images)` returns
    a dict for each image: `boxes` [n, 4], left, top, right and bottom in pixels; `labels` [n], from 1;
    `scores` [n] in descending order; `masks` [n, 1, height, width], probabilities.

    Images are RGB [3, height, width], of any sizes, uint8 or in [0, 1]. They are normalised, not resized, and
    padded at the right and at the bottom to a batch whose sides are multiples of all strides. Targets are
    those of `CocoSet`: `boxes`, `labels` and, with a mask head, `masks`; an image may have no objects.

    Under autocast, convolutions and fully connected layers run in low precision; boxes, scores and losses are
    computed in float32, as bfloat16 cannot distinguish pixels 513 and 515.

    Args:
        config: Heads and options.
        backbone: Network that returns the feature maps.
        num_classes: Number of classes, without the background.
        masks: Add a mask head.
    """

    backbone: Backbone
    rpn: Any
    roi_heads: Any
    transform: Any
    body_modules = ("backbone.body",)

    def __init__(self, config: DetectorConfig, backbone: Backbone, *, num_classes: int, masks: bool) -> None:
        transform = _BatchTransform(
            0, 0, list(config.image_mean), list(config.image_std), size_divisible=backbone.strides[-1]
        )
        rpn, heads = _region_proposals(config), _roi_heads(config, num_classes, masks=masks)
        super().__init__(backbone, rpn, heads, transform)
        # As in timm's models: `load_weights` may replace these layers.
        self.pretrained_cfg = {
            "architecture": f"a detector on {config.name}",
            "classifier": (*CLASSIFIERS, *MASK_CLASSIFIER * masks),
        }
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
    ) -> list[dict[str, Tensor]]:
        """Return the objects of images, in pixels of other sizes, such as those of the stored files.

        Args:
            images: As for a call in evaluation.
            sizes: (height, width) of the result, for each image.
            threshold: Least score of the returned objects.

        Returns:
            The dicts of a call, with boolean `masks` `[n, 1, *size]`. Boolean masks of a hundred objects take
            a hundred times the memory of a photo; `regions` and `masks.encode_regions` return run lengths.

        Raises:
            RuntimeError: The detector is in training mode.
            ValueError: The numbers of images and sizes differ.
        """
        if self.training:
            raise RuntimeError("detect() needs evaluation mode: call eval() first")
        if len(sizes) != len(images):
            raise ValueError(f"there must be one size for each of the {len(images)} images, got {len(sizes)}")
        detections = []
        for regions, image, size in zip(self.regions(images), images, sizes, strict=True):
            confident = regions["scores"] >= threshold
            selected = {name: value[confident] for name, value in regions.items()}
            detections.append(paste_regions(selected, image.shape[-2:], size))
        return detections

    def regions(self, images: Sequence[Tensor]) -> list[Regions]:
        """Return the objects of images as a call in evaluation does, with masks as the mask head's output.

        These masks are probabilities [n, 1, 28, 28], stretched over the boxes.
        """
        batch, _ = self.transform(list(images))
        features = self.backbone(batch.tensors)
        proposals, _ = self.rpn(batch, features)
        return self.roi_heads(features, proposals, batch.image_sizes)[0]

    def compile(self, **options: Any) -> None:
        """Compile the backbone in place; the layers behind it have other shapes for every image."""
        self.backbone.compile(**options)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: the backbone's activations are recomputed in the backward pass."""
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay: those of the backbone."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> Any:
        """Return a function from a parameter's name to its depth: the backbone's layers, then all others."""
        layers = {f"backbone.{name}": depth for name, depth in self.backbone.layers(coarse).items()}
        return lambda name: layers.get(name, float("inf"))


class _BatchTransform(GeneralizedRCNNTransform):
    """Normalises and pads; torchvision's class also resizes, in evaluation even if this is disabled.

    Sizes are computed in positive integers, which an exported graph can follow: torchvision's pass through
    floats, and ONNX's integer division rounds towards zero.
    """

    def normalize(self, image: Tensor) -> Tensor:
        return super().normalize(image / 255 if image.dtype == torch.uint8 else image)

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, Any]:
        return image, target

    def postprocess(
        self, result: list[Regions], image_shapes: list[tuple[int, int]], original_image_sizes: Any
    ) -> list[dict[str, Tensor]]:
        if self.training:
            return result
        images = zip(result, image_shapes, original_image_sizes, strict=True)
        return [
            paste_regions(regions, size, target_size, binary=False) for regions, size, target_size in images
        ]

    def batch_images(self, images: list[Tensor], size_divisible: int = 32) -> Tensor:
        step = size_divisible
        height, width = (
            (max(image.shape[axis] for image in images) + step - 1) // step * step for axis in (1, 2)
        )
        return torch.stack(
            [F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images]
        )


class RegionPool(MultiScaleRoIAlign):
    """Pools each region from the map that fits its size, as torchvision's `MultiScaleRoIAlign` does.

    torchvision's class infers the scales of the maps from the first batch and keeps them, which is wrong if
    that batch was padded much. It also cannot be traced if the number of regions depends on the image.

    Args:
        reductions: Side of the image over that of each map.
        size: Side of a pooled region.
    """

    def __init__(self, reductions: Sequence[int], size: int) -> None:
        super().__init__([str(level) for level in range(len(reductions))], size, sampling_ratio=2)
        self.scales = [1 / step for step in reductions]
        self.map_levels = initLevelMapper(reductions[0].bit_length() - 1, reductions[-1].bit_length() - 1)

    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Return the pooled regions of all images [n, channels, size, size]."""
        maps = [x[name] for name in self.featmap_names]
        rois = torch.cat([F.pad(each, (1, 0), value=float(image)) for image, each in enumerate(boxes)])
        levels = self.map_levels(boxes)
        pooled = maps[0].new_zeros(rois.shape[0], maps[0].shape[1], *self.output_size)
        for level, (features, scale) in enumerate(zip(maps, self.scales, strict=True)):
            selected = torch.where(levels == level)[0]
            pooled[selected] = roi_align(
                features, rois[selected], self.output_size, scale, self.sampling_ratio
            )
        return pooled


def _region_proposals(config: DetectorConfig) -> RegionProposalNetwork:
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


def _roi_heads(config: DetectorConfig, num_classes: int, *, masks: bool) -> RoIHeads:
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
    """Return torchvision's `TwoMLPHead`, with a norm after each layer if the heads have norms."""
    layers: list[tuple[str, nn.Module]] = [("flatten", nn.Flatten())]
    for number in (6, 7):
        layers.append((f"fc{number}", nn.Linear(dim, config.box_dim, bias=not config.head_norm)))
        if config.head_norm:
            layers.append((f"norm{number}", nn.BatchNorm1d(config.box_dim)))
        layers.append((f"act{number}", nn.ReLU(inplace=True)))
        dim = config.box_dim
    return nn.Sequential(OrderedDict(layers))


def _in_float32(module: nn.Module, args: Any, output: Any) -> Any:
    """Convert the output of a module to float32 if it is of lower precision; a forward hook."""
    if isinstance(output, Tensor):
        return output.to(torch.promote_types(output.dtype, torch.float32))
    if isinstance(output, dict):
        return type(output)((name, _in_float32(module, args, each)) for name, each in output.items())
    return type(output)(_in_float32(module, args, each) for each in output)
