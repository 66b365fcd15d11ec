"""Exercise 6: judge pictures, and measure how far two judges agree beyond chance."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from ..dataset import world
from ..dataset.prompt_files import read_cells
from ..evaluation.statistics import agreement
from ..relations import BY_NAME, NAMES, judge
from .answer import accept, call, refuse, words

COLUMNS = ["picture", "question", "answer", "annotator"]
ANSWERS = ("yes", "no")
_KIT = {"item": "picture", "person": "annotator"}  # a kit's own names for these columns
_THINGS = (("dog", "cat"), ("cup", "book"), ("chair", "tv"), ("bird", "kite"))


def _scenes(n: int = 16, seed: int = 6) -> list[tuple[str, str, str, np.ndarray]]:
    """Subject, relation, object and their two boxes, with the subject anywhere around the object, often aslant."""
    rng, scenes = np.random.default_rng(seed), []
    for i in range(n):
        subject, object = _THINGS[i % len(_THINGS)]
        angle, far = 2 * np.pi * (i + rng.uniform(0, 0.9)) / n, rng.uniform(15, 22)
        sizes = rng.integers(16, 24, (2, 2))
        centre = 32 + np.outer([0.5, -0.5], [np.cos(angle), np.sin(angle)]) * 2 * far * 0.6
        corner = np.clip(np.round(centre - sizes / 2), 0, 64 - sizes)
        scenes.append((subject, NAMES[(i // len(_THINGS) + i) % 4], object, np.concatenate([corner, sizes], axis=1)))
    return scenes


def questions() -> pd.DataFrame:
    """The question about each of the 16 pictures: picture and question."""
    sentences = [f"Is the {s} {BY_NAME[r].phrase} the {o}?" for s, r, o, _ in _scenes()]
    return pd.DataFrame({"picture": np.arange(len(sentences)), "question": sentences})


def pictures() -> Figure:
    """The 16 pictures with their questions, without a verdict."""
    figure, axes = plt.subplots(4, 4, figsize=(11, 12))
    for picture, axis in enumerate(axes.flat):
        _draw(axis, picture)
    figure.tight_layout()
    return figure


def _draw(axis: plt.Axes, picture: int) -> None:
    s, _, o, boxes = _scenes()[picture]
    axis.imshow(world.render(boxes, [s, o], seed=picture))
    axis.set_title(f"{picture}: {questions().question[picture]}", fontsize="x-small")
    axis.set(xticks=[], yticks=[])
    axis.grid(False)


def judged(answers: Sequence[str], annotator: str) -> pd.DataFrame:
    """Answers to the 16 questions, in their order, as a table of judgements. Raises ValueError if there are more or
    fewer."""
    if len(answers) != len(questions()):
        raise ValueError(f"answers: {len(answers)} of them for {len(questions())} pictures; answer each picture once")
    return questions().assign(answer=list(answers), annotator=annotator)


def judged_by_rules(rules: str) -> pd.DataFrame:
    """A rule set's answers to the same questions."""
    size, verdicts = np.array([[64.0, 64.0]]), []
    for _, relation, _, boxes in _scenes():
        verdicts.append(judge(boxes[[0]], boxes[[1]], rules, size)[0, NAMES.index(relation)])
    return judged([ANSWERS[not verdict] for verdict in verdicts], f"rules: {rules}")


def read_judgements(path: str | Path) -> pd.DataFrame:
    """Judgements of people: a CSV with the columns picture, question, answer (yes or no) and annotator.

    Answers to a blind kit (``sr4g kit``) are read as well: its items are the pictures, its persons the annotators, and
    a missing object is a no. Other columns are left out, and pictures without an answer or with the answer unclear.

    Raises:
        ValueError: a column is missing, an answer is neither yes nor no, or someone judges a question twice.
    """
    table = read_cells(Path(path)).rename(columns=str.lower)
    if set(_KIT) <= set(table):
        table = table.rename(columns=_KIT).assign(question="as in the kit")
    if missing := [name for name in COLUMNS if name not in table]:
        raise ValueError(f"{path}: the column {missing[0]!r} is missing; judgements have {', '.join(COLUMNS)}")
    table = table[COLUMNS].assign(answer=table.answer.str.lower().replace({"missing": "no"}))
    table = table[~table.answer.isin(["", "unclear"])]
    if (odd := table[~table.answer.isin(ANSWERS)]).size:
        raise ValueError(f"{path}, row {odd.index[0]}: the answer is {odd.answer.iloc[0]!r}; it must be yes or no")
    if (repeated := table[table.duplicated(["picture", "question", "annotator"])]).size:
        row = repeated.iloc[0]
        raise ValueError(f"{path}: {row.annotator} answers {row.question!r} of picture {row.picture} twice; keep one")
    return table.reset_index(drop=True).astype(str)


def paired(judgements: pd.DataFrame, one: str, other: str) -> tuple[list[bool], list[bool]]:
    """The answers of two annotators to the questions that both answered; True is yes. Raises ValueError if they share
    no question."""
    by_question = judgements.set_index(["picture", "question"])
    sides = [by_question[by_question.annotator == name].answer for name in (one, other)]
    both = pd.concat(sides, axis=1, join="inner") == "yes"
    if not len(both):
        raise ValueError(f"judgements: {one!r} and {other!r} answered no question in common")
    return both.iloc[:, 0].tolist(), both.iloc[:, 1].tolist()


def check_answers(answers: Sequence[str]) -> None:
    """Whether all 16 questions are answered, each with yes or no. There is no wrong answer here.

    Raises:
        CounterExample: one is missing or is another word; its picture is drawn.
    """
    for picture in range(len(questions())):
        answer = answers[picture] if picture < len(answers) else None
        if answer not in ANSWERS:
            figure, axis = plt.subplots(figsize=(3, 3.2))
            _draw(axis, picture)
            state = "has no answer" if answer is None else f"has the answer {answer!r}"
            refuse(f"Picture {picture} {state}: yes or no?", figure)
    if len(answers) != len(questions()):
        refuse(f"There are {len(questions())} pictures and {len(answers)} answers.", words("one answer per picture"))
    if len(set(answers)) == 1:
        refuse("All answers are the same: look once more, or kappa will have nothing to say.", pictures())
    accept("Every picture is judged.")


_TABLES = [[6, 2, 1, 7], [9, 1, 1, 1], [2, 6, 2, 6], [8, 0, 0, 8], [0, 8, 8, 0], [1, 5, 0, 10], [0, 0, 0, 9],
           [12, 0, 0, 0]]  # fmt: skip


def check_kappa(function: Callable[[list[bool], list[bool]], float]) -> None:
    """Whether a function of two lists of answers (True is yes) is Cohen's kappa, NaN where both always say the same.

    Raises:
        CounterExample: its value is wrong for two judges, drawn as their 2 × 2 table.
    """
    rng = np.random.default_rng(0)
    for counts in [*_TABLES, *rng.integers(0, 9, (60, 4)).tolist()]:
        if not sum(counts):
            continue
        a = np.repeat([True, True, False, False], counts).tolist()
        b = np.repeat([True, False, True, False], counts).tolist()
        value = call(function, a, b, figure=partial(_two_by_two, counts))
        if not isinstance(value, int | float | np.number):
            refuse(f"{function.__name__} returns {value!r}; kappa is a number.", _two_by_two(counts, "which number?"))
        right = agreement(np.array(counts))[-1]
        if not np.isclose(value, right, equal_nan=True):
            refuse(_hint(float(value), counts), _two_by_two(counts, f"yours: {value:.2f}"))
    accept("Your kappa is Cohen's.")


def _hint(value: float, counts: list[int]) -> str:
    yes_yes, yes_no, no_yes, no_no = (count / sum(counts) for count in counts)
    same, one, other = yes_yes + no_no, yes_yes + yes_no, yes_yes + no_yes
    if np.isnan(agreement(np.array(counts))[-1]):
        return "Both always say the same word: there was no chance to disagree, so what can be value beyond chance?"
    if np.isclose(value, same):
        return "That is how often they agree; how often would two such judges agree by chance?"
    if np.isclose(value, 2 * same - 1):
        return "By chance they would agree in half of the cases only if each value yes half of the time: do they?"
    chances = [share**2 + (1 - share) ** 2 for share in (one, other)]
    if any(np.isclose(value, (same - chance) / (1 - chance)) for chance in chances if chance < 1):
        return "Chance has two judges: each has a share of yes of their own."
    if np.isclose(value, (same - one * other) / (1 - one * other) if one * other < 1 else np.nan):
        return "Two judges can also agree by chance on no."
    return "Count by hand: how often do they agree, and how often would they if each answered blindly?"


def _two_by_two(counts: list[int], title: str) -> Figure:
    figure, axis = plt.subplots(figsize=(3.4, 3))
    sns.heatmap(np.array(counts).reshape(2, 2), annot=True, fmt="d", cmap="cividis", cbar=False, square=True, ax=axis,
                xticklabels=ANSWERS, yticklabels=ANSWERS, vmin=0)  # fmt: skip
    axis.set(xlabel="the other judge", ylabel="one judge", title=title)
    figure.tight_layout()
    return figure
