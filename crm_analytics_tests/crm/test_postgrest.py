"""The RPCs as PostgREST calls them: a JSON body whose keys are the arguments' names, as crm_app."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from crm_analytics.crm import CrmResult
from crm_analytics.crm.generate import rpcs
from crm_analytics_tests.crm.conftest import Connection, rows, value

pytestmark = pytest.mark.rolled_back


class NoFunction(Exception):
    """PostgREST answers 404 (PGRST202): no function has this name and these arguments."""


class Refused(Exception):
    """PostgREST answers with the status that the SQLSTATE stands for."""

    def __init__(self, error: psycopg.Error) -> None:
        super().__init__(str(error))
        self.sqlstate = error.sqlstate or ""
        self.status = (
            403 if self.sqlstate == "42501" else int(self.sqlstate[2:]) if self.sqlstate[:2] == "PT" else 400
        )
        self.detail = error.diag.message_detail


def post(crm: Connection, function: str, body: str) -> Any:
    """Does what `POST /rpc/<function>` does with a JSON body: finds the function by its keys, and calls it by name.

    PostgREST turns the body into a record of the arguments' types (`json_to_record`) and passes its columns with
    named notation; what the body does not name is left to its default. What is not VOLATILE is called in a read-only
    transaction, and can be called by GET, too.
    """
    keys = set(json.loads(body))
    candidates = rows(
        crm,
        "SELECT proargnames[1:pronargs], (SELECT array_agg(format_type(t, NULL) ORDER BY n)"
        " FROM unnest(proargtypes) WITH ORDINALITY AS a(t, n)), pronargs - pronargdefaults, proretset,"
        " proargmodes && '{o,t}' IS TRUE, provolatile = 'v' FROM pg_proc"
        " WHERE pronamespace = 'public'::regnamespace AND proname = %s",
        function,
    )
    found = [
        (dict(zip(names, types, strict=True)), is_set, has_columns, writes)
        for names, types, required, is_set, has_columns, writes in candidates
        if set(names[:required]) <= keys <= set(names)
    ]
    if len(found) != 1:
        raise NoFunction(function, keys)
    [(arguments, is_set, has_columns, writes)] = found
    names = [name for name in arguments if name in keys]
    record = ", ".join(f'"{name}" {arguments[name]}' for name in names)
    named = ", ".join(f'"{name}" := pgrst_body."{name}"' for name in names)
    result = "row_to_json(pgrst_call.*)" if has_columns else "pgrst_call.pgrst_scalar"
    call = (
        f'SELECT * FROM "public"."{function}"({named})'
        if has_columns
        else f'SELECT "public"."{function}"({named}) pgrst_scalar'
    )
    try:
        with crm.transaction():
            if not writes:
                crm.execute("SET TRANSACTION READ ONLY")
            crm.execute("SET LOCAL ROLE crm_app")
            crm.execute("SET LOCAL search_path = public")
            answers = rows(
                crm,
                f"SELECT {result} FROM (SELECT %s::json AS json_data) pgrst_payload,"
                f" LATERAL (SELECT * FROM json_to_record(pgrst_payload.json_data) AS _({record}) LIMIT 1) pgrst_body,"
                f" LATERAL ({call}) pgrst_call",
                body,
            )
            crm.execute("RESET ROLE")
    except psycopg.Error as error:
        raise Refused(error) from error
    return [answer for (answer,) in answers] if is_set else answers[0][0]


def text(value_: Any) -> str:
    """Returns a value as JSON, ids as text."""
    return json.dumps(value_, default=str)


@pytest.fixture
def payment(order: CrmResult, manager: UUID) -> dict[str, Any]:
    """Returns the body of a client's payment."""
    return {
        "p_order_id": order.id, "p_direction": "incoming", "p_role": "client_payment", "p_method": "card",
        "p_amount": "1000.00", "p_currency": "EUR", "p_external_reference": "psp-1", "p_user_id": manager,
    }  # fmt: skip


@pytest.mark.parametrize("amount", ['"1000.00"', "1000.00", "1000", '"1e3"', '" 1000 "'])
def test_numbers_may_come_as_text(crm: Connection, payment: dict[str, Any], amount: str) -> None:
    """A number may come as a JSON number or as text, which keeps its digits; both book the same amount."""
    body = text({**payment, "p_amount": "AMOUNT"}).replace('"AMOUNT"', amount)
    answer = post(crm, "record_generic_payment_safe", body)
    assert (answer["order_status"], answer["duplicate"]) == ("paid", False)
    assert str(value(crm, "SELECT amount FROM public.payments")) == "1000.00"
    assert post(crm, "record_generic_payment_safe", body)["duplicate"]


def test_cents_come_through_exactly(crm: Connection, payment: dict[str, Any]) -> None:
    """An amount with cents is booked exactly, as a number and as text; JSON numbers never become floats here."""
    for n, amount in enumerate(('"0.29"', "0.29", '"9999999999.99"')):
        body = text({**payment, "p_amount": "AMOUNT", "p_external_reference": f"psp-{n}"}).replace(
            '"AMOUNT"', amount
        )
        post(crm, "record_generic_payment_safe", body)
    assert [str(row[0]) for row in rows(crm, "SELECT amount FROM public.payments ORDER BY amount")] == [
        "0.29", "0.29", "9999999999.99",
    ]  # fmt: skip


def test_a_key_that_no_argument_has_calls_nothing(crm: Connection, payment: dict[str, Any]) -> None:
    """A body with an unknown key finds no function; a misspelled argument must not be ignored."""
    before = value(crm, "SELECT count(*) FROM public.audit_log")
    with pytest.raises(NoFunction):
        post(crm, "record_generic_payment_safe", text({**payment, "p_ammount": "1"}))
    for missing in ("p_order_id", "p_amount", "p_currency"):
        with pytest.raises(NoFunction):
            post(
                crm,
                "record_generic_payment_safe",
                text({key: given for key, given in payment.items() if key != missing}),
            )
    assert value(crm, "SELECT count(*) FROM public.audit_log") == before


def test_what_is_left_out_has_its_default(crm: Connection, payment: dict[str, Any]) -> None:
    """An optional argument may be left out or be null, with the same meaning."""
    post(crm, "record_generic_payment_safe", text(payment))
    assert post(crm, "record_generic_payment_safe", text({**payment, "p_status": None}))["duplicate"]


def test_a_missing_actor_is_forbidden(crm: Connection, payment: dict[str, Any]) -> None:
    """A body without p_user_id, or with null, is answered with 403."""
    for body in (
        {**payment, "p_user_id": None},
        {key: given for key, given in payment.items() if key != "p_user_id"},
        {**payment, "p_user_id": uuid4()},
    ):
        with pytest.raises(Refused) as refused:
            post(crm, "record_generic_payment_safe", text(body))
        assert refused.value.status == 403


@pytest.mark.parametrize(
    ("changed", "status", "sqlstate"),
    [
        ({"p_order_id": "abc"}, 400, "22P02"),
        ({"p_amount": "abc"}, 400, "22P02"),
        ({"p_amount": {}}, 400, "22P02"),
        ({"p_amount": True}, 400, "22P02"),
        ({"p_amount": None}, 422, "PT422"),
        ({"p_amount": "NaN"}, 422, "PT422"),
        ({"p_amount": "0.001"}, 422, "PT422"),
        ({"p_currency": "BTC"}, 422, "PT422"),
        ({"p_currency": 5}, 422, "PT422"),
        ({"p_order_id": str(UUID(int=5))}, 404, "PT404"),
        ({"p_currency": "USD"}, 409, "PT409"),
    ],
)
def test_refusals_have_their_status(
    crm: Connection, payment: dict[str, Any], changed: dict[str, Any], status: int, sqlstate: str
) -> None:
    """Refusals have the HTTP status that the reference promises, with JSON details when the rules refuse."""
    with pytest.raises(Refused) as refused:
        post(crm, "record_generic_payment_safe", text({**payment, **changed}))
    assert (refused.value.status, refused.value.sqlstate) == (status, sqlstate)
    if sqlstate.startswith("PT"):
        assert set(json.loads(refused.value.detail or "")) >= {"rule", "field", "found", "accepted"}
    assert value(crm, "SELECT count(*) FROM public.payments") == 0


def test_json_arguments(crm: Connection, manager: UUID) -> None:
    """Lists and objects of the body become the JSON arguments; a list as text is refused, not stored as text."""
    body: dict[str, Any] = {
        "p_source": "site", "p_full_name": "Olga", "p_items": [{"model": "Road 54", "qty": 2}], "p_total_amount": "10",
        "p_currency": "EUR", "p_phone": "555 0100", "p_bike_snapshot": {"frame": 54}, "p_user_id": manager,
    }  # fmt: skip
    answer = post(crm, "quick_order_safe", text(body))
    assert rows(crm, "SELECT items, bike_snapshot FROM public.orders WHERE id = %s", answer["id"]) == [
        ([{"model": "Road 54", "qty": 2}], {"frame": 54})
    ]
    for items in ("[]", "Road 54", {"model": "Road 54", "qty": 1}, 5):
        with pytest.raises(Refused) as refused:
            post(crm, "quick_order_safe", text({**body, "p_items": items}))
        assert (refused.value.status, refused.value.sqlstate) == (422, "PT422")
    post(crm, "quick_order_safe", text({**body, "p_items": None}))
    assert (
        value(crm, "SELECT items FROM public.orders ORDER BY created_at DESC, order_code DESC LIMIT 1") == []
    )


def test_every_example_of_the_reference_is_a_body(crm: Connection) -> None:
    """Every example of the reference page finds its function, and fails at its invented ids at the earliest."""
    for rpc in rpcs(crm):
        body = rpc.example_request().split("\n\n", 1)[1]
        try:
            post(crm, rpc.name, body)
        except Refused as refused:
            assert refused.sqlstate in ("42501", "PT404"), f"{rpc.name}: {refused}"
        with pytest.raises(NoFunction):
            post(crm, rpc.name, text({**json.loads(body), "p_unknown": 1}))


def test_searches(crm: Connection, order: CrmResult) -> None:
    """The searches are called like the RPCs, and return a list."""
    [found] = post(crm, "find_customers_by_name", '{"p_prefix": "olga"}')
    assert found["full_name"] == "Olga Example"
    with pytest.raises(NoFunction):
        post(crm, "find_customers_by_name", "{}")


def test_whoami(crm: Connection, order: CrmResult, manager: UUID) -> None:
    """whoami is one object, not a list; who asks without p_order_id gets no transitions; refusals have their status."""
    body = {"p_user_id": manager, "p_order_id": order.id}
    actor = {"id": str(manager), "name": "Max", "role": "manager", "active": True}
    cancelled, awaiting = (
        {"to_status": status, "required_role": "manager", "reason_required": False}
        for status in ("cancelled", "awaiting_payment")
    )
    assert post(crm, "whoami", text(body)) == {
        **actor, "order_id": str(order.id), "order_status": "created", "transitions": [awaiting, cancelled],
    }  # fmt: skip
    assert post(crm, "whoami", text({"p_user_id": manager})) == {
        **actor, "order_id": None, "order_status": None, "transitions": None,
    }  # fmt: skip
    for changed, status in (({"p_user_id": uuid4()}, 403), ({"p_order_id": uuid4()}, 404)):
        with pytest.raises(Refused) as refused:
            post(crm, "whoami", text({**body, **changed}))
        assert refused.value.status == status
