"""The command `lambdanets` where FSDP runs on CPUs, which PyTorch leaves unsaid: the device has to be named.

A script of its own: the processes that Lightning starts run it again.
"""

import sys
from typing import Any

import torch
from torch.distributed.fsdp import FullyShardedDataParallel

from lambdanets.cli import main
from lambdanets.train import trainer

original = FullyShardedDataParallel.__init__


def named(self: FullyShardedDataParallel, *args: Any, **options: Any) -> None:
    original(self, *args, **options | {"device_id": torch.device("cpu")})


FullyShardedDataParallel.__init__ = named
trainer.check_devices = lambda *args: None

if __name__ == "__main__":
    sys.exit(main())
