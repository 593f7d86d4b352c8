"""Attacks on tables: every role writes them without an RPC, or plants something that runs when others do."""

from __future__ import annotations

from crm_analytics.crm.proof.attacks.lab import Lab, attack
from crm_analytics.crm.schema.catalog import CRM_TABLES
from crm_analytics.crm.schema.manifest import expected

#: The owner may insert and update these; a trigger audits it (docs/decisions/guards-by-role.md).
OWNER_WRITES = ("users", "customers")
APPEND_ONLY = ("order_status_events", "audit_log", "audit_seals")
#: Which column names the person behind a row.
ACTOR_COLUMNS = {
    "orders": "created_by",
    "payments": "created_by",
    "documents": "uploaded_by",
    "tasks": "created_by",
    "shipments": "created_by",
    "order_status_events": "changed_by",
}


@attack("triggers_{}", on=CRM_TABLES)
def owner_writes(lab: Lab, table: str) -> None:
    """Writes the table by hand as the owner or a superuser: every action, every column."""
    actions = ("DELETE",) if table in OWNER_WRITES else ("INSERT", "UPDATE", "DELETE")
    lab.refused(lab.writes(table, actions))
    # CASCADE reaches other tables, whose guards must not be what refuses.
    lab.refused(lab.writes(table, ("TRUNCATE",)), saying=f"TRUNCATE on {table} is refused")


@attack("triggers_{}", on=CRM_TABLES)
def replica_role_writes(lab: Lab, table: str) -> None:
    """Writes as owner_writes does, with session_replication_role = replica, which skips triggers that are not ALWAYS."""
    lab.run("SET LOCAL session_replication_role = replica")
    owner_writes(lab, table)


@attack("table_grants", "triggers_{}", on=CRM_TABLES)
def app_writes(lab: Lab, table: str) -> None:
    """Writes the table as the application's role, without an RPC."""
    lab.refused(lab.writes(table), role="crm_app", saying="permission denied")
    _plants(lab, table, "crm_app")


@attack("table_grants", on=CRM_TABLES)
def stranger_reaches(lab: Lab, table: str) -> None:
    """Reads the table, writes it, or plants a trigger, rule or policy on it, as a role without rights."""
    stranger = lab.stranger()
    statements = [f"SELECT FROM public.{table}", *lab.writes(table)]
    lab.refused(statements, role=stranger, saying="permission denied")
    _plants(lab, table, stranger)


def _plants(lab: Lab, table: str, role: str) -> None:
    lab.refused(
        [
            f"""
            CREATE TRIGGER planted BEFORE INSERT ON public.{table}
            FOR EACH ROW EXECUTE FUNCTION pg_catalog.suppress_redundant_updates_trigger()
            """,
            f"CREATE RULE planted AS ON INSERT TO public.{table} DO INSTEAD NOTHING",
            f"CREATE POLICY planted ON public.{table} USING (true)",
            f"ALTER TABLE public.{table} DISABLE TRIGGER ALL",
        ],
        role=role,
    )


@attack("table_grants", on=CRM_TABLES)
def rpc_role_overreaches(lab: Lab, table: str) -> None:
    """Writes as crm_rpc what no RPC needs to write: its grants end there."""
    grants = expected().objects
    table_writes = {action: lab.writes(table, (action,))[0] for action in ("INSERT", "DELETE", "TRUNCATE")}
    column_writes = {
        column: f"UPDATE public.{table} SET {column} = {column}" for column in lab.columns(table)
    }
    statements = [
        *(
            statement
            for action, statement in table_writes.items()
            if f"grant table public.{table} to crm_rpc: {action}" not in grants
        ),
        *(
            statement
            for column, statement in column_writes.items()
            if f"grant table public.{table} to crm_rpc: UPDATE" not in grants
            and f"grant column public.{table}.{column} to crm_rpc: UPDATE" not in grants
        ),
    ]
    lab.refused(statements, role="crm_rpc", saying=f"permission denied for table {table}")


@attack("row_security", "triggers_{}", on=CRM_TABLES)
def broad_grant(lab: Lab, table: str) -> None:
    """Grants everything on the table to a stranger by mistake: row security and triggers must still hold."""
    stranger = lab.stranger()
    lab.run(f"GRANT ALL ON public.{table} TO {stranger}")
    with lab.role(stranger):
        lab.expect(
            lab.run(f"SELECT count(*) FROM public.{table}"), 0, f"rows of {table} that a mere grant shows"
        )
    # No row is visible to update or delete; an insert meets the trigger, and behind it the policy.
    lab.refused([f"INSERT INTO public.{table} DEFAULT VALUES"], role=stranger)


@attack("triggers_{}", on=OWNER_WRITES)
def other_superuser_writes(lab: Lab, table: str) -> None:
    """Writes a table that its owner may write, as a superuser who is not the owner."""
    other = lab.stranger()
    lab.run(f"ALTER ROLE {other} SUPERUSER")
    for _ in lab.replication_roles():
        lab.refused(lab.writes(table, ("INSERT", "UPDATE", "DELETE")), role=other, saying="is refused")


@attack("triggers_{}", on=APPEND_ONLY)
def rewrites_history(lab: Lab, table: str) -> None:
    """Changes or deletes rows of an append-only table, even as crm_rpc, the RPCs' own role."""
    # Only the triggers are left.
    lab.run(f"GRANT UPDATE, DELETE, TRUNCATE ON public.{table} TO crm_rpc")
    for _ in lab.replication_roles():
        lab.refused(lab.writes(table, ("UPDATE", "DELETE")), role="crm_rpc", saying="is refused")


@attack("triggers_elsewhere", "row_security", "table_grants")
def reaches_private_tables(lab: Lab) -> None:
    """Writes or empties tables of crm_private, the record of migrations among them, as a role that may write all data."""
    writer, reader = f"{lab.stranger()}_writer", lab.stranger()
    lab.run(f"CREATE ROLE {writer} BYPASSRLS IN ROLE pg_write_all_data, pg_read_all_data")
    lab.run(f"GRANT USAGE ON SCHEMA crm_private TO {reader}")
    for key, facts in expected().objects.items():
        if not key.startswith("table crm_private.") or facts["kind"] != "r":
            continue
        table = key.removeprefix("table ")
        filled = lab.run(f"SELECT EXISTS (SELECT FROM {table})")
        changes = ("UPDATE", "DELETE") if filled else ()
        migrations_only = "'record'" in expected().definitions[f"trigger {table}.guard_rows"]
        for _ in lab.replication_roles():
            lab.refused(lab.writes(table, ("INSERT", *changes)), writer, saying="is refused")
            if migrations_only:
                lab.refused(lab.writes(table, ("DELETE",)), saying="is refused")
        lab.run(f"GRANT ALL ON {table} TO {reader}, crm_rpc")
        for _ in lab.replication_roles():
            lab.refused(
                lab.writes(table, ("TRUNCATE",)), "crm_rpc", saying=f"TRUNCATE on {table.split('.')[1]} is"
            )
        if migrations_only:
            lab.refused([f"INSERT INTO {table} DEFAULT VALUES"], "crm_rpc", saying="is refused")
        with lab.role(reader):
            lab.expect(
                lab.run(f"SELECT count(*) FROM {table}"), 0, f"rows of {table} that a mere grant shows"
            )


@attack("triggers_{}", on=ACTOR_COLUMNS)
def row_without_actor(lab: Lab, table: str) -> None:
    """Inserts a row without its actor, or changes who made a row, as a faulty RPC would."""
    actor = ACTOR_COLUMNS[table]
    others = ", ".join(name for name in lab.columns(table) if name not in ("id", actor))
    insert = f"INSERT INTO public.{table} ({others}) SELECT {others} FROM public.{table} LIMIT 1"
    open_payment = " WHERE id = %(planned)s" if table == "payments" else ""
    update = f"UPDATE public.{table} SET {actor} = %(admin)s{open_payment}"
    lab.run(f"GRANT UPDATE ON public.{table} TO crm_rpc")
    for _ in lab.replication_roles():
        lab.refused([insert], "crm_rpc", ("23502",), f"{table}.{actor} is")
        if table not in APPEND_ONLY:
            lab.refused([update], "crm_rpc", ("23514",), "never changes")


@attack("triggers_payments", "constraints")
def faulty_ledger_writes(lab: Lab) -> None:
    """Books a payment of nothing, or changes one that is booked, as a faulty RPC would."""
    insert = """
        INSERT INTO public.payments (order_id, direction, role, method, amount, currency, status,
            external_reference, reference_key, created_by)
        VALUES ({order}, 'incoming', 'client_payment', 'cash', {amount}, 'EUR', 'completed',
            {reference}, {key}, %(manager)s)
        """
    good = {"order": "%(fresh)s", "amount": "1", "reference": "NULL", "key": "NULL"}
    faults = (
        {"amount": "0"},
        {"amount": "'NaN'"},
        {"order": "NULL"},
        {"reference": "'a'"},
        {"reference": "' a'", "key": "' a'"},
    )
    statements = [
        *(insert.format(**good | fault) for fault in faults),
        "UPDATE public.payments SET status = 'failed' WHERE id = %(payment)s",
        "UPDATE public.payments SET amount = 99 WHERE id = %(planned)s",
        "UPDATE public.payments SET external_reference = 'b', reference_key = 'b' WHERE id = %(planned)s",
    ]
    lab.run("GRANT UPDATE ON public.payments TO crm_rpc")
    for _ in lab.replication_roles():
        lab.refused(statements, "crm_rpc", ("23514",), "payment")


@attack("triggers_users", "triggers_customers")
def unaudited_owner_write(lab: Lab) -> None:
    """Changes people's rows as the owner: allowed, and traced with the login, however the session is set."""
    traces = """
        SELECT count(*) FROM public.audit_log
        WHERE entity = %(table)s AND entity_id = %(row)s AND "session_user" = SESSION_USER
        """
    for _ in lab.replication_roles():
        for table, name in (("users", "name"), ("customers", "full_name")):
            row = lab.run(f"INSERT INTO public.{table} ({name}) VALUES ('x') RETURNING id")
            lab.run(f"UPDATE public.{table} SET {name} = 'y' WHERE id = %(row)s", row=row)
            lab.expect(
                lab.run(traces, table=table, row=row), 2, f"audit rows of the owner's two writes to {table}"
            )


@attack("triggers_customers", "unique_indexes")
def unclaimed_owner_contact(lab: Lab) -> None:
    """Writes a phone as the owner: the next lead must find that customer, and no other customer may get the phone."""
    for number, _ in enumerate(lab.replication_roles()):
        phone = f"+1 202 555 012{number}"
        row = lab.run(
            "INSERT INTO public.customers (full_name, phone) VALUES ('x', %(phone)s) RETURNING id",
            phone=phone,
        )
        found = lab.run("SELECT public.create_lead_safe('site', 'x', p_phone => %(phone)s)", phone=phone)
        lab.expect(
            found["customer_id"], str(row), "the customer of a lead with the phone that the owner wrote"
        )
        lab.refused(
            ["UPDATE public.customers SET phone = %(phone)s WHERE id = %(customer)s"],
            None,
            ("PT409",),
            phone=phone,
        )


@attack(*(f"triggers_{table}" for table in CRM_TABLES))
def forged_setting(lab: Lab) -> None:
    """Claims to be the RPC by setting variables that a careless guard might trust."""
    for name in ("crm.rpc", "crm.bypass", "app.current_user", "request.jwt.claims", "crm.allow_write"):
        lab.run("SELECT set_config(%(name)s, 'crm_rpc', true)", name=name)
    lab.refused([s for table in CRM_TABLES for s in lab.writes(table, ("DELETE",))])
    lab.refused(["UPDATE public.orders SET status = 'paid'", "UPDATE public.payments SET amount = 1"])


@attack("triggers_orders", "triggers_tasks", "triggers_order_status_events", "constraints")
def foreign_key_action(lab: Lab) -> None:
    """Rewrites guarded rows by a foreign key's ON UPDATE CASCADE, which runs as the owner."""
    drop_foreign_keys = """
        DO $$ DECLARE c record; BEGIN
            FOR c IN SELECT conrelid::regclass AS t, conname FROM pg_constraint
                WHERE confrelid = 'public.users'::regclass LOOP
                EXECUTE format('ALTER TABLE %%s DROP CONSTRAINT %%I', c.t, c.conname);
            END LOOP;
        END $$
        """
    for table in ("orders", "tasks", "payments"):
        with lab.role(None):
            lab.run(drop_foreign_keys)
            lab.run(
                f"""
                ALTER TABLE public.{table} ADD CONSTRAINT planted
                FOREIGN KEY (created_by) REFERENCES public.users (id) ON UPDATE CASCADE
                """
            )
            lab.refused(["UPDATE public.users SET id = gen_random_uuid() WHERE id = %(manager)s"])
