"""Builds the pages of the site that are made from the code, and fits links to the site (a hook of mkdocs).

Settings come from the schema, commands from their parsers, the Python reference from docstrings. Without mkdocs the
functions give the same texts, which is how tests read them.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # mkdocs takes the first place away again

import click

from common.models.backbone import BACKBONES
from common.settings.schema import RunConfig, explanations
from server.settings.rules import explained_names
from siteseg.command import ENTRIES, load_command

ROOT = Path(__file__).resolve().parents[1]
# Pages of the root, by their names on the site.
BORROWED = {
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
# What a reader of the Python reference may rely on, by module.
LIBRARY = {
    "siteseg": ("load", "TrainedModel"),
    "server.commands.segment": ("segment",),
    "server.commands.export": ("export_onnx",),
    "server.commands.hub": ("export_hub",),
    "server.simulate": ("simulate",),
    "server.tasks.base": ("load_settings",),
    "common.checkpoint": ("Checkpoint", "load_checkpoint"),
    "common.registry": ("Registry",),
    "server.centroids.base": ("RuleFacts", "RuleInput", "Merged"),
    "common.losses.base": ("Objective",),
    "common.settings.objectives": ("ObjectiveFacts",),
    "common.models.backbone": ("Backbone", "BackboneFacts"),
    "partitions.sources.base": ("Dataset", "SourceFacts"),
}


def cell(text: str) -> str:
    """Return a text for a cell of a table."""
    return " ".join(str(text).replace("|", "\\|").replace("<", "&lt;").split())


def settings_page() -> str:
    """Return every setting with its default and its meaning."""
    meaning, names = explanations(), explained_names()
    lines = [
        "# Settings",
        "",
        "Every key of a recipe. Any of them is overridden by `--set key=value`. The same list, with the values of a",
        "recipe: `siteseg settings --recipe NAME --explain`.",
    ]
    section = None
    for key, value in RunConfig().to_flat().items():
        group = key.rpartition(".")[0] or "run"
        if group != section:
            section = group
            lines += ["", f"## {group}", "", "| key | default | meaning |", "|---|---|---|"]
        choice = "; ".join(names.get(key, "").splitlines())
        shown = cell("; ".join(part for part in (meaning[key], choice) if part))
        lines.append(f"| `{key}` | `{value!r}` | {shown} |")
    return "\n".join(lines) + "\n"


def commands_below(command: click.Command, words: str) -> Iterator[tuple[str, click.Command]]:
    """Return a command, or the commands of a group, by what is typed."""
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from commands_below(each, f"{words} {name}")
    else:
        yield words, command


def plain(text: str | None) -> str:
    """Return a help text without the marks that Rich reads."""
    return " ".join((text or "").replace("\\[", "[").split())


def commands_page() -> str:
    """Return every command with its options."""
    lines = [
        "# Commands",
        "",
        "In a checkout that is not installed, `python -m siteseg` takes the place of `siteseg`.",
    ]
    for name in ENTRIES:
        for words, command in commands_below(load_command(name), f"siteseg {name}"):
            lines += ["", f"## {words}", "", plain(command.help), ""]
            rows = []
            for parameter in command.params:
                if isinstance(parameter, click.Option):
                    shown = ", ".join((*parameter.opts, *parameter.secondary_opts))
                    needed = " (required)" if parameter.required else ""
                    rows.append(
                        f"| `{shown}` | {cell(parameter.metavar or '')} | {cell(plain(parameter.help))}{needed} |"
                    )
                else:
                    rows.append(f"| `{cell(parameter.make_metavar(click.Context(command)))}` | | |")
            lines += ["| option | value | meaning |", "|---|---|---|", *rows] if rows else []
            if command.epilog and not command.epilog.rstrip().endswith(words):
                lines += ["", "```", plain(command.epilog).removeprefix("example: "), "```"]
    return "\n".join(lines) + "\n"


def docstring(text: str) -> str:
    """Return a docstring as Markdown: its sections become lists."""
    lines = []
    for line in inspect.cleandoc(text).replace("``", "`").splitlines():
        if re.fullmatch(r"(Args|Returns|Raises|Attributes):", line):
            lines += ["", f"**{line}**", ""]
        elif match := re.fullmatch(r"    (\w[\w ,*]*): (.*)", line):
            lines.append(f"- `{match[1]}`: {match[2]}")
        else:
            lines.append(line)
    return "\n".join(lines)


def library_page() -> str:
    """Return signature and docstring of everything that a reader may rely on."""
    lines = ["# Python reference", ""]
    lines += ["From the wheel, modules other than `siteseg` lie inside it: `siteseg.common.checkpoint`."]
    for module, names in LIBRARY.items():
        lines += ["", f"## {module}"]
        for name in names:
            found = getattr(import_module(module), name)
            lines += ["", f"### {name}", "", *signature(name, found), docstring(found.__doc__ or "")]
            if inspect.isclass(found):
                for inner, method in vars(found).items():
                    if not inner.startswith("_") and inspect.isfunction(method) and method.__doc__:
                        lines += [
                            "",
                            f"#### {name}.{inner}",
                            "",
                            *signature(inner, method),
                            docstring(method.__doc__),
                        ]
    return "\n".join(lines) + "\n"


def signature(name: str, found: Any) -> list[str]:
    """Return the signature of a function or a class as a code block."""
    try:
        # annotations are strings, defaults keep their quotes
        text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(found)))
    except ValueError:
        return []
    return ["```python", f"{name}{text}", "```", ""]


def licenses_page() -> str:
    """Return origin and license of every backbone that is registered."""
    lines = [
        "# Licenses and origins of backbones",
        "",
        "This project is under Apache-2.0. Pretrained weights are not part of it, and each has a license of its own.",
        "A model's card (`siteseg export --hub`) names that of its run.",
        "",
        "| backbone | what it is | weights from | license, and on what they were trained |",
        "|---|---|---|---|",
    ]
    for entry in BACKBONES.entries():
        lines.append(
            f"| `{entry.name}` | {cell(entry.summary)} | `{entry.facts.weights_from}` | {cell(entry.facts.origin)} |"
        )
    lines += [
        "",
        "A backbone that was trained with labels of whole images, or with texts, is no source of labels for pixels.",
        "It is still not free of them: whoever must avoid any label takes one that was trained without, as DINO's.",
        "What a backbone costs and gives: [backbones](backbones.md).",
    ]
    return "\n".join(lines) + "\n"


def cite_page() -> str:
    """Return how to cite, from CITATION.cff."""
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    return f"# How to cite\n\nThe file `CITATION.cff` of the project:\n\n```yaml\n{text}```\n"


GENERATED = {
    "reference/settings.md": settings_page,
    "reference/commands.md": commands_page,
    "reference/python.md": library_page,
    "licenses.md": licenses_page,
    "cite.md": cite_page,
}


def fitted_links(text: str, source: str) -> str:
    """Return a page of ``source`` (a path below the root) with links that hold on the site.

    Pages of the root are on the site under other names. Files of the code are not, and become their name.
    """
    folder = (ROOT / source).parent

    def fit(match: re.Match[str]) -> str:
        label, target = match[1], match[2]
        file, mark, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or not file:
            return f"[{label}]({target})"
        inside = (folder / file).resolve().relative_to(ROOT).as_posix()
        if inside in BORROWED:
            return f"[{label}]({BORROWED[inside]}{mark}{anchor})"
        if inside == "README.md":
            return f"[{label}](index.md)"
        if inside.startswith("docs/"):
            return f"[{label}]({inside.removeprefix('docs/')}{mark}{anchor})"
        return label

    # footnotes that name files of the code become a list; their numbers in the text stay
    text = re.sub(r'^\[([^\]]+)\]: \.\./(\S+)(?: "(.*)")?$', r"- \1: `\2` \3", text, flags=re.M)
    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", fit, text)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made from the code, and those of the root."""
    from mkdocs.structure.files import File

    for name, make in GENERATED.items():
        files.append(File.generated(config, name, content=make()))
    for source, name in BORROWED.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=fitted_links(text, source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Fit the links of pages that are read in the checkout too."""
    name = page.file.src_uri
    if name in GENERATED or name in BORROWED.values():
        return markdown
    return fitted_links(markdown, f"docs/{name}")
