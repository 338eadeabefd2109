"""A hook of MkDocs: the site's pages are the repository's Markdown files, at their paths, with the files they link to.

Links between documents, and from documents to code, are thus the same on the site as in the repository; MkDocs checks
them.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"\]\(([^)\s#]+)")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"^ {2}(?=\s*\S)", re.MULTILINE)
_END_OF_INNER_FENCE = re.compile(r"^( +```\n)", re.MULTILINE)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Put the repository's documents in place of those of `docs_dir`; what the theme brings stays."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    pages = [name for name in names if (ROOT / name).is_file()]
    linked = {target for name in pages for target in linked_files(name)}
    paths = sorted({*pages, *linked})
    of_theme = [one for one in files if one.src_dir != config.docs_dir]
    return Files(of_theme + [File(path, str(ROOT), config.site_dir, config.use_directory_urls) for path in paths])


def linked_files(page: str) -> list[str]:
    """Paths, from the repository's root, of the files that a document links to or shows."""
    folder = (ROOT / page).parent
    targets = [(folder / link).resolve() for link in _LINK.findall((ROOT / page).read_text())]
    return [str(one.relative_to(ROOT)) for one in targets if one.is_file() and one.is_relative_to(ROOT)]


def on_page_markdown(markdown: str, **_: object) -> str:
    """What belongs to an item of a list is indented by two spaces for GitHub, and by four for MkDocs.

    A block of code in an item must also end with an empty line.
    """
    outside = _FENCE.split(markdown)  # every other part is a block of code that stands at the margin
    outside[::2] = [_END_OF_INNER_FENCE.sub(r"\1\n", _INDENTED.sub("    ", part)) for part in outside[::2]]
    return "".join(outside)
