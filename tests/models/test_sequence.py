"""Language models: every layer in the same blocks, states and steps, generation."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from closeness import assert_close
from lambdanets.models import LANGUAGE_MODELS, LambdaLM, create_language_model
from lambdanets.models.sampling import sample
from lambdanets.models.sequence import LanguageModelState
from lambdanets.nn import Attention1d, LambdaLayer1d

VOCABULARY = 11
NAMES = list(LANGUAGE_MODELS)


def small(name: str, **options) -> LambdaLM:
    """The model with few channels and blocks, in float64."""
    options = {"dim": 16, "depth": 2, "mlp_dim": 24, "dtype": torch.float64} | options
    model = create_language_model(name, vocabulary=VOCABULARY, **options)
    for parameter in model.parameters():  # the newly initialised branches are small
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def tokens(*shape: int) -> Tensor:
    return torch.randint(VOCABULARY, shape)


def written(generated: Iterator[Tensor]) -> Tensor:
    return torch.stack(list(generated), 1)


@pytest.mark.parametrize("name", NAMES)
def test_steps_and_chunks_equal_the_whole(name: str) -> None:
    model, text = small(name), tokens(3, 30)
    whole, end = model(text, return_state=True)
    assert whole.shape == (3, 30, VOCABULARY)
    state, outputs = model.initial_state(3), []
    for i in range(30):
        logits, state = model.step(text[:, i], state)
        outputs.append(logits)
    assert_close(torch.stack(outputs, 1), whole)
    assert state.tensors().keys() == end.tensors().keys()
    state, outputs = None, []
    for begin, stop in ((0, 1), (1, 12), (12, 30)):
        logits, state = model(text[:, begin:stop], state, return_state=True)
        outputs.append(logits)
    assert_close(torch.cat(outputs, 1), whole)
    assert_close(model(text[:, 12:], model(text[:, :12], return_state=True)[1]), whole[:, 12:])
    assert state.length.tolist() == [30] * 3


@pytest.mark.parametrize("name", NAMES)
def test_no_logit_depends_on_a_later_token(name: str) -> None:
    model, text = small(name), tokens(1, 12)
    found = {}
    model.embedding.register_forward_hook(lambda *call: found.setdefault("x", call[2].requires_grad_()))
    for i in (0, 5, 11):
        found.clear()
        (gradient,) = torch.autograd.grad(model(text)[:, i].square().sum(), found["x"])
        assert gradient[:, i + 1 :].count_nonzero() == 0
        assert gradient[:, i].count_nonzero() > 0


@pytest.mark.parametrize("name", NAMES)
def test_padded_and_packed_texts_equal_single_ones(name: str) -> None:
    model = small(name)
    texts = [tokens(n) for n in (7, 3, 12)]
    single = [model(text[None])[0] for text in texts]
    for left in (False, True):
        padded, mask = tokens(3, 12), torch.zeros(3, 12, dtype=torch.bool)
        for row, text in enumerate(texts):
            part = slice(12 - len(text), 12) if left else slice(len(text))
            padded[row, part], mask[row, part] = text, True
        logits, state = model(padded, return_state=True, mask=mask)
        for row, exact in enumerate(single):
            assert_close(logits[row, mask[row]], exact)
        more = tokens(3, 4)
        y = model(more, state)
        for row, text in enumerate(texts):
            assert_close(y[row], model(torch.cat([text, more[row]])[None])[0, len(text) :])
    packed = torch.cat(texts)[None]
    assert_close(model(packed, cu_seqlens=torch.tensor([0, 7, 10, 22]))[0], torch.cat(single))


@pytest.mark.parametrize("name", NAMES)
def test_states_can_be_selected_reset_detached_and_converted(name: str) -> None:
    model, text, more = small(name), tokens(4, 9), tokens(4, 5)
    _, state = model(text, return_state=True)
    exact = model(torch.cat([text, more], 1))[:, 9:]
    assert_close(model(more[[2, 0]], state.select([2, 0])), exact[[2, 0]])
    reset = model(more, state.reset([1]))
    assert_close(reset[[0, 2, 3]], exact[[0, 2, 3]])
    assert_close(reset[1], model(more)[1])
    assert_close(model(more, state.reset()), model(more))
    assert not any(x.requires_grad for x in state.detach().tensors().values())
    assert state.nbytes == sum(x.numel() * x.element_size() for x in state.tensors().values())
    assert state.batch == 4
    logits, _ = model.float().step(more[:, 0], state.to(torch.float32).to("cpu"))
    torch.testing.assert_close(logits.double(), exact[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_greedy_text_is_the_argmax_of_the_logits(name: str) -> None:
    model, prompt = small(name), tokens(3, 6)
    text = written(model.generate(prompt, 15, temperature=0))
    assert text.shape == (3, 15)
    logits = model(torch.cat([prompt, text], 1))
    assert torch.equal(logits[:, 5:-1].argmax(-1), text)
    for row in range(3):
        assert torch.equal(written(model.generate(prompt[row], 15, temperature=0))[0], text[row])


@pytest.mark.parametrize("name", ["lambda_lm_mini", "attention_lm_mini"])
def test_equal_seeds_give_equal_texts_and_the_global_generator_is_untouched(name: str) -> None:
    model, prompt = small(name), tokens(2, 6)
    before = torch.get_rng_state()
    texts = [written(model.generate(prompt, 20, seed=seed)) for seed in (3, 3, 4)]
    written(model.generate(prompt, 3))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])


@pytest.mark.parametrize("name", NAMES)
def test_autocast_and_half_precision(name: str) -> None:
    model, text = small(name, dtype=torch.float32), tokens(2, 12)
    exact = model(text).detach()
    scale = exact.std().item()
    with torch.autocast("cpu", torch.bfloat16):
        first, state = model(text[:, :5], return_state=True)
        assert first.dtype == torch.bfloat16
        first.sum().backward()
        second, state = model(text[:, 5:11], state, return_state=True)
        last, state = model.step(text[:, 11], state)
    outputs = torch.cat([first, second, last[:, None]], 1)
    torch.testing.assert_close(outputs.float(), exact, rtol=0.1, atol=0.1 * scale)
    initial = model.initial_state(2).tensors()
    assert {name: x.dtype for name, x in state.tensors().items()} == {n: x.dtype for n, x in initial.items()}
    half = model.bfloat16()
    logits, state = half(text, return_state=True)
    torch.testing.assert_close(logits.float(), exact, rtol=0.2, atol=0.2 * scale)
    assert half.step(text[:, 0], state)[0].dtype == torch.bfloat16


class Step(nn.Module):
    """A step with the tensors of the state as arguments and results."""

    def __init__(self, model: LambdaLM, state: LanguageModelState) -> None:
        super().__init__()
        self.model, self.state = model, state

    def forward(self, last: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(self.state.tensors(), tensors, strict=True))
        logits, after = self.model.step(last, self.state.with_tensors(named))
        return (logits, *after.tensors().values())


@pytest.mark.parametrize("name", NAMES)
def test_a_step_can_be_exported_with_its_state_as_inputs_and_outputs(name: str) -> None:
    model = small(name)
    _, state = model(tokens(2, 7), return_state=True)
    given = (tokens(2), *state.tensors().values())
    program = torch.export.export(Step(model, state), given).module()
    for actual, exact in zip(program(*given), Step(model, state)(*given), strict=True):
        torch.testing.assert_close(actual, exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_the_forward_pass_compiles_without_graph_breaks(name: str) -> None:
    if name == "gru_lm_mini":
        pytest.skip("torch.compile does not trace torch.nn.GRU")
    model, text = small(name), tokens(2, 9)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_close(compiled(text), model(text))


def test_generation_writes_one_token_for_each_step() -> None:
    model, calls = small("lambda_lm_mini"), []
    step = model.step
    model.step = lambda *given: calls.append(1) or step(*given)
    generated = model.generate(tokens(4), 5, seed=0)
    assert next(generated).shape == (1,)
    assert len(calls) == 0
    next(generated)
    assert len(calls) == 1
    assert torch.is_grad_enabled()
    assert len(list(generated)) == 3
    assert len(calls) == 4
    assert list(model.generate(tokens(4), 0)) == []


def test_a_long_prompt_is_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = small("lambda_lm_mini"), tokens(1, 23)
    exact = written(model.generate(prompt, 8, temperature=0))
    monkeypatch.setattr("lambdanets.models.sequence.PREFILL_CHUNK", 5)
    assert torch.equal(written(model.generate(prompt, 8, temperature=0)), exact)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.1, 0.2, 0.3, 0.4]),
        ({"temperature": 0.5}, [1 / 30, 4 / 30, 9 / 30, 16 / 30]),
        ({"temperature": 0}, [0, 0, 0, 1]),
        ({"temperature": 1e-45}, [0, 0, 0, 1]),
        ({"temperature": 1e-300}, [0, 0, 0, 1]),
        ({"top_k": 2}, [0, 0, 3 / 7, 4 / 7]),
        ({"top_k": 9}, [0.1, 0.2, 0.3, 0.4]),
        ({"top_p": 0.65}, [0, 0, 3 / 7, 4 / 7]),
        ({"top_p": 0.71}, [0, 2 / 9, 3 / 9, 4 / 9]),
        ({"top_p": 0.01}, [0, 0, 0, 1]),
        ({"top_p": 1.0}, [0.1, 0.2, 0.3, 0.4]),
        ({"top_k": 3, "top_p": 0.5}, [0, 0, 3 / 7, 4 / 7]),
    ],
)
def test_the_distribution_of_sampled_tokens(options: dict[str, float], expected: list[float]) -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(20_000, 4)
    drawn = sample(logits, torch.Generator().manual_seed(0), **options)
    share = drawn.bincount(minlength=4) / len(drawn)
    for found, exact in zip(share.tolist(), expected, strict=True):
        assert abs(found - exact) <= 5 * math.sqrt(exact * (1 - exact) / len(drawn))


@pytest.mark.parametrize("name", NAMES)
def test_models_of_the_same_setting_have_about_as_many_parameters(name: str) -> None:
    model = create_language_model(name, vocabulary=65)
    assert model.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert abs(model.num_parameters - 800_000) <= 8_000


def test_the_number_of_parameters_is_that_of_the_parts() -> None:
    dim, hidden, vocabulary = 32, 40, 7
    model = LambdaLM(vocabulary, dim=dim, depth=3, operator="attention", mlp_dim=hidden)
    block = 3 * dim * dim + dim * dim + 3 * dim * hidden + 2 * dim
    assert model.num_parameters == vocabulary * dim + 3 * block + dim
    assert LambdaLM(5, dim=12, depth=1, operator="gru").blocks[0].mlp.down.in_features == 32


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_of_a_new_model_is_that_of_guessing_and_training_lowers_it(name: str) -> None:
    torch.manual_seed(0)
    model = create_language_model(name, vocabulary=VOCABULARY, dim=32, depth=2, mlp_dim=32, dropout=0.1)
    text = (torch.arange(33) * 3 % VOCABULARY).expand(4, -1)

    def loss() -> Tensor:
        return nn.functional.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())

    assert abs(loss().item() - math.log(VOCABULARY)) < 0.1
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        current = loss()
        current.backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert current.item() < 0.5


def test_the_initialisation() -> None:
    model = LambdaLM(200, dim=64, depth=8, operator="lambda")
    block = model.blocks[3]
    for tensor, std in (
        (model.embedding.weight, 0.02),
        (block.operator.positions, 0.02),
        (block.operator.to_values.weight, 64**-0.5),
        (block.mlp.up.weight, 64**-0.5),
        (block.projection.weight, (64 * 16) ** -0.5),
        (block.mlp.down.weight, (block.mlp.down.in_features * 16) ** -0.5),
    ):
        assert tensor.std().item() == pytest.approx(std, rel=0.1)
    attention = LambdaLM(200, dim=64, operator="attention").blocks[0].operator
    assert attention.projection.weight.std().item() == pytest.approx(64**-0.5, rel=0.1)


def test_options_reach_the_model_and_its_layer() -> None:
    model = create_language_model("lambda_lm_mini", vocabulary=9, depth=2, dropout=0.2, scope=12, dim_k=8)
    assert len(model.blocks) == 2
    assert model.dropout.p == 0.2
    layer = model.blocks[0].operator
    assert isinstance(layer, LambdaLayer1d)
    assert tuple(layer.positions.shape) == (12, 8, 1)
    assert layer.to_gate is not None
    other = create_language_model("lambda_lm_mini", vocabulary=9, operator="attention", window=5)
    assert isinstance(other.blocks[0].operator, Attention1d)
    assert other.blocks[0].operator.window == 5
    assert (
        create_language_model("conv9_lm_mini", vocabulary=9, options={"taps": 4}).blocks[0].operator.taps == 4
    )


def test_what_is_refused() -> None:
    model = small("lambda_lm_mini")
    _, state = model(tokens(2, 3), return_state=True)
    _, deeper = small("lambda_lm_mini", depth=3)(tokens(2, 3), return_state=True)
    _, other = small("gru_lm_mini")(tokens(2, 3), return_state=True)
    cases = {
        "the prompt is empty": lambda: model.generate(tokens(0), 3),
        "the prompt is empty; give": lambda: model.generate(tokens(2, 0), 3),
        "tokens of the prompt must be from 0 to 10, got 3 to 11": lambda: model.generate(
            torch.tensor([3, 11]), 3
        ),
        "temperature must be at least 0 and finite, got -1": lambda: model.generate(
            tokens(3), 3, temperature=-1
        ),
        "temperature must be at least 0 and finite, got nan": lambda: model.generate(
            tokens(3), 3, temperature=math.nan
        ),
        "top_k must be at least 1": lambda: model.generate(tokens(3), 3, top_k=0),
        "top_p must be above 0": lambda: model.generate(tokens(3), 3, top_p=0.0),
        "max_new_tokens must be at least 0": lambda: model.generate(tokens(3), -1),
        r"tokens must be integers of shape \(b n\), got torch.float32": lambda: model(torch.ones(2, 3)),
        r"tokens must be integers of shape \(b n\), got torch.int64 of shape \(3,\)": lambda: model(
            tokens(3)
        ),
        r"tokens must be integers of shape \(b\)": lambda: model.step(tokens(2, 1), state),
        "state is of a model with 3 blocks, this one has 2": lambda: model.step(tokens(2), deeper),
        "state must be a LanguageModelState, got LambdaState": lambda: model.step(tokens(2), state.layers[0]),
        "the state must be a LambdaState, got GRUState": lambda: model.step(tokens(2), other),
        "the state has 2 rows and this call 3": lambda: model(tokens(3, 4), state),
        "unknown operator 'lambada'; did you mean lambda\\?": lambda: LambdaLM(5, operator="lambada"),
        "unknown language model 'lambda_lm'; did you mean": lambda: create_language_model(
            "lambda_lm", vocabulary=5
        ),
        "unknown operator 'x'; known: attention, conv,": lambda: LambdaLM(5, operator="x"),
        "options of operator 'lambda': .*'scop'": lambda: create_language_model(
            "lambda_lm_mini", vocabulary=5, scop=3
        ),
        "dropout must be at least 0 and below 1, got 1": lambda: LambdaLM(5, dropout=1),
        "vocabulary must be at least 1": lambda: LambdaLM(0),
        "depth must be at least 1": lambda: LambdaLM(5, depth=0),
    }
    for message, call in cases.items():
        with pytest.raises(ValueError, match=message):
            call()
