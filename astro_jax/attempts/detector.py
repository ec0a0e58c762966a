"""Find reflections, backtracks and restarts in a response, in the fixed phrases or in a model's own words.

- A reflection doubts or checks what the response has written: "Wait, is that right?", "I made a mistake".
- A backtrack leaves the present attempt for an earlier step or another way: "Let me try again", "go back to step 2".
- A restart is a backtrack to the beginning: "Let's start over".

The unit is the sentence. A sentence has at most one event of each kind, and a restart is not also a backtrack.
Neighbouring sentences of the same kind are one event. tests/evaluate/behaviour_labels.py has the labelled responses on
which precision and recall are measured.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

Kind = Literal["reflection", "backtrack", "restart"]


class Event(NamedTuple):
    """One event.

    Attributes:
      kind: of the event.
      begin, end: the sentences of the event, as positions in the response.
    """

    kind: Kind
    begin: int
    end: int


# A longer sentence is cut: the patterns need time with the square of its length, and a collapsed policy repeats one word.
_SENTENCE = re.compile(r"(?:[^.!?\n]|\.(?=\d)){1,500}[.!?…]*\n*|[.!?\n…]+")
# In the patterns below, START is the beginning of a sentence, also after "But", "Hmm," and such. ME is that, or the
# solver before the verb: "let me", "we should". A problem's own story has other subjects ("Tom starts again").
_START = r"(?:^[\s\W]*(?:(?:but|oh|no|ok|okay|h+m+|and|so|well|ah|ugh|alright|right|now|then|yes|maybe|perhaps)\b[\s,.…!—–-]*)*)"
_SOLVER = (
    r"(?:\b(?:let me|let's|let us|lets|i|i'll|i'd|i'm|we|we'll|we're|need to|have to|had better|must|should|time to|to|so"
    r"|then)(?: (?:just|now|then|also|quickly|carefully|will|should|must|can|could|need to|have to|want to|am|are|going to"
    r"|would|might|may|try to|first|better))* )"
)
_OWN = (
    r"(?:this|that|it|these|my|our|everything|again|what (?:i|we)|each step|for (?:errors|mistakes)|(?:if|whether) "
    r"(?:this|that|it|we|i)|the (?:answer|result|solution|work|working|calculations?|computation|arithmetic|steps?|algebra"
    r"|math|reasoning|equations?|sum|product|logic|previous|last|first|above|whole))\b"
)
_BEGINNING = r"(?:the )?(?:very )?(?:beginning|start|scratch|top)\b(?! of (?:the|a) (?!problem|solution|page))"

_RESTART = (
    r"ME(?:re-?start(?:ing)?\b|(?:start|begin)(?:ning|ing)? (?:all )?(?:over|again|afresh|anew|fresh)\b(?! (?:at|on|in) ))",
    r"ME(?:redo|re-?do|rework|re-?solve|solve|retry|try|start|begin|approach|go|do|attempt|return|rethink|reset|take)\b"
    rf"[^,;]{{0,40}}\b(?:from|at|to) {_BEGINNING}",
    rf"START(?:back |once more |again )?(?:from|to) {_BEGINNING}",
    r"\bback to square one\b",
    r"\bclean slate\b",
)
_BACKTRACK = (
    r"MEre-?try(?:ing)?\b",
    r"MEtry(?:ing)? (?:(?:that|this|it|one|step|part|things) )*(?:again|once more|one more|something|another|different"
    r"|differently|other|the other|the opposite|instead|a (?:different|new|second)|an (?:alternative|other|easier))\b",
    r"ME(?:go|going|step|stepping|come|head|jump|back|backing|rewind) (?:back|up|backwards?)\b",
    r"\bbacktrack(?:ing|s)?\b(?! (?:algorithm|search))",
    r"MEreturn(?:ing)? to (?:(?:the|our|my) )?(?:step|equation|previous|earlier|point|where|last|first|original|state)",
    r"ME(?:redo(?:ing)?|re-do|rework|re-?comput(?:e|ing)|re-?calculat(?:e|ing)|undo|revisit|fix|revise|re-?derive) "
    r"(?:this|that|it|the|my|our|step|everything|these|things|from)\b",
    r"MEcorrect (?:this|that|it|my|the (?:mistake|error|step|calculation))\b",
    r"START(?:instead|alternatively|scratch that|plan b)\b(?! of\b)",
    r"START(?:a |an )?(?:another|second|third|next|new|different|alternative) (?:attempt|try|approach|idea|method|way|option)",
    r"START(?:attempt|try|option|approach) (?:#?[2-9]|two|three|four|b)\b",
    r"\b(?:let me|let's|let us|i'll|we'll|(?:i|we) (?:will|should|could|can|need to))\b[^;]*\binstead\b(?! of)",
    r"ME(?:scratch|forget|discard|abandon|drop) (?:that|this)\b",
    r"ME(?:consider|use|take|switch to|look for|look at|explore|find|think of|combine|pick|choose) (?:another|a different"
    r"|an alternative|other|a new|different)\b",
)
_REFLECTION = (
    r"START(?:wait|hold on|hang on)\b(?! (?:times?|for|until|till|staff)\b)",
    r"[,;:—–(-] ?(?:but |no,? |oh,? )?(?:wait|hold on|hang on)\b(?! (?:times?|for|until|till|\d))",
    r"\bh+m{2,}\b|\bhm\b|\boops\b|\bwhoops\b|\bon second thought",
    r"ME(?:double[- ]?check|re-?check|re-?examine|reconsider|re-?verify|sanity[- ]check|re-?read|re-?think|think again)",
    rf"ME(?:check|verify|checking|verifying|confirm|look over|go over|make sure)(?: that)?(?: *[:.!]| *$| {_OWN})",
    r"\b(?:i|we) (?:(?:think|believe|fear|i|we|'ve|have|may|might|must|could|just|probably|clearly|actually|had) )*(?:made|"
    r"messed|misread|mis-read|miscalculated|miscounted|forgot|overlooked|mixed up|misapplied|dropped|missed|confused)\b",
    r"\b(?:i|we)'ve (?:made|messed|misread|miscalculated|miscounted|forgotten|overlooked|mixed up|dropped|missed)\b",
    r"\b(?:that|this|it|which|something|(?:my|our|the) (?:answer|result|calculation|sum|last step|arithmetic))(?:'s| is| was"
    r"| seems| looks| must be| can't be| cannot be| isn't| wasn't| feels| would be) (?:(?:clearly|really|quite|still|also|not"
    r"|probably|definitely|to be|just|obviously|far|way|actually) )*(?:wrong|right|incorrect|correct|off|mistaken|impossible"
    r"|a mistake|an error|too (?:big|small|large|high|low|much|many)|suspicious|strange|not (?:it|what|the target|equal))"
    r"\b(?!-| (?:angle|triangle|side|hand|order|size|of|to the|answer|place|number|triangles|angles))",
    r"\b(?:that|this|it|which) (?:does not|doesn't|did not|didn't|won't|will not|cannot|can't|couldn't|fails to) (?:quite |"
    r"really |seem to |actually )?(?:work|add up|make sense|match|fit|help|check out|look right|seem right|give|hit|reach|be)\b",
    r"\b(?:that|this|something|things) (?:went wrong|failed)\b",
    r"\b(?:is|was|are|were|am) (?:this|that|it|these|we|i|my|our)\b[^?]{0,60}\b(?:right|correct|correctly|true|sure|ok|okay|valid"
    r"|wrong|sense|allowed)\b[^?]{0,30}\?",
    r"\b(?:did|have|had|do|does) (?:i|we|this|that|it)\b[^?]{0,80}\?",
    r"\b(?:i'm|i am|we're|we are) (?:still )?(?:not|un) ?(?:(?:so|quite|entirely|really|too|fully|totally) )?(?:sure|certain|"
    r"convinced|confident)",
    r"\bnot (?:(?:so|entirely|quite) )?(?:sure|convinced) (?:if|whether|about|that|of)\b",
    r"\b(?:i|we) (?:doubt|suspect|wonder)\b",
    r"\bmy (?:mistake|bad|error)\b|\bthere(?:'s| is| must be| was) (?:a|an|some) (?:mistake|error|slip|contradiction)\b",
    r"START(?:actually|nope|sorry|correction|no, (?:that|this|it|wait|i))\b",
    r"\bseems? (?:to be )?(?:correct|right|fine|good) so far\b",
    r"\bsomething(?:'s| is| seems| must be| looks| feels)\b[^.]*\b(?:wrong|off|fishy|amiss|missing)\b",
)


def _compile(patterns: Sequence[str]) -> re.Pattern[str]:
    alternatives = (p.replace("ME", f"(?:{_SOLVER}|{_START})", 1).replace("START", _START) for p in patterns)
    return re.compile("|".join(f"(?:{p})" for p in alternatives), re.IGNORECASE)


_PATTERNS: dict[Kind, re.Pattern[str]] = {
    "reflection": _compile(_REFLECTION),
    "restart": _compile(_RESTART),
    "backtrack": _compile(_BACKTRACK),
}


# Sentences that differ in their numbers share an entry in the cache of `_kinds`: to the patterns 0 is as 1, 3 to 9 as 2.
_PLAIN = str.maketrans("’03456789", "'12222222")


def find(response: str) -> list[Event]:
    """Find the events of a response, in their order."""
    response = response.translate(_PLAIN)
    events: list[Event] = []
    for match in _SENTENCE.finditer(response):
        for kind in _kinds(match[0]):
            last = next((i for i in reversed(range(len(events))) if events[i].kind == kind), None)
            if last is not None and not response[events[last].end : match.start()].strip():
                events[last] = events[last]._replace(end=match.end())
            else:
                events.append(Event(kind, match.start(), match.end()))
    return events


@functools.lru_cache(maxsize=1 << 16)  # the answers of a model have many sentences in common
def _kinds(sentence: str) -> tuple[Kind, ...]:
    """The kinds of event in a sentence."""
    kinds = [kind for kind, pattern in _PATTERNS.items() if pattern.search(sentence)]
    return tuple(kind for kind in kinds if kind != "backtrack" or "restart" not in kinds)


def count(events: Sequence[Event], kind: Kind) -> int:
    """Count the events of a kind."""
    return sum(event.kind == kind for event in events)
