"""The options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from crm_analytics.core.settings import Settings


def of_one_business(command: Callable[..., Any]) -> Callable[..., Any]:
    """Passes a command the settings of one business as `config`: those of the franchise that --franchise names."""
    return _with_settings(command, one=True)


def of_businesses(command: Callable[..., Any]) -> Callable[..., Any]:
    """Passes a command the settings as `config`: of the franchise that --franchise names, or those common to all."""
    return _with_settings(command, one=False)


def _with_settings(command: Callable[..., Any], *, one: bool) -> Callable[..., Any]:
    told = "Franchise whose data this is about" if one else "Only this franchise"

    @click.option(
        "--franchise", envvar="FRANCHISE", metavar="NAME", help=f"{told}; needed if FRANCHISES names several."
    )
    @wraps(command)
    def run(*arguments: Any, franchise: str | None, **options: Any) -> Any:
        return command(*arguments, config=chosen(franchise, one=one), **options)

    return run


def chosen(franchise: str | None, *, one: bool) -> Settings:
    """Returns the settings of a franchise, or the common ones if none is named.

    Raises:
        click.ClickException: if there is no such franchise, or one of several must be named.
    """
    from crm_analytics.core.settings import NoFranchise, settings

    config = settings()
    names = config.franchise_names
    if franchise:
        if franchise not in names:
            known = f"FRANCHISES names {', '.join(names)}" if names else "FRANCHISES is not set"
            raise click.ClickException(f"there is no franchise {franchise}: {known}")
        return config.of(franchise)
    if one and len(names) == 1:
        return config.of(names[0])
    if one and names:
        raise NoFranchise(f"add --franchise NAME, or set FRANCHISE: one of {', '.join(names)}")
    return config
