"""Writes prediction tables with VLMEvalKit: one model that replays replies, a custom data set, its own evaluation.

    PYTHON vlmevalkit_writes.py CASES.json MODEL FOLDER

Runs with the interpreter of an environment that has VLMEvalKit (on PyPI: ms-vlmeval), and imports nothing of this
suite.
"""

import json
import os
import sys
from pathlib import Path


def main() -> None:
    cases_file, name, folder = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    os.environ["LMUData"] = str(folder)  # noqa: SIM112 (as VLMEvalKit spells it)

    import pandas as pd
    from PIL import Image
    from vlmeval.dataset import build_dataset
    from vlmeval.inference import infer_data_job
    from vlmeval.vlm.base import BaseModel

    class Replaying(BaseModel):
        """Replies to each question, whose picture is the first part of the message, as the cases say."""

        def generate_inner(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
            asked = "".join(part["value"] for part in message if part["type"] == "text")
            shown = "".join(Path(part["value"]).stem for part in message if part["type"] == "image")
            return next(
                str(one[name]) for one in cases["shapes"] if one["question"] in asked and one["picture"] == shown
            )

    cases = json.loads(cases_file.read_text())
    for picture, colour in cases["pictures"].items():
        place = folder / "images" / "OwnShapes" / f"{picture}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (28, 28), tuple(colour)).save(place)
    rows = [
        {
            "index": number,
            "image_path": str(folder / "images" / "OwnShapes" / f"{one['picture']}.png"),
            "question": one["question"],
            **dict(zip("ABCD", one["options"], strict=True)),
            "answer": one["answer"],
            "category": one["category"],
        }
        for number, one in enumerate(cases["shapes"])
    ]
    pd.DataFrame(rows).to_csv(folder / "OwnShapes.tsv", sep="\t", index=False)
    out = folder / name
    out.mkdir(exist_ok=True)
    for kind in ("xlsx", "tsv"):
        os.environ["PRED_FORMAT"] = kind
        dataset = build_dataset("OwnShapes")
        infer_data_job(Replaying(), work_dir=str(out), model_name=name, dataset=dataset, api_nproc=1)
        dataset.evaluate(str(out / f"{name}_OwnShapes.{kind}"), model="exact_matching", nproc=1)


if __name__ == "__main__":
    main()
