"""A hook of mkdocs.yml: what the site has besides the pages of docs/.

- The API reference, a page for each room of `ROOMS`, as mkdocstrings reads it from the docstrings. A public module,
  class, function or method without one fails the build.
- The files of the repository that a page links to, so that one link works on a code host and in the site: source files
  as listings with their line numbers, the texts beside the README as pages.
"""

import logging
import pathlib
import posixpath
import re
from typing import Any

import griffe
import pygments
import pygments.formatters
import pygments.lexers
from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = "docs"

ROOMS = {
    "losses": ["losses", "types"],
    "subsentences": ["subsentences"],
    "advantages and log-probs": ["advantages", "logprobs"],
    "checker": ["checker"],
    "rewards": ["rewards"],
    "data": ["data.problems", "data.sources", "data.prompts", "data.tokenizer", "data.curriculum"],
    "models": ["models", "sharding"],
    "sampler": ["sampler"],
    "configuration": ["config", "optimizer", "trainer", "ranges"],
    "runs": ["runs.trackers", "runs.token_log", "runs.policy", "runs.directory"],
    "evaluation": ["evaluation.run", "evaluation.results", "evaluation.intervals", "evaluation.comparison"],
    "studies": ["studies"],
    "serving": ["serving"],
}
"""Page of the reference to the modules on it."""

LINK = re.compile(r"(\]\()(?!\w+:|#)([^)#\s]+)((?:#[^)\s]*)?\))")
EXAMPLE = re.compile(r"^>>> .*?(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)

logger = logging.getLogger("mkdocs.hooks.docs_site")


class Examples(griffe.Extension):
    """Fences the examples of docstrings, whose results would be read as Markdown."""

    def on_object(self, *, obj: griffe.Object, **arguments: Any) -> None:
        """Called by griffe for each object that it has read."""
        del arguments
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(lambda match: f"```pycon\n{match[0]}\n```", obj.docstring.value)


def on_config(config: Any) -> Any:
    """Adds the reference to the navigation."""
    config.nav = [*config.nav, {"API": [{room: f"api/{_file_name(room)}"} for room in ROOMS]}]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the reference and the files that pages link to; complains of what has no docstring."""
    for name in undocumented():
        logger.warning("%s is public and has no docstring", name)
    for room, modules in ROOMS.items():
        text = f"# {room[0].upper()}{room[1:]}\n\n"
        text += "\n\n".join(f"## sspo_jax.{module}\n\n{_reference(module)}" for module in modules)
        files.append(File.generated(config, f"api/{_file_name(room)}", content=text))
    pages = {file.src_uri: file.content_string for file in files.documentation_pages() if _is_own(file.src_uri)}
    todo = [(uri, f"{DOCS}/{uri}", text) for uri, text in pages.items()]
    seen: set[str] = set()
    while todo:
        _, path, text = todo.pop()
        for target in linked(path, text):
            uri = site_uri(target)
            if target.startswith(f"{DOCS}/") or uri in seen:
                continue
            seen.add(uri)
            content = (ROOT / target).read_text(encoding="utf-8")
            if target.endswith(".md"):
                todo.append((uri, target, content))
                content = rewritten(content, path=target, uri=uri)
            else:
                content = _listing(target, content)
            files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Turns links to files outside docs/ into links to their place in the site."""
    del config, files
    uri = page.file.src_uri
    return rewritten(markdown, path=f"{DOCS}/{uri}", uri=uri) if _is_own(uri) else markdown


def undocumented() -> list[str]:
    """The public modules of `ROOMS`, and their public classes, functions and methods, that have no docstring.

    A method is documented where it overrides one that is.
    """
    package = griffe.load("sspo_jax", search_paths=[str(ROOT)])
    found: list[str] = []
    for modules in ROOMS.values():
        for module in modules:
            _look(package[module], found)
    return found


def _look(parent: Any, found: list[str]) -> None:
    if not parent.has_docstring:
        found.append(parent.path)
    for name, member in parent.members.items():
        is_exported = parent.is_module and name in (parent.exports or ())
        if name.startswith("_") or (member.is_alias and not is_exported):
            continue
        if member.is_alias:
            if not member.target_path.startswith("sspo_jax."):
                continue
            member = member.final_target
        if member.is_class:
            _look(member, found)
        elif member.is_function and not member.has_docstring and not _is_inherited(parent, name):
            found.append(member.path)


def _is_inherited(parent: Any, name: str) -> bool:
    return parent.is_class and any(name in base.members and base[name].has_docstring for base in parent.mro())


def linked(path: str, text: str) -> list[str]:
    """The existing files that a text of the repository links to, from the root of it."""
    targets = [posixpath.normpath(posixpath.join(posixpath.dirname(path), link)) for _, link, _ in LINK.findall(text)]
    return [target for target in targets if (ROOT / target).is_file()]


def site_uri(target: str) -> str:
    """Where a file of the repository is in the site."""
    if target.startswith(f"{DOCS}/"):
        return target.removeprefix(f"{DOCS}/")
    return f"project/{target}" if target.endswith(".md") else f"source/{target}.md"


def rewritten(text: str, *, path: str, uri: str) -> str:
    """A text of the repository with its links as they are in the site.

    Args:
      text: Markdown.
      path: of the text in the repository, from its root.
      uri: of the text in the site.
    """

    def replace(match: re.Match[str]) -> str:
        before, link, after = match.groups()
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
        if not (ROOT / target).is_file():
            return match.group(0)
        relative = posixpath.relpath(site_uri(target), posixpath.dirname(uri) or ".")
        return f"{before}{relative}{after}"

    return LINK.sub(replace, text)


def _listing(path: str, content: str) -> str:
    """A page with a file whose lines are anchors, L1, L2, ..., as on code hosts."""
    kind = pygments.lexers.find_lexer_class_for_filename(path) or pygments.lexers.TextLexer
    code = pygments.highlight(content, kind(stripnl=False), pygments.formatters.HtmlFormatter(nowrap=True))
    lines = [f'<span id="L{number}">{line}</span>' for number, line in enumerate(code.splitlines(), 1)]
    code = "\n".join(lines)
    return f'---\nsearch:\n  exclude: true\n---\n# {path}\n\n<pre class="highlight"><code>{code}</code></pre>\n'


def _reference(module: str) -> str:
    return f"::: sspo_jax.{module}\n    options:\n      heading_level: 3\n"


def _file_name(room: str) -> str:
    return f"{room.replace(' ', '_').replace('-', '_')}.md"


def _is_own(uri: str) -> bool:
    return not uri.startswith(("api/", "source/", "project/"))
