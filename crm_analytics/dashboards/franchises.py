"""Grafana's provisioning for franchises: a data source for each, and dashboards on which one of several is chosen.

Both are made of the committed files, so that there is one place for every panel.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from psycopg.conninfo import conninfo_to_dict

from crm_analytics.core.settings import PROJECT_DIR, Settings
from crm_analytics.dashboards.panels import ANALYTICS, DATASOURCE_TYPE

DATA_SOURCES = PROJECT_DIR / "grafana" / "provisioning" / "datasources" / "databases.yaml"
DASHBOARDS = PROJECT_DIR / "grafana" / "dashboards"
#: The dashboards' variable that chooses the data source, and so the franchise.
VARIABLE = "franchise"


def provisioning(franchises: Sequence[tuple[Settings, str]]) -> Iterator[tuple[Path, str]]:
    """Yields Grafana's files for these franchises, below its folder; they have no secret.

    With a single franchise the dashboards are the committed ones.

    Args:
        franchises: the settings of each, and the address of its database.
    """
    yield Path("provisioning/datasources/databases.yaml"), _data_sources(franchises)
    several = len(franchises) > 1
    for path in sorted(DASHBOARDS.glob("*.json")):
        text = path.read_text(encoding="utf-8")
        yield Path("dashboards") / path.name, _with_choice(text) if several else text


def _data_sources(franchises: Sequence[tuple[Settings, str]]) -> str:
    committed = yaml.safe_load(DATA_SOURCES.read_text(encoding="utf-8"))
    analytics, *others = committed["datasources"]
    sources = [
        _data_source(analytics, config, address, several=len(franchises) > 1, is_default=number == 0)
        for number, (config, address) in enumerate(franchises)
    ]
    told = "# Written by `crm-analytics franchise add`, which overwrites it. Grafana's environment has the passwords.\n"
    return told + yaml.safe_dump({**committed, "datasources": [*sources, *others]}, sort_keys=False)


def _data_source(
    committed: dict[str, Any], config: Settings, address: str, *, several: bool, is_default: bool
) -> dict[str, Any]:
    parts = conninfo_to_dict(address)
    named = {
        # the variable lists the data sources by the beginning of their names
        "name": f"{committed['name']} {config.franchise}",
        "uid": f"{committed['uid']}-{config.franchise.replace('_', '-')}",
    }
    return {
        **committed,
        **(named if several else {}),
        "isDefault": is_default,
        "url": f"{parts.get('host', 'localhost')}:{parts.get('port', 5432)}",
        "user": config.grafana_reader,
        "jsonData": {**committed["jsonData"], "database": parts["dbname"]},
        "secureJsonData": {"password": f"${config.franchise.upper()}_GRAFANA_READER_PASSWORD"},
    }


def _with_choice(text: str) -> str:
    """Returns a dashboard that asks the chosen franchise's database, and passes the choice on to Explain."""
    text = text.replace(f'"uid": "{ANALYTICS.uid}"', f'"uid": "${{{VARIABLE}}}"')
    text = text.replace("/d/crm-analytics-explain?", f"/d/crm-analytics-explain?${{{VARIABLE}:queryparam}}&")
    board = json.loads(text)
    if f"${{{VARIABLE}}}" in text:
        board["templating"]["list"].insert(
            0,
            {
                "type": "datasource",
                "name": VARIABLE,
                "label": "Franchise",
                "query": DATASOURCE_TYPE,
                "regex": "/^Analytics /",
                "refresh": 1,
                "hide": 0,
                "includeAll": False,
                "multi": False,
                "options": [],
                "current": {},
            },
        )
    return json.dumps(board, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
