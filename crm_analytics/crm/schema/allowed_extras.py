"""What a deployment may have beyond the manifest: objects that run no code as crm_rpc, stop no RPC and let nobody write."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: Roles whose grants must be exactly the expected ones; other roles may read, and nothing more.
CRM_ROLES = ("$owner", "crm_rpc", "crm_app", "PUBLIC")

#: Defaults that run no code of anybody's: constants of built-in types, the clock, a random uuid.
_HARMLESS_DEFAULT = re.compile(
    r"\(?(-?[0-9.]+|'([^']|'')*'|true|false|NULL)\)?(::[a-z ]+(\([0-9, ]+\))?[a-z ]*(\[\])?)?"
    r"|now\(\)|CURRENT_TIMESTAMP|CURRENT_DATE|gen_random_uuid\(\)"
)
_GRANT = re.compile(
    r'(?P<object>.*) to (?P<grantee>"(?:[^"]|"")*"|[^" ]+): (?P<privilege>[A-Z ]+)', re.DOTALL
)


def grant_parts(name: str) -> tuple[str, str, str]:
    """Object, grantee and privilege of a grant's name in the manifest."""
    match = _GRANT.fullmatch(name)
    assert match is not None, name
    return match["object"], match["grantee"], match["privilege"]


def objection(key: str, facts: Mapping[str, Any]) -> str | None:
    """Why an object that is not in the manifest cannot stay; None where it is harmless."""
    kind, name = key.split(" ", 1)
    match kind:
        case "label":
            return None
        case "column":
            return _column(facts)
        case "index":
            if facts["unique"]:
                return "a unique index that the RPCs do not know refuses their rows"
            return None if facts["plain"] else "an index over expressions or a predicate runs code as crm_rpc"
        case "grant":
            return _grant(*grant_parts(name))
        case "member":
            return _member(name, facts)
        case _:
            return ""


def _column(facts: Mapping[str, Any]) -> str | None:
    if not facts["built_in_type"]:
        return "a type that is not built in may run code as crm_rpc (CHECKs of a domain, casts)"
    if facts["generated"] or facts["identity"]:
        return "a generated or identity column runs code as crm_rpc"
    if facts["default"] is None:
        return "NOT NULL without a default refuses the RPCs' rows" if facts["not_null"] else None
    if _HARMLESS_DEFAULT.fullmatch(facts["default"]):
        return None
    return "a default that is not a constant runs code as crm_rpc"


def _grant(target: str, grantee: str, privilege: str) -> str | None:
    if target == "schema public":
        harmless = grantee not in ("crm_rpc", "crm_app") and (grantee, privilege) != ("PUBLIC", "CREATE")
    elif grantee in CRM_ROLES or target.startswith("function "):
        harmless = False
    else:
        harmless = privilege == "SELECT" or (privilege == "USAGE" and target.startswith("schema "))
    return None if harmless else ""


def _member(name: str, facts: Mapping[str, Any]) -> str | None:
    if name.startswith("crm_app <- ") and not name.startswith("crm_app <- crm_rpc "):
        if facts["web"]:
            return f"{' and '.join(facts['web'])} could call the RPCs as anybody"
        return None  # which servers may call the RPCs is the deployment's choice
    # PostgreSQL gives a CREATEROLE login, not a superuser, an admin-only membership that cannot be revoked;
    # without SET and INHERIT it opens nothing.
    admin_only = name.startswith("crm_rpc <- $owner ") and not facts["inherit"] and not facts["set"]
    return None if admin_only else ""
