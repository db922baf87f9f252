"""How an error of somebody else's ends one of ours."""

from __future__ import annotations

import pytest

from selu.errors import first_line


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("no such file", "no such file."),
        ("No such file.\n  in line 3", "No such file."),
        ("Is it there?\n", "Is it there?"),
        ("", "ValueError."),
        ("\n \n", "ValueError."),
        ("Errors in loading X:\n\tsize mismatch for y\n\tand more", "Errors in loading X: size mismatch for y."),
        ("Errors in loading X:", "Errors in loading X."),
    ],
)
def test_the_first_line_is_a_sentence(said: str, line: str) -> None:
    assert first_line(ValueError(said)) == line
