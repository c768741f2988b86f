"""A donor may be an adapter: its blocks are those of its merge, in the file as in memory."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel

from merge.recipes.recipe import read_recipe
from merge.splice import main
from merge.tensors.live import LiveSplicer
from merge.verify import main as verify
from models.checkpoint import open_checkpoint
from models.loading import load_model
from tests.merge.donors import Donors, read_tensors
from tests.models.adapters.making import edit_config, edit_tensors, write_adapter

PATTERN = ["--pattern", "in:rl:rl", "--rest", "in"]


@pytest.fixture(scope="module")
def adapter(donors: Donors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(donors.paths["in"], tmp_path_factory.mktemp("adapters") / "adapter", r=3)


def splice(directory: Path, *arguments: str) -> Path:
    main([*arguments, "--output-dir", str(directory)])
    return directory / "checkpoint"


def flags(donors: Donors, rl: Path) -> list[str]:
    return ["--donor", f"in={donors.paths['in']}", "--donor", f"rl={rl}"]


def test_a_block_of_an_adapter_is_that_of_peft_s_merge(
    donors: Donors, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model: Any = PeftModel.from_pretrained(load_model(donors.paths["in"]), str(adapter))
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    ours = splice(tmp_path / "ours", *PATTERN, *flags(donors, adapter))
    theirs = read_tensors(splice(tmp_path / "theirs", *PATTERN, *flags(donors, tmp_path / "merged")))
    tensors, start = read_tensors(ours), read_tensors(donors.paths["in"])
    assert set(tensors) == set(theirs) and all(torch.equal(tensors[name], theirs[name]) for name in tensors)
    changed = {name for name in tensors if not torch.equal(tensors[name], start[name])}
    assert changed == {
        f"model.language_model.layers.{layer}.{module}.weight"
        for layer in range(2, 6) for module in ("self_attn.q_proj", "mlp.down_proj")
    }  # fmt: skip
    capsys.readouterr()
    verify([str(tmp_path / "ours")])
    assert "equal their owners byte for byte" in capsys.readouterr().out
    load_model(ours)


def test_splice_json_names_the_adapter_the_base_and_both_sha256s(donors: Donors, adapter: Path, tmp_path: Path) -> None:
    checkpoint = splice(tmp_path / "run", *PATTERN, *flags(donors, adapter))
    told = json.loads((checkpoint / "splice.json").read_text())
    donor = told["donors"]["rl"]["adapter"]
    base = open_checkpoint(donors.paths["in"])
    import hashlib

    weights = (adapter / "adapter_model.safetensors").read_bytes()
    assert donor["sha256"] == hashlib.sha256(weights).hexdigest() and donor["base_fingerprint"] == base.fingerprint()
    assert donor["applied"] == "merged in fp32, rounded once to the stored dtype"
    merged = [tensor for tensor in told["tensors"].values() if "adapter_tensors" in tensor["sources"][0]]
    assert len(merged) == 8
    for tensor in merged:
        (source,) = tensor["sources"]
        assert source["base_sha256"] == base.sha256(tensor["name"]) != tensor["sha256"]
        assert [re.search(r"lora_[AB]", name)[0] for name in source["adapter_tensors"]] == ["lora_A", "lora_B"]  # type: ignore[index]
    assert "were merged in fp32" in (checkpoint / "README.md").read_text()


def test_an_adapter_that_changed_since_is_a_breach(
    donors: Donors, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = write_adapter(donors.paths["in"], tmp_path / "adapter")
    splice(tmp_path / "run", *PATTERN, *flags(donors, adapter))
    edit_tensors(adapter, lambda tensors: {n: t * 1.5 if "layers.4.mlp" in n else t for n, t in tensors.items()})
    with pytest.raises(RuntimeError, match="BREACH: 1 in"):
        verify([str(tmp_path / "run")])
    assert "layers.4.mlp.down_proj.weight: its bytes are not those of rl" in capsys.readouterr().out


def test_recipes_with_adapters_and_blends_give_the_same_in_memory(
    donors: Donors, adapter: Path, tmp_path: Path
) -> None:
    blocks = {"early": "rl", "mid": {"start": "in", "end": "rl", "alpha": 0.5}, "late": "in"}
    splicer = LiveSplicer()
    for number, first in enumerate(("in", "rl")):
        places = {"in": str(donors.paths["in"]), "rl": str(adapter)}
        recipe = {
            "donors": {name: places[name] for name in sorted(places, key=lambda name: name != first)},
            "blocks": blocks,
            "rest": dict.fromkeys(("vision", "projector", "embed", "norm", "head"), "rl"),
        }
        path = tmp_path / f"recipe{number}.yaml"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        written = load_model(splice(tmp_path / f"run{number}", "--recipe", str(path)))
        live = dict(splicer.splice(read_recipe(path)).named_parameters())
        assert all(torch.equal(live[name], tensor) for name, tensor in written.named_parameters())
    for name, tensor in read_tensors(donors.paths["in"]).items():
        if ".layers.5." in name:
            assert torch.equal(live[name], tensor)


def test_what_does_not_belong_together_is_refused(donors: Donors, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"and donor rl .* are nested"):
        splice(adapter / "inside", *PATTERN, *flags(donors, adapter))
    lost = write_adapter(donors.paths["in"], tmp_path / "lost")
    edit_config(lost, base_model_name_or_path="gone/at/all")
    with pytest.raises(ValueError, match="its base model is not here"):
        splice(tmp_path / "run", *PATTERN, *flags(donors, lost))
    assert not (tmp_path / "run").exists()


def test_a_diverged_adapter_is_refused_before_anything_is_written(
    donors: Donors, adapter: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(adapter, tmp_path / "broken"))
    edit_tensors(broken, lambda tensors: {n: t / 0 if "layers.5.mlp" in n else t for n, t in tensors.items()})
    with pytest.raises(ValueError, match=r"layers.5.mlp.* holds NaN or infinite values"):
        splice(tmp_path / "run", *PATTERN, *flags(donors, broken))
    assert not (tmp_path / "run").exists()
