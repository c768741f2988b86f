import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoint import WEIGHTS_FILE, open_checkpoint
from models.completeness import check_against_config, check_complete
from models.layout import layout_of
from tests.models.damage import MISFITS, make_sharded, on_disk, read_tensors, write_tensors
from tracking.command import REPOSITORY_ROOT


@pytest.fixture(params=["pocket", "qwen2", "qwen2_vl", "qwen3_vl", "qwen3_5", "internvl"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A whole checkpoint of every family, the text-only one and Qwen2-VL's with a head of their own."""
    whole = request.getfixturevalue(f"{request.param}_checkpoint")
    return Path(shutil.copytree(whole, tmp_path / "checkpoint"))


def check_both_ways(directory: Path) -> None:
    checkpoint = open_checkpoint(directory)
    check_against_config(checkpoint)
    check_complete(checkpoint, layout_of(directory))


def test_a_whole_checkpoint_passes(directory: Path) -> None:
    check_both_ways(directory)
    make_sharded(directory)
    check_both_ways(directory)


def test_a_tied_duplicate_of_equal_bytes_is_no_extra_tensor(pocket_checkpoint: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(pocket_checkpoint, tmp_path / "checkpoint"))
    tensors = read_tensors(directory)
    write_tensors(directory, {**tensors, "lm_head.weight": tensors[on_disk(tensors, "embed_tokens.weight")].clone()})
    check_both_ways(directory)


@pytest.mark.parametrize("name", MISFITS)
def test_what_config_does_not_describe_is_one_line_naming_file_and_tensor(
    pocket_checkpoint: Path, tmp_path: Path, name: str
) -> None:
    damage, message = MISFITS[name]
    directory = Path(shutil.copytree(pocket_checkpoint, tmp_path / "checkpoint"))
    damage(directory)
    checkpoint = open_checkpoint(directory)
    for check in (check_against_config, lambda opened: check_complete(opened, layout_of(directory))):
        with pytest.raises(ValueError, match=message) as caught:
            check(checkpoint)
        assert "\n" not in str(caught.value) and str(directory) in str(caught.value)


def test_a_flat_configuration_is_compared_like_a_nested_one(pocket_checkpoint: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(pocket_checkpoint, tmp_path / "checkpoint"))
    config = json.loads((directory / "config.json").read_text())
    flat = {**config.pop("text_config"), **config}
    (directory / "config.json").write_text(json.dumps(flat))
    check_against_config(open_checkpoint(directory))
    for key, message in (("num_hidden_layers", r"lacks 'model\.language_model\.layers\."), ("vocab_size", "asks for")):
        (directory / "config.json").write_text(json.dumps({**flat, key: flat[key] + 1}))
        with pytest.raises(ValueError, match=message):
            check_against_config(open_checkpoint(directory))


@pytest.mark.cases_slow
def test_every_single_tensor_that_is_lost_is_named(directory: Path) -> None:
    tensors, layout = load_file(directory / WEIGHTS_FILE), layout_of(directory)
    names = {stored.name_on_disk: name for name, stored in open_checkpoint(directory).tensors.items()}
    for lost in list(tensors)[::4]:
        kept = {name: tensor for name, tensor in tensors.items() if name != lost}
        save_file(kept, directory / WEIGHTS_FILE, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=f"{WEIGHTS_FILE}: lacks '{names[lost]}'"):
            check_complete(open_checkpoint(directory), layout)


def test_a_misspelt_tensor_names_the_right_one(pocket_checkpoint: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(pocket_checkpoint, tmp_path / "checkpoint"))
    renamed = {
        name.replace("layers.0.mlp.up_proj", "layers.0.mlp.upp_proj"): t for name, t in read_tensors(directory).items()
    }
    write_tensors(directory, renamed)
    with pytest.raises(ValueError, match=r"lacks '.*\.up_proj\.weight'.*did you mean '.*\.upp_proj\.weight'"):
        check_complete(open_checkpoint(directory), layout_of(directory))


def test_a_head_that_differs_is_loaded_untied_by_transformers(pocket_checkpoint: Path, tmp_path: Path) -> None:
    """Why it is refused: what Transformers makes of such a file is neither the one model nor the other."""
    from models.loading import load_model

    directory = Path(shutil.copytree(pocket_checkpoint, tmp_path / "checkpoint"))
    MISFITS["head_beside_tied_embeddings"][0](directory)
    model = load_model(directory)
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert torch.equal(head, embeddings + 1)


def test_comparing_with_config_takes_no_torch(pocket_checkpoint: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from models.checkpoint import open_checkpoint; "
        "from models.completeness import check_against_config; "
        f"check_against_config(open_checkpoint(Path({str(pocket_checkpoint)!r}))); "
        "print(sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
