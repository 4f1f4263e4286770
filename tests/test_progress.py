"""The bar's numbers."""

from __future__ import annotations

import io
import re
import time

from rich.console import Console

from xwam_ft.progress import progress_bar


def test_what_ends_all_at_once_is_shown_at_the_rate_it_took() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with progress_bar(console, "act", "episodes", 5) as advance:
        time.sleep(0.1)
        for _ in range(5):
            advance(1)
    assert isinstance(console.file, io.StringIO)
    rates = re.findall(r"5/5 episodes, ([0-9.]+) episodes/s", console.file.getvalue())
    assert rates
    assert 0 < float(rates[-1]) <= 50
