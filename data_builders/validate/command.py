"""Is a built set what it claims to be? Recomputes all that its files allow, and names every defect.

    python -m data_builders.validate outputs/pairs/ocr [MORE SETS] [--words] [--num-workers 2]
    python -m data_builders.validate ../shared/data/published_pairs

Each folder is a pair set, the output directory of a build (its `data/` is the set), or a folder that contains several
of them. It checks for every set

    files     against manifest.json, and metadata.jsonl against pairs.jsonl                `set_files.py`
    pairs     texts, boxes, sizes and the processor's grid                                 `pairs/defects.py`
    pictures  that they differ only in what the question asks about, and that answers and
              boxes are correct, from what the builder recorded about each pair            `TASK/check.py`
    repeats   pairs, words and photographs that occur twice, over all sets together        `repeats.py`

A set without such records, such as the published one, is measured from its pixels only (`pairs/unproven.py`). What
could not be checked is reported. A prompt set is checked too: files, answers, pictures, and held-out pictures that
another split shares (`prompt_set.py`). Hidden files and the dataset card are ignored.

Exit status 0: no defects; 1: defects, one line each, and the number of each kind; 2: neither a pair set nor a prompt
set, or one that cannot be read.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median
from typing import NamedTuple

from data_builders.ocr.check import tesseract_available
from data_builders.pairs.files import find_sets, iter_pairs
from data_builders.pairs.pair import PAIRS_FILE, Pair
from data_builders.pairs.workers import num_cores, work_through
from data_builders.validate.checks import PairFindings, check_pair, checks_of, has_words, meanings_of
from data_builders.validate.prompt_set import describe_prompt_set, find_prompt_set, validate_prompt_set
from data_builders.validate.repeats import Seen
from data_builders.validate.set_files import (
    FILE_DEFECTS,
    PairSet,
    check_arguments,
    check_hash,
    check_listing,
    check_metadata,
    files_of,
    open_set,
)
from tracking.command import check_least, parse_arguments
from tracking.progress import progress

NUM_FILES_A_JOB = 64
NUM_PAIRS_A_WORKER = 200
"""So many are checked in the time that a process takes to start."""
NUM_NAMED = 3


class Job(NamedTuple):
    """A pair to be checked, or some files of the manifest."""

    set_number: int
    pair: Pair | None = None
    pair_number: int = 0
    files: tuple[tuple[str, str], ...] = ()


class Defect(NamedTuple):
    """What is wrong, and with which pair or file."""

    name: str
    kind: str
    text: str


@dataclass
class Survey:
    """What a first pass over the pairs of a set tells, in which a malformed one is an error."""

    pair_set: PairSet
    first_by_task: dict[str, Pair] = field(default_factory=dict)
    num_by_task: Counter[str] = field(default_factory=Counter)
    num_by_id: Counter[str] = field(default_factory=Counter)
    files: set[str] = field(default_factory=set)

    @property
    def num_pairs(self) -> int:
        return self.num_by_task.total()

    @property
    def recorded(self) -> dict[str, str]:
        """Files of the manifest with their sha256."""
        return self.pair_set.manifest["files"] if self.pair_set.manifest else {}


@dataclass
class Report:
    """What was found in one set."""

    survey: Survey
    defects: list[Defect]
    differing_fracs: list[float]
    """Of each comparable pair, the share of the pixels that differ."""
    num_unseen: Counter[str]
    """What of some pairs could not be checked here, and of how many."""


def survey(directories: Sequence[Path]) -> list[Survey]:
    """Opens all sets in the folders given and reads their pairs once.

    Raises:
        ValueError: for a set that stands twice, or one that cannot be read.
    """
    found = [place for directory in directories for place in find_sets(directory)]
    for place, count in Counter(place.resolve() for place in found).items():
        if count > 1:
            raise ValueError(f"{place} is given {count} times; all its pairs would be repeated")
    surveys = []
    for place in found:
        known = Survey(open_set(place))
        for pair in iter_pairs(place):
            known.first_by_task.setdefault(pair.task, pair)
            known.num_by_task[pair.task] += 1
            known.num_by_id[pair.id] += 1
            known.files |= files_of(pair)
        surveys.append(known)
    return surveys


def jobs_of(surveys: Sequence[Survey]) -> Iterator[Job]:
    """Yields what is to be done, set by set."""
    for number, known in enumerate(surveys):
        files = iter(known.recorded.items())
        while piece := tuple(islice(files, NUM_FILES_A_JOB)):
            yield Job(number, files=piece)
        for pair_number, pair in enumerate(iter_pairs(known.pair_set.directory)):
            yield Job(number, pair=pair, pair_number=pair_number)


def open_work(sets: Sequence[PairSet], read_back: bool) -> Callable[[Job], PairFindings | list[Defect]]:
    """Returns what does a job, in any process."""

    def work(job: Job) -> PairFindings | list[Defect]:
        pair_set = sets[job.set_number]
        if job.pair is not None:
            return check_pair(pair_set, job.pair, job.pair_number, read_back=read_back)
        return [Defect(name, *found) for name, sha in job.files for found in check_hash(pair_set.directory, name, sha)]

    return work


def validate(surveys: Sequence[Survey], *, read_back: bool = False, num_workers: int = 1) -> Iterator[Report]:
    """Yields what was found in each set, in their order.

    Args:
        surveys: sets that are checked together for repeats.
        read_back: let Tesseract read the words of ocr pairs.
        num_workers: processes; the reports do not depend on it.
    """
    sets = [known.pair_set.without_files for known in surveys]
    results = work_through(open_work, (sets, read_back), jobs_of(surveys), num_workers=num_workers)
    seen = Seen()
    for known in surveys:
        num_jobs = -(-len(known.recorded) // NUM_FILES_A_JOB) + known.num_pairs
        own = progress(islice(results, num_jobs), label=known.pair_set.directory.name, total=num_jobs, unit="job")
        yield _report(known, own, seen)


def _report(known: Survey, results: Iterable[PairFindings | list[Defect]], seen: Seen) -> Report:
    pair_set = known.pair_set
    report = Report(known, [Defect(*found) for found in check_listing(pair_set, known.files)], [], Counter())
    of_pairs: list[Defect] = []
    for result in results:
        if isinstance(result, list):
            report.defects += result
            continue
        found = list(result.found)
        if known.num_by_id[result.pair_id] > 1:
            found.append(("repeated_id", f"stands {known.num_by_id[result.pair_id]} times"))
        found += seen.add(f"{pair_set.directory}: {result.pair_id}", result.keys, split=pair_set.split)
        of_pairs += [Defect(result.pair_id, *each) for each in found]
        if result.differing_frac is not None:
            report.differing_fracs.append(result.differing_frac)
        if result.unseen is not None:
            report.num_unseen[result.unseen] += 1
    whole = (
        *check_arguments(pair_set, known.num_by_task),
        *check_metadata(pair_set.directory, iter_pairs(pair_set.directory), known.num_pairs),
    )
    report.defects += [Defect(PAIRS_FILE, *each) for each in whole] + of_pairs
    return report


def describe(report: Report, *, read_back: bool) -> list[str]:
    """Returns a report as lines of text."""
    known = report.survey
    tasks = ", ".join(f"{count} {task}" for task, count in known.num_by_task.items())
    split = f", split {known.pair_set.split}" if known.pair_set.split else ""
    lines = [f"{known.pair_set.directory}: {known.num_pairs} pairs ({tasks}{split})"]
    lines += [f"  {defect.name}: {defect.kind}: {defect.text}" for defect in report.defects]
    meanings = dict(FILE_DEFECTS) if known.pair_set.manifest else {}
    not_seen = [] if known.pair_set.manifest else ["files, sizes and grids against a manifest, as there is none"]
    for pair in known.first_by_task.values():
        checks = checks_of(known.pair_set, pair)
        meanings |= meanings_of(known.pair_set, pair, read_back=read_back)
        not_seen += [checks.not_seen] if checks.not_seen else []
        if has_words(known.pair_set, pair) and not read_back:
            not_seen.append("whether the words can be read, by Tesseract (--words)")
    names_by_kind: dict[str, dict[str, None]] = {}
    for defect in report.defects:
        names_by_kind.setdefault(defect.kind, {})[defect.name] = None
    for kind, names in sorted(names_by_kind.items()):
        count = f"{len(names)} files" if kind in FILE_DEFECTS else f"{len(names)} of {known.num_pairs} pairs"
        named = ", ".join(list(names)[:NUM_NAMED]) + (", …" if len(names) > NUM_NAMED else "")
        lines.append(f"  {count}: {kind} ({(FILE_DEFECTS | meanings)[kind]}): {named}")
    lines.append(f"  looked for, not found: {', '.join(kind for kind in meanings if kind not in names_by_kind)}")
    if report.differing_fracs:
        fracs = report.differing_fracs
        lines.append(f"  pixels that differ: median {median(fracs):.2%}, {min(fracs):.2%} to {max(fracs):.2%}")
    lines += [f"  not checked: {text}" for text in not_seen]
    lines += [f"  not checked in {count} pairs: {text}" for text, count in report.num_unseen.items()]
    return lines


@dataclass(frozen=True, kw_only=True)
class ValidateArguments:
    """The sets to check, and how."""

    directories: list[str] = field(
        metadata={
            "help": "one or more of: a pair set, a prompt set, the output directory of a build, or a folder that "
            "contains several pair sets",
            "positional": True,
            "metavar": "DIR",
        }
    )
    words: bool = field(default=False, metadata={"help": "read the words of ocr pairs with Tesseract (0.2 s per word)"})
    num_workers: int = field(default=0, metadata={"help": "number of processes; 0: one per core, fewer for small sets"})

    def __post_init__(self) -> None:
        check_least(self, num_workers=0)


def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, ValidateArguments, description=__doc__)
    prompt_sets = {directory: find_prompt_set(Path(directory)) for directory in arguments.directories}
    surveys = survey([Path(directory) for directory, found in prompt_sets.items() if found is None])
    num_pairs = sum(known.num_pairs for known in surveys)
    read_back = arguments.words and _can_read_back(surveys)
    num_workers = arguments.num_workers or min(num_cores(), -(-num_pairs // NUM_PAIRS_A_WORKER))
    kinds: Counter[str] = Counter()
    num_prompts = 0
    for place in filter(None, prompt_sets.values()):
        num, found = validate_prompt_set(place)
        print("\n".join(describe_prompt_set(place, num, found)))
        num_prompts += num
        kinds.update(kind for kind, _, _ in found)
    for report in validate(surveys, read_back=read_back, num_workers=num_workers):
        print("\n".join(describe(report, read_back=read_back)))
        kinds.update(defect.kind for defect in report.defects)
    checked = [
        (len(surveys), f"{num_pairs} pairs"),
        (sum(found is not None for found in prompt_sets.values()), f"{num_prompts} prompts"),
    ]
    sets = " and ".join(f"{num} set{'s' if num > 1 else ''} of {holding}" for num, holding in checked if num)
    if kinds:
        raise RuntimeError(f"{kinds.total()} defects of {len(kinds)} kinds in {sets}")
    print(f"no defects in {sets}")


def _can_read_back(surveys: Sequence[Survey]) -> bool:
    """Returns whether words can be read back, and says why where they cannot."""
    if not any(has_words(known.pair_set, pair) for known in surveys for pair in known.first_by_task.values()):
        print("--words: no set holds words; nothing is read back")
        return False
    if not tesseract_available():
        print("--words: Tesseract is not installed (package tesseract-ocr); words are not read back")
        return False
    return True
