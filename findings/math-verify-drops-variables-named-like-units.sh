#!/usr/bin/env bash
# Packages: math-verify 0.9.0, latex2sympy2-extended 1.11.0; 2026-11-28
# Guess:    an algebraic answer keeps its variables: `5t`, `3m` and `12h` are products, and differ from 5, 3 and 12.
# Real:     with the default settings a single letter at the end that is also the sign of a unit (t, m, s, g, h, …) is taken
#           for a unit and removed. `5t` equals `5`, in both directions. `2x` and `5tu` are kept.
# Hurt:     the reward pays for an answer without its variable ("the distance is 5" for "5t"), and marks are equal where two
#           methods differ. Whether a problem is affected depends on the name of its variable, so an accuracy changes if
#           the same problem is written with x in place of t.
# Do:       parse with `NormalizationConfig(units=False, …)` where golds contain variables, and remove units on your own; or
#           compare the free symbols of both sides first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/tools"
"$folder/tools/bin/pip" install --quiet uv==0.13.8
"$folder/tools/bin/uv" venv --quiet --python python3 "$folder/env"
"$folder/tools/bin/uv" pip install --quiet --python "$folder/env/bin/python" \
    "math-verify[antlr4-13-2]==0.9.0" latex2sympy2-extended==1.11.0

cat >"$folder/run.py" <<'PY'
"""Verifies answers without their variable against golds with one."""
from math_verify import parse, verify

for gold, answer in (("5t", "5"), ("3m", "3"), ("12h", "12"), ("5", "5t"), ("2x", "2"), ("5tu", "5")):
    print(f"gold {gold}, answer {answer}: {'equal' if verify(parse(f'${gold}$'), parse(f'${answer}$')) else 'different'}")
PY

"$folder/env/bin/python" "$folder/run.py" 2>/dev/null | tee "$folder/out"
for case in "gold 5t, answer 5: equal" "gold 3m, answer 3: equal" "gold 12h, answer 12: equal" "gold 5, answer 5t: equal" \
    "gold 2x, answer 2: different" "gold 5tu, answer 5: different"; do
    grep -qx "$case" "$folder/out" || { echo "changed: expected '$case'" >&2; exit 1; }
done
echo "as described: a variable with the name of a unit is lost"
