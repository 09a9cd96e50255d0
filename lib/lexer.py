"""The lexical filter: what of a completion may be shown to Lean at all."""

import functools
import re
import unicodedata
from collections.abc import Iterator

# A command could end the proof and change what comes after it. These words (Lean's, Mathlib's, Batteries' and Aesop's, any
# version) are reserved where they are known, so hardly an honest name is among them. Those with # are refused by the #.
COMMANDS = set(
    """theorem lemma def abbrev example axiom opaque instance inductive coinductive structure class namespace section
    end export import variable universe attribute macro macro_rules syntax elab elab_rules elab_stx_quot notation notation3 infix
    infixl infixr prefix postfix local scoped private protected public noncomputable unsafe partial nonrec mutual initialize
    deriving prelude include omit simproc simproc_decl dsimproc dsimproc_decl cbv_simproc unif_hint binder_predicate alias seal
    unseal irreducible_def grind_pattern grind_propagator add_decl_doc add_aesop_rules erase_aesop_rules compile_inductive
    compile_def gen_injective_theorems init_quot library_note lrat_proof mk_iff_of_inductive_prop norm_cast_add_elim
    proof_wanted recall extend_docs deprecate deprecated_module show_panel_widgets suppress_compilation unset_option
    unsuppress_compilation set_library_suggestions set_premise_selector with_weak_namespace whatsnew sudo""".split()
)


COMMAND_FAMILIES = re.compile("(?:assert|builtin|declare|initialize|register|run)_")


# Gaps, code that runs while Lean checks, files, other programs: wrong wherever the word stands (also written «word»). Names
# wrong in any namespace: ways past the kernel, and effects, because Lean evaluates options such as (config := ...) as code.
BANNED_WORDS = set(
    """sorry admit stop native_decide native by_elab implemented_by include_str bv_check bv_decide polyrith
    slim_check plausible sleep assert! debug_assert! panic! println! todo! unreachable! timeit decl_name""".split()
)


BANNED_NAMES = re.compile(
    "(?:sorryAx|ofReduceBool|ofReduceNat|reduceBool|reduceNat|trustCompiler|lcProof|lcUnreachable"
    "|skipKernelTC|IO|EIO|BaseIO|System|Lean|LeanSearchClient|Polyrith|ProofWidgets|Task|(?:unsafe|dbg|panic|timeit|allocprof).*)"
)


OPTIONS = {"maxRecDepth", "maxHeartbeats"}


# After an error Lean skips one character and looks for the next command: `hrun_cmd`, "run_cmd". That region is rejected anyway,
# but code would run.
RUNS = re.compile(
    "(?:builtin|declare|initialize|register|run)_[a-z]+|initialize|(?:elab|macro|syntax|d?simproc)(?:_[a-z]+)?"
    "|set_option|deriving|attribute|instance|unsafe|#"
)


# Lean's letters: λ, Π, Σ, ᶜ, ¹ and their like are none of them, `λsorry` is two words.
LETTER = "A-Za-z_À-ÖØ-öø-ſα-κμ-ωΑ-ΟΡΤ-Ωϊ-ϻἀ-῾℀-⅏𝒜-𝖟"


PART = rf"(?:«[^»\n]*»|[{LETTER}][{LETTER}0-9'!?₀-₉ₐ-ₜᵢ-ᵪⱼ]*)"


ESCAPE = r"""\\[\\'"nt]"""


TOKEN = re.compile(
    rf"""(?P<space>[\ \r\n]+|--[^\n]*) | (?P<comment>/-) | (?P<string>"(?:[^"\\]|{ESCAPE})*")
    | (?P<name>{PART}(?:\.{PART})*) | (?P<number>0[xX][0-9a-fA-F]+|0[bB][01]+|\d[\d_]*(?:\.?\d*[eE][+-]?\d+)?)
    | (?P<char>(?<=[\ \n(\[{{⟨,])'(?:[^'\\\n]|{ESCAPE})')
    | (?P<operator>(?:(?<=[\ \n])'|(?<=[¹∑∏×⊕Σ]))'(?=[\ \n(\[{{][^-/"'«])) | (?P<other>.)""",
    re.X | re.S,
)


def tokens(text: str) -> Iterator[tuple[str, str, int]]:
    """Yields (kind, text, column) of a Lean text, comments and blanks left out; ValueError on what is not terminated.

    Where Lean's lexer fails, Lean goes on in the middle of a word or string; so what it may not understand is no token here,
    such as a ' that neither begins a character nor belongs to a name or to Mathlib's operators f '' s, ⁻¹' s, ∑' i."""
    at = 0
    while at < len(text):
        match = TOKEN.match(text, at)
        assert match and match.lastgroup  # `other` takes any character
        kind, word, column = match.lastgroup, match[0], at - (text.rfind("\n", 0, at) + 1)
        if word[:2] in ("--", "/-") and at and not re.match(r"[\w\s)\]}⟩,;=>:·(\[{⟨]", text[at - 1]):
            raise ValueError(
                f"a blank is missing before {word[:2]}"
            )  # \/- <-- //- are an operator and -, no comment
        at = match.end()
        if kind == "comment":
            if text[at : at + 1] in ("-", "!"):
                yield "other", "/--", column
            depth = 1
            while depth:
                mark = re.compile("/-|-/").search(text, at)
                if not mark:
                    raise ValueError("unterminated comment")
                depth, at = depth + (1 if mark[0] == "/-" else -1), mark.end()
        elif kind == "other" and word in "\"«'":
            raise ValueError(f"{word} begins nothing that ends")
        elif kind == "number" and re.match(f"[{LETTER}]", text[at:]):
            raise ValueError(f"a blank is missing between {word} and the word after it")
        elif kind == "name" and word[-1] + text[at : at + 1] in ('r"', "r#"):
            raise ValueError("raw strings are not allowed")
        elif kind != "space":
            yield kind, word, column


def forbidden(completion: str) -> str | None:
    """Why the text may not be given to Lean, or None. Words in comments do not count, nor parts of longer words.

    `open X in tac` and `set_option maxRecDepth 1000 in tac` are tactics and stay allowed; any other use is a command.
    """
    for char in completion.replace("\r\n", "\n"):
        if char != "\n" and unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
            return f"character U+{ord(char):04X} is not allowed"
    try:
        words = list(tokens(completion))
    except ValueError as error:
        return str(error)
    if words and words[-1][1] == "in":
        return "nothing follows the last 'in'"
    for place, (kind, word, column) in enumerate(words):
        after = [text for _, text, _ in words[place + 1 : place + 20]]
        if kind == "string" and ("{" in word or RUNS.search(word)):
            return "a string with code inside: interpolated, or a command"
        if (
            word in ("`", "/--")
            or word == "#"
            and not re.match(rf"[\[({{]|[{LETTER}][0-9₀-₉]*$", "".join(after[:1]))
        ):
            return f"{word} belongs to commands and metaprograms"
        if word == "@" and after[:1] == ["["]:
            return "attributes are not allowed"
        if column == 0 and place and word not in {*")]}⟩|·<", "where", "termination_by", "decreasing_by"}:
            return f"'{word}' at the start of a line would begin a command"
        if kind != "name":
            continue
        # What Lean would find in the word after an error at its first character: `hrun_cmd`, h0x1run_cmd.
        rest = re.sub(rf"^.(?:'..|[^{LETTER}]|(?<=0)[bBoO]|(?<=0)[xX][0-9a-fA-F]*|(?<=\d)[eE])*", "", word)
        if RUNS.fullmatch(rest) or "«" in word and RUNS.search(word):
            return f"'{word}' would begin a command if an error stood before it"
        parts = [part.strip("«»") for part in re.findall(PART, word)]
        plain = parts[0].rstrip("!?") if len(parts) == 1 else ""
        if (
            BANNED_WORDS & {plain, word}
            or any(map(BANNED_NAMES.fullmatch, parts))
            or plain == "eval"
            and after[:1] == ["%"]
        ):
            return f"'{word}' is not allowed"
        if word == "scoped" and place and words[place - 1][1] == "open":
            continue
        if word.rstrip("!?") in COMMANDS or COMMAND_FAMILIES.match(word):
            return f"'{word}' begins a command"
        if word == "set_option" and not (after and after[0] in OPTIONS and after[2:3] == ["in"]):
            return "set_option is allowed for maxRecDepth and maxHeartbeats, before a tactic"
        if word == "open" and not re.match(r"[^:=;]*? in ", " ".join(after) + " "):
            return "'open' without 'in' is a command"
    return None


@functools.lru_cache(1000)
def theorem_name(statement: str) -> str:
    """The name of the statement's last theorem; ValueError says what is wrong with the statement."""
    if not re.search(r":=\s*by\s*\Z", statement):
        raise ValueError("it does not end in ':= by'")
    words = list(tokens(statement))
    pairs = list(zip(words, words[1:]))
    if any(
        (word, name) == ("@", "[") for (_, word, _), (_, name, _) in pairs
    ):  # such as @[simp], by which its copies would be used
        raise ValueError("it carries an attribute; take that off")
    for (_, word, _), (kind, name, _) in reversed(pairs):
        if word in ("theorem", "lemma") and kind == "name":
            return name
    raise ValueError("it holds no named theorem")


def single_theorem(statement: str) -> bool:
    """Whether the statement is surely one plain theorem and nothing else, which leaves no trace in the file but its name.

    False where in doubt: a second command, a modifier, an attribute, scopes or brackets that do not balance, `let x := ..`
    outside brackets, a quoted name, anything that forbidden() would not take from a proof."""
    try:
        theorem_name(statement)
        words = list(tokens(statement))
    except ValueError:
        return False
    head = words[1:] if words and words[0][1] == "/--" else words  # a doc comment
    texts = [word for _, word, _ in head]
    if texts[:1] not in (["theorem"], ["lemma"]) or texts[-3:] != [":", "=", "by"] or "/--" in texts:
        return False
    name = texts[1]
    if head[1][0] != "name" or "«" in name or name.startswith("_root_"):
        return False
    depth: list[str] = []
    colons, definitions = 0, 0
    for word, following in zip(texts[2:], texts[3:]):
        if word in "([{⟨⦃":
            depth.append(")]}⟩⦄"["([{⟨⦃".index(word)])
        elif word in ")]}⟩⦄" and (not depth or depth.pop() != word):
            return False
        colons += word == ":" and not depth
        definitions += word == ":" and following == "=" and not depth
    if depth or definitions != 1 or colons < 2:
        return False
    code = re.sub(r"\A\s*/--.*?-/", "", statement, flags=re.S)
    body = re.split(r"\b(?:theorem|lemma)\s", code, maxsplit=1)[1]
    return forbidden(" " + body.replace("\n", "\n ")) is None
