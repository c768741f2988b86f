"""The last lines of a skip name the layers that matter most."""

from pathlib import Path

import pandas as pd

from analyze.skip.summary import summary


def test_the_largest_drops_stand_beside_the_model_as_it_is(tmp_path: Path) -> None:
    rows = []
    for name, kind, drop, p in (
        ("none", "none", None, None), ("llm:0", "layers", 0.1, 0.5), ("llm:1", "layers", 0.45, 0.001),
        ("llm:2", "layers", 0.2, 0.04), ("early", "blocks", 0.5, 0.001), ("mid", "blocks", 0.0, 1.0),
        ("llm:0.attn", "attn", 0.9, 0.001),
    ):  # fmt: skip
        row = {"task": "test", "ability": "reasoning", "configuration": name, "kind": kind, "n": 60, "p_holm": p}
        row |= {"accuracy": 0.5, "low": 0.4, "high": 0.6, "at_limit_frac": 0.5, "repetition_frac": 0.25}
        margins = {} if drop is None else {"drop": drop, "drop_low": drop - 0.1, "drop_high": drop + 0.1}
        rows.append(row | margins | {"num_unscored": 1})
    pd.DataFrame(rows).to_csv(tmp_path / "rates.csv", index=False)
    control = {"task": "test", "holds": True, "n": 60, "num_equal_replies": 59}
    pd.DataFrame([control]).to_csv(tmp_path / "controls.csv", index=False)
    lines = summary(tmp_path)
    assert "llm:1 +45.0 [+35.0, +55.0] *, llm:2 +20.0 [+10.0, +30.0] *  early +50.0 [+40.0, +60.0] *" in lines[2]
    assert "50.0 % [40.0, 60.0]" in lines[2] and "llm:0" not in lines[2]
    assert lines[3] == "control passed: test: with nothing left out 59 of 60 replies are the plain model's"
    assert "50.0 % ran to the limit, 25.0 % repeated themselves and were ended, 6 could not be judged" in lines[4]
