"""Compares a database's record of applied migrations with the objects that the database really has.

The record survives what the objects don't: a schema that someone drops, half a backup that someone restores. What each
migration creates and drops is committed beside it, in `sql/<database>/objects.txt`, which `make generate` writes.
Objects of other people don't matter. Of the CRM only schemas and relations are compared: the rest has its own check,
which knows the SQL that repairs it (docs/decisions/manifest-invariants-attacks.md).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from crm_analytics.core.wording import counted

LIST_FILE = "objects.txt"
SCHEMAS = {"analytics": ("raw", "analytics", "reporting"), "crm": ("public", "crm_private", "reporting")}
#: Of each database what is compared, in the order in which messages name it.
KINDS = {
    "analytics": ("schema", "table", "view", "column", "type", "sequence", "function", "trigger", "constraint", "index"),
    "crm": ("schema", "table", "view"),
}  # fmt: skip
#: What no statement brings back as it was.
WITH_ROWS = ("schema", "table", "column")
#: The record itself, which no migration creates.
BOOKKEEPING = ("migration_files", "alembic_version")
SHOWN = 5

#: The same on every supported version of PostgreSQL: NOT NULL constraints, which have rows since 18, are left out.
#: What comes and goes with another object (the index of a key, the sequence of an identity) is left out, too.
_FOUND = """
WITH relations AS (
    SELECT c.oid, c.relkind, format('%%I.%%I', n.nspname, c.relname) AS name, c.relname
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = ANY (%(schemas)s) AND c.relname <> ALL (%(bookkeeping)s)
), tables AS (
    SELECT * FROM relations WHERE relkind IN ('r', 'p')
)
SELECT 'schema' AS kind, quote_ident(nspname) AS name FROM pg_namespace WHERE nspname = ANY (%(schemas)s)
UNION ALL SELECT 'table', name FROM tables
UNION ALL SELECT 'view', name FROM relations WHERE relkind IN ('v', 'm')
UNION ALL SELECT 'column', t.name || '.' || quote_ident(a.attname)
FROM tables t JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL SELECT 'type', format('%%I.%%I', n.nspname, t.typname)
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
WHERE n.nspname = ANY (%(schemas)s) AND t.typtype IN ('d', 'e')
UNION ALL SELECT 'sequence', r.name FROM relations r
WHERE r.relkind = 'S' AND NOT EXISTS (
    SELECT FROM pg_depend d
    WHERE d.classid = 'pg_class'::regclass AND d.objid = r.oid AND d.deptype IN ('a', 'i'))
UNION ALL SELECT 'function', replace((pg_identify_object('pg_proc'::regclass, p.oid, 0)).identity, 'pg_catalog.', '')
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = ANY (%(schemas)s)
UNION ALL SELECT 'trigger', quote_ident(g.tgname) || ' on ' || r.name
FROM relations r JOIN pg_trigger g ON g.tgrelid = r.oid AND NOT g.tgisinternal
UNION ALL SELECT 'constraint', quote_ident(k.conname) || ' on ' || t.name
FROM tables t JOIN pg_constraint k ON k.conrelid = t.oid AND k.contype <> 'n'
UNION ALL SELECT 'index', quote_ident(c.relname) || ' on ' || r.name
FROM relations r JOIN pg_index i ON i.indrelid = r.oid JOIN pg_class c ON c.oid = i.indexrelid
WHERE NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x'))
"""


def found(connection: psycopg.Connection[Any], database: str) -> set[str]:
    """Returns the objects in the schemas of `analytics` or `crm`, each as its kind and name. Reads only."""
    rows = connection.execute(
        _FOUND, {"schemas": list(SCHEMAS[database]), "bookkeeping": list(BOOKKEEPING)}
    ).fetchall()
    return {f"{kind} {name}" for kind, name in rows if kind in KINDS[database]}


@dataclass(frozen=True)
class MigratedObjects:
    """What the migrations of one database create and drop: (version, whether it creates, object), in order."""

    database: str
    changes: tuple[tuple[str, bool, str], ...]

    @classmethod
    def read(cls, folder: Path) -> MigratedObjects:
        """Reads the list beside the migrations; a folder without one expects nothing."""
        path = folder / LIST_FILE
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        parts = (line.split(" ", 2) for line in lines)
        return cls(folder.name, tuple((version, sign == "+", name) for version, sign, name in parts))

    def text(self) -> str:
        """Returns the text of the list."""
        return "".join(f"{version} {'+' if new else '-'} {name}\n" for version, new, name in self.changes)

    def after(self, applied: Collection[str]) -> dict[str, str]:
        """Returns the objects that exist after these versions, each with the version that created it."""
        objects: dict[str, str] = {}
        for version, new, name in self.changes:
            if version in applied:
                if new:
                    objects[name] = version
                else:
                    objects.pop(name, None)
        return objects

    def contradiction(
        self, applied: Collection[str], there: Collection[str], file_names: Mapping[str, str]
    ) -> str | None:
        """Returns what contradicts the record, and what to do; None if the record and the database agree.

        Args:
            applied: the versions recorded as applied.
            there: the objects that the database has.
            file_names: the migrations' file names by version.
        """
        expected = self.after(applied)
        missing = {name: file_names[expected[name]] for name in expected.keys() - there}
        if missing:
            return (
                f"{counted(len(applied), 'migration')} of the {self.database} database "
                f"{'is' if len(applied) == 1 else 'are'} recorded as applied, but these objects of theirs are missing: "
                f"{_shown(missing, self.database)}. They were dropped, or only a part of a backup was restored. "
                + self._remedy(missing)
            )
        # an existing CRM without a record is for adoption to judge
        ahead = self.after(file_names) if applied or self.database != "crm" else {}
        too_early = {
            name: file_names[version]
            for name, version in ahead.items()
            if name in there and name not in expected
        }
        if too_early:
            return (
                f"the {self.database} database has objects of migrations that aren't recorded as applied: "
                f"{_shown(too_early, self.database)}. The record was dropped or emptied, or only a part of a backup "
                "was restored. (If another application made them, rename them.) " + self._remedy({})
            )
        return None

    def _remedy(self, missing: Mapping[str, str]) -> str:
        again = ""
        if (
            missing
            and self.database == "analytics"
            and {_kind(name) for name in missing}.isdisjoint(WITH_ROWS)
        ):
            again = f"run the statements that create them again (in {', '.join(sorted(set(missing.values())))}), or "
        return f"Nothing was changed. Now: {again}{remedy(self.database)}"


def remedy(database: str) -> str:
    """Returns what to do about a database that isn't whole."""
    without, after = {
        "analytics": (
            "Without a backup, start again from the landing folder",
            " and `crm-analytics refresh`",
        ),
        "crm": ("If nothing in it matters (a demo), start again", ""),
    }[database]
    return (
        "restore the whole backup into an empty database (docs/operations.md, Backup and restore). "
        f"{without}: drop the database {database} and create it empty (the embedded one: `crm-analytics psql dagster -- "
        f"-c 'DROP DATABASE {database} WITH (FORCE)'`), then `crm-analytics migrate {database}`{after}."
    )


def _shown(objects: Mapping[str, str], database: str) -> str:
    """Names a few of the objects with their files, and counts the rest; what is inside another one isn't named."""
    outer = [name for name in objects if not any(home in objects for home in _homes(name))]
    order = KINDS[database]
    outer.sort(key=lambda name: (order.index(_kind(name)), name))
    texts = [f"{name} ({objects[name]})" for name in outer[:SHOWN]]
    inside, more = len(objects) - len(outer), len(outer) - len(texts)
    if more:
        texts.append(f"{more} more")
    return f"{_joined(texts)}" + (f", with {counted(inside, 'object')} inside them" if inside else "")


def _kind(name: str) -> str:
    return name.split(" ", 1)[0]


def _joined(texts: Iterable[str]) -> str:
    *before, last = texts
    return f"{', '.join(before)} and {last}" if before else last


def _homes(name: str) -> Iterator[str]:
    """Yields the objects that contain an object, without which it can't exist."""
    kind, rest = name.split(" ", 1)
    if kind == "schema":
        return
    if kind == "column":
        rest = rest.rpartition(".")[0]
        yield f"table {rest}"
    elif " on " in rest:
        rest = rest.partition(" on ")[2]
        yield f"table {rest}"
        yield f"view {rest}"
    yield f"schema {rest.partition('.')[0]}"
