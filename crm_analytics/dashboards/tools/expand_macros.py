"""What Grafana does to a query before PostgreSQL sees it, as far as this project's queries use it.

Variables first (Grafana's browser side), macros after (its PostgreSQL data source). Anything else that looks
like a variable or a macro is refused, so that a query cannot pass here and fail there.
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
    """`sql` as PostgreSQL receives it.

    Args:
        sql: a query with `${name:sqlstring}`, `$__timeFrom()`, `$__timeTo()` or `$__timeFilter(column)`.
        time_from: the dashboard's time range, begin; any time zone.
        time_to: its end.
        variables: one value or many for each variable; none at all is an empty list.

    Raises:
        ValueError: for an unknown variable, and for any other macro or form of variable.
    """
    if found := _LEFT_OVER.findall(
        _VARIABLE.sub("", re.sub(r"\$__time(From|To)\(\)", "", _TIME_FILTER.sub("", sql)))
    ):
        raise ValueError(f"not expanded: {', '.join(sorted(set(found)))}; use ${{name:sqlstring}}, $__timeFrom(), "
                         "$__timeTo() or $__timeFilter(column)")  # fmt: skip

    def value(match: re.Match[str]) -> str:
        if match[1] not in variables:
            raise ValueError(f"no variable {match[1]}: {', '.join(variables) or 'there are none'}")
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
