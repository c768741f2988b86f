"""Transfer between modalities, on models whose gains on every modality are planted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from eval.statistics.intervals import holm
from eval.statistics.pooled import Term, contrast
from eval.statistics.simulation import Setting, World
from eval.statistics.strata import Stratum, number_clusters, stratified
from eval.transfer.command import main
from eval.transfer.models import RL, SFT, Answers, Trained, check_names, parse_trained
from eval.transfer.tables import OTHERS, OWN, OWN_LESS_OTHERS, POOLED, RL_LESS_SFT, estimate
from tracking.run import open_run

LOOKS = ("outline", "speckle", "negative", "stained")
PARTNER = {"outline": "speckle", "speckle": "outline"}
"""What is learned on one of these two looks serves the other as well; the others share nothing."""
START, GAIN, NUM_PROMPTS = 0.4, 0.3, 160
CHEST = "Chest X-Ray"


def rates(trained_on: str, gain: float) -> dict[str, float]:
    """Returns the accuracy of a model on every look."""
    return {look: START + gain * (look in (trained_on, PARTNER.get(trained_on))) for look in LOOKS}


def write_model(directory: Path, accuracy: dict[str, float], *, seed: int, apart: bool = False, **changes: Any) -> Path:
    """Writes a greedy evaluation, the looks as one task or apart as one task each."""
    rng, difficulty = np.random.default_rng(seed), np.random.default_rng(0)
    rows = []
    for look, rate in accuracy.items():
        ease = np.sort(difficulty.random(NUM_PROMPTS))  # the same prompts are easy for all models
        for number, chance in enumerate(np.clip(rate + 0.6 * (ease - 0.5), 0, 1)):
            task = look if apart else "t"
            rows.append(
                {
                    "key": f"{task}/{look}{number}", "task": task, "id": f"{look}{number}", "ability": "vision",
                    "condition": "given", "sample": 0, "modality": look, "well_formed": True,
                    "status": "correct" if rng.random() < chance else "incorrect",
                }
            )  # fmt: skip
    with open_run(directory, command="eval.run", settings={"tasks": {"t": "f"}, "model": str(directory), **changes}):
        (directory / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def run_study(folder: Path, *, apart: bool) -> Path:
    """Runs the command on two seeds of RL and of SFT on each look; RL gains more, SFT less."""
    models = [f"sft={write_model(folder / 'sft', dict.fromkeys(LOOKS, START), seed=1, apart=apart)}"]
    for place, look in enumerate(LOOKS):
        for method, gain in (("data", GAIN), ("sft", GAIN / 2)):
            for seed in (0, 1):
                name, number = f"{method}-{look}@{seed}", 10 * place + seed + (100 if method == "sft" else 2)
                models.append(f"{name}={write_model(folder / name, rates(look, gain), seed=number, apart=apart)}")
    main([*models, "--output-dir", str(folder / "out")])
    return folder / "out"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_study(tmp_path_factory.mktemp("transfer"), apart=False)


def test_models_of_all_modalities_have_no_contrasts_and_a_table_that_can_be_read(study: Path, tmp_path: Path) -> None:
    models = [f"{name}={write_model(tmp_path / name, dict.fromkeys(LOOKS, START), seed=1)}" for name in ("sft", "full")]
    main([*models, "--output-dir", str(tmp_path / "out")])
    contrasts = pd.read_csv(tmp_path / "out" / "contrasts.csv")
    assert contrasts.empty and list(contrasts.columns) == list(pd.read_csv(study / "contrasts.csv").columns)


def test_what_two_looks_share_is_found_and_nothing_else(study: Path) -> None:
    transfer = pd.read_csv(study / "transfer.csv")
    rl = transfer[transfer["method"] == RL]
    found = {(row["trained_on"], row["evaluated_on"]) for _, row in rl[rl["p_holm"] < 0.05].iterrows()}
    assert found == {*((look, look) for look in LOOKS), *PARTNER.items()}
    assert len(transfer) == 2 * len(LOOKS) ** 2 and (transfer["n"] == NUM_PROMPTS).all()
    np.testing.assert_allclose(transfer["difference"], transfer["mean"] - transfer["mean_against"], atol=2e-5)
    for name in (f"transfer-{RL}.png", f"transfer-{SFT}.png"):
        assert (study / "figures" / name).stat().st_size > 10_000


def test_the_diagonal_stands_against_the_rest(study: Path) -> None:
    transfer = pd.read_csv(study / "transfer.csv")
    contrasts = pd.read_csv(study / "contrasts.csv").set_index(["method", "question", "trained_on"])
    cells = transfer[transfer["method"] == RL].pivot_table("difference", "trained_on", "evaluated_on")
    own = np.array([cells.loc[look, look] for look in LOOKS])
    others = np.array([cells.loc[look].drop(look).mean() for look in LOOKS])
    for question, values in ((OWN, own), (OTHERS, others), (OWN_LESS_OTHERS, own - others)):
        for look, value in zip(LOOKS, values, strict=True):
            assert contrasts.loc[(RL, question, look), "difference"] == pytest.approx(value, abs=1e-5)
        assert contrasts.loc[(RL, question, POOLED), "difference"] == pytest.approx(values.mean(), abs=1e-5)
    pooled = contrasts.loc[(RL, OWN_LESS_OTHERS, POOLED)]
    # A sixth of the other cells is planted: 2 of 12.
    assert pooled["low"] < GAIN * (1 - 2 / 12) < pooled["high"] and pooled["p_holm"] < 0.001
    more = contrasts.loc[(RL_LESS_SFT, OWN, POOLED)]
    assert more["low"] < GAIN / 2 < more["high"] and more["num_modalities"] == len(LOOKS)
    assert contrasts.loc[(RL, OWN, "outline"), "p_holm"] >= contrasts.loc[(RL, OWN, "outline"), "p"]


@pytest.mark.slow
def test_looks_as_tasks_of_their_own_give_the_same_tables(study: Path, tmp_path: Path) -> None:
    apart = run_study(tmp_path, apart=True)
    for name in ("transfer.csv", "contrasts.csv"):
        assert (study / name).read_bytes() == (apart / name).read_bytes()


def test_names_say_what_a_model_was_trained_on() -> None:
    modalities = ["Chest X-Ray", "Chest", "negative"]
    assert parse_trained("data-chest-x-ray", modalities) == Trained(method=RL, on=CHEST)
    assert parse_trained("data-Chest X-Ray", modalities) == Trained(method=RL, on=CHEST)
    assert parse_trained("sft-chest", modalities) == Trained(method=SFT, on="Chest")
    assert parse_trained("data-negative-freeze-mid", modalities) == Trained(method="rl freeze-mid", on="negative")
    assert parse_trained("full", modalities) == parse_trained("data-all", modalities) == Trained(method=RL, on="all")
    with pytest.raises(ValueError, match=r"'data-negatve' does not say .* expected one of data-chest-x-ray,.*negative"):
        parse_trained("data-negatve", modalities)
    with pytest.raises(ValueError, match="'freeze-mid' does not say what it was trained on"):
        parse_trained("freeze-mid", modalities)


def test_prompts_without_modalities_and_other_prompts_are_refused(tmp_path: Path) -> None:
    flat = dict.fromkeys(LOOKS, START)
    sft, other = (write_model(tmp_path / name, flat, seed=1) for name in ("sft", "other"))
    single = write_model(tmp_path / "single", {"outline": START}, seed=1)
    out = ["--output-dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="the prompts have only outline as modality; expected two or more"):
        main([f"sft={single}", f"data-outline={single}", *out])
    with pytest.raises(ValueError, match="data-outline and sft answered different prompts"):
        main([f"sft={sft}", f"data-outline={single}", *out])
    partly = write_model(tmp_path / "partly", {**flat, "": START}, seed=1)
    with pytest.raises(ValueError, match="partly: 160 prompts have no modality, the first is t/0; expected"):
        main([f"sft={partly}", f"data-outline={partly}", *out])
    with pytest.raises(ValueError, match="models full and data-all had one training, rl on all; leave one out"):
        main([f"sft={sft}", f"full={other}", f"data-all={other}", *out])
    with pytest.raises(ValueError, match="evaluated with different prompt_style"):
        main([f"sft={sft}", f"data-outline={write_model(tmp_path / 'x', flat, seed=1, prompt_style='p')}", *out])
    with pytest.raises(ValueError, match="baseline 'base' is not among the models"):
        main([f"sft={sft}", f"data-outline={other}", "--baseline", "base", *out])
    assert not (tmp_path / "out").exists()


def test_one_stratum_is_the_contrast_itself() -> None:
    rng = np.random.default_rng(0)
    terms = {
        name: Term(coefficient=sign, values=rng.random((3, 40, 2)), trained=True)
        for name, sign in (("a", 1.0), ("b", -1.0))
    }
    clusters = np.arange(40) // 2
    whole = contrast(list(terms.values()), clusters=clusters, shares=True)
    found = stratified([Stratum(terms=terms, clusters=clusters)], shares=True)
    for field in ("estimate", "n", "prompts", "seeds", "num_clusters", "num_degrees"):
        np.testing.assert_allclose(getattr(found, field), getattr(whole, field), rtol=1e-12)


def test_a_shift_that_a_run_has_everywhere_does_not_count_between_strata() -> None:
    rng = np.random.default_rng(0)
    shifts = np.array([0.0, 0.3, 0.6])[:, None, None]
    strata = [
        Stratum(terms={"a": Term(coefficient=sign, values=shifts + 0.01 * rng.random((3, 50, 1)), trained=True)})
        for sign in (1.0, -1.0)
    ]
    assert stratified(strata).seeds[0] < 1e-4 < contrast(list(strata[0].terms.values())).seeds[0]


@pytest.mark.slow
def test_the_planted_matrix_is_found_at_calibrated_error() -> None:
    """In 200 studies: cells where nothing is learned are called significant in at most 6.5 %, after correction."""
    num_studies, num_seeds = 200, 3
    setting = Setting(num_seeds=num_seeds, num_prompts=150, base_rate=START, seed_effect=0.02)
    worlds = {look: World(setting, np.random.default_rng([5, place]), num_studies) for place, look in enumerate(LOOKS)}
    values = {"sft": {look: world.answers(START, 0) for look, world in worlds.items()}}
    for trained_on in LOOKS:
        own = rates(trained_on, GAIN)
        values[f"data-{trained_on}"] = {look: world.answers(own[look], num_seeds) for look, world in worlds.items()}
    trained = {f"data-{look}": Trained(method=RL, on=look) for look in LOOKS}
    answers = Answers(
        values=values, clusters=dict.fromkeys(LOOKS), trained=trained, start="sft", seeded=frozenset(trained)
    )
    cells = [(trained_on, look) for trained_on in LOOKS for look in LOOKS]
    p = np.stack(
        [estimate(answers, {(f"data-{trained_on}", look): 1.0, ("sft", look): -1.0}).p() for trained_on, look in cells]
    )
    corrected = np.stack([holm(own) for own in p.T], axis=1) < 0.05
    planted = np.array([look in (trained_on, PARTNER.get(trained_on)) for trained_on, look in cells])
    assert corrected[~planted].any(0).mean() <= 0.065
    assert corrected[planted].mean() > 0.9 and corrected[~planted].mean() < 0.02


def test_a_cluster_in_two_strata_counts_once() -> None:
    """Two strata with equal answers to the same clusters know as much as one of them."""
    rng = np.random.default_rng(0)
    right = (rng.random((2, 200, 1)) < 0.5).astype(float)

    def strata(second: int) -> list[Stratum]:
        return [
            Stratum(
                terms={
                    "a": Term(coefficient=0.5, values=right[:1], trained=False),
                    "b": Term(coefficient=-0.5, values=right[1:], trained=False),
                },
                clusters=np.arange(200) + offset,
            )
            for offset in (0, second)
        ]

    shared, apart = stratified(strata(0)), stratified(strata(200))
    difference = (right[0] - right[1])[:, 0]
    alone = difference.std(ddof=1) / np.sqrt(200)
    assert shared.standard_error[0] == pytest.approx(alone, rel=0.01)
    assert apart.standard_error[0] == pytest.approx(alone / np.sqrt(2), rel=0.01)
    assert (shared.num_clusters[0], apart.num_clusters[0]) == (199, 399)


def test_clusters_have_one_number_in_all_strata() -> None:
    found = number_clusters({"x": ["p", None, "q"], "y": ["q", None]})
    assert [list(own) for own in found.values() if own is not None] == [[0, 1, 2], [2, 3]]
    assert number_clusters({"x": ["p", None], "y": ["q", None]}) == {"x": None, "y": None}


@pytest.mark.parametrize(
    ("modalities", "message"),
    [(["X-ray", "x_ray"], "as does 'X-ray'"), (["CT", "All"], "a mixture"), (["–", "CT"], "letters or digits")],
)
def test_modalities_that_names_cannot_tell_apart_are_refused(modalities: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_names(modalities)
