"""The generated RPC reference and typed client equal what the catalog says, and the reference's examples can be called."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from crm_analytics.crm import generate


@pytest.fixture(scope="module")
def crm(new_database: Callable[..., str]) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(new_database("crm"), autocommit=True) as connection:
        yield connection


def test_the_reference_page_is_up_to_date(crm: psycopg.Connection[Any]) -> None:
    """docs/crm-rpc.md is what `crm-analytics crm reference` writes; otherwise it would describe yesterday's rules."""
    assert generate.REFERENCE_FILE.read_text(encoding="utf-8") == generate.page(crm)


def test_the_typed_client_is_up_to_date(crm: psycopg.Connection[Any]) -> None:
    """rpc_methods.py is what `crm-analytics crm reference` writes; otherwise a new argument could not be passed."""
    assert generate.CLIENT_FILE.read_text(encoding="utf-8") == generate.client(crm)


def test_only_known_arguments_may_be_null(crm: psycopg.Connection[Any]) -> None:
    """Every argument listed as nullable exists and has no default; a misspelled one would be ignored silently."""
    found = {
        (rpc.name, a.name)
        for rpc in generate.rpcs(crm)
        for a in rpc.arguments
        if a.nullable and not a.optional
    }
    assert found == generate._NULLABLE


def test_every_comment_gives_rules_and_errors(crm: psycopg.Connection[Any]) -> None:
    """Every RPC's comment has a summary, rules and errors; a new RPC must say what it refuses."""
    for rpc in generate.rpcs(crm):
        lines = rpc.comment.split("\n")
        assert len(lines) >= 3, rpc.name
        assert any(line.startswith("Rules:") for line in lines), rpc.name
        assert any(line.startswith("Errors:") for line in lines), rpc.name


def test_every_example_can_be_called(crm: psycopg.Connection[Any]) -> None:
    """Every example runs up to the check of its invented ids; it names no argument or type that does not exist."""
    for rpc in generate.rpcs(crm):
        required = {argument.name for argument in rpc.arguments if not argument.optional}
        assert required <= set(rpc.example()), rpc.name
        with crm.transaction(force_rollback=True):
            try:
                crm.execute(rpc.example_sql().encode())
            except psycopg.Error as error:
                assert error.sqlstate in ("42501", "PT404"), f"{rpc.name}: {error}"
        body = rpc.example_request().split("\n\n", 1)[1]
        assert json.loads(body) == rpc.example()
