"""The registry: every connector by its name, in the order in which people are told about them."""

from __future__ import annotations

from crm_analytics.analytics.connectors.connector import Connector
from crm_analytics.analytics.connectors.workiz import WORKIZ_JOBS, WORKIZ_LEADS

_ALL: tuple[Connector, ...] = (WORKIZ_JOBS, WORKIZ_LEADS)
CONNECTORS: dict[str, Connector] = {connector.name: connector for connector in _ALL}
