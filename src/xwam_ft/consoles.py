"""Where verbs print: what people named is printed as they named it, and what can be pasted is quoted.

rich takes `[bold]` for a style and `:smile:` for a picture, in folders' names too; here neither is.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from xwam_ft.errors import UserError, spelled
from xwam_ft.strict_yaml import parse_override

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


def plain_console(progress: bool | Console = True) -> Console:
    """The console of a verb.

    Args:
        progress: whether to print at all; or a console, of which the same is made without markup.
    """
    from rich.console import Console

    if isinstance(progress, bool):
        return Console(quiet=not progress, highlight=False, markup=False, emoji=False)
    console = copy.copy(progress)  # on the same stream, and recording into the same text
    console._markup = console._emoji = False  # pyright: ignore[reportPrivateUsage]
    return console


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> bool:
    """Print a table no cell of which is broken; False, and nothing is printed, where the console is too narrow."""
    from rich.cells import cell_len
    from rich.table import Column, Table

    widths = [max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True)]
    if sum(width + 3 for width in widths) + 1 > console.width:  # a blank on either side of each, and the lines between
        return False
    table = Table(*(Column(name, no_wrap=True) for name in columns))
    for row in rows:
        table.add_row(*row)
    console.print(table, markup=False)
    return True


def typed(*words: str | Path) -> str:
    """A command as it can be pasted into a shell."""
    return " ".join(quote(spelled(word) if isinstance(word, Path) else word) for word in words)


def setting(key: str, value: object) -> str:
    """`--set key=value` for a command, the value as YAML reads it back."""
    text = spelled(value) if isinstance(value, Path) else value if isinstance(value, str) else json.dumps(value)
    if isinstance(value, str | Path) and not _reads_back(text):
        text = json.dumps(text, ensure_ascii=False)
    return f"--set {quote(f'{key}={text}')}"


def _reads_back(text: str) -> bool:
    try:
        return parse_override(f"a={text}")[1] == text
    except UserError:  # no YAML at all
        return False


def marked(word: str, rest: str = "", style: str = "yellow") -> Text:
    """A word in colour before the rest of a line."""
    from rich.text import Text

    return Text.assemble((word, style), rest)


def duration(seconds: float) -> str:
    """ "3 h 20 min", "4 min", "12 s"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
