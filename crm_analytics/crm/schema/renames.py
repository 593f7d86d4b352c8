"""Finds what was renamed: a missing object next to an extra one of the same form and place keeps the rows of the first.

Adding the missing label or column would turn the check green, and leave orders in a dead label and money in a dead
column. So the repair renames back. Where more than one object fits, it names them and leaves the choice to a person.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from textwrap import indent
from typing import Any

from crm_analytics.crm.schema.catalog import Manifest, kind_of

Facts = Mapping[str, Any]
Rewrite = Callable[[str], str]

#: Kinds that are found in their place by their facts.
_BY_FACTS = ("label", "column", "constraint", "index", "trigger", "policy", "sequence", "view", "function")
#: Kinds whose qualified name stands in the text of other objects.
_QUALIFIED = ("table", "type", "sequence", "view", "function")
#: Facts whose text names columns.
_COLUMN_TEXTS = ("definition", "default", "columns", "using", "check")


@dataclass(frozen=True)
class Renames:
    """What was renamed in the database `found`: the present key by the missing one."""

    wanted: Manifest
    found: Manifest
    certain: Mapping[str, str] = field(default_factory=dict)
    #: where more than one object fits, or one that is not quite the same
    possible: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def between(cls, wanted: Manifest, found: Manifest) -> Renames:
        """Compares the objects that are missing with those that are not expected."""
        missing = [key for key in wanted.objects if key not in found.objects]
        extras = [key for key in found.objects if key not in wanted.objects]
        exact, similar = dict[str, list[str]](), dict[str, list[str]]()
        for key in missing:
            exact[key], similar[key] = _candidates(key, extras, wanted, found)
        fits = Counter(name for names in exact.values() for name in names)
        certain, possible = dict[str, str](), dict[str, tuple[str, ...]]()
        for key in missing:
            if len(exact[key]) == 1 and fits[exact[key][0]] == 1:
                certain[key] = exact[key][0]
            elif fitting := exact[key] or similar[key]:
                possible[key] = tuple(fitting)
        return cls(wanted, found, certain, possible)

    def present(self, key: str) -> bool:
        """Tells whether an object only has another name: its own repair, or that of what it belongs to, sees to it."""
        return key in self.certain.values()

    def repair(self, key: str) -> str | None:
        """Returns the SQL that renames an object back; None if it is no rename, or the repair is another one."""
        if key in self.certain:
            return self._sql(key, self.certain[key])
        if key in self.certain.values():
            return f"-- goes with the rename of {next(k for k, new in self.certain.items() if new == key)}"
        for old, new in self.certain.items():
            name = _name(new)
            if kind_of(old) == "table" and (_name(key) == name or _name(key).startswith(f"{name}.")):
                return f"-- goes with the rename of {old}"
        return None

    def suggestion(self, key: str, otherwise: str) -> str | None:
        """Returns the renames to choose from, as comments, with the repair for the case that it is none of them."""
        if key not in self.possible:
            return None
        lines = [self._sql(key, new) for new in self.possible[key]]
        return (
            f"-- {_name(key)} may have another name now. Look at the rows, then run one of these:\n"
            + indent("\n".join(lines), "-- ", lambda line: True)
            + "\n-- or, if it is none of them:\n"
            + indent(otherwise, "-- ", lambda line: True)
        )

    def after(self, key: str) -> str:
        """Returns the key that an object has after the renames."""
        for old, new in self.certain.items():
            key = _rewritten(old, new, self.found)(key, {})[0]
        return key

    def settled(self) -> Manifest:
        """Returns the catalog as it is after the renames."""
        objects, removals = dict(self.found.objects), dict(self.found.removals)
        for old, new in self.certain.items():
            rewrite = _rewritten(old, new, self.found)
            objects = dict(rewrite(key, facts) for key, facts in objects.items())
            removals = {rewrite(key, {})[0]: sql for key, sql in removals.items()}
        return replace(self.found, objects=objects, removals=removals)

    def _sql(self, old: str, new: str) -> str:
        kind, facts = kind_of(old), self.wanted.objects[old]
        if kind == "label":
            (home, before), (_, now) = _label(old), _label(new)
            return f"ALTER TYPE {home} RENAME VALUE {now} TO {before};"
        if kind in ("column", "constraint", "trigger", "policy"):
            table = _name(facts["parent"])
            before, now = (_name(key).removeprefix(f"{table}.") for key in (old, new))
            return {
                "column": f"ALTER TABLE {table} RENAME COLUMN {now} TO {before};",
                "constraint": f"ALTER TABLE {table} RENAME CONSTRAINT {now} TO {before};",
                "trigger": f"ALTER TRIGGER {now} ON {table} RENAME TO {before};",
                "policy": f"ALTER POLICY {now} ON {table} RENAME TO {before};",
            }[kind]
        if kind == "index":
            table = _name(facts["parent"])
            schema = table.partition(".")[0]
            before, now = (_name(key).removeprefix(f"{table}.") for key in (old, new))
            return f"ALTER INDEX {schema}.{now} RENAME TO {before};"
        word = {"function": "ROUTINE"}.get(kind, kind.upper())
        schema, _, before = _name(old).split("(")[0].partition(".")
        old_schema, _, now = _name(new).split("(")[0].partition(".")
        arguments = _name(new)[len(f"{old_schema}.{now}") :]
        move = f"ALTER {word} {_name(new)} SET SCHEMA {schema};" if old_schema != schema else ""
        rename = f"ALTER {word} {schema}.{now}{arguments} RENAME TO {before};" if now != before else ""
        return " ".join(filter(None, (move, rename)))


def _candidates(
    key: str, extras: Sequence[str], wanted: Manifest, found: Manifest
) -> tuple[list[str], list[str]]:
    """Returns the objects that a missing one may be: those with the same form, and for columns the same type."""
    kind, want = kind_of(key), wanted.objects[key]
    if kind == "table":
        columns = {
            (k.rpartition(".")[2], f["type"])
            for k, f in wanted.objects.items()
            if kind_of(k) == "column" and f["parent"] == key
        }
        return [
            name for name, theirs in found.strays.items() if columns <= theirs and name not in wanted.objects
        ], []
    if kind == "type":
        return _types(key, wanted, found), []
    if kind not in _BY_FACTS:
        return [], []
    beside = {k: found.objects[k] for k in extras if kind_of(k) == kind}
    beside = {k: facts for k, facts in beside.items() if _place(k, facts) == _place(key, want)}
    exact = [k for k, facts in beside.items() if _form(k, facts) == _form(key, want)]
    similar = [k for k, facts in beside.items() if kind == "column" and facts["type"] == want["type"]]
    return exact, similar


def _types(key: str, wanted: Manifest, found: Manifest) -> list[str]:
    """Returns the type that all columns of a missing type have now, if it is an enum."""
    now = {
        found.objects[k]["type"]
        for k, f in wanted.objects.items()
        if kind_of(k) == "column" and f["type"] == _name(key) and k in found.objects
    }
    enums = {f["parent"] for k, f in found.objects.items() if kind_of(k) == "label"}
    return [
        f"type {name}" for name in now if len(now) == 1 and f"type {name}" in enums - wanted.objects.keys()
    ]


def _place(key: str, facts: Facts) -> str:
    return str(facts["parent"]) if "parent" in facts else _name(key).partition(".")[0]


def _form(key: str, facts: Facts) -> Facts:
    """Returns what stays the same when an object gets another name."""
    own = _name(key).removeprefix(f"{_name(facts['parent'])}.") if "parent" in facts else ""
    form = {fact: value for fact, value in facts.items() if fact != "has_room"}
    if kind_of(key) in ("index", "trigger"):
        form["definition"] = form["definition"].replace(f" {own} ", " ", 1)
    return form


def _rewritten(old: str, new: str, found: Manifest) -> Callable[[str, Facts], tuple[str, Facts]]:
    """Returns what one rename makes of an object's key and facts."""
    kind = kind_of(old)
    if kind in _QUALIFIED:
        before, now = (_name(key).split("(")[0] for key in (old, new))
        pattern = re.compile(rf'(?<![\w."]){re.escape(now)}(?![\w"])')

        def qualified(text: str) -> str:
            return pattern.sub(before, text)

        return lambda key, facts: (qualified(key), _walk(facts, qualified))
    if kind == "label":
        (home, before), (_, now) = _label(old), _label(new)
        literal, wanted_literal = f"{now}::{home}", f"{before}::{home}"

        def labels(key: str, facts: Facts) -> tuple[str, Facts]:
            facts = _walk(facts, lambda text: text.replace(literal, wanted_literal))
            if kind_of(key) == "transition":
                if home == "public.order_status_enum":
                    ends = [before[1:-1] if end == now[1:-1] else end for end in _name(key).split(" -> ")]
                    key = f"transition {' -> '.join(ends)}"
                elif home == "public.user_role_enum" and facts.get("required_role") == now[1:-1]:
                    facts = {**facts, "required_role": before[1:-1]}
            elif key == f"payout_limit {now[1:-1]}" and home == "public.currency_enum":
                key = f"payout_limit {before[1:-1]}"
            return (old if key == new else key), facts

        return labels
    if kind == "column":
        return _column_rewritten(old, new, found)

    def own_name(key: str, facts: Facts) -> tuple[str, Facts]:
        if key != new:
            return key, facts
        home = f"{_name(facts['parent'])}." if "parent" in facts else ""
        before, now = (_name(name).removeprefix(home) for name in (old, new))
        return old, _walk(facts, lambda text: text.replace(f" {now} ", f" {before} ", 1))

    return own_name


def _column_rewritten(old: str, new: str, found: Manifest) -> Callable[[str, Facts], tuple[str, Facts]]:
    parent = found.objects[new]["parent"]
    table = _name(parent)
    before, now = (_name(key).removeprefix(f"{table}.") for key in (old, new))
    pattern = re.compile(rf'(?<![\w"]){re.escape(now)}(?![\w"])')

    def column(key: str, facts: Facts) -> tuple[str, Facts]:
        if key == new:
            return old, facts
        if facts.get("column") == now and facts.get("parent") == parent:
            facts = {**facts, "column": before}
        if parent == facts.get("parent") or facts.get("references") == table:
            changed = {
                f: _walk(v, lambda text: pattern.sub(before, text))
                for f, v in facts.items()
                if f in _COLUMN_TEXTS
            }
            facts = {**facts, **changed}
        return key.replace(f"grant column {table}.{now} to ", f"grant column {table}.{before} to "), facts

    return column


def _walk(value: Any, rewrite: Rewrite) -> Any:
    if isinstance(value, str):
        return rewrite(value)
    if isinstance(value, Mapping):
        return {key: _walk(part, rewrite) for key, part in value.items()}
    if isinstance(value, list):
        return [_walk(part, rewrite) for part in value]
    return value


def _label(key: str) -> tuple[str, str]:
    """Returns the type and the quoted label."""
    home, _, label = _name(key).partition(" '")
    return home, f"'{label}"


def _name(key: str) -> str:
    return key.split(" ", 1)[1]
