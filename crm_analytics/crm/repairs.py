"""The SQL that makes an object of the CRM's catalogue as the manifest wants it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg import sql

from crm_analytics.crm.catalogue import Manifest


def repair(key: str, want: Mapping[str, Any] | None, have: Mapping[str, Any] | None, wanted: Manifest) -> str:
    """SQL, for the owner or a superuser, that makes the object as the manifest wants it."""
    kind, name = key.split(" ", 1)
    match kind:
        case "trigger":
            return wanted.definitions[key] if want else f"DROP TRIGGER {_last(name)} ON {_rest(name)};"
        case "rule":
            return wanted.definitions[key] if want else f"DROP RULE {_last(name)} ON {_rest(name)};"
        case "policy":
            return wanted.definitions[key] if want else f"DROP POLICY {_last(name)} ON {_rest(name)};"
        case "constraint":
            if not want:
                return f"ALTER TABLE {_rest(name)} DROP CONSTRAINT {_last(name)};"
            if have and have["definition"] == want["definition"] and have["validated"] == want["validated"]:
                return f"ALTER TABLE {_rest(name)} ENABLE TRIGGER ALL; {_always(_rest(name), wanted)}"
            return wanted.definitions[key]
        case "index":
            return wanted.definitions[key] if want else f"DROP INDEX {name.split('.')[0]}.{_last(name)};"
        case "view":
            return wanted.definitions[key] if want else f"DROP VIEW {name};"
        case "label":
            return wanted.definitions[key]
        case "function":
            return _repair_function(key, name, want, have, wanted)
        case "table" if want and have:
            return _repair_table(name, want, have)
        case "row_security" if want:
            enabled, forced = "ENABLE" if want["enabled"] else "DISABLE", "" if want["forced"] else "NO "
            return f"ALTER TABLE {name} {enabled} ROW LEVEL SECURITY, {forced}FORCE ROW LEVEL SECURITY;"
        case "column" if have:
            return _repair_column(name, want, have)
        case "inheritance":
            child, parent = name.split(" inherits ")
            return f"ALTER TABLE {child} NO INHERIT {parent}; -- then look at the rows of {child}"
        case "grant":
            return _repair_grant(name, want)
        case "role" if want:
            flags = {
                "superuser": "SUPERUSER", "inherit": "INHERIT", "create_role": "CREATEROLE", "login": "LOGIN",
                "create_database": "CREATEDB", "replication": "REPLICATION", "bypass_row_security": "BYPASSRLS",
            }  # fmt: skip
            words = " ".join(word if want[fact] else f"NO{word}" for fact, word in flags.items())
            create = "" if have else f"CREATE ROLE {name}; "
            return f"{create}ALTER ROLE {name} {words}; ALTER ROLE {name} RESET ALL;"
        case "member":
            role, rest = name.split(" <- ")
            member, grantor = (part.replace("$owner", "CURRENT_USER") for part in rest.split(" granted by "))
            return f"REVOKE {role} FROM {member} GRANTED BY {grantor};"
        case "transition":
            return _repair_transition(name, want, wanted)
        case "possession":
            return f"-- crm_rpc owns functions and nothing else. Give it away: ALTER {name} OWNER TO CURRENT_USER;"
        case _:
            return f"-- {kind} {name}: restore it from a backup; its definition is in the migrations under sql/crm."


def _last(name: str) -> str:
    return sql.Identifier(name.rsplit(".", 1)[1]).as_string()


def _rest(name: str) -> str:
    return name.rsplit(".", 1)[0]


def _repair_function(
    key: str, name: str, want: Mapping[str, Any] | None, have: Mapping[str, Any] | None, wanted: Manifest
) -> str:
    if want is None:
        return f"DROP FUNCTION {name};"
    steps = []
    if want["owner"] == "crm_rpc":
        # Works for a superuser and for the owner of the schema alike; the membership ends with the transaction.
        schema = name.split(".")[0]
        steps = [
            "GRANT crm_rpc TO CURRENT_USER WITH SET TRUE, INHERIT FALSE;",
            f"GRANT CREATE ON SCHEMA {schema} TO crm_rpc;",
        ]
        if have and have["owner"] != "crm_rpc":
            steps.append(f"ALTER FUNCTION {name} OWNER TO crm_rpc;")
        if have and (have["result"] != want["result"] or have["arguments"] != want["arguments"]):
            steps.append(f"DROP FUNCTION {name};")
        steps += [
            "SET LOCAL ROLE crm_rpc;",
            wanted.definitions[key],
            f"REVOKE ALL ON FUNCTION {name} FROM PUBLIC;",
        ]
        for grant in wanted.objects:
            if grant.startswith(f"grant function {name} to ") and not grant.endswith(" to crm_rpc: EXECUTE"):
                repair = _repair_grant(grant.split(" ", 1)[1], wanted.objects[grant])
                # inside SET ROLE the current user is crm_rpc; the owner is who has logged in
                steps.append(repair.replace("TO CURRENT_USER", "TO SESSION_USER"))
        steps += [
            "RESET ROLE;",
            f"REVOKE CREATE ON SCHEMA {schema} FROM crm_rpc;",
            "REVOKE crm_rpc FROM CURRENT_USER;",
        ]
    else:
        steps = [wanted.definitions[key]]
        if have and have["owner"] != want["owner"]:
            steps.append(f"ALTER FUNCTION {name} OWNER TO CURRENT_USER;")
    return "BEGIN;\n" + "\n".join(steps) + "\nCOMMIT;"


def _repair_table(name: str, want: Mapping[str, Any], have: Mapping[str, Any]) -> str:
    steps = []
    if have["owner"] != want["owner"]:
        steps.append(f"ALTER TABLE {name} OWNER TO CURRENT_USER;")
    if have["persistence"] != want["persistence"]:
        steps.append(f"ALTER TABLE {name} SET LOGGED;")
    return " ".join(steps) or f"-- {name} is another kind of relation: restore the table from a backup."


def _repair_column(name: str, want: Mapping[str, Any] | None, have: Mapping[str, Any]) -> str:
    table, column = _rest(name), _last(name)
    if want is None:
        return f"ALTER TABLE {table} ALTER COLUMN {column} DROP DEFAULT;"
    changes = []
    if have["type"] != want["type"]:
        changes.append(f"TYPE {want['type']}")
    if have["default"] != want["default"] and not want["generated"]:
        changes.append("DROP DEFAULT" if want["default"] is None else f"SET DEFAULT {want['default']}")
    if have["not_null"] != want["not_null"]:
        changes.append("SET NOT NULL" if want["not_null"] else "DROP NOT NULL")
    if not changes:
        return f"-- {name}: see its definition in the migrations under sql/crm."
    return f"ALTER TABLE {table} " + ", ".join(f"ALTER COLUMN {column} {change}" for change in changes) + ";"


def _repair_grant(name: str, want: Mapping[str, Any] | None) -> str:
    target, privilege = name.rsplit(": ", 1)
    what, grantee = target.rsplit(" to ", 1)
    grantee = "CURRENT_USER" if grantee == "$owner" else grantee
    if grantee != "CURRENT_USER" and grantee != "PUBLIC":
        grantee = sql.Identifier(grantee).as_string() if not grantee.isidentifier() else grantee
    if what.startswith("column "):
        table, column = what.removeprefix("column ").rsplit(".", 1)
        what, privilege = f"TABLE {table}", f"{privilege} ({column})"
    else:
        kind, rest = what.split(" ", 1)
        what = f"{kind.upper()} {rest}"
    if want is None:
        return f"REVOKE {privilege} ON {what} FROM {grantee};"
    repair = f"GRANT {privilege} ON {what} TO {grantee}"
    return repair + (" WITH GRANT OPTION;" if want["grant_option"] and grantee != "CURRENT_USER" else ";")


def _repair_transition(name: str, want: Mapping[str, Any] | None, wanted: Manifest) -> str:
    old, new = name.split(" -> ")
    table = "public.order_status_transitions"
    steps = [
        "BEGIN; -- the guard of this table refuses every write: it is down for this one transaction",
        f"ALTER TABLE {table} DISABLE TRIGGER USER;",
        f"DELETE FROM {table} WHERE from_status = '{old}' AND to_status = '{new}';",
    ]
    if want is not None:
        role = "NULL" if want["required_role"] is None else f"'{want['required_role']}'"
        steps.append(
            f"INSERT INTO {table} (from_status, to_status, required_role) VALUES ('{old}', '{new}', {role});"
        )
    return "\n".join([*steps, _always(table, wanted), "COMMIT;"])


def _always(table: str, wanted: Manifest) -> str:
    """Sets the expected enabled state of every trigger of a table: `ENABLE TRIGGER ALL` takes ALWAYS away."""
    words = {"A": "ENABLE ALWAYS", "O": "ENABLE", "R": "ENABLE REPLICA", "D": "DISABLE"}
    return " ".join(
        f"ALTER TABLE {table} {words[facts['enabled']]} TRIGGER {_last(key)};"
        for key, facts in sorted(wanted.objects.items())
        if key.startswith(f"trigger {table}.")
    )
