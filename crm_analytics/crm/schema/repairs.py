"""The SQL that makes the objects of the CRM's catalog as the manifest wants them, and the order to run it in.

Every statement is for the tables' owner (no superuser needed) or a superuser, and harmless when repeated: a
repair may put right what another one was going to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from crm_analytics.crm.schema.allowed_extras import grant_parts, objection
from crm_analytics.crm.schema.catalog import Manifest

Facts = Mapping[str, Any] | None

_PART = re.compile(r'"(?:[^"]|"")*"|[^".]+')
_RELATIONS = {"r": "TABLE", "p": "TABLE", "v": "VIEW", "m": "MATERIALIZED VIEW", "f": "FOREIGN TABLE"}
_ROLE_WORDS = {
    "superuser": "SUPERUSER", "inherit": "INHERIT", "create_role": "CREATEROLE", "login": "LOGIN",
    "create_database": "CREATEDB", "replication": "REPLICATION", "bypass_row_security": "BYPASSRLS",
}  # fmt: skip
_TRANSITIONS = "public.order_status_transitions"

#: The order of repairs: what is unwanted goes first (its functions last of all), then from what others rest on to
#: what rests on it. A kind with `+` stands for unwanted objects of the kind.
_ORDER = (
    "role", "setting", "member", "trigger+", "rule+", "policy+", "constraint+", "index+", "inheritance", "column+",
    "overload+", "view+", "table+", "sequence+", "possession", "table", "schema grant", "sequence", "label", "column",
    "key", "function", "index", "constraint", "trigger", "rule", "view", "policy", "row_security", "grant+", "grant",
    "transition", "cast+", "function+",
)  # fmt: skip


def parts(name: str) -> tuple[str, str]:
    """A dotted name as what stands before its last identifier, and that identifier (quoted where it has to be)."""
    found = _PART.findall(name)
    return ".".join(found[:-1]), found[-1]


@dataclass(frozen=True)
class Repairs:
    """Repairs of the database `found`, so that it has what is `wanted`."""

    wanted: Manifest
    found: Manifest

    def rank(self, key: str) -> int:
        """Where the repair of an object stands in the order to run them in."""
        kind, name = key.split(" ", 1)
        want = self.wanted.objects.get(key)
        if kind == "grant" and name.startswith("schema "):
            return _ORDER.index("schema grant")
        if kind == "constraint" and want and want["definition"].startswith(("PRIMARY", "UNIQUE")):
            return _ORDER.index("key")
        if kind == "function" and want is None and self._wanted_routine(name):
            return _ORDER.index("overload+")
        if kind == "table" and want is None and self.found.objects[key]["kind"] in ("v", "m"):
            return _ORDER.index("view+")
        return _ORDER.index(f"{kind}+" if want is None and f"{kind}+" in _ORDER else kind)

    def sql(self, key: str) -> str:
        """The SQL that puts an object right; a comment where another repair does, or where a backup has to."""
        kind, name = key.split(" ", 1)
        want, have = self.wanted.objects.get(key), self.found.objects.get(key)
        belongs_to = self._belongs_to(kind, name)
        if belongs_to is not None:
            return belongs_to
        method: Callable[[str, Facts, Facts], str] = getattr(self, f"_{kind}")
        return method(name, want, have)

    def _belongs_to(self, kind: str, name: str) -> str | None:
        """A comment, where the object comes or goes together with its table, sequence or function."""
        if kind in ("column", "constraint", "index", "trigger", "rule", "policy"):
            owner = f"table {parts(name)[0]}"
        elif kind in ("view", "row_security"):
            owner = f"table {name}"
        elif kind == "grant":
            owner = grant_parts(name)[0]
            if owner.startswith("column "):
                owner = f"table {parts(owner.removeprefix('column '))[0]}"
            if owner.startswith("schema "):
                return None
        else:
            return None
        if owner in self.found.objects and owner not in self.wanted.objects:
            return f"-- goes with {owner}"
        lost = owner in self.wanted.objects and owner not in self.found.objects
        if lost and owner.startswith("table "):
            return f"-- comes back with {owner}"
        return None

    # -- objects of tables --------------------------------------------------------------------------------

    def _definition_or_drop(self, kind: str, name: str, want: Facts) -> str:
        if want is not None:
            return self.wanted.definitions[f"{kind} {name}"]
        table, last = parts(name)
        return f"DROP {kind.upper()} {last} ON {table};"

    def _trigger(self, name: str, want: Facts, have: Facts) -> str:
        return self._definition_or_drop("trigger", name, want)

    def _rule(self, name: str, want: Facts, have: Facts) -> str:
        return self._definition_or_drop("rule", name, want)

    def _policy(self, name: str, want: Facts, have: Facts) -> str:
        return self._definition_or_drop("policy", name, want)

    def _constraint(self, name: str, want: Facts, have: Facts) -> str:
        if want is not None:
            # made anew even if only its system triggers are off: enabling those takes a superuser
            return self.wanted.definitions[f"constraint {name}"]
        table, last = parts(name)
        return f"ALTER TABLE {table} DROP CONSTRAINT {last};"

    def _index(self, name: str, want: Facts, have: Facts) -> str:
        if want is not None:
            return self.wanted.definitions[f"index {name}"]
        table, last = parts(name)
        return f"DROP INDEX {parts(table)[0]}.{last};"

    def _row_security(self, name: str, want: Facts, have: Facts) -> str:
        assert want is not None
        enabled, forced = "ENABLE" if want["enabled"] else "DISABLE", "" if want["forced"] else "NO "
        return f"ALTER TABLE {name} {enabled} ROW LEVEL SECURITY, {forced}FORCE ROW LEVEL SECURITY;"

    def _inheritance(self, name: str, want: Facts, have: Facts) -> str:
        child, parent = name.split(" inherits ")
        return f"ALTER TABLE {child} NO INHERIT {parent}; -- then look at the rows of {child}"

    def _view(self, name: str, want: Facts, have: Facts) -> str:
        return self.wanted.definitions[f"view {name}"]

    def _column(self, name: str, want: Facts, have: Facts) -> str:
        table, column = parts(name)
        alter = f"ALTER TABLE {table} ALTER COLUMN {column}"
        if want is None:
            assert have is not None
            return defuse_column(table, column, have)
        if have is None or (want["generated"] and have["generated"] != want["generated"]):
            steps = [f"ALTER TABLE {table} DROP COLUMN {column};"] if have else []
            steps.append(f"ALTER TABLE {table} ADD COLUMN {column} {_column_definition(want)};")
            if want["not_null"] and want["default"] is None and not want["identity"]:
                steps.append(f"-- fill it from a backup, then: {alter} SET NOT NULL;")
            return "\n".join(steps)
        steps = []
        if have["generated"]:
            steps.append(f"{alter} DROP EXPRESSION;")
        if have["identity"] and not want["identity"]:
            steps.append(f"{alter} DROP IDENTITY;")
        if have["default"] is not None and not have["generated"] and have["default"] != want["default"]:
            steps.append(f"{alter} DROP DEFAULT;")
        if have["type"] != want["type"]:
            steps.append(f"{alter} TYPE {want['type']} USING {column}::{want['type']};")
        if have["default"] != want["default"] and want["default"] is not None and not want["generated"]:
            steps.append(f"{alter} SET DEFAULT {want['default']};")
        if have["not_null"] != want["not_null"]:
            steps.append(f"{alter} {'SET' if want['not_null'] else 'DROP'} NOT NULL;")
        if want["identity"] and have["identity"]:
            steps.append(f"{alter} SET GENERATED {'ALWAYS' if want['identity'] == 'a' else 'BY DEFAULT'};")
        elif want["identity"]:
            kind = "ALWAYS" if want["identity"] == "a" else "BY DEFAULT"
            steps.append(f"{alter} ADD GENERATED {kind} AS IDENTITY;")
            steps.append(
                f"SELECT setval(pg_get_serial_sequence('{table}', '{column}'),"
                f" (SELECT coalesce(max({column}), 0) + 1 FROM {table}), false);"
            )
        return "\n".join(steps)

    # -- relations, their owners --------------------------------------------------------------------------

    def _table(self, name: str, want: Facts, have: Facts) -> str:
        if want is None:
            assert have is not None
            return f"DROP {_RELATIONS[have['kind']]} {name}; -- nothing of the CRM's: look at it first"
        if have is None or have["kind"] != want["kind"]:
            return f"-- {name}: restore the table from a backup; its definition is in the migrations under sql/crm."
        steps = []
        if have["owner"] != want["owner"]:
            steps.append(
                self._take(have["owner"], [f"ALTER TABLE {name} OWNER TO {self._who(want['owner'])};"])
            )
            # the old owner's privileges become the new owner's: give those that were wanted again
            steps += [
                grant.replace("GRANT ", "REVOKE ", 1).rsplit(" TO ", 1)[0]
                + f" FROM {self._who(want['owner'])};"
                for grant in self._grants_of(f"column {name}.")
            ]
            steps += self._grants_of(f"table {name}") + self._grants_of(f"column {name}.")
            steps += [
                grant
                for key, facts in self.wanted.objects.items()
                if key.startswith(f"sequence {name}_") and facts["identity"]
                for grant in self._grants_of(key)
            ]
        if have["persistence"] != want["persistence"]:
            steps.append(f"ALTER TABLE {name} SET LOGGED;")
        return "\n".join(steps)

    def _sequence(self, name: str, want: Facts, have: Facts) -> str:
        identity = (want or have or {}).get("identity")
        if identity and (want is None or have is None or have["owner"] != want["owner"]):
            return f"-- {name} comes, goes and changes hands with the identity column that it belongs to"
        if want is None:
            return f"DROP SEQUENCE IF EXISTS {name};"
        steps = []
        if have is None:
            steps.append(f"CREATE SEQUENCE {name};")
            if name == "crm_private.order_code_seq":
                steps.append(
                    f"SELECT setval('{name}', (SELECT coalesce(max(substring(order_code FROM '^B[0-9]{{4}}-([0-9]{{6,15}})$')"
                    "::bigint), 0) + 1 FROM public.orders), false);"
                )
            steps.append(f"ALTER SEQUENCE {name} OWNER TO {self._who(want['owner'])};")
        elif have["owner"] != want["owner"]:
            steps.append(
                self._take(have["owner"], [f"ALTER SEQUENCE {name} OWNER TO {self._who(want['owner'])};"])
            )
            steps += self._grants_of(f"sequence {name}")
        steps.append(
            f"ALTER SEQUENCE {name} INCREMENT BY {want['increment']} {'' if want['cycle'] else 'NO '}CYCLE;"
        )
        return "\n".join(steps)

    def _possession(self, name: str, want: Facts, have: Facts) -> str:
        if self.found.objects.get(name, {}).get("identity"):
            return f"-- {name} changes hands with its table"
        if name in self.wanted.objects:
            return f"-- see the repair of {name}"
        return self._take("crm_rpc", [f"ALTER {name} OWNER TO {self.found.owner};"])

    def _label(self, name: str, want: Facts, have: Facts) -> str:
        return self.wanted.definitions[f"label {name}"]

    # -- functions ----------------------------------------------------------------------------------------

    def _wanted_routine(self, name: str) -> bool:
        start = f"function {name.split('(')[0]}("
        return any(key.startswith(start) for key in self.wanted.objects)

    def _function(self, name: str, want: Facts, have: Facts) -> str:
        short = name.split("(")[0]
        if want is None:
            assert have is not None
            # CASCADE for an overload only: the repair of our own function makes its indexes again
            drop = f"DROP ROUTINE {name}{' CASCADE' if self._wanted_routine(name) else ''};"
            return self._take("crm_rpc", [drop]) if have["owner"] == "crm_rpc" else drop
        changed = have is not None and any(
            have[fact] != want[fact] for fact in ("result", "arguments", "kind")
        )
        steps = [
            "SET LOCAL check_function_bodies = off;",  # it may call a function that is still to be repaired
            *([f"DROP ROUTINE {name} CASCADE;"] if changed else []),
            self.wanted.definitions[f"function {name}"],
        ]
        closing = [_close(short), *self._grants_of(f"function {name}")]
        if want["owner"] == "crm_rpc":
            steps = self._as_crm_rpc(
                [*steps, *closing],
                parts(short)[0],
                first=[f"ALTER ROUTINE {name} OWNER TO crm_rpc;"]
                if have and have["owner"] != "crm_rpc"
                else [],
            )
        else:
            give = f"ALTER ROUTINE {name} OWNER TO {self._who(want['owner'])};"
            if have and have["owner"] == "crm_rpc":
                steps = ["GRANT crm_rpc TO CURRENT_USER WITH INHERIT TRUE, SET TRUE;", give,
                         "REVOKE crm_rpc FROM CURRENT_USER;", *steps]  # fmt: skip
            steps += [give, *closing]
        if changed or have is None:
            steps += [
                definition
                for key, definition in sorted(self.wanted.definitions.items())
                if (f"{short}(" in definition and key.startswith("index "))
                or (changed and key.startswith("trigger ") and f"EXECUTE FUNCTION {short}(" in definition)
            ]  # fmt: skip
        return _transaction(steps)

    def _cast(self, name: str, want: Facts, have: Facts) -> str:
        return f"DROP CAST ({name});"

    def _take(self, owner: str, steps: list[str]) -> str:
        """Steps that only the owner of something may take, where that owner is crm_rpc."""
        if owner != "crm_rpc":
            return "\n".join(steps)
        return _transaction(
            [
                "GRANT crm_rpc TO CURRENT_USER WITH INHERIT TRUE, SET TRUE;",
                *steps,
                "REVOKE crm_rpc FROM CURRENT_USER;",
            ]
        )

    def _as_crm_rpc(self, steps: list[str], schema: str = "", first: list[str] | None = None) -> list[str]:
        """Works for a superuser and for the schema's owner alike; the membership ends with the transaction."""
        create = [f"GRANT CREATE ON SCHEMA {schema} TO crm_rpc;"] if schema else []
        return [
            "GRANT crm_rpc TO CURRENT_USER WITH SET TRUE, INHERIT FALSE;",
            *create,
            *(first or []),
            "SET LOCAL ROLE crm_rpc;",
            *steps,
            "RESET ROLE;",
            *([f"REVOKE CREATE ON SCHEMA {schema} FROM crm_rpc;"] if schema else []),
            "REVOKE crm_rpc FROM CURRENT_USER;",
        ]

    # -- privileges and roles -----------------------------------------------------------------------------

    def _who(self, role: str) -> str:
        return self.found.owner if role == "$owner" else role

    def _grants_of(self, target: str) -> list[str]:
        """The grants wanted on one object (on all columns of a table, if the target ends with a dot)."""
        return [
            self._grant_statement(key.split(" ", 1)[1], facts)
            for key, facts in sorted(self.wanted.objects.items())
            if key.startswith(f"grant {target}" + ("" if target.endswith(".") else " to "))
        ]

    def _grant_statement(self, name: str, want: Mapping[str, Any]) -> str:
        target, grantee, privilege = grant_parts(name)
        what, privilege = _privilege_on(target, privilege)
        option = " WITH GRANT OPTION" if want["grant_option"] else ""
        return f"GRANT {privilege} ON {what} TO {self._who(grantee)}{option};"

    def _grant(self, name: str, want: Facts, have: Facts) -> str:
        target, grantee, privilege = grant_parts(name)
        what, shown = _privilege_on(target, privilege)
        if want is None:
            steps = [f"REVOKE {shown} ON {what} FROM {self._who(grantee)} CASCADE;"]
            # a privilege on the table takes those on its columns with it
            steps += [
                grant
                for grant in self._grants_of(f"column {target.removeprefix('table ')}.")
                if target.startswith("table ")
                and grant.startswith(f"GRANT {privilege} (")
                and grant.endswith(f" TO {self._who(grantee)};")
            ]
        elif have is not None and have["grant_option"] and not want["grant_option"]:
            steps = [f"REVOKE GRANT OPTION FOR {shown} ON {what} FROM {self._who(grantee)} CASCADE;"]
        else:
            steps = [self._grant_statement(name, want)]
        function = self.wanted.objects.get(target) if target.startswith("function ") else None
        if function is not None and function["owner"] == "crm_rpc":
            return _transaction(self._as_crm_rpc(steps))
        return "\n".join(steps)

    def _role(self, name: str, want: Facts, have: Facts) -> str:
        assert want is not None
        # only what differs: NOSUPERUSER and the like may be said by superusers alone
        before = {**dict.fromkeys(_ROLE_WORDS, False), "inherit": True, "settings": None}
        now = have or before
        words = [word if want[f] else f"NO{word}" for f, word in _ROLE_WORDS.items() if now[f] != want[f]]
        steps = [] if have else [f"CREATE ROLE {name};"]
        if words:
            steps.append(f"ALTER ROLE {name} {' '.join(words)};")
        if now["settings"] != want["settings"]:
            steps.append(f"ALTER ROLE {name} RESET ALL;")
            steps.append(f"ALTER ROLE {name} IN DATABASE {self.found.database} RESET ALL;")
        return " ".join(steps)

    def _setting(self, name: str, want: Facts, have: Facts) -> str:
        assert have is not None
        where = "ROLE ALL" if have["every_database"] else f"DATABASE {self.found.database}"
        return f"ALTER {where} RESET {name};"

    def _member(self, name: str, want: Facts, have: Facts) -> str:
        role, rest = name.split(" <- ", 1)
        member, grantor = rest.split(" granted by ", 1)
        for key, facts in self.found.objects.items():
            above = grantor != member and key.startswith(f"member {role} <- {grantor} granted by ")
            if above and objection(key, facts) is not None:
                return f"-- goes with {key}"
        revoke = f"REVOKE {role} FROM {self._who(member)} GRANTED BY {self._who(grantor)} CASCADE;"
        web = [role for role in (have or {}).get("web") or () if role != member]
        return "\n".join(
            [
                revoke,
                *(f"-- or, if {member} is a trusted server's role: REVOKE {member} FROM {w};" for w in web),
            ]
        )

    # -- rows ---------------------------------------------------------------------------------------------

    def _transition(self, name: str, want: Facts, have: Facts) -> str:
        old, new = (label.replace("'", "''") for label in name.split(" -> "))
        steps = [
            f"ALTER TABLE {_TRANSITIONS} DISABLE TRIGGER USER; -- its guard refuses every write",
            f"DELETE FROM {_TRANSITIONS} WHERE from_status = '{old}' AND to_status = '{new}';",
        ]
        if want is not None:
            steps.append(
                f"INSERT INTO {_TRANSITIONS} (from_status, to_status, required_role)"
                f" VALUES ('{old}', '{new}', '{want['required_role']}');"
            )
        return _transaction([*steps, *self._enabled(_TRANSITIONS)])

    def _enabled(self, table: str) -> list[str]:
        """Sets the expected enabled state of every trigger of a table."""
        words = {"A": "ENABLE ALWAYS", "O": "ENABLE", "R": "ENABLE REPLICA", "D": "DISABLE"}
        return [
            f"ALTER TABLE {table} {words[facts['enabled']]} TRIGGER {parts(key)[1]};"
            for key, facts in sorted(self.wanted.objects.items())
            if key.startswith(f"trigger {table}.")
        ]


def defuse_column(table: str, column: str, have: Mapping[str, Any]) -> str:
    """What makes a column beyond the manifest harmless and keeps its values, where that is possible."""
    if have["generated"] == "v":  # has no values, and its expression cannot be dropped
        return f"ALTER TABLE {table} DROP COLUMN {column};"
    alter = f"ALTER TABLE {table} ALTER COLUMN {column}"
    steps = []
    if have["generated"]:
        steps.append(f"{alter} DROP EXPRESSION;")
    elif have["identity"]:
        steps.append(f"{alter} DROP IDENTITY;")
    elif have["default"] is not None:
        steps.append(f"{alter} DROP DEFAULT;")
    if have["not_null"]:
        steps.append(f"{alter} DROP NOT NULL;")
    if not have["built_in_type"]:
        steps.append(f"{alter} TYPE text USING {column}::text;")
    return " ".join(steps)


def writer_repair(writer: Mapping[str, Any]) -> str:
    """SQL that takes from a role of `manifest.unexpected_writers` what lets it write."""
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


def _transaction(steps: list[str]) -> str:
    return "\n".join(["BEGIN;", *steps, "COMMIT;"])


def _privilege_on(target: str, privilege: str) -> tuple[str, str]:
    kind, rest = target.split(" ", 1)
    if kind == "column":
        table, column = parts(rest)
        return f"TABLE {table}", f"{privilege} ({column})"
    return f"{kind.upper()} {rest}", privilege


def _column_definition(want: Mapping[str, Any]) -> str:
    words = [want["type"]]
    if want["generated"]:
        words.append(f"GENERATED ALWAYS AS ({want['default']}) STORED")
    elif want["identity"]:
        words.append(f"GENERATED {'ALWAYS' if want['identity'] == 'a' else 'BY DEFAULT'} AS IDENTITY")
    elif want["default"] is not None:
        words.append(f"DEFAULT {want['default']}")
    if want["not_null"] and (want["default"] is not None or want["identity"]):
        words.append("NOT NULL")
    return " ".join(words)


def _close(short: str) -> str:
    """Takes EXECUTE on a function from everybody but its owner: default privileges may have given it to anybody."""
    schema, function = parts(short)
    return (
        "DO $close$ DECLARE v_grantee text; BEGIN\n"
        "  FOR v_grantee IN SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END\n"
        "    FROM pg_catalog.pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a\n"
        f"    WHERE p.pronamespace = '{schema}'::regnamespace AND p.proname = '{function}' AND a.grantee <> p.proowner LOOP\n"
        f"    EXECUTE format('REVOKE ALL ON ROUTINE {short} FROM %s CASCADE', v_grantee);\n"
        "  END LOOP;\nEND $close$;"
    )
