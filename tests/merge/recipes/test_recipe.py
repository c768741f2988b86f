from pathlib import Path

import pytest
import yaml

from merge.recipes.recipe import Blend, Recipe, read_recipe, recipe_dict, recipe_from_pattern

DONORS = {"in": "sft/final", "rl": "owner/rl@main"}
BLOCKS = {"early": "in", "mid": "rl", "late": "rl"}
REST = dict.fromkeys(("vision", "projector", "embed", "norm", "head"), "in")
WHOLE = {"donors": DONORS, "blocks": BLOCKS, "rest": REST}


def written(directory: Path, text: str) -> Path:
    path = directory / "recipe.yaml"
    path.write_text(text)
    return path


def read(directory: Path, **changes: object) -> Recipe:
    return read_recipe(written(directory, yaml.safe_dump({**WHOLE, **changes}, sort_keys=False)))


def test_a_recipe_of_every_kind_of_owner_is_read(tmp_path: Path) -> None:
    recipe = read_recipe(
        written(
            tmp_path,
            "cuts: [8, 20]\n"
            "donors: {base: Qwen/Base, in: sft/final, rl: rl/final}\n"
            "blocks:\n"
            "  early.attn: in\n"
            "  early.mlp: rl\n"
            "  llm:8-18: {start: in, end: rl, alpha: 0.5}\n"
            "  llm:19: {start: in, end: rl, alpha: 1, onto: base}\n"
            "  late: rl\n"
            "rest: {vision: in, projector: in, embed: in, norm: in, head: rl}\n"
            "files: rl\n",
        )
    )
    assert recipe == Recipe(
        donors={"base": "Qwen/Base", "in": "sft/final", "rl": "rl/final"},
        blocks={
            "early.attn": "in",
            "early.mlp": "rl",
            "llm:8-18": Blend(start="in", end="rl", alpha=0.5),
            "llm:19": Blend(start="in", end="rl", alpha=1, onto="base"),
            "late": "rl",
        },
        rest={"vision": "in", "projector": "in", "embed": "in", "norm": "in", "head": "rl"},
        cuts=(8, 20),
        files="rl",
    )
    assert list(recipe.donors) == ["base", "in", "rl"] and recipe.used_donors == ("base", "in", "rl")


def test_what_is_written_out_is_read_back(tmp_path: Path) -> None:
    recipe = read(
        tmp_path, partition={"cuts": [1, 2]}, blocks={**BLOCKS, "mid": {"start": "in", "end": "rl", "alpha": 0.25}}
    )
    again = read_recipe(written(tmp_path, yaml.safe_dump(recipe_dict(recipe), sort_keys=False)))
    assert recipe_dict(again) == recipe_dict(recipe)
    assert again.files_donor == recipe.files_donor == "in" and again.cuts == (1, 2)
    assert list(again.donors) == list(recipe.donors) and again.blocks == recipe.blocks


def test_a_pattern_is_the_recipe_it_stands_for(tmp_path: Path) -> None:
    entries = [f"{name}={path}" for name, path in DONORS.items()]
    assert recipe_from_pattern("in:rl:rl", donors=entries, rest=["in"]) == read(tmp_path)
    said = [f"{region}={'rl' if region == 'head' else 'in'}" for region in REST]
    assert recipe_from_pattern("in:rl:rl", donors=entries, rest=said, partition="paper", files="rl") == read(
        tmp_path, rest={**REST, "head": "rl"}, partition="paper", files="rl"
    )
    assert recipe_from_pattern("in:rl:rl", donors=entries, rest=["in"], cuts=[1, 3]).cuts == (1, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"donor": {}}, r"unknown key 'donor'; did you mean 'donors'\?"),
        ({"donors": None}, "donors holds nothing; expected a mapping"),
        ({"donors": ["in", "rl"]}, r"donors holds \['in', 'rl'\]; expected a mapping"),
        ({"donors": {}}, "donors names no checkpoint"),
        ({"donors": {**DONORS, True: "x"}}, "donors: True is 'x'|donor name True is not usable"),
        ({"donors": {**DONORS, "a b": "x"}}, "donor name 'a b' is not usable"),
        ({"donors": {"in": 7, "rl": "x"}}, "donors: in is 7; expected a string"),
        ({"donors": {**DONORS, "base": "x"}}, r"donor 'base' is never used \(1 such\)"),
        ({"blocks": {}}, "blocks names no decoder layers"),
        ({"blocks": {**BLOCKS, "mid": "RL"}}, r"blocks mid: 'RL' is not a donor; did you mean 'rl'\? \(donors"),
        ({"blocks": {**BLOCKS, "middle": "rl"}}, r"blocks: 'middle' is unknown; did you mean 'mid'\?"),
        ({"blocks": {**BLOCKS, "vision": "rl"}}, "blocks: 'vision' belongs under rest"),
        ({"blocks": {**BLOCKS, 4: "rl"}}, r"blocks: 4 names layers without a stack; did you mean 'llm:4'\?"),
        ({"blocks": {**BLOCKS, "0-8": "rl"}}, r"'0-8' names layers without a stack; did you mean 'llm:0-8'\?"),
        ({"blocks": {**BLOCKS, "mid": ["rl"]}}, r"blocks mid: the owner is \['rl'\]; expected a donor's name or"),
        ({"blocks": {**BLOCKS, "mid": None}}, "blocks mid: the owner is None"),
        ({"rest": {**REST, "late": "rl"}}, "rest: 'late' belongs under blocks"),
        ({"rest": {**REST, "vison": "rl"}}, r"rest: 'vison' is unknown; did you mean 'vision'\?"),
        ({"rest": {**REST, "head": "sft"}}, "rest head: 'sft' is not a donor"),
        ({"rest": None}, "rest holds nothing"),
        ({"files": "base"}, "files: 'base' is not a donor"),
        ({"files": 3}, "files is 3; expected a string"),
        ({"partition": 3}, "partition is 3; expected a string"),
        ({"partition": {"at": [8, 20]}}, "expected thirds, paper, or cuts"),
        ({"partition": "paper", "cuts": [8, 20]}, "exclude each other"),
        ({"partition": {"cuts": [8, 20]}, "cuts": [8, 20]}, "cuts is given twice"),
        ({"cuts": [8]}, r"cuts is \[8\]; expected two layer numbers"),
        ({"cuts": "8 20"}, "cuts is '8 20'; expected two layer numbers"),
        ({"cuts": [8.0, 20]}, r"cuts is \[8\.0, 20\]; expected two layer numbers"),
        ({"blocks": {**BLOCKS, "mid": {"start": "in", "end": "rl"}}}, "blocks mid: a blend lacks 'alpha'"),
        ({"blocks": {**BLOCKS, "mid": {"start": "in", "end": "rl", "alfa": 1}}}, r"'alfa'; did you mean 'alpha'\?"),
        ({"blocks": {**BLOCKS, "mid": {"start": "in", "end": "rl", "alpha": "1"}}}, "blocks mid: alpha is '1'"),
        ({"blocks": {**BLOCKS, "mid": {"start": "in", "end": "rl", "alpha": float("nan")}}}, "alpha is nan"),
        ({"blocks": {**BLOCKS, "mid": {"start": "in", "end": "rl", "alpha": True}}}, "alpha is True"),
        ({"blocks": {**BLOCKS, "mid": {"start": "rl", "end": "rl", "alpha": 1}}}, "start and end are both 'rl'"),
        ({"blocks": {**BLOCKS, "mid": {"start": "in", "end": "sft", "alpha": 1}}}, "blocks mid: 'sft' is not a donor"),
        ({"blocks": {**BLOCKS, "mid": {"start": 3, "end": "rl", "alpha": 1}}}, "blocks mid: start is 3"),
    ],
)  # fmt: skip
def test_mistakes_in_a_recipe_are_named_in_one_line(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, **changes)
    assert str(caught.value).startswith(f"{tmp_path / 'recipe.yaml'}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("donors: {in: a, rl: b}\nblocks:\n  mid: in\n  mid: rl\n", "line 3: 'mid' appears twice"),
        ("donors: {in: a, in: b}\n", "line 1: 'in' appears twice"),
        ("- early\n", "expected `name: value` lines, found list"),
        ("donors: {in: a\n", "not readable as YAML"),
    ],
)
def test_yaml_that_hides_or_holds_no_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_recipe(written(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "donors", "rest", "message"),
    [
        ("in:rl", ["in=a", "rl=b"], ["in"], "pattern 'in:rl' is not EARLY:MID:LATE"),
        ("in::rl", ["in=a", "rl=b"], ["in"], "pattern 'in::rl' is not EARLY:MID:LATE"),
        ("in:rl:base", ["in=a", "rl=b"], ["in"], "blocks late: 'base' is not a donor"),
        ("in:rl:rl", ["in=a", "b"], ["in"], "--donor 'b' is not NAME=CHECKPOINT"),
        ("in:rl:rl", ["in=a", "in=b"], ["in"], "--donor names 'in' twice"),
        ("in:rl:rl", [], ["in"], "donors names no checkpoint"),
        ("in:rl:rl", ["in=a", "rl=b"], [], "--rest is missing"),
        ("in:rl:rl", ["in=a", "rl=b"], ["in", "vision=rl"], "--rest 'in' is not REGION=NAME"),
        ("in:rl:rl", ["in=a", "rl=b"], ["vision=in", "vision=rl"], "--rest names 'vision' twice"),
        ("in:rl:rl", ["in=a", "rl=b"], ["early=in"], "rest: 'early' belongs under blocks"),
    ],
)
def test_mistakes_in_a_pattern_are_named(pattern: str, donors: list[str], rest: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe_from_pattern(pattern, donors=donors, rest=rest)
