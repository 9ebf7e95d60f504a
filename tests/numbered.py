"""Pictures that tell their numbers, to follow them through loaders."""

import io

from PIL import Image
from torch import Tensor


def numbered(number: int) -> bytes:
    """A picture that tells its number."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (number % 256, number // 256, 77)).save(file, "PNG")
    return file.getvalue()


def numbers(images: Tensor) -> list[int]:
    """The numbers of a batch of them, of shape (b, 3, h, w), that was not normalised."""
    levels = (images[:, :, 0, 0] * 255).round().long()
    assert (levels[:, 2] == 77).all()
    return (levels[:, 0] + 256 * levels[:, 1]).tolist()
