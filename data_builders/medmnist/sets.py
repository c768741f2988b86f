"""What do the twelve 2D sets of MedMNIST show, and what are their classes called?

Names, order of classes and tasks are those of `INFO` in `medmnist/info.py`, version 3.0.2 (MedMNIST v2: Yang et al.,
Scientific Data 10:41, 2023), modalities those of the table in its README. The questions are this suite's own.

Known limits: the classes of RetinaMNIST are grades 0 to 4 without names. The 3D sets are not read.
"""

from dataclasses import dataclass
from enum import StrEnum


class Labels(StrEnum):
    """What the labels of a set are."""

    CLASSES = "classes"
    """One class per picture."""
    FINDINGS = "findings"
    """Any number of findings per picture: [n, findings] of 0 and 1."""
    GRADES = "grades"
    """One of several ordered grades per picture."""


@dataclass(frozen=True, kw_only=True)
class MedicalSet:
    """One set: what its pictures show and the names of its labels, in the order of their numbers."""

    modality: str
    picture: str
    """What one of its pictures is, as in "this …"."""
    question: str
    names: tuple[str, ...]
    labels: Labels = Labels.CLASSES


ORGANS = (
    "bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver", "lung-left", "lung-right",
    "pancreas", "spleen",
)  # fmt: skip


def _organs(view: str) -> MedicalSet:
    return MedicalSet(
        modality="Abdominal CT",
        picture=f"{view} section of an abdominal CT",
        question=f"Which organ is in the centre of this {view} section of an abdominal CT?",
        names=ORGANS,
    )


SETS = {
    "pathmnist": MedicalSet(
        modality="Colon Pathology",
        picture="histology image of the colon",
        question="What does this histology image of the colon show?",
        names=(
            "adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa",
            "cancer-associated stroma", "colorectal adenocarcinoma epithelium",
        ),
    ),
    "chestmnist": MedicalSet(
        modality="Chest X-Ray",
        picture="chest X-ray",
        question="Which of these findings does this chest X-ray show?",
        names=(
            "atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax",
            "consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia",
        ),
        labels=Labels.FINDINGS,
    ),
    "dermamnist": MedicalSet(
        modality="Dermatoscope",
        picture="dermatoscopic image",
        question="Which lesion does this dermatoscopic image show?",
        names=(
            "actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma", "benign keratosis-like lesions",
            "dermatofibroma", "melanoma", "melanocytic nevi", "vascular lesions",
        ),
    ),
    "octmnist": MedicalSet(
        modality="Retinal OCT",
        picture="OCT scan of a retina",
        question="Which condition does this OCT scan of a retina show?",
        names=("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    ),
    "pneumoniamnist": MedicalSet(
        modality="Chest X-Ray",
        picture="chest X-ray of a child",
        question="Is this chest X-ray of a child normal, or does it show pneumonia?",
        names=("normal", "pneumonia"),
    ),
    "retinamnist": MedicalSet(
        modality="Fundus Camera",
        picture="fundus photograph",
        question="Which grade of diabetic retinopathy, from 0 (none) to 4 (most severe), does this fundus photograph "
        "show?",
        names=("0", "1", "2", "3", "4"),
        labels=Labels.GRADES,
    ),
    "breastmnist": MedicalSet(
        modality="Breast Ultrasound",
        picture="ultrasound image of a breast",
        question="Which label describes this ultrasound image of a breast?",
        names=("malignant", "normal, benign"),
    ),
    "bloodmnist": MedicalSet(
        modality="Blood Cell Microscope",
        picture="microscope image of a blood cell",
        question="Which cell does this microscope image show?",
        names=(
            "basophil", "eosinophil", "erythroblast",
            "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)", "lymphocyte", "monocyte",
            "neutrophil", "platelet",
        ),
    ),
    "tissuemnist": MedicalSet(
        modality="Kidney Cortex Microscope",
        picture="microscope image of kidney cortex",
        question="Which cell type does this microscope image of kidney cortex show?",
        names=(
            "Collecting Duct, Connecting Tubule", "Distal Convoluted Tubule", "Glomerular endothelial cells",
            "Interstitial endothelial cells", "Leukocytes", "Podocytes", "Proximal Tubule Segments",
            "Thick Ascending Limb",
        ),
    ),
    "organamnist": _organs("axial"),
    "organcmnist": _organs("coronal"),
    "organsmnist": _organs("sagittal"),
}  # fmt: skip
SIZES = (28, 64, 128, 224)
"""Sides of the published pictures in pixels; files of more than 28 have the side in their names (`pathmnist_224`)."""


def set_of(stem: str) -> str | None:
    """Returns the set that a file's name without `.npz` stands for, such as `pathmnist_224`; None if there is none."""
    name, _, size = stem.partition("_")
    return name if name in SETS and (not size or size in map(str, SIZES)) else None
