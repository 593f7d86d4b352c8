"""Judges what a deployment may have beyond the manifest: it must run no code, stop no RPC and let no role write."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from crm_analytics.crm.schema.catalog import kind_of

#: Roles whose grants must be exactly the expected ones; other roles may read, and nothing more.
CRM_ROLES = ("$owner", "crm_rpc", "crm_app", "PUBLIC")
#: Supabase's roles of requests from the web.
WEB_ROLES = ("anon", "authenticated")

#: Defaults that run nothing of anyone's: constants of built-in types, the clock, a random uuid.
_HARMLESS_DEFAULT = re.compile(
    r"\(?(-?[0-9.]+|'([^']|'')*'|true|false|NULL)\)?(::[a-z ]+(\([0-9, ]+\))?[a-z ]*(\[\])?)?"
    r"|now\(\)|CURRENT_TIMESTAMP|CURRENT_DATE|gen_random_uuid\(\)"
)


def objection(key: str, facts: Mapping[str, Any]) -> str | None:
    """Returns why an object that is not in the manifest cannot stay ("" for most kinds), or None if it is harmless."""
    match kind_of(key):
        case "label":
            return None
        case "column":
            return _column(facts)
        case "index":
            if facts["unique"]:
                return "a unique index that the RPCs do not know refuses their rows"
            return None if facts["plain"] else "an index over expressions or a predicate runs code as crm_rpc"
        case "grant":
            return _grant(facts["parent"], facts["grantee"], facts["privilege"])
        case "member":
            return _member(facts)
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
    elif grantee in CRM_ROLES or kind_of(target) == "function":
        harmless = False
    elif kind_of(target) == "view":  # it shows its owner's rows, whoever asks
        harmless = privilege == "SELECT" and grantee not in WEB_ROLES
    else:
        harmless = privilege == "SELECT" or (privilege == "USAGE" and kind_of(target) == "schema")
    return None if harmless else ""


def _member(facts: Mapping[str, Any]) -> str | None:
    """Judges a membership. PostgreSQL does not keep who made a role; but a maker who is no superuser administers it."""
    role, member = facts["role"], facts["member"]
    trusted = member == "$owner" or facts["superuser"]
    becomes = facts["inherit"] or facts["set"]
    match role:
        case "crm_rpc":
            if becomes:
                return "a member of crm_rpc passes every guard"
            # PostgreSQL gives a CREATEROLE login, not a superuser, an admin-only membership that cannot be revoked;
            # without SET and INHERIT it opens nothing.
            return None if trusted else "who administers crm_rpc can become it, and passes every guard"
        case "crm_app" if member != "crm_rpc":
            if facts["web"] and becomes:
                return f"{' and '.join(facts['web'])} could call the RPCs in any user's name"
            if facts["admin"] and not trusted:
                return "who administers crm_app lets anyone call the RPCs"
            if becomes and not facts["named"] and not facts["superuser"]:
                return "CRM_APP_MEMBERS does not name it"
            return None
        case "grafana_reader":
            if facts["admin"] and not trusted and not facts["named"]:
                return "who administers grafana_reader can log in as it"
            return None  # who else reads the reports is the deployment's choice
        case _:
            return ""
