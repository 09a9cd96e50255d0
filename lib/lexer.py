"""The lexical filter: which completions Lean may see at all, and which statements are one plain theorem."""

import functools
import re
import unicodedata
from collections.abc import Iterator

LONGEST = 200_000  # characters of a completion; real proofs have some thousands

# Each of these words begins a command in some version of Lean, Mathlib, Batteries or Aesop. A command could
# end the proof and change what follows it.
COMMANDS = set(
    """theorem lemma def abbrev example axiom opaque instance inductive coinductive structure class namespace
    section end export import variable universe attribute macro macro_rules syntax elab elab_rules
    elab_stx_quot notation notation3 infix infixl infixr prefix postfix local scoped private protected
    public noncomputable unsafe partial nonrec mutual initialize deriving prelude include omit simproc
    simproc_decl dsimproc dsimproc_decl cbv_simproc unif_hint binder_predicate alias seal unseal
    irreducible_def grind_pattern grind_propagator add_decl_doc add_aesop_rules erase_aesop_rules
    compile_inductive compile_def gen_injective_theorems init_quot library_note lrat_proof
    mk_iff_of_inductive_prop norm_cast_add_elim proof_wanted recall extend_docs deprecate deprecated_module
    show_panel_widgets suppress_compilation unset_option unsuppress_compilation set_library_suggestions
    set_premise_selector with_weak_namespace whatsnew sudo meta deprecated_syntax docs_to_verso
    init_grind_norm reset_grind_attrs grind_annotated tactic_extension recommended_spelling unlock_limits
    end_local_scope set_config test_extern def_eval_config_item gen_cnstr_fns lf_certify lf_export
    lf_signature""".split()
)
COMMAND_FAMILIES = (
    "(?:(?:assert|builtin|declare|derive|ensure|initialize|register)_|run_(?:cmd|elab|meta|tac)|elpi)"
)
HASH_COMMANDS = re.compile(  # what their names begin with, after the #
    "adapt|aesop|align|allow|assert|check|compile|conv|count|def|discr|dump|elpi|eval|exit|expand|explode|explore|find"
    "|grind|guard|help|here|html|import|info|inst|kernel|lang|lean|lf_|lint|list|long|loogle|min|moogle|norm|open|parse"
    "|plausible|post|pp|print|push|px|red|ring|sample|search|show|simp|slim|stat|string|synth|tactic|test|time|trace"
    "|trans|unfold|unify|version|view|where|whnf|widget|with"
)

# Gaps, code that runs while Lean checks, files, other programs: wrong wherever they stand, as «word» too.
BANNED_WORDS = set(
    """sorry admit stop native_decide native by_elab implemented_by include_str bv_check bv_decide
    polyrith slim_check plausible sleep assert! debug_assert! panic! println! todo! unreachable!
    decl_name idbg""".split()
)
# Wrong in any namespace: ways past the kernel, and effects, because Lean runs (config := ...) as code.
BANNED_NAMES = re.compile(
    "(?:sorryAx|ofReduceBool|ofReduceNat|reduceBool|reduceNat|trustCompiler|lcProof|lcUnreachable|skipKernelTC|IO|EIO"
    "|BaseIO|System|Lean|LeanSearchClient|Polyrith|ProofWidgets|Task|(?:unsafe|dbg|panic|timeit|allocprof).*)"
)

# Limits of effort, and how tactics search: the kernel, the output and the list of axioms stay as they are.
OPTIONS = """maxRecDepth maxHeartbeats maxSynthPendingDepth synthInstance.maxHeartbeats synthInstance.maxSize
    exponentiation.threshold tactic.skipAssignedInstances tactic.hygienic tactic.customEliminators simprocs
    smartUnfolding""".split()

# What may stand at column 0: brackets and bars that continue a term; in a block at column 0, tactics too.
MARGIN = {*")]}⟩|·<", "where", "termination_by", "decreasing_by"}
TACTICS = set(
    """_ ( { ⟨ . intro intros rintro exact exacts exact_mod_cast apply apply_fun refine use exists constructor
    left right cases rcases obtain induction by_cases by_contra contrapose exfalso absurd contradiction
    assumption trivial rfl have let set suffices show change calc rw rwa simp simpa simp_all simp_rw dsimp
    norm_num norm_cast push_cast push_neg ring ring_nf field_simp linarith nlinarith positivity omega decide
    aesop tauto grind zify qify gcongr congr convert ext funext subst unfold specialize generalize clear
    rename_i injection split split_ifs interval_cases fin_cases all_goals any_goals try repeat first case
    next done choose lift wlog symm linear_combination""".split()
)

# At an identifier that is no tactic, Lean reports an error and resumes one character later, inside the name:
# then it finds commands in `hrun_cmd` and `x.axiom`. The candidate is rejected, but the command has run.
# Common ends of names are allowed: HARMLESS needs a second command to do anything, SOMETIMES a declaration.
HARMLESS = set(
    "open end local scoped public private protected partial meta nonrec noncomputable mutual".split()
)
SOMETIMES = {"def", "class", "lemma", "prefix", "infix"}
RUNNING = (
    rf"{COMMAND_FAMILIES}[a-z_]*|(?:elab|macro|syntax|d?simproc)(?:_[a-z]+)?"
    "|initialize|set_option|deriving|attribute|instance|unsafe"
)
RUNS = re.compile(RUNNING + "|#")
HIDDEN = "|".join([RUNNING, *sorted(COMMANDS - HARMLESS)])

LETTER = "A-Za-z_À-ÖØ-öø-ſα-κμ-ωΑ-ΟΡΤ-Ωϊ-ϻἀ-῾℀-⅏𝒜-𝖟"  # Lean's; λ, Π, Σ, ᶜ, ¹ are none: `λsorry` is two words
PART = rf"(?:«[^»\n]*»|[{LETTER}][{LETTER}0-9'!?₀-₉ₐ-ₜᵢ-ᵪⱼ]*)"
ESCAPE = r"""\\[\\'"nt]"""
TOKEN = re.compile(
    rf"""(?P<space>[\ \r\n]+) | (?P<comment>--[^\n]*|/-) | (?P<string>"(?:[^"\\]|{ESCAPE})*")
    | (?P<name>{PART}(?:\.{PART})*)
    | (?P<number>0[xX][0-9a-fA-F]+|0[bB][01]+|\d[\d_]*(?:\.?\d*[eE][+-]?\d+)?)
    | (?P<char>(?<=[\ \n(\[{{⟨,])'(?:[^'\\\n]|{ESCAPE})')
    | (?P<operator>(?:(?<=[\ \n])'|(?<=[¹∑∏×⊕Σ]))'(?=[\ \n(\[{{][^-/"'«])
        |(?<=\])'(?=[{LETTER}][^"«]|[(⟨][^'"«]))
    | (?P<other>.)""",
    re.X | re.S,
)
COMMENT_MARK = re.compile("/-|-/")
LETTERS = re.compile(f"[{LETTER}]")
# One character, then tokens of their own: signs, digits with their e, x or b, and two characters after a '.
GLUED = re.compile(
    rf".(?>(?<=')[{LETTER}]|(?<='.)[{LETTER}]|(?<=[0-9])[bBoOxXeE]|(?<=[0-9a-fA-FxX])[a-fA-F]|[^{LETTER}])*"
    rf"({HIDDEN})",
    re.S,
)
LEMMA_MARKS = {*"[,=_←→⇒↓↑-!"}  # what stands before a lemma in `simp only [..]` and `grind only [..]`
IN_COMMENTS = "\t\u00ad\u200b\u200c\u200d\u2060\ufeff"  # invisible, but no text runs backwards


def scan(text: str) -> Iterator[tuple[str, str, int]]:
    """Yields (kind, text, column) of a Lean text, comments included; ValueError on what is not terminated.

    Where Lean's lexer fails, Lean goes on in the middle of a word or string. So anything that it might read
    differently is rejected, such as a ' that neither begins a character nor belongs to a name or to one of
    f '' s, ⁻¹' s, ∑' i, xs[i]'h."""
    at, line_start, before = 0, 0, ""
    while at < len(text):
        start, match = at, TOKEN.match(text, at)
        assert match and match.lastgroup  # `other` takes any character
        kind, word, at = match.lastgroup, match[0], match.end()
        if kind == "comment" and start and not re.match(r"[\w\s)\]}⟩,;=>:·(\[{⟨]", text[start - 1]):
            # `//-` and `<--` are operators. After an error at h' the rest, '--, is an unfinished character.
            exposed = COMMANDS.intersection(re.findall("[A-Za-z_]+", word)) or RUNS.search(word)
            if before != "name" or text[start - 1] != "'" or exposed or re.search("[\"'«/@`]", word):
                raise ValueError(f"a blank is missing before {word[:2]}")
        if word == "/-":
            depth = 1
            while depth:
                mark = COMMENT_MARK.search(text, at)
                if not mark:
                    raise ValueError("unterminated comment")
                depth, at = depth + (1 if mark[0] == "/-" else -1), mark.end()
        elif kind == "other" and word in "\"«'":
            raise ValueError(f"{word} is never closed")
        elif kind == "number" and LETTERS.match(text, at):
            raise ValueError(f"a blank is missing between {word} and the word after it")
        elif kind == "name" and word[-1] + text[at : at + 1] in ('r"', "r#"):
            raise ValueError("raw strings are not allowed")
        yield kind, text[start:at], start - line_start
        line_start, before = max(line_start, text.rfind("\n", start, at) + 1), kind


def tokens(text: str) -> Iterator[tuple[str, str, int]]:
    """As scan(), without blanks and comments; a doc comment is the token /--."""
    for kind, word, column in scan(text):
        if kind == "comment" and word[:3] in ("/--", "/-!"):
            yield "other", "/--", column
        elif kind not in ("space", "comment"):
            yield kind, word, column


def hidden_character(text: str) -> str | None:
    """A control, bidirectional or invisible character, or None. Tabs and empty blanks may be in comments."""
    if text.replace("\n", "").isprintable():
        return None
    for kind, word, _ in scan(text):
        for char in "" if word.isprintable() else word.replace("\n", ""):
            if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
                if kind != "comment" or char not in IN_COMMENTS:
                    return char
    return None


def is_cardinality(before: str, word: str) -> bool:
    """Whether # between these words is Mathlib's #s, the size of a set, or begins #[a, b]; not #eval or so.

    A longer name must stand where a term is expected. Lean reads #evalx as #eval x, so prefixes count."""
    if re.match(rf"[\[({{]|[{LETTER}][0-9₀-₉']*(?:\.|$)", word):
        return True
    expected = before != "" and before in "([{⟨,:=≠<≤>≥+-*/^%∣|∧∨¬→↔∈⊆←∑∏"
    return expected and bool(LETTERS.match(word)) and not HASH_COMMANDS.match(word)


def hidden_command(word: str, after: list[str]) -> bool:
    """Whether Lean would find a command inside this name if it stood where a tactic is expected."""
    if "«" in word and (RUNS.search(word) or COMMANDS.intersection(re.findall("[A-Za-z_0-9]+", word))):
        return True
    found = GLUED.fullmatch(word)
    if found and found[1] in SOMETIMES:
        return after[1:2] == [":"] or "".join(after[:1]).startswith("_root_") or '"' in "".join(after)
    return bool(found)


def forbidden(completion: str) -> str | None:
    """Why Lean may not see the text, or None. Words in comments do not count, nor parts of longer words.

    `open X in tac` and `set_option maxRecDepth 1000 in tac` are tactics; any other use is a command."""
    completion = completion.replace("\r\n", "\n")
    if len(completion) > LONGEST:
        return f"it has more than {LONGEST} characters"
    try:
        if bad := hidden_character(completion):
            return f"character U+{ord(bad):04X} is not allowed"
        words = list(tokens(completion))
    except ValueError as error:
        return str(error)
    texts = [word for _, word, _ in words]
    if texts[-1:] == ["in"]:
        return "nothing follows the last 'in'"
    brackets: list[bool] = []  # for each open one, whether it is that of `simp only [`
    for place, (kind, word, column) in enumerate(words):
        before, after = texts[place - 1] if place else "", texts[place + 1 : place + 20]
        if word in "([{⟨":
            simp = place > 1 and re.match("d?simp|grind", texts[place - 2])
            brackets.append(bool(simp) and before + word == "only[")
        elif word in ")]}⟩" and brackets:
            brackets.pop()
        if kind == "string" and ("{" in word or RUNS.search(word)):
            return "a string with code inside: interpolated, or a command"
        if word in ("`", "/--") or word == "#" and not is_cardinality(before, "".join(after[:1])):
            return f"{word} belongs to commands and metaprograms"
        if word == "@" and after[:1] == ["["]:
            return "attributes are not allowed"
        if column == 0 and place and word not in MARGIN:
            if words[0][2] or word.rstrip("!?'") not in TACTICS:
                return f"'{word}' at the start of a line would begin a command"
        if kind != "name":
            continue
        if hidden_command("]'" + word if before == "'" else word, after):
            return f"'{word}' would begin a command if an error stood before it"
        parts = [part.strip("«»") for part in re.findall(PART, word)]
        plain = parts[0].rstrip("!?") if len(parts) == 1 else ""
        is_lemma = brackets[-1:] == [True] and before in LEMMA_MARKS and after[:1] in ([","], ["]"])
        suspects = parts[1:] if is_lemma and word.startswith("Lean.") else parts
        banned = any(map(BANNED_NAMES.fullmatch, suspects))
        if banned or BANNED_WORDS & {plain, word} or plain == "eval" and after[:1] == ["%"]:
            return f"'{word}' is not allowed"
        if word == "scoped" and before == "open":
            continue
        if word.rstrip("!?") in COMMANDS or re.match(COMMAND_FAMILIES, word):
            return f"'{word}' begins a command"
        if word == "set_option" and not (after and after[0] in OPTIONS and after[2:3] == ["in"]):
            return "set_option is allowed for maxRecDepth, maxHeartbeats and their like, before a tactic"
        if word == "open" and not re.match(r"[^:=;]*? in ", " ".join(after) + " "):
            return "'open' without 'in' is a command"
    return None


@functools.lru_cache(1000)
def theorem_place(statement: str) -> tuple[int, str]:
    """Where the name of the statement's last theorem begins, and that name.

    ValueError says what is wrong with the statement."""
    position, words = 0, []
    for kind, word, _ in scan(statement):
        if kind != "space":
            words.append((position, kind, word))
        position += len(word)
    if [word for _, _, word in words[-3:]] != [":", "=", "by"]:  # no comment follows, nor is this one
        raise ValueError("it does not end in ':= by'")
    words = [word for word in words if word[1] != "comment"]
    pairs = list(zip(words, words[1:]))
    if any(word == "@" and following == "[" for (_, _, word), (_, _, following) in pairs):
        raise ValueError("it carries an attribute; take that off")  # by @[simp] its copies would be used
    for (_, _, word), (start, kind, name) in reversed(pairs):
        if word in ("theorem", "lemma") and kind == "name":
            return start, name
    raise ValueError("it holds no named theorem")


def theorem_name(statement: str) -> str:
    """The name of the statement's last theorem; ValueError as in theorem_place."""
    return theorem_place(statement)[1]


@functools.lru_cache(1000)
def single_theorem(statement: str) -> bool:
    """Whether the statement is surely one plain theorem, which leaves nothing in the file but its name.

    False where in doubt: a second command, a modifier, an attribute, brackets that do not balance, a quoted
    name, another `:=` outside brackets, anything that forbidden() would not take from a proof."""
    try:
        start, name = theorem_place(statement)
        words = [word for _, word, _ in tokens(statement)]
    except ValueError:
        return False
    words = words[1:] if words[0] == "/--" else words  # a doc comment
    another = {"/--", "theorem", "lemma"}.intersection(words[1:])
    if words[0] not in ("theorem", "lemma") or words[1] != name or another:
        return False
    if "«" in name or name.startswith("_root_") or "/-!" in statement:
        return False
    brackets: list[str] = []
    colons, definitions = 0, 0
    for word, following in zip(words[2:], words[3:]):
        if word in "([{⟨⦃":
            brackets.append(")]}⟩⦄"["([{⟨⦃".index(word)])
        elif word in ")]}⟩⦄" and (not brackets or brackets.pop() != word):
            return False
        colons += word == ":" and not brackets
        definitions += word == ":" and following == "=" and not brackets
    code = " " + statement[start:].replace("\n", "\n ")  # forbidden() allows nothing at the margin
    return not brackets and definitions == 1 and colons > 1 and forbidden(code) is None
