"""`lambdanets --print-completion SHELL`: a script that completes verbs, options, recipes and models.

The script holds all words, so that a completion starts no Python. It is written here rather than by tyro,
whose scripts do not complete the names of files after a verb.
"""

import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from shlex import quote
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from tyro import conf

from lambdanets.cli.errors import check_name
from lambdanets.cli.options import option_flag
from lambdanets.cli.verbs import SUBVERBS, VERBS
from lambdanets.models import LANGUAGE_MODELS, list_models
from lambdanets.recipes import list_recipes

SHELLS = ("bash", "zsh", "fish")

# COMP_WORDS[1] is the verb. Where no word of the list fits, the shell completes names of files.
BASH = """\
_lambdanets() {{
  local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} words=
  if ((COMP_CWORD == 1)); then
    words={verbs}
  else
    case "${{COMP_WORDS[1]}} $prev" in
{values}
      *)
        case "${{COMP_WORDS[1]}}" in
{words}
        esac ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
complete -o default -F _lambdanets lambdanets
"""
ZSH = "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n"


def completion_script(shell: str) -> str:
    """Return the script for a shell.

    Raises:
        UsageError: There is none for this shell.
    """
    check_name("shell", shell, SHELLS)
    tables = {verb: _tables(verb) for verb in VERBS}
    return _fish(tables) if shell == "fish" else _bash(tables, zsh=shell == "zsh")


def _tables(verb: str) -> tuple[list[str], dict[str, list[str]]]:
    """Return the words that may follow a verb, and the values of its options."""
    words, values = list(SUBVERBS.get(verb, ())), {}
    for name in SUBVERBS.get(verb, {"": ""}):
        module = "_".join(filter(None, (verb.replace("-", "_"), name)))
        run = importlib.import_module(f"lambdanets.cli.{module}").run
        for option, choices in _options(run):
            words.append(option)
            if choices:
                values[option] = choices
    models = [*list_models(), *LANGUAGE_MODELS]
    words += {"train": list_recipes(), "show": [*list_recipes(), *models], "list": models}.get(verb, [])
    if verb in ("eval", "predict", "explain", "export"):
        words += models
    if verb == "train":
        values["--model"] = models
    return [*dict.fromkeys(words), "--help"], values


def _options(run: Callable[..., int]) -> Iterator[tuple[str, list[str]]]:
    """Yield the options of a verb, those with dataclasses as parameters included, each with its choices."""
    defaults = {name: each.default for name, each in inspect.signature(run).parameters.items()}
    for name, kind in get_type_hints(run, include_extras=True).items():
        plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        if is_dataclass(plain):
            hints = get_type_hints(plain)
            yield from (_option(each.name, hints[each.name], each.default) for each in fields(plain))
        elif name != "return" and conf.Positional not in getattr(kind, "__metadata__", ()):
            yield _option(name, plain, defaults[name])


def _option(name: str, kind: Any, default: Any) -> tuple[str, list[str]]:
    flag = option_flag(f"no-{name}" if kind is bool and default is True else name)
    members = [kind, *get_args(kind)]
    return flag, [str(value) for each in members if get_origin(each) is Literal for value in get_args(each)]


def _bash(tables: dict[str, tuple[list[str], dict[str, list[str]]]], *, zsh: bool) -> str:
    values = [
        f"      {quote(f'{verb} {option}')}) words={quote(' '.join(choices))} ;;"
        for verb, (_, chosen) in tables.items()
        for option, choices in chosen.items()
    ]
    script = BASH.format(
        verbs=quote(" ".join(VERBS)),
        values="\n".join(values),
        words="\n".join(_case(verb, words) for verb, (words, _) in tables.items()),
    )
    return ZSH + script if zsh else script


def _case(verb: str, words: list[str]) -> str:
    """Return the line of the script for a verb: its options after a dash, else its names."""
    options = [word for word in words if word.startswith("--")]
    names = [word for word in words if word not in options]
    chosen = f"if [[ $cur == -* ]]; then words={quote(' '.join(options))}"
    return f"          {verb}) {chosen}; else words={quote(' '.join(names))}; fi ;;"


def _fish(tables: dict[str, tuple[list[str], dict[str, list[str]]]]) -> str:
    lines = [f"complete -c lambdanets -n __fish_use_subcommand -a {v} -d {quote(VERBS[v])}" for v in tables]
    for verb, (words, values) in tables.items():
        seen = f"complete -c lambdanets -n '__fish_seen_subcommand_from {verb}'"
        for word in words:
            if word.startswith("--"):
                taken = f" -x -a {quote(' '.join(values[word]))}" if word in values else ""
                lines.append(f"{seen} -l {word.removeprefix('--')}{taken}")
            else:
                lines.append(f"{seen} -a {quote(word)}")
    return "\n".join(lines) + "\n"
