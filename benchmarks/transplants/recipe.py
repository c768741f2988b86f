"""How would `merge.splice` write the checkpoint of a transplant? Its recipe, part by part."""

from dataclasses import replace

from analyze.transplant.plan import START, Variant
from merge.recipes.recipe import Owner, Recipe
from models.blocks import PARTS
from models.layout import Layout

END = "end"


def recipe_of(variant: Variant, layout: Layout, start: str, end: str) -> Recipe:
    """Returns the recipe with which `merge.splice` writes a variant.

    Args:
        variant: with a unit of whole parts of decoder layers and whole regions.
        start: the donor START: folder or hub id.
        end: the donor END.
    """
    variant = replace(variant, end=END)  # a label may have an @, the name of a donor has none
    assert variant.unit is not None
    inside = set(variant.unit.tensors)
    owners: dict[tuple[str, int | None, str], Owner] = {}
    for parameter in layout:
        part = ""
        if parameter.region == "llm":
            part = next(part for part in PARTS if parameter.rest.startswith(layout.family.parts[part]))
        owner = variant.owner if parameter.name in inside else variant.base
        place = parameter.region, parameter.index if part else None, part
        assert owners.setdefault(place, owner) == owner, f"the unit has only some tensors of {place}"
    return Recipe(
        donors={START: start, END: end},
        blocks={f"llm:{index}.{part}": owner for (_, index, part), owner in owners.items() if part},
        rest={region: owner for (region, _, part), owner in owners.items() if not part},
    )
