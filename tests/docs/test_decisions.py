"""Decision pages have one form, and the index names each of them."""

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "decisions"
PAGES = sorted(FOLDER.glob("[0-9]*.md"))
SECTIONS = ["Context", "Considered", "Choice", "Limits", "Replaced", "Consequences"]
STATUS = re.compile(r"Status: (accepted|proposed|replaced by \d{4})\. Date: \d{4}-\d{2}-\d{2}\.")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name[:4])
def test_form(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert lines[0].startswith(f"# {page.name[:4]}: ")
    assert STATUS.fullmatch(lines[2]), lines[2]
    sections = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    assert sections == [name for name in SECTIONS if name in sections]
    assert {"Context", "Choice"} <= set(sections)


def test_the_index_names_every_page_by_its_title() -> None:
    found = re.findall(r"^- \[(\d{4})\]\((\S+)\) (.+)$", (FOLDER / "README.md").read_text(), re.MULTILINE)
    wanted = [
        (page.name[:4], page.name, page.read_text().splitlines()[0][len("# 0000: ") :]) for page in PAGES
    ]
    assert sorted(found) == wanted  # a room may have more than one ten of numbers


def test_numbers_are_unique() -> None:
    numbers = [page.name[:4] for page in PAGES]
    assert len(numbers) == len(set(numbers))
