"""What do the pages for users show? Their command blocks, cut into commands, and what each command needs.

A block that opens with ```bash holds commands, one a line (longer ones continued with a backslash, here-documents
included). A comment at the end of a command says what it needs or how it ends:

    # needs a GPU | the network | a cluster | vLLM | files of your own     only its arguments are checked
    # takes 12 minutes                                 the same
    # exit status 1                                    it is run and has to end so

A block that opens with ```text shows lines that these commands print, with the numbers of another run. One that opens
with ```text trained shows lines whose words depend on how well the model was trained; nothing compares them.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tracking.command import REPOSITORY_ROOT

GUIDES = tuple(sorted((REPOSITORY_ROOT / "docs" / "guides").glob("*.md")))
DOCS = REPOSITORY_ROOT / "docs"
PAGES = (REPOSITORY_ROOT / "README.md", DOCS / "tutorial.md", *GUIDES, DOCS / "gpus.md")

_BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NEEDS = re.compile(r"#.*\b(needs (a GPU|the network|a cluster|vLLM|files of your own)|takes \d+ minutes)")
_STATUS = re.compile(r"#.*\bexit status (\d+)")
_HERE_DOCUMENT = re.compile(r"<<\s*'?(\w+)'?")


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of a page, as a reader pastes it."""

    page: str
    text: str

    @property
    def only_checked(self) -> bool:
        """True where the page says that it needs more than this machine and a minute."""
        return bool(_NEEDS.search(self.text))

    @property
    def status(self) -> int:
        """The exit status that the page announces; 0 where it announces none."""
        found = _STATUS.search(self.text)
        return int(found[1]) if found else 0

    @property
    def words(self) -> list[str]:
        """The words of the command without its comment, as a shell splits them (variables and patterns left as is)."""
        return shlex.split(self.text.replace("\\\n", " "), comments=True)

    @property
    def module(self) -> str | None:
        """The command of this suite that it starts: the word after `-m`, behind a launcher too."""
        words = self.words
        return words[words.index("-m") + 1] if "-m" in words else None

    @property
    def arguments(self) -> list[str]:
        words = self.words
        return words[words.index("-m") + 2 :]


def blocks(path: Path, language: str) -> list[str]:
    """Returns the contents of a page's fenced blocks of one language."""
    return [content for found, content in _BLOCK.findall(path.read_text()) if found == language]


def commands(path: Path) -> list[Command]:
    """Returns every command of a page, in its order."""
    return [command for block in blocks(path, "bash") for command in split_block(block, page=path.name)]


def split_block(block: str, *, page: str) -> list[Command]:
    """Cuts a block into commands: continued lines belong together, and a here-document to the line that opens it."""
    found: list[Command] = []
    lines = iter(block.splitlines())
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        gathered = [line]
        if document := _HERE_DOCUMENT.search(line):
            for following in lines:
                gathered.append(following)
                if following == document[1]:
                    break
        while gathered[-1].endswith("\\"):
            gathered.append(next(lines))
        found.append(Command(page=page, text="\n".join(gathered)))
    return found


def shape(line: str) -> str:
    """Returns a line without what differs between runs: numbers, and how columns are aligned."""
    return re.sub(r"[\d.,]+", "#", " ".join(line.split()))


def links(path: Path) -> list[str]:
    """Returns the local files that a page links or shows, without anchors."""
    found = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text())
    return [link for link in found if "://" not in link]
