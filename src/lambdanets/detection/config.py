"""Typed configurations of a detector and of a run that trains one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from lambdanets.data import CocoConfig
from lambdanets.models import WeightsError, load_weights
from lambdanets.models.weight_files import PRETRAINED, absolute_weights, find_weights, read_weights
from lambdanets.train.config import BaseConfig, HubForm, RunConfig
from lambdanets.train.model_config import check_frozen, check_published, check_trained, take_initial_weights
from lambdanets.utils.text import join_some

if TYPE_CHECKING:
    from lambdanets.detection.mask_rcnn import Detector
    from lambdanets.train.initial_weights import WeightsRecord

# pycocotools computes the recall of 1, of 10 and of `max_detections` detections, in ascending order.
MIN_MAX_DETECTIONS = 11

POSITIVE_FIELDS = (
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
FRACTION_FIELDS = (
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
# Options of the backbone that the detector sets itself.
RESERVED_OPTIONS = ("num_classes", "in_chans", "features_only", "out_indices")


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """A Mask R-CNN with a feature pyramid: backbone, heads, and the proposal and sampling of regions.

    Defaults are those of torchvision's `maskrcnn_resnet50_fpn`, which follow the Mask R-CNN paper; the
    options of RPN and RoI heads have torchvision's names. Norms in the heads are added for training from
    scratch (He et al., "Rethinking ImageNet Pre-training"); torchvision's network has none.

    Args:
        name: Name of the backbone in timm's registry, of this package or of timm.
        options: Further arguments of the backbone, such as scope or drop_path_rate, set one by one as
            `model.options.NAME=VALUE`.
        weights: Initial weights: a file, the folder of a run, or hf-hub:OWNER/NAME (see
            `lambdanets.models.load_weights`). Those of a classifier of this name and these options become
            the backbone's, without their head; those of a detector of this configuration are loaded as a
            whole, except for heads of another number of classes. "pretrained" takes the weights of the
            backbone that timm publishes. A resumed run has its own weights.
        bn_momentum: Weight of a batch in the running statistics of all batch norms (PyTorch's convention: 0.1
            where TensorFlow has 0.9); None keeps the default of each.
        frozen_stages: Number of stages of the backbone that are not trained, the stem being the first; needs
            initial weights.
        head_epochs: Number of first epochs in which the backbone is in evaluation mode and not trained, only
            the feature pyramid and the heads; needs initial weights.
        norms: "batch" trains the backbone's batch norms; "frozen" keeps their statistics and weights, for
            batches of few images, and needs initial weights.
        head_norm: "batch" puts batch norms into the feature pyramid, the box head and the mask head, which
            training from scratch needs; None puts none there.
        reductions: Strides of the backbone's feature maps that feed the pyramid. It adds one more map of half
            the last one's side, for the region proposal network (RPN) alone.
        fpn_channels: Channels of the feature pyramid and of the RPN.
        anchor_sizes: Side of the anchors of each map in pixels, one for each reduction and one for the added
            map.
        aspect_ratios: Ratios of height to width of the anchors of every map.
        box_dim: Width of the two fully connected layers of the box head.
        mask_dim: Channels of the mask head.
        mask_convs: Number of 3x3 convolutions of the mask head.
        rpn_pre_nms_top_n_train: Best proposals of each map before non-maximum suppression, in training.
        rpn_pre_nms_top_n_test: Best proposals of each map before non-maximum suppression, in evaluation.
        rpn_post_nms_top_n_train: Proposals of an image after suppression, in training.
        rpn_post_nms_top_n_test: Proposals of an image after suppression, in evaluation.
        rpn_nms_thresh: Overlap (IoU) above which the worse of two proposals is dropped.
        rpn_fg_iou_thresh: Least overlap (IoU) of an anchor that counts as an object.
        rpn_bg_iou_thresh: Overlap below which an anchor counts as background.
        rpn_batch_size_per_image: Anchors of an image on which the RPN's loss is computed.
        rpn_positive_fraction: Largest fraction of the anchors in the loss that are objects.
        box_score_thresh: Least score of a detection.
        box_nms_thresh: Overlap above which the worse of two detections of a class is dropped.
        box_detections_per_img: Most detections of an image.
        box_fg_iou_thresh: Least overlap (IoU) of a proposal that counts as an object.
        box_bg_iou_thresh: Overlap below which a proposal counts as background.
        box_batch_size_per_image: Proposals of an image on which the losses of the heads are computed.
        box_positive_fraction: Largest fraction of the proposals in the losses that are objects; the mask head
            is trained on these.
        image_mean: Mean of the images' channels, on a scale from 0 to 1.
        image_std: Standard deviation of the images' channels, on the same scale.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    bn_momentum: float | None = None
    frozen_stages: int = 0
    head_epochs: int = 0
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
        if given := [name for name in RESERVED_OPTIONS if name in self.options]:
            raise ValueError(f"model.options.{given[0]} is set by the detector; leave it out")
        for name, allowed in (("norms", ("batch", "frozen")), ("head_norm", ("batch", None))):
            if getattr(self, name) not in allowed:
                words = " or ".join(map(repr, allowed))
                raise ValueError(f"model.{name} is {words}; got {getattr(self, name)!r}")
        take_initial_weights(self)
        check_frozen(self)
        if self.bn_momentum is not None and not 0 < self.bn_momentum <= 1:
            raise ValueError(f"model.bn_momentum is above 0 and at most 1, or None; got {self.bn_momentum}")
        for name in POSITIVE_FIELDS:
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is 1 or more; got {getattr(self, name)}")
        for name in FRACTION_FIELDS:
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
        """Return a copy with an absolute path of `weights`, valid in any working directory."""
        return replace(self, weights=absolute_weights(self.weights))

    def check_start(self) -> None:
        """Raise ValueError if a new detector lacks trained weights that its settings need."""
        check_trained(self)
        check_published(self.name, self.options, self.weights)


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Validation of a detector during training.

    Args:
        max_detections: Most detections of an image that are scored, by descending score; more than 10, 100
            in COCO. The network's own limit is `model.box_detections_per_img`.
        sheet: Number of images that are drawn in every validation, annotated and detected objects side by
            side; 0 draws none.
        threshold: Least score of the drawn objects.
    """

    max_detections: int = 100
    sheet: int = 8
    threshold: float = 0.5

    def __post_init__(self) -> None:
        for name, least in (("max_detections", MIN_MAX_DETECTIONS), ("sheet", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"validation.{name} is {least} or more; got {getattr(self, name)}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"validation.threshold is from 0 to 1; got {self.threshold}")


@dataclass(frozen=True, kw_only=True)
class DetectionConfig(BaseConfig):
    """The complete description of a run that trains a detector."""

    TASK = "detection"
    HUB = HubForm(
        pipeline="object-detection",
        kind="a detector (Mask R-CNN)",
        use="predict {folder} photos",
        source="coco:FOLDER",
        facts=("image_size", "masks"),
    )
    STARTS_FROM = (TASK, RunConfig.TASK)

    model: DetectorConfig
    data: CocoConfig
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def network(self, num_classes: int, *, loads_weights: bool = False) -> Detector:
        """Return the detector: images to losses in training, to objects in evaluation."""
        from lambdanets.detection.mask_rcnn import create_detector

        return create_detector(
            self.model, num_classes=num_classes, masks=self.data.masks, loads_weights=loads_weights
        )

    def pretrained_part(self, network: nn.Module) -> nn.Module:
        backbone: Any = network.backbone
        return network if holds_detector(self.model.weights or "") else backbone.body

    def values_from(self, record: WeightsRecord) -> dict[str, Any]:
        if record.task == self.TASK:
            masks = {"data.masks": record.data["masks"]} if "masks" in record.data else {}
            return {f"model.{name}": value for name, value in record.model.items()} | masks
        channels = record.data.get("in_chans", 3)
        if channels != 3:
            raise WeightsError(f"the weights are for images of {channels} channel, and a detector takes 3")
        form = {f"image_{name}": record.data[name] for name in ("mean", "std") if record.data.get(name)}
        return super().values_from(record) | {f"model.{name}": value for name, value in form.items()}

    def check_start(self) -> None:
        self.model.check_start()

    def load_initial_weights(self, network: nn.Module) -> str:
        """Load `model.weights`: those of a detector as a whole, those of a classifier into the backbone."""
        backbone: Any = network.backbone
        weights = self.model.weights or ""
        if weights == PRETRAINED:  # `network` has loaded them
            weights = f"the published weights of {self.model.name}"
        elif holds_detector(weights):
            replaced = load_weights(network, weights, head="replace")
            kept = f"; {join_some(replaced, form=str)} keep random weights: other classes" if replaced else ""
            return f"the detector starts from {weights}{kept}"
        else:
            backbone.load_classifier(weights)
        return f"the backbone starts from {weights}, pyramid and heads at random"


def holds_detector(weights: str) -> bool:
    """Return whether a source of weights has those of a detector rather than of a classifier.

    Raises:
        WeightsError: They cannot be found or read.
    """
    return any(name.startswith("backbone.body.") for name in read_weights(find_weights(weights)))
