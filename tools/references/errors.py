"""The reference of errors, generated from the code that raises them and turns them into answers."""

from __future__ import annotations

import ast
import inspect
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from latentwire.errors import ErrorDetails, LatentwireError
from latentwire_bridge.openai.failed_calls import api_error
from latentwire_server.engine import errors
from latentwire_server.rpc import auth
from latentwire_server.rpc.status import failure_of
from tools.references.pages import NOTICE, ROOT, table

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVER: Final = ROOT / "server/latentwire_server"
BRIDGE: Final = ROOT / "rest_bridge/latentwire_bridge"
_CONSTANT: Final = re.compile(r"[A-Z]{4,}(_[A-Z]+)*|[A-Z]+(_[A-Z]+)+")
_CODE: Final = re.compile(r"[a-z]+(_[a-z]+)+")
_VALUES: Final = {"str": "x", "int": 1, "float": 1.0}
_TOKENS: Final = ("TOKEN_MISSING", "TOKEN_INVALID")

INTRODUCTION: Final = """\
Generated from the code that answers.

Every gRPC error carries `google.rpc.ErrorInfo` (domain `latentwire.v1`, one of the reasons below,
and its data as metadata), `google.rpc.BadRequest` with every violation where the request is
invalid, and `google.rpc.RetryInfo` where waiting helps. No error carries text of libraries, paths
or traces. The Python client raises [exceptions of its own](python.md#errors) with the same reason;
the REST bridge answers in [the form of OpenAI's errors](rest.md#errors)."""

STATUSES: Final = """\
*retry*: the answer says after how long it is worth asking again. *over REST*: the HTTP status and
the `code` of the bridge's answer."""

VIOLATIONS: Final = """\
An invalid request gets `INVALID_ARGUMENT`. The reason is the one below if all violations share it,
and `INVALID_FIELDS` otherwise; `BadRequest.field_violations` has each with its field, reason and
description. The bridge answers 400 and names the field in `param`. *Italics* stand for values."""

WARNINGS: Final = """\
In `accepted.warnings` of a request that is served all the same, and in `warnings` over REST."""

CODES: Final = """\
The `code` of errors that the bridge itself finds."""


def page() -> str:
    """Returns the page."""
    lines = [NOTICE, "", "# Errors", "", INTRODUCTION, ""]
    lines += ["## Statuses and reasons", "", STATUSES, ""]
    lines += table(("reason", "gRPC status", "meaning", "retry", "over REST"), _statuses())
    lines += ["## Violations", "", VIOLATIONS, ""]
    lines += table(("reason", "description"), _texts(warnings=False))
    lines += ["## Warnings", "", WARNINGS, ""]
    lines += table(("reason", "message"), _texts(warnings=True))
    lines += ["## The bridge's own codes", "", CODES, ""]
    lines += table(("code", "status", "in"), _codes())
    return "\n".join(lines).rstrip() + "\n"


def _statuses() -> Iterator[tuple[str, ...]]:
    rows = []
    for error in _samples():
        failure = failure_of(error)
        details = ErrorDetails(
            code=failure.code, reason=failure.reason, retry_after_s=failure.retry_after_s
        )
        answer = api_error(LatentwireError("", details))
        retry = "yes" if failure.retry_after_s is not None else ""
        meaning = _with_code(inspect.cleandoc(type(error).__doc__ or "").partition("\n")[0])
        over_rest = f"{answer.status} `{answer.code}`" if answer.code else str(answer.status)
        rows.append((f"`{failure.reason}`", f"`{failure.code.name}`", meaning, retry, over_rest))
    yield from sorted(rows)


def _samples() -> Iterator[Exception]:
    """Yields an instance of each error that becomes a status, except invalid requests."""
    for kind in vars(errors).values():
        is_error = isinstance(kind, type) and issubclass(kind, errors.GenerationError)
        if is_error and "__match_args__" in vars(kind) and kind is not errors.InvalidRequest:
            yield _sample(kind)
    yield from (auth.Unauthenticated(reason=reason) for reason in _TOKENS)
    yield _sample(auth.NotAllowed)


def _sample(kind: type[Exception]) -> Exception:
    parameters: dict[str, Any] = {
        name: _VALUES[parameter.annotation]
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.default is parameter.empty
    }
    return kind(**parameters)


def _texts(*, warnings: bool) -> Iterator[tuple[str, ...]]:
    """Yields each reason with its texts, as templates."""
    found: dict[str, list[str]] = {}
    rooms = ("requests", "imaging", "service")
    paths = [path for room in rooms for path in (SERVER / room).rglob("*.py")]
    for path in [*sorted(paths), SERVER / "engine/errors.py"]:
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for call in _calls(function):
                reason = _constant(call)
                if reason is None or ("Warning" in ast.unparse(call.func)) is not warnings:
                    continue
                text = _template(_text_of(call), function)
                if text and text not in found.setdefault(reason, []):
                    found[reason].append(text)
    for reason, texts in sorted(found.items()):
        yield f"`{reason}`", "<br>".join(texts)


def _codes() -> Iterator[tuple[str, ...]]:
    """Yields the codes of the bridge's own errors, with their statuses."""
    found: dict[tuple[str, str], set[str]] = {}
    for path in sorted(BRIDGE.rglob("*.py")):
        for call in _calls(ast.parse(path.read_text())):
            arguments = {keyword.arg: keyword.value for keyword in call.keywords}
            code = arguments.get("code")
            name = ast.unparse(call.func)
            if name not in ("ApiError", "Problem") or not isinstance(code, ast.Constant):
                continue
            status = ast.unparse(arguments["status"]) if "status" in arguments else "BAD_REQUEST"
            place = str(path.relative_to(BRIDGE))
            found.setdefault((str(code.value), _status(status)), set()).add(place)
    for (name, status), places in sorted(found.items()):
        yield f"`{name}`", status, ", ".join(f"`{place}`" for place in sorted(places))


def _status(name: str) -> str:
    status = HTTPStatus.__members__.get(name.removeprefix("HTTPStatus."))
    return f"{status.value} {status.phrase}" if status else ""


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def _constant(call: ast.Call) -> str | None:
    """Returns the reason among a call's arguments, by keyword or by position."""
    values = [keyword.value for keyword in call.keywords if keyword.arg == "reason"]
    for value in [*values, *call.args]:
        text = value.value if isinstance(value, ast.Constant) else None
        if isinstance(text, str) and _CONSTANT.fullmatch(text):
            return text
    return None


def _text_of(call: ast.Call) -> ast.expr | None:
    for keyword in call.keywords:
        if keyword.arg in ("description", "text", "message"):
            return keyword.value
    return call.args[-1] if call.args else None


def _template(text: ast.expr | None, function: ast.AST) -> str:
    """Returns a text from the code, with the names of its values in place of the values."""
    match text:
        case ast.Constant(value=str(value)) if not _CONSTANT.fullmatch(value):
            return value
        case ast.JoinedStr(values=parts):
            return "".join(_part(part) for part in parts).replace("*x*", "*\u00d7*")
        case ast.Name(id=name):
            for node in ast.walk(function):
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
                    return _template(node.value, function)
        case _:
            pass
    return ""


def _part(part: ast.expr) -> str:
    if not isinstance(part, ast.FormattedValue):
        return str(part.value) if isinstance(part, ast.Constant) else ""
    names = re.findall(r"[a-z_]+", ast.unparse(part.value), re.IGNORECASE)
    name = next((name for name in reversed(names) if name not in _NOISE), "value")
    return f"*{name.strip('_').lower().replace('_', ' ')}*"


_NOISE: Final = frozenset({"join", "len", "quoted"})
"""Names of functions and methods that a template's value is passed through."""


def _with_code(text: str) -> str:
    return text.replace("``", "`")
