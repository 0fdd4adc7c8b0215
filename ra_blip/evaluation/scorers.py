"""How each data set scores a set of answered questions: the metrics of ``ra-blip score``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ra_blip.errors import DataError
from ra_blip.evaluation.metrics import (
    answers,
    binomial,
    caption_tokens,
    captions,
    encyclopedic,
    infoseek,
    lemmas,
    multimodalqa,
    retrieval,
    vqa,
    webqa,
)

Values = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Row:
    """One reference line with its prediction; ``answer``, ``sources`` and ``choice`` are None where there is none.

    ``answer`` is a list of one string for every metric but ``mmqa``.
    """

    id: str
    where: str
    reference: Mapping[str, Any]
    answer: list[str] | None = None
    sources: list[str] | None = None
    choice: str | None = None

    def strings(self, key: str) -> list[str]:
        """A list of the reference line, numbers as strings. Raises :class:`DataError` where it is empty or none."""
        return strings(self.reference.get(key), key, self.where)

    def text(self, key: str) -> str | None:
        """A string of the reference line, or None. Raises :class:`DataError` for any other type."""
        value = self.reference.get(key)
        if value is not None and not isinstance(value, str):
            raise DataError(f"{self.where}: {key!r} must be a string, found {type(value).__name__}")
        return value

    def name(self, key: str, allowed: Sequence[str]) -> str | None:
        """As :meth:`text`, for one of a few names in any case. Raises :class:`DataError` for another name."""
        value = self.text(key)
        known = {one.lower(): one for one in allowed}
        if value is not None and value.lower() not in known:
            raise DataError(f"{self.where}: {key} {value!r} is not one of {', '.join(allowed)}")
        return None if value is None else known[value.lower()]


def strings(value: Any, key: str, where: str) -> list[str]:
    """``value`` as strings: a list with at least one, its whole and decimal numbers written out.

    Raises:
        DataError: it is no such list; the message names ``where`` and ``key``.
    """
    if not isinstance(value, list) or not value or not all(_is_name(one) for one in value):
        raise DataError(f"{where}: {key!r} must be a list of strings, at least one")
    return [str(one) for one in value]


def _is_name(value: Any) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


def _nothing(rows: Sequence[Row], table: Sequence[Values]) -> Values:
    return {}


@dataclasses.dataclass(frozen=True)
class Metric:
    """How a data set is scored.

    Attributes:
        score: the values of every row; the figures are their means.
        pooled: figures that are no means, from rows and their values.
        reads: what a prediction line may hold, at least one of these.
        lists: whether a prediction may be a list of strings.
        groups: name of a breakdown -> the group of a row.
        made_with: what stands beside the figures, because they depend on it.
    """

    score: Callable[[Sequence[Row]], list[Values]]
    pooled: Callable[[Sequence[Row], Sequence[Values]], Values] = _nothing
    reads: tuple[str, ...] = ("prediction",)
    lists: bool = False
    groups: Mapping[str, Callable[[Row], str | None]] = dataclasses.field(default_factory=dict)
    made_with: Callable[[], dict[str, str]] = dict


def _alone(score: Callable[[Row, list[str]], Values]) -> Callable[[Sequence[Row]], list[Values]]:
    """Score each question by itself; one without a prediction gets zeros, and its reference is checked all the same."""

    def scores(rows: Sequence[Row]) -> list[Values]:
        return [_zero(score(row, [""])) if row.answer is None else score(row, row.answer) for row in rows]

    return scores


def _zero(values: Values) -> Values:
    return dict.fromkeys(values, 0.0)


def _short(row: Row, answer: list[str]) -> Values:
    wanted = row.strings("answers")
    return {
        "exact_match": answers.exact_match(answer[0], wanted),
        "token_f1": answers.token_f1(answer[0], wanted),
        "answer_in_prediction": answers.contains(answer[0], wanted),
    }


def _species(row: Row, answer: list[str]) -> Values:
    wanted = row.strings("answers")
    return {
        "binomial": binomial.binomial(answer[0], wanted),
        "genus": binomial.genus(answer[0], wanted),
        "binomial_recall": binomial.binomial_recall(answer[0], wanted),
        "genus_recall": binomial.genus_recall(answer[0], wanted),
    }


def _mmqa(row: Row, answer: list[str]) -> Values:
    gold = row.strings("answers")
    return {"list_em": multimodalqa.list_em(answer, gold), "list_f1": multimodalqa.list_f1(answer, gold)}


def _vqa(row: Row, answer: list[str]) -> Values:
    return {"accuracy": vqa.vqa_accuracy(answer[0], row.strings("answers"))}


def _aokvqa(rows: Sequence[Row]) -> list[Values]:
    chosen, answered = any(row.choice is not None for row in rows), any(row.answer is not None for row in rows)
    table: list[Values] = []
    for row in rows:
        values: Values = {}
        if answered:
            wanted = row.strings("answers")
            values["accuracy"] = vqa.direct_answer(row.answer[0], wanted) if row.answer else 0.0
        if chosen:
            choice = row.text("choice")
            if choice is None:
                raise DataError(f"{row.where}: 'choice', the right one, is missing, though predictions choose")
            values["multiple_choice"] = vqa.multiple_choice(row.choice, choice) if row.choice is not None else 0.0
        table.append(values)
    return table


def _infoseek(row: Row, answer: list[str]) -> Values:
    kind = row.name("kind", ("string", "time", "numerical"))
    if kind is None:
        raise DataError(f"{row.where}: 'kind' is missing: string, time or numerical")
    if kind == "numerical":
        return {"accuracy": infoseek.numerical(answer[0], interval(row))}
    return {"accuracy": infoseek.exact(answer[0], row.strings("answers"))}


def interval(row: Row) -> float | tuple[float, float]:
    """The interval of right numbers, or the right number. Raises :class:`DataError` where it is neither."""
    given = row.reference.get("range")
    if given is None:
        return infoseek.parse_number(row.strings("answers")[0])
    numbers = [end for end in given if isinstance(end, (int, float))] if isinstance(given, list) else []
    if len(numbers) != 2 or len(given) != 2:
        raise DataError(f"{row.where}: 'range' must be a list of two numbers, found {given!r}")
    return float(numbers[0]), float(numbers[1])


_SPLITS = ("unseen_question", "unseen_entity")


def _split(row: Row) -> str | None:
    return row.name("split", _SPLITS)


def _final(rows: Sequence[Row], table: Sequence[Values]) -> Values:
    by_split = [
        [values["accuracy"] for row, values in zip(rows, table, strict=True) if _split(row) == s] for s in _SPLITS
    ]
    if not all(by_split):
        return {}
    return {"harmonic_mean": infoseek.harmonic_mean(*(sum(one) / len(one) for one in by_split))}


def _encyclopedic(row: Row, answer: list[str]) -> Values:
    kind = row.name("kind", encyclopedic.KINDS) or "automatic"
    try:
        return {"exact_match": encyclopedic.exact_match(answer[0], row.strings("answers"), kind)}
    except ValueError as error:  # a reference without a word
        raise DataError(f"{row.where}: {error}") from None


def _webqa(rows: Sequence[Row]) -> list[Values]:
    answered, found = any(row.answer is not None for row in rows), any(row.sources is not None for row in rows)
    table: list[Values] = []
    for row in rows:
        category, keywords = row.name("category", tuple(webqa.MODALITIES)), _keywords(row)
        values: Values = {}
        if found:
            values["retrieval_f1"] = webqa.retrieval_f1(row.sources or [], row.strings("gold"))
        if answered and keywords and keywords != webqa.NO_KEYWORDS:
            values["qa_acc"] = webqa.qa_accuracy(row.answer or [], keywords, category or "Others")
        table.append(values)
    return table


def _keywords(row: Row) -> str | None:
    if isinstance(row.reference.get("keywords"), list):
        return " ".join(row.strings("keywords"))
    return row.text("keywords")


def _modality(row: Row) -> str | None:
    return webqa.MODALITIES.get(row.name("category", tuple(webqa.MODALITIES)) or "")


def _micro(rows: Sequence[Row], table: Sequence[Values]) -> Values:
    if "retrieval_f1" not in table[0]:
        return {}
    return {"retrieval_f1_micro": webqa.retrieval_f1_micro((row.sources or [], row.strings("gold")) for row in rows)}


def _words(rows: Sequence[Row]) -> tuple[list[list[str]], list[list[list[str]]]]:
    """The words of predictions and references; a missing prediction has none."""
    ours = [caption_tokens.tokens(row.answer[0]) if row.answer else [] for row in rows]
    return ours, [[caption_tokens.tokens(one) for one in row.strings("answers")] for row in rows]


def _captions(rows: Sequence[Row]) -> list[Values]:
    ours, wanted = _words(rows)
    rouge = [captions.rouge_l(words, many) for words, many in zip(ours, wanted, strict=True)]
    return [{"cider": c, "rouge_l": r} for c, r in zip(captions.cider(ours, wanted), rouge, strict=True)]


def _bleu(rows: Sequence[Row], table: Sequence[Values]) -> Values:
    return {f"bleu{order}": value for order, value in enumerate(captions.bleu(*_words(rows)), 1)}


def _retrieval(rows: Sequence[Row]) -> list[Values]:
    table: list[Values] = []
    for row in rows:
        found, gold = row.sources or [], row.strings("gold")
        values = {f"recall@{k}": retrieval.recall(found, gold, k) for k in (1, 5, 10, 20)}
        more = {"mrr@10": retrieval.reciprocal_rank(found, gold, 10), "ndcg@10": retrieval.ndcg(found, gold, 10)}
        table.append(values | more)
    return table


METRICS: dict[str, Metric] = {
    "answers": Metric(_alone(_short)),
    "aokvqa": Metric(_aokvqa, reads=("prediction", "choice")),
    "binomial": Metric(_alone(_species)),
    "caption": Metric(_captions, _bleu),
    "encyclopedic": Metric(_alone(_encyclopedic), groups={"by_kind": lambda row: row.text("kind")}),
    "infoseek": Metric(_alone(_infoseek), _final, groups={"by_kind": lambda row: row.text("kind"), "by_split": _split}),
    "mmqa": Metric(_alone(_mmqa), lists=True),
    "retrieval": Metric(_retrieval, reads=("sources",)),
    "vqa": Metric(_alone(_vqa)),
    "webqa": Metric(
        _webqa, _micro, reads=("prediction", "sources"), groups={"by_modality": _modality},
        made_with=lambda: {"lemmatiser": lemmas.lemmatiser()},
    ),
}  # fmt: skip
