"""Table of the tasks of runs: what the verbs need of each. Its modules are imported on first use."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lambdanets.cli.errors import UsageError
from lambdanets.cli.options import option_flag

# Functions import modules that need PyTorch: --help must not wait for them.
if TYPE_CHECKING:
    from lambdanets.train.config import BaseConfig


@dataclass(frozen=True, kw_only=True)
class Task:
    """The parts of a task that the verbs use.

    Attributes:
        kind: A run of the task in an error message, such as "a classifier".
        package: The package with the function `train` and the configuration class.
        config: Name of that class.
        verbs: Verb -> "module:function"; the function's parameters are the options for runs of the task.
        next_step: Returns the words after `lambdanets` that show results of a run, from the quoted name of
            its folder and its configuration.
    """

    kind: str
    package: str
    config: str
    verbs: Mapping[str, str]
    next_step: "Callable[[str, BaseConfig], str]"

    def config_class(self) -> "type[BaseConfig]":
        """Return the configuration class."""
        return getattr(import_module(self.package), self.config)

    def train_function(self) -> Callable[..., Any]:
        """Return the function that trains a configuration; it imports Lightning."""
        return import_module(self.package).train

    def function(self, verb: str) -> Callable[..., int] | None:
        """Return the function that carries out a verb; None if runs of the task cannot be used with it."""
        if verb not in self.verbs:
            return None
        module, _, name = self.verbs[verb].partition(":")
        return getattr(import_module(module), name)


def _predict_samples(run: str, config: "BaseConfig") -> str:
    from lambdanets.data.sources import find_source
    from lambdanets.data.sources.protocol import StreamedSource

    # Samples cannot be selected from a stream.
    streamed = isinstance(find_source(config.data.source), StreamedSource)
    return f"eval {run}" if streamed else f"predict {run} --samples 20"


TASKS: dict[str, Task] = {
    "classification": Task(
        kind="a classifier",
        package="lambdanets.train",
        config="RunConfig",
        verbs={
            "eval": "lambdanets.cli.eval:evaluate_classifier",
            "predict": "lambdanets.cli.predict:predict_labels",
            "explain": "lambdanets.cli.explain:explain_image",
            "export": "lambdanets.cli.export:write_classifier",
            "push": "lambdanets.cli.push:push_run",
        },
        next_step=_predict_samples,
    ),
    "detection": Task(
        kind="a detector",
        package="lambdanets.detection",
        config="DetectionConfig",
        verbs={
            "eval": "lambdanets.cli.detecting:evaluate_run",
            "predict": "lambdanets.cli.detecting:predict_run",
            "explain": "lambdanets.cli.explain:explain_detection",
            "export": "lambdanets.cli.export:write_detector",
            "push": "lambdanets.cli.push:push_run",
        },
        next_step=_predict_samples,
    ),
    "audio": Task(
        kind="a classifier of recordings",
        package="lambdanets.audio",
        config="AudioConfig",
        verbs={
            "eval": "lambdanets.cli.audio:evaluate_run",
            "predict": "lambdanets.cli.audio:predict_run",
            "explain": "lambdanets.cli.explain:explain_recording",
            "export": "lambdanets.cli.audio:export_run",
            "push": "lambdanets.cli.push:push_run",
        },
        next_step=_predict_samples,
    ),
    "text": Task(
        kind="a language model",
        package="lambdanets.text",
        config="TextConfig",
        verbs={
            "eval": "lambdanets.cli.text:evaluate_text",
            "predict": "lambdanets.cli.text:measure_texts",
            "explain": "lambdanets.cli.explain:explain_text",
            "generate": "lambdanets.cli.text:write_continuation",
            "export": "lambdanets.cli.text:export_run",
            "push": "lambdanets.cli.push:push_run",
        },
        next_step=lambda run, config: f"generate {run} --tokens 500",
    ),
}


def task_of(run: Path | None) -> Task:
    """Return the task of the run in a folder; without a readable run, classification, which reports that."""
    from lambdanets.train.config import RunConfig, stored_task

    stored = None if run is None else stored_task(run)
    return TASKS.get(stored or RunConfig.TASK, TASKS[RunConfig.TASK])


def run_verb(verb: str, run: str | Path, *args: Any, **options: Any) -> int:
    """Carry out a verb by the function of the run's task, and return the exit code.

    Args:
        verb: The verb.
        run: Folder of a run, or the name of a model, which is a classifier.
        *args: Further positional arguments of the function.
        **options: All options of the verb by the names of their parameters; None and False are those that
            were not given.

    Raises:
        UsageError: The verb, or an option that was given, is not for runs of this task.
    """
    function = task_of(Path(run)).function(verb)
    if function is None:
        from lambdanets.train import load_run
        from lambdanets.train.config import stored_task

        if stored_task(Path(run)) is None:
            load_run(run)  # raises the error that explains why
        raise UsageError(f"{verb} is for runs of {_kinds(verb)}, and {run} is not one.")
    taken = signature(function).parameters
    for name, value in options.items():
        if name not in taken and value is not None and value is not False:
            raise UsageError(
                f"{option_flag(name)} is for runs of {_kinds(verb, name)}, and {run} is not one."
            )
    return function(run, *args, **{name: value for name, value in options.items() if name in taken})


def _kinds(verb: str, option: str | None = None) -> str:
    """Return the kinds of runs that take a verb, or one of its options, as a list in words."""
    functions = {task.kind: task.function(verb) for task in TASKS.values()}
    *kinds, last = (
        kind
        for kind, function in functions.items()
        if function is not None and (option is None or option in signature(function).parameters)
    )
    return f"{', '.join(kinds)} or {last}" if kinds else last
