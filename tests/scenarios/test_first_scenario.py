"""A first scenario: the template, what is odd in it and in others, and pictures."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import scenarios
from scenarios.__main__ import main
from scenarios.generate import generate
from scenarios.oddities import checked, oddities, template

pytest.importorskip("matplotlib")

from scenarios.picture import MAX_ENTITIES, picture

ALL = [name for group in scenarios.GROUPS for name in scenarios.names(group)]
SVG = "{http://www.w3.org/2000/svg}"


# --- a first scenario -------------------------------------------------------------------------------------------------


def test_the_template_is_valid_and_says_what_to_replace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "mine", "--out", str(tmp_path)]) == 0
    path = str(tmp_path / "mine.yaml")
    assert capsys.readouterr().out == f"{path}\n"
    assert main(["check", path]) == 0
    ok, *odd = capsys.readouterr().out.splitlines()
    assert ok == f"{path}: ok (mine: 7 assets, 4 identities, 5 stages)"
    fields = [re.fullmatch(rf"{re.escape(path)}:\d+: (\w+): .*; replace .*", line) for line in odd]
    assert [m and m[1] for m in fields] == ["title", "description", "assets", "identities", "stages", "benign"]
    # What it has beside a note is a field that a file may have, and every section of a file is in it.
    assert set(scenarios.load(path).model_dump(exclude_defaults=True)) == {
        *("format", "id", "title", "description", "horizon", "noise_rate"),
        *("assets", "identities", "stages", "benign", "queues"),
    }
    with pytest.raises(SystemExit):
        main(["new", "mine", "--out", str(tmp_path)])
    assert "exists; add --force to replace it" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "a/b", "..", "no", "12", "a" * 65, "x\n", "é"])
def test_an_id_that_is_none_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["new", name, "--out", str(tmp_path)])
    assert caught.value.code == 2 and "is no id; give" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_file_that_lacks_fields_is_told_of_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text("format: 1\nid: a\nstages: [{id: b}]\n")
    assert main(["check", str(tmp_path / "a.yaml"), "insider_repo_pivot_hardened"]) == 1
    told = capsys.readouterr()
    assert (
        told.out
        == "insider_repo_pivot_hardened: ok (insider_repo_pivot_hardened: 12 assets, 8 identities, 10 stages)\n"
    )
    lines = told.err.splitlines()
    for field in ("title", "horizon", "noise_rate", "assets", "stages[0].name (b)", "stages[0].dwell (b)"):
        assert any(f": {field}: is missing; add `" in line for line in lines), field


# --- what is odd ------------------------------------------------------------------------------------------------------


def changed(**fields: Any) -> scenarios.Scenario:
    """The template with fields replaced, of all stages where they are a stage's."""
    data = scenarios.loads(template()).model_dump()
    own = {k: v for k, v in fields.items() if k in data}
    data |= own | {
        "stages": own.get("stages", [x | {k: v for k, v in fields.items() if k in x} for x in data["stages"]])
    }
    return scenarios.Scenario.model_validate(data)


def told(s: scenarios.Scenario) -> list[str]:
    paths = [(p.loc, p.message) for p in oddities(s) if "template" not in p.message]
    return [f"{'.'.join(map(str, loc))}: {message}" for loc, message in paths]


STAGES = scenarios.loads(template()).model_dump()["stages"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"description": ""}, "description: is missing; say in a few sentences"),
        ({"horizon": 6}, "horizon: is over before the attack can be: its shortest way takes 8 ticks at least; give 32"),
        ({"horizon": 12}, "horizon: is over before most attacks are: the shortest way takes 15.5 ticks (7.75 hours)"),
        ({"horizon": 4000}, "horizon: is 258 times what the shortest way takes (15.5 ticks, 7.75 hours); give less"),
        ({"asset": "proxy", "identity": "clerk", "compromises_identity": False, "compromises_asset": False},
         "stages: compromise nothing before the loss, so that no investigation can find the attack; add"),
        ({"identities": [{"id": x, "role": "user", "privilege": 0.5} for x in ("clerk", "helpdesk", "svc-backup")]},
         "identities: all have the privilege 0.5, so that it costs the same whichever is revoked; give them"),
        ({"identities": [{"id": x, "role": "user", "privilege": 0.5} for x in ("clerk", "helpdesk")], "benign": []},
         "identities: are all touched by the attack, so that whatever is revoked was worth it; add some"),
        ({"stages": [*STAGES[:4], STAGES[4] | {"prerequisites": ["credentials"]}]}, "stages.3: leads nowhere: no"),
        ({"stages": [STAGES[0] | {"success": 0.0}, *STAGES[1:]]}, "stages.0.success: is 0, so that the stage never"),
        ({"success": 0.3}, "stages: succeed one after the other in 0.8% of attacks at the first try"),
        ({"detection": 0.02}, "stages: raise 0.16 alerts in all on the shortest way, so that nobody can see"),
        ({"noise_rate": 0.0, "benign": [], "queues": []}, "noise_rate: is 0 and there is no benign activity, so"),
        ({"noise_rate": 0.01, "benign": []}, "noise_rate: and the rates of benign leave 96% of the alerts to the"),
        ({"noise_rate": 0.9, "detection": 0.03}, "noise_rate: and the rates of benign leave 2% of the alerts"),
        ({"benign": []}, "benign: is missing, so that nothing but the attack raises alerts again and again"),
    ],
)  # fmt: skip
def test_what_is_odd_is_told_with_a_remedy(fields: dict[str, Any], said: str) -> None:
    found = told(changed(**fields))
    assert any(line.startswith(said) for line in found), found
    assert all("; " in line and "\n" not in line for line in found)


def test_where_nothing_is_odd_nothing_is_told() -> None:
    assert told(changed()) == []
    assert [name for name in scenarios.names("hardened") if checked(name)[1]] == []
    assert [seed for seed in range(20) if told(generate(seed, 20))] == []


def test_the_shortest_way_of_a_wide_attack_is_found_in_time() -> None:
    first = [STAGES[0] | {"id": f"s{i}", "dwell": (1 + i % 7, 9)} for i in range(120)]
    second = [STAGES[2] | {"id": f"t{i}", "any_prerequisites": [f"s{j}" for j in range(i, 120)]} for i in range(120)]
    last = [STAGES[4] | {"prerequisites": ["t0"], "any_prerequisites": [f"t{j}" for j in range(1, 120)]}]
    assert len(told(changed(stages=first + second + last, horizon=40))) == 0


# --- pictures ---------------------------------------------------------------------------------------------------------


def texts(svg: str) -> list[str]:
    return ["".join(node.itertext()) for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("name", ["insider_repo_pivot", "supply_chain_token_drift_hardened"])
def test_a_picture_shows_every_stage_and_entity(name: str) -> None:
    s = scenarios.load(name)
    svg = picture(s)
    assert svg == picture(s)
    shown = texts(svg)
    assert shown[0] == s.title
    assert sorted(x for x in shown if re.fullmatch(r"\d+ \S+", x)) == sorted(
        f"{i} {x.id}" for i, x in enumerate(s.stages, 1)
    )
    for entity in (*s.assets, *s.identities):
        assert sum(x.startswith(f"{entity.id} ") and str(getattr(entity, "criticality", "")) in x for x in shown) == 1
    # Of each arrow the line and the head.
    assert svg.count("stroke-dasharray") == 2 * sum(len(x.any_prerequisites) for x in s.stages)


def test_boxes_do_not_lie_on_each_other_and_lines_go_round_them() -> None:
    from scenarios.picture import HIGH, WIDE, _layout

    for s in (scenarios.load("federated_identity_takeover_hardened"), generate(3, 1000)):
        drawing = _layout(s.stages)
        boxes = [(x, y) for (name, column), (x, y) in drawing.at.items() if drawing.column[name] == column]
        assert len(boxes) == len(s.stages)
        for i, (x, y) in enumerate(boxes):
            assert all(abs(x - a) >= WIDE or abs(y - b) >= HIGH for a, b in boxes[:i])
        for (name, column), (x, y) in drawing.at.items():
            if drawing.column[name] != column:  # a line passes by
                assert all(x != a or abs(y - b) > HIGH / 2 for a, b in boxes)


def test_large_odd_and_long_scenarios_are_drawn() -> None:
    large = generate(1, 10_000)
    shown = texts(picture(large))
    assert "9,880 entities" in shown and MAX_ENTITIES == 120
    assert {f"{i} {x.id}" for i, x in enumerate(large.stages, 1)} <= set(shown)
    chain = [STAGES[0] | {"id": f"s{i}", "prerequisites": [f"s{i - 1}"] if i else []} for i in range(20)]
    odd = changed(stages=[*chain, STAGES[4] | {"prerequisites": ["s19"]}], title="<b>$x^2$ & 水 \U0001f600")
    shown = texts(picture(odd))
    assert shown[0] == odd.title and "20 s19" in shown


def test_of_very_many_arrows_the_shortest_are_drawn_and_the_others_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    first = [STAGES[0] | {"id": f"s{i}", "any_prerequisites": [f"s{j}" for j in range(i)]} for i in range(8)]
    s = changed(stages=[*first, STAGES[4] | {"prerequisites": ["s7"]}])
    assert "are not drawn" not in " ".join(texts(picture(s)))
    monkeypatch.setattr("scenarios.picture.MAX_LINES", 10)
    shown = " ".join(texts(picture(s)))
    assert "19 arrows, over the longest ways, are not drawn." in shown
    assert all(f"{i} s{i - 1}" in shown for i in range(1, 9))


def test_pictures_are_written_whole_or_not_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    (tmp_path / "a.yaml").write_text(template())
    assert main(["draw", str(tmp_path / "a.yaml"), "nobody", "--out", str(out)]) == 1
    told = capsys.readouterr()
    assert told.out == f"{out / 'a-first-scenario.svg'}\n" and told.err.startswith("nobody: is not the name of")
    assert [x.name for x in out.iterdir()] == ["a-first-scenario.svg"]
    with pytest.raises(SystemExit):
        main(["draw", ALL[0], str(tmp_path / "a.yaml"), "--out", str(out)])
    assert "exists; add --force" in capsys.readouterr().err and len(list(out.iterdir())) == 1
