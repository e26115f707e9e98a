"""Kinds of tokens: end of the text, form, style, function word or content.

Style and function words are English word lists of rahf, so the division means little in other
languages. Knows texts; knows no model.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence

KINDS = ("end", "form", "style", "function", "content")
"""end: ends the text. form: no letter or digit in it (punctuation, line breaks, bullets). style:
a word that steers the tone or the course of an answer. function: a grammatical word. content: the
rest.
"""


def _words(*lists: str) -> frozenset[str]:
    return frozenset(" ".join(lists).split())


STYLE_WORDS = _words(
    # discourse
    """
    additionally also although because besides but consequently conclusion conversely due equally
    especially example finally first firstly following follows further furthermore hence
    here however indeed instead lastly let likewise moreover namely nevertheless next nonetheless
    note now once or otherwise overall particularly rather second secondly similarly since so
    specifically still such summary then thereby therefore third though thus too ultimately unlike
    whereas while yet
    """,
    # politeness, and what speakers call themselves and each other
    """
    absolutely agree apologies apologize appreciate assist assistance certainly congratulations
    course dear definitely delighted enjoy excellent exciting feel free glad gladly great happy
    hello help helpful hey hi hope i i'd i'll i'm i've kind kindly know me my okay our please
    pleased pleasure question questions reach sorry sure thank thanks understand us want we we're
    welcome wonderful yes you you'll you're your yourself
    """,
    # caution
    """
    advise advised always appears careful cannot can't carefully caution consider could consult
    crucial depend depending depends don't ensure essential generally important importantly
    keep likely may might mind must necessarily never often perhaps possible possibly potentially
    probably professional recommend recommended remember respect respectful safe seems should
    sometimes suggest typically unable unfortunately usually vital will won't would
    """,
)

FUNCTION_WORDS = _words(
    """
    a about above across after again against all along among an and another any are as at away be
    been before being below between both by can did do does doing down during each either else ever
    every few from had has have having he her hers him his how if in into is isn't it it's its
    itself just least less many more most much near neither no nor not of off on one only onto other
    others out over own per same several she some than that that's the their theirs them themselves
    there these they this those through to toward towards under until up upon very via was were
    what when where which who whom whose why with within without
    """,
)

_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")


def token_kinds(pieces: Sequence[str], ends: Sequence[bool]) -> list[str]:
    """Return the kind of each token of a text.

    A token that is part of a word is of the word's kind; one with parts of two words, of the
    first one's.

    Args:
        pieces: the text that each token writes; together they are the full text.
        ends: whether a token ends the text.
    """
    words = list(_WORD.finditer("".join(pieces)))
    starts = [word.start() for word in words]
    kinds, place = [], 0
    for piece, end in zip(pieces, ends, strict=True):
        letter = re.search(r"[^\W_]", piece)
        if end:
            kinds.append("end")
        elif letter is None:
            kinds.append("form")
        else:
            word = words[bisect_right(starts, place + letter.start()) - 1]
            kinds.append(word_kind(word[0]))
        place += len(piece)
    return kinds


def word_kind(word: str) -> str:
    word = word.lower().replace("\u2019", "'")
    if word in STYLE_WORDS:
        return "style"
    return "function" if word in FUNCTION_WORDS else "content"
