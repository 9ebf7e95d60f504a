"""The completion script, in the shells that are installed."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lambdanets.cli.verbs import SUBVERBS, VERBS
from lambdanets.models import list_models
from lambdanets.recipes import list_recipes

Command = Callable[..., subprocess.CompletedProcess[str]]

# What follows `lambdanets` up to the cursor -> all completions.
COMPLETED = {
    "tr": ["train"],
    "train dig": ["digits"],
    "train ": list_recipes(),
    "train digits --ep": ["--epochs"],
    "train --model lambda_resnet_d": ["lambda_resnet_digits"],
    "eval run --weights ": ["best", "last"],
    "bench ": list(SUBVERBS["bench"]),
    "bench op --no-": ["--no-memory"],
    "export runs/": [],  # names of files, by the shell
    "generate ": [],
}
BASH = """
source {script}
complete -p lambdanets
while IFS= read -r line; do
  read -ra COMP_WORDS <<< "lambdanets $line"
  [[ $line == *" " ]] && COMP_WORDS+=("")
  COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
  _lambdanets
  echo "${{COMPREPLY[*]}}"
done
"""


@pytest.fixture
def script(inside: Command, tmp_path: Path) -> Callable[[str], Path]:
    def write(shell: str) -> Path:
        done = inside("--print-completion", shell)
        assert done.returncode == 0, done.stderr
        path = tmp_path / f"lambdanets.{shell}"
        path.write_text(done.stdout)
        return path

    return write


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
def test_bash_completes_verbs_options_and_names(script: Callable[[str], Path]) -> None:
    done = subprocess.run(
        ["bash", "--norc", "-c", BASH.format(script=script("bash"))],
        input="".join(f"{line}\n" for line in COMPLETED),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    registered, *lines = done.stdout.splitlines()
    assert registered == "complete -o default -F _lambdanets lambdanets"
    assert done.stderr == ""
    for (line, expected), found in zip(COMPLETED.items(), lines, strict=True):
        assert found.split() == expected, line


@pytest.mark.parametrize("verb", ["train", "eval", "plan", "bench op"])
def test_the_script_has_the_options_of_the_help(
    inside: Command, script: Callable[[str], Path], verb: str
) -> None:
    line = re.search(rf"^ +{verb.split()[0]}\) .*$", script("bash").read_text(), re.MULTILINE)
    assert line
    options = re.findall(
        r"^[│| ]*(?:-h, )?(--[a-z][a-z-]*)", inside(*verb.split(), "--help").stdout, re.MULTILINE
    )
    assert len(options) > 5
    assert set(options) <= set(re.findall(r"--[a-z-]+", line[0]))


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
def test_fish_completes_verbs_options_and_names(script: Callable[[str], Path]) -> None:
    program = f'source {script("fish")}\nwhile read -l line; complete -C "lambdanets $line"; echo; end'
    lines = ["tr", "train digits --ep", "train dig"]
    done = subprocess.run(
        ["fish", "--no-config", "-c", program],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = [[row.split("\t")[0] for row in block.splitlines()] for block in done.stdout.split("\n\n")]
    assert found[:3] == [["train"], ["--epochs"], ["digits"]]


def test_every_shell_gets_all_verbs_and_names(script: Callable[[str], Path]) -> None:
    for shell in ("bash", "zsh", "fish"):
        text = script(shell).read_text()
        for name in (*VERBS, *list_recipes(), *list_models()):
            assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text), (shell, name)
