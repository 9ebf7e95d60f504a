"""Stand-ins for the layers of other packages: same parameter names, formula by einsum.

Tests run without these packages. If lambda-networks is installed, its layer is compared with the stand-in.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from oracles import lambda_layer_einsum


class LambdaLayer(nn.Module):
    """Stand-in for the layer of lucidrains/lambda-networks."""

    __module__ = "lambda_networks.lambda_networks"

    def __init__(self, dim, *, dim_k, n=None, r=None, heads=4, dim_out=None, dim_u=1):
        super().__init__()
        dim_v = (dim_out or dim) // heads
        self.heads, self.u, self.local_contexts = heads, dim_u, r is not None
        self.to_q = nn.Conv2d(dim, heads * dim_k, 1, bias=False)
        self.to_k = nn.Conv2d(dim, dim_u * dim_k, 1, bias=False)
        self.to_v = nn.Conv2d(dim, dim_u * dim_v, 1, bias=False)
        self.norm_q = nn.BatchNorm2d(heads * dim_k)
        self.norm_v = nn.BatchNorm2d(dim_u * dim_v)
        if r is not None:
            self.pos_conv = nn.Conv3d(dim_u, dim_k, (1, r, r), padding=(0, r // 2, r // 2))
        else:
            self.rel_pos_emb = nn.Parameter(torch.randn(2 * n - 1, 2 * n - 1, dim_k, dim_u))
            self.rel_pos = torch.zeros(n * n, n * n, 2, dtype=torch.long)

    def forward(self, x: Tensor) -> Tensor:
        grid, u = tuple(x.shape[2:]), self.u
        q = self.norm_q(self.to_q(x)).flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)
        k = self.to_k(x).flatten(2).unflatten(1, (u, -1)).permute(0, 3, 2, 1)
        v = self.norm_v(self.to_v(x)).flatten(2).unflatten(1, (u, -1)).permute(0, 3, 2, 1)
        if not self.local_contexts:
            y = lambda_layer_einsum(q, k, v, self.rel_pos_emb, grid=grid)
        else:
            e = torch.einsum("kuxrs->rsku", self.pos_conv.weight)
            y = lambda_layer_einsum(q, k, v, e, grid=grid, scope=tuple(e.shape[:2]))
            y = y + torch.einsum("bhnk,k->bhn", q, self.pos_conv.bias).unsqueeze(3)
        return y.transpose(2, 3).flatten(1, 2).unflatten(2, grid)


class DLi14(nn.Module):
    """Stand-in for the layer of d-li14/lambda.pytorch: one projection, a 3-d convolution, a pooling.

    Heads are outermost in queries, the intra-depth u in keys and values; the pooling counts zeros beyond the
    border.
    """

    __module__ = "models.lambda_layer"
    __qualname__ = "LambdaLayer"

    def __init__(self, d, dk=16, du=1, Nh=4, m=None, r=23, stride=1):
        super().__init__()
        self.d, self.dk, self.du, self.Nh, self.dv, self.stride = d, dk, du, Nh, d // Nh, stride
        self.conv_qkv = nn.Conv2d(d, Nh * dk + du * dk + du * self.dv, 1, bias=False)
        self.norm_q = nn.BatchNorm2d(Nh * dk)
        self.norm_v = nn.BatchNorm2d(du * self.dv)
        self.softmax = nn.Softmax(dim=-1)
        self.lambda_conv = nn.Conv3d(du, dk, (1, r, r), padding=(0, (r - 1) // 2, (r - 1) // 2))
        if stride > 1:
            self.avgpool = nn.AvgPool2d(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        grid, everything = x.shape[2:], self.conv_qkv(x)
        q = everything[:, : self.Nh * self.dk]
        k = everything[:, self.Nh * self.dk : self.Nh * self.dk + self.du * self.dk]
        v = everything[:, self.Nh * self.dk + self.du * self.dk :]
        q = self.norm_q(q).flatten(2).unflatten(1, (self.Nh, self.dk))
        k = k.flatten(2).unflatten(1, (self.du, self.dk)).softmax(-1)
        v = self.norm_v(v).flatten(2).unflatten(1, (self.du, self.dv))
        lambdas = self.lambda_conv(v.unflatten(3, grid)).flatten(3)  # b k v n
        lambdas = lambdas + torch.einsum("bukm,buvm->bkv", k, v).unsqueeze(3)
        y = torch.einsum("bhkn,bkvn->bhvn", q, lambdas).flatten(1, 2).unflatten(2, grid)
        return self.avgpool(y) if self.stride > 1 else y


DLi14.__name__ = "LambdaLayer"  # the name by which `accelerate` recognises it


def awake(module: nn.Module) -> nn.Module:
    """Set statistics, norms and positions as after training, since their initial values could hide errors."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d) and part.running_mean is not None:
            nn.init.normal_(part.running_mean, std=0.3)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.3)
        for name, value in part.named_parameters(recurse=False):
            if name in ("pos_emb", "rel_pos_emb") or isinstance(part, nn.Conv3d):
                nn.init.normal_(value, std=0.3)
    return module


def saved(content: Any, path: Path) -> Path:
    """Save the weights of a model, or other content, in the format that the suffix of the path names."""
    if isinstance(content, nn.Module):
        content = content.state_dict()
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in content.items()}, path)
    else:
        torch.save(content, path)
    return path
