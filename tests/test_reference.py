"""docs/reference says what the tables in the code say; `make docs` writes it."""

from __future__ import annotations

import pytest

from gossamer.core.settings import SETTINGS
from gossamer.ir.op import TABLE
from tools import reference


@pytest.mark.parametrize("name", sorted(reference.PAGES))
def test_the_page_is_the_one_that_make_docs_writes(name: str) -> None:
    written = (reference.FOLDER / name).read_text()
    assert written == reference.PAGES[name](), "run `make docs`"


def test_every_record_and_setting_is_told() -> None:
    assert all(f"`{name}`" in reference.operators() for name in TABLE)
    assert all(f"`{name}`" in reference.settings() for name in SETTINGS)
