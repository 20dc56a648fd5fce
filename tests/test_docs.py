"""The docs speak of things that exist."""

import re
from pathlib import Path

import pytest
import yaml

from curation.errors import CODES
from curation.tables import CLIP_SCORES
from jobs.cli import app
from jobs.config import resolve, shipped_lists

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_use_verbs_that_exist(page: Path) -> None:
    verbs = {c.name or c.callback.__name__ for c in app.registered_commands}  # type: ignore[union-attr]
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
        for verb in re.findall(r"\breelset ([a-z-]+)", block):
            assert verb in verbs


def test_every_error_code_is_explained() -> None:
    table = re.findall(r"^\| `([a-z_]+)` \| (.+) \|$", (ROOT / "docs" / "running.md").read_text(), re.MULTILINE)
    assert dict(table) == CODES


def test_every_score_has_its_line() -> None:
    text = (ROOT / "docs" / "filters.md").read_text()
    hidden = {"border_bottom_px", "border_left_px"}  # between `border_top_px` ... `border_right_px`
    assert not [name for name in CLIP_SCORES if name not in hidden and f"`{name}`" not in text]


def test_the_settings_shown_are_settings() -> None:
    for block in re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "running.md").read_text(), re.DOTALL):
        resolve(yaml.safe_load(block))


def test_shipped_lists_are_named() -> None:
    text = (ROOT / "docs" / "running.md").read_text()
    assert all(f"`{name}`" in text or name in text for name in shipped_lists())
