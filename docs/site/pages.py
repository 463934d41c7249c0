"""What the site is made of: the repository's documents under their own paths, so that links hold; examples as pages."""

from __future__ import annotations

import ast
import logging
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = [
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE"),
    *("benchmarks/README.md", "custom_aicore/README.md"),
]
SECTION = "Examples"
SOURCES = {".py": "python", ".h": "cpp", ".cc": "cpp", ".cpp": "cpp", ".sh": "bash"}
TO_SOURCE = re.compile(rf"\]\([\w./]+(?:{'|'.join(map(re.escape, SOURCES))})(?=\))")
LOG = logging.getLogger("mkdocs.hooks.pages")  # whose warnings end a strict build


def _outside() -> list[str]:
    results = sorted((ROOT / "benchmarks" / "results").glob("*.[mp][dn]*"))
    return [*OUTSIDE, *(str(path.relative_to(ROOT)) for path in results)]


def _destination(source: str) -> str:
    """README.md is the start page, that of a folder its index."""
    path = Path(source)
    if path.suffix == ".md":
        path = path.with_name("index.html") if path.stem == "README" else path.with_suffix(".html")
    return str(path)


def _source_page(path: Path, config: MkDocsConfig, inclusion: InclusionLevel) -> File:
    """A source: its docstring, then its text."""
    text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT)
    title, introduction = path.name, ""
    if path.suffix == ".py":
        first, _, introduction = (ast.get_docstring(ast.parse(text)) or title).partition("\n")
        title = first.rstrip(".").replace("`", "")
    content = f"# {title}\n\n{introduction}\n\n`{name}`:\n\n```{SOURCES[path.suffix]}\n{text}```\n"
    page = File.generated(config, f"{name}.md", content=content, inclusion=inclusion)
    page.dest_uri = str(name.with_suffix(".html"))
    return page


def _notebook_page(path: Path, config: MkDocsConfig) -> list[File]:
    """A notebook with its outputs, and its pictures."""
    text, resources = MarkdownExporter().from_filename(str(path))
    files = []
    for name, content in resources["outputs"].items():
        picture = f"{path.stem}_{name}"
        text = text.replace(f"]({name})", f"]({picture})")
        files.append(File.generated(config, f"examples/{picture}", content=content))
    page = File.generated(config, f"examples/{path.name}.md", content=text)
    page.dest_uri = f"examples/{path.stem}.html"
    return [page, *files]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    examples = sorted((ROOT / "examples").glob("*.py")) + sorted(
        (ROOT / "examples").glob("*.ipynb")
    )
    for section in config.nav or []:
        if SECTION in section:
            section[SECTION] = [f"examples/{path.name}.md" for path in examples]
    return config


def _linked_sources(files: list[File]) -> set[Path]:
    """Sources of the repository that a document links to."""
    linked = set()
    for file in files:
        if file.src_uri.endswith(".md") and file.abs_src_path:
            here = Path(file.abs_src_path).parent
            for target in TO_SOURCE.findall(Path(file.abs_src_path).read_text(encoding="utf-8")):
                linked.add((here / target[2:]).resolve())
    return {path for path in linked if path.is_file()}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    own = Path(config.docs_dir)
    found = []
    for file in files:
        if file.abs_src_path and own in Path(file.abs_src_path).parents:
            if file.src_uri.endswith(".py"):
                continue
            moved = File(
                f"docs/{file.src_uri}", str(ROOT), config.site_dir, False, dest_uri=file.dest_uri
            )
            found.append(moved)
        else:
            found.append(file)
    for source in _outside():
        found.append(File(source, str(ROOT), config.site_dir, False, dest_uri=_destination(source)))
    examples = sorted((ROOT / "examples").glob("*.py"))
    found += [_source_page(path, config, InclusionLevel.INCLUDED) for path in examples]
    for path in sorted(_linked_sources(found) - set(examples)):
        found.append(_source_page(path, config, InclusionLevel.NOT_IN_NAV))
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        found += _notebook_page(path, config)
    return Files(found)


def on_page_markdown(markdown: str, *, page: Page, **_: object) -> str:
    """A link to a source leads to its page; a link that shows a file's name shows its title."""
    here = (ROOT / page.file.src_uri).parent

    def titled(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        file = here / target
        if Path(text).name != file.name or not file.is_file():
            return link[0]
        if file.resolve() == ROOT / "README.md":
            return f"[the start page]({target}{anchor})"
        title = re.search(r"^# (.+)", file.read_text(encoding="utf-8"), re.M)
        return f"[{title[1] if title else text}]({target}{anchor})"

    markdown = re.sub(r"\[([\w./]+\.md)\]\(([\w./]+\.md)(#[\w-]+)?\)", titled, markdown)
    return re.sub(TO_SOURCE.pattern + r"|(?<=\]\()[\w./]+\.ipynb(?=\))", r"\g<0>.md", markdown)


LOADED = re.compile(
    r"<(?:script|img|link|iframe|source|use)\b[^>]*\b(?:src|href)=\"((?:https?:)?//[^\"]+)"
)
LINKED = re.compile(r"<a\b[^>]*\bhref=\"(https?://[^\"]+)")


def on_post_build(config: MkDocsConfig) -> None:
    """Nothing is loaded from another host; links to others, which nothing here can check, are listed."""
    links = set()
    for page in sorted(Path(config.site_dir).rglob("*.html")):
        text = page.read_text(encoding="utf-8")
        for address in LOADED.findall(text):
            LOG.warning("%s loads %s", page.relative_to(config.site_dir), address)
        links.update(LINKED.findall(text))
    for sheet in sorted(Path(config.site_dir).rglob("*.css")):
        if re.search(r"url\(\"?(?:https?:)?//", sheet.read_text(encoding="utf-8")):
            LOG.warning("%s loads from another host", sheet.relative_to(config.site_dir))
    LOG.info("links to other hosts: %s", ", ".join(sorted(links)) or "none")
