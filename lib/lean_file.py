"""One Lean file for a batch of candidates, and what Lean says of each of them.

header                                                          region 0
#print "_c4f1_0."
section _c4f1_1                                                 region 1: the statement
theorem _c4f1_1.foo
           : p → p := by sorry
end _c4f1_1 section set_option pp.fullNames true #print axioms _c4f1_1.foo end
section _c4f1_2                                                 region 2: a candidate
theorem _c4f1_2.foo
           : p → p := by
  exact id

end _c4f1_2 section set_option pp.fullNames true #print axioms _c4f1_2.foo end
"""

import bisect
import re
import secrets
import time
from typing import NamedTuple

from lib.lean import Lean, Stop, run_lean
from lib.lexer import PART, single_theorem, theorem_place
from lib.verdicts import Key

SORRY = " sorry"  # the proof that tests whether a statement is valid


def with_sorry(key: Key) -> Key:
    """The statement of a candidate, with `sorry` for a proof."""
    return key[0], key[1], SORRY


class File(NamedTuple):
    text: str
    tag: str  # random, so that no proof can name or forge anything in this file
    keys: list[Key]  # region k holds keys[k - 1]
    starts: list[int]  # the first line of each region from 1 on
    ends: list[int]  # the last line of each region from 0 on; a message there shows that Lean got so far


def region(statement: str, proof: str, tag: str) -> str:
    """The theorem under a name of its own, then the command that lists the axioms it rests on.

    The tag goes before the last part of the name: And.foo becomes And.tag.foo. So names in the proof mean
    what they mean at the top level, where `theorem And.foo` opens And. The tag's underscore hides the theorem
    from library search. What follows the name keeps its column, since a proof may be aligned with it. The
    section closes what an error in the proof may have opened: `hopen Or` is a command to Lean, see
    lib/lexer.py."""
    start, name = theorem_place(statement)
    last = re.findall(PART, name)[-1]
    tagged = f"{name.removesuffix(last)}{tag}.{last}"
    end = start + len(name)
    column = end - statement.rfind("\n", 0, end) - 1
    aligned = "" if statement[end] == "." else "\n" + " " * column  # not between t and .{u}
    renamed = statement[:start] + tagged + aligned + statement[end:]
    space = "\n" if proof == SORRY else "\n\n"
    axioms = f"section set_option pp.fullNames true #print axioms {tagged} end\n"
    if not single_theorem(statement):  # it has a process of its own, and may open sections itself
        return f"{renamed}{proof.rstrip()}{space}{axioms}"
    return f"section {tag}\n{renamed}{proof.rstrip()}{space}end {tag} {axioms}"


def build_file(batch: list[Key], lean: Lean) -> File:
    """The file of a batch: each statement with `sorry`, then each candidate."""
    tag = "_c" + secrets.token_hex(8)
    stated = [with_sorry(key) for key in batch if single_theorem(key[1])]  # others have been tried before
    keys = list(dict.fromkeys(stated + batch))
    parts = [batch[0][0].rstrip() + f'\n#print "{tag}_0."\n']
    starts, ends, line = [], [], 1
    for place in range(len(keys) + 1):
        if place > 0:
            _, statement, proof = keys[place - 1]
            starts.append(line)
            parts.append(region(statement.rstrip() if proof == SORRY else statement, proof, f"{tag}_{place}"))
        line += parts[-1].count("\n")
        ends.append(line - 1)
        if lean.sign:  # an old Lean, whose messages come at its end
            parts.append(lean.sign.format(f"{tag}_{place}."))
            line += 1
    return File("".join(parts), tag, keys, starts, ends)


class Findings(NamedTuple):
    """What Lean said of each region."""

    keys: list[Key]  # as in File
    axioms: list[set[str] | None]
    errors: list[list[str]]
    reached: set[int]  # regions that Lean finished
    trouble: str | None  # how Lean died, if it did not finish
    ended: int  # the region where it ended, or one after the last
    lost: bool  # its messages were lost, as an old Lean keeps them to the end
    seconds: float  # a candidate


def read_findings(
    messages: list[dict], file: File, trouble: str | None, lost: bool, seconds: float
) -> Findings:
    """Sorts Lean's messages by line. A list of axioms counts on its own line, with its own tag, and once."""
    count = len(file.keys) + 1
    axioms: list[set[str] | None] = [None] * count
    errors: list[list[str]] = [[] for _ in range(count)]
    reached = set()
    for message in messages:
        line, said = message["line"], message["data"]
        place = bisect.bisect_right(file.starts, line)
        if line > file.ends[place]:  # a sign of progress
            continue
        if line == file.ends[place]:
            reached.add(place)
            own = rf"'.*{file.tag}_{place}\..*'"
            form = rf"{own} (?:does not depend on any|depends on) axioms(?:: \[(.*)\])?"
            lists = re.fullmatch(form, said, re.S)
            if lists and message["severity"] == "information":
                if axioms[place] is not None:
                    errors[place].append("two lists of axioms")
                axioms[place] = set(re.split(r",\s*", lists[1])) if lists[1] else set()
        if message["severity"] == "error":
            errors[place].append(re.sub(rf"{file.tag}_\d+\.?", "", said))
    ended = max(reached, default=-1) + 1
    if not trouble and ended < count:
        trouble = "Lean did not come to the end of its file"
    return Findings(file.keys, axioms, errors, reached, trouble, ended if trouble else count, lost, seconds)


def bad_statements(found: Findings) -> dict[str, str]:
    """{statement: what is wrong with it}: an error in the region where it stands with `sorry`."""
    bad = {}
    for place, (_, statement, proof) in enumerate(found.keys, 1):
        if proof == SORRY and place < found.ended and not found.lost:
            if found.errors[place] or found.axioms[place] is None:
                reason = found.errors[place][0] if found.errors[place] else "Lean does not accept it"
                bad[statement] = f"bad statement: {reason}"
    return bad


def run_batch(batch: list[Key], lean: Lean, timeout: float, stop: Stop) -> Findings:
    """One Lean process for the batch."""
    start, file = time.monotonic(), build_file(batch, lean)
    messages, trouble = run_lean(file.text, lean, timeout, file.ends, file.tag, stop)
    seconds = (time.monotonic() - start) / len(batch)
    return read_findings(messages, file, trouble, bool(trouble and lean.sign), seconds)
