"""Attacks on roles: becoming crm_rpc, giving its membership away, roles that can do more than hold privileges."""

from __future__ import annotations

from crm_analytics.crm.proof.attacks.lab import Lab, attack


@attack("roles")
def becomes_crm_rpc(lab: Lab) -> None:
    """Becomes crm_rpc as the application or a stranger, or gives its membership away."""
    stranger = lab.stranger()
    for role in ("crm_app", stranger):
        lab.refused([f"GRANT crm_rpc TO {role}", f"GRANT crm_app TO {stranger}"], role=role)
        is_member = (
            f"SELECT pg_has_role('{role}', 'crm_rpc', 'SET') OR pg_has_role('{role}', 'crm_rpc', 'USAGE')"
        )
        lab.expect(lab.run(is_member), False, f"{role} is a member of crm_rpc")
    members = lab.run(
        """
        SELECT string_agg(member::regrole::text, ', ') FROM pg_auth_members
        WHERE roleid = 'crm_rpc'::regrole AND (set_option OR inherit_option)
        """
    )
    lab.expect(members, None, "members of crm_rpc")


@attack("roles")
def administers_a_role(lab: Lab) -> None:
    """Looks for a login that can give crm_rpc, crm_app or grafana_reader to itself, and for members of crm_app."""
    found = lab.run(
        """
        SELECT string_agg(concat_ws(' ', r.rolname, CASE WHEN m.admin_option THEN 'administers' ELSE 'holds' END,
            m.roleid::regrole), ', ')
        FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member
        WHERE NOT r.rolsuper AND r.rolname <> current_user AND (
            m.roleid IN ('crm_rpc'::regrole, 'crm_app'::regrole, 'grafana_reader'::regrole) AND m.admin_option
            OR m.roleid = 'crm_app'::regrole AND (m.inherit_option OR m.set_option))
        """
    )
    lab.expect(found, None, "logins that can take the CRM's roles")


@attack("roles")
def role_attributes(lab: Lab) -> None:
    """Looks for a crm_rpc or crm_app that can log in, skip row security or create roles, or is a superuser."""
    strong = lab.run(
        """
        SELECT string_agg(rolname, ', ') FROM pg_roles
        WHERE rolname IN ('crm_rpc', 'crm_app')
            AND (rolcanlogin OR rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication)
        """
    )
    lab.expect(strong, None, "roles that can do more than hold privileges")
