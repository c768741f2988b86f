"""How many seeds and prompts does a study need? The differences that its test would find, before anything is trained.

    python -m eval.power --seed-sd 2 --difference 5
    python -m eval.power --measured outputs/pocket/comparison.csv --prompts 500 1000 --num-tests 9

Two kinds of comparisons are planned: an arm against another arm, both trained with so many seeds, and an arm against a
start checkpoint that exists once. The table has the smallest true difference, in points of accuracy, that the pooled
test of `eval.compare` finds with the given power. With `--difference` there is also the smallest number of seeds that
finds this difference. It is not reachable if the prompts alone hide it, however many seeds are trained.

The variances are given or measured:

    --seed-sd          how far the accuracies of training runs of one arm lie apart beyond chance in the prompts
    --base-rate        share of right replies; the other standard deviations follow from it and from assumed
                       correlations between replies, unless --residual-sd, --prompt-sd and --start-prompt-sd are given
    --measured         comparison.csv of an earlier study or a pilot study: every variance, ability by ability

A measured standard deviation between runs is uncertain if few seeds were trained. Its interval is printed; plan with
its upper end as well (`--seed-sd` overrides it). `eval/statistics/design.py` has the method and its error.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from eval.compare.scope import read_current
from eval.display.formatting import NOTHING
from eval.statistics.components import ARMS, COLUMNS, START, Variation, assumed_variation, measured_variations
from eval.statistics.design import Components, Size, detectable_difference, seeds_needed
from eval.statistics.pairing import ACCURACY, METRICS
from eval.statistics.power import ALPHA, POWER
from tracking.command import check_least, parse_arguments, raise_mistakes, run_command
from tracking.run import OVERWRITE_ARGUMENT, open_run
from tracking.tables import format_columns, write_table

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_BASE_RATE = 50.0
DEFAULT_PROMPTS = (100, 200, 500, 1000, 2000)
TABLE = "power.csv"


@dataclass(frozen=True, kw_only=True)
class PowerArguments:
    """What varies, and the sizes of the planned study."""

    seed_sd: float | None = field(
        default=None,
        metadata={
            "help": "standard deviation between training runs of one arm, in points of accuracy on very many prompts; "
            "required unless measured"
        },
    )
    measured: str | None = field(
        default=None, metadata={"help": "comparison.csv of eval.compare from which the variances are taken"}
    )
    difference: float | None = field(
        default=None, metadata={"help": "difference in points; prints the number of seeds that finds it"}
    )
    seeds: list[int] = field(
        default_factory=lambda: [2, 3, 4, 5, 8], metadata={"help": "numbers of training seeds of each arm, from 2 up"}
    )
    prompts: list[int] = field(
        default_factory=list,
        metadata={"help": "numbers of prompts; by default 100 200 500 1000 2000 and the measured number"},
    )
    num_tests: int = field(
        default=1,
        metadata={"help": "tests that are corrected together (Holm, Bonferroni): each is planned at level / num_tests"},
    )
    level: float = field(default=ALPHA, metadata={"help": "level of the two-sided test before correction"})
    power: float = field(default=POWER, metadata={"help": "probability with which a true difference is found"})
    base_rate: float | None = field(
        default=None,
        metadata={
            "help": f"share of right replies in percent; by default {DEFAULT_BASE_RATE:g}, where replies vary most"
        },
    )
    residual_sd: float | None = field(
        default=None,
        metadata={
            "help": "standard deviation in points of one run's value on one prompt beyond the prompt's and the run's "
            "mean"
        },
    )
    prompt_sd: float | None = field(
        default=None,
        metadata={"help": "standard deviation in points, from prompt to prompt, of the difference between two arms"},
    )
    start_prompt_sd: float | None = field(
        default=None, metadata={"help": "the same of the difference between an arm and a start that exists once"}
    )
    metric: str = field(default=ACCURACY, metadata={"help": "metric of the measured comparison", "choices": METRICS})
    ability: str | None = field(
        default=None, metadata={"help": "only this ability of the measured comparison; by default each"}
    )
    output_dir: str | None = field(
        default=None, metadata={"help": f"where {TABLE} and run.json are written; by default nothing is written"}
    )
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)

    def __post_init__(self) -> None:
        raise_mistakes([text for wrong, text in self._rules() if wrong])
        check_least(self, num_tests=1, seed_sd=0, residual_sd=0, prompt_sd=0, start_prompt_sd=0)

    def _rules(self) -> list[tuple[bool, str]]:
        """Returns what the arguments are refused for: whether it is so, and the message."""
        few = [number for number in self.seeds if number < 2]
        return [
            (
                self.seed_sd is None and self.measured is None,
                "expected seed_sd, the standard deviation between training runs in points (about 1 in the pocket "
                "study), or measured, a comparison.csv",
            ),
            (
                self.measured is not None and self.base_rate is not None,
                "base_rate is given with measured, which has the variances of the replies; leave one of them out",
            ),
            (
                self.measured is None and self.ability is not None,
                f"ability {self.ability!r} is given without measured, whose abilities it chooses from",
            ),
            (not self.seeds, "seeds is empty; expected numbers from 2 up"),
            (
                bool(few),
                f"seeds has {', '.join(map(str, few))}; expected 2 or more: from one run an arm nothing is known about "
                "the variance between runs",
            ),
            (any(number < 2 for number in self.prompts), f"prompts is {self.prompts}; expected numbers from 2 up"),
            (not 0 < self.level < 1, f"level is {self.level}; expected a number between 0 and 1, such as 0.05"),
            (
                not (self.level if 0 < self.level < 1 else 0) < self.power < 1,
                f"power is {self.power}; expected a number between level and 1, such as 0.8",
            ),
            (
                self.difference is not None and not 0 < self.difference <= 100,
                f"difference is {self.difference}; expected points above 0, at most 100",
            ),
            (
                self.base_rate is not None and not 0 < self.base_rate < 100,
                f"base_rate is {self.base_rate}; expected a percentage between 0 and 100",
            ),
        ]

    @property
    def planned_level(self) -> float:
        """The level of each test after correction."""
        return self.level / self.num_tests


def variations(arguments: PowerArguments) -> list[Variation]:
    """Returns the variances of every ability that is planned for, as measured or assumed, with what is given."""
    if arguments.measured is not None:
        table = read_current(Path(arguments.measured), "eval.compare", COLUMNS)
        try:
            found = measured_variations(table, metric=arguments.metric, ability=arguments.ability)
        except ValueError as error:
            raise ValueError(f"{arguments.measured}: {error}") from error
    else:
        rate = DEFAULT_BASE_RATE if arguments.base_rate is None else arguments.base_rate
        assert arguments.seed_sd is not None
        found = [assumed_variation(seed_sd=arguments.seed_sd / 100, base_rate=rate / 100)]
    names = ("seed_sd", "residual_sd", "prompt_sd", "start_prompt_sd")
    sds = {name: getattr(arguments, name) for name in names}
    return [own.given(**{name: None if sd is None else sd / 100 for name, sd in sds.items()}) for own in found]


def power_table(planned: Sequence[Variation], arguments: PowerArguments) -> "pd.DataFrame":
    """Returns a row per ability, kind of comparison, number of prompts and number of seeds; differences are shares."""
    import pandas as pd

    rows: list[dict[str, object]] = []
    for own in planned:
        for kind, components in own.kinds.items():
            for num_prompts in _num_prompts(own, arguments):
                needed = _needed(components, kind, num_prompts, arguments)
                for num_seeds in sorted(set(arguments.seeds)):
                    size = Size(
                        num_prompts=num_prompts,
                        num_seeds=num_seeds,
                        num_seeds_against=num_seeds if kind == ARMS else 0,
                    )
                    rows.append(
                        {
                            "ability": own.label,
                            "comparison": kind,
                            "num_prompts": num_prompts,
                            "num_seeds": num_seeds,
                            "detectable": detectable_difference(
                                components, size, level=arguments.planned_level, power=arguments.power
                            ),
                            **needed,
                        }
                    )
    return pd.DataFrame(rows)


def _num_prompts(own: Variation, arguments: PowerArguments) -> list[int]:
    if arguments.prompts:
        return sorted(set(arguments.prompts))
    return sorted({*DEFAULT_PROMPTS, *([own.num_prompts] if own.num_prompts else [])})


def _needed(components: Components, kind: str, num_prompts: int, arguments: PowerArguments) -> dict[str, object]:
    if arguments.difference is None:
        return {}
    needed = seeds_needed(
        components,
        num_prompts,
        arguments.difference / 100,
        against_start=kind == START,
        level=arguments.planned_level,
        power=arguments.power,
    )
    return {"difference": arguments.difference / 100, "seeds_needed": needed}


def summary(planned: Sequence[Variation], table: "pd.DataFrame", arguments: PowerArguments) -> Iterator[str]:
    """Yields the lines for the terminal: for each ability its variances and its tables."""
    level = f"{100 * arguments.level:g} %"
    if arguments.num_tests > 1:
        level = f"{level} / {arguments.num_tests} tests = {100 * arguments.planned_level:.3g} %"
    for own in planned:
        rows = table[table["ability"] == own.label]
        yield from _variances(own, arguments)
        yield ""
        yield f"smallest difference in points found with a power of {100 * arguments.power:g} % at a level of {level}"
        yield from _format(rows, "detectable")
        if arguments.difference is not None:
            yield ""
            yield f"seeds an arm that find a difference of {arguments.difference:g} points"
            yield from _format(rows.drop_duplicates(["comparison", "num_prompts"]), "seeds_needed")
        yield ""
    yield "Every arm has this number of seeds; a start exists once. One seed an arm shows nothing about training."
    if (table["detectable"].isna()).any():
        yield f"{NOTHING}: more than 100 points"
    if arguments.difference is not None and table["seeds_needed"].isna().any():
        yield "not reachable: too few prompts; more seeds do not help"


def _variances(own: Variation, arguments: PowerArguments) -> Iterator[str]:
    first = next(iter(own.kinds.values()))
    prompts = ", ".join(f"{100 * components.prompts**0.5:.1f} ({kind})" for kind, components in own.kinds.items())
    if own.num_prompts is None:
        rate = DEFAULT_BASE_RATE if arguments.base_rate is None else arguments.base_rate
        yield f"assumed, in points as standard deviations; base rate {rate:g} %"
    else:
        yield f"{own.label}, measured on {own.num_prompts:,} prompts, in points as standard deviations"
    between = f"between training runs {100 * first.seed**0.5:.1f}"
    if own.seed_sd is not None:
        low, high = 100 * own.seed_sd.low, 100 * own.seed_sd.high
        between += f" [{low:.1f}, {high:.1f}] (95 % interval, {own.seed_degrees} degrees of freedom)"
    yield f"  {between}"
    yield f"  residual of a reply {100 * first.residual**0.5:.1f}"
    yield f"  between prompts {prompts}"
    if own.correlations:
        found = ", ".join(f"{value:.2f} ({kind})" for kind, value in own.correlations.items())
        yield f"  correlation of the replies to one prompt {found}"


def _format(rows: "pd.DataFrame", column: str) -> list[str]:
    """Returns a table with a column per number of prompts."""
    keys = ["comparison", "num_seeds"] if column == "detectable" else ["comparison"]
    numbers = list(dict.fromkeys(rows["num_prompts"]))
    head = ["comparison", *(["seeds"] if "num_seeds" in keys else []), *(f"{number:,} prompts" for number in numbers)]
    lines = [head]
    for key, own in rows.groupby(keys, sort=False):
        cells = own.set_index("num_prompts")[column]
        lines.append([*map(str, key), *(_cell(cells[number], column) for number in numbers)])
    return format_columns(lines, right=range(1, len(head)))


def _cell(value: float, column: str) -> str:
    if column == "detectable":
        return NOTHING if value != value else f"{100 * value:.1f}"
    return "not reachable" if value != value or value is None else f"{value:.0f}"


def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, PowerArguments, description=__doc__)
    planned = variations(arguments)
    table = power_table(planned, arguments)
    print(*summary(planned, table, arguments), sep="\n")
    if arguments.output_dir is None:
        return
    output_dir = Path(arguments.output_dir)
    settings = {
        name: value for name, value in asdict(arguments).items() if name not in ("output_dir", "overwrite", "measured")
    }
    settings["variances"] = {own.label: {kind: asdict(one) for kind, one in own.kinds.items()} for own in planned}
    with open_run(output_dir, command="eval.power", settings=settings, overwrite=arguments.overwrite) as run:
        if not run.finished:
            write_table(output_dir / TABLE, table)
    print(f"table: {output_dir / TABLE}")


if __name__ == "__main__":
    run_command(main)
