"""References and order numbers that look equal are equal: one list of blank and invisible characters, in any locale."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm_analytics.crm import Conflict, CrmClient, CrmResult, Invalid
from crm_analytics.crm.migrating.adoption import AdoptionError
from crm_analytics.crm.migrating.forms import form
from crm_analytics.crm.migrating.migrate import migrate_crm
from crm_analytics.crm.proof import invariants
from crm_analytics_tests.crm.conftest import Connection, pay, rows, value

#: Format characters that show: signs of Arabic, Syriac and Kaithi, and those that arrange hieroglyphs.
VISIBLE_FORMATS = {
    *range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD, *range(0x13430, 0x13440),
}  # fmt: skip
#: Invisible, but letters, marks or symbols by their category, as Unicode has them (Default_Ignorable_Code_Point and
#: the blanks of Braille, Hangul and music).
INVISIBLE_OTHERS = {
    0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x1810), 0x2065, 0x2800, 0x3164, *range(0xFE00, 0xFE10),
    0xFFA0, *range(0xFFF0, 0xFFF9), 0x1D159, *range(0xE0000, 0xE1000),
}  # fmt: skip
#: One of each kind that the requirements name, and some more.
SAMPLES = (
    0x9, 0xA, 0x85, 0xAD, 0x34F, 0x61C, 0x115F, 0x1160, 0x180E, 0x200B, 0x200D, 0x200F, 0x2028, 0x202E, 0x2060, 0x2064,
    0x2800, 0x3164, 0xFE00, 0xFE0F, 0xFEFF, 0xFFA0, 0xE0001, 0xE0020, 0xE007F, 0xE0100,
)  # fmt: skip
#: White space that NFKC makes a space.
SPACES = (0xA0, 0x2003, 0x202F, 0x205F, 0x3000)


@cache
def blanks() -> set[int]:
    """Returns the code points that must be listed, by Python's own Unicode database."""
    by_category = {
        n
        for n in range(1, 0x110000)
        if unicodedata.category(chr(n)) in ("Cc", "Cf", "Zs", "Zl", "Zp") and n not in VISIBLE_FORMATS
    }
    return by_category | INVISIBLE_OTHERS


def listed(ranges: str) -> set[int]:
    """Returns the code points of a bracket expression."""
    return {
        n
        for first, last in re.findall("(.)(?:-(.))?", ranges, re.S)
        for n in range(ord(first), ord(last or first) + 1)
    }


def key(text: str) -> str | None:
    """Returns the comparable form of a reference, worked out without the database."""
    invisible = "".join(map(chr, blanks()))
    bare = unicodedata.normalize("NFKC", text).strip(invisible)
    inside = set(bare.replace(" ", "")) & set(invisible)
    return None if not bare or inside or "  " in bare else bare


@pytest.mark.rolled_back
def test_the_list_is_complete(crm: Connection) -> None:
    """The one list has every blank and invisible character, and the invariants' copy is equal."""
    ranges = value(crm, "SELECT crm_private.blank_characters()")
    assert ranges == invariants.BLANKS
    found, wanted = listed(ranges), blanks()
    # U+FFF9 to U+FFFB are format characters; unassigned ones between the listed may be there
    assert wanted - found == set()
    assert {n for n in found - wanted if unicodedata.category(chr(n)) != "Cn"} == set()


LETTERS = st.sampled_from(
    [*"aA1é-/ ", "\u00a0", "\u200b", "\u3000", "\ufeff", "\u3164", "ﬁ", "①", "Å", "\U000e0041"]
)


@pytest.fixture(scope="module")
def compared(shared_crm_url: str) -> Iterator[Callable[[str], tuple[Any, ...]]]:
    """Returns the comparable forms that the database makes of a text, also by the expression for older databases."""
    query = (
        "SELECT crm_private.reference_key(t), crm_private.trimmed(t), crm_private.order_code_key(t),"
        f" {form('order_code_key', 't')} FROM (SELECT %s::text AS t) x"
    )
    with psycopg.connect(shared_crm_url, autocommit=True) as connection:
        yield lambda text: connection.execute(query.encode(), [text]).fetchone() or ()


@given(st.text(LETTERS, max_size=8))
def test_comparable_form(compared: Callable[[str], tuple[Any, ...]], text: str) -> None:
    """The database compares references and order numbers as Python would from the list, for any text."""
    wanted = key(text)
    invisible = "".join(map(chr, blanks()))
    folded = wanted and re.sub("[A-Z]", lambda letter: letter[0].lower(), wanted)
    assert compared(text) == (wanted, text.strip(invisible) or None, folded, folded)


@pytest.mark.rolled_back
def test_no_collation_changes_the_rule(crm: Connection) -> None:
    """References and numbers compare equally under every collation of the server but ICU's, which it may lack; some fold more letters."""
    text = " \u00a0I\u0130-Ä1\u2028 "
    collations = rows(
        crm,
        "SELECT oid::regcollation::text FROM pg_collation WHERE collencoding IN (-1, 6) AND collprovider NOT IN ('d', 'i')",
    )
    assert len(collations) > 2
    for (collation,) in collations:
        query = (
            f"SELECT crm_private.reference_key(%s COLLATE {collation}),"
            f" crm_private.order_code_key(%s COLLATE {collation})"
        )
        assert rows(crm, query, text, text) == [("I\u0130-Ä1", "i\u0130-Ä1")], collation


@pytest.mark.parametrize("function", ["trimmed", "reference_key", "order_code_key"])
@pytest.mark.rolled_back
def test_the_rule_is_inlined(crm: Connection, function: str) -> None:
    """The rule is one expression that PostgreSQL inlines, so that calls and guards have it for nothing."""
    plan = rows(
        crm,
        f"EXPLAIN (VERBOSE) SELECT crm_private.{function}(external_reference) FROM public.payments",
    )
    assert "crm_private." not in "\n".join(line for (line,) in plan)


@pytest.mark.parametrize("code_point", SAMPLES)
def test_an_invisible_character_books_no_second_payment(
    client: CrmClient, order: CrmResult, manager: UUID, code_point: int
) -> None:
    """An invisible character at an end of a reference changes nothing, and inside it is refused where it is named."""
    first = pay(client, order, manager, 10, "INV15")
    for spelling in (f"{chr(code_point)}INV15", f"INV15{chr(code_point)} "):
        again = pay(client, order, manager, 10, spelling)
        assert (again.id, again.duplicate) == (first.id, True)
    for call in (
        lambda text: pay(client, order, manager, 10, text),
        lambda text: client.update_payment_status_safe(
            payment_id=first.id, new_status="completed", user_id=manager, external_reference=text
        ),
    ):
        with pytest.raises(Invalid) as refused:
            call(f"INV{chr(code_point)}15")
        assert refused.value.detail["field"] == "p_external_reference"
        assert refused.value.detail["found"] == f"INV<U+{code_point:04X}>15"


@pytest.mark.parametrize("code_point", SPACES)
def test_kinds_of_spaces_are_one_space(
    client: CrmClient, order: CrmResult, manager: UUID, code_point: int
) -> None:
    """A single space inside is part of a reference, of whatever width; two of them are refused."""
    first = pay(client, order, manager, 10, "Invoice 15")
    assert pay(client, order, manager, 10, f"Invoice{chr(code_point)}15").id == first.id
    with pytest.raises(Invalid):
        pay(client, order, manager, 10, f"Invoice {chr(code_point)}15")


def test_compatible_spellings_are_one_reference(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID
) -> None:
    """Full-width and composed spellings are one reference, stored as the first caller wrote it."""
    first = pay(client, order, manager, 10, "\uff32-1\u00e9")
    assert pay(client, order, manager, 10, "R-1e\u0301").id == first.id
    assert rows(crm, "SELECT external_reference, reference_key FROM public.payments") == [
        ("\uff32-1\u00e9", "R-1\u00e9")
    ]
    with pytest.raises(Invalid) as refused:  # one character, which becomes eighteen
        pay(client, order, manager, 10, "\ufdfa" * 20)
    assert refused.value.detail["accepted"] == "at most 255 characters"


@pytest.mark.parametrize("again", ["a-1", " A-1\u200b", "\uff21-1"])
def test_order_numbers_are_compared_regardless_of_case(
    crm: Connection, client: CrmClient, order: CrmResult, manager: UUID, again: str
) -> None:
    """Two orders never have numbers that a person would read as one."""

    def create(code: str) -> CrmResult:
        return client.create_order_safe(
            customer_id=UUID(order.data["customer_id"]), total_amount=1, currency="EUR", user_id=manager, order_code=code
        )  # fmt: skip

    first = create("A-1")
    assert value(crm, "SELECT order_code_key FROM public.orders WHERE id = %s", first.id) == "a-1"
    with pytest.raises(Conflict) as refused:
        create(again)
    assert (refused.value.detail["rule"], refused.value.detail["id"]) == ("unique_order_code", str(first.id))
    with pytest.raises(Invalid):
        create("A\u200b-2")
    create("\u00c4-1"), create("\u00e4-1")  # only A to Z are folded


def test_a_database_in_another_encoding_is_refused(new_database: Callable[..., str]) -> None:
    """A database not in UTF8 is refused before anything is changed: references could not be compared there."""
    url = new_database()
    with psycopg.connect(url, autocommit=True) as connection:
        utf8 = connection.info.dbname
        name = f"{utf8}_latin1"
        connection.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0".encode())
    with pytest.raises(AdoptionError, match="encoding is LATIN1, expected UTF8"):
        migrate_crm(url=url.replace(utf8, name))
