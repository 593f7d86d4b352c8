"""Writes the SQL that gives the objects of a CRM database the form that a manifest wants, and puts it in order.

Every statement can be run by the tables' owner, superuser or not, and by any superuser. It does no harm when it is
repeated: another repair may have put the same object right already.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crm_analytics.crm.schema.allowed_extras import objection
from crm_analytics.crm.schema.catalog import ROWS_OF, Manifest, kind_of

Facts = Mapping[str, Any]

_ROLE_WORDS = {
    "superuser": "SUPERUSER", "inherit": "INHERIT", "create_role": "CREATEROLE", "login": "LOGIN",
    "create_database": "CREATEDB", "replication": "REPLICATION", "bypass_row_security": "BYPASSRLS",
}  # fmt: skip
_AS_CRM_RPC = "GRANT crm_rpc TO CURRENT_USER WITH INHERIT TRUE, SET TRUE;"
_NO_LONGER = "REVOKE crm_rpc FROM CURRENT_USER;"

#: The order of repairs: first remove what is unwanted (functions last of all), then build from the ground up.
#: A kind with `+` means unwanted objects of that kind.
_ORDER = (
    "event_trigger", "role", "setting", "parameter", "member", "maintain", "publication", "subscription", "reference",
    "exposed", "trigger+", "rule+", "policy+", "constraint+", "index+", "inheritance", "column+",
    "overload+", "view+", "table+", "sequence+", "possession", "table", "schema grant", "sequence", "type", "label",
    "column", "key", "function", "index", "constraint", "trigger", "rule", "view", "policy", "row_security", "grant+",
    "grant", "transition", "payout_limit", "cast+", "function+",
)  # fmt: skip


@dataclass(frozen=True)
class Repairs:
    """Repairs the database `found`, so that it has what is `wanted`."""

    wanted: Manifest
    found: Manifest

    def rank(self, key: str) -> tuple[int, int]:
        """Returns the place of an object's repair in the order in which to run them; a view follows those that it reads."""
        kind, wanted = kind_of(key), key in self.wanted.objects
        facts = self.wanted.objects[key] if wanted else self.found.objects[key]
        if kind == "grant" and facts["parent"].startswith("schema "):
            kind = "schema grant"
        elif not wanted:
            if kind == "function" and self._overloads(key):
                kind = "overload"
            kind = f"{kind}+" if f"{kind}+" in _ORDER else kind
        elif kind == "constraint" and facts["kind"] in "pu":
            kind = "key"
        return _ORDER.index(kind), len(self._read_by(key)) if kind == "view" else 0

    def sql(self, key: str) -> str:
        """Returns the SQL that puts an object right, or a comment where another repair or a backup has to."""
        want, have = self.wanted.objects.get(key, {}), self.found.objects.get(key, {})
        rows_of = ROWS_OF.get(kind_of(key))
        parent = (want or have).get("parent", f"table {rows_of}" if rows_of else "")
        if parent in self.found.objects and parent not in self.wanted.objects:
            return f"-- goes with {parent}"
        if parent in self.wanted.objects and parent not in self.found.objects and kind_of(parent) == "table":
            return f"-- comes back with {parent}"
        method: Callable[[str, Facts, Facts], str] | None = getattr(self, f"_{kind_of(key)}", None)
        return method(key, want, have) if method else self._plain(key)

    def _plain(self, key: str) -> str:
        return self.wanted.definitions[key] if key in self.wanted.objects else self.found.removals[key]

    def _who(self, role: str) -> str:
        return self.found.owner if role == "$owner" else role

    # -- relations and types ------------------------------------------------------------------------------

    def _table(self, key: str, want: Facts, have: Facts) -> str:
        if not want:
            return self._plain(key)
        name = _name(key)
        if not have or have["kind"] != want["kind"]:
            return f"-- {name}: restore the table from a backup; its definition is in the migrations under sql/crm."
        steps = []
        if have["owner"] != want["owner"]:
            steps.append(self._new_owner(key, want, have))
            # the old owner's privileges on columns become the new owner's: give what is wanted again
            steps += [
                f"REVOKE {_privilege(grant)} FROM {self._who(want['owner'])};"
                for grant in self._grants(key)
                if grant["column"]
            ]
            owned = [
                k for k, f in self.wanted.objects.items() if kind_of(k) == "sequence" and f["parent"] == key
            ]
            steps += [self._grant_of(grant) for target in (key, *owned) for grant in self._grants(target)]
        if have["persistence"] != want["persistence"]:
            steps.append(f"ALTER TABLE {name} SET LOGGED;")
        return "\n".join(steps)

    def _view(self, key: str, want: Facts, have: Facts) -> str:
        if not want:
            return self._plain(key)
        if not have:
            return self._made_view(key)
        name, create = _name(key), self.wanted.definitions[key]
        if have["kind"] == want["kind"] and have["columns"] == want["columns"]:
            steps = [] if have["owner"] == want["owner"] else [self._new_owner(key, want, have)]
            if have["options"]:
                steps.append(
                    f"ALTER VIEW {name} RESET ({', '.join(o.split('=')[0] for o in have['options'])});"
                )
            return "\n".join([*steps, create])
        kind = "MATERIALIZED VIEW" if have["kind"] == "m" else "VIEW"
        steps = [f"DROP {kind} IF EXISTS {name} CASCADE;"]
        # the views that read it go with it
        readers = [other for other in self._views() if key in self._read_by(other)]
        for view in sorted([key, *readers], key=self.rank):
            steps += [self._made_view(view), *map(self._grant_of, self._grants(view))]
        return "\n".join(steps)

    def _made_view(self, key: str) -> str:
        """Returns the SQL that makes a view, whoever runs it."""
        owner = self._who(self.wanted.objects[key]["owner"])
        return f"{self.wanted.definitions[key]}\nALTER VIEW {_name(key)} OWNER TO {owner};"

    def _views(self) -> list[str]:
        return [key for key in self.wanted.objects if kind_of(key) == "view"]

    def _read_by(self, view: str) -> set[str]:
        """Returns the views of the manifest that a view reads, by way of others, too."""
        text = self.wanted.definitions.get(view, "")
        direct = {k for k in self._views() if k != view and re.search(rf"\b{re.escape(_name(k))}\b", text)}
        return direct.union(*(self._read_by(other) for other in direct))

    def _type(self, key: str, want: Facts, have: Facts) -> str:
        return self._new_owner(key, want, have) if want and have else self._plain(key)

    def _new_owner(self, key: str, want: Facts, have: Facts) -> str:
        change = f"ALTER {_on(key)} OWNER TO {self._who(want['owner'])};"
        return _as_owner(change) if have["owner"] == "crm_rpc" else change

    def _column(self, key: str, want: Facts, have: Facts) -> str:
        if not want or not have:
            return self._plain(key)
        table = _name(want["parent"])
        column = _name(key).removeprefix(f"{table}.")
        # the expression of a generated column cannot be changed, and a virtual column's cannot be dropped
        if (want["generated"] or have["generated"] == "v") and any(
            have[fact] != want[fact] for fact in ("generated", "default")
        ):
            return f"ALTER TABLE {table} DROP COLUMN {column};\n{self._plain(key)}"
        identity = f"GENERATED {'ALWAYS' if want['identity'] == 'a' else 'BY DEFAULT'}"
        steps = []
        if have["generated"]:
            steps.append("DROP EXPRESSION")
        if have["identity"] and not want["identity"]:
            steps.append("DROP IDENTITY")
        if have["default"] is not None and not have["generated"] and have["default"] != want["default"]:
            steps.append("DROP DEFAULT")
        if have["type"] != want["type"]:
            steps.append(f"TYPE {want['type']} USING {column}::{want['type']}")
        if have["default"] != want["default"] and want["default"] is not None and not want["generated"]:
            steps.append(f"SET DEFAULT {want['default']}")
        if have["not_null"] != want["not_null"]:
            steps.append(f"{'SET' if want['not_null'] else 'DROP'} NOT NULL")
        if want["identity"]:
            steps.append(f"SET {identity}" if have["identity"] else f"ADD {identity} AS IDENTITY")
        lines = [f"ALTER TABLE {table} ALTER COLUMN {column} {step};" for step in steps]
        if want["identity"] and not have["identity"]:
            lines.append(
                f"SELECT setval(pg_get_serial_sequence('{table}', '{column}'),"
                f" (SELECT coalesce(max({column}), 0) + 1 FROM {table}), false);"
            )
        return "\n".join(lines)

    def _sequence(self, key: str, want: Facts, have: Facts) -> str:
        name = _name(key)
        if (want or have)["identity"] and want.get("owner") != have.get("owner"):
            return f"-- {name} comes, goes and changes hands with the identity column that it belongs to"
        if not want:
            return self._plain(key)
        steps = []
        if not have:
            steps.append(f"CREATE SEQUENCE {name};")
        if not have or not have["has_room"]:
            steps += _next_number(name, want)
        if not have:
            steps.append(f"ALTER SEQUENCE {name} OWNER TO {self._who(want['owner'])};")
        elif have["owner"] != want["owner"]:
            steps += [self._new_owner(key, want, have), *map(self._grant_of, self._grants(key))]
        steps.append(
            f"ALTER SEQUENCE {name} INCREMENT BY {want['increment']} {'' if want['cycle'] else 'NO '}CYCLE;"
        )
        return "\n".join(steps)

    def _possession(self, key: str, want: Facts, have: Facts) -> str:
        name = _name(key)
        if self.found.objects.get(name, {}).get("identity"):
            return f"-- {name} changes hands with its table"
        if name in self.wanted.objects:
            return f"-- see the repair of {name}"
        return _as_owner(f"ALTER {name} OWNER TO {self.found.owner};")

    # -- functions ----------------------------------------------------------------------------------------

    def _overloads(self, key: str) -> bool:
        """Whether the manifest wants a function of this name."""
        return any(wanted.startswith(f"{key.split('(')[0]}(") for wanted in self.wanted.objects)

    def _function(self, key: str, want: Facts, have: Facts) -> str:
        name = _name(key)
        if not want:
            # CASCADE for an overload only: the repair of our own function makes its indexes again
            drop = f"DROP ROUTINE {name} CASCADE;" if self._overloads(key) else self._plain(key)
            return _as_owner(drop) if have["owner"] == "crm_rpc" else drop
        short, schema = name.split("(")[0], _name(want["parent"])
        changed = have and any(have[fact] != want[fact] for fact in ("result", "arguments", "kind"))
        steps = [
            "SET LOCAL check_function_bodies = off;",  # it may call a function that is still to be repaired
            *([f"DROP ROUTINE {name} CASCADE;"] if changed else []),
            self.wanted.definitions[key],
        ]
        closing = [_close(short), *map(self._grant_of, self._grants(key))]
        give = f"ALTER ROUTINE {name} OWNER TO {self._who(want['owner'])};"
        if want["owner"] == "crm_rpc":
            first = [give] if have and have["owner"] != "crm_rpc" else []
            steps = _by_crm_rpc([*steps, *closing], schema, first)
        else:
            if have.get("owner") == "crm_rpc":
                steps = [_AS_CRM_RPC, give, _NO_LONGER, *steps]
            steps += [give, *closing]
        if changed or not have:
            steps += [
                definition
                for other, definition in sorted(self.wanted.definitions.items())
                if (kind_of(other) == "index" and f"{short}(" in definition)
                or (changed and kind_of(other) == "trigger" and f"EXECUTE FUNCTION {short}(" in definition)
            ]
        return _transaction(steps)

    # -- privileges and roles -----------------------------------------------------------------------------

    def _grants(self, parent: str) -> list[Facts]:
        """Returns the grants that are wanted on an object and its columns."""
        return [
            facts
            for key, facts in sorted(self.wanted.objects.items())
            if kind_of(key) == "grant" and facts["parent"] == parent
        ]

    def _grant_of(self, want: Facts) -> str:
        option = " WITH GRANT OPTION" if want["grant_option"] else ""
        return f"GRANT {_privilege(want)} TO {self._who(want['grantee'])}{option};"

    def _grant(self, key: str, want: Facts, have: Facts) -> str:
        if not want:
            steps = [f"REVOKE {_privilege(have)} FROM {self._who(have['grantee'])} CASCADE;"]
            if not have["column"]:  # a privilege on the table takes those on its columns with it
                steps += [
                    self._grant_of(grant)
                    for grant in self._grants(have["parent"])
                    if grant["column"]
                    and (grant["privilege"], grant["grantee"]) == (have["privilege"], have["grantee"])
                ]
        elif have.get("grant_option"):
            steps = [f"REVOKE GRANT OPTION FOR {_privilege(want)} FROM {self._who(want['grantee'])} CASCADE;"]
        else:
            steps = [self._grant_of(want)]
            if want["parent"].startswith("schema "):
                steps.insert(0, f"CREATE SCHEMA IF NOT EXISTS {_name(want['parent'])};")
        if self.wanted.objects.get((want or have)["parent"], {}).get("owner") == "crm_rpc":
            return _transaction(_by_crm_rpc(steps))
        return "\n".join(steps)

    def _role(self, key: str, want: Facts, have: Facts) -> str:
        if not want:
            return self._plain(key)
        name = _name(key)
        # only what differs: NOSUPERUSER and the like take a superuser
        now = have or {**dict.fromkeys(_ROLE_WORDS, False), "inherit": True, "settings": None}
        words = [word if want[f] else f"NO{word}" for f, word in _ROLE_WORDS.items() if now[f] != want[f]]
        steps = [] if have else [f"CREATE ROLE {name};"]
        if words:
            steps.append(f"ALTER ROLE {name} {' '.join(words)};")
        if now["settings"] != want["settings"]:
            steps.append(self.found.removals[key])
        return " ".join(steps)

    def _member(self, key: str, want: Facts, have: Facts) -> str:
        for above, facts in self.found.objects.items():
            if (
                kind_of(above) == "member"
                and (facts["role"], facts["member"]) == (have["role"], have["grantor"])
                and have["grantor"] != have["member"]
                and objection(above, facts) is not None
            ):
                return f"-- goes with {above}"
        return self._plain(key)

    # -- rows ---------------------------------------------------------------------------------------------

    def _transition(self, key: str, want: Facts, have: Facts) -> str:
        table, definitions = ROWS_OF[kind_of(key)], self.wanted.definitions
        guards = [sql for k, sql in definitions.items() if k.startswith(f"trigger {table}.")]
        change = [sql for sql in (self.found.removals.get(key), definitions.get(key)) if sql]
        # its guards refuse every write
        return _transaction([f"ALTER TABLE {table} DISABLE TRIGGER USER;", *change, *guards])

    _payout_limit = _transition


def _next_number(name: str, want: Facts) -> list[str]:
    """Sets a sequence to the first number that is free."""
    if name == "crm_private.order_code_seq":
        used, table = "substring(order_code FROM '^B[0-9]{4}-([0-9]{6,15})$')::bigint", "public.orders"
    elif want["column"]:
        used, table = want["column"], _name(want["parent"])
    else:
        return []
    return [f"SELECT setval('{name}', (SELECT coalesce(max({used}), 0) + 1 FROM {table}), false);"]


def writer_repair(writer: Mapping[str, Any]) -> str:
    """Returns SQL that takes from a role of `manifest.unexpected_writers` what lets it write."""
    role, steps = writer["role"], []
    for holder in writer["through"]:
        if holder in (role, "PUBLIC"):
            steps.append(
                f"REVOKE {', '.join(writer['privileges'])} ON TABLE {writer['table_name']} FROM {holder} CASCADE;"
            )
        elif holder == "crm_rpc":
            steps.append("-- a member of crm_rpc: see guard_roles")
        else:
            steps.append(f"REVOKE {holder} FROM {role}; -- or take the privilege from {holder}")
    return "\n".join(steps)


def _name(key: str) -> str:
    return key.split(" ", 1)[1]


def _on(key: str) -> str:
    """Names an object as SQL does: `TABLE public.orders`."""
    return f"{'TABLE' if kind_of(key) == 'view' else kind_of(key).upper()} {_name(key)}"


def _privilege(grant: Facts) -> str:
    column = f" ({grant['column']})" if grant["column"] else ""
    return f"{grant['privilege']}{column} ON {_on(grant['parent'])}"


def _transaction(steps: list[str]) -> str:
    return "\n".join(["BEGIN;", *steps, "COMMIT;"])


def _as_owner(step: str) -> str:
    """Wraps a step that only the owner of something may take, where that owner is crm_rpc."""
    return _transaction([_AS_CRM_RPC, step, _NO_LONGER])


def _by_crm_rpc(steps: list[str], schema: str = "", first: Sequence[str] = ()) -> list[str]:
    """Takes steps as crm_rpc; works for a superuser and for the schema's owner, and ends the membership again."""
    return [
        "GRANT crm_rpc TO CURRENT_USER WITH SET TRUE, INHERIT FALSE;",
        *([f"GRANT CREATE ON SCHEMA {schema} TO crm_rpc;"] if schema else []),
        *first,
        "SET LOCAL ROLE crm_rpc;",
        *steps,
        "RESET ROLE;",
        *([f"REVOKE CREATE ON SCHEMA {schema} FROM crm_rpc;"] if schema else []),
        _NO_LONGER,
    ]


def _close(function: str) -> str:
    """Takes EXECUTE on a function from all but its owner: default privileges may have given it to any role."""
    return f"""DO $close$ DECLARE v_grantee text; BEGIN
    FOR v_grantee IN
        SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END
        FROM pg_catalog.pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
        WHERE p.oid = '{function}'::regproc AND a.grantee <> p.proowner
    LOOP
        EXECUTE format('REVOKE ALL ON ROUTINE {function} FROM %s CASCADE', v_grantee);
    END LOOP;
END $close$;"""
