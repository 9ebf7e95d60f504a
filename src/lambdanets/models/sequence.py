"""Language models: pre-norm blocks of a causal sequence layer and a gated MLP."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lambdanets.nn import LambdaLayer1d
from lambdanets.nn.states import Rows, SequenceState
from lambdanets.utils.text import did_you_mean

from .operators import SEQUENCE_OPERATORS

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

    def detach(self) -> LanguageModelState:
        return replace(self, length=self.length, layers=tuple(layer.detach() for layer in self.layers))

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> LanguageModelState:
        moved = tuple(layer.to(device, dtype) for layer in self.layers)
        return LanguageModelState(length=moved[0].length, layers=moved)

    def select(self, rows: Rows) -> LanguageModelState:
        chosen = tuple(layer.select(rows) for layer in self.layers)
        return LanguageModelState(length=chosen[0].length, layers=chosen)

    def reset(self, rows: Rows = slice(None)) -> LanguageModelState:
        cleared = tuple(layer.reset(rows) for layer in self.layers)
        return LanguageModelState(length=cleared[0].length, layers=cleared)


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
        self.up = nn.Linear(dim, 2 * hidden, bias=False, **factory)
        self.down = nn.Linear(hidden, dim, bias=False, **factory)

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
        self.norm_operator = nn.RMSNorm(dim, eps=1e-5, **factory)
        self.operator: Any = operator
        self.projection = nn.Linear(dim_out, dim, bias=False, **factory)
        self.norm_mlp = nn.RMSNorm(dim, eps=1e-5, **factory)
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

    It has no position embeddings: the layers know the order. Weights are initialised with standard deviation
    0.02, those of the projections that end a residual branch with 0.02 / sqrt(2 depth); layers other than
    attention keep their own initialisation.

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
        Block: Llama (Touvron et al., 2023), with any causal layer; initialisation: GPT-2 (Radford et al.,
        2019).

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
            raise ValueError(
                f"there is no operator named {operator!r}{did_you_mean(operator, SEQUENCE_OPERATORS)}; "
                f"operators: {', '.join(SEQUENCE_OPERATORS)}"
            )
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.vocabulary, self.dim, self.operator = vocabulary, dim, operator
        self.embedding = nn.Embedding(vocabulary, dim, **factory)
        self.dropout = nn.Dropout(dropout)
        build = SEQUENCE_OPERATORS[operator]
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            layer = build(dim, num_heads, causal=True, **(options or {}), **factory)
            dim_out = layer.dim_out
            assert isinstance(dim_out, int)
            self.blocks.append(SequenceBlock(layer, dim, dim_out, mlp_dim, dropout, **factory))
        self.norm = nn.RMSNorm(dim, eps=1e-5, **factory)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise all parameters; see the class."""
        for block in self._blocks():
            block.operator.reset_parameters()
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, LambdaLayer1d) and module.positions is not None:
                nn.init.normal_(module.positions, std=0.02)
            elif isinstance(module, nn.RMSNorm):
                module.reset_parameters()
        for block in self._blocks():
            for last in (block.projection, block.mlp.down):
                nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * len(self.blocks)))

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
        layers = tuple(block.operator.initial_state(batch) for block in self._blocks())
        return LanguageModelState(length=layers[0].length, layers=layers)

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
        return logits, LanguageModelState(length=layers[0].length, layers=tuple(layers))

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
            raise ValueError(f"temperature must be at least 0, got {temperature}")
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
        states = LanguageModelState(length=layers[0].length, layers=tuple(layers)) if return_state else None
        return self.norm(x), states

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


def sample(
    logits: Tensor,
    generator: torch.Generator,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Sample a token for each row.

    Args:
        logits: Logits `[b, vocabulary]`.
        generator: Source of the random numbers, on the device of the logits.
        temperature: Divisor of the logits; 0 takes the most probable token.
        top_k: Sample from the k most probable tokens only.
        top_p: Sample from the most probable tokens only, as few as have a total probability of p.

    Returns:
        Tokens `[b]`.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        lowest = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < lowest, -torch.inf)
    if top_p is not None:
        ordered, index = logits.sort(-1, descending=True)
        probabilities = ordered.softmax(-1)
        dropped = probabilities.cumsum(-1) - probabilities >= top_p  # never the first
        logits = logits.masked_fill(dropped.scatter(-1, index, dropped), -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    # nanoGPT's setting for a laptop: 4 blocks, 4 heads, 128 channels, with 65 tokens 0.80 million parameters.
    # The width of the MLP makes up for the parameters of the layer.
    "lambda_lm_mini": {"operator": "lambda", "mlp_dim": 432},
    "attention_lm_mini": {"operator": "attention", "mlp_dim": 344},
    "linear_attention_lm_mini": {"operator": "linear_attention", "mlp_dim": 344},
    "conv3_lm_mini": {"operator": "conv", "options": {"taps": 3}, "mlp_dim": 344},
    "conv9_lm_mini": {"operator": "conv", "options": {"taps": 9}, "mlp_dim": 88},
    "depthwise_lm_mini": {"operator": "conv", "options": {"taps": 23, "depthwise": True}, "mlp_dim": 464},
    "gru_lm_mini": {"operator": "gru", "mlp_dim": 216},
}
"""Arguments of `LambdaLM` by the name of a model."""


def create_language_model(name: str, *, vocabulary: int, **options: Any) -> LambdaLM:
    """Create a language model by name.

    Args:
        name: Name in `LANGUAGE_MODELS`.
        vocabulary: Number of tokens.
        **options: Arguments of `LambdaLM` that replace those of the model; single `options` of the layer
            replace its options one by one.

    Returns:
        The model, in training mode.

    Raises:
        ValueError: If there is no such model, or an argument is out of range.

    Example:
        >>> model = create_language_model("attention_lm_mini", vocabulary=65, depth=2)
        >>> model(torch.randint(65, (1, 8))).shape
        torch.Size([1, 8, 65])
    """
    if name not in LANGUAGE_MODELS:
        suggestion = did_you_mean(name, LANGUAGE_MODELS)
        raise ValueError(
            f"there is no language model named {name!r}{suggestion}; models: {', '.join(LANGUAGE_MODELS)}"
        )
    config = LANGUAGE_MODELS[name]
    layer = {**config.get("options", {}), **(options.pop("options", None) or {})}
    return LambdaLM(vocabulary, **{**config, **options, "options": layer})
