"""Data: sources of images, and loaders that turn them into batches of tensors reproducibly.

`sources/protocol.py` states what a source must define, and `sources/__init__.py` holds their registry. A
`DataConfig` names a source; `open_splits` opens it as `ImageSet`s (any image can be read at any time) or as
`StreamSet`s (files are read in sequence), and `train_loader` and `eval_loader` make batches of these. `coco/`
has the same for detectors, from a `CocoConfig`, `text/` for language models, from a `TextDataConfig`, and
`audio/` for recordings, from an `AudioDataConfig`.
"""

from .audio.audio_set import AudioSet
from .audio.config import AudioAugmentConfig, AudioDataConfig
from .audio.loader import audio_eval_loader, audio_train_loader
from .audio.splits import AudioSplits, describe_audio, open_audio, open_audio_split
from .coco.coco_set import CocoSet
from .coco.config import CocoConfig
from .coco.loader import coco_eval_loader, coco_train_loader
from .coco.mask_folder import Converted, masks_to_coco
from .coco.splits import CocoSplits, describe_coco, open_coco, open_coco_split
from .config import AugmentConfig, DataConfig
from .errors import DataError, DataWarning
from .image_set import ImageSet
from .images import IMAGE_SUFFIXES, read_image
from .labels import Labels, read_labels, select
from .loader import eval_loader, train_loader
from .mixed import MixedSet
from .shard_writer import Sharded, write_shards
from .splits import Splits, describe, open_split, open_splits
from .streams.stream_set import StreamSet
from .text.config import TextDataConfig
from .text.loader import text_eval_loader, text_train_loader
from .text.text_set import TextSet, TextSplits, open_text, open_text_split
from .text.vocabulary import Vocabulary
from .transforms import eval_transform
from .unlabelled import open_unlabelled

__all__ = [
    "IMAGE_SUFFIXES",
    "AudioAugmentConfig",
    "AudioDataConfig",
    "AudioSet",
    "AudioSplits",
    "AugmentConfig",
    "CocoConfig",
    "CocoSet",
    "CocoSplits",
    "Converted",
    "DataConfig",
    "DataError",
    "DataWarning",
    "ImageSet",
    "Labels",
    "MixedSet",
    "Sharded",
    "Splits",
    "StreamSet",
    "TextDataConfig",
    "TextSet",
    "TextSplits",
    "Vocabulary",
    "audio_eval_loader",
    "audio_train_loader",
    "coco_eval_loader",
    "coco_train_loader",
    "describe",
    "describe_audio",
    "describe_coco",
    "eval_loader",
    "eval_transform",
    "masks_to_coco",
    "open_audio",
    "open_audio_split",
    "open_coco",
    "open_coco_split",
    "open_split",
    "open_splits",
    "open_text",
    "open_text_split",
    "open_unlabelled",
    "read_image",
    "read_labels",
    "select",
    "text_eval_loader",
    "text_train_loader",
    "train_loader",
    "write_shards",
]
