"""The documentation as a site: it can be built, and nothing in it leads nowhere.

The generator passes images, snippets and entries of the navigation that are not there: what it has
built is looked through here.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
import yaml

from runtime.config import EdgeConfig, ServerConfig
from runtime.doctor.__main__ import DoctorConfig
from runtime.options import flag

ROOT = Path(__file__).parent.parent
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
LINKS = {**LOADED, "a": "href"}
NOT_LOADED = ("canonical", "next", "prev", "alternate")  # what a <link> may be besides


class Page(HTMLParser):
    """What a page leads to, what it loads, and the anchors that it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors, self.links, self.loaded = {""}, list[str](), list[str]()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if (where := given.get(LINKS.get(tag, ""))) is not None:
            self.links.append(where)
            if tag in LOADED and given.get("rel") not in NOT_LOADED:
                self.loaded.append(where)


def faults(site: Path) -> Iterator[str]:
    """A sentence for everything in a site that leads nowhere, or is loaded from elsewhere."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}
    for path, page in pages.items():
        name = path.relative_to(site).as_posix()
        yield from (f"{name} loads {where}" for where in page.loaded if is_away(where))
        yield from (
            f"{name}: {where} leads nowhere"
            for where in page.links
            if not is_away(where) and not leads(path, where, pages)
        )
        if "--8&lt;--" in path.read_text(encoding="utf-8"):
            yield f"{name}: a snippet that was not found"
    for path in sorted(site.rglob("*.css")):
        text = path.read_text(encoding="utf-8")
        yield from (
            f"{path.name} loads {where}"
            for where in re.findall(r"(?:url\(|@import )[\"']?([^\"')]+)", text)
            if is_away(where) and not where.startswith("data:")
        )


def is_away(where: str) -> bool:
    return re.match(r"[a-z]+:|//", where) is not None


def leads(path: Path, where: str, pages: dict[Path, Page]) -> bool:
    """Whether a relative link of this page has a file at its end, and an anchor in it."""
    file, anchor = urldefrag(unquote(where))
    target = (path.parent / file).resolve() if file else path.resolve()
    if target.is_dir():
        target /= "index.html"
    if not target.is_file():
        return False
    return target not in pages or anchor in pages[target].anchors


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the site is made of, apart from this checkout."""
    folder = tmp_path_factory.mktemp("site").resolve()
    shutil.copytree(ROOT / "docs", folder / "docs")
    for name in ("mkdocs.yml", "SECURITY.md"):
        shutil.copy(ROOT / name, folder)
    for name in ("runtime", "specedge_kernels"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def test_nothing_in_the_site_leads_nowhere(project: Path) -> None:
    done = build(project)
    assert done.returncode == 0, done.stdout + done.stderr
    site = project / "build/site"
    assert len(list(site.glob("*.html"))) == 1 + len(list((ROOT / "docs").glob("*.md")))
    assert not list(faults(site))
    reference = (site / "reference.html").read_text(encoding="utf-8")
    for name in ("runtime.edge.client.Edge.generate", "specedge_kernels.ops.tree_attention"):
        assert f'id="{name}"' in reference


def test_every_page_is_in_the_navigation() -> None:
    tree = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]

    def files(entry: object) -> Iterator[str]:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            if isinstance(value, list):
                for item in value:
                    yield from files(item)
            else:
                yield str(value)

    named = [name for entry in tree for name in files(entry)]
    assert sorted(named) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])
def test_commands_have_the_options_that_a_page_gives_them(page: Path) -> None:
    configs = {"server": ServerConfig, "edge": EdgeConfig, "doctor": DoctorConfig}
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for name, rest in re.findall(r"(?:runtime\.|specedge-)(server|edge|doctor)\b([^`\n]*)", text):
        flags = {flag(item.name) for item in fields(configs[name])}
        for option in re.findall(r"(?<= )--[a-z][a-z-]*", rest.partition(" #")[0]):
            assert option in flags | {"--help", "--version", "--config"}, f"{name} {option}"


@pytest.mark.parametrize("name", ["README.md", "SECURITY.md", "runtime/embedded/README.md"])
def test_what_a_page_outside_the_site_links_to_is_there(name: str) -> None:
    page = ROOT / name
    for where in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert is_away(where) or (page.parent / where).exists(), f"{name}: {where}"


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ('<img src="figures/no.png">', "page.html: figures/no.png leads nowhere"),
        ('<a href="no.html">x</a>', "page.html: no.html leads nowhere"),
        ('<a href="other.html#no">x</a>', "page.html: other.html#no leads nowhere"),
        ('<a href="#no">x</a>', "page.html: #no leads nowhere"),
        ('<script src="https://a.example/x.js"></script>', "page.html loads https://a.example/"),
        ('<link rel="stylesheet" href="//a.example/x.css">', "page.html loads //a.example/x.css"),
        ('--8&lt;-- "no.md"', "page.html: a snippet that was not found"),
    ],
)
def test_what_is_wrong_is_found(tmp_path: Path, wrong: str, fault: str) -> None:
    (tmp_path / "other.html").write_text('<p id="here"></p>')
    page = tmp_path / "page.html"
    page.write_text('<a href="other.html#here">x</a> <a href="https://a.example">y</a>')
    assert not list(faults(tmp_path))
    page.write_text(wrong)
    told = list(faults(tmp_path))
    assert len(told) == 1
    assert told[0].startswith(fault)


def test_a_font_from_elsewhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "x.css").write_text("@font-face { src: url('https://fonts.example/a.woff2') }")
    assert list(faults(tmp_path)) == ["x.css loads https://fonts.example/a.woff2"]
