"""Attacks on tables: every role writes them without an RPC, or plants something that runs when others do."""

from __future__ import annotations

from crm_analytics.crm.proof.attacks.lab import Lab, attack
from crm_analytics.crm.schema.catalog import CRM_TABLES
from crm_analytics.crm.schema.manifest import expected

#: The owner may insert and update these; a trigger audits it (docs/decisions/guards-by-role.md).
OWNER_WRITES = ("users", "customers")
APPEND_ONLY = ("order_status_events", "audit_log", "audit_positions", "audit_seals", "customer_erasures")
#: Tables whose rows have a version.
VERSIONED = ("users", "customers", "leads", "orders", "payments", "documents", "tasks", "shipments")
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


@attack("triggers_audit_log", "triggers_audit_positions", "triggers_order_status_events", "functions")
def edits_as_an_erasure(lab: Lab) -> None:
    """Changes append-only rows as crm_rpc by more or less than an erasure; an erasure itself must be possible."""
    lab.run("GRANT UPDATE ON public.audit_log, public.audit_positions, public.order_status_events TO crm_rpc")
    erased = "payload = crm_private.erased_row('audit_log', to_jsonb(a)) -> 'payload'"
    lead = "WHERE id = (SELECT max(id) FROM public.audit_log WHERE entity = 'leads')"
    lab.refused(
        [
            f"UPDATE public.audit_log a SET payload = '{{}}' {lead}",
            f"UPDATE public.audit_log a SET client_address = '203.0.113.9' {lead}",
            f"UPDATE public.audit_log a SET {erased}, client_address = NULL, actor_id = NULL {lead}",
            f"UPDATE public.audit_log a SET {erased}, client_address = NULL, created_at = now() {lead}",
            "UPDATE public.audit_positions SET salt = sha256('x')",
            "UPDATE public.audit_positions SET salt = NULL, payload_hash = sha256('x')",
            "UPDATE public.order_status_events SET notes = 'as agreed'",
            "UPDATE public.order_status_events SET reason = 'as agreed'",
        ],
        role="crm_rpc",
        saying="is refused",
    )
    with lab.role("crm_rpc"):
        lab.run(f"UPDATE public.audit_log a SET {erased}, client_address = NULL {lead}")
        lab.run("UPDATE public.audit_positions SET salt = NULL WHERE salt IS NOT NULL")


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
            by_owner = ("DELETE",) if migrations_only else ("INSERT", *changes)
            lab.refused(lab.writes(table, by_owner), saying="is refused")
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


@attack("triggers_{}", on=VERSIONED)
def row_without_a_new_version(lab: Lab, table: str) -> None:
    """Changes a row and leaves its version as it was, or sets it back: two people could overwrite each other unnoticed."""
    lab.run(f"GRANT UPDATE ON public.{table} TO crm_rpc")
    open_row = " AND id = %(planned)s" if table == "payments" else ""
    for _ in lab.replication_roles():
        row = lab.run(f"SELECT id FROM public.{table} WHERE true{open_row} LIMIT 1")
        before = lab.run(f"SELECT version FROM public.{table} WHERE id = %(row)s", row=row)
        with lab.role("crm_rpc"):
            for change, expected_version in (("id = id", before + 1), ("version = 1", before + 2)):
                update = f"UPDATE public.{table} SET {change} WHERE id = %(row)s RETURNING version"
                lab.expect(
                    lab.run(update, row=row), expected_version, f"the version of a changed row of {table}"
                )


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
        {"reference": "'a' || chr(8203) || 'b'", "key": "'a' || chr(8203) || 'b'"},
    )
    mirror = """
        INSERT INTO public.payments (order_id, direction, role, method, amount, currency, status, {column}, created_by)
        SELECT {order}, {direction}, role, method, amount, currency, {status}, id, %(admin)s
        FROM public.payments WHERE id = %({of})s
        """
    right = {
        "column": "reverses",
        "of": "payment",
        "order": "order_id",
        "direction": "'outgoing'",
        "status": "status",
    }
    mirrors = (
        {"of": "reversal", "direction": "'incoming'"},
        {"of": "planned", "status": "'completed'"},
        {"order": "%(fresh)s"},
        {"direction": "'incoming'"},
        {"status": "'planned'"},
        {"column": "rebooks", "order": "%(fresh)s", "direction": "direction"},
        {"column": "rebooks", "of": "mistake", "direction": "direction"},
        {"column": "rebooks", "of": "mistake", "order": "%(fresh)s", "direction": "'outgoing'"},
    )
    statements = [
        *(insert.format(**good | fault) for fault in faults),
        *(mirror.format(**right | fault) for fault in mirrors),
        "UPDATE public.payments SET reference_key = NULL WHERE id = %(payment)s",
        "UPDATE public.payments SET reference_key = NULL, external_reference = NULL WHERE id = %(mistake)s",
        "UPDATE public.payments SET reverses = NULL WHERE id = %(reversal)s",
        "UPDATE public.payments SET status = 'failed' WHERE id = %(payment)s",
        "UPDATE public.payments SET amount = 99 WHERE id = %(planned)s",
        "UPDATE public.payments SET external_reference = 'b', reference_key = 'b' WHERE id = %(planned)s",
    ]
    lab.run("GRANT UPDATE ON public.payments TO crm_rpc")
    for _ in lab.replication_roles():
        lab.refused(statements, "crm_rpc", ("23514",), "payment")


@attack("triggers_orders", "functions")
def faulty_order_numbers(lab: Lab) -> None:
    """Writes an order without its number in comparable form, or changes a number, as a faulty RPC would."""
    insert = """
        INSERT INTO public.orders (order_code, order_code_key, created_by)
        VALUES ('ATTACK-1', {key}, %(manager)s)
        """
    statements = [
        *(insert.format(key=key) for key in ("NULL", "'ATTACK-1'", "'attack-2'")),
        "UPDATE public.orders SET order_code = 'ATTACK-1', order_code_key = 'attack-1' WHERE id = %(fresh)s",
        "UPDATE public.orders SET order_code_key = NULL WHERE id = %(fresh)s",
    ]
    for _ in lab.replication_roles():
        lab.refused(statements, "crm_rpc", ("23514",), "number")


@attack("triggers_elsewhere", "table_grants")
def idempotency_keys(lab: Lab) -> None:
    """Frees, forges or redirects an idempotency key, so that a repeated call would be done twice or answered wrongly."""
    table = "crm_private.idempotency_keys"
    rows = [
        f"INSERT INTO {table} (function, key) VALUES ('x', 'x')",
        f"UPDATE {table} SET result_id = %(fresh)s",
        f"DELETE FROM {table}",
    ]
    for _ in lab.replication_roles():
        lab.refused(rows, saying="is refused")
        lab.refused([f"TRUNCATE {table}"], saying="TRUNCATE on idempotency_keys is refused")
    lab.refused([f"SELECT FROM {table}", *rows, f"TRUNCATE {table}"], "crm_app", saying="permission denied")
    overreach = [f"UPDATE {table} SET key = 'x'", rows[2], f"TRUNCATE {table}"]
    lab.refused(overreach, "crm_rpc", saying="permission denied")


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


@attack("triggers_audit_log")
def forged_origin(lab: Lab) -> None:
    """Writes an audit row in another login's name, as a faulty RPC would; only a restore of data may bring one."""
    insert = """
        INSERT INTO public.audit_log (action, entity, "session_user", transaction_id, client_address, application_name)
        VALUES ('create', 'orders', 'mallory', '3', '203.0.113.7', 'forged')
        RETURNING ("session_user", transaction_id, client_address, application_name) IS NOT DISTINCT FROM
            ({})
        """
    true = "SESSION_USER::text, pg_current_xact_id(), inet_client_addr(), current_setting('application_name')"
    restored = "'mallory'::text, '3'::xid8, '203.0.113.7'::inet, 'forged'::text"
    with lab.role("crm_rpc"):
        lab.expect(lab.run(insert.format(true)), True, "the audit row names the login that wrote it")
    lab.run("SET LOCAL session_replication_role = replica")
    with lab.role("crm_rpc"):
        lab.expect(lab.run(insert.format(restored)), True, "a restored audit row keeps its login")


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
