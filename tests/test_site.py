"""The site of the documents: its pages, their links, the API page, and the build itself."""

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import rahf

ROOT = Path(__file__).parents[1]
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    """Return the folder of the pages as `make site` writes them."""
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "scripts" / "docs_site.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    folder = tmp_path_factory.mktemp("site") / "pages"
    script.write_pages(folder)
    return folder


def named_pages(entries):
    for entry in entries:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else named_pages(value)


def test_the_navigation_names_every_page_once(pages):
    named = list(named_pages(CONFIG["nav"]))
    beside = set(CONFIG["not_in_nav"].split())
    written = {path.relative_to(pages).as_posix() for path in pages.rglob("*.md")}
    assert sorted(named) == sorted(
        name for name in written if not any(name.startswith(part) for part in beside)
    )


def test_links_of_the_pages_lead_to_pages_and_files(pages):
    wrong = []
    for page in pages.rglob("*.md"):
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            target = link.partition("#")[0]
            if target and not target.startswith("http") and not (page.parent / target).is_file():
                wrong.append(f"{page.relative_to(pages)}: {link}")
    assert wrong == []


def test_lists_and_tables_are_set_off_for_python_markdown(pages):
    text = (pages / "troubleshooting.md").read_text()
    assert re.search(r"[^\n]\n\n- \*\*The target is small", text)
    joined = [
        f"{page.name}: {line}"
        for page in pages.rglob("*.md")
        for line in re.findall(
            r"^(?![-|\s\d])[^\n]+\n\|[^\n]*\n\|[-|: ]+\|$", page.read_text(), re.MULTILINE
        )
    ]
    assert joined == []


def test_the_api_page_has_all_that_the_package_offers():
    named = re.findall(r"^::: rahf\.(\S+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    found = [name.rpartition(".") for name in named]
    assert sorted(name for _, _, name in found) == sorted(rahf.__all__)
    for module, _, name in found:
        assert getattr(importlib.import_module(f"rahf.{module}"), name) is getattr(rahf, name)


def test_the_site_is_built_without_a_warning_and_requests_nothing(pages, tmp_path):
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package)
    config = (ROOT / "mkdocs.yml").read_text()
    config = config.replace("docs_dir: build/pages", f"docs_dir: {pages}")
    config = config.replace("paths: [.]", f"paths: ['{ROOT}']")
    (tmp_path / "mkdocs.yml").write_text(config)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", "site"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    built = list((tmp_path / "site").rglob("*.html"))
    assert len(built) > len(list(named_pages(CONFIG["nav"])))
    for page in built:
        assert (
            re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"https?:", page.read_text()) == []
        )
    assert "RAHFTrainer" in (tmp_path / "site" / "api.html").read_text()
