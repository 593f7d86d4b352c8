"""Attacks on functions: who may call them, as whom they run, and whose names they look up."""

from __future__ import annotations

from crm_analytics.crm.proof.attacks.lab import Lab, attack
from crm_analytics.crm.proof.attacks.legitimate import work_a_day
from crm_analytics.crm.schema.catalog import CRM_TABLES, READ_NAMES, RPC_NAMES

_TRAP = (
    "LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'a planted function ran' USING ERRCODE = 'XX999'; END $$"
)


@attack("function_grants", on=(*RPC_NAMES, *READ_NAMES))
def stranger_calls(lab: Lab, rpc: str) -> None:
    """Calls the function as a role that is not crm_app."""
    nulls, granted = lab.connection.execute(
        """
        SELECT string_agg('NULL::' || format_type(a.type, NULL), ', ' ORDER BY a.n),
            has_function_privilege('public', p.oid, 'EXECUTE')
        FROM pg_proc p, unnest(p.proargtypes::oid[]) WITH ORDINALITY AS a(type, n)
        WHERE p.pronamespace = 'public'::regnamespace AND p.proname = %s
        GROUP BY p.oid
        """,
        [rpc],
    ).fetchone() or ("", None)
    lab.refused([f"SELECT public.{rpc}({nulls})"], role=lab.stranger())
    # The call is refused for lack of an actor as well, which must not hide the grant.
    lab.expect(granted, False, f"PUBLIC may execute {rpc}")


@attack("functions")
def hostile_operators_against_guards(lab: Lab) -> None:
    """Puts an = by which every role is crm_rpc into the writer's search_path; the guard must not use it."""
    lab.run("CREATE SCHEMA hostile")
    for left, right in (("name", "name"), ("text", "text"), ("name", "text"), ("text", "name")):
        lab.run(
            f"CREATE FUNCTION hostile.yes(a {left}, b {right}) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT true'"
        )
        lab.run(f"CREATE OPERATOR hostile.= (FUNCTION = hostile.yes, LEFTARG = {left}, RIGHTARG = {right})")
    # A better match for the guards' own calls of format.
    for arguments in ("text, name", "text, text, name"):
        lab.run(f"CREATE FUNCTION hostile.format({arguments}) RETURNS text {_TRAP}")
    deletes = [f"DELETE FROM public.{table}" for table in CRM_TABLES]
    truncates = [f"TRUNCATE public.{table}" for table in ("audit_seals", "user_identity_map")]
    lab.run("SET LOCAL search_path = hostile, pg_catalog, public")
    lab.refused([*deletes, *truncates, "UPDATE public.orders SET status = 'paid'"])


@attack("functions")
def hostile_search_path(lab: Lab) -> None:
    """Puts operators and functions into the caller's search_path, and domains into pg_temp, that would run as crm_rpc."""
    lab.run("CREATE SCHEMA hostile")
    lab.run("GRANT USAGE ON SCHEMA hostile TO PUBLIC")
    for operand in ("uuid", "text", "name", "numeric", "bigint", "boolean"):
        lab.run(f"CREATE FUNCTION hostile.trap(a {operand}, b {operand}) RETURNS boolean {_TRAP}")
        for operator in ("=", "<>", "<", ">", "<=", ">="):
            lab.run(
                f"CREATE OPERATOR hostile.{operator}"
                f" (FUNCTION = hostile.trap, LEFTARG = {operand}, RIGHTARG = {operand})"
            )
    for signature, result in (
        ("btrim(text)", "text"),
        ("lower(text)", "text"),
        ("now()", "timestamptz"),
        ("gen_random_uuid()", "uuid"),
        ("to_jsonb(anyelement)", "jsonb"),
    ):
        lab.run(f"CREATE FUNCTION hostile.{signature} RETURNS {result} {_TRAP}")
    lab.run("SET LOCAL search_path = hostile, pg_catalog, public")
    with lab.role("crm_app"):
        for type_name in ("uuid", "text", "numeric", "jsonb", "bool", "timestamptz"):
            lab.run(f"CREATE DOMAIN pg_temp.{type_name} AS pg_catalog.{type_name} CHECK (false)")
        work_a_day(lab)
        lab.run("RESET ROLE")
        lab.run("SELECT crm_private.number_changes()")
        lab.run("SELECT crm_private.seal_audit_safe()")
        lab.run("INSERT INTO public.users (name) VALUES ('traced by a trigger')")
        lab.run(
            "INSERT INTO public.customers (full_name, phone) VALUES ('traced by a trigger', '+1 202 555 0198')"
        )
        lab.run("UPDATE public.users SET role = 'admin'")


@attack("functions")
def rpcs_run_as_crm_rpc(lab: Lab) -> None:
    """Looks for RPCs that run as another role or with the caller's search_path; even where that is harmless, none may."""
    wrong = lab.run(
        """
        SELECT string_agg(proname, ', ') FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace AND proname = ANY (%(names)s)
            AND NOT coalesce(CASE
                WHEN prosecdef THEN proowner = 'crm_rpc'::regrole
                    AND 'search_path=pg_catalog, pg_temp' = ANY (proconfig)
                -- a search runs with the caller's rights, and its names were resolved when it was made
                ELSE proname = ANY (%(searches)s) AND prosqlbody IS NOT NULL
            END, false)
        """,
        names=[*RPC_NAMES, *READ_NAMES],
        searches=[name for name in READ_NAMES if name.startswith("find_")],
    )
    lab.expect(wrong, None, "RPCs that are not SECURITY DEFINER as crm_rpc with a pinned search_path")
