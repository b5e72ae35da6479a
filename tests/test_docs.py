"""docs/architecture.md names every module, and no other; links between the pages lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from paths import ROOT

PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]


def named_modules() -> set[str]:
    """The modules in the tables of the page, as paths from the root of the repository."""
    found: set[str] = set()
    text = (ROOT / "docs/architecture.md").read_text()
    for section in re.split(r"^### ", text, flags=re.M)[1:]:
        folder = section.split("`")[1]
        rows = re.findall(r"^\| `([^`]+)` \|", section, re.M)
        found.update(f"{folder}/{name}" for name in rows)
    return found


def test_the_page_on_architecture_names_every_module() -> None:
    core, rest = ROOT / "src/pyx/kongps/core", ROOT / "src/kongps"
    modules = {
        path
        for path in [*core.rglob("*.py"), *core.rglob("*.pyx"), *rest.rglob("*.py")]
        if rest / "core" not in path.parents
        # The folders of the core have no code in their `__init__.py`.
        and not (path.name == "__init__.py" and core in path.parent.parents)
    }
    # Declarations without a module of the same name: code that is inlined, and C libraries.
    modules |= {path for path in core.rglob("*.pxd") if not path.with_suffix(".pyx").exists()}
    assert named_modules() == {path.relative_to(ROOT).as_posix() for path in modules}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_files_that_the_page_on_architecture_mentions_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text().partition("## All modules")[0]
    places = [ROOT, ROOT / "src/pyx/kongps/core", ROOT / "src/pyx/kongps", ROOT / "src/kongps"]
    for name in set(re.findall(r"`([\w/]+\.(?:pyx|pxd|pyi?))`", text)):
        found = [place / name for place in places if (place / name).exists()]
        assert found or list((ROOT / "src").rglob(name)), name
