/-
A prelude for propositional logic: all that stands between Lean's kernel and the toy's theorems.

Lean starts every file with `import Init`, which defines everything from `And` to `String`. A file that opens with the
word `prelude` starts from nothing instead: no `True`, no `∧`, no `exact`. This file is such a beginning. It imports
nothing, so a reader can see everything a proof may use.

  1. The names that Lean expects to exist: it looks them up when it compiles a type, a `cases` or a `sorry`.
  2. The propositions, which are ordinary inductive types, defined as Lean's own library defines them.
  3. The notation and the tactics. These are Lean's own, compiled into the shared library that this file is run by:
     declaring a compiled parser or macro under its own name tells Lean that it is there. No rule of the proof language
     is ours, so a wrong indentation is as wrong here as anywhere in Lean.
  4. A few lemmas under their library names.

There is no classical axiom: neither `p ∨ ¬p` nor Peirce's law can be proved. What must be declared as an `axiom`, because
its definition is compiled, shows up in `#print axioms` if a proof leans on it, and the verifier then rejects the proof.
-/
prelude
set_option autoImplicit false
set_option genCtorIdx false  -- no numbering of constructors: it would need natural numbers
universe u v w

/- ## 1. What Lean looks up by name -/

-- What the code generator calls "a thing without content" and "a thing of any type". Only it uses them.
axiom lcErased : Type
axiom lcAny : Type

-- What `cases` and `match` are made of; it has to be there before the first inductive type. `PUnit` has one element, `PProd`
-- is a pair, `Eq` is equality (`x = x` is the only way to prove one), `HEq` is equality between two types that may differ.
set_option bootstrap.inductiveCheckResultingUniverse false in
inductive PUnit : Sort u where
  | unit : PUnit
abbrev Unit : Type := PUnit
abbrev Unit.unit : Unit := PUnit.unit
structure PProd (α : Sort u) (β : Sort v) : Sort (max 1 u v) where
  fst : α
  snd : β
inductive Eq {α : Sort u} : α → α → Prop where
  | refl (a : α) : Eq a a
inductive HEq {α : Sort u} : α → {β : Sort u} → β → Prop where
  | refl (a : α) : HEq a a
@[reducible] def Eq.ndrec.{u1, u2} {α : Sort u2} {a : α} {motive : α → Sort u1} (m : motive a) {b : α} (h : Eq a b) :
    motive b :=
  Eq.rec (motive := fun x _ => motive x) m h
def id {α : Sort u} (a : α) : α := a
def Function.const {α : Sort u} (β : Sort v) (a : α) : β → α := fun _ => a
def cast {α β : Sort u} (h : Eq α β) (a : α) : β := Eq.ndrec (motive := fun x => x) a h
theorem heq_of_eq {α : Sort u} {a b : α} (h : Eq a b) : HEq a b :=
  Eq.ndrec (motive := fun x => HEq a x) (HEq.refl a) h
theorem eq_of_heq {α : Sort u} {a b : α} (h : HEq a b) : Eq a b :=
  HEq.rec (motive := fun {γ} y _ => (e : Eq α γ) → Eq (cast e a) y) (fun _ => Eq.refl a) h (Eq.refl α)
inductive Bool : Type where
  | false : Bool
  | true : Bool

/-- `sorry` stands for `sorryAx`: an axiom that proves anything, and by which `#print axioms` gives a gap away. -/
axiom sorryAx (α : Sort u) (synthetic : Bool) : α

/- ## 2. The propositions -/

/-- `True` has a proof, `False` has none. -/
inductive True : Prop where
  | intro : True
inductive False : Prop

/-- A proof of `a ∧ b` is a pair: `⟨x, y⟩` builds it, `h.left` or `h.1` and `h.right` or `h.2` take it apart. -/
structure And (a b : Prop) : Prop where
  intro ::
  left : a
  right : b

/-- A proof of `a ∨ b` says which side it proves. -/
inductive Or (a b : Prop) : Prop where
  | inl (h : a) : Or a b
  | inr (h : b) : Or a b

/-- `a ↔ b` is a pair of implications; `h.mp` is the first, `h.mpr` the second. -/
structure Iff (a b : Prop) : Prop where
  intro ::
  mp : a → b
  mpr : b → a

/-- `¬a` is *by definition* `a → False`: `intro` works on it, and a proof of it can be applied to a proof of `a`. -/
def Not (a : Prop) : Prop := a → False

/-- `False.elim h : C` for any `C`: from a contradiction everything follows. -/
noncomputable def False.elim {C : Sort u} (h : False) : C := False.rec (fun _ => C) h
noncomputable def absurd {a : Prop} {b : Sort v} (h₁ : a) (h₂ : Not a) : b := False.elim (h₂ h₁)
theorem trivial : True := True.intro

/- ## 3. Notation and tactics -/

-- What the compiled code works on. `Nat` and `Name` are here because a parser's description holds them.
axiom String : Type
inductive Nat : Type where
  | zero : Nat
  | succ (n : Nat) : Nat
class OfNat (α : Type u) (n : Nat) : Type u where
  ofNat : α
instance instOfNatNat (n : Nat) : OfNat Nat n := OfNat.mk n
inductive Lean.Name : Type where
  | anonymous : Name
  | str (pre : Name) (s : String) : Name
  | num (pre : Name) (i : Nat) : Name
@[extern "compiled"] axiom Lean.Name.mkStr1 : String → Lean.Name
@[extern "compiled"] axiom Lean.Name.mkStr2 : String → String → Lean.Name
@[extern "compiled"] axiom Lean.Name.mkStr4 : String → String → String → String → Lean.Name
inductive Lean.ParserDescr : Type where  -- the kinds are numbered in this order in the compiled code
  | const (name : Lean.Name)
  | unary (name : Lean.Name) (p : ParserDescr)
  | binary (name : Lean.Name) (p₁ p₂ : ParserDescr)
  | node (kind : Lean.Name) (prec : Nat) (p : ParserDescr)
  | trailingNode (kind : Lean.Name) (prec lhsPrec : Nat) (p : ParserDescr)
  | symbol (val : String)
  | nonReservedSymbol (val : String) (includeIdent : Bool)
  | cat (catName : Lean.Name) (rbp : Nat)
structure Lean.Parser.Category : Type
axiom Lean.Syntax : Type
axiom Lean.TrailingParserDescr : Type
abbrev Lean.Macro : Type := Lean.Syntax → Lean.Syntax → Lean.Syntax → Lean.Syntax

/- Each line below reads: a compiled parser (or macro, or printer) of this name exists; use it. -/

-- a ∧ b, a ∨ b, a ↔ b, ¬a, a = b: the parser, then the macro that turns it into `And a b`, `Or a b`, ...
@[extern "compiled", term_parser] axiom «term_∧_» : Lean.TrailingParserDescr
@[extern "compiled", term_parser] axiom «term_∨_» : Lean.TrailingParserDescr
@[extern "compiled", term_parser] axiom «term_↔_» : Lean.TrailingParserDescr
@[extern "compiled", term_parser] axiom «term¬_» : Lean.ParserDescr
@[extern "compiled", term_parser] axiom «term_=_» : Lean.TrailingParserDescr
@[extern "compiled", macro «term_∧_»] axiom «_aux_Init_Notation___macroRules_term_∧__1» : Lean.Macro
@[extern "compiled", macro «term_∨_»] axiom «_aux_Init_Notation___macroRules_term_∨__1» : Lean.Macro
@[extern "compiled", macro «term_↔_»] axiom «_aux_Init_Core___macroRules_term_↔__1» : Lean.Macro
@[extern "compiled", macro «term¬_»] axiom «_aux_Init_Notation___macroRules_term¬__1» : Lean.Macro
@[extern "compiled", macro «term_=_»] axiom «_aux_Init_Notation___macroRules_term_=__2» : Lean.Macro

-- ‹p› (a hypothesis that proves p)
@[extern "compiled", term_parser] axiom «term‹_›» : Lean.ParserDescr
@[extern "compiled", macro «term‹_›»] axiom «_aux_Init_Tactics___macroRules_term‹_›_1» : Lean.Macro

-- The way back, for messages: `And p q` is printed as p ∧ q.
abbrev Lean.PrettyPrinter.Unexpander : Type := Lean.Syntax → Lean.Syntax → Lean.Syntax → Lean.Syntax
@[extern "compiled", app_unexpander And] axiom _aux_Init_Notation___unexpand_And_1 : Lean.PrettyPrinter.Unexpander
@[extern "compiled", app_unexpander Or] axiom _aux_Init_Notation___unexpand_Or_1 : Lean.PrettyPrinter.Unexpander
@[extern "compiled", app_unexpander Not] axiom _aux_Init_Notation___unexpand_Not_1 : Lean.PrettyPrinter.Unexpander
@[extern "compiled", app_unexpander Iff] axiom _aux_Init_Core___unexpand_Iff_1 : Lean.PrettyPrinter.Unexpander
@[extern "compiled", app_unexpander Eq] axiom _aux_Init_Notation___unexpand_Eq_1 : Lean.PrettyPrinter.Unexpander

-- The patterns of `obtain`, `rcases` and `rintro`: ⟨a, b⟩, a | b, names, _ and -.
declare_syntax_cat rcasesPat
declare_syntax_cat rintroPat

namespace Lean.Parser.Tactic

@[extern "compiled", rcasesPat_parser] axiom rcasesPat.one : ParserDescr
@[extern "compiled", rcasesPat_parser] axiom rcasesPat.ignore : ParserDescr
@[extern "compiled", rcasesPat_parser] axiom rcasesPat.clear : ParserDescr
@[extern "compiled", rcasesPat_parser] axiom rcasesPat.tuple : ParserDescr
@[extern "compiled", rcasesPat_parser] axiom rcasesPat.paren : ParserDescr
@[extern "compiled", rintroPat_parser] axiom rintroPat.one : ParserDescr
@[extern "compiled", rintroPat_parser] axiom rintroPat.binder : ParserDescr

-- Tactics whose meaning is built into Lean: the parser is enough.
@[extern "compiled", tactic_parser] axiom intro : ParserDescr
@[extern "compiled", tactic_parser] axiom intros : ParserDescr
@[extern "compiled", tactic_parser] axiom rintro : ParserDescr
@[extern "compiled", tactic_parser] axiom exact : ParserDescr
@[extern "compiled", tactic_parser] axiom apply : ParserDescr
@[extern "compiled", tactic_parser] axiom refine : ParserDescr
@[extern "compiled", tactic_parser] axiom «show» : ParserDescr
@[extern "compiled", tactic_parser] axiom change : ParserDescr
@[extern "compiled", tactic_parser] axiom specialize : ParserDescr
@[extern "compiled", tactic_parser] axiom constructor : ParserDescr
@[extern "compiled", tactic_parser] axiom left : ParserDescr
@[extern "compiled", tactic_parser] axiom right : ParserDescr
@[extern "compiled", tactic_parser] axiom assumption : ParserDescr
@[extern "compiled", tactic_parser] axiom contradiction : ParserDescr
@[extern "compiled", tactic_parser] axiom obtain : ParserDescr
@[extern "compiled", tactic_parser] axiom rcases : ParserDescr
@[extern "compiled", tactic_parser] axiom cases : ParserDescr
@[extern "compiled", tactic_parser] axiom case : ParserDescr
@[extern "compiled", tactic_parser] axiom revert : ParserDescr
@[extern "compiled", tactic_parser] axiom clear : ParserDescr
@[extern "compiled", tactic_parser] axiom done : ParserDescr
@[extern "compiled", tactic_parser] axiom skip : ParserDescr
@[extern "compiled", tactic_parser] axiom first : ParserDescr
@[extern "compiled", tactic_parser] axiom allGoals : ParserDescr
@[extern "compiled", tactic_parser] axiom anyGoals : ParserDescr
@[extern "compiled", tactic_parser] axiom focus : ParserDescr
@[extern "compiled", tactic_parser] axiom paren : ParserDescr
@[extern "compiled", tactic_parser] axiom repeat' : ParserDescr
@[extern "compiled", tactic_parser] axiom eqRefl : ParserDescr
@[extern "compiled", tactic_parser] axiom applyRfl : ParserDescr

-- Tactics that are macros in Lean, too: the parsers, then what they expand to.
@[extern "compiled", tactic_parser] axiom tacticExfalso : ParserDescr
@[extern "compiled", tactic_parser] axiom tacticTrivial : ParserDescr
@[extern "compiled", tactic_parser] axiom tacticHave__ : ParserDescr
@[extern "compiled", tactic_parser] axiom tacticSuffices_ : ParserDescr
@[extern "compiled", tactic_parser] axiom tacticTry_ : ParserDescr
@[extern "compiled", tactic_parser] axiom «tactic_<;>_» : TrailingParserDescr
@[extern "compiled", tactic_parser] axiom tacticRfl : ParserDescr
@[extern "compiled", tactic_parser] axiom tacticNofun : ParserDescr
@[extern "compiled", tactic_parser] axiom tacticRefine_lift_ : ParserDescr
@[extern "compiled", tactic_parser] axiom tacticSorry : ParserDescr
@[extern "compiled", macro tacticExfalso] axiom _aux_Init_Tactics___macroRules_Lean_Parser_Tactic_tacticExfalso_1 : Macro
@[extern "compiled", macro tacticTrivial] axiom _aux_Init_Tactics___macroRules_Lean_Parser_Tactic_tacticTrivial_1 : Macro
@[extern "compiled", macro tacticTrivial] axiom _aux_Init_Tactics___macroRules_Lean_Parser_Tactic_tacticTrivial_2 : Macro
@[extern "compiled", macro tacticTrivial] axiom _aux_Init_Tactics___macroRules_Lean_Parser_Tactic_tacticTrivial_3 : Macro
@[extern "compiled", macro tacticTrivial] axiom _aux_Init_Tactics___macroRules_Lean_Parser_Tactic_tacticTrivial_4 : Macro
@[extern "compiled", macro tacticTrivial] axiom _aux_Init_Tactics___macroRules_Lean_Parser_Tactic_tacticTrivial_5 : Macro
@[extern "compiled", macro tacticTrivial] axiom _aux_Init_Tactics___macroRules_Lean_Parser_Tactic_tacticTrivial_6 : Macro
@[extern "compiled", macro tacticHave__] axiom _aux_Init_Tactics___macroRules_Lean_Parser_Tactic_tacticHave___1 : Macro
@[extern "compiled", macro tacticSuffices_] axiom _aux_Init_Tactics___macroRules_Lean_Parser_Tactic_tacticSuffices__1 : Macro
@[extern "compiled", macro tacticTry_] axiom _aux_Init_Tactics___macroRules_Lean_Parser_Tactic_tacticTry__1 : Macro
@[extern "compiled", macro «tactic_<;>_»] axiom «_aux_Init_Tactics___macroRules_Lean_Parser_Tactic_tactic_<;>__1» : Macro
@[extern "compiled", macro tacticRfl] axiom _aux_Init_Tactics___macroRules_Lean_Parser_Tactic_tacticRfl_1 : Macro
@[extern "compiled", macro tacticNofun] axiom _aux_Init_Tactics___macroRules_Lean_Parser_Tactic_tacticNofun_1 : Macro
@[extern "compiled", macro tacticRefine_lift_] axiom _aux_Init_Tactics___macroRules_Lean_Parser_Tactic_tacticRefine_lift__1 : Macro
@[extern "compiled", macro tacticSorry] axiom _aux_Init_Tactics___macroRules_Lean_Parser_Tactic_tacticSorry_1 : Macro

end Lean.Parser.Tactic

-- · tac: the bullet and the character it is written with
@[extern "compiled"] axiom Lean.cdotTk : Lean.ParserDescr
@[extern "compiled", tactic_parser] axiom Lean.cdot : Lean.ParserDescr

/- ## 4. Lemmas under their library names -/

theorem rfl {α : Sort u} {a : α} : a = a := Eq.refl a
@[refl] theorem Iff.refl (a : Prop) : a ↔ a := ⟨fun h => h, fun h => h⟩
theorem And.symm {a b : Prop} (h : a ∧ b) : b ∧ a := ⟨h.2, h.1⟩
theorem Or.elim {a b c : Prop} (h : a ∨ b) (left : a → c) (right : b → c) : c := Or.rec left right h
theorem Or.symm {a b : Prop} (h : a ∨ b) : b ∨ a := h.elim Or.inr Or.inl
theorem Iff.rfl {a : Prop} : a ↔ a := Iff.refl a
theorem Iff.symm {a b : Prop} (h : a ↔ b) : b ↔ a := ⟨h.2, h.1⟩
theorem Iff.trans {a b c : Prop} (h : a ↔ b) (k : b ↔ c) : a ↔ c := ⟨fun x => k.1 (h.1 x), fun x => h.2 (k.2 x)⟩
theorem Not.intro {a : Prop} (h : a → False) : ¬a := h
noncomputable def Not.elim {a : Prop} {C : Sort u} (h : ¬a) (x : a) : C := absurd x h
theorem mt {a b : Prop} (h : a → b) (n : ¬b) : ¬a := fun x => n (h x)
