"""Vocabularies: the shipped lists by the module's own rules, and lists made from texts."""

import gzip
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from data_builders.vocabulary import command as vocabulary
from data_builders.vocabulary.command import (
    COMMON_FILE,
    SCIENCE_FILE,
    SPLIT_SHARES,
    WordCounts,
    common_forms,
    read_vocabulary,
    split_of_word,
)
from data_builders.vocabulary.forms import base_forms

SCIENCE = read_vocabulary(SCIENCE_FILE)


def run(tmp_path: Path, texts: list[str] | Path, *flags: str) -> Path:
    source = texts
    if isinstance(texts, list):
        source = tmp_path / "texts.txt"
        source.write_text("".join(f"{text}\n" for text in texts))
    vocabulary.main(["--source", str(source), "--output-dir", str(tmp_path / "out"), *flags])
    return tmp_path / "out"


def report_of(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "report.json").read_text()))


LENIENT = ("--min_documents", "1", "--max_document_frac", "1")


def test_the_shipped_words_are_many_plain_and_in_order() -> None:
    assert len(SCIENCE) >= 1200
    assert sorted(SCIENCE) == SCIENCE
    assert all(re.fullmatch("[a-z]{4,14}", word) for word in SCIENCE)


def test_no_shipped_word_is_common_or_a_form_of_another_one() -> None:
    seen: dict[str, str] = {}
    twins = []
    for word in SCIENCE:
        forms = base_forms(word)
        assert forms.isdisjoint(common_forms()), word
        twins += [(word, seen[form]) for form in forms if form in seen]
        seen |= dict.fromkeys(forms, word)
    assert twins == []


def test_the_common_words_are_plain_and_in_order() -> None:
    words = read_vocabulary(COMMON_FILE)
    assert sorted(words) == words
    assert {"the", "paper", "show", "result", "because"} <= set(words)


def test_each_split_gets_about_its_share_of_the_shipped_words_and_enough_of_them() -> None:
    split = Counter(map(split_of_word, SCIENCE))
    assert set(split) == set(SPLIT_SHARES) == {"train", "validation", "test"}
    for name, share in SPLIT_SHARES.items():
        assert split[name] / len(SCIENCE) == pytest.approx(share, abs=0.03)
        assert split[name] >= 200


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("galaxy", "galaxies"),
        ("matrix", "matrices"),
        ("vertex", "vertices"),
        ("nucleus", "nuclei"),
        ("nebula", "nebulae"),
        ("spectrum", "spectra"),
        ("phenomenon", "phenomena"),
        ("hypothesis", "hypotheses"),
        ("lens", "lenses"),
        ("catalyze", "catalysing"),
        ("couple", "couplings"),
        ("plan", "planned"),
        ("thermal", "thermally"),
        ("thermodynamic", "thermodynamics"),
        ("thermodynamics", "thermodynamical"),
        ("polarization", "polarisation"),
        ("color", "colours"),
        ("hemoglobin", "haemoglobin"),
        ("fiber", "fibres"),
        ("modelling", "modeling"),
        ("sulfur", "sulphur"),
    ],
)
def test_forms_of_one_word_are_one_word(first: str, second: str) -> None:
    assert base_forms(first) & base_forms(second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("proton", "photon"),
        ("neutron", "neutrino"),
        ("plasma", "plasmon"),
        ("mass", "mast"),
        ("axis", "axiom"),
        ("string", "stratum"),
        ("genus", "gene"),
        ("ion", "ionization"),
        ("fusion", "fission"),
        ("carbide", "carbon"),
        ("diffraction", "diffusion"),
    ],
)
def test_different_words_stay_different(first: str, second: str) -> None:
    assert base_forms(first).isdisjoint(base_forms(second))


def test_every_word_of_a_text_is_kept_or_dropped_for_a_reason(tmp_path: Path) -> None:
    texts = [
        "An orbit : the photon meets a lepton near Einstein .",
        "Photons and (gluons) orbit; lepton's decay, $\\mathcal{muon}$ \\emph{Einstein} https://quark.example/boson",
        "A photon showing gluon mesons orbit ; x2meson meson_field <b>hadron</b> someone@boson.org e",
        "Photons \\begin{muon} tachyon \\[ kaon \\] $$muon$$ pions .",
    ]
    directory = run(tmp_path, texts, "--min_documents", "1", "--max_document_frac", "0.6", "--max_words", "5")
    assert (directory / "words.txt").read_text().split() == ["photon", "decay", "gluon", "hadron", "lepton"]
    report = report_of(directory)
    assert {reason: entry["examples"] for reason, entry in report["dropped"].items()} == {
        "rare": [],
        "capitalised": ["einstein", "photons"],
        "everywhere": ["orbit"],
        "common": ["meets", "near", "showing"],
        "form": ["gluons"],
        "beyond": ["mesons", "pions", "tachyon"],
    }
    assert (report["num_documents"], report["num_words"], report["num_tokens_not_letters"]) == (4, 5, 3)
    assert report["num_tokens_of_other_length"] == len(["An", "the", "a", "and", "A", "e"])
    assert sum(report["splits"].values()) == 5
    table = pd.read_csv(directory / "words.csv").set_index("word")
    assert table.loc["photon"].tolist() == [2, 2, 2]


def test_words_are_ranked_by_the_documents_that_hold_them(tmp_path: Path) -> None:
    texts = ["boson boson boson boson", "quark meson", "Quark lepton", "quark gluon", "gluon", "meson boson"]
    directory = run(tmp_path, texts, "--min_documents", "2", "--max_document_frac", "1")
    assert (directory / "words.txt").read_text().split() == ["quark", "boson", "gluon", "meson"]
    table = pd.read_csv(directory / "words.csv").set_index("word")
    assert table.loc["quark"].to_dict() == {"num_documents": 3, "num_lower": 2, "num_occurrences": 3}
    assert table.loc["boson"].to_dict() == {"num_documents": 2, "num_lower": 2, "num_occurrences": 5}
    assert report_of(directory)["dropped"]["rare"]["examples"] == ["lepton"]


def test_the_same_texts_give_the_same_words_from_every_kind_of_file(tmp_path: Path) -> None:
    texts = [f"{first} beside {second}" for first, second in zip(SCIENCE[:300:3], SCIENCE[1:300:3], strict=True)]
    rows = [{"title": text.split()[0], "abstract": text, "id": 7} for text in texts]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    files = {name: tmp_path / name for name in ("a.txt", "a.jsonl", "a.json", "a.jsonl.gz", "a.parquet")}
    files["a.txt"].write_text("".join(f"{text}\n" for text in texts))
    files["a.jsonl"].write_bytes(lines)
    files["a.json"].write_bytes(lines)
    files["a.jsonl.gz"].write_bytes(gzip.compress(lines))
    pd.DataFrame(rows).to_parquet(files["a.parquet"])
    products = []
    for name, file in files.items():
        (tmp_path / f"run-{name}").mkdir()
        directory = run(tmp_path / f"run-{name}", file, *LENIENT)
        products.append([(directory / product).read_bytes() for product in ("words.txt", "words.csv", "report.json")])
    assert all(product == products[0] for product in products)
    assert set(products[0][0].decode().split()) == {word for text in texts for word in text.split()} - {"beside"}


def test_rows_without_a_text_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows: list[Any] = [
        {"abstract": "boson"},
        {"abstract": None},
        {"title": "x"},
        {"abstract": " "},
        [1],
        {"abstract": "muon"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{torn\n")
    report = report_of(run(tmp_path, path, *LENIENT))
    assert (report["num_documents"], report["num_rows_without_text"], report["num_words"]) == (2, 5, 2)


def test_several_columns_are_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"title": "muon", "abstract": "muon boson"}) + "\n")
    directory = run(tmp_path, path, *LENIENT, "--column", "title", "abstract")
    assert pd.read_csv(directory / "words.csv").values.tolist() == [["boson", 1, 1, 1], ["muon", 1, 1, 2]]


def test_memory_is_bounded_and_frequent_words_survive_with_a_stated_error() -> None:
    counts = WordCounts(min_letters=1, max_letters=20, max_tracked=1000)
    letters = "abcdefghij"
    for number in range(5000):
        rare = "".join(letters[int(digit)] for digit in f"{number:06d}")
        counts.add(f"{rare} steady" if number % 5 == 0 else rare)
        assert len(counts.ranked() if number % 500 == 0 else []) <= 1000
    assert counts.num_forgotten > 3000
    found = counts.ranked()["steady"].num_documents
    assert 1000 - counts.max_undercount <= found <= 1000
    assert next(iter(counts.ranked())) == "steady"


def test_a_count_that_fell_short_of_the_least_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    letters = "abcdefghij"
    texts = [
        f"steady{'x' * (number % 3)} " + "".join(letters[int(d)] for d in f"{number:05d}") for number in range(3000)
    ]
    run(tmp_path, texts, "--min_documents", "2", "--max_document_frac", "1", "--max_tracked", "1000")
    assert "words near min_documents 2 may be missing; raise --max_tracked" in capsys.readouterr().out


def test_a_finished_run_is_left_alone_and_other_settings_are_refused(tmp_path: Path) -> None:
    directory = run(tmp_path, ["boson muon"], *LENIENT)
    before = (directory / "words.txt").stat().st_mtime_ns
    run(tmp_path, ["boson muon"], *LENIENT)
    assert (directory / "words.txt").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"was made with .*min_letters"):
        run(tmp_path, ["boson muon"], *LENIENT, "--min_letters", "5")


def test_a_hub_data_set_is_read_from_the_cache_where_the_hub_is_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "cache" / "datasets--group--papers"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    folder = cached / "snapshots" / commit
    folder.mkdir(parents=True)
    texts = ["boson muon", "muon", "quark"]
    pd.DataFrame({"abstract": texts, "id": range(3)}).to_parquet(folder / "train-00000-of-00001.parquet")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    directory = run(tmp_path, Path("group/papers"), *LENIENT, "--max_documents", "2")
    assert (directory / "words.txt").read_text().split() == ["muon", "boson"]
    settings = json.loads((directory / "run.json").read_text())["settings"]
    assert settings["source"] == {"group/papers/train": commit}
    shutil.rmtree(directory)
    with pytest.raises(ValueError, match="group/papers has no column 'title'; it has abstract, id"):
        run(tmp_path, Path("group/papers"), "--column", "title")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--column", "summary"], r"a\.jsonl has no text in the column summary; its rows have abstract"),
        (["--min_letters", "9", "--max_letters", "8"], "expected 1 <= min <= max"),
        (["--max_document_frac", "0"], "max_document_frac is 0.0; expected above 0, to 1"),
        (["--min_documents", "0"], "min_documents is 0; it must be at least 1"),
        (["--min_documents", "9"], r"none of 2 words of 1 documents is left \(dropped: rare 2\)"),
        (["--source", "b.txt"], r"source b\.txt does not exist; expected a file, or a hub id"),
        (["--source", "b.csv"], r"source b\.csv does not exist"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, flags: list[str], message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"abstract": "boson muon"}) + "\n")
    source = [] if "--source" in flags else ["--source", str(path)]
    with pytest.raises(ValueError, match=message):
        vocabulary.main([*source, "--output-dir", str(tmp_path / "out"), *flags])
    assert not (tmp_path / "out" / "words.txt").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("muon\nBoson\n", ":2: 'Boson' is no word; expected lower-case letters"),
        ("muon\nx-ray\n", ":2: 'x-ray' is no word"),
        ("muon\n\nmuon\n", ":3: 'muon' stands in line 1 already"),
    ],
)
def test_a_list_of_words_is_read_strictly(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "words.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_vocabulary(path)
    path.write_text(" muon \r\nboson\n")
    assert read_vocabulary(path) == ["muon", "boson"]
