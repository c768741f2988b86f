"""What does a splice consist of, in words? The plan that `--dry-run` prints, and the model card."""

from pathlib import Path

from merge.recipes.plan import Part, SplicePlan
from merge.recipes.recipe import Blend, recipe_dict
from models.adapters.merged import MergedCheckpoint
from models.blocks import BLOCKS
from models.checkpoint import Checkpoint
from models.fetch import format_size
from models.hub import parse_repository
from tracking.tables import format_columns

TEMPLATE = Path(__file__).parent / "templates" / "card.md.j2"


def describe_plan(plan: SplicePlan) -> list[str]:
    """Returns the plan as lines: who gives what, which files are written, where donors' files differ, what to know."""
    lines = [*(f"donor {name}: {_place(donor)}" for name, donor in plan.donors.items()), f"cut: {plan.partition}", ""]
    lines += [*describe_parts(plan), ""]
    shards = [("shard", "tensors", "size")]
    shards += [(shard.file, str(len(shard.entries)), format_size(shard.num_bytes)) for shard in plan.shards]
    lines += [*format_columns(shards, right=(1, 2)), ""]
    files = [(f"file of {plan.recipe.files_donor}", *(f"in {name}" for name in _others(plan)))]
    files += [(file.name, *file.others.values()) for file in plan.files]
    return [*lines, *format_columns(files, right=()), *(f"note: {note}" for note in plan.notes)]


def describe_parts(plan: SplicePlan) -> list[str]:
    """Returns who gives which part of a splice, and how large it is, as lines."""
    rows = [("part", "layers", "owner", "tensors", "size")]
    rows += [(part.expression, part.layers, str(part.owner), *_extent(plan, part)) for part in plan.parts]
    total = sum(len(shard.entries) for shard in plan.shards)
    rows.append(("all", "", "", str(total), format_size(plan.num_bytes)))
    return format_columns(rows, right=(3, 4))


def render_card(plan: SplicePlan) -> str:
    """Returns the model card of a splice, in Markdown with the hub's metadata."""
    import jinja2
    import yaml

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    rows = []
    for part in plan.parts:
        num_tensors, size = _extent(plan, part)
        rows.append(
            {
                "expression": part.expression,
                "layers": part.layers,
                "owner": str(part.owner),
                "num_tensors": num_tensors,
                "size": size,
            }
        )
    repositories = [parse_repository(checkpoint) for checkpoint in plan.recipe.donors.values()]
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        title=f"Splice {_title(plan)}",
        base_models=[repository.repo for repository in repositories if repository is not None],
        family=plan.layout.family.model_type,
        blends=any(isinstance(part.owner, Blend) for part in plan.parts),
        adapters=[name for name, donor in plan.donors.items() if isinstance(donor, MergedCheckpoint)],
        donors=[
            {"name": name, "checkpoint": checkpoint, "revision": plan.revisions[name]}
            for name, checkpoint in plan.recipe.donors.items()
        ],
        rows=rows,
        num_layers=plan.layout.num_layers,
        partition=str(plan.partition),
        tied=plan.layout.tied,
        files_donor=plan.recipe.files_donor,
        others=_others(plan),
        files=plan.files,
        notes=plan.notes,
        recipe=yaml.safe_dump(recipe_dict(plan.recipe), sort_keys=False, allow_unicode=True).rstrip(),
    )


def _title(plan: SplicePlan) -> str:
    """Returns `in:rl:rl` where the recipe is a pattern, and the donors' names elsewhere."""
    owners = [plan.recipe.blocks.get(block) for block in BLOCKS]
    if set(plan.recipe.blocks) == set(BLOCKS) and all(isinstance(owner, str) for owner in owners):
        return ":".join(str(owner) for owner in owners)
    return "of " + " and ".join(plan.recipe.donors)


def _place(donor: Checkpoint) -> str:
    if isinstance(donor, MergedCheckpoint):
        return f"{donor.adapter.directory}, an adapter on {donor.base.directory}"
    return str(donor.directory)


def _extent(plan: SplicePlan, part: Part) -> tuple[str, str]:
    donor = plan.donors[plan.recipe.used_donors[0]]
    return str(len(part.names)), format_size(sum(donor.tensors[name].num_bytes for name in part.names))


def _others(plan: SplicePlan) -> list[str]:
    return [name for name in plan.donors if name != plan.recipe.files_donor]
