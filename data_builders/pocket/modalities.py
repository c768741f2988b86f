"""The pocket world in four looks: prompts whose pictures differ in modality, which models learn unequally well.

    python -m data_builders.build looks --seed 0 --output-dir outputs/pocket_modalities/data

Scenes, splits and the base model's lessons are those of the pocket world (`world.py`); the pictures are drawn in a look
(`looks.py`), which `meta` names as the modality. The shares of the looks in the splits base and sft decide how well a
model can read each. `stained` is not in base; sft has a few, from which a model learns to reply in the range of the
answers, but not to read the shades. In rl, validation and test all looks have the same number of prompts.

All splits but base ask two kinds of questions: counts (vision) and sums over the picture (vision-to-reasoning). There
are no questions in text only, since they have no look. `meta` names the question's template as `kind`, such as `count`
or `FIRST + 2 * SECOND`. Within each kind the answers are drawn uniformly from a range, and scenes are drawn until one
has that answer. A constant reply is therefore right in 1 of 5 counts and 1 of 9 sums.

The splits probe_train and probe_test are for `eval.tower` only: all nine objects of a picture have the same colour, and
the colour is the class. No model is trained on them.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path

from data_builders.pairs.sheet import PREVIEW_FILE
from data_builders.pocket.draw import Scene, count_colours, draw_scene, draw_thing
from data_builders.pocket.looks import LOOKS, draw_look, draw_looks
from data_builders.pocket.world import (
    EVALUATION_SPLITS,
    GLANCE_SHARE,
    Expression,
    Question,
    content_of,
    draw_split,
    split_of,
)
from data_builders.prompt_sets.prompts import Prompt, write_prompts
from models.pocket import COLOURS, PLACES
from tracking.command import did_you_mean
from tracking.progress import progress

COUNTS = range(5)
"""Answers of the counts."""
SUMS = {1: range(1, 10), -1: range(9)}
"""Sign of a sum -> its answers."""
FACTORS = {1: ((1, 2), (2, 1), (1, 3), (3, 1)), -1: ((2, 1), (3, 1))}
"""Sign of a sum -> its factors; each kind of sum has all answers of its range."""
ABILITIES = ("vision", "vision-to-reasoning")
TRAINED = ("vision", "vision-to-reasoning", "vision-to-reasoning")
"""Abilities in the splits sft and rl, in rotation."""
PROBED = ("probe_train", "probe_test")
NUM_PREVIEWED = 8
MOST_SHARE = 1000
"""Looks are drawn in rotations of as many samples as the shares sum to."""


@dataclass(frozen=True, kw_only=True)
class LookSizes:
    """Number of samples per split, and shares of the looks in the splits that the start is trained on."""

    num_base: int = field(default=11_200, metadata={"help": "prompts of the split base, with and without pictures"})
    num_sft: int = field(default=3000, metadata={"help": "prompts of the split sft"})
    num_rl_per_look: int = field(default=600, metadata={"help": "prompts of the split rl per look"})
    num_validation_per_look: int = field(default=100, metadata={"help": "prompts of the split validation per look"})
    num_test_per_look: int = field(default=250, metadata={"help": "prompts of the split test per look"})
    num_probe_per_look: int = field(
        default=120, metadata={"help": "pictures of the splits probe_train and probe_test per look, in each"}
    )
    base_shares: list[str] = field(
        default_factory=lambda: ["outline=6", "speckle=3", "negative=1"],
        metadata={"help": f"shares of the looks ({', '.join(LOOKS)}) in the split base: LOOK=NUMBER …"},
    )
    sft_shares: list[str] = field(
        default_factory=lambda: ["outline=4", "speckle=2", "negative=3", "stained=1"],
        metadata={"help": "shares of the looks in the split sft: LOOK=NUMBER …"},
    )

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if name.startswith("num_") and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("base_shares", "sft_shares"):
            read_shares(name, getattr(self, name))


def read_shares(name: str, entries: list[str]) -> dict[str, int]:
    """Returns look -> share, in the order of `LOOKS`; looks that are not named have none.

    Raises:
        ValueError: if an entry is not LOOK=NUMBER, a look is unknown or repeated, or all shares are 0.
    """
    shares: dict[str, int] = {}
    for entry in entries:
        look, _, share = entry.partition("=")
        if look not in LOOKS:
            raise ValueError(
                f"{name}: {entry!r} names no look; expected {', '.join(LOOKS)}, as in outline=6"
                f"{did_you_mean(look, LOOKS)}"
            )
        if not (share.isascii() and share.isdigit()):
            raise ValueError(f"{name}: {entry!r} has no whole number; expected LOOK=NUMBER, as in outline=6")
        if look in shares:
            raise ValueError(f"{name} names {look} twice; expected each look once")
        shares[look] = int(share)
        if shares[look] > MOST_SHARE:
            raise ValueError(f"{name}: {entry!r} is too large; expected at most {look}={MOST_SHARE}")
    if not any(shares.values()):
        raise ValueError(f"{name} is {entries}; expected at least one look with a share above 0")
    return {look: shares.get(look, 0) for look in LOOKS}


def template(question: str) -> str:
    """Returns a question's template: `count`, or the expression with FIRST and SECOND for the colours."""
    words = question.split()
    if words[0] == "How":
        return "count"
    expression = words[2:-1]
    named = iter(("FIRST", "SECOND"))
    return " ".join(next(named) if word in COLOURS else word for word in expression)


def draw_balanced(ability: str, split: str, rng: random.Random) -> tuple[Scene | None, Question, str]:
    """Draws kind and answer, then scenes until one has that answer and is in the split.

    Returns:
        scene, question with the teacher's thought, and content, as `draw_sample` does.
    """
    sign = rng.choice((1, -1))
    a, b = rng.choice(FACTORS[sign])
    answer = rng.choice(COUNTS if ability == "vision" else SUMS[sign])
    glance = rng.random() < GLANCE_SHARE
    while True:
        scene = draw_scene(rng)
        counted = count_colours(scene)
        if ability == "vision":
            fitting = [colour for colour in COLOURS if counted[colour] == answer]
            if not fitting:
                continue
            colour = rng.choice(fitting)
            text, thought = f"How many {colour} objects are there ?", f"{colour} {answer}"
        else:
            pairs = [Expression(x, y, a, b, sign) for x in COLOURS for y in COLOURS if x != y]
            sums = [expression for expression in pairs if expression.value(counted) == answer]
            if not sums:
                continue
            expression = rng.choice(sums)
            text = f"What is {expression} ?"
            thought = f"it is {answer}" if glance else expression.work_out(counted)
        content = content_of(scene, text)
        if split_of(content) == split:
            return scene, Question(text, str(answer), "number", thought), content


def assign_looks(shares: dict[str, int], num: int, seed: str, num_same: int) -> list[str]:
    """Returns a look for each of `num` samples, in the given shares and a drawn order, for `num_same` at a time."""
    rng = random.Random(seed)
    rotation = [look for look, share in shares.items() for _ in range(share)]
    looks: list[str] = []
    while len(looks) < num:
        looks += [look for look in rng.sample(rotation, len(rotation)) for _ in range(num_same)]
    return looks[:num]


def build_split(directory: Path, split: str, num: int, seed: int, shares: dict[str, int]) -> list[Scene]:
    """Writes one split with its pictures, and returns the first scenes."""
    if split == "base":
        samples, num_same = draw_split(split, num, seed), 1
    else:
        # One look for each whole rotation of the abilities, so that all looks have equal numbers of each.
        abilities = ABILITIES if split in EVALUATION_SPLITS else TRAINED
        samples, num_same = draw_split(split, num, seed, abilities=abilities, draw=draw_balanced), len(abilities)
    looks = iter(assign_looks(shares, num, f"{seed}/{split}/looks", num_same))
    prompts, scenes = [], []
    for sample in progress(samples, label=split, total=num, unit="prompt"):
        images: tuple[str, ...] = ()
        meta = {}
        if sample.scene is not None:
            look = next(looks)
            images = (f"images/{sample.id}.png",)
            draw_look(sample.scene, look, f"{seed}/{sample.id}").save(directory / images[0])
            scenes.append(sample.scene)
            meta = {"modality": look} | ({} if split == "base" else {"kind": template(sample.question.text)})
        prompts.append(sample.prompt(split, images, meta or None))
    write_prompts(directory, split, prompts)
    return scenes[:NUM_PREVIEWED]


def draw_probed(rng: random.Random, colour: str) -> Scene:
    """Draws nine objects of one colour."""
    return tuple(draw_thing(rng, colour) for _ in PLACES)


def build_probe_split(directory: Path, split: str, num: int, seed: int) -> None:
    """Writes pictures of objects of one colour, the same number in each look, with the colour as the answer."""
    prompts = []
    for index in range(num * len(LOOKS)):
        look, colour = list(LOOKS)[index % len(LOOKS)], COLOURS[index // len(LOOKS) % len(COLOURS)]
        prompt = Prompt(
            id=f"{split}-{index:06d}",
            ability="vision",
            question="What colour are the objects ?",
            answer=colour,
            answer_kind="text",
            images=(f"images/{split}-{index:06d}.png",),
            meta={"modality": look, "kind": "colour"},
        )
        scene = draw_probed(random.Random(f"{seed}/{prompt.id}"), colour)
        draw_look(scene, look, f"{seed}/{prompt.id}").save(directory / prompt.images[0])
        prompts.append(prompt)
    write_prompts(directory, split, prompts)


def build_looks(directory: Path, *, sizes: LookSizes, seed: int) -> None:
    """Writes every split in four looks, with its pictures and a preview, into an existing folder."""
    (directory / "images").mkdir()
    equal = dict.fromkeys(LOOKS, 1)
    build_split(directory, "base", sizes.num_base, seed, read_shares("base_shares", sizes.base_shares))
    build_split(directory, "sft", sizes.num_sft, seed, read_shares("sft_shares", sizes.sft_shares))
    for split, num in (
        ("rl", sizes.num_rl_per_look),
        ("validation", sizes.num_validation_per_look),
        ("test", sizes.num_test_per_look),
    ):
        scenes = build_split(directory, split, num * len(LOOKS), seed, equal)
    for split in PROBED:
        build_probe_split(directory, split, sizes.num_probe_per_look, seed)
    draw_looks(scenes).save(directory / PREVIEW_FILE)
