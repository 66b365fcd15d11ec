"""Prompt sets of every kind: read, checked, made, and drawn from."""

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..relations import BY_NAME, NAMES, RELATIONS, family
from ..store.files import DATA, download, shipped, write_table, write_text
from ..store.limits import check_loss
from . import boxes
from .captions import caption, with_article
from .names import key, tidy
from .prompt_files import read_rows
from .sentences import NONE, WORDS, understood

SENTENCE = ("prompt", "caption", "text")  # what a column of sentences may be called
NEEDED = ("prompt_id", "subject", "relation", "object")  # to score; to draw, a caption as well


def check_prompts(
    table: pd.DataFrame, source: str, needed: Sequence[str] = (*NEEDED, "caption"), name_files: bool = True
) -> pd.DataFrame:
    """The table itself, when it is one of prompts with the columns ``needed``.

    Raises:
        ValueError: it names the source, the row (by the table's index), the column and the value.
    """
    if missing := [name for name in needed if name not in table]:
        raise ValueError(f"{source}: the column {missing[0]!r} is missing; prompts have {', '.join(needed)}")
    if not table.columns.is_unique:
        twice = table.columns[table.columns.duplicated()][0]
        raise ValueError(f"{source}: the column {twice!r} occurs twice; leave one of them out")
    if not len(table):
        raise ValueError(f"{source}: the table is empty, it holds no prompts")

    def refuse(bad: Any, column: pd.Series, problem: str) -> None:
        for at in np.flatnonzero(bad)[:1]:
            id, value = _short(table.prompt_id.iloc[at]), _short(column.iloc[at])
            raise ValueError(f"{source}: row {table.index[at]}: prompt {id} {problem.replace('VALUE', value)}")

    for name in needed:
        column, text = table[name], table[name].astype(str)
        refuse(column.isna() | (text.str.strip() == ""), column, f"has no {name}")
        if name in ("subject", "object", "caption"):
            right = (name == "caption") | (text.str.contains(r"[^\W\d_]") & ~text.str.contains(r"[\r\n]"))
            if not pd.api.types.is_string_dtype(column):
                right &= column.map(lambda value: isinstance(value, str))
            refuse(~right, column, f"has the {name} VALUE, which is none: write it in words, on one line")
    known = np.array([isinstance(value, str) and value in BY_NAME for value in table.relation])
    refuse(~known, table.relation, f"has the relation VALUE; it must be one of {', '.join(NAMES)}")
    ids = table.prompt_id.astype(str)
    refuse(ids.duplicated(), ids, "is not the first: prompt_id VALUE occurs twice; number them anew")
    wrong = name_files & ~ids.str.fullmatch(r"[\w-][\w.-]*")
    refuse(wrong, ids, "has the prompt_id VALUE, which is not made of letters, digits, '_', '-' and, not first, '.'")
    return table


def _short(value: Any) -> str:
    return repr(value.item() if isinstance(value, np.generic) else value)[:80]


@dataclass(frozen=True)
class PromptSet:
    """A prompt set that is called by name: how many prompts it gives, and the function that reads it."""

    name: str
    number: int
    read: Callable[[], pd.DataFrame]


SETS: dict[str, PromptSet] = {}


def prompt_set(name: str, number: int) -> Callable[[Callable[[], pd.DataFrame]], Callable[[], pd.DataFrame]]:
    """Register a function that returns ``number`` prompts as the set ``name``, everywhere a set can be named."""

    def register(read: Callable[[], pd.DataFrame]) -> Callable[[], pd.DataFrame]:
        SETS[name] = PromptSet(name, number, read)
        return read

    return register


def read_prompts(source: str | Path | pd.DataFrame | Sequence[Any]) -> pd.DataFrame:
    """A prompt set: columns prompt_id, subject, relation, object, caption, and what else its file holds.

    Args:
        source: a name in ``SETS`` or a file (:mod:`sr4g_utils.dataset.prompt_files`) with subject, relation (a name or
            its phrase), object and perhaps caption and prompt_id, or with a sentence (:mod:`sentences`), called prompt,
            caption or text. Files of published sets are read as they are: SR2D's
            JSON, GenEval's ``evaluation_metadata.jsonl``, T2I-CompBench's spatial lines (``.txt``), HRS-Bench's CSV of
            spatial or size compositions, NSR-1K's spatial JSON. Or the same in memory: a table, or a list of sentences,
            of (subject, relation, object) or of a file's rows. Prompts without one of the 14 relations or with more
            than two objects are left out: ``attrs["left_out"]`` is their number, :func:`others` says which they are.

    Raises:
        ValueError: no such file or set, or a row that cannot be read; file, row and value are named.
    """
    if isinstance(source, pd.DataFrame):
        return _of_table(source, "prompts")
    if not isinstance(source, str | Path):
        return _of_rows(dict(enumerate(source)), "prompts")
    path = Path(source).expanduser()
    if str(source) in SETS or (path.is_dir() and path.name in SETS):  # a folder holds no prompts, whatever its name
        return SETS[path.name].read()
    if not path.is_file():
        raise ValueError(f"prompts: {str(source)!r} is neither a file nor one of {', '.join(SETS)}")
    rows = read_rows(path)
    return _of_table(rows, str(source)) if isinstance(rows, pd.DataFrame) else _of_rows(rows, str(source))


MET = ("together", "never together")  # two things of a prompt, in the photos of COCO train2017


def with_met(table: pd.DataFrame) -> pd.DataFrame:
    """The prompts with ``met``: do their two things share a photo of COCO train2017? 491 of its 3,160 pairs never do:
    no fine-tuning on it shows the pair, whatever the captions name. For prompts of COCO's names."""
    apart = {frozenset((one, other)) for one, others in shipped("apart.yaml").items() for other in others}
    pairs = map(frozenset, zip(table.subject, table.object, strict=True))
    return table.assign(met=[MET[pair in apart] for pair in pairs])


def prompts_hash(table: pd.DataFrame) -> str:
    """What tells one set of prompts from another: sha256 of their ids, triplets and captions."""
    text = table[[*NEEDED, "caption"]].to_json(orient="values")
    return hashlib.sha256(text.encode()).hexdigest()


def others(table: pd.DataFrame) -> dict[str, str]:
    """Id and caption of the prompts that belong to the table's set but were left out of it or not drawn."""
    return dict(line.split("\t", 1) for line in table.attrs.get("others", "").split("\n") if line)


def _with_others(table: pd.DataFrame, prompts: Iterable[tuple[Any, str]]) -> pd.DataFrame:
    """The table, knowing of more :func:`others`. One string, since pandas copies attributes again and again."""
    lines = [f"{id}\t{' '.join(str(text).split())}" for id, text in prompts]
    table.attrs["others"] = "\n".join(filter(None, [table.attrs.get("others", ""), *lines]))
    return table


def _of_table(table: pd.DataFrame, source: str) -> pd.DataFrame:
    """The prompts of a table: of triplets, or of sentences; its columns' names in any case."""
    known = {*NEEDED, *SENTENCE}
    lower = {name: str(name).strip().lower() for name in table if name not in known}
    table = table.rename(columns={a: b for a, b in lower.items() if b in known and b not in table})
    if not {"subject", "relation", "object", "meta_prompt", *SENTENCE} & set(table):
        have = ", ".join(map(str, table))[:200]
        needs = f"prompts have {', '.join(NEEDED)}, or a sentence in a column {', '.join(SENTENCE)}"
        raise ValueError(f"{source}: the column 'subject' is missing; {needs}; this table has {have or 'no column'}")
    if "meta_prompt" in table or (not {"subject", "relation", "object"} & set(table) and {*SENTENCE} & set(table)):
        return _of_rows(dict(zip(table.index, table.to_dict("records"), strict=True)), source)
    return _named(table, source)


def _of_rows(rows: Mapping[int, Any], source: str) -> pd.DataFrame:
    """The prompts among the values of a file, which come by their number in it."""
    prompts = {row: _prompt(i, value, f"{source}: row {row}") for i, (row, value) in enumerate(rows.items())}
    kept = {row: prompt for row, prompt in prompts.items() if "relation" in prompt}
    if not kept:
        row, first = next(iter(prompts.items()), (0, {}))
        why = f"; such as row {row}: {first['caption']!r:.80}, {first['left_out']}" if "left_out" in first else ""
        raise ValueError(f"{source}: holds no prompts with one of the relations {', '.join(NAMES)}{why}")
    table = _named(pd.DataFrame(list(kept.values()), index=list(kept)), source)
    _say_what_is_left_out(list(prompts.values()), source)
    rest = [(prompt["prompt_id"], prompt["caption"]) for row, prompt in prompts.items() if row not in kept]
    table.attrs["left_out"] = len(rest)
    if not any(isinstance(value, dict) and {"prompt_id", "unique_id", "id"} & set(value) for value in rows.values()):
        table.attrs["counted"] = True  # by us, from 0
    return _with_others(table, rest)


def _say_what_is_left_out(prompts: Sequence[Mapping[str, Any]], source: str) -> None:
    """Of sentences: how many have another form (few may), and how many none of our relations, as in published sets."""
    reasons = Counter(prompt["left_out"] for prompt in prompts if "left_out" in prompt)
    first = {prompt["left_out"]: prompt["caption"] for prompt in reversed(prompts) if "left_out" in prompt}
    form = "write <one thing> <verb> <relation> <one thing>, or the columns subject, relation and object"
    causes = {reason: f"such as {first[reason]!r:.80}" + f"; {form}" * (reason != NONE) for reason in reasons}
    check_loss(source, {NONE: reasons.pop(NONE, 0)}, len(prompts), "prompts", causes, allow_loss=1)
    check_loss(source, reasons, len(prompts), "prompts", causes)


def _named(table: pd.DataFrame, source: str) -> pd.DataFrame:
    """The prompts, with what a user's file may leave out: prompt_id, caption, and a relation's name for its phrase."""
    if "prompt_id" not in table and "id" in table and table.columns.is_unique and table["id"].is_unique:
        table = table.rename(columns={"id": "prompt_id"})
    if "prompt_id" not in table:
        table = table.assign(prompt_id=np.arange(len(table)))
        table.attrs["counted"] = True
    if table.columns.is_unique:
        table = table.assign(**{name: tidied(table[name]) for name, tidied in _TIDY.items() if name in table})
        first: dict[str, str] = {}  # one spelling of each name in a set
        for name in [name for name in ("subject", "object") if name in table]:
            words = [first.setdefault(key(value), value) if isinstance(value, str) else value for value in table[name]]
            table = table.assign(**{name: words})
    check_prompts(table, source, [*NEEDED, *({"caption"} & set(table))])
    if "caption" in table:
        _check_captions(table, source)
    if "caption" not in table:
        table = table.assign(caption=list(map(caption, table.subject, table.relation, table.object)))
    for name in table.columns[[dtype.kind == "O" for dtype in table.dtypes]]:
        try:
            table[[name]].to_parquet(io.BytesIO())
        except Exception as error:  # Arrow's are of many kinds
            reason = " ".join(str(error).split())
            raise ValueError(f"{source}: the column {name!r} cannot be kept ({reason}); leave it out") from None
    return table.reset_index(drop=True)


def _check_captions(table: pd.DataFrame, source: str) -> None:
    """Raise ValueError where a caption says another relation of the prompt's two things than the prompt has."""
    for at, row in enumerate(table[[*NEEDED, "caption"]].itertuples(index=False)):
        asked = BY_NAME[row.relation]
        before, phrase, after = row.caption.lower().partition(asked.phrase)
        if phrase and row.subject.lower() in before and row.object.lower() in after:
            continue  # as most do; the rest is slower
        if isinstance(sentence := understood(row.caption), str):
            continue  # not one of the relations
        first, relation, second = key(sentence[0]), sentence[1], key(sentence[2])
        s, o = key(row.subject), key(row.object)
        in_order, swapped = (first.endswith(a) and second.endswith(b) for a, b in ((s, o), (o, s)))
        right = (in_order and relation == asked.name) or (swapped and relation == asked.converse)
        if (in_order or swapped) and not right:
            triplet = f"{row.subject!r} {row.relation} {row.object!r}"
            what = f"has the caption {row.caption!r:.80}, which does not say {triplet}; correct one of them"
            raise ValueError(f"{source}: row {table.index[at]}: prompt {_short(row.prompt_id)} {what}")


def _tidy_ids(column: pd.Series) -> Any:
    """Whole numbers where all are, else text, as written."""
    if pd.api.types.is_integer_dtype(column):
        return column
    values = column.tolist()
    whole = all(isinstance(v, int) or (isinstance(v, float) and v.is_integer()) for v in values)
    if whole and min(values, default=0) >= -(2**63) and max(values, default=0) < 2**63:
        return np.array(values, np.int64)
    return [None if pd.isna(v) is True else str(v) for v in values]


def _tidy_words(column: pd.Series) -> list[Any]:
    """A name of several lines stays as it is: it is refused."""
    return [
        tidy(value) if isinstance(value, str) and not re.search(r"[\r\n]", value.strip()) else value for value in column
    ]


_TIDY: dict[str, Callable[[pd.Series], Any]] = {
    "prompt_id": _tidy_ids,
    "subject": _tidy_words,
    "relation": lambda column: [_relation(value) or value for value in column],
    "object": _tidy_words,
    "caption": lambda column: [value.strip() if isinstance(value, str) else value for value in column],
}

# ----------------------------------------------------------------------------------------------- published sets' rows

_WORDS = WORDS | {r.name: r.name for r in RELATIONS}
# Words of published sets: HRS-Bench (Bakr et al. 2023), grouped as its calc_spatial_relation_acc.py does; NSR-1K (Feng
# et al. 2023, LayoutGPT). T2I-CompBench's (Huang et al. 2023) "next to", "near" and "on side of" are none of ours.
_NSR = {"left": "left of", "right": "right of", "top": "above", "bottom": "below"}
_HRS = {"on the left of": "left of", "on the right of": "right of", "on": "above", "over": "above", "under": "below",
        "beneath": "below", "bigger": "larger"}  # fmt: skip


def _relation(words: Any, also: Mapping[str, str] | None = None) -> str | None:
    """The relation that a name, a phrase or a set's own words mean; None if none does."""
    if not isinstance(words, str):
        return None
    words = " ".join(re.sub(r"[\s_-]+", " ", words.lower()).split())
    return (also or {}).get(words) or _WORDS.get(words)


def _prompt(row: int, value: Any, where: str) -> dict[str, Any]:
    """One prompt of a published set or of a user's file; without a relation where it names none of ours."""
    id, s, o = row, "", ""
    relation = None
    match value:
        case {"subject": _, "relation": _, "object": _}:
            return {"prompt_id": value.get("id", row), **value}
        case [str(s), str(words), str(o)]:
            return {"prompt_id": row, "subject": s, "relation": words, "object": o}
        case str():  # T2I-CompBench's, too; what follows a tab is not the prompt (its inference_eval.py)
            text = value.split("\t")[0].strip().strip('"“”„')
            match understood(text):
                case str() as why:
                    return {"prompt_id": id, "caption": text, "left_out": why}
                case found:
                    s, relation, o = found
        case {
            "unique_id": id, "obj_1_attributes": [str(s)], "obj_2_attributes": [o], "rel_type": words, "text": str(text)
        }:  # SR2D  # fmt: skip
            relation = _relation(words)
        case {
            "tag": str(), "prompt": str(text),
            "include": [{"class": str(o), "count": 1, **a}, {"class": str(s), "count": 1, "position": [words, 0], **b}],
        } if not a and not b:  # GenEval  # fmt: skip
            relation = _relation(words)
        case {"tag": str(), "prompt": str(text)}:  # GenEval's others
            pass
        case {"meta_prompt": str(text), "obj1": s, "rel1": words, "obj2": o, "obj3": other, "rel2": more}:  # HRS-Bench
            relation = None if isinstance(other, str) or isinstance(more, str) else _relation(words, _HRS)
        case {"id": id, "obj1": [str(s), _], "relation": words, "obj2": [str(o), _], "prompt": str(text)}:  # NSR-1K
            relation = _relation(words, _NSR)
        case {"prompt": str(text)} | {"caption": str(text)} | {"text": str(text)}:  # a sentence and its id
            return {**value, **_prompt(row, text, where), "prompt_id": value.get("prompt_id", value.get("id", row))}
        case _:
            shown = " ".join(str(value)[:80].split())
            raise ValueError(f"{where}: not a prompt ({shown}); it needs subject, relation and object")
    triplet: dict[str, Any] = {} if relation is None else {"subject": s, "relation": relation, "object": o}
    return {"prompt_id": id, **triplet, "caption": text}


@prompt_set("sr2d", 25_280)
def _sr2d() -> pd.DataFrame:
    published = json.loads(sr2d([category.name for category in boxes.COCO_CATEGORIES]))
    return with_met(_of_rows(dict(enumerate(published, 1)), "sr2d"))


@prompt_set("sr4g", 62_460)
def _sr4g() -> pd.DataFrame:
    """What :func:`prompts.write_study_prompts` makes of COCO train2017's boxes, with 16 categories held out."""
    return with_met(pd.read_parquet(DATA / "prompts" / "sr4g.parquet"))


@prompt_set("geneval", 100)
def _geneval() -> pd.DataFrame:
    return read_prompts(download("geneval_evaluation_metadata.jsonl"))


def write_given_prompts(path: str | Path, *, source: str | Path) -> dict[str, Any]:
    """A stage: :func:`read_prompts` as Parquet. Returns how many there are and how many were left out."""
    table = read_prompts(source)
    write_table(path, table)
    return {"prompts": len(table), "left_out": table.attrs.get("left_out", 0)}


def sr2d(names: Sequence[str]) -> bytes:
    """VISOR's SR2D prompt set, byte for byte the published ``text_spatial_rel_phrases.json`` for COCO's 80 names.

    Every unordered pair of names in both orders for the four projective relations and "and", then each name alone
    (Gokhale et al. 2022, section 3.1; microsoft/VISOR).
    """
    phrases = [BY_NAME[name].phrase for name in family("projective")] + ["and"]
    rows: list[tuple[int, str, str | None, str, str]] = [
        (2, a, b, phrase, f"{with_article(a)} {phrase} {with_article(b)}")
        for pair in combinations(names, 2)
        for phrase in phrases
        for a, b in (pair, pair[::-1])
    ]
    rows += [(1, name, None, "single", with_article(name)) for name in names]
    keys = ("unique_id", "num_objects", "obj_1_attributes", "obj_2_attributes", "rel_type", "text")
    records = [dict(zip(keys, (i, n, [a], [b], *rest), strict=True)) for i, (n, a, b, *rest) in enumerate(rows)]
    return json.dumps(records, indent=2).encode()


def write_sr2d(path: str | Path) -> int:
    """A stage: :func:`sr2d` for COCO's 80 categories. Returns the number of prompts."""
    text = sr2d([category.name for category in boxes.COCO_CATEGORIES]).decode()
    write_text(path, text)
    return len(json.loads(text))
