"""The prompts that flipped: the table of them, and the page on which they are read."""

import base64
import html.parser
import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data_builders.prompt_sets.prompts import Prompt, prompts_fingerprint, write_prompts
from eval.compare.command import main
from eval.compare.page import NUM_SHOWN, REPLY_CHARS, shorten, spread, thumbnail
from eval.replies.outcomes import BLACK, GIVEN, record_key
from tracking.run import open_run

NUM_PROMPTS = 90
HOSTILE = "</div><script>alert('x')</script> &amp; {{ 7 * 7 }} \x00 \u202e x"


@pytest.fixture
def prompt_set(tmp_path: Path) -> Path:
    """A prompt set of vision questions; three pictures are shared by all."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (400, 200), colour).save(folder / "images" / f"{number}.png")
    prompts = [
        Prompt(
            id=f"p{number:03d}",
            ability="vision",
            question=f"Is <b>{number}</b> here?",
            answer="yes",
            answer_kind="text",
            images=(f"images/{number % 3}.png",),
            choices=("yes", "no"),
        )
        for number in range(NUM_PROMPTS)
    ]
    write_prompts(folder, "test", prompts)
    return folder


def evaluate(
    directory: Path,
    rights: np.ndarray,
    folder: Path,
    *,
    black: np.ndarray | None = None,
    noted: bool = True,
    response: str = "yes",
) -> str:
    """Writes an evaluation of the prompt set, as eval.run leaves one, and returns its directory."""
    settings = {"model": directory.name, "tasks": {"test": prompts_fingerprint(folder, "test")}}
    with open_run(directory, command="eval.run", settings=settings) as run:
        if noted:
            run.note(tasks={"test": f"{folder}:test"})
        lines = []
        for condition, values in ((GIVEN, rights), (BLACK, black)):
            for number, right in enumerate([] if values is None else values):
                name = f"p{number:03d}"
                record = {"key": record_key("test", name, condition), "task": "test", "id": name, "ability": "vision"}
                record |= {"condition": condition, "sample": 0, "gold": "yes", "response": response, "extracted": "yes"}
                record |= {"status": "correct" if right else "incorrect", "well_formed": True, "num_tokens": 1}
                lines.append(json.dumps(record | {"finish_reason": "stop"}) + "\n")
        (directory / "records.jsonl").write_text("".join(lines))
    return str(directory)


RATES = (("a", 0.2), ("b", 0.9))


def draw(seed: int, rate: float = 0.5) -> np.ndarray:
    return np.random.default_rng(seed).random(NUM_PROMPTS) < rate


class Page(html.parser.HTMLParser):
    """Counts what a browser would see: elements by name and class, and whether each is closed where it should be."""

    VOID = ("meta", "input", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.count: dict[str, int] = {}
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name in (tag, *(f".{word}" for word in (dict(attrs).get("class") or "").split())):
            self.count[name] = self.count.get(name, 0) + 1
        for _, value in attrs:
            assert not (value or "").startswith(("http", "file:", "//")), "the page would load something"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_table_names_exactly_the_prompts_that_flipped(tmp_path: Path, prompt_set: Path) -> None:
    start, seeds = draw(0), [draw(1), draw(2)]
    models = [f"sft={evaluate(tmp_path / 'sft', start, prompt_set)}"]
    models += [f"full@{n}={evaluate(tmp_path / f'full{n}', own, prompt_set)}" for n, own in enumerate(seeds)]
    main([*models, "--baseline", "sft", "--output-dir", str(tmp_path / "out")])
    table = pd.read_csv(tmp_path / "out" / "transitions.csv", dtype={"seed": str})
    comparison = pd.read_csv(tmp_path / "out" / "comparison.csv", dtype={"seed": str})
    for number, own in enumerate(seeds):
        rows = table[table["seed"] == str(number)]
        for kind, flipped in (("right->wrong", start & ~own), ("wrong->right", ~start & own)):
            found = rows[rows["kind"] == kind]
            assert list(found["id"]) == [f"p{place:03d}" for place in np.flatnonzero(flipped)]
            assert (found["after"] == (kind == "wrong->right")).all() and (found["before"] != found["after"]).all()
        counts = comparison[(comparison["seed"] == str(number)) & (comparison["metric"] == "accuracy")].iloc[0]
        assert dict(rows["kind"].value_counts()) == {
            "wrong->right": counts["num_gained"], "right->wrong": counts["num_lost"],
        }  # fmt: skip


def test_the_page_answers_first_with_a_sentence_and_a_figure(tmp_path: Path, prompt_set: Path) -> None:
    models = [evaluate(tmp_path / name, draw(number, rate), prompt_set) for number, (name, rate) in enumerate(RATES)]
    main([*models, "--baseline", "a", "--output-dir", str(tmp_path / "out")])
    text = (tmp_path / "out" / "comparison.html").read_text()
    row = pd.read_csv(tmp_path / "out" / "comparison.csv").iloc[0]
    assert row["metric"] == "accuracy" and row["p_holm"] < 0.05 and row["difference"] > 0
    change = f"+{100 * row['difference']:.1f} points [+{100 * row['low']:.1f}, +{100 * row['high']:.1f}]"
    said = Page(text).text.replace("\u00a0", " ")
    assert f"b − a in this run: significantly better on vision ({change}); n = {NUM_PROMPTS}." in said
    places = [text.index(mark) for mark in ('<p class="answer">', "<figure>", "<table>")]
    assert places == sorted(places)


def test_an_ability_can_flip_where_the_accuracy_does_not(tmp_path: Path, prompt_set: Path) -> None:
    right = np.ones(NUM_PROMPTS, bool)
    blind, seeing = right.copy(), right.copy()
    seeing[:30] = False
    models = [
        evaluate(tmp_path / "a", right, prompt_set, black=blind),
        evaluate(tmp_path / "b", right, prompt_set, black=seeing),
    ]
    main([*models, "--baseline", "a", "--output-dir", str(tmp_path / "out")])
    table = pd.read_csv(tmp_path / "out" / "transitions.csv")
    assert set(table["metric"]) == {"ability"} and set(table["kind"]) == {"wrong->right"} and len(table) == 30
    page = Page((tmp_path / "out" / "comparison.html").read_text())
    assert page.count[".side"] == 2 * NUM_SHOWN and page.count[".reply"] == 2 * page.count[".side"]
    assert "(black)" in page.text and "flips in ability" in page.text


def test_of_several_samples_one_is_shown_that_is_as_the_flip_says(tmp_path: Path, prompt_set: Path) -> None:
    for name, rights in (("a", (False, True, True)), ("b", (True, False, False))):
        with open_run(
            tmp_path / name, command="eval.run", settings={"tasks": {"test": prompts_fingerprint(prompt_set, "test")}}
        ):
            lines = []
            for sample, right in enumerate(rights):
                record = {"key": f"test/p000#{sample}", "task": "test", "id": "p000", "ability": "vision"}
                record |= {"gold": "yes", "sample": sample, "response": f"says {name}{sample}", "extracted": None}
                record |= {"status": "correct" if right else "incorrect", "well_formed": True}
                lines.append(json.dumps(record | {"num_tokens": 1, "finish_reason": "stop"}) + "\n")
            (tmp_path / name / "records.jsonl").write_text("".join(lines))
    main([str(tmp_path / "a"), str(tmp_path / "b"), "--baseline", "a", "--output-dir", str(tmp_path / "out")])
    page = Page((tmp_path / "out" / "comparison.html").read_text())
    assert page.count["article"] == 1 and page.text.count("✓ right") == page.text.count("✗ wrong") == 1
    assert "right in 2 of 3" in page.text and "right in 1 of 3" in page.text
    assert re.findall(r"says [ab]\d", page.text) == ["says a1", "says b1"]


def test_the_page_shows_question_pictures_gold_and_both_replies(tmp_path: Path, prompt_set: Path) -> None:
    first, second = draw(0), draw(1)
    models = [
        evaluate(tmp_path / "a", first, prompt_set, response="reply of a"),
        evaluate(tmp_path / "b", second, prompt_set, response="reply of b"),
    ]
    main([*models, "--baseline", "a", "--output-dir", str(tmp_path / "out")])
    text = (tmp_path / "out" / "comparison.html").read_text()
    page = Page(text)
    flips = [(first & ~second).sum(), (~first & second).sum()]
    shown = sum(min(NUM_SHOWN, count) for count in flips)
    assert page.count["article"] == page.count[".picture"] == shown
    assert page.text.count("reply of a") == page.text.count("reply of b") == shown
    assert page.text.count("✓ right") == page.text.count("✗ wrong") == shown
    assert "Is <b>" in page.text and "(B) no" in page.text
    assert text.count("data:image/jpeg") == 3, "each picture stands once on the page"
    assert page.count["section"] == 2 and page.count[".gained"] == page.count[".lost"] == 1


def test_nothing_that_a_model_writes_becomes_part_of_the_page(tmp_path: Path, prompt_set: Path) -> None:
    models = [
        evaluate(tmp_path / "a", draw(0), prompt_set, response=HOSTILE),
        evaluate(tmp_path / "b", draw(1), prompt_set, response=HOSTILE * 400),
    ]
    main([*models, "--baseline", "a", "--output-dir", str(tmp_path / "out")])
    page = Page((tmp_path / "out" / "comparison.html").read_text())
    assert "script" not in page.count and "{{ 7 * 7 }}" in page.text and "characters left out" in page.text


def test_without_the_prompts_replies_are_shown_alone_and_the_reason_is_said(tmp_path: Path, prompt_set: Path) -> None:
    models = [evaluate(tmp_path / name, draw(n), prompt_set, noted=False) for n, name in enumerate("ab")]
    command = [*models, "--baseline", "a", "--output-dir", str(tmp_path / "out")]
    main(command)
    page = Page((tmp_path / "out" / "comparison.html").read_text())
    assert "does not say where they are" in page.text and ".picture" not in page.count and page.count["article"]
    main([*command, "--tasks", f"{prompt_set}:test", "--overwrite"])
    page = Page((tmp_path / "out" / "comparison.html").read_text())
    assert "not shown" not in page.text and page.count[".picture"] == page.count["article"]


def test_prompts_that_changed_since_are_not_shown_and_refused_where_given(tmp_path: Path, prompt_set: Path) -> None:
    models = [evaluate(tmp_path / name, draw(n), prompt_set) for n, name in enumerate("ab")]
    command = [*models, "--baseline", "a", "--output-dir", str(tmp_path / "out")]
    path = prompt_set / "test.jsonl"
    path.write_text(path.read_text().replace("here?", "there?"))
    with pytest.raises(ValueError, match="these are not the prompts that were evaluated"):
        main([*command, "--tasks", f"{prompt_set}:test"])
    path.rename(prompt_set / "other.jsonl")
    with pytest.raises(ValueError, match="have no such task, only test"):
        main([*command, "--tasks", f"{prompt_set}:other", "--overwrite"])
    (prompt_set / "other.jsonl").rename(path)
    main([*command, "--overwrite"])
    page = Page((tmp_path / "out" / "comparison.html").read_text())
    assert "has changed since" in page.text and ".picture" not in page.count


def test_models_that_answer_alike_leave_an_empty_table_and_a_page(tmp_path: Path, prompt_set: Path) -> None:
    models = [evaluate(tmp_path / name, draw(0), prompt_set) for name in "ab"]
    main([*models, "--baseline", "a", "--output-dir", str(tmp_path / "out")])
    assert not len(pd.read_csv(tmp_path / "out" / "transitions.csv"))
    assert "No prompt flipped." in Page((tmp_path / "out" / "comparison.html").read_text()).text


def test_pictures_are_small_and_keep_their_shape(tmp_path: Path) -> None:
    Image.new("RGB", (2000, 1000), "red").save(tmp_path / "large.png")
    Image.new("L", (28, 56), 7).save(tmp_path / "small.png")
    data, shown = thumbnail(tmp_path / "large.png")
    assert shown == (160, 80) and len(data) < 5000
    data, shown = thumbnail(tmp_path / "small.png")
    assert shown == (80, 160)
    assert Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).size == (28, 56)


def test_what_is_shown_is_spread_over_all_and_long_replies_keep_both_ends() -> None:
    assert spread(list(range(5)), 20) == list(range(5))
    found = spread(list(range(1000)), 20)
    assert len(set(found)) == 20 and (found[0], found[-1]) == (0, 999) and max(np.diff(found)) < 54
    assert shorten("x" * REPLY_CHARS) == "x" * REPLY_CHARS
    cut = shorten("a" * 5000 + "z" * 5000)
    assert cut.startswith("aa") and cut.endswith("zz") and len(cut) < REPLY_CHARS + 60
    assert int(re.search(r"([\d,]+) characters", cut).group(1).replace(",", "")) == 10_000 - REPLY_CHARS
