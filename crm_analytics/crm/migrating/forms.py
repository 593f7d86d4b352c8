"""The forms in which the migrations compare texts, as SQL for a database that does not have their functions yet.

How texts are compared is written once, in the migrations; the expressions here come from the committed manifest.
"""

from __future__ import annotations

import re

from crm_analytics.crm.schema.manifest import expected

_CALL = re.compile(r"crm_private\.(\w+)\(")


def form(function: str, argument: str = "") -> str:
    """Returns what a helper of `crm_private` makes of an SQL expression, with the bodies of all helpers written out.

    Only for helpers that are one SELECT of an expression, with at most one argument.

    Raises:
        StopIteration: the manifest has no such function.
    """
    prefix = f"function crm_private.{function}("
    key = next(key for key in expected().objects if key.startswith(prefix))
    name = key.removeprefix(prefix).removesuffix(")").partition(" ")[0]
    body = expected().definitions[key].split("$function$")[1].strip().removeprefix("SELECT").strip()
    expression = re.sub(rf"\b{name}\b", lambda _: argument, body) if name else body
    while call := _CALL.search(expression):
        end = _closing(expression, call.end())
        inner = expression[call.end() : end]
        expression = f"{expression[: call.start()]}({form(call[1], inner)}){expression[end + 1 :]}"
    return expression


def _closing(text: str, start: int) -> int:
    """Returns where the bracket closes that opened just before `start`; none is inside a literal."""
    depth = 1
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    raise ValueError(f"no closing bracket: {text}")
