"""The pages of the site from those of the repository: `make site` runs this, then mkdocs.

The documents link to files of the repository by relative paths, as GitHub resolves them. On the
site the pages of docs/ are at the root, and CHANGELOG.md and recipes/ are beside them. Reads and
writes Markdown; needs no package.
"""

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "build" / "pages"
"""Where mkdocs.yml looks for them."""

BESIDE = ("CHANGELOG.md", "LICENSE", "recipes/**/*.md", "recipes/**/*.png")
BESIDE += ("recipes/**/*.yaml", "recipes/*.json", "rahf/generation/urial.md")


def write_pages(folder: Path) -> None:
    """Write all pages and what they show below `folder`, which is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", folder, ignore=shutil.ignore_patterns("shapes", "__pycache__"))
    for path in sorted(path for pattern in BESIDE for path in ROOT.glob(pattern)):
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    for page in folder.rglob("*.md"):
        outside = (ROOT / page.relative_to(folder)).is_file()
        text = moved_links(page.read_text(encoding="utf-8"), outside)
        page.write_text(separated_lists(text), encoding="utf-8")


def moved_links(markdown: str, outside: bool) -> str:
    """Return Markdown whose links fit the site, where docs/ is the root of all.

    Args:
        outside: whether the page is outside of docs/ in the repository.
    """
    if outside:
        return re.sub(r"\]\(((?:\.\./)*)docs/", r"](\1", markdown)
    return re.sub(r"\]\(\.\./", "](", markdown)


def separated_lists(markdown: str) -> str:
    """Return Markdown with the empty line that Python-Markdown needs before a list or table."""
    lines: list[str] = []
    in_code = False
    for line in markdown.split("\n"):
        before = lines[-1] if lines else ""
        starts = re.match(r"(- |\d+\. |\|)", line)
        same = re.match(r"(- |\d+\. |\||\s)", before)
        if starts and before.strip() and not same and not in_code:
            lines.append("")
        in_code ^= line.lstrip().startswith("```")
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    write_pages(PAGES)
    print(f"pages: {PAGES.relative_to(ROOT)}")
