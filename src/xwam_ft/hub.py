"""The Hugging Face Hub: what of it a name means, and its files in the Hub's own cache.

    ORG/NAME[@REVISION]                   where nothing lies here under that name, and no folder ORG either
    hf://[datasets/]ORG/NAME[@REVISION]   always

What lies here wins, so that a mistyped folder is not looked for in the network. A branch or tag is turned into the
commit it stands for once, and everything after is of that commit. Files come into huggingface_hub's cache, which goes
on where a download stopped; tokens are its own (`hf auth login`, HF_TOKEN).
"""

from __future__ import annotations

import io
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xwam_ft.errors import UserError
from xwam_ft.files import disk_errors, require_local, write_text_atomic

if TYPE_CHECKING:
    from rich.console import Console

Kind = Literal["model", "dataset"]
COMMIT = re.compile(r"[0-9a-f]{40}")
_ID = re.compile(r"([\w-][\w.-]*)/([\w-][\w.-]*)", re.ASCII)
_NAME = re.compile(rf"({_ID.pattern})(?:@(.+))?", re.ASCII)
_SCHEME = re.compile(r"hf:/{1,2}(datasets/|models/)?")  # a Path makes one slash of two
_CACHED = re.compile(r"(model|dataset)s--([^/]+?)--([^/]+)")
_LOGIN = "log in with `hf auth login`"


@dataclass(frozen=True)
class Repo:
    """A repository of the Hub; `revision` is a commit, branch or tag, None the newest."""

    kind: Kind
    id: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.id if self.revision is None else f"{self.id}@{self.revision}"

    @property
    def page(self) -> str:
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/{'datasets/' if self.kind == 'dataset' else ''}{self.id}"


def repo_of(place: str | Path, kind: Kind) -> Repo | None:
    """The repository that a place names; None: it is a path.

    Raises:
        UserError: it begins with hf:// and names none of this kind.
    """
    text = str(place)
    if scheme := _SCHEME.match(text):
        found = _NAME.fullmatch(text[scheme.end() :])
        if found is None or (scheme[1] or "models/") != f"{kind}s/":
            before = "datasets/" if kind == "dataset" else ""
            raise UserError(f"names no {kind} of the Hub", text, f"write hf://{before}ORG/NAME or ORG/NAME@REVISION")
        return Repo(kind, found[1], found[4])
    found = _NAME.fullmatch(text)
    if found is None or Path(text).exists() or Path(found[2]).exists():
        return None
    return Repo(kind, found[1], found[4])


def is_id(text: str) -> bool:
    """Whether a text has the form ORG/NAME."""
    return _ID.fullmatch(text) is not None


def hint(place: str | Path, kind: Kind) -> str:
    """What to add to the fix of a path that is not there, where it may be meant for the Hub; else nothing."""
    if _NAME.fullmatch(str(place)) is None:
        return ""
    return f"; to ask the Hub for it, write hf://{'datasets/' if kind == 'dataset' else ''}{place}"


def pinned(repo: Repo, console: Console | None = None) -> Repo:
    """The same with the commit that its revision stands for now; where the Hub is out of reach, that of the cache.

    Raises:
        UserError: no such repository or revision, no right to see it, or no network and nothing in the cache.
    """
    if repo.revision is not None and COMMIT.fullmatch(repo.revision):
        return repo
    from huggingface_hub import HfApi, constants

    if console is not None:
        told = f"{repo} is no folder here: asking {constants.ENDPOINT} for the {repo.kind} of that name"
        console.print(told, soft_wrap=True, markup=False)
    try:
        with sentences(repo):
            info: Any = HfApi(library_name="xwam-ft").repo_info(repo.id, repo_type=repo.kind, revision=repo.revision)
    except Unreachable as error:
        if (known := _known(repo)) is None:
            raise
        if console is not None:
            console.print(
                f"{repo}: {error.what}; taken as it was last fetched, commit {known[:12]}", soft_wrap=True, markup=False
            )
        return replace(repo, revision=known)
    if console is not None and info.id != repo.id:
        console.print(f"{repo.id} is called {info.id} now; write that", soft_wrap=True, markup=False)
    with suppress(OSError):  # for a day without network; a cache that cannot be written is told when files come
        write_text_atomic(_ref(repo), str(info.sha))
    return replace(repo, revision=str(info.sha))


def files(repo: Repo) -> list[str]:
    """The names of all files of a repository; those of the cache where the Hub is out of reach.

    Raises:
        UserError: as `pinned`.
    """
    from huggingface_hub import HfApi

    repo = pinned(repo)
    try:
        with sentences(repo):
            info: Any = HfApi(library_name="xwam-ft").repo_info(repo.id, repo_type=repo.kind, revision=repo.revision)
        return sorted(each.rfilename for each in info.siblings or ())
    except Unreachable:
        folder = _cache(repo) / "snapshots" / str(repo.revision)
        if not folder.is_dir():
            raise
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def fetch(
    repo: Repo,
    console: Console | None = None,
    *,
    allow: Sequence[str] | None = None,
    ignore: Sequence[str] | None = None,
) -> Path:
    """The folder of a repository's commit in the cache, with the files that were asked for.

    Args:
        console: where it is told; a quiet one hides the bars too.
        allow, ignore: patterns of files; None: all, none.

    Raises:
        UserError: as `pinned`; a download that broke off, or a full disk.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils import tqdm

    class Hidden(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})

    repo = pinned(repo, console)
    nobody_looks = console is not None and (console.quiet or isinstance(console.file, io.StringIO))
    with sentences(repo), disk_errors(Path(constants.HF_HUB_CACHE)):
        return Path(
            snapshot_download(
                repo.id,
                repo_type=repo.kind,
                revision=repo.revision,
                allow_patterns=None if allow is None else list(allow),
                ignore_patterns=None if ignore is None else list(ignore),
                tqdm_class=Hidden if nobody_looks else None,
                library_name="xwam-ft",
            )
        )


def folder_of(place: str | Path, revision: str | None, allow: Sequence[str], fix: str) -> Path:
    """A folder with weights: one that lies here, or the files of a model of the Hub that are asked for.

    Args:
        revision: of the repository, where `place` says none.
        fix: what to do where there is neither.

    Raises:
        UserError: no such folder, or as `fetch`.
    """
    if Path(place).is_dir():
        return Path(place)
    if (repo := repo_of(place, "model")) is not None:
        return fetch(replace(repo, revision=repo.revision or revision), allow=allow)
    fix += hint(place, "model")
    require_local(Path(place), "a folder with weights")
    raise UserError(f"no such folder; looked at {Path(place).absolute()}", place, fix)


def fetched_from(folder: Path) -> Repo | None:
    """The repository and commit that a folder in the Hub's cache is; None for any other folder."""
    if folder.parent.name != "snapshots" or not COMMIT.fullmatch(folder.name):
        return None
    found = _CACHED.fullmatch(folder.parent.parent.name)
    kinds: dict[str, Kind] = {"model": "model", "dataset": "dataset"}
    return None if found is None else Repo(kinds[found[1]], f"{found[2]}/{found[3]}", folder.name)


def name_of(folder: Path) -> str:
    """What people call a folder: its own name, or that of the repository it is a commit of."""
    repo = fetched_from(folder)
    return folder.name if repo is None else repo.id.partition("/")[2]


class Unreachable(UserError):
    """The Hub does not answer."""


class NotThere(UserError):
    """No such repository, or no right to see it."""


@contextmanager
def sentences(repo: Repo) -> Generator[None]:
    """Turn what huggingface_hub raises into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (told := said_of(error, repo)) is None:
            raise
        raise told from error


def said_of(error: Exception, repo: Repo) -> UserError | None:
    """The sentence for an error of huggingface_hub; None where it is none of its."""
    from huggingface_hub import constants, errors, get_token

    who = f"the {repo.kind} {repo.id} of the Hub"
    if isinstance(error, errors.GatedRepoError):
        return UserError("is given to those alone who accepted its terms", who, f"accept them at {repo.page}; {_LOGIN}")
    if isinstance(error, errors.RepositoryNotFoundError):
        login = f"as one who may see it, {_LOGIN}" if get_token() else f"where it is private, {_LOGIN}"
        fix = f"check the name: {repo.page}; {login}"
        return NotThere(
            "is not there: neither a folder here nor on the Hub, or it is private or was renamed", repo.id, fix
        )
    if isinstance(error, errors.RevisionNotFoundError):
        fix = f"give a branch, tag or commit of {repo.page}, or leave @REVISION out for the newest"
        return UserError(f"has no revision {repo.revision!r}, or has it no more", who, fix)
    if isinstance(error, errors.LocalTokenNotFoundError):
        return UserError("asks who you are, and you are not logged in", who, f"{_LOGIN}, or set HF_TOKEN")
    if isinstance(error, errors.HFValidationError):
        return UserError(
            f"is no name of the Hub ({_first_line(error)})", repo.id, "write ORG/NAME, or ORG/NAME@REVISION"
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.HfHubHTTPError) and status in (401, 403):
        if status == 401:
            return UserError("does not take your token (401)", who, f"{_LOGIN} again, or set HF_TOKEN to a valid one")
        fix = f"{_LOGIN} with a token that may (https://huggingface.co/settings/tokens)"
        return UserError(f"may not be read or written with your token (403: {_first_line(error)})", who, fix)
    http: type[BaseException] = errors.HfHubHTTPError.__bases__[0]  # of whichever library it uses: httpx.HTTPError
    if isinstance(error, http | ConnectionError | TimeoutError | errors.LocalEntryNotFoundError):
        cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error
        offline = constants.is_offline_mode() or isinstance(cause, errors.OfflineModeIsEnabled)
        why = "HF_HUB_OFFLINE is set" if offline else _first_line(cause)
        fix = "unset HF_HUB_OFFLINE" if offline else "connect this machine, and do it again: what was fetched is kept"
        return Unreachable(f"cannot be fetched from {constants.ENDPOINT} ({why})", who, f"{fix}; or give a folder")
    if type(error).__module__.startswith(("huggingface_hub", "hf_xet")):
        fix = "do it again: what was fetched is kept"
        return UserError(f"cannot be fetched ({type(error).__name__}: {_first_line(error)})", who, fix)
    return None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _cache(repo: Repo) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"{repo.kind}s--{repo.id.replace('/', '--')}"


def _known(repo: Repo) -> str | None:
    """The commit that a revision stood for when it was last fetched."""
    return _ref(repo).read_text(encoding="ascii").strip() if _ref(repo).is_file() else None


def _ref(repo: Repo) -> Path:
    """Where the cache keeps the commit that a branch or tag stands for."""
    return _cache(repo) / "refs" / (repo.revision or "main")
