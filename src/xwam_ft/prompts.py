"""The one form of an instruction: whoever stores, embeds or looks one up cleans it here first.

As Wan and X-WAM clean what they were trained on: mojibake and typographic quotes mended (ftfy), HTML entities resolved
twice (scraped captions hold `&amp;amp;`), blanks collapsed.

Case and a trailing period do not tell two instructions apart either. Prepare writes each in the one wording that is
most usual in the recordings (`canonical`), so that training sees one text where people wrote several; a policy finds
what is typed among those it knows (`find`).
"""

from __future__ import annotations

import difflib
import html
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

PERIODS = " .。"
NEAREST = 3


@lru_cache(maxsize=1 << 16)  # a policy asks for all it knows at every call
def clean_prompt(text: str) -> str:
    """An instruction as the text encoder is given it; cleaning it again changes nothing but entities nested deeper."""
    from ftfy import fix_text  # here, so that a thin client does not pay for it

    return " ".join(html.unescape(html.unescape(fix_text(text))).split())


def plain(text: str) -> str:
    """What two wordings have in common that mean the same."""
    return clean_prompt(text).rstrip(PERIODS).casefold()


def canonical(texts: Iterable[str]) -> dict[str, str]:
    """Every text -> the most frequent of those that are the same as it (of equally frequent ones the first in order).

    Args:
        texts: each as often as it was recorded.
    """
    counted = Counter(clean_prompt(text) for text in texts)
    usual: dict[str, str] = {}
    for text in sorted(counted, key=lambda text: (-counted[text], text)):
        usual.setdefault(plain(text), text)
    return {text: usual[plain(text)] for text in counted}


def find(text: str, known: Iterable[str]) -> str | None:
    """The known prompt that a typed one is: as it stands, or the first in order of those that are the same."""
    spaced, known = clean_prompt(text), list(known)
    if spaced in known:
        return spaced
    wanted = plain(spaced)
    return min((prompt for prompt in known if prompt and wanted and plain(prompt) == wanted), default=None)


def in_style(text: str, known: Iterable[str]) -> str:
    """A prompt nobody recorded, written as the known ones mostly are: with a capital, with a period."""
    known = [prompt for prompt in known if prompt]
    words = clean_prompt(text).rstrip(PERIODS).lower()
    if 2 * sum(prompt[:1].isupper() for prompt in known) > len(known):
        words = words[:1].upper() + words[1:]
    return words + ("." if 2 * sum(prompt.endswith(".") for prompt in known) > len(known) else "")


def nearest(text: str, known: Iterable[str]) -> list[str]:
    """The known prompts that are most like a typed one."""
    by_plain = {plain(prompt): prompt for prompt in known if prompt}
    return [by_plain[name] for name in difflib.get_close_matches(plain(text), by_plain, n=NEAREST, cutoff=0.5)]
