"""The files of a report: of each table as text, Markdown, LaTeX and CSV."""

from __future__ import annotations

from pathlib import Path

from harness.errors import StorageError, readable
from harness.report.captions import in_text, reading
from harness.report.contents import Table
from harness.report.formats import as_text, csv, formatted, latex, markdown, named, wrapped
from harness.results.store import write_atomically


class Files:
    """The files of a report, which are written up to the first that the file system refuses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.used: set[str] = set()
        """The names of the files so far, so that no suite overwrites another's."""
        self.refused: StorageError | None = None

    def write(self, name: str, data: bytes) -> None:
        """Write a file. Raises LockLost, and UserError if a folder has its name, or the other way round."""
        if self.refused is None:
            try:
                write_atomically(self.folder / name, data)
            except StorageError as error:
                self.refused = error


def write_table(table: Table, stem: str, source: str, files: Files, width: int) -> tuple[str, str]:
    """Write the files of a table; return (printed text, Markdown), both with a link if it is not printed.

    ``source``: where its numbers come from.
    """
    part = f"{markdown(table.caption)}\n\n{formatted(table.shown, 'github', table.bold)}\n"
    notes = [note for note in (source, reading(table.reading)) if note]  # it is read alone
    plain = [note for note in (source, reading(in_text(table.reading))) if note]
    text = "\n\n".join([wrapped(table.caption), as_text(table.shown), *map(wrapped, plain)])
    files.write(f"{stem}.txt", f"{text}\n".encode())
    files.write(f"{stem}.md", "\n".join([part, *(f"{markdown(note)}\n" for note in notes)]).encode())
    comments = "".join(f"% {readable(note)}\n" for note in notes)
    files.write(f"{stem}.tex", (comments + latex(table.shown, table.caption, stem, table.bold)).encode())
    for ending, numbers in table.numbers.items():
        files.write(f"{stem}{ending}.csv", csv(numbers).encode())
    if table.printed:
        return f"{wrapped(table.caption, width)}\n\n{as_text(table.shown, width)}".rstrip(), part
    heading = table.caption.partition(":")[0].removesuffix(".")
    return named(heading, f"{files.folder / stem}.txt", width), f"[{markdown(heading)}]({stem}.md)\n"
