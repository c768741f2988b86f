"""All mistakes of a command line at once, before anything heavy is imported."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from slurm.gather import GatherArguments
from tracking.command import REPOSITORY_ROOT, ArgumentsTaken, arguments_only, check_all, check_least, parse_arguments
from tracking.fields import LibraryClass

LIGHT_S = 2.0
"""CPU seconds within which a mistake is to be refused."""


def refuse_odd(number: int) -> None:
    if number % 2:
        raise ValueError(f"{number} is odd")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What is done."""

    model: str = field(metadata={"help": "whose"})
    places: list[str] = field(default_factory=list, metadata={"help": "where", "positional": True, "metavar": "PLACE"})
    numbers: list[int] = field(default_factory=list, metadata={"help": "even ones", "check": refuse_odd})
    limit: int | None = field(default=None, metadata={"help": "at most so many", "formerly": ("max_problems",)})
    shuffle: bool = field(default=True, metadata={"help": "in any order"})
    dry_run: bool = field(default=False, metadata={"help": "write nothing"})
    how: Literal["fast", "slow"] = field(default="fast", metadata={"help": "how"})
    learning_rate: float = field(default=1e-3, metadata={"help": "step size"})

    def __post_init__(self) -> None:
        check_all(lambda: check_least(self, limit=1, learning_rate=0), self._check_place)

    def _check_place(self) -> None:
        if "nowhere" in self.places:
            raise ValueError("nowhere is no place")


def parse(*argv: str, check_inputs: bool = False) -> Arguments:
    (arguments,) = parse_arguments(argv, Arguments, description="A command.", check_inputs=check_inputs)
    assert isinstance(arguments, Arguments)
    return arguments


def mistakes(*argv: str, check_inputs: bool = True) -> list[str]:
    with pytest.raises(ValueError) as caught:
        parse(*argv, check_inputs=check_inputs)
    first, *rest = str(caught.value).splitlines()
    if not rest:
        return [first]
    assert first == f"{len(rest)} mistakes in the arguments:"
    return [line.removeprefix("  ") for line in rest]


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("numbrs: 3\nlearning_rate: [1]\n")
    assert mistakes("--config", str(config), "--limit", "few", "--how", "well", "--numbers", "1", "2", "3") == [
        f"{config}: unknown key 'numbrs'; did you mean 'numbers'?",
        f"{config}: learning_rate is [1]; expected a number",
        "--limit: 'few' is not a whole number",
        "--how: 'well' is unknown; expected one of fast, slow",
        "--model is required: whose",
        "--numbers: 1 is odd",
        "--numbers: 3 is odd",
    ]


def test_all_rules_of_a_dataclass_are_told_at_once() -> None:
    assert mistakes("nowhere", "--model", "m", "--limit", "0", "--learning-rate", "-1") == [
        "limit is 0; it must be at least 1",
        "learning_rate is -1.0; it must be at least 0",
        "nowhere is no place",
    ]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--modle", "unknown argument '--modle'; did you mean '--model'?"),
        ("--learning-rat", "unknown argument '--learning-rat'; did you mean '--learning-rate'?"),
        ("--learning_rat", "unknown argument '--learning_rat'; did you mean '--learning_rate'?"),
        ("--max-problems", "unknown argument '--max-problems'; its name is '--limit' now"),
        ("--xyzzy", "unknown argument '--xyzzy'"),
    ],
)
def test_unknown_flag_names_the_one_that_was_meant(typed: str, said: str) -> None:
    model = [] if typed == "--modle" else ["--model", "m"]
    assert mistakes(*model, typed, "1") == [said]


def test_key_of_an_earlier_name_is_told_its_new_one(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("max_problems: 3\nmodel: m\n")
    assert mistakes("--config", str(config)) == [f"{config}: unknown key 'max_problems'; its name is 'limit' now"]


def test_values_without_a_name_and_flags_in_any_order() -> None:
    expected = Arguments(model="m", places=["a", "b"], dry_run=True, shuffle=False, numbers=[2, -4])
    assert parse("a", "b", "--model", "m", "--dry_run", "--no-shuffle", "--numbers", "2", "-4") == expected
    assert parse("--dry-run", "a", "b", "--numbers", "2", "-4", "--model=m", "--shuffle", "false") == expected
    named = ("--places", "a", "b", "--dry-run", "yes", "--no_shuffle", "--numbers=2", "--numbers=-4", "--model", "m")
    assert parse(*named) == expected


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--model"], "--model needs a value"),
        (["--model", "m", "--numbers"], "--numbers needs at least one value"),
        (["--model", "m", "--shuffle=maybe"], "--shuffle: 'maybe' is neither true nor false"),
        (["--model", "m", "--config", "a.yaml", "--config", "b.yaml"], "--config is given 2 times; expected one file"),
        (["--model", "m", "--config"], "--config needs a file, for example --config configs/pocket/necessity.yaml"),
    ],
)
def test_what_is_wrong_with_a_flag(argv: list[str], said: str) -> None:
    assert said in mistakes(*argv)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("limit: true", "limit is True; expected a whole number"),
        ("shuffle: 3", "shuffle is 3; expected true or false"),
        ("numbers: [2, x]", "numbers: 'x' is not a whole number"),
        ("learning_rate: null", "learning_rate has no value; expected a number"),
        ("how: well", "how: 'well' is unknown; expected one of fast, slow"),
    ],
)
def test_what_is_wrong_with_a_key(tmp_path: Path, text: str, said: str) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"model: m\n{text}\n")
    assert mistakes("--config", str(config)) == [f"{config}: {said}"]


def test_a_number_in_a_file_is_text_where_text_is_expected(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("model: 48\nplaces: 2\n")
    assert parse("--config", str(config)) == Arguments(model="48", places=["2"])


def test_inputs_are_checked_only_where_they_are_needed() -> None:
    assert parse("--model", "m", "--numbers", "3").numbers == [3]
    assert mistakes("--model", "m", "--numbers", "3") == ["--numbers: 3 is odd"]
    with arguments_only(), pytest.raises(ArgumentsTaken):
        parse("--model", "m", "--numbers", "3", check_inputs=True)


def test_help_says_what_is_required_and_only_defaults_that_mean_something(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--modle", "m", "--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    assert "PLACE ... [--config FILE] [--NAME VALUE ...]" in shown
    assert "whose (required)" in shown and "step size (default: 0.001)" in shown and "how (default: fast)" in shown
    assert "None" not in shown and "[]" not in shown and "at most so many --" in shown


def test_help_shows_the_whole_docstring_line_by_line_and_the_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    docstring = """Does it run? Yes, in 90 % of cases.

    python -m eval.run --model M

Exit status 1: it did not.
"""
    with pytest.raises(SystemExit):
        parse_arguments(["--help"], Arguments, description=docstring)
    shown = capsys.readouterr().out
    assert docstring in shown
    assert "75 stopped by SIGTERM" in shown


@dataclass
class Library:
    """As TRL's: without checks of ours."""

    num_steps: int = 3
    shards: int = field(default=2, metadata={"help": "derived"}, init=False)
    use_cpu: bool = True
    kind: str | None = None


@dataclass
class Derived(Library):
    """Has arguments that its own lines do not show."""

    size: int = 1


def library(file: str, *, name: str = "Library") -> LibraryClass:
    return LibraryClass(
        module="tests.tracking.test_arguments", name=name, sources=((file, name),), load_with=lambda: Library,
        required={"kind": "which"},
    )  # fmt: skip


HERE = "tests/tracking/test_arguments.py"


def test_names_of_a_library_are_read_from_its_source() -> None:
    found = library(HERE).arguments()
    assert found is not None
    assert [(argument.name, argument.kind) for argument in found] == [
        ("num_steps", int), ("use_cpu", bool), ("kind", str),
    ]  # fmt: skip
    others = [library("tests/tracking/gone.py"), library("no_such_package/x.py")]
    for unreadable in (*others, library(HERE, name="Gone"), library(HERE, name="Derived")):
        assert unreadable.arguments() is None


@pytest.mark.parametrize("file", [HERE, "no_such_package/x.py"])
def test_mistakes_in_a_librarys_arguments_are_found_with_and_without_its_source(file: str) -> None:
    argv = ["--num-stepz", "4", "--use-cpu=maybe", "--model", "m"]
    with pytest.raises(ValueError, match="3 mistakes") as caught:
        parse_arguments(argv, library(file), Arguments, description=None)
    assert str(caught.value).splitlines()[1:] == [
        "  unknown argument '--num-stepz'; did you mean '--num-steps'?",
        "  --use-cpu: 'maybe' is neither true nor false",
        "  --kind is required: which",
    ]
    made, ours = parse_arguments(
        ["--kind", "k", "--no_use_cpu", "--model", "m"], library(file), Arguments, description=None
    )
    assert (made, ours) == (Library(use_cpu=False, kind="k"), Arguments(model="m"))


def test_sources_of_the_librarys_classes_say_what_the_imported_classes_say() -> None:
    from tracking.fields import arguments_of
    from train.planning.recipe import TRAINING_FIELDS
    from train.running.arguments import GRPO_CONFIG, MODEL_CONFIG, SFT_CONFIG

    for source in (GRPO_CONFIG, SFT_CONFIG, MODEL_CONFIG, TRAINING_FIELDS):
        read = source.arguments()
        imported = {argument.name: argument for argument in arguments_of(source.load())}
        assert read is not None and {argument.name for argument in read} == set(imported), source.name
        for argument in read:
            assert argument.kind in (None, imported[argument.name].kind), argument


@pytest.mark.parametrize("name", ["GRPOConfig", "SFTConfig", "ModelConfig"])
def test_types_are_read_as_transformers_reads_them(name: str) -> None:
    import trl

    from tracking.fields import arguments_of

    kinds = {"string_to_bool": bool, "int": int, "float": float, "str": str, "dict": dict}
    ours = {argument.name: argument for argument in arguments_of(getattr(trl, name))}
    actions = trl.TrlParser([getattr(trl, name)])._actions
    compared = 0
    for action in actions:
        if action.dest == "help" or action.option_strings[0].startswith("--no_"):
            continue
        compared += 1
        argument = ours[action.dest]
        theirs = (
            kinds.get(getattr(action.type, "__name__", "")), action.nargs == "+", action.default or None,
            action.required,
            [getattr(choice, "value", choice) for choice in action.choices or ()],
        )  # fmt: skip
        choices = [getattr(choice, "value", choice) for choice in argument.choices]
        if not action.choices:
            choices = []  # argparse knows no choices of a list of an Enum
        assert theirs == (argument.kind, argument.is_list, argument.default or None, argument.required, choices), (
            action.dest
        )
    assert compared == len(ours)


CASES = {
    "train.grpo": (
        ["--config", "configs/pocket/grpo.yaml", "--freeze", "midd", "llm:x", "--seed", "three", "--resume_form", "x"],
        [
            "unknown argument '--resume_form'; did you mean",
            "--seed: 'three' is not a whole number",
            "--output_dir is required",
            "--model_name_or_path is required",
            "--prompts is required",
            "--freeze: block expression 'midd' is unknown; did you mean 'mid'?",
            "--freeze: block expression 'llm:x'",
        ],
    ),
    "train.sft": (
        ["--config", "configs/pocket/nowhere.yaml", "--model_name_or_path", "no/such/model", "--prompts", "nowhere"],
        ["configs/pocket/nowhere.yaml: no such file", "--model_name_or_path: checkpoint no/such/model does not exist"],
    ),
    "train.verify": (
        ["--start", "no/such/start", "--frozen", "middle"],
        [
            "--end is required",
            "--start: checkpoint no/such/start does not exist",
            "--frozen: block expression 'middle'",
        ],
    ),
    "train.plan": (
        ["--config", "configs/frankenstein_3b/grpo.yaml", "--freeze", "midd", "--gpu", "h100", "--max_stepz", "3"],
        [
            "unknown argument '--max_stepz'; did you mean '--max_steps'?",
            "--freeze: block expression 'midd'",
            "gpu 'h100'",
        ],
    ),
    "train.necessity": (
        ["--config", "configs/pocket/necessity.yaml", "--arms", "freeze-midd", "x=early+lat", "--seeds", "one"],
        ["--arms: arm 'freeze-midd' is unknown", "--arms: block expression 'lat'", "--seeds: 'one'"],
    ),
    "eval.run": (
        ["--modle", "x", "--tasks", "nowhere:test", "gsm8k:gone", "--output_dir", "o", "--prompt_style", "odd"],
        ["did you mean '--model'?", "--tasks: nowhere is not a folder", "--tasks: "],
    ),
    "eval.boundary": (["--data", "gone", "--limit", "0"], ["--model is required", "--data: gone is not a folder"]),
    "eval.tower": (["--model", "a=no/such/model", "--max-images", "3"], ["its name is '--limit' now", "no/such/model"]),
    "eval.compare": (["a@b=c", "--basline", "sft"], ["did you mean '--baseline'?", "--models: 'a@b=c'"]),
    "eval.support": (["--num-sample", "3"], ["--models is required", "unknown argument '--num-sample'"]),
    "eval.regrade": (["--dry-rum"], ["did you mean '--dry-run'?", "--directories is required"]),
    "eval.claims": (["--score", "x"], ["did you mean '--scores'?", "--output-dir is required"]),
    "analyze.deltas": (["no/such/a", "no/such/b", "--measures", "enrgy"], ["no/such/a", "no/such/b", "--output-dir"]),
    "analyze.swap": (["--pairs", "gone", "--mode", "all"], ["--model is required", "--pairs: gone", "--output-dir"]),
    "analyze.skip": (["--tasks", "gone:test", "--max_problems", "3"], ["its name is '--limit' now", "--tasks: gone"]),
    "analyze.attention": (["--models", "x", "--tasks", "gone:t"], ["--models: ", "--tasks: gone", "--output-dir"]),
    "analyze.report": (["--ouput", "x"], ["did you mean '--output'?", "--directories is required"]),
    "merge.splice": (
        ["--donor", "a=no/such/donor", "b", "--partition", "half"],
        ["--donor: checkpoint no/such/donor", "half"],
    ),
    "merge.all": (["--donor", "a=no/such/donor"], ["no/such/donor", "--rest is required"]),
    "merge.verify": (["--donr", "x"], ["did you mean '--donor'?", "--splice is required"]),
    "data_builders.validate": (["--word"], ["did you mean '--words'?", "--directories is required"]),
    "data_builders.hub_set": (["gone", "--repoid", "x"], ["did you mean '--repo-id'?", "--directory: "]),
    "data_builders.contact_sheet": (["gone", "--row", "x"], ["did you mean '--rows'?", "--output is required"]),
    "data_builders.vocabulary": (["--sorce", "x"], ["did you mean '--source'?", "--output-dir is required"]),
    "models.pocket": (["--sed", "1", "--num-layers", "x"], ["did you mean '--seed'?", "--num-layers: 'x'"]),
    "slurm.launch": (["--clutser", "x"], ["did you mean '--cluster'?", "--config is required"]),
    "slurm.status": (["--x"], ["unknown argument '--x'", "--study is required"]),
}
"""Command -> a command line with several mistakes, and what must be said of them."""
RUN = """
import contextlib, io, json, resource, sys
from tracking.command import command_module, run_command
heard = io.StringIO()
before = resource.getrusage(resource.RUSAGE_SELF)
code = None
with contextlib.redirect_stderr(heard):
    try:
        run_command(lambda: command_module(sys.argv[1]).main(sys.argv[2:]))
    except SystemExit as stop:
        code = stop.code
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({
    "code": code, "said": heard.getvalue(), "cpu_s": used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime,
    "heavy": [n for n in ("torch", "transformers", "trl", "datasets", "sklearn", "openai") if n in sys.modules],
}))
"""


@pytest.mark.cases_slow
@pytest.mark.parametrize("command", CASES)
def test_mistakes_at_a_command_are_told_at_once_and_quickly(command: str) -> None:
    argv, expected = CASES[command]
    done = subprocess.run(
        [sys.executable, "-c", RUN, command, *argv], cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout.splitlines()[-1])
    lines = result["said"].splitlines()
    assert result["code"] == 2 and lines[0].startswith(f"error: {len(lines) - 1} mistakes"), result["said"]
    for text in expected:
        assert any(text in line for line in lines[1:]), (text, result["said"])
    assert not result["heavy"]
    assert result["cpu_s"] < LIGHT_S


def test_flags_of_a_command_that_is_handed_on_are_left_to_it() -> None:
    words = ["analyze.deltas", "--config", "absent.yaml", "--study", "other", "--help", "--output_dir", "D"]
    for own in (["--study", "S", "--name", "N"], ["--study=S", "--name=N"]):
        (arguments,) = parse_arguments([*own, *words], GatherArguments, description=None)
        assert (arguments.study, arguments.name, arguments.command) == ("S", "N", words)
