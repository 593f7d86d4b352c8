"""The plot of months in the metadata of analytics/monthly_metrics."""

from __future__ import annotations

import base64
import subprocess
import sys
from datetime import date
from decimal import Decimal
from itertools import pairwise
from xml.etree import ElementTree

import psycopg
import pytest

from crm_analytics.orchestration.analytics.months_plot import Month, data_uri, months_plot

SVG = "{http://www.w3.org/2000/svg}"


def _image(text: str) -> ElementTree.Element:
    """Returns the image of a data URI."""
    return ElementTree.fromstring(base64.b64decode(text.partition("base64,")[2].rstrip(")")))


def _texts(image: ElementTree.Element, axis: str) -> dict[str, float]:
    """Returns an axis's labels and their places: pixels from above, for x from the left."""
    axis_node = next(g for g in image.iter(f"{SVG}g") if g.get("class", "").startswith(f"axis {axis}"))
    place = "x" if axis == "x" else "y"
    return {text.text or "": float(text.get(place, "")) for text in axis_node.iter(f"{SVG}text")}


def _dots(image: ElementTree.Element) -> list[list[float]]:
    """Returns the heights (pixels from above) of the dots of revenue40, targets and repairs."""
    series = [g for g in image.iter(f"{SVG}g") if g.get("class", "").startswith("series")]
    heights = [[float(dot.get("cy", "")) for dot in g.iter(f"{SVG}circle")] for g in series]
    return [found for found in heights if found]


def test_values_are_at_the_height_of_their_labels() -> None:
    """Revenue40 and targets are read on the left axis and repairs on the right one; zero is at one height on both."""
    months = [
        Month(date(2026, 1, 1), Decimal("100000"), 30, None),
        Month(date(2026, 2, 1), Decimal("-20000.00"), 7, Decimal("80000")),
        Month(date(2026, 3, 1), Decimal("0"), 0, None),
    ]
    image = _image(data_uri(months))
    left, right = _texts(image, "y "), _texts(image, "y2")
    assert list(left) == ["-20,000", "0", "20,000", "40,000", "60,000", "80,000", "100,000"]
    assert list(right) == ["-6", "0", "6", "12", "18", "24", "30"] and left["0"] == right["0"]
    below = left["0"] - _dots(image)[0][2]  # of a label's foot, below the middle of its text
    revenue, targets, repairs = ([height + below for height in heights] for heights in _dots(image))
    assert revenue == pytest.approx([left["100,000"], left["-20,000"], left["0"]])
    assert targets == pytest.approx([left["80,000"]])
    assert repairs[::2] == pytest.approx([right["30"], right["0"]]) and right["12"] < repairs[1] < right["6"]
    assert list(_texts(image, "x")) == ["Jan 26", "Feb 26", "Mar 26"]
    words = {text.text for text in image.iter(f"{SVG}text")}
    assert {"revenue40, $", "target, $", "repairs (right axis)"} <= words


@pytest.mark.parametrize("revenue", ["0", "0.01", "41250.50", "-800", "123456789"])
@pytest.mark.parametrize("count", [1, 2])
def test_everything_is_inside_the_axes(revenue: str, count: int) -> None:
    """Every dot is between the ends of the axes whatever the amounts, and the labels are different whole numbers."""
    image = _image(data_uri([Month(date(2026, 1, 1), Decimal(revenue), 7, Decimal(900))] * count))
    for axis in ("y ", "y2"):
        labels = [int(label.replace(",", "")) for label in _texts(image, axis)]
        assert len(labels) >= 6 and len({b - a for a, b in pairwise(labels)}) == 1
    heights = list(_texts(image, "y ").values())
    dots = [dot for dots in _dots(image) for dot in dots]
    assert len(dots) == 3 * count and min(heights) - 10 <= min(dots) and max(dots) <= max(heights)


def test_image_needs_nothing_else() -> None:
    """The image has no script and names no other place: a browser loads nothing for an image of a data URI."""
    uri = data_uri([Month(date(2026, 1, 1), Decimal(5), 7, Decimal(900))])
    assert uri.startswith("data:image/svg+xml;")
    image = _image(uri)
    assert not [node.tag for node in image.iter() if node.tag.endswith(("script", "image", "use", "}a"))]
    assert not [name for node in image.iter() for name in node.attrib if name.endswith(("href", "src"))]
    written = base64.b64decode(uri.partition("base64,")[2]).decode()
    assert "xml-stylesheet" not in written and "url(" not in written and "@import" not in written


def test_plotting_library_loads_only_for_a_plot() -> None:
    """Code server, daemon and runs without metrics don't import what draws the plot."""
    code = "import sys, crm_analytics.definitions; print({'pygal', 'matplotlib'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


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
    assert text.startswith("![revenue40 and repairs by month](data:image/svg+xml;") and text.endswith(")")
    image = _image(text)
    labels = list(_texts(image, "x"))
    assert labels[0] == "Apr 24" and labels[-1] == "Mar 26"
    assert [len(dots) for dots in _dots(image)] == [24, 1, 24]
