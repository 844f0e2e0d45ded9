"""S-expressions, one top-level form at a time, without recursion."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tightrope.core.deadline import check_time
from tightrope.errors import InputError

Form = str | list["Form"]

LONGEST_FORM = 4_000_000
LONGEST_TOKEN = 200
DEEPEST = 100
_LOOK = 1024  # words from look to look at the clock
_TOKEN = re.compile(r";[^\n]*|[()]|[^\s();]+")


def forms(text: str) -> Iterator[tuple[int, Form]]:
    """The top-level forms with the numbers of the lines that they begin in; comments go from ``;`` to the line's end.

    Raises:
        InputError: parentheses that do not match, other characters than ASCII, forms that are too long or too deep.

    Example:
        >>> list(forms("(assert (<= X_0 1)) ; a bound"))
        [(1, ['assert', ['<=', 'X_0', '1']])]
    """
    stack: list[list[Form]] = []
    line, seen, count = 1, 0, 0
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token[0] == ";":
            continue
        if not stack:  # a form begins
            line, seen, count = line + text.count("\n", seen, match.start()), match.start(), 0
        count += 1
        if count % _LOOK == 1:
            check_time()
        _check(token, len(stack), count, line)
        if token == "(":
            stack.append([])
            continue
        if token == ")" and not stack:
            raise InputError(f"line {line}: a ')' that nothing opens.")
        form: Form = stack.pop() if token == ")" else token
        if stack:
            stack[-1].append(form)
        else:
            yield line, form
    if stack:
        raise InputError(f"line {line}: this is not closed, {len(stack)} ')' missing; the file may be truncated.")


def shown(form: Form) -> str:
    """The beginning of a form, for messages.

    Example:
        >>> shown(["or", ["and", "a"], "b", "c", "d"])
        '(or (...) b c ...)'
    """
    if isinstance(form, str):
        return repr(form[:40])
    parts = (part[:40] if isinstance(part, str) else "(...)" for part in form[:4])
    return f"({' '.join(parts)}{' ...' * (len(form) > 4)})"


def _check(token: str, depth: int, count: int, line: int) -> None:
    if not token.isascii():
        raise InputError(f"line {line}: {token[:40]!r} is not ASCII.")
    if len(token) > LONGEST_TOKEN:
        raise InputError(f"line {line}: {token[:40]}... has more than {LONGEST_TOKEN} characters.")
    if depth > DEEPEST:
        raise InputError(f"line {line}: nested more than {DEEPEST} deep.")
    if count > LONGEST_FORM:
        raise InputError(f"line {line}: one form has more than {LONGEST_FORM:,} words.")
