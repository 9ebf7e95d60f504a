"""The data room: everything that turns a source of images into tensors, reproducibly."""

from .config import AugmentConfig, DataConfig
from .errors import DataError, DataWarning
from .folder import IMAGE_SUFFIXES
from .image_set import ImageSet
from .images import read_image
from .labels import Labels, read_labels, select
from .loader import eval_loader, train_loader
from .mixed import MixedSet
from .shards import Sharded, write_shards
from .splits import Splits, describe, open_split, open_splits
from .stream import StreamSet
from .transforms import eval_transform
from .unlabelled import open_pictures

__all__ = [
    "IMAGE_SUFFIXES",
    "AugmentConfig",
    "DataConfig",
    "DataError",
    "DataWarning",
    "ImageSet",
    "Labels",
    "MixedSet",
    "Sharded",
    "Splits",
    "StreamSet",
    "describe",
    "eval_loader",
    "eval_transform",
    "open_pictures",
    "open_split",
    "open_splits",
    "read_image",
    "read_labels",
    "select",
    "train_loader",
    "write_shards",
]
