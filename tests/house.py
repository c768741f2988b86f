"""Reads the order of packages and rooms from docs/design.md and the imports from the source; reports what breaks it."""

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

MAX_MODULES = 16
"""Of one folder."""
UNCOUNTED = ("tests", "configs", "outputs", "shared")
"""Folders whose modules are not counted: tests, configurations, and what runs leave."""
COMMAND_PACKAGES = ("analyze", "data_builders", "eval", "merge", "slurm", "train")
"""Packages in which a module outside a room is a command."""
COMMANDS = "commands"
"""The place of the modules directly in a package."""
PROCESSES = ("eval.grading.worker", "slurm.planning.rehearse")
"""Modules inside rooms that others start as processes of their own."""
GRADING = "eval.grading"
GRADING_MAY_IMPORT = ("latex2sympy2_extended", "math_verify", "sympy", "tracking.command")
"""Beside the standard library; sympy is what math-verify parses into."""
GRADING_GUESTS = ("benchmarks.grading",)
"""Modules outside that measure the grader's parts one by one."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """One row of the table of packages, or of a room above its package."""

    name: str
    """Dotted, for a room."""
    question: str
    rooms: tuple[str, ...]
    """Lowest first; empty for a package without folders."""
    imports: tuple[str, ...]
    """Other packages from which it imports."""


@dataclass(frozen=True, kw_only=True)
class Import:
    """One import statement's target, as far as it is a module of ours, or else the name that is imported."""

    target: str
    """A module of ours, or of others."""
    name: str | None = None
    """The name that is taken from it; None where the module itself is."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The modules of a tree, by their dotted names."""

    root: Path
    trees: dict[str, ast.Module] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)

    def folder(self, module: str) -> str:
        """Returns the folder of a module, dotted."""
        return ".".join(self.files[module].relative_to(self.root).parent.parts)

    def imports(self, module: str) -> Iterator[Import]:
        """Yields every import of a module, those inside functions and for type checking too."""
        for node in ast.walk(self.trees[module]):
            if isinstance(node, ast.Import):
                yield from (Import(target=alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    package = module if self.files[module].name == "__init__.py" else module.rpartition(".")[0]
                    above = package.split(".")[: len(package.split(".")) - node.level + 1]
                    base = ".".join([*above, *([node.module] if node.module else [])])
                for alias in node.names:
                    whole = f"{base}.{alias.name}"
                    yield Import(target=whole) if whole in self.files else Import(target=base, name=alias.name)

    def own_imports(self, module: str) -> set[str]:
        """Returns the modules of this tree that a module imports, those that are leaves for all left out."""
        targets = {one.target for one in self.imports(module) if one.target in self.files}
        return {target for target in targets if target != module and "." in target}


def read_source(root: Path, packages: Iterable[str]) -> Source:
    """Parses every module of the packages."""
    source = Source(root=root)
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            source.trees[module] = ast.parse(path.read_text(encoding="utf-8"))
            source.files[module] = path
    return source


def read_house(page: Path) -> list[Package]:
    """Reads the table of packages under the heading "Packages and rooms"."""
    section = page.read_text(encoding="utf-8").partition("## Packages and rooms\n")[2].partition("\n## ")[0]
    packages = []
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and re.fullmatch(r"`\w+/(\w+/)?`", cells[0]):
            rooms, imports = (tuple(re.findall(r"\w+", cell)) for cell in cells[2:])
            name, question = cells[0].strip("`/").replace("/", "."), cells[1]
            packages.append(Package(name=name, question=question, rooms=rooms, imports=imports))
    assert packages, f"{page} has no table of packages under 'Packages and rooms'"
    return packages


def crowded_folders(root: Path) -> list[str]:
    """Returns the folders that hold too many modules."""
    found = []
    for folder in _folders(root):
        num = len(list(folder.glob("*.py")))
        if num > MAX_MODULES:
            found.append(f"{folder.relative_to(root)} holds {num} modules; expected at most {MAX_MODULES}")
    return found


def _folders(folder: Path) -> Iterator[Path]:
    yield folder
    for inner in sorted(folder.iterdir()):
        if inner.is_dir() and not inner.is_symlink() and not inner.name.startswith(".") and inner.name not in UNCOUNTED:
            yield from _folders(inner)


def circles(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """Returns a line for each node from which a way leads back to it, with the shortest such way."""
    found = []
    for start in sorted(graph):
        ways = {start: [start]}
        waiting = [start]
        while waiting:
            node = waiting.pop(0)
            for target in sorted(graph.get(node, ())):
                if target == start:
                    found.append(" -> ".join([*ways[node], start]))
                    waiting = []
                    break
                if target not in ways:
                    ways[target] = [*ways[node], target]
                    waiting.append(target)
    return found


def file_graph(source: Source) -> dict[str, set[str]]:
    """Returns which module imports which; a package's own `__init__` is a leaf."""
    return {module: source.own_imports(module) for module in source.files}


def folder_graph(source: Source) -> dict[str, set[str]]:
    """Returns which folder imports from which."""
    graph: dict[str, set[str]] = {}
    for module in source.files:
        folder = source.folder(module)
        targets = {source.folder(target) for target in source.own_imports(module)}
        graph.setdefault(folder, set()).update(targets - {folder})
    return graph


def busy_leaves(source: Source) -> list[str]:
    """Returns the packages whose own `__init__` imports anything, so that it is no leaf."""
    return [
        f"{module}/__init__.py imports {one.target}; expected no import, since every module may import it"
        for module in source.files
        if "." not in module
        for one in source.imports(module)
    ]


def upward_imports(source: Source, house: list[Package]) -> list[str]:
    """Returns the imports that do not go downwards, and what the page does not know or knows wrongly."""
    found = []
    by_name = {package.name: package for package in house}
    for number, package in enumerate(house):
        lower = {other.name for other in house[:number]}
        found += [f"{package.name} imports from {name}, which is not above it" for name in {*package.imports} - lower]
        rooms = _rooms(source.root.joinpath(*package.name.split(".")))
        rooms -= {other.name.rpartition(".")[2] for other in house if other.name.startswith(f"{package.name}.")}
        if rooms - {COMMANDS}:
            found += [f"{package.name}/{room} is missing from the page" for room in sorted(rooms - {*package.rooms})]
            found += [f"{package.name}/{room} is on the page, not here" for room in sorted({*package.rooms} - rooms)]
    for module in sorted(source.files):
        package = _row(module, by_name)
        if package not in by_name:
            found += [f"{package} is missing from the page"] if module == package else []
            continue
        for target in sorted(source.own_imports(module)):
            other = _row(target, by_name)
            if other != package and other not in by_name[package].imports:
                found.append(f"{module} imports {target}, but {package} does not import from {other}")
            elif other == package and by_name[package].rooms:
                places = by_name[package].rooms
                own, its = (_place(source, name) for name in (module, target))
                if own in places and its in places and places.index(its) > places.index(own):
                    found.append(f"{module} imports {target}: {its} stands above {own}")
    return found


def _row(module: str, rows: Iterable[str]) -> str:
    """Returns the row that a module belongs to: that of its room, if it has one, or of its package."""
    package, _, rest = module.partition(".")
    room = f"{package}.{rest.partition('.')[0]}"
    return room if room in rows else package


def _rooms(package: Path) -> set[str]:
    """Returns the folders with modules, and `commands` where there are modules beside them."""
    rooms = {path.name for path in package.iterdir() if path.is_dir() and list(path.glob("*.py"))}
    own = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    return rooms | {COMMANDS} if rooms and own else rooms


def _place(source: Source, module: str) -> str:
    parts = source.folder(module).split(".")
    return parts[1] if len(parts) > 1 else COMMANDS


def misplaced_commands(source: Source) -> list[str]:
    """Returns the modules outside rooms that are no commands, and those inside that start something."""
    found = []
    for module, tree in source.trees.items():
        package, *inside = module.split(".")
        if package not in COMMAND_PACKAGES or not inside:
            continue
        name = source.files[module].name
        starts = any(
            isinstance(node, ast.If) and ast.unparse(node.test).replace('"', "'") == "__name__ == '__main__'"
            for node in tree.body
        )
        has_main = any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
        if len(source.folder(module).split(".")) == 1:
            if not (starts and has_main):
                found.append(f"{module} is no command (main and a __main__ guard); parts go into a room")
        elif name == "__main__.py":
            room = module.removesuffix(".__main__")
            commands = [one for one in source.imports(module) if one == Import(target=f"{room}.command", name="main")]
            if not (starts and commands):
                found.append(f"{module} does not run main of {room}.command")
        elif starts and module not in PROCESSES:
            found.append(f"{module} has a __main__ guard inside a room; commands are __main__.py or outside rooms")
    return found


def breaches_of_grading(source: Source) -> list[str]:
    """Returns uses of the grader's parts from outside, names it does not export, and what it must not import."""
    exported = _exported(source.trees[GRADING])
    found = []
    for module in sorted(source.files):
        inside = _is_grading(module)
        for one in source.imports(module):
            if inside and not _is_grading(one.target):
                top = one.target.partition(".")[0]
                if top not in sys.stdlib_module_names and not {one.target, top} & {*GRADING_MAY_IMPORT}:
                    found.append(f"{module} imports {one.target}; expected only {', '.join(GRADING_MAY_IMPORT)}")
            elif _is_grading(one.target) and not inside and module not in GRADING_GUESTS:
                if one.target != GRADING:
                    found.append(f"{module} imports {one.target}, a part of the grader; import from {GRADING}")
                elif one.name is not None and one.name not in exported:
                    found.append(f"{module} takes {one.name} from {GRADING}, which does not export it")
    return found


def _is_grading(module: str) -> bool:
    return module == GRADING or module.startswith(f"{GRADING}.")


def _exported(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []
