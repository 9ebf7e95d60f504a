"""Lists in sentences."""

import pytest

from lambdanets.wording import few


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
def test_the_first_few_and_how_many_more(words: list[str], most: int, sentence: str) -> None:
    assert few(words, most) == few(iter(words), most) == sentence


def test_whole_sentences_stand_in_lines() -> None:
    assert few("abcdef", form=str, separator="\n- ") == "a\n- b\n- c\n- d\n- e\n- and 1 more"
