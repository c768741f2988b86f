"""What does the vision tower know? Linear and nearest-neighbour probes on its frozen features, layer by layer.

    python -m eval.tower --model base=BASE sft=SFT rl=RL --data pocket:3000 --test-frac 0.9 --output-dir outputs/tower
    python -m eval.tower --model Qwen/Qwen2.5-VL-3B-Instruct --data pathmnist.npz --output-dir outputs/pathmnist \\
        --encoder dinov2=facebook/dinov2-base siglip=google/siglip2-base-patch16-224 resnet=timm:resnet50.a1_in1k

    python -m eval.tower --model sft=SFT rl=RL --data outputs/medical/data:rl,test --by modality --output-dir D

A model is a checkpoint, a hub id or a splice's recipe, `NAME=MODEL` or named after its folder. Data (`images.py`): a
folder with one subfolder of pictures per class; a file of MedMNIST, of 28 to 224 pixels, grey or RGB (`archives.py`);
the pictures of a prompt set, on which VLMs are evaluated too (`prompts.py`); or the pocket world's shapes. A published
split is kept. Grades are probed as classes. Pictures with several findings (ChestMNIST) get a binary probe per finding:
`accuracy` is the mean over findings, and the table also has the macro AUC. With `--by modality` each modality is probed
separately (`groups.py`).

Every run includes two baselines without training: `random`, towers of the same configuration with random weights from
several seeds, and `pixels`, the pictures themselves, reduced to 32 x 32. `--encoder` adds encoders that saw pictures
only (`encoders.py`).

D/tower.csv          accuracy on the test pictures with its interval, and macro F1, per model, layer and probe
D/differences.csv    paired differences to both baselines, between the models, and of every layer of the models to the
                     layer of each encoder that was chosen by cross-validation; tested and Holm-corrected
D/classes.csv        the same comparisons class by class: recall, of findings AUC
D/auc.csv            with findings: the comparisons of differences.csv for macro AUC
D/samples.csv        the pictures with class and part
D/records.jsonl      one record per probe, with its predictions; with findings, D/scores/ has what they are ranked by
D/features/          one file per batch of pictures; may be removed when the command is done. With --cache-dir they are
                     kept there, for every later command with the same weights, pictures and processing
D/figures/           tower.png, or one figure per modality

All models see the same pictures, resized by `qwen_vl_utils` between the minimum and maximum pixels of the first model's
processor, or cut into its tiles (InternVL). Encoders see them through their own image processors. Features are averaged
over patches (`features.py`). Probes are tuned on training pictures only (`probes.py`).

Known limits: an average over patches loses the position of objects, which raw pixels keep. The intervals cover new test
pictures and, against `random`, other random towers, but not another training part. If a probe is nearly always right,
towers cannot be distinguished: use fewer training pictures. One process.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from data_builders.prompt_sets.images import PixelLimits
from eval.replies.pictures import TileLimits, TokenLimits, pixel_limits
from eval.replies.subject import Subject, check_subject, open_subject
from eval.tower.encoders import Encoder, check_encoder, embed_by_encoder, encoder_name, open_encoders
from eval.tower.features import (
    PIXELS,
    Embed,
    Label,
    cached_directory,
    embed_as_pixels,
    embed_by_tower,
    random_tower,
    store_features,
    tower_config,
    trained_tower,
    vision_family,
)
from eval.tower.figures import draw_all
from eval.tower.groups import MODALITY, make_groups
from eval.tower.images import load_images
from eval.tower.outcomes import collect_outcomes, run_probes
from eval.tower.summary import class_lines, summary
from eval.tower.tables import RANDOM, write_tables
from models.loading import load_processor
from tracking.command import check_all, check_least, parse_arguments
from tracking.records import RecordLog
from tracking.run import OVERWRITE_ARGUMENT, open_run

FEATURES_DIR = "features"


@dataclass(frozen=True, kw_only=True)
class TowerArguments:
    """The models whose towers are probed, and the pictures."""

    model: list[str] = field(
        metadata={
            "help": "one or more NAME=MODEL or MODEL; a model is a checkpoint's folder, a hub id, or a splice's recipe",
            "check": check_subject,
        }
    )
    data: str = field(
        metadata={
            "help": "a folder with one subfolder of pictures per class; an .npz of MedMNIST (classes, grades or "
            "findings); FOLDER:TRAIN,TEST, two splits of a prompt set, or FOLDER:SPLIT; or pocket:NUMBER"
        }
    )
    output_dir: str = field(metadata={"help": "where tables, figure, records and features are written"})
    encoder: list[str] | None = field(
        default=None,
        metadata={
            "help": "one or more NAME=MODEL: vision encoders to compare with; a model is a folder or hub id of "
            "Transformers or timm, or timm:NAME",
            "check": check_encoder,
        },
    )
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "folder in which features are kept for later commands; by default in the output directory"},
    )
    by: str | None = field(
        default=None,
        metadata={"help": "modality: every modality that the data names has probes of its own"},
    )
    test_frac: float = field(
        default=0.3, metadata={"help": "share of each class held out for the test if the data has no test part; 0 to 1"}
    )
    limit: int | None = field(
        default=None,
        metadata={
            "help": "use at most N training and N test pictures, in the classes' proportions",
            "formerly": ("max_images",),
        },
    )
    num_folds: int = field(
        default=5, metadata={"help": "number of folds of the training pictures for choosing C and k"}
    )
    min_pixels: int | None = field(
        default=None,
        metadata={
            "help": "minimum number of pixels of a picture; smaller ones are enlarged; by default the processor's"
        },
    )
    max_pixels: int | None = field(
        default=None,
        metadata={"help": "maximum number of pixels of a picture; larger ones are reduced; by default the processor's"},
    )
    batch_size: int = field(default=256, metadata={"help": "pictures per file of features"})
    seed: int = field(default=0, metadata={"help": "seed of the split, the folds and the pocket pictures"})
    num_random: int = field(default=5, metadata={"help": "number of random towers, with the seeds 0, 1, …"})
    overwrite: bool = field(default=False, metadata=OVERWRITE_ARGUMENT)

    def __post_init__(self) -> None:
        check_all(
            self._check_share,
            self._check_by,
            partial(check_least, self, limit=1, num_folds=2, batch_size=1, num_random=1),
        )

    def _check_share(self) -> None:
        if not 0 < self.test_frac < 1:
            raise ValueError(f"test_frac is {self.test_frac}; expected a share between 0 and 1")

    def _check_by(self) -> None:
        if self.by not in (None, MODALITY):
            raise ValueError(f"by is {self.by!r}; expected {MODALITY}")


def open_subjects(models: Sequence[str]) -> dict[str, Subject]:
    """Opens the models by their names; all towers must have one configuration.

    Raises:
        ValueError: for a name that stands twice or is a baseline's, and for a model without a tower or with another.
    """
    subjects: dict[str, Subject] = {}
    for text in models:
        name, separator, model = text.partition("=")
        if not separator:
            name, model = Path(text).name, text
        if not name or not model or set("/@") & set(name):
            raise ValueError(
                f"--model {text!r} is no MODEL or NAME=MODEL, such as sft=outputs/sft/final (neither / nor @ in NAME)"
            )
        if name in (RANDOM, PIXELS):
            raise ValueError(f"--model {text!r}: {name!r} names a baseline; choose another name")
        if name in subjects:
            raise ValueError(f"model {name!r} is named twice; give each a name of its own, as NAME=MODEL")
        subjects[name] = open_subject(model)
        vision_family(subjects[name].directory)
    (first, reference), *others = ((name, tower_config(subject.directory)) for name, subject in subjects.items())
    for name, config in others:
        for key in dict.fromkeys([*reference, *config]):
            if reference.get(key) != config.get(key):
                raise ValueError(
                    f"the towers of {first} and {name} differ in {key}: {reference.get(key)!r} and "
                    f"{config.get(key)!r}; compared layer by layer, they need one configuration: probe them in two "
                    "output directories"
                )
    return subjects


def shown_limits(arguments: TowerArguments, directory: Path) -> PixelLimits | TileLimits:
    """Returns between how many pixels all models see the pictures, or into which tiles they are cut."""
    limits = pixel_limits(load_processor(directory), min_pixels=arguments.min_pixels, max_pixels=arguments.max_pixels)
    assert limits is not None, directory
    if isinstance(limits, TokenLimits):
        raise ValueError(
            f"{directory}: its processor gives every picture a number of tokens, and eval.tower reads only towers "
            "whose pictures keep their size or are cut into tiles; expected another family"
        )
    if isinstance(limits, TileLimits):
        return limits
    return PixelLimits(min_pixels=limits.min_pixels, max_pixels=limits.max_pixels, patch_size=limits.patch_size)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where features come from."""

    make: Callable[[], Embed]
    """Loads the model; called only if its features are missing."""
    limits: PixelLimits | TileLimits | None
    """How pictures are resized for it; None if its own processor does it."""
    identity: dict[str, Any]
    """What determines its features of a picture, besides the limits."""


def feature_sources(
    subjects: dict[str, Subject],
    encoders: dict[str, Encoder],
    limits: PixelLimits | TileLimits,
    num_random: int,
) -> dict[Label, Source]:
    """Returns the sources of the features of both baselines, the models and the encoders."""
    from transformers import AutoConfig

    first = next(iter(subjects.values())).directory

    def trained(subject: Subject) -> Source:
        return Source(
            make=lambda: embed_by_tower(trained_tower(subject), subject.directory),
            limits=limits,
            identity={"fingerprint": subject.fingerprint, "processor": _processor_settings(subject.directory)},
        )

    def drawn(seed: int) -> Source:
        return Source(
            make=lambda: embed_by_tower(random_tower(first, seed=seed), first),
            limits=limits,
            identity={
                "random": seed,
                "family": vision_family(first).model_type,
                "config": AutoConfig.from_pretrained(first).to_dict(),
                "processor": _processor_settings(first),
            },
        )

    def encoding(encoder: Encoder) -> Source:
        return Source(make=lambda: embed_by_encoder(encoder), limits=None, identity=encoder.identity)

    return {
        Label(PIXELS): Source(make=lambda: embed_as_pixels, limits=limits, identity={"baseline": PIXELS}),
        **{Label(RANDOM, seed): drawn(seed) for seed in range(num_random)},
        **{Label(name): trained(subject) for name, subject in subjects.items()},
        **{Label(name): encoding(encoder) for name, encoder in encoders.items()},
    }


def _processor_settings(directory: Path) -> dict[str, Any]:
    settings: dict[str, Any] = load_processor(directory).image_processor.to_dict()
    return settings


def probe_towers(arguments: TowerArguments) -> Path:
    """Probes all towers and writes everything; returns the output directory."""
    subjects = open_subjects(arguments.model)
    encoders = open_encoders(arguments.encoder or (), {RANDOM, PIXELS, *subjects})
    limits = shown_limits(arguments, next(iter(subjects.values())).directory)
    images = load_images(
        arguments.data,
        test_frac=arguments.test_frac,
        seed=arguments.seed,
        limit=arguments.limit,
        min_per_class=arguments.num_folds,
    )
    groups, unused = make_groups(images, data=arguments.data, by=arguments.by, num_folds=arguments.num_folds)
    settings: dict[str, Any] = {
        "models": {name: subject.fingerprint for name, subject in subjects.items()},
        "images_sha256": images.fingerprint(),
        "num_train": sum(len(group.train) for group in groups),
        "num_test": sum(len(group.test) for group in groups),
        "pixels": limits,
        **{
            name: getattr(arguments, name)
            for name in ("data", "test_frac", "limit", "num_folds", "batch_size", "seed", "num_random")
        },
    }
    if arguments.by is not None:
        settings["by"] = arguments.by
    if encoders:
        settings["encoders"] = {name: encoder.identity for name, encoder in encoders.items()}
    output_dir = Path(arguments.output_dir)
    with open_run(output_dir, command="eval.tower", settings=settings, overwrite=arguments.overwrite) as run:
        if run.finished:
            return output_dir
        left_out = images.left_out | unused
        run.note(left_out=left_out, **{name: subject.facts for name, subject in subjects.items()})
        for reason, num in left_out.items():
            print(f"left out: {num} ({reason})")

        def directory(label: Label, source: Source) -> Path:
            if arguments.cache_dir is None:
                return output_dir / FEATURES_DIR / str(label)
            identity = {"source": source.identity, "limits": repr(source.limits)}
            return cached_directory(Path(arguments.cache_dir), identity, images.images, arguments.batch_size)

        stores = {
            label: store_features(
                directory(label, source), source.make, images.images, source.limits,
                batch_size=arguments.batch_size, name=str(label),
            )
            for label, source in feature_sources(subjects, encoders, limits, arguments.num_random).items()
        }  # fmt: skip
        with RecordLog(output_dir / "records.jsonl") as log:
            records = run_probes(output_dir, log, stores, groups, num_folds=arguments.num_folds, seed=arguments.seed)
        outcomes = [collect_outcomes(output_dir, *each) for each in zip(groups, records, strict=True)]
        scores = write_tables(output_dir, outcomes, images, list(subjects), list(encoders))
        draw_all(scores, output_dir / "figures", list(encoders))
    return output_dir


def main(argv: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(argv, TowerArguments, description=__doc__, check_inputs=True)
    output_dir = probe_towers(arguments)
    encoders = [encoder_name(text) for text in arguments.encoder or ()]
    print(
        *summary(output_dir, encoders), *class_lines(output_dir), f"tower probes: {output_dir / 'tower.csv'}", sep="\n"
    )
