"""A hook of MkDocs: pages from outside of docs/, and links that lead out of it.

On GitHub a link is relative to its file in the repository. The site has docs/ as its root, README.md as its
front page, and three more pages; a link to any other file of the repository leads to GitHub. The site asks
nobody: a page that would load anything from elsewhere is an error.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GITHUB = "https://github.com/pixtral-sky/pixtral-sky/blob/main"
# Pages of the site, and their files where these are not in docs/.
OUTSIDE = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "examples/truss.md": "examples/truss/README.md",
}
PAGES = {file: page for page, file in OUTSIDE.items()}
LINK = re.compile(r"\]\((?!https?:)(?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
LOADS = re.compile(
    r"<(?:script|img|iframe)\b[^>]*\bsrc=\"?(?:https?:)?//|<link\b[^>]*stylesheet[^>]*https?://"
)


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for page, file in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / file)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    return relinked(markdown, page.file.src_uri)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    from mkdocs.exceptions import PluginError

    if found := LOADS.search(output):
        raise PluginError(f"{page.file.src_uri} loads something from elsewhere: {found[0]}")
    return output


def relinked(markdown: str, page: str) -> str:
    """The text of a page with each link of the repository as a link of the site, or to GitHub."""
    file = PurePosixPath(OUTSIDE.get(page, f"docs/{page}"))

    def link(found: re.Match[str]) -> str:
        wanted, anchor = os.path.normpath(file.parent / found["target"]), found["anchor"] or ""
        there = PAGES.get(wanted) or (wanted.removeprefix("docs/") if wanted.startswith("docs/") else "")
        if there:
            return f"]({os.path.relpath(there, PurePosixPath(page).parent)}{anchor})"
        # MkDocs says what is wrong with a link that leads nowhere.
        return f"]({GITHUB}/{wanted}{anchor})" if (ROOT / wanted).exists() else found[0]

    return LINK.sub(link, markdown)
