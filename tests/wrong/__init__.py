"""Wrong plug-ins, each of which breaks its contract in one way, and the sentence that it gets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent, indent

MARK = "# here"
"""Marks the line that the sentence names."""


@dataclass(frozen=True)
class Wrong:
    """A plug-in with one mistake: ``wrong`` in the text of its class, which is ``right`` in its correct twin."""

    name: str
    base: str
    text: str
    wrong: str
    right: str
    sentence: str
    """What the harness says, after the plug-in's name, file and line."""

    def module(self, correct: bool) -> str:
        """Return the source of a module."""
        from wrong import datasets, methods

        head = datasets.HEAD if self.base == "Dataset" else methods.HEAD
        body = indent(dedent(self.text).strip(), "    ")
        assert body.count(self.wrong) == 1, f"{self.name}: one mistake"
        body = body.replace(self.wrong, self.right) if correct else body
        classes = f"class Plugin({self.base}):\n{body}\n"
        return f'"""A plug-in of the tests: {self.name}."""\n{head}\n\n{classes}'

    def write(self, folder: Path, correct: bool = False) -> str:
        """Write the plug-in into a package ``plugins`` in the folder; return the name by which a config finds it."""
        name = f"{self.name}_twin" if correct else self.name
        package = folder / "plugins"
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").touch()
        (package / f"{name}.py").write_text(self.module(correct))
        return f"plugins.{name}"

    @property
    def expected(self) -> str:
        """The whole sentence, with the line of the mark, or of the class if there is none."""
        lines = self.module(False).splitlines()
        marked = [number for number, line in enumerate(lines, 1) if MARK in line]
        line = marked[0] if marked else 1 + lines.index(f"class Plugin({self.base}):")
        return f"plugins.{self.name} ({self.name}.py:{line}): {self.sentence}"
