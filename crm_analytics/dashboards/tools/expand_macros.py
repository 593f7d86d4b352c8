"""Grafana's expansion of a query before PostgreSQL sees it, as far as this project's queries need it.

Grafana expands variables in the browser, then macros in its PostgreSQL data source. Anything else that looks like a
variable or a macro is refused, so that a query can't pass here and fail there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

Value = str | Sequence[str]

_VARIABLE = re.compile(r"\$\{(\w+):sqlstring\}")
_TIME_FILTER = re.compile(r"\$__timeFilter\(([^()]*)\)")
_LEFT_OVER = re.compile(r"\$\{|\$__\w+|\$[A-Za-z_]\w*|\[\[")


def expand(sql: str, time_from: datetime, time_to: datetime, variables: Mapping[str, Value]) -> str:
    """Returns `sql` as PostgreSQL receives it.

    Args:
        sql: a query with `${name:sqlstring}`, `$__timeFrom()`, `$__timeTo()` or `$__timeFilter(column)`.
        time_from: start of the dashboard's time range, in any time zone.
        time_to: end of the time range.
        variables: one value or many for each variable; an empty list if nothing is chosen.

    Raises:
        ValueError: if the query uses an unknown variable, or another macro or form of variable.
    """
    if found := _LEFT_OVER.findall(
        _VARIABLE.sub("", re.sub(r"\$__time(From|To)\(\)", "", _TIME_FILTER.sub("", sql)))
    ):
        raise ValueError(f"not expanded: {', '.join(sorted(set(found)))}. Use ${{name:sqlstring}}, $__timeFrom(), "
                         "$__timeTo() or $__timeFilter(column)")  # fmt: skip

    def value(match: re.Match[str]) -> str:
        if match[1] not in variables:
            raise ValueError(f"no variable {match[1]}; known: {', '.join(variables) or 'none'}")
        given = variables[match[1]]
        values = [given] if isinstance(given, str) else given
        return ",".join("'" + one.replace("'", "''") + "'" for one in values)

    start, end = _moment(time_from), _moment(time_to)
    expanded = _VARIABLE.sub(value, sql)
    expanded = expanded.replace("$__timeFrom()", start).replace("$__timeTo()", end)
    return _TIME_FILTER.sub(lambda match: f"{match[1]} BETWEEN {start} AND {end}", expanded)


def _moment(moment: datetime) -> str:
    text = moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return f"'{text}'"
