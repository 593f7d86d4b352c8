"""References between documents: links and decisions lead to something in the repository."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from crm_analytics.core.settings import PROJECT_DIR

FOLDERS = ("crm_analytics", "crm_analytics_tests", "bench", "deploy", "docs", "grafana/provisioning", "sql")
TEXTS = {".py", ".sql", ".md", ".yaml", ".yml", ".sh"}
FILES = sorted(
    path
    for path in (
        *PROJECT_DIR.iterdir(),
        *(path for name in FOLDERS for path in (PROJECT_DIR / name).rglob("*")),
    )
    if path.is_file() and (path.suffix in TEXTS or path.name in ("Dockerfile", "Makefile"))
)
PAGES = [path for path in FILES if path.suffix == ".md"]
#: Documents of a design that isn't part of the repository.
ELSEWHERE = re.compile(
    r"\b(inputs|metrics|dagster|models|grafana|speed|answers)\.md\b|architecture, decision"
)


def anchors(page: Path) -> set[str]:
    """Returns the anchors of the page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}


def broken_links(page: Path) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT_DIR)))
def test_links_of_a_page_lead_to_files_and_headings(page):
    """Every relative link resolves, including its heading: a reader would otherwise end on an error page."""
    assert list(broken_links(page)) == []


def test_no_text_refers_to_a_document_outside_the_repository():
    """Comments can't refer to design notes that readers don't have."""
    mentions = {
        f"{path.relative_to(PROJECT_DIR)}: {match[0]}"
        for path in FILES
        if path != Path(__file__)
        for match in ELSEWHERE.finditer(path.read_text())
    }
    assert mentions == set()


def test_every_decision_is_in_the_index():
    """A decision that the index doesn't list wouldn't be found."""
    folder = PROJECT_DIR / "docs" / "decisions"
    listed = re.findall(r"^- \[([\w-]+)\]\(\1\.md\)", (folder / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(path.stem for path in folder.glob("*.md") if path.name != "README.md")
