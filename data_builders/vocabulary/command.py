"""Which words are scientific? Selects words that occur in some texts of a collection, but not in most of them.

    python -m data_builders.vocabulary --source arxiv-metadata.json --column abstract --output-dir outputs/words
    python -m data_builders.vocabulary --source owner/name --column title abstract --output-dir outputs/words

A word counts as scientific if at least `min_documents` documents contain it, at most `max_document_frac` of them do,
and neither it nor a form of it is in `words/common.txt`, a list of everyday and academic English. Names and
abbreviations are dropped by their capital letters. Of the forms of one word (plural, -ed, -ing, -ly, -ic and -ics,
British spelling) the most frequent is kept.

It writes `words.txt` (most frequent first; read by `data_builders.build ocr --vocabulary`), `words.csv` (the number of
documents that contain each word) and `report.json` (every dropped word, counted by reason). If it was killed, it starts
over.

Memory is bounded: if there are more than `max_tracked` different words, the rarest are dropped (lossy counting, Manku
and Motwani 2002), and the report gives the maximum error of a count. Known limits: misspellings that many documents
share are kept; forms beyond the rules below count as separate words.

Without such a collection, the suite's own list `words/science.txt` is used.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from data_builders.sources.texts import TextSource, open_texts
from data_builders.vocabulary.forms import base_forms
from tracking.command import parse_arguments
from tracking.product import write_text
from tracking.progress import progress
from tracking.run import OVERWRITE_ARGUMENT, open_run
from tracking.tables import write_table

WORDS_DIR = Path(__file__).parent / "words"
SCIENCE_FILE = WORDS_DIR / "science.txt"
COMMON_FILE = WORDS_DIR / "common.txt"
SPLIT_SHARES = {"train": 0.6, "validation": 0.1, "test": 0.3}
MAX_EXAMPLES = 20
"""Words named for each reason in the report."""

DROPPED = {
    "rare": "in fewer documents than min_documents",
    "capitalised": "more often with a capital letter than without: a name or an abbreviation",
    "everywhere": "in a larger share of the documents than max_document_frac",
    "common": "it, or a form of it, is everyday or academic English",
    "form": "a form of a more frequent word",
    "beyond": "behind the first max_words",
}

_NO_TEXT = re.compile(
    r"\$\$.*?\$\$|\$[^$]*\$|\\\[.*?\\\]|\\\(.*?\\\)|\\(?:begin|end)\{[^{}]*\}|\\[A-Za-z]+"
    r"|[A-Za-z]{1,16}://\S*|[\w.+-]{1,64}@\S+|</?[A-Za-z][^<>]*>",
    re.DOTALL,
)
"""Formulas, commands of LaTeX, addresses, marks of HTML."""
_TOKEN = re.compile(r"[^\s()\[\]{}.,;:!?\"“”„«»/—–‐-]+")


@dataclass(frozen=True, kw_only=True)
class VocabularyArguments:
    """The texts to read, and the words to keep."""

    source: list[str] = field(
        metadata={
            "help": "one or more files (.txt, .json or .jsonl with one object per line, .parquet; also .gz), or hub ids"
        }
    )
    output_dir: str = field(metadata={"help": "where words.txt, words.csv and report.json are written"})
    column: list[str] = field(
        default_factory=lambda: ["abstract"],
        metadata={"help": "columns that hold the text; a .txt file has one text per line"},
    )
    min_letters: int = field(default=4, metadata={"help": "minimum number of letters of a word"})
    max_letters: int = field(default=14, metadata={"help": "maximum number of letters of a word"})
    min_documents: int = field(default=5, metadata={"help": "minimum number of documents that contain a word"})
    max_document_frac: float = field(
        default=0.2, metadata={"help": "maximum share of the documents that contain a word; above 0, up to 1"}
    )
    max_words: int = field(default=5000, metadata={"help": "maximum number of words kept; 0: all"})
    max_documents: int = field(
        default=0, metadata={"help": "maximum number of documents read from each source; 0: all"}
    )
    max_tracked: int = field(
        default=1_000_000, metadata={"help": "maximum number of different words in memory, at about 150 bytes each"}
    )
    hub_config: str | None = field(default=None, metadata={"help": "configuration of the hub data set"})
    hub_split: str = field(default="train", metadata={"help": "split of the hub data set"})
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)

    def __post_init__(self) -> None:
        if not 1 <= self.min_letters <= self.max_letters:
            raise ValueError(
                f"min_letters {self.min_letters}, max_letters {self.max_letters}: expected 1 <= min <= max"
            )
        if not 0 < self.max_document_frac <= 1:
            raise ValueError(f"max_document_frac is {self.max_document_frac}; expected above 0, to 1")
        for name, least in (("min_documents", 1), ("max_words", 0), ("max_documents", 0), ("max_tracked", 1000)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not self.source or not self.column:
            raise ValueError(f"source {self.source}, column {self.column}: expected at least one of each")


def read_vocabulary(path: Path) -> list[str]:
    """Reads a list of words, one per line, in lower-case letters from a to z.

    Raises:
        ValueError: where the file is missing, or holds something else or a word twice; the message names the line.
    """
    if not path.is_file():
        raise ValueError(f"vocabulary {path} is no file; expected a list of words, one per line")
    words: dict[str, int] = {}
    for number, line in enumerate(path.read_bytes().decode(errors="replace").splitlines(), start=1):
        word = line.strip()
        if not word:
            continue
        if not re.fullmatch("[a-z]+", word):
            raise ValueError(f"{path}:{number}: {word!r} is no word; expected lower-case letters from a to z alone")
        if word in words:
            raise ValueError(f"{path}:{number}: {word!r} stands in line {words[word]} already; remove one of them")
        words[word] = number
    return list(words)


def split_of_word(word: str) -> str:
    """Returns the one split in which a word may stand: by its hash, whatever the seed and the other words."""
    position = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big") / 2**64
    for split, share in SPLIT_SHARES.items():
        position -= share
        if position < 0:
            return split
    return split


@cache
def common_forms() -> frozenset[str]:
    """Returns the forms of everyday and of academic English."""
    return frozenset(form for word in read_vocabulary(COMMON_FILE) for form in base_forms(word))


class WordCount(NamedTuple):
    """How often a word was met."""

    num_documents: int
    num_lower: int
    """Documents that hold it without a capital letter."""
    num_occurrences: int


class WordCounts:
    """Counts the words of documents, within a bounded memory."""

    def __init__(self, *, min_letters: int, max_letters: int, max_tracked: int) -> None:
        self._limits = (min_letters, max_letters)
        self._max_tracked = max_tracked
        self._counts: dict[str, list[int]] = {}
        self.num_documents = self.num_tokens = self.num_not_letters = self.num_other_length = self.num_forgotten = 0
        self.max_undercount = 0
        """By how many documents a count may be too low."""

    def add(self, text: str) -> None:
        """Counts the words of one document."""
        self.num_documents += 1
        met: dict[str, list[int]] = {}
        for token in _TOKEN.findall(_NO_TEXT.sub(" ", unicodedata.normalize("NFKC", text))):
            self.num_tokens += 1
            if not (token.isascii() and token.isalpha()):
                self.num_not_letters += 1
            elif not self._limits[0] <= len(token) <= self._limits[1]:
                self.num_other_length += 1
            else:
                found = met.setdefault(token.lower(), [1, 0, 0])
                found[1] |= token.islower()
                found[2] += 1
        for word, found in met.items():
            counted = self._counts.setdefault(word, [0, 0, 0])
            for place, number in enumerate(found):
                counted[place] += number
        if len(self._counts) > self._max_tracked:
            self._forget()

    def _forget(self) -> None:
        """Forgets the rarest words until half the room is free."""
        by_documents = Counter(counted[0] for counted in self._counts.values())
        num_kept, threshold = len(self._counts), 0
        while num_kept > self._max_tracked // 2:
            threshold += 1
            num_kept -= by_documents[threshold]
        self.max_undercount += threshold
        self.num_forgotten += len(self._counts) - num_kept
        self._counts = {word: counted for word, counted in self._counts.items() if counted[0] > threshold}

    def ranked(self) -> dict[str, WordCount]:
        """Returns all words, those in most documents first."""
        order = sorted(self._counts.items(), key=lambda item: (-item[1][0], item[0]))
        return {word: WordCount(*counted) for word, counted in order}


def select_words(
    ranked: dict[str, WordCount], num_documents: int, rules: VocabularyArguments
) -> tuple[list[str], dict[str, list[str]]]:
    """Returns the scientific words in their order, and those that were dropped, by reason."""
    kept: list[str] = []
    forms: set[str] = set()
    dropped: dict[str, list[str]] = {reason: [] for reason in DROPPED}
    for word, count in ranked.items():
        own = base_forms(word) if count.num_documents >= rules.min_documents else frozenset()
        tests = {
            "rare": count.num_documents < rules.min_documents,
            "capitalised": 2 * count.num_lower < count.num_documents,
            "everywhere": count.num_documents > rules.max_document_frac * num_documents,
            "common": not own.isdisjoint(common_forms()),
            "form": not own.isdisjoint(forms),
            "beyond": 0 < rules.max_words <= len(kept),
        }
        reason = next((reason for reason, applies in tests.items() if applies), None)
        if reason is None:
            kept.append(word)
            forms |= own
        else:
            dropped[reason].append(word)
    return kept, dropped


def count_words(sources: Sequence[TextSource], rules: VocabularyArguments) -> tuple[WordCounts, int]:
    """Reads all sources; returns the counts, and how many rows had no text."""
    counts = WordCounts(min_letters=rules.min_letters, max_letters=rules.max_letters, max_tracked=rules.max_tracked)
    num_without_text = 0
    for source in sources:
        for text in progress(_first(source.texts(), rules.max_documents), label=source.label, unit="document"):
            if text is None:
                num_without_text += 1
            else:
                counts.add(text)
    return counts, num_without_text


def _first(texts: Iterable[str | None], limit: int) -> Iterator[str | None]:
    for number, text in enumerate(texts):
        if limit and number == limit:
            return
        yield text


def build_report(
    counts: WordCounts, num_without_text: int, kept: Sequence[str], dropped: dict[str, list[str]]
) -> dict[str, Any]:
    """Says what became of every token and of every word."""
    splits = Counter(map(split_of_word, kept))
    return {
        "num_documents": counts.num_documents,
        "num_rows_without_text": num_without_text,
        "num_tokens": counts.num_tokens,
        "num_tokens_not_letters": counts.num_not_letters,
        "num_tokens_of_other_length": counts.num_other_length,
        "num_words_forgotten": counts.num_forgotten,
        "max_undercount_documents": counts.max_undercount,
        "num_words": len(kept),
        "splits": {split: splits[split] for split in SPLIT_SHARES},
        "dropped": {
            reason: {"meaning": DROPPED[reason], "count": len(words), "examples": words[:MAX_EXAMPLES]}
            for reason, words in dropped.items()
        },
    }


def main(argv: list[str] | None = None) -> None:
    import pandas as pd

    (arguments,) = parse_arguments(argv, VocabularyArguments, description=__doc__)
    sources = open_texts(
        arguments.source, columns=arguments.column, config=arguments.hub_config, split=arguments.hub_split
    )
    settings = asdict(arguments) | {"source": {source.label: source.fingerprint for source in sources}}
    settings |= {"common_words": hashlib.sha256(COMMON_FILE.read_bytes()).hexdigest()}
    del settings["output_dir"], settings["overwrite"]
    directory = Path(arguments.output_dir)
    with open_run(
        directory, command="data_builders.vocabulary", settings=settings, overwrite=arguments.overwrite
    ) as run:
        if not run.finished:
            counts, num_without_text = count_words(sources, arguments)
            ranked = counts.ranked()
            kept, dropped = select_words(ranked, counts.num_documents, arguments)
            report = build_report(counts, num_without_text, kept, dropped)
            if not kept:
                found = ", ".join(f"{reason} {len(words)}" for reason, words in dropped.items() if words)
                raise ValueError(
                    f"none of {len(ranked)} words of {counts.num_documents} documents is left (dropped: "
                    f"{found or 'none'}); lower --min_documents, raise --max_document_frac, or name another --column"
                )
            write_table(
                directory / "words.csv",
                pd.DataFrame([{"word": word, **ranked[word]._asdict()} for word in kept]),
            )
            write_text(directory / "report.json", json.dumps(report, indent=1) + "\n")
            write_text(directory / "words.txt", "".join(f"{word}\n" for word in kept))
            _print_report(report, arguments.min_documents)
    print(f"words: {directory / 'words.txt'}")


def _print_report(report: dict[str, Any], min_documents: int) -> None:
    dropped = ", ".join(f"{reason} {entry['count']}" for reason, entry in report["dropped"].items() if entry["count"])
    print(f"kept {report['num_words']} words of {report['num_documents']} documents; dropped: {dropped or 'none'}")
    if report["max_undercount_documents"] >= min_documents:
        print(
            f"counts may be too low by {report['max_undercount_documents']} documents, so words near min_documents "
            f"{min_documents} may be missing; raise --max_tracked"
        )
