#!/usr/bin/env bash
# Packages: datasets 5.2.0, qwen-vl-utils 0.0.14, transformers 5.23.0, Pillow 13.0.0; 2026-11-28
# Guess:    a photograph with an EXIF orientation tag is shown in the same way to a Qwen-VL model in training (TRL reads
#           the pictures of a data set through the `datasets` image feature) and in evaluation by Qwen's own utilities.
# Real:     `datasets`, like `transformers.image_utils.load_image`, turns the picture upright. `fetch_image` of
#           qwen-vl-utils does not: it passes on the pixels as they are stored.
# Hurt:     photographs of phones often carry the tag. The model is trained on the upright picture and evaluated on one
#           that lies on its side (or the other way round). Boxes and points that were annotated on the one are wrong on the
#           other, without any message; sizes and token counts differ only by their order.
# Do:       turn the files upright once, when the data are built, and remove the tag (`PIL.ImageOps.exif_transpose`); or
#           open pictures by one function in training and evaluation.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/tools"
"$folder/tools/bin/pip" install --quiet uv==0.13.8
"$folder/tools/bin/uv" venv --quiet --python python3 "$folder/env"
"$folder/tools/bin/uv" pip install --quiet --python "$folder/env/bin/python" \
    datasets==5.2.0 qwen-vl-utils==0.0.14 transformers==5.23.0 pillow==13.0.0 torch==2.13.0 torchvision==0.28.0

cat >"$folder/run.py" <<'PY'
"""Opens one photograph with an orientation tag in three ways: prints width x height and the place of its red half."""
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from qwen_vl_utils import fetch_image
from transformers.image_utils import load_image

path = sys.argv[1]
pixels = np.zeros((112, 224, 3), np.uint8)
pixels[:, :112, 0] = 255
tags = Image.Exif()
tags[0x0112] = 6  # as a phone held upright writes it: turn by a quarter to show
Image.fromarray(pixels).save(path, exif=tags, quality=95)

ways = {
    "datasets": Dataset.from_dict({"image": [path]}).cast_column("image", ImageFeature())[0]["image"],
    "transformers": load_image(path),
    "qwen-vl-utils": fetch_image({"image": path}),
}
for name, image in ways.items():
    red = np.asarray(image.convert("RGB"))[..., 0] > 128
    half = "left" if red[:, : red.shape[1] // 2].mean() > 0.9 else "top" if red[: len(red) // 2].mean() > 0.9 else "other"
    print(f"{name}: {image.width} x {image.height}, red half: {half}")
PY

"$folder/env/bin/python" "$folder/run.py" "$folder/photograph.jpg" 2>/dev/null | tee "$folder/out"
grep -q "^datasets: 112 x 224, red half: top" "$folder/out" || { echo "changed: datasets does not turn it" >&2; exit 1; }
grep -q "^qwen-vl-utils: 224 x 112, red half: left" "$folder/out" ||
    { echo "changed: qwen-vl-utils does not leave it as it is stored" >&2; exit 1; }
echo "as described: training by datasets and evaluation by qwen-vl-utils show the photograph differently"
