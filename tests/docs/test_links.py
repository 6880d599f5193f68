"""Links, anchors and paths of the pages point to something that exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Page, pages, prose_of

PAGES = pages()
FOLDERS = ("app", "benchmarks", "configs", "deploy", "docs", "examples", "requirements", "tests")
PACKAGES = sorted(folder.name for folder in (ROOT / "app").iterdir() if folder.is_dir())
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_EXTERNAL = re.compile(r"[a-z][a-z0-9+.-]*:")
_HEADING = re.compile(r"#{1,6} +(.*?) *$")
_PATH = re.compile(rf"(?<![\w/.:-])(?:{'|'.join(FOLDERS)})/[\w./*-]*[\w/*]")
_IN_APP = re.compile(rf"`((?:{'|'.join(PACKAGES)})/[\w./]*)`")
_MODULE = re.compile(rf"(?<![\w/.`-])`?((?:{'|'.join(PACKAGES)})(?:\.[a-z_]+)+)")


def links_of(page: Page) -> Iterator[tuple[int, str]]:
    """Line and target of every link that is not an address."""
    for number, line in prose_of(page):
        for target in _LINK.findall(line):
            if not _EXTERNAL.match(target):
                yield number, target


def anchors_of(page: Page) -> list[str]:
    """The anchor of every heading, by GitHub's rules."""
    found: list[str] = []
    for _, line in prose_of(page):
        if heading := _HEADING.match(line):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            again = sum(1 for anchor in found if re.fullmatch(rf"{re.escape(slug)}(-\d+)?", anchor))
            found.append(f"{slug}-{again}" if again else slug)
    return found


def is_broken(page: Page, target: str) -> bool:
    """Whether a link from a page leads nowhere."""
    path, _, anchor = target.partition("#")
    linked = page
    if path:
        file = (ROOT / page.name).parent / path
        if not file.exists():
            return True
        if anchor:
            linked = Page(path, file.read_text(encoding="utf-8"))
    return bool(anchor) and anchor not in anchors_of(linked)


def paths_of(page: Page) -> Iterator[tuple[int, str]]:
    """Line and path of everything in a page's prose that looks like a file of the repository."""
    for number, line in prose_of(page):
        for path in _PATH.findall(_LINK.sub("", line)):
            yield number, path


def exists(pattern: str) -> bool:
    """Whether a path from the root, perhaps with `*`, names a file or folder."""
    return any(True for _ in ROOT.glob(pattern.rstrip("/")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page: Page) -> None:
    assert [f"{line}: {link}" for line, link in links_of(page) if is_broken(page, link)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_of_the_repository_exists(page: Page) -> None:
    assert [f"{line}: {path}" for line, path in paths_of(page) if not exists(path)] == []


def test_every_module_of_the_architecture_page_exists() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    paths = _IN_APP.findall(text)
    modules = [name.replace(".", "/") for name in _MODULE.findall(text)]

    assert len(paths) > 20
    assert len(modules) > 10
    assert [path for path in paths if not exists(f"app/{path}")] == []
    assert [m for m in modules if not exists(f"app/{m}") and not exists(f"app/{m}.py")] == []


def test_every_page_of_the_docs_is_linked_from_the_readme() -> None:
    readme = next(page for page in PAGES if page.name == "README.md")
    linked = {target for _, target in links_of(readme)}
    docs = {file.relative_to(ROOT).as_posix() for file in Path(ROOT / "docs").glob("*.md")}

    assert docs - linked == set()


def test_broken_links_and_paths_are_found() -> None:
    page = Page(
        "docs/a.md",
        "# The `x_y` page, twice\n\n## Again\n\n## Again\n\n"
        "[a](data.md#no-such-heading) [b](none.md) [c](#again-1) [d](#the-x_y-page-twice)\n"
        "[e](https://example.com/none) `app/none.py`, app/errors.py; s3://docs/none\n\n"
        "```sh\ncat docs/none.md\n```\n",
    )

    assert [t for _, t in links_of(page) if is_broken(page, t)] == [
        "data.md#no-such-heading",
        "none.md",
    ]
    assert [path for _, path in paths_of(page)] == ["app/none.py", "app/errors.py"]
    assert [path for _, path in paths_of(page) if not exists(path)] == ["app/none.py"]
