"""The trade-off curve as one number, a table and a chart."""

import pytest

from rahf.cli import main
from rahf.report.tradeoff import Point, change_at, tradeoff_figure, tradeoff_table


def points(*pairs):
    return [Point(cost, change, change - 0.1, change + 0.1, "x") for cost, change in pairs]


@pytest.mark.parametrize(
    ("given", "cost", "change"),
    [
        (points((0.1, 0.4), (0.3, 0.8)), 0.1, 0.4),
        (points((0.3, 0.8), (0.1, 0.4)), 0.2, 0.6),  # between two strengths, in any order
        (points((0.4, 0.8)), 0.1, 0.2),  # from the base at the origin
        (points((0.1, 0.5), (0.3, 0.2)), 0.3, 0.5),  # the best that is had for so much
        (points((-0.1, 0.3), (0.2, 0.5)), 0.1, 0.4),  # a gain of ability is no cost
        (points((0.1, 0.4)), 0.2, None),  # more strength might have bought more
        (points((0.1, -0.4), (0.3, -0.8)), 0.2, 0.0),  # no change is had for nothing
    ],
)
def test_change_is_read_off_at_an_equal_cost(given, cost, change):
    assert change_at(given, cost) == (change if change is None else pytest.approx(change))


def test_the_table_and_the_chart_hold_every_method(tmp_path):
    methods = {"DPO": points((0.1, 0.4)), "RAHF": points((0.05, 0.5), (0.2, 0.7))}
    table = tradeoff_table(methods, (0.05, 0.15))
    assert "| DPO    | 1         | +0.200                   | -" in table
    assert "| RAHF   | 2         | +0.500                   | +0.633" in table
    tradeoff_figure(methods, tmp_path / "tradeoff.png")
    assert (tmp_path / "tradeoff.png").stat().st_size > 5000


def test_the_command_reads_points_of_any_kind_of_file(tmp_path, capsys):
    path = tmp_path / "points.csv"
    path.write_text("method,strength,cost,change\nDPO,1,0.1,0.4\nDPO,2,0.2,0.5\nRAHF,1,0.05,0.5\n")
    assert (
        main(["tradeoff", str(path), "--costs", "0.05", "--figure", str(tmp_path / "a.png")]) == 0
    )
    assert "| DPO    | 2         | +0.200 " in capsys.readouterr().out
    assert (tmp_path / "a.png").exists()
    path.write_text("method,cost,change\nDPO,0.1,0.4\n")
    assert main(["tradeoff", str(path)]) == 2
    assert "line 2: no strength; has method" in capsys.readouterr().err
