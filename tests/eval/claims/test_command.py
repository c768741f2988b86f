"""The paper's claims: its own numbers against SciPy, and measured ones that bear them out or contradict them."""

import itertools
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from eval.claims.command import main
from eval.claims.measured import canonical_model, in_the_papers_words, read_measured
from eval.claims.published import HYBRIDS, Claim, list_claims, read_published, separate_samples
from eval.claims.tables import CONTRADICTED, SUPPORTED, UNDECIDED, UNMEASURED, claim_table, statement_table, verdict
from eval.statistics.critical import critical_value
from eval.statistics.intervals import holm
from tracking.command import REPOSITORY_ROOT

PAPER = REPOSITORY_ROOT.parent / "shared" / "reference" / "paper.md"
RECIPES = ("OpenMMReasoner", "MMR1", "Revisual-R1")


def test_the_published_numbers_are_those_of_the_notes_on_the_paper() -> None:
    if not PAPER.is_file():
        pytest.skip(f"{PAPER} is not here")
    text = PAPER.read_text()
    shares = read_published()
    seen = 0
    for number, heading in (("2", "## Table 2"), ("3", "## Table 3")):
        lines = [line for line in text.split(heading)[1].split("\n## ")[0].splitlines() if line.startswith("|")]
        header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        recipe = "Frankenstein-3B"
        for first, *cells in rows:
            for name, cell in zip(header[1:], cells, strict=True):
                if number == "2":
                    start, _, ability = first.partition(" ")
                    recipe = recipe if start == "–" else next(known for known in RECIPES if known.startswith(start))
                    key = (number, recipe, ability, name.lower().replace(":", "-"))
                else:
                    key = (number, recipe, name, first.lower().replace("frozen ", "freeze-"))
                assert shares[key] == pytest.approx(float(cell) / 100), key
                seen += 1
    assert seen == len(shares) == 3 * 3 * 9 + 5 * 6


def test_every_hybrid_and_frozen_run_is_compared_with_in_and_with_rl() -> None:
    claims = list_claims(read_published())
    assert len(claims) == len(set(claims)) == 9 * (3 + 2 * 6) + 6 * (1 + 2 * 3)
    for recipe, ability, model, against in itertools.product(RECIPES, ("vision", "reasoning"), HYBRIDS, ("in", "rl")):
        assert Claim("2", recipe, ability, model, against) in claims
    assert Claim("3", "Frankenstein-3B", "MathVerse", "freeze-mid", "rl") in claims


def test_separate_samples_are_tested_as_scipy_does_and_have_newcombes_interval() -> None:
    # Newcombe, Statistics in Medicine 17 (1998) 873-890, table II, method 10: 56/70 - 48/80 and 9/10 - 3/10.
    for (right, n), (right_against, n_against), low, high in (
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
    ):
        found = separate_samples(right / n, right_against / n_against, n, n_against)
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
        table = [[right, n - right], [right_against, n_against - right_against]]
        assert found.p == pytest.approx(scipy.stats.chi2_contingency(table, correction=False).pvalue)
    assert separate_samples(1.0, 1.0, 50, 50).p == 1


def test_of_the_papers_own_numbers_hardly_any_exceeds_the_noise_of_a_hundred() -> None:
    table = claim_table(100, [])
    for number, size in (("2", 135), ("3", 42)):
        own = table[table["table"] == number]
        assert len(own) == size
        assert own["p_holm"].to_numpy() == pytest.approx(holm(own["p"].to_numpy()))
    beyond = table[table["exceeds_noise"]]
    assert list(zip(beyond["recipe"], beyond["ability"], beyond["model"], beyond["against"], strict=True)) == [
        ("Revisual-R1", "reasoning", "rl", "base"),
        ("Frankenstein-3B", "MathVision", "rl", "in"),
        ("Frankenstein-3B", "MathVision", "freeze-early", "rl"),
    ]
    assert (beyond["verdict"] == SUPPORTED).all()
    hybrids = table[table["model"].isin(HYBRIDS)]
    assert (hybrids["verdict"] == UNDECIDED).all() and hybrids["num_needed"].min() > 90
    assert (statement_table(table, measured=[])["verdict"] == UNDECIDED).all()


def test_the_same_numbers_from_ten_thousand_prompts_would_have_shown_most() -> None:
    table = claim_table(10_000, [])
    abilities = table[table["table"] == "2"]
    large = abilities["difference"].abs() > 0.035
    assert abilities[large]["exceeds_noise"].all()
    assert (abilities[abilities["difference"] == 0]["verdict"] == SUPPORTED).all()
    statements = statement_table(table, measured=[]).set_index("statement")["verdict"]
    assert statements["RL improves vision-to-reasoning alignment over IN"] == SUPPORTED
    assert statements["Freezing the mid layers hurts RL"] == CONTRADICTED
    assert statements["Freezing the early layers does not hurt RL"] == CONTRADICTED


@pytest.mark.parametrize(
    ("expected", "estimate", "error", "p", "found"),
    [
        (1, 0.1, 0.02, 0.001, SUPPORTED),
        (1, -0.1, 0.02, 0.001, CONTRADICTED),
        (-1, -0.1, 0.02, 0.049, SUPPORTED),
        (-1, -0.1, 0.02, 0.051, UNDECIDED),
        (0, 0.1, 0.02, 0.001, CONTRADICTED),
        (0, 0.01, 0.02, 0.6, SUPPORTED),  # 0.01 + 1.645 × 0.02 = 0.043
        (0, 0.02, 0.02, 0.3, UNDECIDED),  # 0.053
        (1, float("nan"), float("nan"), float("nan"), UNMEASURED),
    ],
)
def test_a_verdict_needs_more_than_a_sign(expected: int, estimate: float, error: float, p: float, found: str) -> None:
    assert verdict(expected, estimate, abs(estimate) + 1.645 * error, p) == found


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("sft", "in"), ("IN", "in"), ("full", "rl"), ("RL", "rl"), ("IN:RL:RL", "in-rl-rl"), ("base", "base"),
        ("sft-full_full", "in-rl-rl"), ("freeze-mid", "freeze-mid"), ("Frozen Late", "freeze-late"),
    ],
)  # fmt: skip
def test_models_are_recognised_by_our_names_and_the_papers(name: str, model: str) -> None:
    assert canonical_model(name) == model


def score_rows(shares: dict[str, float], *, ability: str, task: str = "test", n: int = 1000) -> list[dict[str, object]]:
    return [
        {"model": model, "seed": "", "task": task, "ability": ability, "n": n, "accuracy": share}
        for model, share in shares.items()
    ]


def test_scores_alone_are_compared_as_separate_samples_and_seeds_add_no_prompts() -> None:
    rows = score_rows({"sft": 0.5, "full": 0.7}, ability="reasoning")
    rows += [{**row, "accuracy": 0.8, "seed": 1} for row in rows[1:]]
    found = in_the_papers_words(None, pd.DataFrame(rows), None).difference(Claim("2", "MMR1", "reasoning", "rl", "in"))
    assert found == separate_samples(0.75, 0.5, 1000, 1000)


def test_plain_accuracy_is_no_vision_ability_but_a_benchmarks_score() -> None:
    rows = score_rows({"sft": 0.5, "full": 0.7}, ability="vision", task="mathvista_testmini")
    source = in_the_papers_words(None, pd.DataFrame(rows), None)
    assert source.difference(Claim("2", "MMR1", "vision", "rl", "in")) is None
    found = source.difference(Claim("3", "Frankenstein-3B", "MathVista", "rl", "in"))
    assert found is not None and found.estimate == pytest.approx(0.2)
    assert source.difference(Claim("3", "Frankenstein-3B", "MathVerse", "rl", "in")) is None


def test_of_several_tasks_the_papers_own_is_taken() -> None:
    rows = score_rows({"sft": 0.9, "full": 0.95}, ability="reasoning", task="gsm8k")
    rows += score_rows({"sft": 0.5, "full": 0.7}, ability="reasoning", task="MATH-500", n=500)
    found = in_the_papers_words(None, pd.DataFrame(rows), None).difference(Claim("2", "MMR1", "reasoning", "rl", "in"))
    assert found == separate_samples(0.7, 0.5, 500, 500)


def write_comparison(
    directory: Path, differences: dict[tuple[str, str, str], float], *, error: float = 0.01, metric: str = "ability"
) -> Path:
    """Writes the tables that eval.compare leaves: (ability, arm, against) -> difference."""
    directory.mkdir()
    scores = [
        row for ability in ("vision", "reasoning") for row in score_rows({"sft": 0.5, "rl": 0.6}, ability=ability)
    ]
    pd.DataFrame(scores).to_csv(directory / "scores.csv", index=False)
    rows = []
    for (ability, arm, against), difference in differences.items():
        p = 2 * scipy.stats.norm.sf(abs(difference) / error)
        row = {"task": "test", "ability": ability, "metric": metric, "arm": arm, "against": against, "n": 500}
        row |= {"difference": difference, "low": difference - 2 * error, "high": difference + 2 * error, "p": p}
        row |= {"standard_error": error, "test": "t, seeds and prompts", "mean": 0.5 + difference, "mean_against": 0.5}
        row |= {"p_holm": min(1.0, 7 * p), "family": f"{metric}, pooled", "scope": "training", "num_seeds": 4}
        row |= {"num_seeds_against": 1, "equivalent_within": abs(difference) + 1.645 * error, "num_clusters": 500}
        row |= {"prompt_error": error, "seed_error": 0.0, "seed_degrees": 3}
        rows += [{**row, "seed": "pooled"}, {**row, "seed": "0", "family": "per seed", "difference": -difference}]
    pd.DataFrame(rows).to_csv(directory / "comparison.csv", index=False)
    return directory / "scores.csv"


def test_paired_tests_beside_the_scores_are_taken_in_either_direction(tmp_path: Path) -> None:
    scores = write_comparison(tmp_path / "c", {("vision", "sft", "rl"): 0.2})
    found = read_measured(str(scores), list(RECIPES)).difference(Claim("2", "MMR1", "vision", "rl", "in"))
    assert found is not None
    assert (found.estimate, found.low, found.high) == pytest.approx((-0.2, -0.22, -0.18))
    assert (found.share, found.share_against) == pytest.approx((0.5, 0.7)) and found.test == "t, seeds and prompts"


def test_each_published_claim_gets_the_verdict_of_what_was_measured(tmp_path: Path) -> None:
    measured = {
        ("vision", "rl", "sft"): 0.1,  # published: MMR1 44 to 50
        ("vision", "in-rl-rl", "sft"): 0.1,  # 44 to 37
        ("vision", "rl-in-in", "sft"): 0.015,  # 44 to 45
        ("reasoning", "in-rl-rl", "sft"): 0.1,  # 60 to 61
    }
    scores = write_comparison(tmp_path / "c", measured)
    main(["--scores", f"MMR1={scores}", "--output-dir", str(tmp_path / "out")])
    table = pd.read_csv(tmp_path / "out" / "claims.csv").set_index(["recipe", "ability", "model", "against"])["verdict"]
    assert table["MMR1", "vision", "rl", "in"] == SUPPORTED
    assert table["MMR1", "vision", "in-rl-rl", "in"] == CONTRADICTED
    assert table["MMR1", "vision", "rl-in-in", "in"] == UNDECIDED
    assert table["OpenMMReasoner", "vision", "rl", "in"] == UNMEASURED
    assert (table == UNMEASURED).sum() == 135 + 42 - 5, "reasoning of rl and in is measured by the scores alone"
    statements = pd.read_csv(tmp_path / "out" / "statements.csv").set_index("statement")
    row = statements.loc["RL does not enhance visual perception as such"]
    assert row["verdict"] == CONTRADICTED and row["measured_num_comparisons"] == 1
    half = statements.loc["RL's mid and late layers carry its gains into IN"]
    assert half["verdict"] == UNMEASURED, "only one of its two abilities was measured"


@pytest.mark.slow
def test_models_of_ones_own_stand_beside_every_recipe_with_the_p_values_of_their_comparison(tmp_path: Path) -> None:
    measured = {("vision", "rl", "sft"): 0.03, ("vision", "in-rl-rl", "sft"): 0.02, ("vision", "rl", "base"): 0.01}
    scores = write_comparison(tmp_path / "c", measured)
    table = claim_table(100, [read_measured(str(scores), list(RECIPES))])
    own = table[(table["ability"] == "vision") & (table["table"] == "2")].dropna(subset=["measured_p"])
    assert len(own) == 3 * 3
    for (model, against), rows in own.groupby(["model", "against"]):
        source = pd.read_csv(tmp_path / "c" / "comparison.csv").query("seed == 'pooled'")
        source = source[(source["arm"] == model) & (source["against"] == against.replace("in", "sft"))].iloc[0]
        assert list(rows["measured_p_holm"]) == pytest.approx([source["p_holm"]] * 3)
        assert set(rows["measured_num_tests"]) == {3} and set(rows["measured_scope"]) == {"training"}
    alone = table[(table["ability"] == "reasoning") & (table["table"] == "2")].dropna(subset=["measured_p"])
    assert list(alone["measured_p_holm"]) == pytest.approx([separate_samples(0.6, 0.5, 1000, 1000).p] * 3)
    assert set(alone["measured_num_tests"]) == {1}, "what only the scores hold is corrected here"


def measured_statements(scores: Path) -> pd.DataFrame:
    found = [read_measured(str(scores), list(RECIPES))]
    return statement_table(claim_table(100, found), measured=found)


@pytest.mark.slow
def test_a_statement_about_one_difference_has_the_numbers_of_its_comparison(tmp_path: Path) -> None:
    measured = {("vision-to-reasoning", "rl", "sft"): 0.03, ("reasoning", "rl", "sft"): 0.02}
    scores = write_comparison(tmp_path / "c", measured)
    statements = measured_statements(scores)
    row = statements.set_index("statement").loc["RL improves vision-to-reasoning alignment over IN"]
    source = pd.read_csv(tmp_path / "c" / "comparison.csv").iloc[0]
    for name in ("difference", "low", "high", "p", "p_holm", "scope"):
        assert row[f"measured_{name}"] == source[name], name
    assert row["verdict"] == SUPPORTED and row["measured_num_tests"] == 2


@pytest.mark.slow
def test_a_mean_of_several_differences_keeps_the_errors_of_the_runs_that_they_share(tmp_path: Path) -> None:
    measured = {(ability, "freeze-mid", "rl"): -0.1 for ability in ("vision-to-reasoning", "reasoning")}
    scores = write_comparison(tmp_path / "c", measured)
    path = tmp_path / "c" / "comparison.csv"
    seed_error = 0.02
    pd.read_csv(path).assign(seed_error=seed_error).to_csv(path, index=False)
    statements = measured_statements(scores)
    row = statements.set_index("statement").loc["Freezing the mid layers hurts RL"]
    prompts, seeds = 0.01**2 / 2, seed_error**2
    assert row["measured_standard_error"] == pytest.approx((prompts + seeds) ** 0.5)
    critical = critical_value(0.05, np.array(prompts), np.array(seeds), np.array(500), 3)
    assert row["measured_high"] == pytest.approx(-0.1 + critical * (prompts + seeds) ** 0.5)
    assert (row["measured_scope"], row["measured_num_seeds"]) == ("training", 4)
    pd.read_csv(path).assign(seed_error=0.0, seed_degrees=0, scope="checkpoints").to_csv(path, index=False)
    statements = measured_statements(scores)
    assert statements.set_index("statement").loc["Freezing the mid layers hurts RL", "measured_scope"] == "checkpoints"


def test_the_same_difference_under_both_metrics_is_taken_as_accuracy(tmp_path: Path) -> None:
    scores = write_comparison(tmp_path / "c", {("reasoning", "rl", "sft"): 0.02})
    again = write_comparison(tmp_path / "d", {("reasoning", "rl", "sft"): 0.02}, metric="accuracy")
    both = [pd.read_csv(path.with_name("comparison.csv")) for path in (scores, again)]
    pd.concat([both[0], both[1].assign(p_holm=0.9)]).to_csv(tmp_path / "c" / "comparison.csv", index=False)
    found = read_measured(str(scores), list(RECIPES)).difference(Claim("2", "MMR1", "reasoning", "rl", "in"))
    assert found is not None and found.p_holm == 0.9


@pytest.mark.slow
def test_of_a_claim_measured_twice_the_first_table_counts(tmp_path: Path) -> None:
    first = write_comparison(tmp_path / "a", {("vision", "rl", "sft"): 0.1})
    second = write_comparison(tmp_path / "b", {("vision", "rl", "sft"): 0.2, ("vision", "in-rl-rl", "sft"): 0.3})
    table = claim_table(100, [read_measured(str(scores), list(RECIPES)) for scores in (first, second)])
    own = table[(table["table"] == "2") & (table["ability"] == "vision") & (table["recipe"] == "MMR1")]
    found = own.set_index(["model", "against"])["measured_difference"].dropna()
    assert found["rl", "in"] == pytest.approx(0.1) and found["in-rl-rl", "in"] == pytest.approx(0.3)


@pytest.mark.slow
def test_a_statement_on_two_abilities_has_the_seeds_of_their_mean(tmp_path: Path) -> None:
    """A run that is better on one ability is worse on the other, so their mean does not differ between seeds."""
    differences = {(ability, "in-rl-rl", "sft"): 0.1 for ability in ("vision-to-reasoning", "reasoning")}
    path = write_comparison(tmp_path / "c", differences)
    scores = []
    for ability, sign in (("vision-to-reasoning", 1), ("reasoning", -1)):
        scores += score_rows({"sft": 0.5}, ability=ability)
        for seed in range(3):
            scores += [
                row | {"seed": seed} for row in score_rows({"in-rl-rl": 0.6 + sign * 0.1 * (seed - 1)}, ability=ability)
            ]
    table = pd.DataFrame(scores)
    table.assign(ability_score=table["accuracy"], num_ability=table["n"]).to_csv(path, index=False)
    comparison = tmp_path / "c" / "comparison.csv"
    pd.read_csv(comparison).assign(seed_error=0.06, seed_degrees=2).to_csv(comparison, index=False)
    row = measured_statements(path).set_index("statement").loc["RL's mid and late layers carry its gains into IN"]
    assert row["measured_difference"] == pytest.approx(0.1) and row["measured_scope"] == "training"
    assert row["measured_standard_error"] == pytest.approx(0.01 / 2**0.5)
    assert row["verdict"] == SUPPORTED


def test_an_unknown_recipe_and_other_tables_are_refused(tmp_path: Path) -> None:
    scores = write_comparison(tmp_path / "c", {("vision", "rl", "sft"): 0.1})
    out = ["--output-dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="no recipe 'MMR2', only OpenMMReasoner, MMR1"):
        main(["--scores", f"MMR2={scores}", *out, "--overwrite"])
    with pytest.raises(ValueError, match="has no column 'model'"):
        main(["--scores", str(tmp_path / "c" / "comparison.csv"), *out, "--overwrite"])
    with pytest.raises(ValueError, match="does not exist"):
        main(["--scores", str(tmp_path / "none" / "scores.csv"), *out, "--overwrite"])
    with pytest.raises(ValueError, match="num_samples is 0"):
        main(["--num-samples", "0", *out])


def test_the_page_says_which_published_differences_are_significant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--output-dir", str(tmp_path / "out")])
    assert "Table 2: 134 not decidable at this n, 1 supported" in capsys.readouterr().out
    page = re.sub(r"<[^>]+>|\s+", " ", (tmp_path / "out" / "claims.html").read_text())
    page = re.sub(" +", " ", page)
    assert re.search(
        r"\b\d+ of \d+ published differences (is|are) significant\. Of 10 statements, judged by the paper", page
    )
    assert "Of 135 published differences between ability scores, 1 is significant" in page
    assert "reasoning of Revisual-R1, RL with base +25.0" in page
    assert page.count("IN:RL:RL with IN") == 9 + 1
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.csv")}
    main(["--output-dir", str(tmp_path / "out")])
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.csv")}
    with pytest.raises(ValueError, match="num_samples = 100, now it is 200"):
        main(["--output-dir", str(tmp_path / "out"), "--num-samples", "200"])
