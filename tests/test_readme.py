"""README and help pages lead somewhere: every link has a file, and the README names every template."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / ".github" / "CONTRIBUTING.md"]
HELP = sorted((ROOT / "nodes" / "web" / "docs").glob("*.md"))
LINK = re.compile(r"\]\((?:<([^>]+)>|([^)<\s]+))\)")


def links(page: Path) -> list[str]:
    """Places of this repository that a page leads to."""
    return [place for pair in LINK.findall(page.read_text("utf-8")) for place in pair if place and not place.startswith("http")]


@pytest.mark.parametrize("page", [*PAGES, *HELP], ids=lambda page: page.name)
def test_links_lead_to_files(page):
    root = ROOT if page.parent == ROOT else page.parent
    assert not [place for place in links(page) if not (root / place).exists()]


def test_every_template_for_a_published_model_is_named():
    assert {f"example_workflows/{p.name}" for p in (ROOT / "example_workflows").glob("[0-9]*.json")} <= {*links(PAGES[0])}


def test_every_demo_template_is_named():
    named = set(re.findall(r"[`\[]([a-z0-9_]+)[`\]]", PAGES[0].read_text("utf-8")))
    assert {p.stem for p in (ROOT / "example_workflows").glob("[a-z]*.json")} <= named
