"""Does the page say what the tables say, and what is missing?"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analyze.report.command import write_report
from analyze.report.inputs import read_inputs
from eval.statistics.intervals import Estimate, wilson
from eval.statistics.pooled import single_runs
from tracking.run import open_run
from tracking.tables import write_table

LAYERS = {0: "early", 1: "mid", 2: "late", 3: "none"}
COMPARED = {
    "task": "test", "metric": "accuracy", "against": "sft", "seed": "pooled", "n": 500, "num_seeds": 4, "mean": 0.5,
    "mean_against": 0.5, "detectable": 0.048, "scope": "training", "num_seeds_against": 1, "seed_degrees": 3,
    "family": "accuracy, pooled", "equivalent_within": 0.07, "p": 0.01, "standard_error": 0.03,
    "low_holm": -0.2, "high_holm": 0.4,
}  # fmt: skip


def finish(
    directory: Path, command: str, tables: dict[str, pd.DataFrame], settings: dict[str, Any] | None = None
) -> Path:
    """Leaves what a finished command leaves."""
    with open_run(directory, command=command, settings=settings or {}):
        for name, table in tables.items():
            write_table(directory / name, table)
    return directory


def swap_output(directory: Path, moved: dict[int, int], n: int = 100) -> Path:
    """Leaves a swap in which so many of n answers moved, by k."""
    rows = []
    for layer, num in moved.items():
        rate = wilson(num, n)
        place = {"set": "pairs", "task": "counting", "mode": "from", "layer": layer, "block": LAYERS[layer]}
        counts = {"n": n, "rate": rate.estimate, "low": rate.low, "high": rate.high, "num_unscored": 0}
        for metric, subset in (("moved_to_source", "right"), ("paper", "all")):
            rows.append({**place, "metric": metric, "subset": subset, **counts})
    controls = {"set": "pairs", "task": "counting", "mode": "from", "control": "self-swap", "n": n, "num_equal": n}
    return finish(
        directory, "analyze.swap",
        {
            "rates.csv": pd.DataFrame(rows),
            "controls.csv": pd.DataFrame([{**controls, "num_tie": 0, "num_differs": 0}]),
            "skipped.csv": pd.DataFrame(columns=["set", "pair_id", "kind", "text"]),
        },
    )  # fmt: skip


def drop_of(num_lost: int) -> Estimate:
    """Returns the drop where so many of 50 right answers are lost."""
    return single_runs(np.arange(50) < num_lost, np.zeros(50, bool)).one()


def skip_output(directory: Path, num_lost: int, p_holm: float) -> Path:
    """Leaves a skip of one layer, and of nothing, on 50 problems of which 40 are right."""
    drop = drop_of(num_lost)
    whole, own = wilson(40, 50), wilson(40 - num_lost, 50)
    rows = [
        {"configuration": "none", "kind": "none", "accuracy": whole.estimate, "low": whole.low, "high": whole.high},
        {
            "configuration": "llm:0", "kind": "layers", "layer": 0, "block": "early", "accuracy": own.estimate,
            "low": own.low, "high": own.high, "num_compared": 50, "drop": drop.estimate, "drop_low": drop.low,
            "drop_high": drop.high, "p_holm": p_holm,
        },
    ]  # fmt: skip
    rows += [{**rows[1], "layer": layer, "block": block} for layer, block in ((1, "mid"), (2, "late"))]
    control = {"task": "test", "n": 50, "num_equal_replies": 50, "holds": True}
    return finish(
        directory, "analyze.skip",
        {
            "rates.csv": pd.DataFrame([{"task": "test", "ability": "vision", "n": 50, **row} for row in rows]),
            "controls.csv": pd.DataFrame([control]),
        },
    )  # fmt: skip


def comparison_output(directory: Path, rows: list[dict[str, Any]]) -> Path:
    """Leaves a comparison of these rows against sft."""
    score = {
        "model": "sft", "seed": "", "task": "test", "ability": "vision", "n": 500, "accuracy": 0.5,
        "low": 0.456, "high": 0.544,
        "ability_score": float("nan"), "ability_low": float("nan"), "ability_high": float("nan"),
        "well_formed_frac": 1, "mean_tokens": 9, "num_unscored": 0,
    }  # fmt: skip
    return finish(
        directory, "eval.compare",
        {
            "comparison.csv": pd.DataFrame([{**COMPARED, **row} for row in rows]),
            "scores.csv": pd.DataFrame([score]),
        },
        {"baseline": "sft", "reference": "full"},
    )  # fmt: skip


def page_of(*directories: Path) -> str:
    """Returns the page's text: without pictures and tags, blanks as one."""
    output = directories[0].parent / "page.html"
    write_report(directories, output)
    html = output.read_text(encoding="utf-8")
    assert "<script" not in html and not re.search(r'(src|href)="(?!data:image/png;base64,|#)', html)
    body = html[html.index("<body>") :]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", re.sub(r'src="[^"]*"', "", body)))


def test_a_swap_is_reported_with_its_rates_intervals_and_controls(tmp_path: Path) -> None:
    page = page_of(swap_output(tmp_path / "sft", {0: 99, 1: 60, 2: 4, 3: 0}))
    assert (
        "In this run, the picture is read mostly in layers 0–1: with the source picture in all layers 99.0 % [94.6, "
        "99.8] of answers follow it, but 4.0 % [1.6, 9.8] where layers 0–1 see the target (counting, sft, n = 100)."
    ) in page
    assert "counting: more than half of what changes the answer is read in layers 0–1." in page
    assert "once layers 0–1 see the target: sft 99.0 % [94.6, 99.8], then 4.0 %" in page and "(n = 100)" in page
    assert "self-swap 100 of 100; 0 pairs skipped" in page


def test_models_that_agree_share_a_sentence(tmp_path: Path) -> None:
    moved = {
        "base": {0: 99, 1: 3, 2: 0, 3: 0},
        "sft": {0: 98, 1: 60, 2: 0, 3: 0},
        "full-seed0": {0: 97, 1: 2, 2: 0, 3: 0},
    }
    page = page_of(*(swap_output(tmp_path / name, rates) for name, rates in moved.items()))
    assert "In this run, the picture is read mostly in layer 0:" in page
    assert "(counting, full (seed 0), n = 100); the same in 1 of 2 other cases (models and tasks)." in page
    assert "once layer 0 sees the target: base 99.0 %" in page and "; full (seed 0) 97.0 %" in page
    assert "once layers 0–1 see the target: sft 98.0 %" in page


def test_a_swap_that_moves_few_answers_decides_nothing(tmp_path: Path) -> None:
    page = page_of(swap_output(tmp_path / "sft", {0: 20, 1: 3, 2: 0, 3: 0}))
    assert "is read" not in page and "or too few follow it to tell" in page
    assert (
        "Undecided, in this run: with the source picture in all layers at most 20.0 % [13.3, 28.9] of answers follow it"
        in page
    )


def test_an_answer_whose_control_failed_says_so_first(tmp_path: Path) -> None:
    directory = swap_output(tmp_path / "sft", {0: 99, 1: 4, 2: 0, 3: 0})
    controls = pd.read_csv(directory / "controls.csv").assign(num_equal=99, num_differs=1)
    write_table(directory / "controls.csv", controls)
    page = page_of(directory)
    assert "Note. A control failed in: Vision swap. Do not rely on these numbers." in page
    assert "A control failed, so this is not to be relied on. In this run, the picture is read mostly in" in page


def test_a_loss_without_a_layer_has_a_minus_sign_and_its_interval(tmp_path: Path) -> None:
    page = page_of(skip_output(tmp_path / "sft", 10, 0.004))
    drop = drop_of(10)
    said = f"−20.0 points [−{100 * drop.high:.1f}, −{100 * drop.low:.1f}]"
    assert f"In this run, leaving out layer 0 (early) costs most: {said} on vision (sft, n = 50)." in page
    assert f"the costliest single layer is 0 (early): sft {said}, 3 of 3 layers with a significant loss." in page
    assert "20.0 points" not in page.replace("−20.0 points", "")


def test_layers_without_a_significant_loss_are_undecided(tmp_path: Path) -> None:
    page = page_of(skip_output(tmp_path / "rl", 2, 0.9))
    assert "0 of 3 layers with a significant loss" in page
    assert (
        "Undecided, in this run: no single layer costs accuracy significantly; the largest change is −4.0 points ["
        in page
    )


def test_a_difference_that_is_not_significant_is_never_called_an_effect(tmp_path: Path) -> None:
    rows = [
        {"arm": "full", "ability": "vision", "difference": 0.012, "low": -0.014, "high": 0.038, "p_holm": 1},
        {"arm": "full", "ability": "reasoning", "difference": 0.33, "low": 0.28, "high": 0.38, "p_holm": 4e-4},
    ]
    page = page_of(comparison_output(tmp_path / "comparison", rows))
    numbers = "+1.2 points [−1.4, +3.8], corrected p = 1.000, not significant."
    assert f"vision (n = 500): full − sft over 4 training seeds is {numbers}" in page
    numbers = "+33.0 points [+28.0, +38.0], corrected p = 4.0e−04, significant."
    assert f"reasoning (n = 500): full − sft over 4 training seeds is {numbers}" in page
    assert (
        "full − sft over 4 training seeds: significantly better on reasoning (+33.0 points [+28.0, +38.0]); no "
        "significant difference on vision (+1.2 points [−1.4, +3.8]); n = 500."
    ) in page


def test_a_significant_loss_is_called_a_loss(tmp_path: Path) -> None:
    row = {"arm": "full", "ability": "reasoning", "difference": -0.04, "low": -0.066, "high": -0.016, "p_holm": 0.025}
    page = page_of(comparison_output(tmp_path / "comparison", [row]))
    assert (
        "full − sft over 4 training seeds: significantly worse on reasoning (−4.0 points [−6.6, −1.6]); n = 500."
        in page
    )


def test_a_start_below_base_is_said_at_the_top(tmp_path: Path) -> None:
    base = {"arm": "base", "ability": "vision-to-reasoning", "difference": 0.2, "low": 0.15, "high": 0.25, "p_holm": 0}
    base |= {"scope": "checkpoints"}
    rows = [
        base,
        {**base, "against": "full", "difference": -0.09, "low": -0.14, "high": -0.04, "scope": "training"},
        {**base, "arm": "full", "difference": 0.29, "low": 0.24, "high": 0.34},
        {**base, "ability": "vision", "difference": 0.03, "low": -0.01, "high": 0.07, "p_holm": 1},
    ]
    page = page_of(comparison_output(tmp_path / "comparison", rows))
    said = (
        "The start is weaker than base: sft − base in this run is −20.0 points [−25.0, −15.0] on vision-to-reasoning "
        "(n = 500, significant), full − base over 4 training seeds +9.0 points [+4.0, +14.0]."
    )
    assert page.index(said) < page.index("How to read the numbers")
    rows[0] |= {"p_holm": 0.06}
    unsure = page_of(comparison_output(tmp_path / "unsure", rows))
    assert "The start may be weaker than base" in unsure and "not significant after correction for 4 tests" in unsure
    rows[0] |= {"low": -0.01}
    assert "weaker than base" not in page_of(comparison_output(tmp_path / "another", rows))


def test_every_question_is_answered_before_its_figure_and_tables(tmp_path: Path) -> None:
    row = {"arm": "full", "ability": "vision", "difference": 0.2, "low": 0.1, "high": 0.3, "p_holm": 0.01}
    skip = skip_output(tmp_path / "skip", 10, 0.004)
    output = tmp_path / "page.html"
    write_report([comparison_output(tmp_path / "comparison", [row]), skip], output)
    html = output.read_text(encoding="utf-8")
    for name in ("where", "changed"):
        section = html[html.index(f'<section id="{name}">') :]
        section = section[: section.index("</section>")]
        places = [section.index(mark) for mark in ('<p class="answer">', "<figure>", "<table>")]
        assert places == sorted(places)
    assert not re.findall(r'<img (?![^>]*alt="[^"]+)', html) and html.count('role="img" aria-label="') == html.count(
        "<svg"
    )
    linked, there = set(re.findall(r'href="#([^"]+)"', html)), set(re.findall(r'id="([^"]+)"', html))
    assert linked <= there and {"where", "changed", "layer-skip", "change-in-abilities"} <= linked


def test_accuracy_stands_beside_the_papers_definition_where_they_differ(tmp_path: Path) -> None:
    both = {"arm": "full", "low": -0.01, "high": 0.09, "p_holm": 0.2}
    rows = [
        {**both, "ability": ability, "metric": metric, "difference": difference}
        for ability, difference, defined in (("vision", 0.04, 0.03), ("reasoning", 0.02, 0.02))
        for metric, difference in (("accuracy", difference), ("ability", defined))
    ]
    page = page_of(comparison_output(tmp_path / "comparison", rows))
    assert "vision, accuracy (n = 500): full − sft over 4 training seeds is +4.0 points" in page
    assert "vision, by the paper’s definition (n = 500): full − sft over 4 training seeds is +3.0 points" in page
    assert (
        "reasoning (n = 500): full − sft over 4 training seeds is +2.0 points" in page
        and "reasoning, by the paper" not in page
    )


def test_splices_answer_whether_the_gain_transfers(tmp_path: Path) -> None:
    one = {"ability": "vision", "difference": 0.05, "low": 0.01, "high": 0.09, "scope": "checkpoints", "num_seeds": 1}
    rows = [
        {**one, "arm": arm, "p": p, "p_holm": p} for arm, p in (("full", 0.01), ("in-rl-rl", 0.02), ("rl-in-in", 0.5))
    ]
    page = page_of(comparison_output(tmp_path / "comparison", rows))
    assert "1 of 2 splices in this run differ significantly from sft: in-rl-rl +5.0 points [+1.0, +9.0]." in page
    assert (
        "In part, in this run: full gains +5.0 points [+1.0, +9.0] on vision over sft (n = 500), and 1 of 2 splices "
        "that put its layers into sft also gain significantly (in-rl-rl +5.0 points [+1.0, +9.0])."
    ) in page


def test_without_a_gain_there_is_nothing_to_transfer(tmp_path: Path) -> None:
    same = {"ability": "vision", "difference": 0.01, "low": -0.03, "high": 0.05, "p_holm": 1, "scope": "checkpoints"}
    page = page_of(comparison_output(tmp_path / "comparison", [{**same, "arm": arm} for arm in ("full", "in-rl-rl")]))
    assert (
        "Undecided, in this run: full has no significant gain over sft on any ability (vision +1.0 points [−3.0, +5.0]"
    ) in page
    assert "so it cannot be seen whether a gain transfers" in page


def test_what_a_study_planned_and_did_not_get_is_told(tmp_path: Path) -> None:
    study = tmp_path / "study"
    swap_output(study / "swap" / "sft", {0: 99, 1: 4, 2: 0, 3: 0})
    with (
        pytest.raises(RuntimeError),
        open_run(study / "skip" / "sft", command="analyze.skip", settings={}),
    ):
        raise RuntimeError("out of <memory>")
    comparison_output(
        study / "ability_comparison",
        [{"arm": "full", "ability": "vision", "difference": 0, "low": 0, "high": 0, "p": 1, "p_holm": 1}],
    )
    (study / "missing").mkdir()
    (study / "missing" / "ability_comparison.txt").write_text("freeze-mid@1=elsewhere/abilities/freeze-mid-seed1\n")
    jobs = [
        ("swap-sft", "swap", "swap/sft", []), ("skip-sft", "skip", "skip/sft", []),
        ("ability_comparison", "compare", "ability_comparison", []),
        ("freeze-mid-seed1", "arm", "necessity/arms/freeze-mid-seed1", []),
        ("samples-freeze-mid-seed1", "samples", "samples/freeze-mid-seed1", ["freeze-mid-seed1"]),
        ("report", "report", "report.html", []),
    ]  # fmt: skip
    plan = {
        "study": {"output_dir": "elsewhere"},
        "jobs": [
            {"name": name, "kind": kind, "output_dir": f"elsewhere/{place}", "needs": needs, "after": []}
            for name, kind, place, needs in jobs
        ],
    }
    (study / "plan.json").write_text(json.dumps(plan))
    page = page_of(study)
    assert "4 parts of this study were not run" in page
    assert "skip-sft : failed: RuntimeError: out of &lt;memory&gt;" in page
    assert "freeze-mid-seed1 : not run" in page
    assert "samples-freeze-mid-seed1 : not run, since freeze-mid-seed1 is missing" in page
    assert "ability_comparison : made without freeze-mid@1" in page
    assert "ability_comparison: made without freeze-mid@1" in page[page.index("2. What did RL change? In") :]
    assert "sft 99.0 % [94.6, 99.8], then 4.0 %" in page


def test_a_table_that_is_gone_is_a_gap_and_not_the_end(tmp_path: Path) -> None:
    swap_output(tmp_path / "runs" / "sft", {0: 99, 1: 4, 2: 0, 3: 0})
    skip = skip_output(tmp_path / "runs" / "skip", 5, 0.01)
    (skip / "rates.csv").unlink()
    page = page_of(tmp_path / "runs")
    assert "skip/rates.csv does not exist" in page and "Vision swap" in page


def test_a_necessity_study_without_a_finished_arm_says_so(tmp_path: Path) -> None:
    settings = {"arms": ["full", "freeze-mid=mid"], "seeds": [0], "files": {}, "always_freeze": [], "data_task": None}
    with (
        pytest.raises(RuntimeError),
        open_run(tmp_path / "necessity", command="train.necessity", settings=settings | {"init_config": None}),
    ):
        raise RuntimeError("2 of 9 jobs are not finished")
    page = page_of(tmp_path / "necessity")
    assert "full, seed 0: not trained" in page and "freeze-mid, seed 0: not trained" in page
    assert "2 of 9 jobs are not finished" in page


def test_a_necessity_study_that_writes_its_page_is_not_called_unfinished(tmp_path: Path) -> None:
    settings = {"arms": [], "seeds": [0], "always_freeze": [], "data_task": None, "init_config": None}
    with open_run(tmp_path / "necessity", command="train.necessity", settings=settings):
        page = page_of(tmp_path / "necessity")
    assert "still runs" not in page and "were not run" not in page and "Was the change necessary?" in page


def test_a_support_that_was_narrowed_is_reported(tmp_path: Path) -> None:
    head = {"task": "v", "ability": "vision", "model": "full", "num_seeds": 2, "num_samples": 16, "metric": "pass@k"}
    rows = [
        {**head, "k": k, "against": "sft", "n": 100, "value": value, "low": value - 0.02, "high": value + 0.02,
         "verdict": "sharpened", "scope": "training"}
        for k, value in ((1, 0.1), (16, -0.05))
    ]  # fmt: skip
    page = page_of(finish(tmp_path / "support", "eval.support", {"changes.csv": pd.DataFrame(rows)}))
    assert (
        "vision (n = 100): full − sft over 2 training seeds is +10.0 points [+8.0, +12.0] at k = 1, −5.0 points "
        "[−7.0, −3.0] at k = 16; sharpened (better with one sample, worse with all)" in page
    )
    assert (
        "No, on vision it reaches less: with 16 samples a prompt, full − sft over 2 training seeds is −5.0 points "
        "[−7.0, −3.0] on vision (n = 100); with one sample it is +10.0 points [+8.0, +12.0] on vision."
    ) in page


def test_a_folder_of_which_nothing_is_shown_is_refused(tmp_path: Path) -> None:
    finish(tmp_path / "answers", "eval.run", {})
    with pytest.raises(ValueError, match=r"answers holds eval.run; expected the output of analyze.swap"):
        read_inputs([tmp_path / "answers"])
    with pytest.raises(ValueError, match=r"nowhere holds no run\.json"):
        read_inputs([tmp_path / "nowhere"])


FINGERPRINTS = {
    "sft": "start",
    "full@0": "first",
    "full@1": "second",
    "freeze-mid@0": "third",
    "freeze-mid@1": "fourth",
}
GAIN = {"ability": "vision", "difference": 0.02, "low": -0.05, "high": 0.09, "p": 0.4, "p_holm": 0.8}


def evaluated(fingerprints: dict[str, str], **changes: Any) -> dict[str, Any]:
    """Returns the settings of a comparison of models with these checkpoints."""
    shared = {"tasks": {"test": "prompts"}, "max_new_tokens": 32, "conditions": None, "batch_size": 8} | changes
    roles = {"baseline": next(iter(fingerprints)), "reference": [*fingerprints][1].partition("@")[0]}
    return roles | {
        "models": {name: {"model": name, "model_fingerprint": own, **shared} for name, own in fingerprints.items()}
    }


def compared(directory: Path, rows: list[dict[str, Any]], settings: dict[str, Any]) -> Path:
    """Leaves a comparison of these rows with settings that name its checkpoints."""
    plain = comparison_output(directory.parent / f"{directory.name}-tables", rows)
    tables = {name: pd.read_csv(plain / name) for name in ("comparison.csv", "scores.csv")}
    names = dict.fromkeys(label.partition("@")[0] for label in settings["models"])
    tables["scores.csv"] = pd.concat([tables["scores.csv"].assign(model=name) for name in names])
    shutil.rmtree(plain)
    return finish(directory, "eval.compare", tables, settings)


def splices(directory: Path, **changes: Any) -> Path:
    """Leaves a comparison of splices of sft and the first seed of full, in which rl gains."""
    one = {**GAIN, "against": "in", "scope": "checkpoints", "num_seeds": 1, "low": 0.04, "p_holm": 0.011}
    rows = [{**one, "arm": arm} for arm in ("rl", "in-rl-rl")]
    return compared(directory, rows, evaluated({"in": "start", "rl": "first", "in-rl-rl": "mixed"}, **changes))


def test_splices_of_one_of_several_runs_say_what_all_runs_show(tmp_path: Path) -> None:
    row = {**GAIN, "arm": "full", "num_seeds": 2}
    page = page_of(compared(tmp_path / "plain", [row], evaluated(FINGERPRINTS)), splices(tmp_path / "spliced"))
    assert "rl gains +2.0 points [+4.0, +9.0] on vision over in" in page and "rl is seed 0 of full alone." in page
    assert (
        "All numbers here are of this one run. Over 2 training seeds, full − sft in accuracy is +2.0 points [−5.0, "
        "+9.0] on vision (not significant): see “What did RL change?”."
    ) in page


def test_splices_quote_a_difference_that_another_comparison_has(tmp_path: Path) -> None:
    row = {**GAIN, "arm": "full", "scope": "checkpoints", "num_seeds": 1}
    alone = {"sft": "start", "full@0": "first"}
    page = page_of(compared(tmp_path / "plain", [row], evaluated(alone)), splices(tmp_path / "spliced"))
    assert "rl − in in this run is +2.0 points [−5.0, +9.0], corrected p = 0.800, not significant" in page
    assert "full − sft in this run is +2.0 points [−5.0, +9.0], corrected p = 0.800, not significant" in page
    assert "0.011" in page.split("Splices")[-1], "the splice itself keeps its own numbers"


def test_other_prompts_are_another_difference(tmp_path: Path) -> None:
    row = {**GAIN, "arm": "full", "num_seeds": 2}
    spliced = splices(tmp_path / "spliced", tasks={"test": "other prompts"})
    page = page_of(compared(tmp_path / "plain", [row], evaluated(FINGERPRINTS)), spliced)
    assert "rl gains +2.0 points" in page and "rl is seed 0" not in page


UNSEEN = dict.fromkeys(("num_gained", "num_lost", "gain_kept", "gain_kept_low", "gain_kept_high"), float("nan"))


def necessity_output(directory: Path, rows: list[dict[str, Any]], **changes: Any) -> Path:
    """Leaves a necessity study without training runs, with its own comparison."""
    settings = {"arms": [], "seeds": [0, 1], "always_freeze": [], "data_task": None, "init_config": None}
    with open_run(directory, command="train.necessity", settings=settings):
        inner = compared(
            directory / "comparison",
            [UNSEEN | row for row in rows],
            evaluated(FINGERPRINTS, conditions=["given"], **changes),
        )
        for name in ("comparison.csv", "scores.csv"):
            shutil.copy(inner / name, directory / name)
    return directory


@pytest.mark.slow
def test_a_difference_has_one_p_value_on_the_page(tmp_path: Path) -> None:
    numbers = {**GAIN, "arm": "full", "num_seeds": 2}
    own = [UNSEEN | numbers | {"p_holm": 0.123}]
    plain = compared(tmp_path / "plain", own, evaluated(FINGERPRINTS, batch_size=128))
    one_seed = {**numbers, "seed": "0", "family": "accuracy, per seed", "p_holm": 0.789, "scope": "checkpoints"}
    study = necessity_output(
        tmp_path / "necessity", [{**numbers, "p_holm": 0.456}, one_seed, {**one_seed, "seed": "1"}]
    )
    page = page_of(plain, study)
    assert "0.123" in page and "0.456" not in page
    assert "Scores and differences are those of plain , which asked the same models the same prompts" in page
    alone = page_of(study)
    assert "0.456" in alone and "0.456" in (study / "comparison.csv").read_text()
    assert "0.789" not in alone and "Seed by seed, about these checkpoints: 95 % intervals over new prompts" in alone
    assert "filled if the change is significant after correction for 1 test, hollow if not" in alone


def test_a_study_that_was_asked_otherwise_keeps_its_own_numbers(tmp_path: Path) -> None:
    numbers = {**GAIN, "arm": "full", "num_seeds": 2}
    plain = compared(tmp_path / "plain", [{**numbers, "p_holm": 0.123}], evaluated(FINGERPRINTS))
    page = page_of(plain, necessity_output(tmp_path / "necessity", [{**numbers, "p_holm": 0.456}], max_new_tokens=99))
    assert "0.123" in page and "0.456" in page and "which asked the same models" not in page
    assert "Comparisons in other sections have other models, prompts or settings" in page


def test_the_page_says_what_the_study_could_have_found(tmp_path: Path) -> None:
    rows = [{**GAIN, "arm": "full", "num_seeds": 2, "detectable": 0.08}]
    page = page_of(compared(tmp_path / "plain", rows, evaluated(FINGERPRINTS)))
    said = "With 2 training seeds a model and 500 prompts an ability, a true difference from sft of at least 8.0 points"
    assert "What this study could have found." in page and said in page


@pytest.mark.slow
def test_every_part_says_what_it_is_about(tmp_path: Path) -> None:
    rows = [{**GAIN, "arm": "full", "num_seeds": 2}]
    plain = compared(tmp_path / "plain", rows, evaluated(FINGERPRINTS))
    page = page_of(
        plain, skip_output(tmp_path / "skip", 10, 0.004), swap_output(tmp_path / "swap", {0: 9, 1: 0, 2: 0, 3: 0})
    )
    for title, label in (("Vision swap", "these checkpoints"), ("Layer skip", "these checkpoints"),
                         ("Change in abilities", "training")):  # fmt: skip
        assert re.search(rf" {title} +About {label} ", page.replace("\n", " ")), title


def test_a_row_whose_interval_excludes_zero_names_the_correction(tmp_path: Path) -> None:
    page = page_of(skip_output(tmp_path / "skip", 10, 0.06))
    assert "0.060 not significant after correction for 3 tests" in page


def test_tables_of_an_older_version_are_a_gap_that_names_the_way_out(tmp_path: Path) -> None:
    directory = comparison_output(tmp_path / "comparison", [{**GAIN, "arm": "full"}])
    table = pd.read_csv(directory / "comparison.csv").drop(columns="scope")
    write_table(directory / "comparison.csv", table)
    assert "an older eval.compare wrote it; run that command again with --overwrite" in page_of(directory)
