"""Does a layer sweep find the layer that was planted? A study of written evaluations, in which layer 3 does it all."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analyze.layers.command import main
from analyze.layers.plan import NECESSITY, SUFFICIENCY, read_place
from eval.compare.command import write_comparison
from eval.statistics.pairing import Entry
from models.layout import layout_of
from tracking.run import open_run
from tracking.tables import read_table, write_table

pytestmark = pytest.mark.slow
NUM_LAYERS = 6
NEEDED = 3
NUM_PROMPTS, SEEDS = 200, (0, 1, 2)
START, GAINED = 0.3, 0.8
SETTINGS = {"tasks": {"test": "abc"}, "prompt_style": "plain", "max_new_tokens": 24, "dtype": "float32"}


def rate_of(name: str) -> float:
    """The planted accuracy: training layer 3 alone is enough, and nothing is gained without it."""
    place = read_place(name)
    if place is None:
        return START if name == "sft" else GAINED
    has = place.first <= NEEDED <= place.last
    return GAINED if has == (place.direction == SUFFICIENCY) else START


def evaluate(directory: Path, rate: float, seed: int) -> None:
    with open_run(directory, command="eval.run", settings={**SETTINGS, "model": str(directory)}):
        difficulty = np.random.default_rng(1).random(NUM_PROMPTS)
        noise = np.random.default_rng(seed).normal(0, 0.1, NUM_PROMPTS)
        lines = [
            json.dumps(
                {
                    "key": f"test/{number}", "task": "test", "id": str(number), "ability": "reasoning",
                    "status": "correct" if right else "incorrect", "well_formed": True, "num_tokens": 5,
                    "finish_reason": "stop",
                }
            )
            for number, right in enumerate(difficulty + noise < rate)
        ]  # fmt: skip
        (directory / "records.jsonl").write_text("".join(line + "\n" for line in lines))


def write_study(directory: Path, arms: list[str], checkpoint: Path) -> Path:
    """Writes what train.necessity leaves: run.json, evaluations, the comparison, and a trained model of full."""
    settings = {"arms": ["full", *arms], "seeds": list(SEEDS), "partition": "thirds", "cuts": []}
    names = [text.replace(":", "") for text in settings["arms"]]
    with open_run(directory, command="train.necessity", settings=settings):
        evaluate(directory / "eval" / "sft", START, 99)
        entries = [Entry("sft", None, directory / "eval" / "sft")]
        for number, name in enumerate(names):
            for seed in SEEDS:
                folder = directory / "eval" / f"{name}-seed{seed}"
                evaluate(folder, rate_of(name), 10 * number + seed)
                entries.append(Entry(name, seed, folder))
        write_comparison(directory / "comparison", entries, baseline="sft", reference="full")
        (directory / "arms" / "full-seed0").mkdir(parents=True)
        (directory / "arms" / "full-seed0" / "final").symlink_to(checkpoint, target_is_directory=True)
    return directory


@pytest.fixture(scope="module")
def study(made_once: Callable[[str, Callable[[Path], object]], Path], pocket_checkpoint: Path) -> Path:
    """Both directions, each layer; sufficiency of attention too."""
    each = [f"{kind}-llm:{layer}" for kind in ("only", "freeze") for layer in range(NUM_LAYERS)]
    arms = [*each, *(f"only-llm:{layer}.attn" for layer in range(NUM_LAYERS))]
    return made_once("layer-sweep", lambda folder: write_study(folder / "study", arms, pocket_checkpoint)) / "study"


def run(study: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, pd.DataFrame], str]:
    main([str(study), "--output-dir", str(output)])
    tables = {name: read_table(output / f"{name}.csv") for name in ("layers", "agreement", "middle")}
    return tables, capsys.readouterr().out


def test_the_planted_layer_is_found_in_both_directions(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables, said = run(study, tmp_path / "out", capsys)
    layers = tables["layers"]
    assert len(layers) == 3 * NUM_LAYERS
    for (_, _), own in layers.groupby(["direction", "part"]):
        found = own.set_index("first")
        assert list(found.index) == list(range(NUM_LAYERS))
        assert found["share_low"][NEEDED] > 0.8
        assert (found.drop(index=NEEDED)["share_high"] < 0.2).all()
        assert ((found["share_low"] <= found["share"]) & (found["share"] <= found["share_high"])).all()
        assert list(found.index[found["p_holm"] < 0.05]) == [NEEDED]
    assert set(layers["against"][layers["direction"] == SUFFICIENCY]) == {"sft"}
    assert set(layers["against"][layers["direction"] == NECESSITY]) == {"full"}
    assert "2 of 12 places suffice alone for more than half of the gain (layer 3" in said
    assert "1 of 6 places cost more than half of the gain if frozen (layer 3: " in said
    page = (tmp_path / "out" / "layers.html").read_text()
    assert "data:image/png;base64," in page and "2 of 12 places suffice alone" in page


def test_shares_are_those_of_the_comparison(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers = run(study, tmp_path / "out", capsys)[0]["layers"].set_index("arm")
    comparison = read_table(study / "comparison" / "comparison.csv")
    pooled = comparison[(comparison["seed"] == "pooled") & (comparison["metric"] == "accuracy")]
    kept = pooled[pooled["against"] == "sft"].set_index("arm")
    for arm, row in layers.iterrows():
        share = kept.loc[arm, "gain_kept"]
        assert row["share"] == pytest.approx(1 - share if row["direction"] == NECESSITY else share)
    assert layers.loc["freeze-llm3", "share_low"] == pytest.approx(1 - kept.loc["freeze-llm3", "gain_kept_high"])


def test_the_middle_layers_are_compared_with_the_others_over_all_arms(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables, said = run(study, tmp_path / "out", capsys)
    scores = read_table(study / "comparison" / "scores.csv").groupby("model")["accuracy"].mean()
    for _, row in tables["middle"].iterrows():
        kind = "only" if row["direction"] == SUFFICIENCY else "freeze"
        means = [scores[f"{kind}-llm{layer}"] for layer in range(NUM_LAYERS)]
        difference = np.mean(means[2:4]) - np.mean(means[:2] + means[4:])
        assert row["difference"] == pytest.approx(difference if kind == "only" else -difference, rel=1e-4)
        assert row["low"] > 0 and row["p_holm"] < 0.05
    assert said.count("is supported (") == 2


def test_what_is_no_layer_sweep_is_refused_in_a_line(study: Path, pocket_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is an output of eval\.run; expected a study of train\.necessity"):
        main([str(study / "eval" / "sft"), "--output-dir", str(tmp_path / "out")])
    plain = write_study(tmp_path / "plain", ["freeze-mid"], pocket_checkpoint)
    with pytest.raises(ValueError, match="has no arm of a single layer, only full, freeze-mid"):
        main([str(plain), "--output-dir", str(tmp_path / "out")])
    few = write_study(tmp_path / "few", ["only-llm:1", "only-llm:2"], pocket_checkpoint)
    with pytest.raises(ValueError, match="has 2 evaluated arms of single layers; expected at least 3"):
        main([str(few), "--output-dir", str(tmp_path / "out")])
    (few / "eval" / "sft" / "run.json").unlink()
    with pytest.raises(ValueError, match="has no evaluation of sft"):
        main([str(few), "--output-dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_an_arm_that_was_not_evaluated_is_named(
    pocket_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = [f"only-llm:{layer}" for layer in range(NUM_LAYERS)]
    sweep = write_study(tmp_path / "study", arms, pocket_checkpoint)
    (sweep / "eval" / "only-llm5-seed1" / "run.json").unlink()
    tables, said = run(sweep, tmp_path / "out", capsys)
    assert "not evaluated yet: only-llm5-seed1" in said
    assert "only-llm5-seed1" in (tmp_path / "out" / "layers.html").read_text()
    assert len(tables["layers"]) == NUM_LAYERS


def test_the_size_of_the_change_is_read_where_it_was_measured(
    study: Path, pocket_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = tmp_path / "study"
    copied.mkdir()
    for part in ("eval", "arms", "comparison", "run.json"):
        (copied / part).symlink_to(study / part)
    names = [parameter for parameter in layout_of(pocket_checkpoint) if parameter.region == "llm"]
    rows = [
        {"phase": "full", "seed": 0, "block": "early", "region": "llm", "layer": each.index, "tensor": each.name,
         "energy": 1.0 + (each.index == NEEDED)}
        for each in names
    ]  # fmt: skip
    (copied / "deltas").mkdir()
    write_table(copied / "deltas" / "matrices.csv", pd.DataFrame(rows))
    tables, _ = run(copied, tmp_path / "out", capsys)
    own = tables["layers"][(tables["layers"]["direction"] == NECESSITY)].set_index("first")["energy_share"]
    assert own[NEEDED] == pytest.approx(4 / 9, rel=1e-5) and own.sum() == pytest.approx(1, rel=1e-5)
    assert (tmp_path / "out" / "figures" / "layers.png").stat().st_size > 10_000
    assert "energy" in set(tables["agreement"]["second"])
