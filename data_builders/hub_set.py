"""How does a pair set get onto the Hugging Face hub? Uploads it as it is, with a dataset card for `load_dataset`.

    python -m data_builders.hub_set FOLDER --repo-id OWNER/NAME --dry-run
    python -m data_builders.hub_set FOLDER --repo-id OWNER/NAME --private --license cc-by-4.0

The card describes the set, how it was built (from its manifest) and its fields. It is written only to the repository;
the local folder stays as its manifest lists it. The files are uploaded first and the card last, so a repository with a
card is complete. Known limit: the hub allows 10,000 files per folder, which is 5,000 pairs.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from data_builders.pairs.files import check_pairs, find_set, read_pairs
from data_builders.pairs.pair import PAIRS_FILE, Pair
from data_builders.pairs.sets import IMAGES_DIR, MANIFEST_FILE, MASKS_DIR, METADATA_FILE
from data_builders.pairs.sheet import PREVIEW_FILE
from data_builders.validate.set_files import open_set
from models.hub import parse_repository
from tracking.command import check_all, parse_arguments, run_command
from tracking.product import check_output_file, write_text

TEMPLATE = Path(__file__).parent / "templates" / "pair_set_card.md.j2"
CARD_FILE = "README.md"
MAX_FILES = 10_000
"""Maximum files per repository folder ("Repository limitations and recommendations" in the hub's documentation)."""
OUR_LICENSE = "mit"
"""Licence of drawn images; photographs have their own."""
DRAWN_TASKS = ("ocr", "counting", "grounding", "pocket_pairs")
SIZE_CATEGORIES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K"}
EXAMPLE_LENGTH = 80

FIELDS = {
    "target": "the picture that is asked about",
    "source": "the picture whose vision tokens are swapped in",
    "id": "name of the pair: its builder and number",
    "task": "ocr, counting, grounding or recognition",
    "prompt": "the question, the same for both pictures",
    "target_answer": "the right answer about the target",
    "source_answer": "the right answer about the source",
    "target_box": "where the object is in the target: left, top, right and bottom in the image's pixels",
    "source_box": "where it is in the source",
}


def render_card(directory: Path, repo_id: str, license_name: str | None = None) -> str:
    """Returns the dataset card of a set: Markdown with the hub's metadata.

    Raises:
        ValueError: if the folder is not a built set, or its images require a licence to be given.
    """
    import jinja2
    import yaml

    pairs = read_pairs(directory)
    manifest = open_set(directory).manifest
    if manifest is None:
        raise ValueError(f"{directory} holds no {MANIFEST_FILE}; expected a set that data_builders.build wrote")
    builder, arguments = manifest["task"], dict(manifest["arguments"])
    if license_name is None:
        if builder not in DRAWN_TASKS or arguments.get("scenes"):
            raise ValueError(
                f"{directory} holds {builder} pairs, whose pictures may belong to others; name their licence as the "
                "hub spells it, such as --license cc-by-4.0"
            )
        license_name = OUR_LICENSE
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    first = pairs[0]
    boxes = () if first.target_box else ("target_box", "source_box")
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=f"Minimal pairs: {builder.replace('_', ' ')}",
        license=license_name,
        size_category=next((name for most, name in SIZE_CATEGORIES.items() if len(pairs) < most), "n>100K"),
        split=arguments["split"],
        metadata_file=METADATA_FILE,
        images_dir=IMAGES_DIR,
        preview_file=PREVIEW_FILE,
        pairs_file=PAIRS_FILE,
        repo_id=repo_id,
        num_pairs=len(pairs),
        differs="; masks show where" if (directory / MASKS_DIR).is_dir() else "",
        fields=[(name, meaning) for name, meaning in FIELDS.items() if name not in boxes],
        meta_fields=_examples(first),
        tasks=sorted(Counter(pair.task for pair in pairs).items()),
        builder=builder,
        builder_version=manifest["builder_version"],
        seed=arguments.pop("seed"),
        arguments=yaml.safe_dump(arguments, sort_keys=False, allow_unicode=True).rstrip(),
    )


def _examples(pair: Pair) -> list[tuple[str, str]]:
    """Returns a pair's meta, shortened for a table cell."""
    examples = []
    for name, value in (pair.meta or {}).items():
        text = json.dumps(value, ensure_ascii=False).replace("|", r"\|").replace("`", "'")
        examples.append((name, text if len(text) <= EXAMPLE_LENGTH else text[: EXAMPLE_LENGTH - 1] + "…"))
    return examples


def to_hub(directory: Path, repo_id: str, *, license_name: str | None = None, private: bool = False) -> str:
    """Uploads a set and its card to a dataset repository, creating it if needed; returns its URL.

    Raises:
        ValueError: in one line, if the set or name is invalid, nobody is logged in, or the hub refuses.
    """
    from huggingface_hub import HfApi, get_token

    card = render_card(directory, repo_id, license_name)
    for folder in (IMAGES_DIR, MASKS_DIR):
        num_files = sum(1 for _ in (directory / folder).glob("*"))
        if num_files > MAX_FILES:
            raise ValueError(
                f"{directory / folder} holds {num_files} files; the hub takes up to {MAX_FILES} a folder: build sets "
                f"of at most {MAX_FILES // 2} pairs under several seeds"
            )
    if get_token() is None:
        raise ValueError(f"nobody is logged in, so {repo_id} cannot be written: run hf auth login, or set HF_TOKEN")
    api = HfApi()
    with _in_one_line(repo_id):
        url = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, repo_type="dataset", folder_path=directory, commit_message="The pairs")
        api.upload_file(
            repo_id=repo_id,
            repo_type="dataset",
            path_or_fileobj=card.encode(),
            path_in_repo=CARD_FILE,
            commit_message="The card",
        )
    return str(url)


@contextmanager
def _in_one_line(repo_id: str) -> Iterator[None]:
    """Turns errors of the hub into a `ValueError`, without the log of every retry."""
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    server = constants.ENDPOINT
    try:
        yield
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            reason = "the token on this machine may not write there: log in with one that may (hf auth login)"
        else:
            reason = f"{' '.join(str(error.server_message or error).split())}; try again"
        raise ValueError(f"dataset {repo_id} cannot be written: {server} answers {status}; {reason}") from error
    except errors.OfflineModeIsEnabled as error:
        raise ValueError(f"dataset {repo_id} cannot be written: HF_HUB_OFFLINE is set; unset it") from error
    # errors.HTTPError is the base class of the HTTP client's errors; hf_xet, which transfers large files, raises
    # RuntimeError for anything that is not an OSError.
    except (errors.HTTPError, OSError, RuntimeError) as error:  # type: ignore[attr-defined]
        raise ValueError(
            f"dataset {repo_id} cannot be written: {server} cannot be reached ({type(error).__name__}); the same "
            "command goes on where there is internet"
        ) from error
    finally:
        logging.set_verbosity(verbosity)


@dataclass(frozen=True, kw_only=True)
class HubArguments:
    """The set to upload, and its repository."""

    directory: str = field(
        metadata={"help": "a pair set: the folder with pairs.jsonl", "positional": True, "check": check_pairs}
    )
    repo_id: str = field(metadata={"help": "dataset repository on the hub: OWNER/NAME"})
    license: str | None = field(
        default=None,
        metadata={
            "help": f"licence of the pictures, as the hub spells it; {OUR_LICENSE} for pictures drawn by this suite"
        },
    )
    private: bool = field(default=False, metadata={"help": "create the repository as private"})
    dry_run: bool = field(default=False, metadata={"help": "upload nothing and show the dataset card"})
    output: str | None = field(
        default=None, metadata={"help": "with --dry-run: file to write the card to", "check": check_output_file}
    )

    def __post_init__(self) -> None:
        check_all(self._check_name, self._check_output)

    def _check_name(self) -> None:
        repository = parse_repository(self.repo_id, kind="dataset")
        if repository is None or repository.revision is not None:
            raise ValueError(f"--repo-id {self.repo_id!r} is not a repository name; expected OWNER/NAME")

    def _check_output(self) -> None:
        if self.output is not None and not self.dry_run:
            raise ValueError("--output requires --dry-run; an upload writes the card into the repository")


def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, HubArguments, description=__doc__, check_inputs=True)
    directory = find_set(Path(arguments.directory))
    if not arguments.dry_run:
        url = to_hub(directory, arguments.repo_id, license_name=arguments.license, private=arguments.private)
        print(f"dataset: {url}")
        return
    card = render_card(directory, arguments.repo_id, arguments.license)
    if arguments.output is None:
        print(card, end="")
    else:
        write_text(Path(arguments.output), card)
        print(f"card: {arguments.output}")


if __name__ == "__main__":
    run_command(main)
