"""One kind of error for everything a user can cause: what is wrong, where, and how to mend it.

The command line prints a `UserError` as one sentence and exits with code 2. Anything else that
escapes is a bug of ours and keeps its traceback. Invariants of our own are `assert`ed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from importlib.util import find_spec

EXIT_CODE = 2
_URL = re.compile(r"(?<![\w/])(s3|gs|gcs|hf|https?):/(?=[^/\s])")


class UserError(Exception):
    """A mistake in what the user gave us: a file, a recipe, an observation, a missing package.

    Args:
        what: what is wrong, with the offending value, as a clause ("unknown key 'lr'").
        where: the file, folder, field or option it was found in.
        fix: what to do about it, as an imperative ("name it one of: ...").
    """

    def __init__(self, what: str, where: object, fix: str) -> None:
        self.what = spelled(what)
        self.where = spelled(where)
        self.fix = spelled(fix)
        super().__init__(f"{self.where}: {self.what}. Fix: {self.fix}")

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str]]:
        return type(self), (self.what, self.where, self.fix)  # so that it comes whole from a worker process


def spelled(text: object) -> str:
    """A text with the URLs in it written out: a `Path` makes one slash of two (remote.py)."""
    return _URL.sub(r"\1://", str(text))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the nearest known name, or "" when none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def listed(names: Iterable[object], limit: int = 12) -> str:
    """Join names for an error message, cut after `limit` with a count of the rest.

    Names may come from a stranger, so they need not be text.
    """
    names = [str(name) for name in names]
    tail = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + tail


def require(package: str, extra: str, why: str) -> UserError:
    """The error for an optional package that is absent: names the pip line that brings it."""
    return UserError(f"the package {package!r} is not installed", why, f"pip install 'xwam-ft[{extra}]'")


def require_installed(package: str, extra: str, why: str) -> None:
    """Raise the error of `require` where `package` is not installed; `why` is the recipe key that wants it."""
    if find_spec(package) is None:
        raise require(package, extra, why)
