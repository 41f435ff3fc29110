"""``If-None-Match``: lists, weak tags and ``*``; a part of a tag is not the tag."""

import pytest

from propeller.web.etag import matches


@pytest.mark.parametrize("header", ['"a"', 'W/"a"', '"b", "a"', '"b" ,W/"a"', "*", ' "a" '])
def test_what_the_caller_has(header: str) -> None:
    assert matches(header, '"a"')


@pytest.mark.parametrize("header", ["", "a", '"b"', '"ab"', 'x"a"', '"a"x', "**"])
def test_what_the_caller_has_not(header: str) -> None:
    assert not matches(header, '"a"')
