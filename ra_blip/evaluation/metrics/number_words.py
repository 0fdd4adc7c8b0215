"""Numbers written as one English word, as the package word2number 1.1 reads them.

The official programs of WebQA and of MultimodalQA hand it one word at a time, and for one word it is this table; the
package itself, of which only a source archive exists, is therefore not required. What it makes of a string with inner
blanks that are not spaces (a no-break space in a MultimodalQA answer) is not reproduced.
"""

from __future__ import annotations

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
WORDS: dict[str, int] = {
    **{word: value for value, word in enumerate(_UNITS.split())},
    **{word: 10 * tens for tens, word in enumerate(_TENS.split(), 2)},
    "hundred": 100,
    "thousand": 1_000,
    "million": 1_000_000,
    "billion": 1_000_000_000,
    "point": 0,  # a decimal point with nothing on either side
}


def number_of(word: str) -> int | None:
    """The number that one lower-case word stands for, in letters or in digits (``007`` is 7), or None.

    Thousands of digits are no number: Python refuses to read them, and the official programs end with its error.
    """
    try:
        return int(word) if word.isdecimal() else WORDS.get(word)
    except ValueError:
        return None
