"""What to tell of errors at URLs: which of them no further try mends, and one sentence for each of those."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from xwam_ft.errors import UserError, spelled


class Missing(UserError):
    """Nothing lies at a URL."""


UNREACHABLE = {
    *("EndpointConnectionError", "ConnectTimeoutError", "gaierror", "ConnectionRefusedError"),
    *("ClientConnectorError", "ClientConnectorDNSError", "ConnectionTimeoutError", "ConnectError", "ConnectTimeout"),
}
"""By name, since their libraries may not be installed: botocore's, Python's, aiohttp's and httpx's."""


class NotAllowed(UserError):
    """No right to do that at a URL, or no way to say who asks."""


def sentence(error: Exception, url: str, *, writing: bool) -> UserError | None:
    """What to tell of an error that no further try mends; None where one may."""
    if url.startswith("hf:"):
        return _of_the_hub(error, url)
    status, names = _status(error), {type(cause).__name__ for cause in _causes(error)}
    doing = "written to" if writing else "read"
    if names & {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "ProfileNotFound"}:
        return NotAllowed(f"cannot be {doing}: no credentials were found ({first_line(error)})", url, _who(url))
    if names & {"NoSuchBucket"} or "bucket does not exist" in str(error).lower():
        return Missing("its bucket does not exist", url, "check the name, or make the bucket first")
    if status in (401, 403) or isinstance(error, PermissionError):
        return NotAllowed(f"may not be {doing} ({first_line(error)})", url, _who(url))
    if status in (404, 410) or (status is None and isinstance(error, FileNotFoundError)):
        return Missing("is not there", url, "check the URL")
    if status is not None and 400 <= status < 500 and status not in (408, 425, 429):
        return UserError(f"cannot be {doing} ({first_line(error)})", url, "check the URL and how the store is set up")
    if names & {"ParamValidationError", "InvalidURL", "InvalidUrlClientError", "NonHttpUrlClientError"}:
        return UserError(f"is no such URL ({first_line(error)})", url, "check how it is written")
    if isinstance(error, ValueError) and "endpoint" in str(error).lower():
        what = f"is no address of a store ({first_line(error)})"
        return UserError(what, "AWS_ENDPOINT_URL", "write it in full, with http:// or https:// before the host")
    if names & {"CancelledError"} or isinstance(error, OSError | EOFError):
        return None
    module = type(error).__module__.partition(".")[0]
    passing = module in ("aiohttp", "botocore", "aiobotocore", "google", "gcsfs", "fsspec", "asyncio", "urllib3")
    if passing:
        return None
    raise error  # a bug of ours, with its traceback


def unreachable(error: Exception) -> bool:
    """Whether no connection came about at all: nobody of this name or address takes one."""
    return any(type(cause).__name__ in UNREACHABLE for cause in _causes(error))


def _of_the_hub(error: Exception, url: str) -> UserError | None:
    from xwam_ft import hub

    parts = url.removeprefix("hf://").removeprefix("datasets/").split("/")
    name, _, revision = "/".join(parts[:2]).partition("@")
    repo = hub.Repo("dataset" if url.startswith("hf://datasets/") else "model", name, revision or None)
    status = _status(error)
    if (status is not None and (status >= 500 or status == 429)) or isinstance(error, ConnectionError):
        return None
    if isinstance(error, FileNotFoundError) and not any(
        type(cause).__name__ in ("RepositoryNotFoundError", "RevisionNotFoundError") for cause in _causes(error)
    ):
        return Missing("is not there", url, "check the URL")
    for cause in _causes(error):
        if (told := hub.said_of(cause, repo)) is not None:
            if isinstance(told, hub.Unreachable) and "HF_HUB_OFFLINE" not in told.what:
                return None
            return NotAllowed(told.what, url, told.fix)
    if isinstance(error, OSError):
        return None
    raise error


def _causes(error: BaseException) -> Iterator[Exception]:
    seen: BaseException | None = error
    for _ in range(8):
        if isinstance(seen, Exception):
            yield seen
        seen = None if seen is None else seen.__cause__ or seen.__context__


def _status(error: Exception) -> int | None:
    """The HTTP status that an error of any of these libraries tells."""
    for cause in _causes(error):
        answer: Any = getattr(cause, "response", None)
        if isinstance(answer, dict):  # botocore
            code = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:  # aiohttp, gcsfs, httpx
            code = getattr(answer, "status_code", None) or getattr(cause, "status", None)
            if type(cause).__module__.startswith("gcsfs"):
                code = getattr(cause, "code", None)
        if str(code).isdigit():
            return int(str(code))
    return None


def _who(url: str) -> str:
    """What lets one in."""
    if url.startswith("s3:"):
        return (
            "give credentials that may (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or `aws configure`; "
            "AWS_ENDPOINT_URL for a store of your own; FSSPEC_S3_ANON=true for a public bucket), and check the URL"
        )
    if url.startswith("g"):
        return "log in with `gcloud auth application-default login` as one who may, and check the URL"
    return "serve it to this machine without a login, or use an object store"


def first_line(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:  # fsspec's word for any answer to HEAD
        error = error.__cause__
    lines = str(error).strip().splitlines()
    said = spelled(lines[0].rstrip(".")) if lines else ""
    return said if said and len(said) < 200 else f"{type(error).__name__}{': ' + said[:200] if said else ''}"
