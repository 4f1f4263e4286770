"""The one form of an instruction: whoever stores, embeds or looks one up cleans it here first.

As Wan and X-WAM clean what they were trained on: mojibake and typographic quotes mended (ftfy), HTML entities resolved
twice (scraped captions hold `&amp;amp;`), blanks collapsed.
"""

from __future__ import annotations

import html


def clean_prompt(text: str) -> str:
    """An instruction as the text encoder is given it; cleaning it again changes nothing but entities nested deeper."""
    from ftfy import fix_text  # here, so that a thin client does not pay for it

    return " ".join(html.unescape(html.unescape(fix_text(text))).split())
