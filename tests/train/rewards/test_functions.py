"""Rewards: the grader's verdicts, as the trainer takes them."""

import hashlib
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import eval.grading.mathematics
from eval.grading import grade
from eval.replies.prompting import STYLES
from train.rewards.functions import FORMATS, REWARDS, RewardArguments, bind_rewards, choose_rewards, length_penalty
from train.rewards.own import load_reward

REPLIES = (
    ("<think>2+3</think><answer>5</answer>", "5", "number", 1.0, 1.0),
    ("<think>2+3</think><answer>6</answer>", "5", "number", 0.0, 1.0),
    ("<answer>5</answer>", "5", "number", 1.0, 0.0),
    ("", "5", "number", 0.0, 0.0),
    ("<think>2+3</think><answer>5</answer>", "many", "number", None, None),
)
"""Reply, gold, kind, accuracy, format."""
MAX_TOKENS, BUFFER_TOKENS = 20, 8
BOUND = bind_rewards(
    RewardArguments(rewards=["accuracy", "format", "overlong"], overlong_buffer_tokens=BUFFER_TOKENS),
    weights=[1.0, 0.1, 0.5],
    prompt_style="think",
    max_completion_tokens=MAX_TOKENS,
)


def rewards(function: Any, replies: Any = REPLIES, *, conversational: bool = False, **further: Any) -> Any:
    """Calls a reward function as TRL calls it."""
    completions: list[Any] = [row[0] for row in replies]
    if conversational:
        completions = [[{"role": "assistant", "content": reply}] for reply in completions]
    return function(
        **{
            "prompts": ["…"] * len(replies),
            "completions": completions,
            "completion_ids": [[7] * 12] * len(replies),
            "answer": [row[1] for row in replies],
            "answer_kind": [row[2] for row in replies],
            "trainer_state": None,
            "log_extra": lambda *_: None,
            "log_metric": lambda *_: None,
            **further,
        }
    )


@pytest.mark.parametrize(("name", "column"), [("accuracy", 3), ("format", 4)])
@pytest.mark.parametrize("conversational", [False, True])
def test_replies_as_strings_and_as_messages_are_rewarded_alike(name: str, column: int, conversational: bool) -> None:
    assert rewards(REWARDS[name], conversational=conversational) == [row[column] for row in REPLIES]


def test_an_answer_that_cannot_be_judged_is_none_in_every_reward_and_counted() -> None:
    unscored = [grade(reply, gold, kind).correct is None for reply, gold, kind, _, _ in REPLIES]
    assert any(unscored)
    for function in BOUND:
        logged: dict[str, list[float]] = {}
        given = rewards(function, log_metric=lambda name, value, log=logged: log.setdefault(name, []).append(value))
        assert [reward is None for reward in given] == unscored
        assert logged == {"unscored_frac": [sum(unscored) / len(unscored)]}


@pytest.fixture
def patient_judges(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Judges of mathematics that have a minute for a question: on a busy machine the first one may take long."""
    program = "from eval.grading import mathematics\nmathematics.LIMIT_S = 60.0\nmathematics.serve()\n"

    def end_all() -> None:
        for judge in list(eval.grading.mathematics._started):
            judge.end()
        eval.grading.mathematics._idle.clear()

    end_all()
    monkeypatch.setattr(eval.grading.mathematics, "JUDGE", (eval.grading.mathematics.JUDGE[0], "-c", program))
    monkeypatch.setattr(eval.grading.mathematics, "LIMIT_S", 60.0)
    yield
    end_all()


@pytest.mark.slow
def test_a_verdict_that_did_not_come_in_time_is_missing_from_the_later_rewards_too(
    patient_judges: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = (f"<answer>{random.randrange(10**9)}+x</answer>", "x", "math")
    assert eval.grading.mathematics.equal_expressions("x", "x") is True
    with monkeypatch.context() as hurried:
        hurried.setattr(eval.grading.mathematics, "LIMIT_S", 0.2)
        hurried.setattr(eval.grading.mathematics, "MARGIN_S", 0.2)
        (judge,) = eval.grading.mathematics._idle
        psutil.Process(judge.process.pid).suspend()
        assert rewards(BOUND[0], [reply]) == [None]
    assert grade(*reply).correct is False, "asked anew, it has a verdict"
    assert [rewards(function, [reply]) for function in BOUND] == [[None]] * 3


def test_rewards_are_the_same_from_several_threads() -> None:
    replies = [
        (rf"<think></think><answer>\frac{{{number}}}{{3}}</answer>", f"{number // 3}", "math") for number in range(30)
    ]
    expected = [float(number % 3 == 0) for number in range(30)]
    with ThreadPoolExecutor(6) as pool:
        given = list(pool.map(partial(rewards, BOUND[0]), [replies] * 6))
    assert given == [expected] * 6


def test_the_length_penalty_is_that_of_dapo() -> None:
    lengths = np.arange(0, 2 * MAX_TOKENS)
    expected = np.interp(lengths, [MAX_TOKENS - BUFFER_TOKENS, MAX_TOKENS], [0.0, -1.0])
    given = [length_penalty(int(n), max_tokens=MAX_TOKENS, buffer_tokens=BUFFER_TOKENS) for n in lengths]
    np.testing.assert_allclose(given, expected)


def test_overlong_counts_the_tokens_of_each_reply() -> None:
    lengths = [0, 12, 16, 20, 16]
    given = rewards(BOUND[2], completion_ids=[[1] * length for length in lengths])
    assert given == [0.0, 0.0, -0.5, -1.0, None]


@pytest.mark.parametrize(
    ("style", "reply", "well_formed"),
    [
        ("think", "<think>2+3</think><answer>5</answer>", True),
        ("think", r"so it is \boxed{5}", False),
        ("plain", "<think>2+3</think><answer>5</answer>", True),
        ("boxed", "<think>2+3</think><answer>5</answer>", False),
        ("boxed", r"so it is \boxed{5}", True),
        ("boxed", r"<think>2+3</think> so it is \boxed{\frac{10}{2}}.", True),
        ("boxed", r"so it is \boxed{}", False),
        ("boxed", r"\boxed{5}, or rather \boxed{6", False),
        ("boxed", "5", False),
    ],
)
def test_the_form_is_that_of_the_prompt_style(style: str, reply: str, well_formed: bool) -> None:
    (function,) = bind_rewards(
        RewardArguments(rewards=["format"]), weights=None, prompt_style=style, max_completion_tokens=MAX_TOKENS
    )
    assert rewards(function, [(reply, "5", "number")]) == [float(well_formed)]


def test_every_prompt_style_has_a_form() -> None:
    assert set(FORMATS) == set(STYLES)


def test_rewards_are_chosen_in_the_order_they_are_named_and_trl_names_them_so() -> None:
    from trl.trainer.utils import get_callable_name

    assert choose_rewards(["format", "accuracy"]) == [REWARDS["format"], REWARDS["accuracy"]]
    assert [get_callable_name(function) for function in BOUND] == ["accuracy", "format", "overlong"]


@pytest.mark.parametrize(
    ("names", "message"),
    [(["acuracy"], "did you mean 'accuracy'"), ([], "rewards is empty"), (["format", "format"], "named twice")],
)
def test_a_bad_choice_of_rewards_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_rewards(names)
    with pytest.raises(ValueError, match=message):
        RewardArguments(rewards=names)


@pytest.mark.parametrize(
    ("values", "weights", "message"),
    [
        ({"rewards": ["accuracy", "overlong"]}, None, "overlong_buffer_tokens None do not fit"),
        ({"rewards": ["accuracy"], "overlong_buffer_tokens": 4}, None, "overlong_buffer_tokens 4 do not fit"),
        ({"rewards": ["overlong"], "overlong_buffer_tokens": 21}, None, "is 21; expected 1 to .* 20"),
        ({"rewards": ["overlong"], "overlong_buffer_tokens": 0}, None, "is 0; expected 1 to .* 20"),
        ({"rewards": ["accuracy", "format"]}, [1.0], r"reward_weights \[1.0\] does not match .* expected one each"),
    ],
)
def test_rewards_that_do_not_fit_together_are_refused(
    values: dict[str, Any], weights: list[float] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        bind_rewards(RewardArguments(**values), weights=weights, prompt_style="think", max_completion_tokens=MAX_TOKENS)
    assert "\n" not in str(error.value)


OWN = """
def short(completions, answer, answer_kind, log_metric=None, **columns):
    log_metric("longest", max(len(messages[-1]["content"]) for messages in completions))
    return [None if gold == "many" else -len(m[-1]["content"]) for m, gold in zip(completions, answer)]

def wrong_length(completions, **columns):
    return [1.0]

def no_number(completions, **columns):
    return [float("nan")] * len(completions)

def accuracy(completions, **columns):
    return [1.0] * len(completions)

number = 3
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current directory, under a name that no other test has imported."""
    name = f"own_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return name


def test_a_reward_of_ones_own_is_called_as_trl_calls_it(own_module: str) -> None:
    arguments = RewardArguments(rewards=["accuracy", f"{own_module}:short"])
    arguments.check_inputs()
    _, own = bind_rewards(arguments, weights=None, prompt_style="think", max_completion_tokens=MAX_TOKENS)
    logged: dict[str, float] = {}
    given = rewards(own, conversational=True, log_metric=logged.__setitem__)
    assert given == [None if row[1] == "many" else -float(len(row[0])) for row in REPLIES]
    assert logged == {"longest": max(len(row[0]) for row in REPLIES)}
    assert own.__name__ == "short", "TRL names the column after the function"


def test_the_source_of_a_reward_of_ones_own_is_known_by_its_hash(own_module: str) -> None:
    name = f"{own_module}:short"
    source = Path(f"{own_module}.py")
    assert RewardArguments(rewards=[name]).source_digests() == {name: hashlib.sha256(OWN.encode()).hexdigest()}
    source.write_text(OWN + "# another")
    assert RewardArguments(rewards=[name]).source_digests() != {name: hashlib.sha256(OWN.encode()).hexdigest()}
    assert RewardArguments(rewards=["accuracy", "format"]).source_digests() == {}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["{}:gone"], "defines no function 'gone'; it has accuracy, no_number, short, wrong_length"),
        (["{}:number"], "defines no function 'number'"),
        (["no_such_module:f"], "module 'no_such_module' cannot be imported .*; expected a file of the current"),
        (["accuracy", "{}:accuracy"], "shares its columns in metrics.csv with another; rename the function"),
        (["{}:short", "{}:short"], "is named twice"),
        (["{}:"], "is malformed; expected MODULE:FUNCTION"),
        (["./{}.py:short"], "is malformed; expected MODULE:FUNCTION"),
        (
            ["acuracy", "a b:c"],
            "reward 'acuracy' is unknown; .* did you mean 'accuracy'.\\nreward 'a b:c' is malformed",
        ),
    ],
)
def test_a_reward_that_cannot_be_had_is_refused(own_module: str, names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardArguments(rewards=[name.format(own_module) for name in names]).check_inputs()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("wrong_length", "returned 1 values; expected a list of 5"),
        ("no_number", "returned nan; expected finite numbers"),
    ],
)
def test_what_a_reward_of_ones_own_returns_is_checked(own_module: str, function: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rewards(load_reward(f"{own_module}:{function}").function)
