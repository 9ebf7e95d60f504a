"""Language models: pre-norm blocks of a causal sequence layer and a gated MLP."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lambdanets.nn import LambdaLayer1d
from lambdanets.nn.pointwise import Linear, RMSNorm
from lambdanets.nn.states import Rows, SequenceState
from lambdanets.ops.checks import unknown_name

from .operators import SEQUENCE_OPERATORS
from .sampling import sample

EMBEDDING_STD = 0.02
"""Standard deviation of new embeddings, of tokens and of offsets."""
PREFILL_CHUNK = 4096
"""Positions of a prompt that `generate` reads at once: its memory does not grow with longer prompts."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LanguageModelState(SequenceState):
    """State of a language model: those of its layers, first to last.

    Attributes:
        layers: One state for each block.
    """

    layers: tuple[SequenceState, ...]

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors, those of layer i under `layers.i.NAME`."""
        named = {"length": self.length}
        for i, layer in enumerate(self.layers):
            named |= {f"layers.{i}.{name}": x for name, x in layer.tensors().items()}
        return named

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> LanguageModelState:
        layers = tuple(
            layer.with_tensors({name: tensors[f"layers.{i}.{name}"] for name in layer.tensors()})
            for i, layer in enumerate(self.layers)
        )
        return LanguageModelState(length=tensors["length"], layers=layers)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> LanguageModelState:
        return _state_of([layer.to(device, dtype) for layer in self.layers])

    def reset(self, rows: Rows = slice(None)) -> LanguageModelState:
        return _state_of([layer.reset(rows) for layer in self.layers])


def _state_of(layers: Sequence[SequenceState]) -> LanguageModelState:
    """Return the state of a model from those of its layers."""
    return LanguageModelState(length=layers[0].length, layers=tuple(layers))


class GatedMLP(nn.Module):
    """Multilayer perceptron with one hidden layer that is gated: `down(silu(a) * b)` with `a, b = up(x)`.

    Args:
        dim: Channels of the input and the output.
        hidden: Channels of the hidden layer.
        device: Device of the parameters.
        dtype: dtype of the parameters.
    """

    def __init__(self, dim: int, hidden: int, **factory: Any) -> None:
        super().__init__()
        self.up = Linear(dim, 2 * hidden, bias=False, **factory)
        self.down = Linear(hidden, dim, bias=False, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., dim]` to `[..., dim]`."""
        a, b = self.up(x).chunk(2, -1)
        return self.down(F.silu(a) * b)


class SequenceBlock(nn.Module):
    """Residual block on `[b, n, dim]`: a causal sequence layer, then a gated MLP, each after a norm.

    `x + projection(operator(norm(x)))`, then `x + mlp(norm(x))`, with RMS norms over the channels.

    Args:
        operator: The causal layer, `[b, dim, n]` to `[b, dim_out, n]`.
        dim: Channels.
        dim_out: Channels of the operator's output.
        mlp_dim: Channels of the hidden layer of the MLP.
        dropout: Probability with which channels of both branches are set to zero in training.
        factory: device and dtype of the parameters.
    """

    def __init__(
        self, operator: nn.Module, dim: int, dim_out: int, mlp_dim: int, dropout: float, **factory: Any
    ) -> None:
        super().__init__()
        self.norm_operator = RMSNorm(dim, eps=1e-5, **factory)
        self.operator: Any = operator
        self.projection = Linear(dim_out, dim, bias=False, **factory)
        self.norm_mlp = RMSNorm(dim, eps=1e-5, **factory)
        self.mlp = GatedMLP(dim, mlp_dim, **factory)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, state: SequenceState | None, return_state: bool, **hidden: Tensor | None
    ) -> tuple[Tensor, SequenceState | None]:
        """Return the output `[b, n, dim]` and, if asked for, the state after `x` `[b, n, dim]`."""
        y = self.operator(self.norm_operator(x).mT, state=state, return_state=return_state, **hidden)
        y, after = y if return_state else (y, None)
        return self._residuals(x, y.mT), after

    def step(self, x: Tensor, state: SequenceState) -> tuple[Tensor, SequenceState]:
        """Return the output `[b, dim]` and the state after `x` `[b, dim]`."""
        y, after = self.operator.step(self.norm_operator(x), state)
        return self._residuals(x, y), after

    def _residuals(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.dropout(self.projection(y))
        return x + self.dropout(self.mlp(self.norm_mlp(x)))


class LambdaLM(nn.Module):
    """Language model: embedding, blocks of a causal layer and a gated MLP, norm, and the embedding as head.

    It has no position embeddings: the layers know the order. Embeddings, also those of the offsets of lambda
    layers, are initialised with standard deviation 0.02; linear layers with fan_in^-1/2, divided by
    sqrt(2 depth) where they end a residual branch; layers otherwise as they are on their own.

    Args:
        vocabulary: Number of tokens.
        dim: Channels.
        depth: Number of blocks.
        num_heads: Heads of the layers; convolutions and GRUs have none.
        operator: Name of the layer in `SEQUENCE_OPERATORS`: "lambda", "attention", "linear_attention",
            "conv" or "gru".
        mlp_dim: Channels of the hidden layer of the MLP; by default 8/3 dim, as a multiple of 8, so that the
            MLP has as many weights as one without a gate and 4 dim channels.
        dropout: Dropout after the embedding and at the end of each branch, in training.
        options: Further arguments of the layer, such as `{"scope": 23}` for "lambda".
        device: Device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: If an argument is out of range, or there is no such operator.

    References:
        Block: Llama (Touvron et al., 2023), with any causal layer. Embeddings and the scale of residual
        branches: GPT-2 (Radford et al., 2019).

    Example:
        >>> model = LambdaLM(65, dim=32, depth=2, operator="attention").eval()
        >>> tokens = torch.randint(65, (2, 10))
        >>> model(tokens).shape
        torch.Size([2, 10, 65])
        >>> logits, state = model(tokens, return_state=True)
        >>> logits, state = model.step(logits[:, -1].argmax(-1), state)
        >>> logits.shape
        torch.Size([2, 65])
        >>> len([token for token in model.generate(tokens, 5, seed=0)])
        5
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        dim: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        operator: str = "lambda",
        mlp_dim: int | None = None,
        dropout: float = 0.0,
        options: dict[str, Any] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        mlp_dim = 8 * math.ceil(dim / 3) if mlp_dim is None else mlp_dim
        sizes = {"vocabulary": vocabulary, "dim": dim, "depth": depth, "mlp_dim": mlp_dim}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
        if operator not in SEQUENCE_OPERATORS:
            raise unknown_name("operator", operator, SEQUENCE_OPERATORS)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.vocabulary, self.dim, self.operator = vocabulary, dim, operator
        self.embedding = nn.Embedding(vocabulary, dim, **factory)
        self.dropout = nn.Dropout(dropout)
        build = SEQUENCE_OPERATORS[operator]
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            try:
                layer = build(dim, num_heads, causal=True, **(options or {}), **factory)
            except TypeError as error:
                raise ValueError(f"options of operator {operator!r}: {error}") from None
            dim_out = layer.dim_out
            assert isinstance(dim_out, int)
            self.blocks.append(SequenceBlock(layer, dim, dim_out, mlp_dim, dropout, **factory))
        self.norm = RMSNorm(dim, eps=1e-5, **factory)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise all parameters; see the class."""
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
        self.norm.reset_parameters()
        branches = 2 * len(self.blocks)
        for block in self._blocks():
            block.operator.reset_parameters()
            if isinstance(block.operator, LambdaLayer1d) and block.operator.positions is not None:
                nn.init.normal_(block.operator.positions, std=EMBEDDING_STD)
            block.norm_operator.reset_parameters()
            block.norm_mlp.reset_parameters()
            up, down, projection = block.mlp.up, block.mlp.down, block.projection
            for linear, scale in ((up, 1), (down, branches), (projection, branches)):
                nn.init.normal_(linear.weight, std=(linear.in_features * scale) ** -0.5)

    @property
    def num_parameters(self) -> int:
        """Number of parameters; the embedding, which is also the head, counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @overload
    def forward(
        self,
        tokens: Tensor,
        state: LanguageModelState | None = None,
        return_state: Literal[False] = False,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        tokens: Tensor,
        state: LanguageModelState | None = None,
        *,
        return_state: Literal[True],
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, LanguageModelState]: ...

    def forward(
        self,
        tokens: Tensor,
        state: LanguageModelState | None = None,
        return_state: bool = False,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, LanguageModelState]:
        """Return the logits of the token after each position.

        Args:
            tokens: Tokens `[b, n]`, integers below `vocabulary`.
            state: State before the first token; None is the initial state.
            return_state: Whether to return the state after the last token too.
            mask: Bool tensor `[b, n]`, True where a token is visible: rows may be padded at their beginning
                and their end. Logits of hidden tokens have no meaning.
            cu_seqlens: Boundaries `[s + 1]` of s sequences that are packed in one row, from 0 to n.

        Returns:
            Logits `[b, n, vocabulary]`; with `return_state` also the state.

        Raises:
            ValueError: If an argument has a wrong shape or dtype.
        """
        y, after = self._features(tokens, state, return_state, mask=mask, cu_seqlens=cu_seqlens)
        logits = F.linear(y, self.embedding.weight)
        return logits if after is None else (logits, after)

    def initial_state(self, batch: int) -> LanguageModelState:
        """Return the state before the first token of `batch` sequences."""
        return _state_of([block.operator.initial_state(batch) for block in self._blocks()])

    def step(self, tokens: Tensor, state: LanguageModelState) -> tuple[Tensor, LanguageModelState]:
        """Read the next token of each sequence.

        Args:
            tokens: Tokens `[b]`.
            state: State before the tokens.

        Returns:
            Logits `[b, vocabulary]` of the token after it, and the state after it.

        Raises:
            ValueError: If an argument has a wrong shape or dtype.
        """
        self._check(tokens, state, axes="b")
        x = self.dropout(self.embedding(tokens))
        layers = []
        for block, before in zip(self._blocks(), state.layers, strict=True):
            x, after = block.step(x, before)
            layers.append(after)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return logits, _state_of(layers)

    def generate(
        self,
        prompt: Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> Iterator[Tensor]:
        """Continue a text, one token at a time; each costs one `step`.

        Random numbers come from a generator of its own. Call `eval()` before if the model has dropout.

        Args:
            prompt: Tokens `[n]`, or `[b, n]` for several texts.
            max_new_tokens: Number of tokens to generate.
            temperature: Divisor of the logits; 0 takes the most probable token.
            top_k: Sample from the k most probable tokens only.
            top_p: Sample from the most probable tokens whose probabilities sum to p only.
            seed: Equal seeds give equal texts; None takes a random one.

        Yields:
            The next tokens `[b]`, with b = 1 for a prompt `[n]`.

        Raises:
            ValueError: If the prompt is empty or of a wrong shape, or an option is out of range.
        """
        if prompt.ndim == 1:
            prompt = prompt[None]
        self._check(prompt, None, axes="b n")
        if prompt.shape[1] == 0:
            raise ValueError("the prompt is empty; give at least one token")
        if prompt.numel() and not 0 <= int(prompt.min()) <= int(prompt.max()) < self.vocabulary:
            raise ValueError(
                f"tokens of the prompt must be from 0 to {self.vocabulary - 1}, got {int(prompt.min())} to "
                f"{int(prompt.max())}"
            )
        if not (math.isfinite(temperature) and temperature >= 0):
            raise ValueError(f"temperature must be at least 0 and finite, got {temperature}")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens must be at least 0, got {max_new_tokens}")
        generator = torch.Generator(prompt.device)
        generator.seed() if seed is None else generator.manual_seed(seed)

        def choose(logits: Tensor) -> Tensor:
            return sample(logits, generator, temperature=temperature, top_k=top_k, top_p=top_p)

        return self._generate(prompt, max_new_tokens, choose)

    @torch.no_grad()
    def _generate(self, prompt: Tensor, max_new_tokens: int, choose: Any) -> Iterator[Tensor]:
        """Yield tokens `[b]`, each chosen by a function of its logits `[b, vocabulary]`."""
        if max_new_tokens == 0:
            return
        y, state = prompt, None
        for chunk in prompt.split(PREFILL_CHUNK, 1):
            y, state = self._features(chunk, state, True, mask=None, cu_seqlens=None)
        assert state is not None
        tokens = choose(F.linear(y[:, -1], self.embedding.weight))
        yield tokens
        for _ in range(max_new_tokens - 1):
            logits, state = self.step(tokens, state)
            tokens = choose(logits)
            yield tokens

    def _features(
        self, tokens: Tensor, state: LanguageModelState | None, return_state: bool, **hidden: Tensor | None
    ) -> tuple[Tensor, LanguageModelState | None]:
        """Return the normalised output of the last block `[b, n, dim]` and, if asked for, the state."""
        self._check(tokens, state, axes="b n")
        x = self.dropout(self.embedding(tokens))
        before = [None] * len(self.blocks) if state is None else state.layers
        layers: list[SequenceState] = []
        for block, layer in zip(self._blocks(), before, strict=True):
            x, after = block(x, layer, return_state, **hidden)
            if after is not None:
                layers.append(after)
        return self.norm(x), _state_of(layers) if return_state else None

    def _blocks(self) -> list[SequenceBlock]:
        return list(self.blocks)  # pyright: ignore[reportReturnType]

    def _check(self, tokens: Tensor, state: LanguageModelState | None, axes: str) -> None:
        """Raise ValueError unless tokens have the given axes and the state is one of a model as deep."""
        if tokens.ndim != len(axes.split()) or tokens.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                f"tokens must be integers of shape ({axes}), got {tokens.dtype} of shape "
                f"{tuple(tokens.shape)}"
            )
        if state is not None and not isinstance(state, LanguageModelState):
            raise ValueError(f"state must be a LanguageModelState, got {type(state).__name__}")
        if state is not None and len(state.layers) != len(self.blocks):
            raise ValueError(
                f"state is of a model with {len(state.layers)} blocks, this one has {len(self.blocks)}"
            )

    def extra_repr(self) -> str:
        return f"{self.vocabulary}, operator={self.operator!r}"
