"""Descriptions of images: from a file, from an endpoint in this process, from a real (untrained) pocket checkpoint."""

import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_builders.prompt_sets.prompts import Prompt
from eval.replies.descriptions import DESCRIPTIONS_FILE, DescriptionArguments, Descriptions, open_descriptions

SECRET = "sk-only-for-this-test"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three pictures, the third equal to the first."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, colour in (("a", (214, 40, 40)), ("b", (40, 80, 210)), ("c", (214, 40, 40))):
        Image.new("RGB", (56, 84), colour).save(folder / f"{name}.png")
    return folder


def prompt(name: str, *images: str) -> Prompt:
    return Prompt(
        id=name, ability="vision-to-reasoning", question="Secret?", answer="7", answer_kind="number", images=images
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def opened(arguments: DescriptionArguments, directory: Path) -> Descriptions:
    descriptions = open_descriptions(arguments, directory)
    assert descriptions is not None
    return descriptions


def by_endpoint(server: Any, **changes: Any) -> DescriptionArguments:
    return DescriptionArguments(describe_url=server.url, describe_model="eyes", describe_timeout_s=5, **changes)


def test_a_file_gives_descriptions_by_id_and_none_where_it_has_none(tmp_path: Path, pictures: Path) -> None:
    path = tmp_path / "words.jsonl"
    path.write_text('{"id": "p", "description": " a red field \\u2028"}\n{"id": "q", "description": "blue"}\n')
    descriptions = opened(DescriptionArguments(descriptions=str(path)), tmp_path)
    assert [descriptions(prompt(name, "a.png"), pictures) for name in "pqr"] == ["a red field", "blue", None]
    first = dict(descriptions.source)
    path.write_text('{"id": "p", "description": "green"}\n')
    assert dict(opened(DescriptionArguments(descriptions=str(path)), tmp_path).source) != first


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"id": "p"}\n', ":1: no object with id and description"),
        ('{"id": "p", "description": "x"}\n[]\n', ":2: no object with id and description"),
        ('{"id": "p", "description": " "}\n', ":1: id and description must be texts, and not empty"),
        ('{"id": 3, "description": "x"}\n', ":1: id and description must be texts"),
        ('{"id": "p", "description": "x"}\n{"id": "p", "description": "y"}\n', ":2: id 'p' appears twice"),
        (None, "words.jsonl does not exist"),
    ],
)
def test_a_damaged_file_is_named(content: str | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "words.jsonl").write_text(content)
    with pytest.raises(ValueError, match=said):
        open_descriptions(DescriptionArguments(descriptions=str(tmp_path / "words.jsonl")), tmp_path)


def test_an_endpoint_sees_the_image_and_never_the_question(chat_server: Any, tmp_path: Path, pictures: Path) -> None:
    chat_server.reply = " A red field.\n"
    assert opened(by_endpoint(chat_server), tmp_path)(prompt("p", "a.png"), pictures) == "A red field."
    (message,) = chat_server.asked[0]["messages"]
    image, text = message["content"]
    head, _, data = image["image_url"]["url"].partition(",")
    assert (head, base64.b64decode(data)) == ("data:image/png;base64", (pictures / "a.png").read_bytes())
    assert text["text"].startswith("Describe the image")
    assert "Secret?" not in json.dumps(chat_server.asked)


def test_formats_that_endpoints_may_not_take_are_sent_as_png(chat_server: Any, tmp_path: Path, pictures: Path) -> None:
    Image.open(pictures / "a.png").save(pictures / "a.bmp")
    opened(by_endpoint(chat_server), tmp_path)(prompt("p", "a.bmp"), pictures)
    head, _, data = chat_server.asked[0]["messages"][0]["content"][0]["image_url"]["url"].partition(",")
    with Image.open(BytesIO(base64.b64decode(data))) as sent:
        assert (head, sent.format, sent.getpixel((0, 0))) == ("data:image/png;base64", "PNG", (214, 40, 40))


def test_an_image_is_described_once_whatever_asks_for_it(chat_server: Any, tmp_path: Path, pictures: Path) -> None:
    for _ in range(2):
        descriptions = opened(by_endpoint(chat_server), tmp_path)
        assert [descriptions(prompt(n, f"{n}.png"), pictures) for n in "abc"] == ["correct"] * 3
    assert len(chat_server.asked) == 2
    opened(by_endpoint(chat_server, describe_instruction="Name the colour."), tmp_path)(prompt("p", "a.png"), pictures)
    opened(by_endpoint(chat_server), tmp_path)(prompt("p", "a.png", "b.png"), pictures)
    assert len(chat_server.asked) == 4


def test_many_images_are_asked_about_at_once_each_a_single_time(
    chat_server: Any, tmp_path: Path, pictures: Path
) -> None:
    prompts = [prompt(f"p{n}", f"{n % 20}.png") for n in range(40)]
    for number in range(20):
        Image.new("RGB", (30, 30), (number, 0, 0)).save(pictures / f"{number}.png")
    chat_server.faults = ["400"]
    descriptions = opened(by_endpoint(chat_server), tmp_path)
    descriptions.prepare([*prompts, prompt("s")], pictures)
    assert len(chat_server.asked) == 20
    assert len(read_lines(tmp_path / DESCRIPTIONS_FILE)) == 19
    again = opened(by_endpoint(chat_server), tmp_path)
    again.prepare(prompts, pictures)
    assert len(chat_server.asked) == 21
    assert [again(each, pictures) for each in prompts] == ["correct"] * 40
    assert len(chat_server.asked) == 21


def test_a_prompt_without_images_has_no_description(chat_server: Any, tmp_path: Path, pictures: Path) -> None:
    assert opened(by_endpoint(chat_server), tmp_path)(prompt("p"), pictures) is None
    assert chat_server.asked == []


@pytest.mark.parametrize("fault", ["400", "garbage", "stall"])
def test_an_endpoint_that_fails_leaves_none_and_is_asked_again_in_a_later_run(
    fault: str, chat_server: Any, tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    chat_server.always = fault
    arguments = DescriptionArguments(
        describe_url=chat_server.url, describe_model="eyes", describe_timeout_s=0.3, describe_attempts=1
    )
    assert opened(arguments, tmp_path / "out")(prompt("p", "a.png"), pictures) is None
    chat_server.always, chat_server.echoes_key = None, True
    assert opened(arguments, tmp_path / "out")(prompt("p", "a.png"), pictures) == "correct[key]"
    assert SECRET not in (tmp_path / "out" / DESCRIPTIONS_FILE).read_text()


def test_a_checkpoint_describes_in_batches_what_is_missing_and_is_not_loaded_for_the_rest(
    pocket_checkpoint: Path, tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = DescriptionArguments(
        describe_model=str(pocket_checkpoint), describe_max_tokens=6, describe_instruction="Describe it ."
    )
    prompts = [prompt("p", "a.png"), prompt("q", "b.png"), prompt("r", "c.png"), prompt("s")]
    together = opened(arguments, tmp_path / "together")
    together.prepare(prompts, pictures)
    assert [line["id"] for line in read_lines(tmp_path / "together" / DESCRIPTIONS_FILE)] == ["p", "q"]
    alone = opened(arguments, tmp_path / "alone")
    told = [together(each, pictures) for each in prompts]
    assert [alone(each, pictures) for each in prompts] == told
    assert told[3] is None
    assert not together.undescribed, "images that have a description are not reported"
    assert told[0] == told[2]

    import eval.replies.subject

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the checkpoint was loaded again")

    monkeypatch.setattr(eval.replies.subject.Subject, "load", refuse)
    assert [opened(arguments, tmp_path / "together")(each, pictures) for each in prompts] == told


def test_a_description_that_is_cut_in_its_thoughts_is_told_as_that(
    chat_server: Any, tmp_path: Path, pictures: Path
) -> None:
    chat_server.finish_reason, chat_server.message = "length", {"content": None, "reasoning_content": "I see"}
    descriptions = opened(by_endpoint(chat_server), tmp_path)
    descriptions.prepare([prompt("p", "a.png"), prompt("q", "b.png")], pictures)
    assert descriptions.undescribed == {"a reply cut in its thoughts": 2}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"descriptions": "a", "describe_model": "b"}, "from a file or from a model"),
        ({"describe_url": "http://a/v1"}, "needs describe_model"),
        ({"describe_url": "a", "describe_model": "b"}, "is not a URL"),
        ({"describe_max_tokens": 0}, "describe_max_tokens is 0"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DescriptionArguments(**values)


def test_without_a_source_there_are_no_descriptions(tmp_path: Path) -> None:
    assert open_descriptions(DescriptionArguments(), tmp_path) is None
    assert list(tmp_path.iterdir()) == []
