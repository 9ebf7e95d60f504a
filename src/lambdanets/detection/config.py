"""What a detector is made of, as data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from lambdanets.models.weight_files import HUB

COUNTS = (
    "fpn_channels",
    "box_dim",
    "mask_dim",
    "mask_convs",
    "rpn_pre_nms_top_n_train",
    "rpn_pre_nms_top_n_test",
    "rpn_post_nms_top_n_train",
    "rpn_post_nms_top_n_test",
    "rpn_batch_size_per_image",
    "box_batch_size_per_image",
    "box_detections_per_img",
)
FRACTIONS = (
    "rpn_nms_thresh",
    "rpn_fg_iou_thresh",
    "rpn_bg_iou_thresh",
    "rpn_positive_fraction",
    "box_score_thresh",
    "box_nms_thresh",
    "box_fg_iou_thresh",
    "box_bg_iou_thresh",
    "box_positive_fraction",
)
OURS = ("num_classes", "in_chans", "features_only", "out_indices")


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """A Mask R-CNN with a feature pyramid: its backbone, its heads, and how regions are proposed and sampled.

    Sizes and numbers are those of torchvision's `maskrcnn_resnet50_fpn`, which are those of the Mask R-CNN
    paper; the numbers of RPN and RoI heads have torchvision's own names. The norms in the heads are what
    training from scratch needs (He et al., "Rethinking ImageNet Pre-training"); torchvision's network of 2017
    has none.

    Args:
        name: the backbone, of timm's registry, ours or another.
        options: its further arguments, such as `scope`, `drop_path_rate` or `pretrained`.
        weights: what the backbone starts from: a file, the folder of a run, or hf-hub:OWNER/NAME with the
            weights of a classifier of this name and these options, whose head is left out (see
            `lambdanets.models.load_weights`). A resumed run has its own weights.
        bn_momentum: weight of a batch in the running statistics of all batch norms (PyTorch's way round: 0.1
            where TensorFlow says 0.9); None leaves them their own.
        frozen_stages: how many stages of the backbone stay as they start, the stem being the first.
        norms: whether the backbone's batch norms are trained on ("batch"), or keep their statistics and
            weights ("frozen"), for batches of few images.
        head_norm: "batch" puts batch norms into the feature pyramid, the box head and the mask head.
        reductions: the backbone's feature maps that are used: side of the image over that of the map. The
            pyramid adds one more, of half the last one's side, to which the RPN alone looks.
        fpn_channels: channels of the feature pyramid and of the RPN.
        anchor_sizes: side of the anchors of each map in pixels, one for each reduction and one for the added
            map.
        aspect_ratios: height over width of the anchors of every map.
        box_dim: width of the two fully connected layers of the box head.
        mask_dim: channels of the mask head.
        mask_convs: its 3x3 convolutions.
        rpn_pre_nms_top_n_train, rpn_pre_nms_top_n_test: best proposals of each map before suppression.
        rpn_post_nms_top_n_train, rpn_post_nms_top_n_test: proposals of an image that are kept after it.
        rpn_nms_thresh: overlap (IoU) above which the worse of two proposals is dropped.
        rpn_fg_iou_thresh, rpn_bg_iou_thresh: overlap from which on an anchor is an object, and below which it
            is background.
        rpn_batch_size_per_image: anchors of an image that the RPN's loss is computed on.
        rpn_positive_fraction: largest part of them that are objects.
        box_score_thresh: least score of a detection.
        box_nms_thresh: overlap above which the worse of two detections of a class is dropped.
        box_detections_per_img: most detections of an image.
        box_fg_iou_thresh, box_bg_iou_thresh: overlap from which on a proposal is an object, and below which
            it is background.
        box_batch_size_per_image: proposals of an image that the losses of the heads are computed on.
        box_positive_fraction: largest part of them that are objects, which the mask head is trained on.
        image_mean, image_std: of the images' channels, from 0 to 1.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    bn_momentum: float | None = None
    frozen_stages: int = 0
    norms: Literal["batch", "frozen"] = "batch"
    head_norm: Literal["batch"] | None = "batch"
    reductions: tuple[int, ...] = (4, 8, 16, 32)
    fpn_channels: int = 256
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    box_dim: int = 1024
    mask_dim: int = 256
    mask_convs: int = 4
    rpn_pre_nms_top_n_train: int = 2000
    rpn_pre_nms_top_n_test: int = 1000
    rpn_post_nms_top_n_train: int = 2000
    rpn_post_nms_top_n_test: int = 1000
    rpn_nms_thresh: float = 0.7
    rpn_fg_iou_thresh: float = 0.7
    rpn_bg_iou_thresh: float = 0.3
    rpn_batch_size_per_image: int = 256
    rpn_positive_fraction: float = 0.5
    box_score_thresh: float = 0.05
    box_nms_thresh: float = 0.5
    box_detections_per_img: int = 100
    box_fg_iou_thresh: float = 0.5
    box_bg_iou_thresh: float = 0.5
    box_batch_size_per_image: int = 512
    box_positive_fraction: float = 0.25
    image_mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN
    image_std: tuple[float, float, float] = IMAGENET_DEFAULT_STD

    def __post_init__(self) -> None:
        if given := [name for name in OURS if name in self.options]:
            raise ValueError(f"model.options.{given[0]} is the detector's to choose; leave it out")
        for name, known in (("norms", ("batch", "frozen")), ("head_norm", ("batch", None))):
            if getattr(self, name) not in known:
                words = " or ".join(map(repr, known))
                raise ValueError(f"model.{name} is {words}; got {getattr(self, name)!r}")
        self._check_start()
        if self.bn_momentum is not None and not 0 < self.bn_momentum <= 1:
            raise ValueError(f"model.bn_momentum is above 0 and at most 1, or None; got {self.bn_momentum}")
        for name in COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is 1 or more; got {getattr(self, name)}")
        for name in FRACTIONS:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"model.{name} is from 0 to 1; got {getattr(self, name)}")
        for part in ("rpn", "box"):
            least, most = (getattr(self, f"{part}_{kind}_iou_thresh") for kind in ("bg", "fg"))
            if least > most:
                raise ValueError(
                    f"model.{part}_bg_iou_thresh is at most model.{part}_fg_iou_thresh, {most}; got {least}"
                )
        self._check_pyramid()
        for name, least in (("image_mean", float("-inf")), ("image_std", 0)):
            if len(getattr(self, name)) != 3 or min(getattr(self, name)) <= least:
                words = "three numbers" if name == "image_mean" else "three numbers greater than 0"
                raise ValueError(f"model.{name} is {words}; got {getattr(self, name)}")

    def _check_start(self) -> None:
        if self.weights == "":
            raise ValueError("model.weights is a file, a folder or hf-hub:OWNER/NAME, or None; got ''")
        if self.weights is not None and self.options.get("pretrained"):
            raise ValueError("model.weights and model.options.pretrained=true both name a start; keep one")
        if "checkpoint_path" in self.options:
            raise ValueError(
                "model.options.checkpoint_path: the weights that a run starts from go to model.weights"
            )
        if self.frozen_stages < 0:
            raise ValueError(f"model.frozen_stages is 0 or more; got {self.frozen_stages}")
        if self.weights is None and not self.options.get("pretrained"):
            for name, learns in (("frozen_stages", 0), ("norms", "batch")):
                if getattr(self, name) != learns:
                    raise ValueError(
                        f"model.{name}={getattr(self, name)} would fix what has not been trained: give "
                        f"model.weights or model.options.pretrained=true, or model.{name}={learns}"
                    )

    def _check_pyramid(self) -> None:
        steps = self.reductions
        if not steps or steps[0] < 1 or steps[0] & (steps[0] - 1):
            raise ValueError(f"model.reductions starts with a power of two; got {steps}")
        if any(after != 2 * before for before, after in pairwise(steps)):
            raise ValueError(f"model.reductions doubles from map to map, as in 4, 8, 16, 32; got {steps}")
        if len(self.anchor_sizes) != len(steps) + 1:
            raise ValueError(
                f"model.anchor_sizes has a size for each of the {len(steps)} reductions and one for the map "
                f"that is added; got {self.anchor_sizes}"
            )
        for name in ("anchor_sizes", "aspect_ratios"):
            if not getattr(self, name) or min(getattr(self, name)) <= 0:
                raise ValueError(f"model.{name} are greater than 0; got {getattr(self, name)}")

    def resolved(self) -> DetectorConfig:
        """Return the same with the path of `weights` written out, to be found from any directory."""
        if self.weights is None or self.weights.startswith(HUB):
            return self
        return replace(self, weights=str(Path(self.weights).expanduser().absolute()))
