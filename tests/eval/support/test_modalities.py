"""Support, gaps and bins by modality, on models whose support and gains are known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from eval.grading import grade
from eval.support.command import main
from eval.support.gaps import DIFFERENCE, SOMETIMES_LESS_NEVER, WITH, WITHOUT
from eval.support.guessing import guess_values, guesses, pass_at_k
from eval.support.samples import GAP, GUESSING, PASS, SUPPORT
from eval.support.tables import ALL, FOUND, NONE
from tracking.run import open_run
from tracking.tables import read_table

OPTIONS = ("bird", "cat", "dog", "fish", "frog", "horse", "ship", "truck")
K, NUM_PROMPTS = 4, 80
RATES = {"seen": 0.5, "half seen": 0.25, "unseen": 0.0}
"""Modality -> how often the start says what the picture shows. Otherwise it says anything; if it sees nothing, mostly
the same option."""


def write_model(directory: Path, rates: dict[str, float], *, seed: int, num_prompts: int = NUM_PROMPTS) -> Path:
    """Writes an evaluation: each reply says what the picture shows at a rate, otherwise what the model is used to."""
    rng, prompts = np.random.default_rng(seed), np.random.default_rng(7)
    used_to = rng.dirichlet(np.full(len(OPTIONS), 5.0))
    rows: list[dict[str, Any]] = []
    for modality, rate in rates.items():
        habit = used_to if rate else np.array([0.93, *[0.01] * 7])
        for number in range(num_prompts):
            shown, choices = str(prompts.choice(OPTIONS)), [str(own) for own in prompts.permutation(OPTIONS)]
            for sample in range(K):
                said = shown if rng.random() < rate else str(rng.choice(OPTIONS, p=habit))
                letter, gold = (chr(ord("A") + choices.index(word)) for word in (said, shown))
                verdict = grade(f"<answer>{letter}</answer>", gold, "choice", choices)
                rows.append(
                    {
                        "key": f"t/{modality}{number}#{sample}", "task": "t", "id": f"{modality}{number}",
                        "ability": "vision", "condition": "given", "sample": sample, "cluster": None,
                        "modality": modality, "gold": gold, "answer_kind": "choice", "choices": choices,
                        "precision": None, "status": verdict.status, "extracted": letter, "well_formed": True,
                    }
                )  # fmt: skip
    settings = {"tasks": {"t": "f"}, "sampling": {"num_samples": K}, "model": str(directory)}
    with open_run(directory, command="eval.run", settings=settings):
        (directory / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("support")
    sharpened = {"seen": 0.8, "half seen": 0.5, "unseen": 0.0}
    models = [f"sft={write_model(folder / 'sft', RATES, seed=0)}"]
    models += [f"other@{seed}={write_model(folder / f'other{seed}', RATES, seed=7 + seed)}" for seed in (0, 1)]
    models += [f"full@{seed}={write_model(folder / f'full{seed}', sharpened, seed=1 + seed)}" for seed in (0, 1, 2)]
    main([*models, "--by", "modality", "--output-dir", str(folder / "out")])
    return folder / "out"


def test_support_is_found_where_pictures_are_seen_and_nowhere_else(output: Path) -> None:
    support = pd.read_csv(output / "support.csv")
    verdicts = support[(support["metric"] == SUPPORT) & (support["k"] == K) & (support["task"] != ALL)]
    found = {(row["model"], row["modality"]): row["verdict"] for _, row in verdicts.iterrows()}
    assert found["sft", "seen"] == found["full", "seen"] == found["full", "half seen"] == FOUND
    assert found["sft", "unseen"] == NONE and found["full", "unseen"] != FOUND
    own = support[(support["model"] == "sft") & (support["modality"] == "seen")].set_index(["metric", "k"])["value"]
    assert own[GAP, K] == pytest.approx(own[PASS, K] - own[PASS, 1], abs=1e-5)
    assert own[SUPPORT, K] == pytest.approx(own[PASS, K] - own[GUESSING, K], abs=1e-5)
    assert support["verdict"].notna().sum() == len(support[support["metric"] == SUPPORT])


def test_the_mean_over_modalities_is_the_mean_of_their_rows(output: Path) -> None:
    changes = pd.read_csv(output / "changes.csv")
    changes = changes[changes["model"] == "full"]
    for metric in (GAP, SUPPORT):
        own = changes[(changes["metric"] == metric) & (changes["k"] == K)].set_index("modality")
        assert own.loc[ALL, "value"] == pytest.approx(own.drop(ALL)["value"].mean(), abs=1e-5)
        assert own.loc[ALL, "n"] == len(RATES) * NUM_PROMPTS
    at_one = changes[(changes["metric"] == PASS) & (changes["k"] == 1)].set_index("modality")
    assert at_one.loc["seen", "p"] < 0.001 and at_one.loc["unseen", "low"] < 0 < at_one.loc["unseen", "high"]


def test_the_gain_closes_the_share_of_the_gap_that_it_is(output: Path) -> None:
    gaps = pd.read_csv(output / "gaps.csv")
    gaps = gaps[gaps["model"] == "full"].set_index("modality")
    seen = gaps.loc["seen"]
    assert seen["gap_closed"] == pytest.approx(seen["gain"] / seen["start_gap"], abs=1e-4)
    assert seen["gap_closed_low"] < seen["gap_closed"] < seen["gap_closed_high"]
    assert seen["start_verdict"] == FOUND and seen["p_holm"] < 0.01
    assert gaps.loc["unseen", "p_holm"] > 0.05
    assert gaps.loc[ALL, "gain"] == pytest.approx(gaps.loc[list(RATES), "gain"].mean(), abs=1e-5)
    assert gaps.loc[WITHOUT, "gain"] == gaps.loc["unseen", "gain"]
    assert gaps.loc[DIFFERENCE, "gain"] == pytest.approx(gaps.loc[WITH, "gain"] - gaps.loc[WITHOUT, "gain"], abs=1e-5)
    assert gaps.loc[DIFFERENCE, "low"] > 0.1


def test_a_bin_of_lucky_prompts_shows_no_gain_by_itself(output: Path) -> None:
    bins = pd.read_csv(output / "bins.csv")
    bins = bins[bins["model"] == "full"]
    unseen = bins[(bins["modality"] == "unseen") & bins["rate"].notna()]
    # Sorted and measured by the same samples, prompts that were never right would gain, and the others lose.
    assert ((unseen["low"] < 0) & (unseen["high"] > 0)).all()
    assert unseen["n"].sum() == NUM_PROMPTS
    together = bins[bins["task"] == ALL].set_index("bin")
    assert together.loc[SOMETIMES_LESS_NEVER, "n"] == together.loc[["0", "(0, 0.5]"], "n"].sum()
    assert (output / "figures" / "gaps.png").stat().st_size > 10_000


def sample(answer: str | None, gold: str, **further: Any) -> dict[str, Any]:
    return {"key": "k", "extracted": answer, "gold": gold, "answer_kind": "text", "choices": [], **further}


def test_guessing_is_what_replies_to_the_other_prompts_reach() -> None:
    golds, said = ["red", "red", "blue"], [["red", "blue"], ["blue", "blue"], ["red", None]]
    samples = [[sample(answer, gold) for answer in own] for gold, own in zip(golds, said, strict=True)]
    found = guess_values(samples, [2])
    others = [1 - (3 * 2) / (4 * 3), 1 - (2 * 1) / (4 * 3), 1.0]  # of 4 replies 1, 2 and 3 are right
    assert found.mean() == pytest.approx(np.mean(others))
    apart = [[{**one, "kind": number} for one in own] for number, own in enumerate(samples)]
    assert np.isnan(guess_values(apart, [2])).all()


def test_a_letter_means_the_text_that_its_own_prompt_gives_it() -> None:
    def asked(choices: list[str], letter: str, gold: str) -> list[dict[str, Any]]:
        return [sample(letter, gold, answer_kind="choice", choices=choices)] * 2

    cat_dog, dog_cat = ["cat", "dog"], ["dog", "cat"]
    # All say cat; the picture shows a cat, a dog, a cat.
    samples = [asked(cat_dog, "A", "A"), asked(dog_cat, "B", "A"), asked(dog_cat, "B", "B")]
    assert guess_values(samples, [1]).mean() == pytest.approx(2 / 3)
    # Options that no other prompt has are compared by their letters.
    other = [asked(["x", "y"], "B", "B"), asked(["v", "w"], "B", "A"), asked(["r", "s"], "A", "B")]
    assert guess_values(other, [1]).mean() == pytest.approx((0.5 + 0.5 + 1.0) / 3)


def test_the_influence_of_a_prompt_is_that_of_leaving_its_replies_out() -> None:
    rng = np.random.default_rng(0)
    n, k = 60, 4
    right, judged, sources = rng.binomial(k, rng.beta(1, 3, (1, n)), (n, n)), np.full((n, n), k), np.arange(n)
    values = guesses(right, judged, sources, k)
    kept = ~np.eye(n, dtype=bool)

    def mean_without(left_out: int) -> float:
        used = kept.copy()
        used[left_out] = False
        return float(pass_at_k((judged * used).sum(0), (right * used).sum(0), k).mean())

    own = pass_at_k((judged * kept).sum(0), (right * kept).sum(0), k)
    assert values.mean() == pytest.approx(own.mean(), abs=1e-12)
    moved = np.array([(n - 1) * (own.mean() - mean_without(number)) for number in range(n)])
    np.testing.assert_allclose(values - own, moved, atol=0.1 * np.abs(moved).max())


def test_a_few_prompts_have_tables_without_bins(tmp_path: Path) -> None:
    models = [f"{name}={write_model(tmp_path / name, RATES, seed=0, num_prompts=3)}" for name in ("sft", "full")]
    main([*models, "--by", "modality", "--output-dir", str(tmp_path / "out")])
    bins = read_table(tmp_path / "out" / "bins.csv")
    assert bins.empty and {"modality", "bin", "gain", "p", "equivalent_within", "p_holm"} <= set(bins.columns)
    assert (tmp_path / "out" / "figures" / "gaps.png").is_file()


def test_prompts_without_a_modality_are_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "sft", RATES, seed=0)
    lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    (folder / "records.jsonl").write_text("".join(line.replace('"modality"', '"mode"') for line in lines))
    with pytest.raises(ValueError, match="t/seen0 has no modality; expected prompts with"):
        main([f"sft={folder}", f"full={folder}", "--by", "modality", "--output-dir", str(tmp_path / "out")])
    with pytest.raises(ValueError, match="by is 'organ'; expected modality"):
        main([f"sft={folder}", "--by", "organ", "--output-dir", str(tmp_path / "out")])


def test_runs_of_other_models_help_to_estimate_how_much_seeds_differ(output: Path) -> None:
    changes = pd.read_csv(output / "changes.csv")
    own = changes[(changes["metric"] == PASS) & (changes["k"] == 1) & (changes["modality"] == "seen")]
    assert set(own["num_seeds"]) == {2, 3} and set(own["scope"]) == {"training"}
    # With its own two runs alone, half an interval would be at least six standard errors.
    other = own[own["model"] == "other"].iloc[0]
    assert (other["high"] - other["low"]) / 2 < 4 * other["standard_error"]
