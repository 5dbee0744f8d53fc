import json
import math

import pytest

from empathy_jax.main import FLAG_ERRORS
from launch.points import Halving, Space

# ml_collections reads config files so.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def _space(**changes) -> Space:
    values = {"fixed": {}, "grid": [], "random": [], "draws": 0, "seed": 0, **changes}
    return Space(config="configs/sft.py:tiny", **values)


def test_a_grid_is_every_combination_once():
    grid = ["optimizer.schedule=constant,cosine", "config.seed=1,2,1"]
    points = _space(grid=grid, fixed={"steps": 3, "data.chains": "a b;$(x)"}).points(None)
    assert [tuple(point.values.values()) for point in points] == [
        *(("constant", "1"), ("constant", "2"), ("cosine", "1"), ("cosine", "2")),
    ]
    assert len({point.name for point in points}) == 4
    assert points[0].phases == ("sft",)
    assert points[0].flags == (
        "--config=configs/sft.py:tiny",
        "--config.steps=3",
        "--config.data.chains=a b;$(x)",
        "--config.optimizer.schedule=constant",
        "--config.seed=1",
    )


def test_equal_values_are_one_point_whatever_their_spelling_and_order():
    names = {
        _space(grid=grid).points(None)[0].name
        for grid in (
            ["optimizer.learning_rate=1e-4", "seed=1"],
            ["seed=1", "optimizer.learning_rate=0.0001"],
        )
    }
    assert len(names) == 1
    fixed = _space(grid=["seed=1"], fixed={"optimizer.learning_rate": 1e-4}).points(None)[0]
    assert fixed.name in names
    assert _space(grid=["seed=2"]).points(None)[0].name not in names


def test_commas_in_brackets_and_quotes_part_no_values():
    point, other = _space(grid=["mesh.rules=(('a','b'),),()"]).points(None)
    assert point.values == {"mesh.rules": "(('a','b'),)"} and other.values == {"mesh.rules": "()"}


def test_draws_lie_in_their_range_and_the_first_ones_stay():
    random = [
        "optimizer.learning_rate=log:1e-5,1e-1",
        "optimizer.weight_decay=uniform:0,2",
        "batch_size=int:2,4",
        "optimizer.schedule=constant,cosine",
    ]
    points = _space(random=random, draws=60).points(None)
    rates = [math.log10(float(point.values["optimizer.learning_rate"])) for point in points]
    assert min(rates) > -5 and max(rates) < -1 and abs(sum(rates) / 60 + 3) < 0.5
    decays = [float(point.values["optimizer.weight_decay"]) for point in points]
    assert 0 < min(decays) < 0.3 and 1.7 < max(decays) < 2
    assert {point.values["batch_size"] for point in points} == {"2", "3", "4"}
    assert {point.values["optimizer.schedule"] for point in points} == {"constant", "cosine"}
    assert _space(random=random, draws=5).points(None) == points[:5]
    assert _space(random=random, draws=5, seed=1).points(None) != points[:5]
    both = _space(random=["seed=int:1,1000"], draws=2, grid=["steps=1,2,3"]).points(None)
    assert len(both) == 6


def test_halving_keeps_a_share_and_gives_it_the_next_budget():
    halving = Halving.parse("steps=10,30,90", 1 / 3)
    space = _space(grid=["seed=" + ",".join(map(str, range(9)))])
    points = space.points(halving)
    assert {point.values["steps"] for point in points} == {"10"}
    assert [halving.count(n) for n in (9, 10, 3, 1)] == [3, 4, 1, 1]
    above = space.with_budget(points[:3], halving.next())
    assert [point.values for point in above] == [{"seed": str(i), "steps": "30"} for i in range(3)]
    assert not {point.name for point in above} & {point.name for point in points}
    assert halving.next().next().next() is None and Halving.parse("", 1 / 3) is None


def test_a_point_is_finished_when_every_phase_is(tmp_path):
    (point,) = _space(grid=["seed=1"], fixed={"phases": ("sft", "export")}).points(None)
    assert point.phases == ("sft", "export")
    for phase in point.phases:
        assert not point.is_finished(tmp_path)
        (tmp_path / point.name / phase).mkdir(parents=True)
        (tmp_path / point.name / phase / "summary.json").write_text("{}")
    assert point.is_finished(tmp_path)
    point.write(tmp_path)
    written = json.loads((tmp_path / point.name / "point.json").read_text())
    assert written["values"] == {"seed": "1"}


@pytest.mark.parametrize(
    "space, error",
    [
        ({"grid": ["optimizer.learning_rat=1"]}, 'Did you mean "learning_rate"'),
        ({"grid": ["steps=abc"]}, "flag --config.steps=abc"),
        ({"grid": ["rl.overlong_filter=maybe"]}, "flag --config.rl.overlong_filter=maybe"),
        ({"grid": ["steps"]}, "--grid is 'steps'; it must be FIELD=V1,V2"),
        ({"grid": ["steps=1,,2"]}, "with no empty value"),
        ({"grid": ["steps=1"], "fixed": {"steps": 2}}, "config.steps is given twice"),
        ({"grid": ["steps=1", "steps=2"]}, "config.steps is given twice"),
        ({}, "nothing to sweep; give --grid"),
        ({"random": ["seed=int:1,9"]}, "--points is 0 and --random is given 1 times"),
        ({"grid": ["seed=1"], "draws": 3}, "--points is 3 and --random is given 0 times"),
        ({"random": ["seed=lin:1,9"], "draws": 1}, "the scale 'lin', which is not one of log,"),
        ({"random": ["optimizer.eps=log:0,1"], "draws": 1}, "log:LOW,HIGH with 0 < LOW < HIGH"),
        ({"random": ["seed=int:9,1"], "draws": 1}, "seed=int:9,1 is no range; it must be int:LOW"),
        ({"random": ["seed=int:1,2,3"], "draws": 1}, "is no range"),
        ({"grid": ["phase=sfft"]}, "config.phase 'sfft' is not one of corpus,"),
    ],
)
def test_what_cannot_be_swept_is_refused(space, error):
    with pytest.raises(FLAG_ERRORS) as raised:
        _space(**space).points(None)
    assert error in str(raised.value)


@pytest.mark.parametrize(
    "text, keep, error",
    [
        ("steps=10", 0.5, "two whole numbers or more"),
        ("steps=10,x", 0.5, "two whole numbers or more"),
        ("steps=30,10", 0.5, "its budgets must grow"),
        ("steps=10,10", 0.5, "its budgets must grow"),
        ("steps=10,30", 1.0, "--keep is 1.0; it must be above 0 and below 1"),
    ],
)
def test_budgets_that_do_not_grow_are_refused(text, keep, error):
    with pytest.raises(ValueError, match=error):
        Halving.parse(text, keep)
