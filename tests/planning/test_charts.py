"""What is drawn: what the labels say, and that none is cut, or covers another one or a mark."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from pixtral_sky.deploy.prices import Prices
from pixtral_sky.planning import charts, plan, policies
from tests.planning.test_plan import ASK, machine, offer

SMALL, LARGE = machine("L4", 2, 0.5, 1, "fp8"), machine("RTX6000-Ada", 8, 5, 20)


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that were to be saved."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure))
    return figures


def shown(figure: Figure) -> dict[str, Bbox]:
    """All texts that are drawn, with their places. An axis has some more, for numbers beyond its end."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # its trials draw, too
    places: dict[str, Bbox] = {}
    draw = Text.draw

    def noted(text: Text, renderer: object) -> None:
        if text.get_visible() and text.get_text().strip():
            places[f"{len(places)} {text.get_text()}"] = text.get_window_extent(renderer)
        draw(text, renderer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", noted)
        figure.draw_without_rendering()
    return places


def check_clear(figure: Figure) -> list[str]:
    """All texts are within the picture, and none covers another. Returns them."""
    places = shown(figure)
    width, height = figure.canvas.get_width_height()
    for text, place in places.items():
        assert place.x0 >= 0, text
        assert place.y0 >= 0, text
        assert place.x1 <= width, text
        assert place.y1 <= height, text
    for (text, place), (other, there) in itertools.combinations(places.items(), 2):
        assert not Bbox.intersection(place.padded(-1), there.padded(-1)), (text, other)
    return [text.partition(" ")[2] for text in places]


def draw(offers, spot=False, ask=ASK, machines=(SMALL, LARGE)) -> None:
    found = plan.plan(ask, machines, [], offers, spot)
    days = {"aws": "2026-11-20", "gcp": "2026-11-27"}
    charts.draw_plan(Path("x.png"), found, Prices(tuple(offers), {}, days))


def test_a_region_and_a_price_beside_each_machine(drawn):
    draw(
        [offer("L4", 2, 2.0, 0.5, region="us-east-1"), offer("RTX6000-Ada", 8, 12.5, cloud="gcp", region="x")]
    )
    texts = check_clear(drawn[0])
    assert "L4:2  fp8  aws  us-east-1  $2.00/h" in texts
    assert "spot  us-east-1  $0.50/h" in texts
    assert "RTX6000-Ada:8  bf16  gcp  x  $12.50/h" in texts
    assert texts.count("no spot price") == 1
    assert any("SkyPilot's catalogs of 2026-11-20 to 2026-11-27" in each for each in texts)
    # $2 for 0.5 to 1 requests/s of 2 pictures
    assert {"$0.56", "$0.14"} <= {*texts}


def test_where_none_has_a_spot_price(drawn):
    draw([offer("L4", 2, 2.0)])
    texts = check_clear(drawn[0])
    assert "no spot price" not in texts
    assert any("none has a spot price here" in each for each in texts)


def test_many_rows_with_long_names(drawn):
    clouds = ["aws", "gcp", "primeintellect", "paperspace", "lambda", "nebius", "vast"]
    region = "a region with a very long name, in the south-west, of a continent"
    offers = [
        offer(gpu, count, price + row / 100, price / 3 if row % 2 else None, cloud=cloud, region=region)
        for row, cloud in enumerate(clouds)
        for gpu, count, price in (("L4", 2, 2.0), ("RTX6000-Ada", 8, 1234.5))
    ]
    draw(offers)
    texts = check_clear(drawn[0])
    rows = [each for each in texts if region in each and not each.startswith("spot")]
    assert len(rows) == charts.MOST


def result(cost: float, too_few: int, **more) -> policies.Result:
    policy = policies.Policy(1, 1 if more.get("cheapest") else 12, 0.123, 120, 1200)
    return policies.Result(policy, cost, cost * 2.5, 10_000, too_few, 0, 3, **more)


@pytest.mark.parametrize(("rows", "goal"), [(1, 0.01), (12, 0.03), (12, 1.0)])
def test_a_number_does_not_cover_the_goal(drawn, rows, goal):
    results = [result(10 + 10 * row, 300 - 25 * row, own=row == 1, cheapest=row == 11) for row in range(rows)]
    terms = policies.Terms(600, 2.0, goal, 2.5)
    charts.draw_capacity(Path("x.png"), results, terms, "a trace with a name that is long/" * 4)
    check_clear(drawn[0])
    right = drawn[0].axes[1]
    dashed = [line for line in right.lines if line.get_linestyle() == "--"]
    assert len(dashed) == (goal < 1)
    for line in dashed:
        x = right.transData.transform((line.get_xdata()[0], 0))[0]
        for each in right.texts:
            place = each.get_window_extent()
            assert not place.x0 < x < place.x1, each.get_text()
