"""`export --push`: a bundle that has proved itself, into a model of the Hub, in one commit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from xwam_ft import hub
from xwam_ft.consoles import typed
from xwam_ft.errors import UserError, listed
from xwam_ft.policy.bundle import MANIFEST, is_text

if TYPE_CHECKING:
    from rich.console import Console


def require_pushable(name: str, *, private: bool, console: Console) -> None:
    """Raise a `UserError` unless a bundle may be uploaded under that name; asked before the hours of an export."""
    from huggingface_hub import HfApi

    repo = hub.Repo("model", name)
    if not hub.is_id(name):
        raise UserError(
            f"is {name!r}", "--push", "write ORG/NAME: your name or organisation on the Hub, and the model's"
        )
    api = HfApi(library_name="xwam-ft")
    with hub.sentences(repo):
        who: Any = api.whoami()
    token = who.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        fix = "log in with one that may write: `hf auth login`, https://huggingface.co/settings/tokens"
        raise UserError(f"your token {token.get('displayName', '')!r} may only read", "--push", fix)
    try:
        with hub.sentences(repo):
            info: Any = api.repo_info(name, repo_type="model")
    except hub.NotThere:
        return
    if private and not info.private:
        fix = f"make it private at {repo.page}/settings first, leave --private out, or push to another name"
        raise UserError("is there already, and public", repo.page, fix)
    there = [each.rfilename for each in info.siblings or () if not _is_for_people(each.rfilename)]
    if there and MANIFEST not in there:
        raise UserError(f"holds something else ({listed(there, 3)})", repo.page, "push to another name")
    if there:
        console.print(
            f"{name} holds a bundle already: this one becomes its newest, and {name}@{info.sha[:12]} stays the old one",
            soft_wrap=True,
            markup=False,
        )


def push(bundle: Path, name: str, *, private: bool, console: Console) -> str:
    """Upload a bundle; files of an older one that it does not have are taken away in the same commit.

    Returns:
        "ORG/NAME@COMMIT".

    Raises:
        UserError: no right to write there, or no network; the bundle lies in `bundle` all the same.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    api, repo = HfApi(library_name="xwam-ft"), hub.Repo("model", name)
    console.print(f"uploading {bundle} to {repo.page}", soft_wrap=True, markup=False)
    shown = not are_progress_bars_disabled()
    if console.quiet:
        disable_progress_bars()
    try:
        with hub.sentences(repo):
            api.create_repo(name, private=private or None, exist_ok=True)
            there = api.list_repo_files(name)
            gone = [one for one in there if not _is_for_people(one) and not (bundle / one).is_file()]
            done: Any = api.upload_folder(
                repo_id=name, folder_path=bundle, delete_patterns=gone or None, commit_message="A bundle of xwam-ft"
            )
    except UserError as error:
        again = f"the bundle is whole in {bundle}: once that is mended, {typed('hf', 'upload', name, bundle)}"
        raise UserError(error.what, error.where, f"{error.fix}; {again}{' --private' if private else ''}") from error
    finally:
        if shown:
            enable_progress_bars()
    console.print(f"pushed: {repo.page}, commit {done.oid[:12]}", soft_wrap=True, markup=False)
    return f"{name}@{done.oid}"


def _is_for_people(name: str) -> bool:
    """A text, or a file of git's own: what may lie beside any bundle."""
    return name.startswith(".git") or is_text(name)
