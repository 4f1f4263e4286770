"""An environment out of a user's file, `FILE.py:FUNCTION`: what is wrong in it is told with its file and line.

The file is loaded as `python FILE.py` would run it: modules beside it can be imported. Everything the environment does
goes through `UserEnvironment`, which turns an exception, or an answer that means nothing, into a sentence.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xwam_ft.errors import UserError, did_you_mean, listed
from xwam_ft.evaluate.environment import CHOICES, Command, Environment, GymnasiumEnvironment, Outcome

if TYPE_CHECKING:
    from types import TracebackType

    from xwam_ft.contract import Contract

METHODS = ("reset", "observe", "step", "close")
ATTRIBUTES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "instruction": (str, "the task in words"),
    "period": (Real, "seconds between two commands"),
    "max_steps": (Integral, "after how many commands an episode has failed"),
}
SIGNATURES = {
    "reset": "write `def reset(self, seed):`",
    "observe": "write `def observe(self):`",
    "step": "write `def step(self, command):`",
    "close": "write `def close(self):`",
}
OUTCOMES = "Outcome.GOES_ON, Outcome.SUCCESS or Outcome.OVER (from xwam_ft.evaluate.environment)"
GIVE = "return an environment (an object with reset, observe, step, close, instruction, period and max_steps)"


def user_environment(path: Path, name: str) -> Callable[[Contract], Environment]:
    """The function `name` of a file, as one that makes a `UserEnvironment`.

    Raises:
        UserError: no such file or function, or the file cannot be loaded.
    """
    if not path.is_file():
        raise UserError("no such file", path, f"give {CHOICES}")
    module = _load(path)
    found = getattr(module, name, None)
    own = [
        key
        for key, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", "") == module.__name__
    ]
    if found is None:
        what = f"has no function {name!r}{did_you_mean(name, own)}"
        raise UserError(what, path, f"name one of: {listed(own)}" if own else "define `def make(contract):` in it")
    if not callable(found):
        raise UserError(
            f"has {name!r}, which is {_shown(found)} and no function", path, "name a function of the contract"
        )
    return lambda contract: UserEnvironment(_made(path, name, found, contract), path, name)


class UserEnvironment:
    """A user's environment whose every failure is a `UserError` that names a line of the user's file."""

    def __init__(self, made: Any, path: Path, name: str) -> None:
        self.made, self.path, self.name = made, path, name
        self.line = _line(made if not isinstance(made, GymnasiumEnvironment) else None, path)
        where = f"{path}:{name}"
        for key, (kind, meaning) in ATTRIBUTES.items():
            value = getattr(made, key, None)
            told_well = isinstance(value, kind) and not isinstance(value, bool)
            if not told_well or not (value if isinstance(value, str) else float(value) > 0):  # pyright: ignore[reportArgumentType]
                told = f"no {key}" if value is None else f"the {key} {value!r}"
                raise UserError(f"makes a {type(made).__name__} with {told}", where, f"give it `{key}`: {meaning}")
        self.instruction: str = made.instruction
        self.period = float(made.period)
        self.max_steps = int(made.max_steps)

    def reset(self, seed: int) -> None:
        with self._told("reset", "mend what it calls"):
            self.made.reset(seed)

    def observe(self) -> dict[str, Any]:
        with self._told(
            "observe", "give {'images': {camera: uint8 [H, W, 3]}, 'state': {slot: numbers}, 'prompt': text}"
        ):
            seen = self.made.observe()
        if not isinstance(seen, dict):
            raise UserError(
                f"observe returned {_shown(seen)}, not a dict",
                self.place("observe"),
                "return {'images': {camera: picture}, 'state': {slot: numbers}, 'prompt': text}",
            )
        return seen

    def step(self, command: Command) -> Outcome:
        with self._told("step", f"a command holds the slots {listed(command)}"):
            outcome = self.made.step(command)
        if not isinstance(outcome, Outcome):
            raise UserError(
                f"step returned {_shown(outcome)}, not an Outcome", self.place("step"), f"return {OUTCOMES}"
            )
        return outcome

    def require_told(self) -> None:
        """After an episode: raise a `UserError` where the environment never said whether the task was done."""
        ask = getattr(self.made, "require_told", None)
        if ask is not None:
            with self._told("step", "see the class's documentation"):
                ask()

    def close(self) -> None:
        under_way = sys.exc_info()[0] is not None
        try:
            with self._told("close", "close must not fail"):
                self.made.close()
        except UserError:
            if not under_way:  # what failed first is what is told
                raise

    def place(self, method: str) -> str:
        """Where a method stands: the user's file and line, else the function that made the environment."""
        found = self.made
        if isinstance(found, GymnasiumEnvironment):
            told = {"observe": found.observed, "step": found.acted}.get(method)
        else:
            told = getattr(found, method, None)
        line = _line(told, self.path) or self.line
        return f"{self.path}:{line} ({method})" if line else f"{self.path}:{self.name} ({method})"

    @contextmanager
    def _told(self, method: str, fix: str) -> Generator[None]:
        try:
            yield
        except UserError as error:
            raise UserError(error.what, f"{self.place(method)}: {error.where}", error.fix) from error
        except (Exception, SystemExit) as error:
            raise _failure(error, self.path, self.place(method), method, fix) from error


def _load(path: Path) -> Any:
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(f"xwam_ft_env_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        line = error.lineno if isinstance(error, SyntaxError) else _line_in(error.__traceback__, path)
        at = f"; {path.name}:{line}" if line else ""
        fix = f"run it: python {path}"
        if isinstance(error, ModuleNotFoundError):
            fix = f"install what holds {error.name!r} into this environment, or put the module beside the file"
        elif isinstance(error, SystemExit):
            fix = "put what runs it below `if __name__ == '__main__':`"
        raise UserError(f"cannot be loaded ({_named(error)}{at})", path, fix) from error
    return module


def _made(path: Path, name: str, function: Callable[[Contract], Any], contract: Contract) -> Any:
    line = _line(function, path)
    where = f"{path}:{line} ({name})" if line else f"{path}:{name}"
    try:
        inspect.signature(function).bind(contract)
    except TypeError as error:
        raise UserError(
            f"cannot be called with the contract alone ({error})", where, f"write `def {name}(contract):`"
        ) from None
    except ValueError:  # of a callable written in C nothing is known
        pass
    try:
        made = function(contract)
    except UserError as error:
        raise UserError(error.what, f"{where}: {error.where}", error.fix) from error
    except (Exception, SystemExit) as error:
        raise _failure(error, path, where, name, "mend the line") from error
    if made is None:
        raise UserError("returned None, not an environment", where, GIVE)
    if isinstance(made, type):
        fix = f"return an object of it: `return {made.__name__}(contract)`"
        raise UserError(f"returned the class {made.__name__}, not an environment", where, fix)
    if lacking := [method for method in METHODS if not callable(getattr(made, method, None))]:
        if callable(getattr(made, "step", None)) and "observe" in lacking and "reset" not in lacking:
            raise UserError(
                f"returned {_shown(made)}, a Gymnasium environment by its looks",
                where,
                "return GymnasiumEnvironment(env=..., observed=..., acted=..., ...) (xwam_ft.evaluate.environment)",
            )
        raise UserError(f"returned {_shown(made)}, which has no {listed(lacking)}", where, GIVE)
    return made


def _failure(error: BaseException, path: Path, where: str, method: str, fix: str) -> UserError:
    """The sentence about an exception: at the last line of the user's file that it came through."""
    line = _line_in(error.__traceback__, path)
    if line is None:
        frames = traceback.extract_tb(error.__traceback__)
        if not frames or frames[-1].filename == __file__:  # raised by the call itself: its signature does not fit
            return UserError(f"{method} failed ({_named(error)})", where, SIGNATURES.get(method, fix))
        deeper = f" in {frames[-1].filename}:{frames[-1].lineno}"
        return UserError(f"{method} failed{deeper} ({_named(error)})", where, fix)
    help_ = fix if isinstance(error, KeyError) else "mend the line; nothing was evaluated"
    return UserError(f"{method} failed ({_named(error)})", f"{path}:{line}", help_)


def _named(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _line_in(trace: TracebackType | None, path: Path) -> int | None:
    own = [frame.lineno for frame in traceback.extract_tb(trace) if Path(frame.filename).resolve() == path.resolve()]
    return own[-1] if own else None


def _line(told: Any, path: Path) -> int | None:
    """The line at which a function, a method or an object's class begins, where that is in the user's file."""
    if told is None:
        return None
    target = told if inspect.isroutine(told) or isinstance(told, type) else type(told)
    try:
        file, (_, line) = inspect.getsourcefile(target), inspect.getsourcelines(target)
    except (TypeError, OSError):
        return None
    return line if file is not None and Path(file).resolve() == path.resolve() else None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
