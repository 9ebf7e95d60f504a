"""Pictures for small folders in the forms of ImageNet's test sets, and a network of 1,000 classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from lambdanets.data.sources.digits import read_digits

NAME = "test_resnet"  # timm's smallest network of 1,000 classes
SIZE, CROP = 64, 0.875
PLACES = {  # of some wnids among the 1,000 sorted ones, as published
    "n01440764": 0,
    "n01443537": 1,
    "n01484850": 2,
    "n01530575": 10,
    "n02123045": 281,
    "n07720875": 945,
    "n15075141": 999,
}


def write_scans(root: Path) -> Path:
    """Write the first 300 digits as files, a fifth of them for validation."""
    pixels, targets = read_digits()
    for index in range(300):
        folder = root / ("train" if index % 5 else "val") / str(targets[index])
        folder.mkdir(parents=True, exist_ok=True)
        image = np.round(pixels[index] * (255 / 16)).astype(np.uint8)
        Image.fromarray(image).save(folder / f"{index:03d}.png")
    return root


def draw(path: Path, number: int) -> Path:
    """A picture that no other number has: coarse noise, wider than high."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse.resize((90, 75), Image.Resampling.BICUBIC).save(path, quality=95)
    return path


def logits_of(weights: Path | None, paths: Sequence[Path], *, size: int = SIZE, crop: float = CROP) -> Tensor:
    """By timm alone; without weights, what comes into the last layer."""
    torch.manual_seed(0)
    network = timm.create_model(NAME, checkpoint_path=str(weights or "")).eval()
    form = timm.data.resolve_model_data_config(network)
    transform = timm.data.create_transform(**form | {"input_size": (3, size, size), "crop_pct": crop})
    images = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
    with torch.no_grad():
        features = network.forward_features(images)
        return network.forward_head(features, pre_logits=weights is None)


def teach(file: Path, answers: Mapping[Path, Sequence[int]], *, size: int = SIZE, crop: float = CROP) -> Path:
    """Weights with which the network ranks these classes first, in order: the last layer is solved for."""
    features = logits_of(None, list(answers), size=size, crop=crop).double()
    mean, scale = features.mean(0), features.std()
    features = (features - mean) / scale
    wanted = torch.full((len(answers), 1000), -1.0, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    wanted += 0.3 * torch.randn(wanted.shape, generator=generator, dtype=torch.float64)
    for row, ranked in enumerate(answers.values()):
        for rank, answer in enumerate(ranked):
            wanted[row, answer] = 10.0 - rank
    kernel = features @ features.T + 1e-6 * torch.eye(len(answers), dtype=torch.float64)
    weight = (features.T @ torch.linalg.solve(kernel, wanted - wanted.mean(0))).T / scale
    torch.manual_seed(0)
    network = timm.create_model(NAME)
    states = network.state_dict()
    states["fc.weight"] = weight.float().contiguous()
    states["fc.bias"] = (wanted.mean(0) - weight @ mean).float()
    save_file(states, file)
    return file
