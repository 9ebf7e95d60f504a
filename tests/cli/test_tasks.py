"""The table of tasks: each has all that the verbs need."""

from inspect import signature

import pytest

from lambdanets.cli.tasks import TASKS
from lambdanets.recipes import get_recipe, list_recipes
from lambdanets.recipes.registry import MINIATURES


@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_what_the_verbs_need(name: str) -> None:
    task = TASKS[name]
    assert name == task.config_class().TASK
    assert "run_dir" in signature(task.train_function()).parameters
    for verb in task.verbs:
        function = task.function(verb)
        assert function is not None
        _, *options = signature(function).parameters.values()
        # `run_verb` passes what the signature names.
        assert all(option.default is option.empty for option in options)
    assert name in MINIATURES


def test_each_recipe_is_of_a_task_of_the_table() -> None:
    assert {get_recipe(name).TASK for name in list_recipes()} == TASKS.keys()
