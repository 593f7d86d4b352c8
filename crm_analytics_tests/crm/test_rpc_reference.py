"""docs/crm-rpc.md: equal to what the catalog says, and its examples can be called."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from crm_analytics.crm import rpc_reference as reference


@pytest.fixture(scope="module")
def crm(new_database: Callable[..., str]) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(new_database("crm"), autocommit=True) as connection:
        yield connection


def test_the_page_is_up_to_date(crm: psycopg.Connection[Any]) -> None:
    """Without it, the reference would tell yesterday's rules. `crm-analytics crm reference` writes it."""
    assert reference.REFERENCE_FILE.read_text(encoding="utf-8") == reference.page(crm)


def test_every_function_says_its_rules_and_errors(crm: psycopg.Connection[Any]) -> None:
    """Without it, a new RPC could come without a word about what it refuses."""
    for rpc in reference.rpcs(crm):
        lines = rpc.comment.split("\n")
        assert len(lines) >= 3, rpc.name
        assert any(line.startswith("Rules:") for line in lines), rpc.name
        assert any(line.startswith("Errors:") for line in lines), rpc.name


def test_every_example_can_be_called(crm: psycopg.Connection[Any]) -> None:
    """Without it, an example could name an argument or a type that does not exist."""
    for rpc in reference.rpcs(crm):
        required = {argument.name for argument in rpc.arguments if not argument.optional}
        assert required <= set(rpc.example()), rpc.name
        with crm.transaction(force_rollback=True):
            try:
                crm.execute(rpc.example_sql().encode())
            except psycopg.Error as error:
                # the example's ids are nobody's: refused for that, and for nothing else
                assert error.sqlstate in ("42501", "PT404"), f"{rpc.name}: {error}"
        body = rpc.example_request().split("\n\n", 1)[1]
        assert json.loads(body) == rpc.example()
