"""Lists in sentences, spelling suggestions, and names from outside."""

import json
import os

import pytest

from lambdanets.utils.text import (
    did_you_mean,
    first_line,
    join_some,
    json_text,
    printable,
    printable_lines,
)


@pytest.mark.parametrize(
    ("words", "most", "sentence"),
    [
        ([], 2, ""),
        (["a"], 2, "'a'"),
        (["a", "b"], 2, "'a', 'b'"),
        (["a", "b", "c"], 2, "'a', 'b' and 1 more"),
        (["it's"] * 1003, 1, '"it\'s" and 1,002 more'),
    ],
)
def test_the_first_words_and_the_number_of_the_others(words: list[str], most: int, sentence: str) -> None:
    assert join_some(words, most) == join_some(iter(words), most) == sentence


def test_sentences_are_joined_by_line_breaks() -> None:
    assert join_some("abcdef", form=str, separator="\n- ") == "a\n- b\n- c\n- d\n- e\n- and 1 more"


def test_similar_names_are_suggested() -> None:
    assert did_you_mean("trian", ["eval", "train"]) == "; did you mean train?"
    assert did_you_mean("scop", iter(["scope", "scopes", "dim_k"])) == "; did you mean scope or scopes?"
    assert did_you_mean("xyz", ["train"]) == ""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("\n shapes differ. \nException raised from"), "shapes differ"),
        (AssertionError(), "AssertionError"),
        (KeyError("k"), "'k'"),
        (ValueError("..."), "ValueError"),
    ],
)
def test_the_first_line_of_an_error(error: Exception, line: str) -> None:
    assert first_line(error) == line


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Straße, 猫 and a b", "Straße, 猫 and a b"),
        ("cat\x1b[2J\x07", "cat\\x1b[2J\\x07"),
        ("a\nb\u2028c", "a\\nb\\u2028c"),
        ("exe\u202egpj", "exe\\u202egpj"),
        (os.fsdecode(b"caf\xe9"), "caf\\udce9"),
        ("می\u200cروم", "می\u200cروم"),
    ],
)
def test_names_that_would_change_the_terminal_are_escaped(name: str, shown: str) -> None:
    assert printable(name) == shown
    assert printable_lines(f"{name[:1]}\n{name[:1]}") == f"{name[:1]}\n{name[:1]}"


def test_json_keeps_letters_and_the_bytes_of_names() -> None:
    names = ["猫", os.fsdecode(b"caf\xe9"), 'a"b\n', "\\udce9"]
    written = json_text(names, indent=1).encode("utf-8")
    assert json.loads(written) == names
    assert "猫".encode() in written
