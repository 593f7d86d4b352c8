"""The plot of months in the metadata of analytics/monthly_metrics."""

from __future__ import annotations

import base64
from datetime import date
from decimal import Decimal
from xml.etree import ElementTree

import psycopg
import pytest

from crm_analytics.orchestration.analytics.months_plot import BLUE, BOTTOM, TOP, Month, months_plot, svg

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("revenue", ["0", "0.01", "41250.50", "-800", "123456789"])
def test_everything_is_inside_the_drawing_area(revenue: str) -> None:
    """Bars, points and marks fit between the axes' ends whatever the amounts: a negative month, an empty one, a huge one."""
    months = [
        Month(date(2026, 1, 1), Decimal(revenue), 7, Decimal(900)),
        Month(date(2026, 2, 1), Decimal(0), 0, None),
    ]
    image = ElementTree.fromstring(svg(months))
    bars = [e for e in image.iter(f"{SVG}rect") if e.get("fill") == BLUE and e.get("x") != "300"]
    points = list(image.iter(f"{SVG}circle"))
    heights = [float(bar.get("height", "")) for bar in bars]
    assert len(bars) == len(points) == 2
    assert heights[1] == 0 and (heights[0] > 0) == (revenue not in ("0", "0.01"))
    edges = [float(bar.get("y", "")) for bar in bars]
    edges += [edge + height for edge, height in zip(edges, heights, strict=True)]
    edges += [float(point.get("cy", "")) for point in points]
    edges += [float(line.get("y1", "")) for line in image.iter(f"{SVG}line") if line.get("y1") != "17.0"]
    assert all(TOP - 0.1 <= edge <= BOTTOM + 0.1 for edge in edges)
    texts = [text.text for text in image.iter(f"{SVG}text")]
    assert {"Jan 26", "Feb 26", "0", "target, $"} <= set(texts)
    assert "target, $" not in svg(months[1:])


def test_newest_months_are_plotted_with_their_targets(
    analytics: psycopg.Connection[tuple[object, ...]],
) -> None:
    """The UI shows the last two years, with the business's own target of each month."""
    assert "no metrics yet" in months_plot(analytics).value
    analytics.execute(
        "INSERT INTO analytics.monthly_metrics (month, source, segment, jobs, repairs)"
        " SELECT month, 'Google', 'COD', 1, 1 FROM generate_series(date '2024-01-01', '2026-03-01', interval '1 month') month"
    )
    analytics.execute(
        "INSERT INTO analytics.targets (month, source, segment, target_revenue40) VALUES"
        " ('2026-03-01', 'ALL', 'ALL', 500), ('2026-02-01', 'Google', 'ALL', 500), ('2023-02-01', 'ALL', 'ALL', 500)"
    )
    text = months_plot(analytics).value
    assert text.startswith("![revenue40 and repairs by month](data:image/svg+xml;base64,")
    image = base64.b64decode(text.split("base64,")[1][:-1]).decode()
    assert "Apr 24" in image and "Mar 26" in image and "Mar 24" not in image
    assert image.count("<circle") == 24 and image.count('stroke="#222222"') == 2, (
        "one month has a target, and the legend"
    )
