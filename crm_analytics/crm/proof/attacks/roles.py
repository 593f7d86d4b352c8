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
